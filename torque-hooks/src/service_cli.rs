//! `shifter-node-service start|stop JOB`: a node's services by hand, or from a site's own scripts.

use std::path::PathBuf;

use shifter_core::chain;
use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::exit::ExitCode;
use shifter_core::ids::JobId;
use shifter_core::layout;
use shifter_core::manifest::{JobManifest, SIZE_LIMIT};
use shifter_core::trusted;

use crate::{guard, say, services, shared};

const HELP: &str = "\
Usage: shifter-node-service [--config=FILE] start JOB
       shifter-node-service stop JOB

Start what this node runs while it has the job: kernel modules, munge, nscd, as
torque.services and kernel.preload say; or stop what no other job needs.
";

/// Runs the program.
pub fn main() -> std::process::ExitCode {
    let words = match guard::words() {
        Ok(words) => words,
        Err(code) => return code.into(),
    };
    if words.iter().any(|word| word == "--help" || word == "-h") {
        return node_setup::out::answer(HELP).into();
    }
    match run(words) {
        Ok(()) => ExitCode::Success.into(),
        Err((code, why)) => {
            say::tell(&why);
            code.into()
        }
    }
}

fn run(words: Vec<String>) -> Result<(), (ExitCode, String)> {
    let usage = |text: &str| {
        let why = format!("{text}; try 'shifter-node-service --help'");
        (ExitCode::Usage, why)
    };
    guard::take_hold().map_err(|error| (error.exit_code(), error.chain()))?;
    node_setup::process::check_is_root().map_err(|error| (error.exit_code(), error.chain()))?;
    let mut path = PathBuf::from(DEFAULT_PATH);
    let mut rest = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some(("--config", file)) => path = file.into(),
            _ => rest.push(word),
        }
    }
    let [verb, job] = &rest[..] else {
        return Err(usage("'start' or 'stop' and a job's id are needed"));
    };
    let job = JobId::parse(job).map_err(|error| usage(&error.to_string()))?;
    let internal =
        |error: &(dyn std::error::Error + 'static)| (ExitCode::Internal, chain::line(error));
    match verb.as_str() {
        "start" => {
            let config = Config::open_trusted(&path).map_err(|error| internal(&error))?;
            let manifest = trusted::read(&layout::manifest_file(&job), SIZE_LIMIT).ok();
            let manifest = manifest.and_then(|bytes| JobManifest::parse(&bytes).ok());
            let begun = manifest.as_ref().map(JobManifest::start);
            // Without a root nothing says here whose job it is: nscd starts with what it has.
            let caches = manifest.and_then(|manifest| shared::caches_of(&config, &manifest).ok());
            services::start(&config, &job, begun, &caches.unwrap_or_default())
                .map_err(|error| internal(&error))
        }
        "stop" => services::stop(&job, None).map_err(|error| internal(&error)),
        _ => Err(usage("'start' or 'stop' and a job's id are needed")),
    }
}
