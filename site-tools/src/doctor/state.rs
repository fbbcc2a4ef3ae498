//! What jobs left on the node: `/run/shifter`, which only root can look into.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use shifter_core::layout::RUN_DIR;

use crate::finding::Finding;
use crate::{look, ps};

/// A job that began longer ago than this and has no process is asked about.
const AGE: Duration = Duration::from_secs(600);

const CHECK: &str = "state";

pub(super) fn check() -> Vec<Finding> {
    let running = || ps::jobs_with_processes();
    vec![judge(Path::new(RUN_DIR), SystemTime::now(), running)]
}

fn judge(run: &Path, now: SystemTime, running: impl FnOnce() -> Vec<String>) -> Finding {
    let shown = run.display();
    match run.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::ok(
                CHECK,
                format!("'{shown}' does not exist: no job has a container"),
            );
        }
        Err(error) => {
            return Finding::error(
                CHECK,
                format!("cannot examine '{shown}': {error}"),
                "look at it",
            );
        }
        // What whoever asks made could be nobody else's trap.
        Ok(meta) if !meta.is_dir() || ![0, look::own_uid()].contains(&meta.uid()) => {
            return Finding::error(
                CHECK,
                format!("'{shown}' is not a directory of root's"),
                format!("find out who made it, and remove it: rm -r '{shown}'"),
            );
        }
        Ok(_) => {}
    }
    let jobs = match fs::read_dir(run.join("jobs")) {
        Ok(jobs) => jobs,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::ok(CHECK, "no job has a container");
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Finding::warning(CHECK, "not checked: needs root", "run this as root");
        }
        Err(error) => {
            return Finding::error(
                CHECK,
                format!("cannot list '{shown}/jobs': {error}"),
                "look at it",
            );
        }
    };
    let mut jobs: Vec<(String, Duration)> = jobs
        .filter_map(|job| {
            let job = job.ok()?;
            let made = job.metadata().ok()?.modified().ok()?;
            let age = now.duration_since(made).unwrap_or_default();
            Some((job.file_name().to_string_lossy().into_owned(), age))
        })
        .collect();
    jobs.sort();
    if jobs.is_empty() {
        return Finding::ok(CHECK, "no job has a container");
    }
    let running = running();
    let is_idle = |(name, age): &&(String, Duration)| *age > AGE && !running.contains(name);
    let idle: Vec<&str> = jobs
        .iter()
        .filter(is_idle)
        .map(|(name, _)| &**name)
        .collect();
    if idle.is_empty() {
        let names: Vec<&str> = jobs.iter().map(|(name, _)| &**name).collect();
        return Finding::ok(
            CHECK,
            format!("jobs with a container: {}", names.join(", ")),
        );
    }
    Finding::warning(
        CHECK,
        format!(
            "jobs with a container and without a process: {}",
            idle.join(", ")
        ),
        format!(
            "see with '{}' which of them have ended, and remove what is left of those with \
             'unsetupRoot JOB'",
            question(&idle)
        ),
    )
}

/// The command that says which jobs have ended: Slurm's ids are numbers, Torque's have their server's name.
fn question(jobs: &[&str]) -> String {
    let is_slurms = |job: &&str| job.bytes().all(|byte| byte.is_ascii_digit());
    match jobs.iter().all(is_slurms) {
        true => format!("squeue -j {}", jobs.join(",")),
        false => format!("qstat {}", jobs.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;

    #[test]
    fn leftover_jobs_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("shifter");
        let later = SystemTime::now() + AGE + AGE;
        let judge = |now, running: &[&str]| {
            let running: Vec<String> = running.iter().map(|job| (*job).to_owned()).collect();
            let finding = judge(&run, now, || running);
            (finding.state, finding.message)
        };
        assert!(judge(later, &[]).1.contains("does not exist"));
        fs::create_dir(&run).unwrap();
        assert_eq!(judge(later, &[]).1, "no job has a container");
        for job in ["17", "18"] {
            fs::create_dir_all(run.join("jobs").join(job)).unwrap();
        }
        assert_eq!(
            judge(SystemTime::now(), &[]),
            (State::Ok, "jobs with a container: 17, 18".into())
        );
        assert_eq!(judge(later, &["17", "18"]).0, State::Ok);
        assert_eq!(question(&["17", "18"]), "squeue -j 17,18");
        assert_eq!(question(&["17.mom", "18.mom"]), "qstat 17.mom 18.mom");
        let (state, message) = judge(later, &["17"]);
        assert_eq!(state, State::Warning);
        assert!(message.ends_with(": 18"), "{message}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let finding = super::judge(&file, later, Vec::new);
        assert_eq!(finding.state, State::Error);
    }
}
