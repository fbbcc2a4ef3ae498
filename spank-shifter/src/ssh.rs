//! ssh between the nodes of a job: whose keys it gets, and when its servers start.

use std::os::unix::process::CommandExt;
use std::process::Command;

use shifter_core::config::{Config, SshJobs};
use shifter_core::identity::Identity;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, Program};
use shifter_core::manifest::{self, JobManifest};
use shifter_core::ssh::JobKeys;
use shifter_core::trusted;

use crate::child::{self, Finished, Terms};
use crate::prolog::{Mistake, NodeError, fixed_environment, privileged};
use crate::settings::Settings;

/// Number of the step in which Slurm keeps what belongs to a job and to none of its steps.
pub const EXTERN_STEP: u32 = 0xffff_fffc;

/// Seconds for making keys, and for starting a server.
const SECONDS: u32 = 10;

/// Decides whether a job's nodes reach one another, and makes the keys for it.
///
/// Nodes have the same keys only where something tells them: a job with several nodes needs that.
pub fn keys(
    config: &Config,
    is_asked: bool,
    user: &Identity,
    nodes: usize,
    ready: fn(Command) -> Command,
) -> Result<Result<Option<JobKeys>, Mistake>, NodeError> {
    match config.ssh.enable {
        SshJobs::Off if is_asked => return Ok(Err(Mistake::NoSsh)),
        SshJobs::Off => return Ok(Ok(None)),
        SshJobs::Ask if !is_asked => return Ok(Ok(None)),
        SshJobs::Ask | SshJobs::Always => {}
    }
    if nodes > 1 {
        // Nobody who did not ask for it needs to know.
        return Ok(if is_asked {
            Err(Mistake::NoSharedKeys)
        } else {
            Ok(None)
        });
    }
    make(config, user, ready).map(|keys| Ok(Some(keys)))
}

/// Makes keys, as the user who gets them anyway.
fn make(
    config: &Config,
    user: &Identity,
    ready: fn(Command) -> Command,
) -> Result<JobKeys, NodeError> {
    let program = privileged(&Program::SshKeys.path(&config.prefix))?;
    let mut command = fixed_environment(program);
    command.uid(user.uid).gid(user.gid);
    let terms = Terms {
        seconds: SECONDS,
        own_group: true,
        shows_stderr: false,
    };
    let finished = child::run(ready(command), b"", terms)?;
    let keys = str::from_utf8(&finished.stdout)
        .ok()
        .and_then(JobKeys::parse);
    keys.filter(|_| finished.status.success())
        .ok_or_else(|| NodeError::program("shifter-ssh-keys", &finished))
}

/// Starts the server of a job whose manifest has keys, from its extern step; returns what the
/// program says of it.
pub fn start(
    job: &JobId,
    uid: u32,
    settings: &Settings,
    ready: fn(Command) -> Command,
) -> Result<Option<String>, NodeError> {
    let manifest = trusted::read(&layout::manifest_file(job), manifest::SIZE_LIMIT);
    let has_keys = |bytes: &Vec<u8>| JobManifest::parse(bytes).is_ok_and(|m| m.ssh.is_some());
    if !manifest.as_ref().is_ok_and(has_keys) {
        return Ok(None);
    }
    let config = Config::open_trusted(settings.config())?;
    let mut command = privileged(&Program::StartSshd.path(&config.prefix))?;
    command.arg(format!("--config={}", settings.config().display()));
    command.arg(format!("--expect-uid={uid}")).arg(job.as_str());
    let terms = Terms {
        seconds: SECONDS,
        own_group: true,
        shows_stderr: false,
    };
    let finished: Finished = child::run(ready(fixed_environment(command)), b"", terms)?;
    if finished.status.success() {
        Ok(finished.messages(1).pop())
    } else {
        Err(NodeError::program("startSshd", &finished))
    }
}
