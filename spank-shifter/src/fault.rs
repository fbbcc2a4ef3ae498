//! Breaks a callback on purpose, in test builds only.
//!
//! `SHIFTER_FAULT=CONTEXT:CALLBACK=panic|fail`, from the process's environment, from the job's
//! (`SPANK_SHIFTER_FAULT` in the prolog, where sbatch, salloc and srun pass it on) or from the step's.
//! Contexts: Local, Allocator, Remote, JobScript, Slurmd; callbacks: Init, InitPostOpt, JobProlog,
//! TaskInitPrivileged, TaskInit, JobEpilog, Exit; and Option, whose context is always given as Local.

use crate::context::{Callback, Context};
use crate::ffi::Spank;

const NAME: &str = "SHIFTER_FAULT";

/// True if the callback is to fail; panics if it is to panic.
pub fn strikes(callback: Callback, context: Context, spank: Option<&Spank>) -> bool {
    let own = std::env::var(NAME)
        .or_else(|_| std::env::var(format!("SPANK_{NAME}")))
        .ok();
    let Some(fault) = own.or_else(|| spank?.step_env(NAME)?.into_string().ok()) else {
        return false;
    };
    if callback == Callback::InitPostOpt
        && matches!(context, Context::Local | Context::Allocator)
        && let Some(spank) = spank
    {
        spank.set_job_env(NAME, &fault);
    }
    let here = format!("{context:?}:{callback:?}=");
    match fault.strip_prefix(&here) {
        Some("panic") => panic!("fault injected"),
        Some(_) => true,
        None => false,
    }
}
