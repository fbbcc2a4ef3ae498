//! `ssh`: from one node of a job to another, for images that have no ssh of their own.

use std::io::{self, Write};

use shifter_core::chain;
use udi_image::client::{self, FAILED};
use udi_image::options::Options;

fn main() {
    // Not a return, for the same thread.
    std::process::exit(i32::from(run()));
}

fn run() -> u8 {
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(message) => return complain(&message),
    };
    if options.is_version {
        complain(concat!("Shifter ", env!("CARGO_PKG_VERSION")));
        return 0;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(client::run(&options));
            // A thread may wait for input that never comes.
            runtime.shutdown_background();
            result
        }
        Err(error) => return complain(&error.to_string()),
    };
    match result {
        Ok(code) => code,
        Err(_) if options.is_quiet => FAILED,
        Err(error) => complain(&chain::line(&error)),
    }
}

fn complain(text: &str) -> u8 {
    let _ = writeln!(io::stderr(), "ssh: {text}");
    FAILED
}
