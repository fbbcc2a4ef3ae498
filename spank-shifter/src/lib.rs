//! The SPANK plugin: options of sbatch, salloc and srun in, prepared nodes out.
//!
//! It runs inside Slurm's own processes, so it does little itself: everything heavy is a program
//! run by `child`, no thread is started, no panic crosses into C, and a job that did not ask
//! for an image is never touched. `ffi` is the only module with unsafe code and decides
//! nothing; every decision is plain Rust that the unit tests call.
//!
//! ```text
//! sbatch salloc srun   options ─▶ submit ─▶ pins: SHIFTER_* in the job's environment
//! slurmd, each node    prolog:  pins ─▶ job manifest ─▶ setupRoot        epilog: unsetupRoot
//! slurmstepd           tasks:   SHIFTER_* for the tasks, or the reason why the job cannot run
//!                      steps:   a root for a step with an image of its own
//!                      shift:   with --autoshift, each task into its root
//! ```

#![cfg_attr(
    test,
    allow(dead_code, reason = "unit tests do not link the callbacks")
)]

#[cfg(panic = "abort")]
compile_error!("a panic must not end Slurm's processes: build with panic = \"unwind\"");

#[cfg(all(feature = "fault-injection", not(debug_assertions)))]
compile_error!("fault-injection is for tests and never for what is installed");

mod ccm;
mod context;
mod epilog;
mod identity;
mod options;
mod pins;
mod prolog;
mod report;
mod settings;
mod shift;
mod ssh;
mod steps;
mod submit;
mod tasks;
mod version;

use node_setup::child;

// Slurm's symbols exist only in Slurm's processes, so unit tests cannot link these.
#[cfg(not(test))]
mod callbacks;
#[cfg(all(feature = "fault-injection", not(test)))]
mod fault;
#[cfg(not(test))]
mod ffi;
