//! `shifter`: runs a command in a container, setuid root.
#![no_main]
#![allow(unsafe_code, reason = "the C entry point is exported by name")]

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

use node_setup::memory::OnePiece;
use node_setup::run;

#[global_allocator]
static MEMORY: OnePiece = OnePiece::new();

/// The C entry point. Not Rust's own: its runtime ignores SIGPIPE for good, and the command
/// must get the signal dispositions of the caller.
///
/// # Safety
/// `argv` must lead to `argc` words that end with a zero byte and stay as they are, which is what
/// the C runtime passes. Rust's own way to them needs its runtime, or glibc.
// SAFETY: the only definition of `main` in the program, with the signature that the C runtime
// calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: as the caller promises.
    let words = unsafe { std::slice::from_raw_parts(argv, count) };
    // The first word is the program's name and may be anything, or missing.
    let words = words.iter().skip(1).map(|word| {
        // SAFETY: as the caller promises.
        let word = unsafe { CStr::from_ptr(*word) };
        OsStr::from_bytes(word.to_bytes()).to_owned()
    });
    c_int::from(run::main(words.collect()).code())
}
