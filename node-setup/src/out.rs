//! Everything these programs say. Standard output is data; standard error is for people.
//!
//! A closed or full output never stops a program: what cannot be said is not said.

use std::io::Write;

use shifter_core::exit::ExitCode;

use crate::error::Error;

/// Writes one line to standard error, after the program's name.
pub fn complain(program: &str, text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{program}: {text}");
}

/// Writes text that was asked for (help, a version, a list) to standard output.
pub fn answer(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::Success,
        Err(_) => ExitCode::Internal,
    }
}

/// Reports the error that a program ends with, with its hint, and returns its exit code.
pub fn report(program: &str, error: &Error) -> ExitCode {
    complain(program, &error.chain());
    if let Some(hint) = error.hint() {
        let _ = writeln!(std::io::stderr().lock(), "hint: {hint}");
    }
    error.exit_code()
}
