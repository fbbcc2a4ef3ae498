//! `shifter-node-clean`: what a machine that died has left, removed when it boots.
//!
//! On a node nothing survives: its state is in memory. A launch node's notes do, and so do the
//! roots of its jobs on other nodes. For every job that was noted during an earlier boot this does
//! what the epilogue would have done; jobs of this boot are left alone. Nodes that did not answer
//! an epilogue are tried again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shifter_core::config::Config;
use shifter_core::exit::ExitCode;
use shifter_core::ids::JobId;

use crate::left::{self, Which};
use crate::say::{self, Weight};
use crate::site::{self, Site};
use crate::state::{StateDir, boot_id};
use crate::{epilogue, guard};

const HELP: &str = "\
Usage: shifter-node-clean [--config=FILE]

Remove what the jobs of an earlier boot of this machine have left, here and on
their other nodes, and what is left on nodes that did not answer when their jobs
ended. To be run at boot, before pbs_mom; at any other time it does no harm.
";

/// How long a job that somebody works on is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs the program.
pub fn main() -> std::process::ExitCode {
    let words = match guard::words() {
        Ok(words) => words,
        Err(code) => return code.into(),
    };
    if words.iter().any(|word| word == "--help" || word == "-h") {
        return node_setup::out::answer(HELP).into();
    }
    let mut path: Option<PathBuf> = None;
    for word in &words {
        match word.split_once('=') {
            Some(("--config", file)) => path = Some(file.into()),
            _ => {
                say::tell("it takes no argument; try 'shifter-node-clean --help'");
                return ExitCode::Usage.into();
            }
        }
    }
    let held = guard::take_hold().and_then(|()| node_setup::process::check_is_root());
    if let Err(error) = held {
        say::tell(&error.chain());
        return error.exit_code().into();
    }
    let config = epilogue::config(path.as_deref());
    let failures = match StateDir::open(&config.torque.state_dir) {
        Ok(dir) => clean(&dir, &config, path.as_deref()),
        Err(error) => vec![error.chain()],
    };
    for failure in &failures {
        say::log(Weight::Error, failure);
        say::tell(failure);
    }
    match failures.is_empty() {
        true => ExitCode::Success.into(),
        false => ExitCode::Internal.into(),
    }
}

/// Does for every job of an earlier boot what its epilogue would have, and tries nodes again that
/// did not answer one; returns what failed.
fn clean(dir: &StateDir, config: &Config, path: Option<&Path>) -> Vec<String> {
    let time = Duration::from_secs(config.torque.deadline_secs.into());
    // First, so that nodes which do not answer now are not waited for twice.
    let mut failures = left::retry(dir, config, path, Which::All, Instant::now() + time);
    match dir.jobs() {
        Ok(jobs) => {
            for job in jobs {
                if let Err(why) = clean_job(dir, config, path, &job) {
                    failures.push(format!("job {job}: {why}"));
                }
            }
        }
        Err(error) => failures.push(error.chain()),
    }
    failures
}

fn clean_job(
    dir: &StateDir,
    config: &Config,
    path: Option<&Path>,
    job: &JobId,
) -> Result<(), String> {
    // Who holds the lock is of this boot.
    let Ok(locked) = dir.lock(job, PATIENCE) else {
        return Ok(());
    };
    let record = locked.record().map_err(|error| error.chain())?;
    if record
        .as_ref()
        .is_some_and(|record| record.boot == boot_id())
    {
        return Ok(());
    }
    let site = Site {
        config,
        config_path: path,
        job,
        dir,
    };
    let seconds = config.torque.deadline_secs;
    let deadline = Instant::now() + Duration::from_secs(seconds.into());
    let result = match &record {
        Some(record) => site::tear_down(&site, &locked, record, deadline).map(drop),
        None => Ok(()),
    };
    let own = epilogue::Here {
        config,
        config_path: path,
        job,
        uid: record.as_ref().map(|record| record.uid),
        start: None,
        is_late: false,
    };
    let own = own.tear_down(seconds);
    if result.as_ref().err().is_none_or(|remains| remains.is_noted) {
        locked.remove().map_err(|error| error.chain())?;
    }
    result.map_err(|remains| remains.line)?;
    own.map_err(|error| shifter_core::chain::line(&error))
}
