//! Batch jobs: submitting them, waiting for them, and what Slurm says of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::call::{Call, Output, wait_for};
use crate::cluster::{Cluster, recent_trouble};
use crate::world::User;

/// States in which a job still has something to do.
const UNFINISHED: [&str; 5] = [
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
];

/// A job that Slurm has accepted.
#[derive(Clone, Debug)]
pub struct Job {
    id: String,
    output: PathBuf,
}

/// What `scontrol show job` says.
#[derive(Clone)]
pub struct JobInfo(BTreeMap<String, String>);

impl Cluster {
    /// Calls sbatch as a user; the script's `#!` line is added.
    pub fn sbatch(&self, user: User, options: &[&str], script: &str) -> Result<Output> {
        Call::new(["sbatch", "--parsable"])
            .args(options.iter().copied())
            .by(user)
            .input(format!("#!/bin/bash\n{script}\n"))
            .output()
    }

    /// Submits a job as a user.
    pub fn submit(&self, user: User, options: &[&str], script: &str) -> Result<Job> {
        let output = self.sbatch(user, options, script)?.success()?;
        let id = output
            .stdout
            .trim()
            .split(';')
            .next()
            .unwrap_or_default()
            .to_owned();
        ensure!(!id.is_empty(), "no job id: {output}");
        Ok(Job {
            output: user.scratch().join(format!("slurm-{id}.out")),
            id,
        })
    }

    /// Submits a job and waits for its end.
    pub fn run(&self, user: User, options: &[&str], script: &str) -> Result<(Job, JobInfo)> {
        let job = self.submit(user, options, script)?;
        let info = job.wait()?;
        Ok((job, info))
    }
}

/// Returns what tasks have printed, without srun's own lines: Slurm says when a step has to wait for
/// the one before it.
pub fn of_tasks(output: &str) -> String {
    let lines = output.lines().filter(|line| !line.starts_with("srun: "));
    lines.map(|line| format!("{line}\n")).collect()
}

impl Job {
    /// Returns the job's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks Slurm about the job.
    pub fn info(&self) -> Result<JobInfo> {
        let text = Call::new(["scontrol", "show", "job", "-o", &self.id]).ok()?;
        let fields = text
            .split_whitespace()
            .filter_map(|field| field.split_once('='));
        Ok(JobInfo(
            fields
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        ))
    }

    /// Waits until the job has ended and all its nodes are free of it.
    pub fn wait(&self) -> Result<JobInfo> {
        wait_for(&format!("the end of job {}", self.id), 90, || {
            let info = self.info()?;
            ensure!(
                !info.field("Reason").starts_with("launch_failed"),
                "the node failed"
            );
            Ok(Some(info).filter(|info| !UNFINISHED.contains(&info.state())))
        })
        .with_context(|| format!("{:?}\n{}", self.info(), recent_trouble()))
    }

    /// Waits until the job is in a state.
    pub fn wait_for_state(&self, state: &str) -> Result<JobInfo> {
        wait_for(&format!("job {} to be {state}", self.id), 60, || {
            Ok(Some(self.info()?).filter(|info| info.state() == state))
        })
        .with_context(|| format!("{:?}\n{}", self.info(), recent_trouble()))
    }

    /// Waits until a line of the job's output contains `text`.
    pub fn wait_for_output(&self, text: &str) -> Result<()> {
        wait_for(&format!("'{text}' from job {}", self.id), 60, || {
            Ok(self.output()?.contains(text).then_some(()))
        })
    }

    /// Cancels the job.
    pub fn cancel(&self) -> Result<()> {
        Call::new(["scancel", &self.id]).ok().map(drop)
    }

    /// Returns what the job has printed so far.
    pub fn output(&self) -> Result<String> {
        match fs::read(&self.output) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error.into()),
        }
    }
}

impl JobInfo {
    /// Returns the state, such as COMPLETED.
    pub fn state(&self) -> &str {
        self.field("JobState")
    }

    /// Returns the exit code and signal, such as `0:0`.
    pub fn exit_code(&self) -> &str {
        self.field("ExitCode")
    }

    /// Returns a field by Slurm's name for it.
    pub fn field(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Fails unless the job has ended in `state` with `exit_code`.
    pub fn expect(&self, state: &str, exit_code: &str) -> Result<()> {
        let found = (self.state(), self.exit_code());
        ensure!(
            found == (state, exit_code),
            "the job ended as {found:?}: {:?}",
            self.0
        );
        Ok(())
    }
}

impl std::fmt::Debug for JobInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = [
            "JobId", "JobState", "Reason", "ExitCode", "NodeList", "Restarts",
        ];
        f.debug_map()
            .entries(shown.map(|name| (name, self.field(name))))
            .finish()
    }
}
