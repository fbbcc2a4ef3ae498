//! Programs that are asked something: the batch system's, ALPS's, the image manager.
//!
//! Those that run as root belong to root, up the whole path. Each has a fixed environment, a
//! deadline, and its words as words.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use node_setup::child::{self, ChildError, Finished, Terms};
use node_setup::sys;
use shifter_core::sanitize;
use shifter_core::trusted::{self, TrustError};
use thiserror::Error;

/// Says why a program gave no answer.
#[derive(Debug, Error)]
pub enum OutsideError {
    /// Others than root could have changed it, or it is not there.
    #[error(transparent)]
    Untrusted(#[from] TrustError),
    /// It did not run to its end.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// It failed, in its own words.
    #[error("{program} ended with {ending}{}", said(.words))]
    Failed {
        /// Its name.
        program: String,
        /// Its exit code, unless a signal ended it.
        code: Option<i32>,
        /// Its exit code or signal, in words.
        ending: String,
        /// What it wrote.
        words: String,
    },
}

fn said(words: &str) -> String {
    match words {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

/// Runs a program as root and returns what it prints.
pub fn ask(program: &Path, arguments: &[&str], seconds: u32) -> Result<Vec<u8>, OutsideError> {
    let mut command = Command::new(trusted::audit(program, &[0])?);
    // Programs that are many by their names look at it, as qstat may.
    command.arg0(program).args(arguments);
    let finished = run(command, seconds)?;
    if finished.status.success() {
        return Ok(finished.stdout);
    }
    let name = program.file_name().unwrap_or_default();
    Err(OutsideError::Failed {
        program: sanitize::bytes(name.as_encoded_bytes()),
        code: finished.status.code(),
        ending: finished.ending(),
        words: finished.messages(2).join("; "),
    })
}

/// Runs a command that is ready but for its environment.
pub fn run(command: Command, seconds: u32) -> Result<Finished, ChildError> {
    let terms = Terms {
        seconds,
        own_group: true,
        shows_stderr: false,
    };
    child::run(fixed_environment(command), b"", terms)
}

/// Gives a command an environment in which nothing is anybody's but ours, and signals as in a fresh
/// process: hooks block all of theirs.
pub fn fixed_environment(mut command: Command) -> Command {
    child::fix_environment(&mut command);
    sys::unblock_signals_of(&mut command);
    command
}
