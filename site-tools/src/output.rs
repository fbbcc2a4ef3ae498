//! Everything that is printed: data on stdout, words for people on stderr.
//!
//! The only place in this crate that writes to either.

use std::io::{self, Write};

pub(crate) use shifter_core::chain::line as chain;
use shifter_core::exit::ExitCode;

/// Writes data to stdout. A reader who has gone away has seen enough.
pub(crate) fn data(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => ExitCode::Success,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Success,
        Err(_) => ExitCode::Internal,
    }
}

/// Writes one line for people to stderr.
pub(crate) fn note(text: &str) {
    // There is nowhere to report that stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes a failure after the program's name and, if there is one, the way out.
pub(crate) fn failure(program: &str, message: &str, hint: Option<&str>) {
    note(&format!("{program}: {message}"));
    if let Some(hint) = hint {
        note(&format!("hint: {hint}"));
    }
}
