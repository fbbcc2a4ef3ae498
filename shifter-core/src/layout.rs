//! Where Shifter keeps its state on a node, and where its programs are installed.
//!
//! ```text
//! /run/shifter/                          a private tmpfs, made by the first set-up
//!   images/<device>-<inode>              hints: which loop device has which image file
//!   templates/<fs>-<size>                what mkfs wrote into a per-node cache, for the next one
//!   jobs/<job>/lock                      excludes set-up and teardown of one job
//!   jobs/<job>/manifest                  the manifest its root was built from
//!   jobs/<job>/tombstone                 teardown has begun: no root may appear any more
//!   jobs/<job>/failure                   the user's mistake that kept the root from being made
//!   jobs/<job>/daemon, extern            slurmd and slurmstepd that a job of Slurm's needs for its end
//!   jobs/<job>/shared                    this node wrote the job's shared state, and removes it
//!   jobs/<job>/ssh                       what came of the ssh server: why there is none, or nothing
//!   jobs/<job>/ssh.told                  the same, and the user knows
//!   jobs/<job>/roots/<name>/journal      what was acquired, written before it is acquired
//!   jobs/<job>/roots/<name>/mnt          the pinned mount namespace
//!   jobs/<job>/roots/<name>/meta         the image's metadata; while it is there, tasks may join
//!   jobs/<job>/roots/<name>/private      the root has the directories that the job alone has
//!   jobs/<job>/roots/step-<n>/manifest   that of a step with an image of its own
//!   jobs/<job>/roots/step-<n>/holder     the process whose death ends such a step
//! ```

use std::path::{Path, PathBuf};

use crate::ids::JobId;

/// The directory of all state on a node.
pub const RUN_DIR: &str = "/run/shifter";

/// Name of the root that a job's tasks join.
pub const JOB_ROOT: &str = "job";

/// Returns the name of the root of a step that has one of its own.
pub fn step_root(step: u32) -> String {
    format!("step-{step}")
}

/// True for what [`step_root`] returns.
pub fn is_step_root(name: &str) -> bool {
    let number = name.strip_prefix("step-").map(str::parse::<u32>);
    matches!(number, Some(Ok(number)) if step_root(number) == name)
}

/// Bytes of the message kept in a job's `failure` file.
pub const FAILURE_LIMIT: u64 = 4096;

/// Returns the directory of a job's state.
pub fn job_dir(job: &JobId) -> PathBuf {
    Path::new(RUN_DIR).join("jobs").join(job.as_str())
}

/// Returns the directory of one of a job's roots.
pub fn root_dir(job: &JobId, name: &str) -> PathBuf {
    job_dir(job).join("roots").join(name)
}

/// Returns the file that says why a job's root could not be made for its user.
pub fn failure_file(job: &JobId) -> PathBuf {
    job_dir(job).join("failure")
}

/// Returns the file with the manifest that a job's root was built from.
pub fn manifest_file(job: &JobId) -> PathBuf {
    job_dir(job).join("manifest")
}

/// Returns the file that says what came of a job's ssh server on this node.
pub fn ssh_file(job: &JobId) -> PathBuf {
    job_dir(job).join("ssh")
}

/// Returns where below `prefix` is what every container shows at /opt/udiImage.
pub fn udi_image(prefix: &Path) -> PathBuf {
    prefix.join("lib/shifter/udiImage")
}

/// A program of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The users' command.
    Shifter,
    /// The image manager.
    Shifterimg,
    /// Builds a job's root.
    SetupRoot,
    /// Removes a job's root.
    UnsetupRoot,
    /// Starts a job's ssh server.
    StartSshd,
    /// Makes a job's keys.
    SshKeys,
    /// Says who a job's user is.
    Identity,
    /// Judges a node: `shifter doctor`.
    Doctor,
    /// Lists containers: `shifter ps`.
    Ps,
    /// Does on a node of a Torque job what its launch node wants.
    Node,
}

impl Program {
    /// Returns where the program is installed below `prefix`.
    pub fn path(self, prefix: &Path) -> PathBuf {
        prefix.join(match self {
            Program::Shifter => "bin/shifter",
            Program::Shifterimg => "bin/shifterimg",
            Program::SetupRoot => "sbin/setupRoot",
            Program::UnsetupRoot => "sbin/unsetupRoot",
            Program::StartSshd => "sbin/startSshd",
            Program::SshKeys => "lib/shifter/shifter-ssh-keys",
            Program::Identity => "lib/shifter/shifter-identity",
            Program::Doctor => "lib/shifter/shifter-doctor",
            Program::Ps => "lib/shifter/shifter-ps",
            Program::Node => "lib/shifter/shifter-node",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_of_steps_have_the_steps_number() {
        assert!(is_step_root(&step_root(0)) && is_step_root(&step_root(u32::MAX)));
        for other in [
            "job",
            "step-",
            "step-01",
            "step-+1",
            "step-1/x",
            "step-4294967296",
        ] {
            assert!(!is_step_root(other), "{other}");
        }
    }
}
