//! Jobs as prolog, tasks and epilog see them, without a batch system.

use std::fs;
use std::fs::File;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::product::PREFIX;

use crate::program::time;
use crate::site::{Site, UID, WORK};

/// The job whose root is joined.
pub const JOB: &str = "17";

/// A job that comes and goes.
pub const OTHER_JOB: &str = "18";

const CGROUPS: &str = "/sys/fs/cgroup/freezer";

/// Does something as a task of [`JOB`], in a cgroup as Slurm names it.
pub fn in_job<T>(act: impl FnOnce() -> Result<T>) -> Result<T> {
    let step = format!("{CGROUPS}/slurm/uid_{UID}/job_{JOB}/step_0");
    fs::create_dir_all(&step)?;
    fs::write(format!("{step}/cgroup.procs"), "0")?;
    let done = act();
    fs::write(format!("{CGROUPS}/cgroup.procs"), "0")?;
    done
}

/// The manifest of a job, as prolog and epilog use it.
pub struct Manifest {
    path: String,
    job: &'static str,
}

impl Manifest {
    /// Writes the manifest of a job of alice's in the sample image.
    pub fn write(site: &Site, job: &'static str) -> Result<Self> {
        Self::with_volumes(site, job, &["/scratch/alice:/mnt".to_owned()])
    }

    /// Writes the same with other volumes.
    pub fn with_volumes(site: &Site, job: &'static str, volumes: &[String]) -> Result<Self> {
        let path = format!("{WORK}/manifest.{job}");
        fs::write(&path, site.image.manifest(job, volumes))?;
        Ok(Self { path, job })
    }

    /// Runs setupRoot and returns how long that took.
    pub fn set_up(&self) -> Result<Duration> {
        let mut command = Command::new(format!("{PREFIX}/sbin/setupRoot"));
        command
            .args(["--manifest=-", &format!("--expect-uid={UID}")])
            .arg(format!("--expect-job={}", self.job))
            .stdin(File::open(&self.path)?);
        let took = time(&mut command)?;
        // It is there: something is pinned.
        self.inside(&["/bin/cat", "/bench-marker"])?;
        Ok(took)
    }

    /// Runs a command as root in the job's root and returns what it prints.
    pub fn inside(&self, command: &[&str]) -> Result<String> {
        let pin = format!("--mount=/run/shifter/jobs/{}/roots/job/mnt", self.job);
        Call::new(["nsenter", &pin])
            .args(command.iter().copied())
            .ok()
    }

    /// Runs unsetupRoot and returns how long that took.
    pub fn tear_down(&self) -> Result<Duration> {
        let mut command = Command::new(format!("{PREFIX}/sbin/unsetupRoot"));
        let took = time(command.arg(self.job))?;
        let roots = format!("/run/shifter/jobs/{}/roots", self.job);
        ensure!(!fs::exists(&roots)?, "{roots} is left");
        Ok(took)
    }
}

/// Removes the cgroup of [`JOB`].
pub fn end_job() -> Result<()> {
    let made = format!("cd {CGROUPS} && rmdir -p slurm/uid_{UID}/job_{JOB}/step_0");
    Call::shell(&made).ok().map(drop)
}
