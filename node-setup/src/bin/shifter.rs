//! `shifter`: runs a command in a container, setuid root.
#![no_main]
#![allow(unsafe_code, reason = "the C entry point is exported by name")]

use std::ffi::{c_char, c_int};

use node_setup::run;

/// The C entry point. Not Rust's own: its runtime ignores SIGPIPE for good, and the command
/// must get the signal dispositions of the caller.
// SAFETY: the only definition of `main` in the program, with the signature that the C runtime
// calls.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    // The first word is the program's name and may be anything, or missing.
    let words = std::env::args_os().skip(1).collect();
    c_int::from(run::main(words).code())
}
