//! `shifter-ssh-keys`: makes the keys of a job and prints them, as the job's user.
//!
//! ```text
//! -----BEGIN OPENSSH PRIVATE KEY-----   with which the user goes from node to node
//! ...
//! ssh-ed25519 AAAA...
//! -----BEGIN OPENSSH PRIVATE KEY-----   by which the nodes are known
//! ...
//! ssh-ed25519 AAAA...
//! ```

use std::io::{self, Write};
use std::process::ExitCode;

use udi_image::keys;

fn main() -> ExitCode {
    match print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "shifter-ssh-keys: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print() -> io::Result<()> {
    let mut text = String::new();
    for _ in ["user", "host"] {
        let key = keys::generate("").map_err(io::Error::other)?;
        text += &key.private;
        text += key.public.trim_end();
        text += "\n";
    }
    io::stdout().write_all(text.as_bytes())
}
