//! Making a job's keys: by a program of its own, which runs as the user who gets them anyway, so
//! that nobody else's process holds what is worth tracing.

use std::os::unix::process::CommandExt;
use std::process::Command;

use shifter_core::config::Config;
use shifter_core::layout::Program;
use shifter_core::ssh::JobKeys;
use shifter_core::trusted;

use crate::child::{self, ChildError, Terms};
use crate::error::{Error, Result};

/// How the program is run.
const TERMS: Terms = Terms {
    seconds: 10,
    own_group: true,
    shows_stderr: false,
};

/// Makes the keys of a job of this user and group; `ready` keeps the caller's descriptors from the
/// program.
///
/// # Errors
/// [`Error::Ssh`] where the program does not do what it should, which may be its user's doing: it is
/// the user's to stop and to trace. Whatever else is the node's failure.
pub fn make(
    config: &Config,
    uid: u32,
    gid: u32,
    ready: impl FnOnce(Command) -> Command,
) -> Result<JobKeys> {
    let program = Program::SshKeys.path(&config.prefix);
    let program = trusted::audit(&program, &[0]).map_err(Error::Untrusted)?;
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").uid(uid).gid(gid);
    let failed = |reason: String| Error::Ssh(format!("cannot make keys: {reason}"));
    let finished = child::run(ready(command), b"", TERMS).map_err(|error| match error {
        ChildError::Run { program, source } => Error::Step {
            step: "run",
            object: program,
            source,
        },
        late => failed(late.to_string()),
    })?;
    let keys = str::from_utf8(&finished.stdout)
        .ok()
        .and_then(JobKeys::parse);
    match keys {
        Some(keys) if finished.status.success() => Ok(keys),
        _ => Err(failed(
            finished
                .messages(1)
                .pop()
                .unwrap_or_else(|| finished.ending()),
        )),
    }
}
