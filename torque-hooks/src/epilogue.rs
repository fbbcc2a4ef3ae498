//! What an epilogue does: stop a prologue that is still at work, and remove what there is.
//!
//! It goes by what the prologue has written down, and asks nobody. It may be called twice, and
//! without any prologue.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use node_setup::child::{self, Terms};
use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, Program};
use shifter_core::trusted;
use thiserror::Error;

use crate::hook::{self, Work};
use crate::outside::{OutsideError, fixed_environment};
use crate::say::{self, Weight};
use crate::services::{self, ServiceError};
use crate::site::{self, Site};
use crate::state::StateDir;

/// Where the suite is if the configuration does not say.
const PREFIX: Option<&str> = option_env!("SHIFTER_PREFIX");

/// The part of the time that is kept for the work itself, when a prologue of the same job has been
/// waited for: it has undone most of it.
const WORK_SHARE: u32 = 4;

/// Does the work of an epilogue on a launch node and returns its exit code.
pub fn run(work: &Work) -> u8 {
    let subject = work.call.subject();
    match clean_up(work) {
        Ok(line) => {
            say::log(Weight::Info, &format!("{subject}: {line}"));
            0
        }
        Err(line) => {
            let line = format!("{subject}: {line}");
            say::log(Weight::Error, &line);
            say::tell(&line);
            let config = config(work.call.config.as_deref());
            let noted =
                StateDir::open(&config.torque.state_dir).and_then(|dir| dir.note_failure(&line));
            if let Err(error) = noted {
                say::log(Weight::Error, &error.chain());
            }
            hook::PERMANENT
        }
    }
}

/// A configuration that broke while the job ran must not keep its remains on the nodes.
pub fn config(path: Option<&Path>) -> Config {
    let mut config = hook::config(path);
    if let (Err(_), Some(prefix)) = (&config, PREFIX) {
        config = Ok(Config {
            prefix: prefix.into(),
            ..Config::default()
        });
    }
    config.unwrap_or_default()
}

fn clean_up(work: &Work) -> Result<String, String> {
    let time = Duration::from_secs(work.seconds.into());
    let deadline = Instant::now() + time;
    let call = &work.call;
    let config = config(call.config.as_deref());
    let site = Site {
        config: &config,
        config_path: call.config.as_deref(),
        job: &call.job,
    };
    let dir = StateDir::open(&config.torque.state_dir).map_err(|error| error.chain())?;
    let _tombstone = dir.bury(&call.job).map_err(|error| error.chain())?;
    let job = dir
        .lock(&call.job, time - time / WORK_SHARE)
        .map_err(|error| format!("the prologue is still at work: {}", error.chain()))?;
    let record = job.record().map_err(|error| error.chain())?;
    let result = match &record {
        Some(record) => site::tear_down(&site, &job, record, deadline),
        None => Ok("nothing was set up".into()),
    };
    // Also where the record knows nothing of it: this node's own.
    let uid = record.as_ref().map(|record| record.uid);
    let own = Here {
        config: &config,
        config_path: call.config.as_deref(),
        job: &call.job,
        uid,
    };
    let own = own.tear_down(left_until(deadline));
    let removed = job.remove().map_err(|error| error.chain());
    let line = result?;
    own.map_err(|error| shifter_core::chain::line(&error))?;
    removed.map(|()| line)
}

fn left_until(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now());
    u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(5)
}

/// Does the work of a `.parallel` hook: what is on this node of the job goes, before the job
/// because it is of an earlier run, after it because the job is over.
pub fn run_parallel(work: &Work) -> u8 {
    let config = config(work.call.config.as_deref());
    let here = Here {
        config: &config,
        config_path: work.call.config.as_deref(),
        job: &work.call.job,
        uid: None,
    };
    match here.tear_down(work.seconds) {
        Ok(()) => 0,
        Err(error) => {
            let why = shifter_core::chain::line(&error);
            say::log(Weight::Error, &format!("{}: {why}", work.call.subject()));
            hook::PERMANENT
        }
    }
}

/// What there is of a job on this very node.
pub struct Here<'a> {
    /// The site's configuration.
    pub config: &'a Config,
    /// Where it was read from, if that is not where it usually is.
    pub config_path: Option<&'a Path>,
    /// The job.
    pub job: &'a JobId,
    /// Its user, where that is known.
    pub uid: Option<u32>,
}

impl Here<'_> {
    /// Removes it.
    pub fn tear_down(&self, seconds: u32) -> Result<(), HereError> {
        // One that fails must not keep the other from its work.
        let stopped = services::stop(self.job);
        self.remove_root(seconds)?;
        Ok(stopped?)
    }

    fn remove_root(&self, seconds: u32) -> Result<(), OutsideError> {
        let Self {
            config,
            config_path,
            job,
            uid,
        } = *self;
        // Without a root there may be containers for single commands, of a user who is known.
        if uid.is_none() && !layout::job_dir(job).exists() {
            return Ok(());
        }
        let program = trusted::audit(&Program::UnsetupRoot.path(&config.prefix), &[0])?;
        let mut command = Command::new(program);
        command.args(config_path.map(|path| format!("--config={}", path.display())));
        command.args(uid.map(|uid| format!("--uid={uid}")));
        command.arg(job.as_str());
        let terms = Terms {
            seconds,
            own_group: true,
            shows_stderr: false,
        };
        let finished = child::run(fixed_environment(command), b"", terms)?;
        if finished.status.success() {
            return Ok(());
        }
        Err(OutsideError::Failed {
            program: "unsetupRoot".into(),
            ending: finished.ending(),
            words: finished.messages(2).join("; "),
        })
    }
}

/// Says what is left on this node.
#[derive(Debug, Error)]
pub enum HereError {
    /// The root, or a process in it.
    #[error(transparent)]
    Root(#[from] OutsideError),
    /// A service.
    #[error(transparent)]
    Service(#[from] ServiceError),
}
