//! Where in Slurm a callback runs, and what follows from that alone.

use crate::options;
use crate::pins;

/// The process that loaded the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// srun.
    Local,
    /// sbatch or salloc.
    Allocator,
    /// slurmstepd, for a step.
    Remote,
    /// slurmstepd, for a prolog or epilog.
    JobScript,
    /// slurmd itself.
    Slurmd,
    /// None of those, or Slurm does not know.
    Other,
}

/// What Slurm calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    /// `slurm_spank_init`
    Init,
    /// An option's callback.
    Option,
    /// `slurm_spank_init_post_opt`
    InitPostOpt,
    /// `slurm_spank_job_prolog`
    JobProlog,
    /// `slurm_spank_task_init_privileged`
    TaskInitPrivileged,
    /// `slurm_spank_task_init`
    TaskInit,
    /// `slurm_spank_task_post_fork`
    TaskPostFork,
    /// `slurm_spank_exit`
    Exit,
    /// `slurm_spank_job_epilog`
    JobEpilog,
}

/// Whom a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The administrator in a daemon's log, the user of sbatch, salloc and srun.
    Error,
    /// The same, and nothing is wrong.
    Info,
    /// The user, on the stderr of the job.
    User,
}

/// What a callback answers: Slurm ignores positive codes, even those it calls errors itself.
pub const OK: i32 = 0;

/// The answer that stops whatever Slurm was about to do.
pub const FAILED: i32 = -1;

/// Returns the answer of a callback that panicked.
///
/// An error from a step's init or init_post_opt drains the node and completes the job with exit
/// code 0, one in slurmd keeps it from starting; the step's tasks can still be refused. Everything
/// else fails what it belongs to: the submission, the prolog, the task, the epilog.
pub const fn code_after_panic(callback: Callback, context: Context) -> i32 {
    match (callback, context) {
        (Callback::Option | Callback::InitPostOpt, Context::Remote)
        | (Callback::Init | Callback::TaskPostFork | Callback::Exit, _) => OK,
        _ => FAILED,
    }
}

/// Returns the variables that a new submission must not inherit from the job it is made in.
///
/// Slurm repeats the options of a job, of each only the last value, to every sbatch, salloc and
/// srun inside it, and carries them on from there; options count only where they are given.
/// A step keeps what describes its job.
pub fn stale_variables(is_new_job: bool) -> Vec<String> {
    let options = options::names(true).filter_map(|(name, ..)| name.to_str().ok());
    let mut names: Vec<String> = options
        .flat_map(|name| {
            let name = name.replace('.', "_");
            let forwarded = format!("_SLURM_SPANK_OPTION_shifter_{name}");
            [format!("SLURM_SPANK_{forwarded}"), forwarded]
        })
        .collect();
    names.extend(pins::NAMES.iter().map(|name| pins::of_step(name)));
    if is_new_job {
        names.extend(pins::NAMES.iter().map(|name| format!("SLURM_SPANK_{name}")));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_never_drains_a_node_from_within_a_step() {
        use Callback::*;
        let table = [
            (Init, Context::Slurmd, OK),
            (Init, Context::Local, OK),
            (Init, Context::Remote, OK),
            (Option, Context::Local, FAILED),
            (Option, Context::Remote, OK),
            (InitPostOpt, Context::Allocator, FAILED),
            (InitPostOpt, Context::Remote, OK),
            (TaskInitPrivileged, Context::Remote, FAILED),
            (TaskInit, Context::Remote, FAILED),
            (TaskPostFork, Context::Remote, OK),
            (Exit, Context::Remote, OK),
            (JobProlog, Context::JobScript, FAILED),
            (JobEpilog, Context::JobScript, FAILED),
        ];
        for (callback, context, code) in table {
            assert_eq!(
                code_after_panic(callback, context),
                code,
                "{callback:?} {context:?}"
            );
        }
    }

    #[test]
    fn a_step_keeps_what_describes_its_job() {
        let option = "SLURM_SPANK__SLURM_SPANK_OPTION_shifter_imagevolume".to_owned();
        let pin = "SLURM_SPANK_SHIFTER_VOLUME".to_owned();
        let long = "_SLURM_SPANK_OPTION_shifter_shifter_image".to_owned();
        assert!(stale_variables(false).contains(&long));
        assert!(
            stale_variables(false).contains(&option) && stale_variables(true).contains(&option)
        );
        assert!(!stale_variables(false).contains(&pin) && stale_variables(true).contains(&pin));
    }
}
