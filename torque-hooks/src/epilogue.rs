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
use shifter_core::manifest::{JobManifest, SIZE_LIMIT, Start};
use shifter_core::trusted;
use thiserror::Error;

use crate::hook::{self, Work};
use crate::left::{self, Noted, Which};
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
    let deadline = Instant::now() + Duration::from_secs(work.seconds.into());
    let config = config(work.call.config.as_deref());
    let dir = match StateDir::open(&config.torque.state_dir) {
        Ok(dir) => dir,
        Err(error) => return report(work, &config, Err(error.chain())),
    };
    let noted = left::noted(&dir, &work.call.job);
    let code = report(work, &config, clean_up(work, &config, &dir, deadline));
    match noted {
        Ok(noted) => retry(work, &config, &dir, &noted, deadline),
        Err(error) => say::log(Weight::Warning, &error.chain()),
    }
    code
}

/// Tries nodes that did not answer earlier. This job does not wait long for it, and what comes of it
/// changes nothing for it.
fn retry(work: &Work, config: &Config, dir: &StateDir, noted: &Noted, deadline: Instant) {
    let deadline = deadline.min(Instant::now() + left::ROUND);
    let path = work.call.config.as_deref();
    for line in left::retry(dir, config, path, Which::Due(noted), deadline) {
        say::log(Weight::Warning, &line);
    }
}

fn report(work: &Work, config: &Config, result: Result<String, String>) -> u8 {
    let subject = work.call.subject();
    match result {
        Ok(line) => {
            say::log(Weight::Info, &format!("{subject}: {line}"));
            0
        }
        Err(line) => {
            let line = format!("{subject}: {line}");
            say::log(Weight::Error, &line);
            say::tell(&line);
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

fn clean_up(
    work: &Work,
    config: &Config,
    dir: &StateDir,
    deadline: Instant,
) -> Result<String, String> {
    let time = deadline.saturating_duration_since(Instant::now());
    let call = &work.call;
    let site = Site {
        config,
        config_path: call.config.as_deref(),
        job: &call.job,
        dir,
    };
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
    let own = Here {
        config,
        config_path: call.config.as_deref(),
        job: &call.job,
        uid: record.as_ref().map(|record| record.uid),
        start: None,
        is_late: false,
    };
    let own = own.tear_down(left_until(deadline));
    let removed = match &result {
        Err(remains) if !remains.is_noted => Ok(()),
        _ => job.remove().map_err(|error| error.chain()),
    };
    let line = result.map_err(|remains| remains.line)?;
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
        start: None,
        is_late: false,
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
    /// Which start of it is over, where that is known: what was prepared for a later one stays.
    pub start: Option<Start>,
    /// Whether it has been over for long, so that a set-up that is at work is not its.
    pub is_late: bool,
}

impl Here<'_> {
    /// Removes it.
    pub fn tear_down(&self, seconds: u32) -> Result<(), HereError> {
        // An order may have been on its way for as long as this node hung.
        if self.is_superseded() {
            return Ok(());
        }
        // One that fails must not keep the other from its work.
        let stopped = services::stop(self.job, self.start);
        self.remove_root(seconds)?;
        Ok(stopped?)
    }

    fn is_superseded(&self) -> bool {
        let manifest = trusted::read(&layout::manifest_file(self.job), SIZE_LIMIT).ok();
        let manifest = manifest.and_then(|bytes| JobManifest::parse(&bytes).ok());
        match (manifest, self.start) {
            (Some(manifest), Some(start)) => manifest.start().is_after(&start),
            _ => false,
        }
    }

    fn remove_root(&self, seconds: u32) -> Result<(), OutsideError> {
        let Self {
            config,
            config_path,
            job,
            uid,
            start,
            is_late,
        } = *self;
        // Without a root there may be containers for single commands, of a user who is known.
        if uid.is_none() && !layout::job_dir(job).exists() {
            return Ok(());
        }
        let program = trusted::audit(&Program::UnsetupRoot.path(&config.prefix), &[0])?;
        let mut command = Command::new(program);
        command.args(config_path.map(|path| format!("--config={}", path.display())));
        match start.filter(|_| is_late) {
            Some(start) => command.arg(format!("--start={start}")),
            None => command.args(uid.map(|uid| format!("--uid={uid}"))),
        };
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
            code: finished.status.code(),
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
