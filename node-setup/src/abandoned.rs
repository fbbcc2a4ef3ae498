//! Jobs of Slurm's whose epilog never comes: the slurmd that was told of their end died before it,
//! and the next one is not told again.
//!
//! ```text
//! jobs/<job>/daemon   the slurmd that ran the job's prolog, `PID START`
//! jobs/<job>/extern   slurmstepd of the job's extern step on this node, `PID START`
//! jobs/<job>/shared   this node wrote what the job's nodes share
//! ```
//!
//! A job is over if both are dead and no process of the machine is the job's. As long as that slurmd
//! lives the epilog is its business: a job in its prolog, one that ends just now and those of
//! another slurmd on the same machine are never looked at. An extern step begins when the prolog is
//! over and lasts as long as the job, suspended or not; where Slurm makes none (`PrologFlags=Contain`)
//! nothing on a node says whether an allocation without a running step is over, and nothing is removed.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use shifter_core::ids::JobId;
use shifter_core::layout::{self, RUN_DIR};
use shifter_core::trusted;

use crate::caller;
use crate::error::{Context, Result};
use crate::process;
use crate::state::{self, JobDir};

const DAEMON: &str = "daemon";
const EXTERN: &str = "extern";
const SHARED: &str = "shared";

/// Bytes of a note.
const NOTE_LIMIT: u64 = 64;

/// Notes whose business the end of a job is that is being set up: the slurmd's that this process
/// descends from. Nothing is noted for other batch systems' jobs.
pub fn note_daemon(job: &JobDir) -> Result<()> {
    if !is_slurms(job.id().as_str()) {
        return Ok(());
    }
    // That of the run before, if the job was requeued.
    state::remove_file(job.dir(), EXTERN)?;
    match caller::slurmd() {
        Some(daemon) => state::write_file(job.dir(), DAEMON, daemon.as_bytes()),
        None => state::remove_file(job.dir(), DAEMON),
    }
}

/// Notes that slurmstepd, which the calling process is, has the extern step of a job; nothing if the
/// job has no state here.
pub fn note_extern(job: &JobId) -> Result<()> {
    match (state::open_job(job)?, caller::slurmstepd()) {
        (Some(dir), Some(daemon)) => state::write_file(&dir, EXTERN, daemon.as_bytes()),
        _ => Ok(()),
    }
}

/// Notes that slurmstepd, which the calling process is and which has the batch script, is all that
/// the end of a job depends on that had no prolog and has no extern step.
pub fn note_batch_script(job: &JobId) -> Result<()> {
    if let (Some(dir), Some(daemon)) = (state::open_job(job)?, caller::slurmstepd()) {
        state::write_file(&dir, DAEMON, daemon.as_bytes())?;
        state::write_file(&dir, EXTERN, daemon.as_bytes())?;
    }
    Ok(())
}

/// True if a job with state here has, or had, an extern step on this node.
pub fn had_extern(job: &JobId) -> bool {
    layout::job_dir(job).join(EXTERN).exists()
}

/// True if there is a job whose slurmd and extern step are dead: a look at two files for each job on
/// the node.
pub fn is_any() -> bool {
    let read = |job: &JobId, name: &str| {
        let path = layout::job_dir(job).join(name);
        trusted::read(&path, NOTE_LIMIT).ok()
    };
    let is_left = |job: JobId| are_dead(read(&job, DAEMON).as_deref(), || read(&job, EXTERN));
    jobs().into_iter().flatten().any(is_left)
}

/// Returns the jobs of Slurm's that have state on this node.
pub fn jobs() -> Result<Vec<JobId>> {
    let path = Path::new(RUN_DIR).join("jobs");
    let mut jobs = Vec::new();
    match fs::read_dir(&path) {
        Ok(entries) => {
            for entry in entries {
                let name = entry.step("list", &path)?.file_name();
                let name = name.to_str().filter(|name| is_slurms(name));
                jobs.extend(name.and_then(|name| JobId::parse(name).ok()));
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).step("list", &path),
    }
    Ok(jobs)
}

/// True if a job is over, whose lock the caller holds; `namespaces` are those of its roots.
pub fn is_over(job: &JobDir, namespaces: &[u64]) -> Result<bool> {
    let daemon = state::read_file(job.dir(), DAEMON)?;
    let step = state::read_file(job.dir(), EXTERN)?;
    Ok(is_slurms(job.id().as_str())
        && are_dead(daemon.as_deref(), || step)
        && !has_processes(job.id(), namespaces)?)
}

/// Slurm's ids are numbers.
fn is_slurms(job: &str) -> bool {
    !job.is_empty() && job.bytes().all(|byte| byte.is_ascii_digit())
}

/// A note that is missing names nobody who could be dead.
fn are_dead(daemon: Option<&[u8]>, step: impl FnOnce() -> Option<Vec<u8>>) -> bool {
    let is_dead = |note: &[u8]| !process::lives(note);
    daemon.is_some_and(is_dead) && step().is_some_and(|note| is_dead(&note))
}

/// True if any process is the job's: by its cgroup, by its mount namespace, or as slurmstepd.
fn has_processes(job: &JobId, namespaces: &[u64]) -> Result<bool> {
    for entry in fs::read_dir("/proc").step("list", "/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let read = |name: &str| process::read_record(entry.path().join(name)).unwrap_or_default();
        let cgroups = read("cgroup");
        let namespace = rustix::fs::stat(entry.path().join("ns/mnt")).map(|stat| stat.st_ino);
        if caller::names_job(&String::from_utf8_lossy(&cgroups), job)
            || namespace.is_ok_and(|namespace| namespaces.contains(&namespace))
            || caller::job_of_slurmstepd(pid).as_ref() == Some(job)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Notes that this node wrote what the nodes of a job share, and is to remove it; nothing if the job
/// has no state here.
pub fn note_shared(job: &JobId) -> Result<()> {
    match state::open_job(job)? {
        Some(dir) => state::write_file(&dir, SHARED, b""),
        None => Ok(()),
    }
}

/// True if this node wrote it.
pub fn wrote_shared(job: &JobId) -> bool {
    layout::job_dir(job).join(SHARED).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_lost_when_slurmd_and_extern_step_are_dead() {
        let alive = process::own().unwrap();
        let alive = alive.as_bytes();
        let dead = &b"1 1"[..];
        let table = [
            (Some(dead), Some(dead), true),
            (Some(dead), Some(alive), false),
            (Some(alive), Some(dead), false),
            (Some(dead), None, false),
            (None, Some(dead), false),
            (None, None, false),
        ];
        for (daemon, step, expected) in table {
            let found = are_dead(daemon, || step.map(<[u8]>::to_vec));
            assert_eq!(found, expected, "{daemon:?} {step:?}");
        }
    }

    #[test]
    fn only_numbers_are_slurms_jobs() {
        assert!(is_slurms("17"));
        for other in ["", "1.server", "1[2].server", "1_2"] {
            assert!(!is_slurms(other), "{other}");
        }
    }

    #[test]
    fn processes_of_a_job_are_found_by_their_namespace() {
        let job = JobId::parse("4711").unwrap();
        let own = state::own_namespace().unwrap();
        assert!(has_processes(&job, &[own]).unwrap());
        assert!(!has_processes(&job, &[]).unwrap());
    }
}
