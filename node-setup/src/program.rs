//! How the programs begin that only root runs: help for anybody, everything else for root alone.

use std::process::ExitCode;

use crate::error::{Context, Error, Result};
use crate::process::{self, CallersProcess};
use crate::{out, sys};

/// Runs a program of root's: `work` gets the words after the program's name, as text, and returns
/// what is printed.
pub fn main(
    name: &str,
    help: &str,
    work: impl FnOnce(Vec<String>, &CallersProcess) -> Result<String>,
) -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        return out::answer(help).into();
    }
    match take_over().and_then(|callers| work(words, &callers)) {
        Ok(text) => out::answer(&text).into(),
        Err(error) => out::report(name, &error).into(),
    }
}

/// Makes sure that the process is root's, and that nothing of its caller shows in what it makes.
fn take_over() -> Result<CallersProcess> {
    process::fill_standard_descriptors()?;
    process::check_is_root()?;
    // Whoever starts us need not do it between fork and exec, for which it would have to copy itself.
    sys::close_all_but_standard().step("close", "the caller's descriptors")?;
    process::take_over()
}

/// The error that a program was called wrongly.
pub fn usage(name: &str, text: &str) -> Error {
    Error::Usage(format!("{text}; try '{name} --help'"))
}
