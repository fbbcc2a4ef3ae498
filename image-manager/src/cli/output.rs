//! Everything that is printed: data on stdout, words for people on stderr.
//!
//! The only place in this crate that writes to either, beside [`super::progress`].

use std::io::{self, Write};

use shifter_core::exit::ExitCode;

use super::failure::Failure;

pub(super) use shifter_core::chain::line as chain;

const PROGRAM: &str = "shifterimg";

/// Writes data to stdout; a reader that has gone away has what it wanted.
pub(super) fn data(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(),
        _ => Failure::internal(format!("cannot write the output: {error}")),
    })
}

/// Writes a record as one line of JSON.
pub(super) fn record(record: &impl serde::Serialize) -> Result<(), Failure> {
    data(&json(record)?)
}

/// Returns a record as one line of JSON.
pub(super) fn json(record: &impl serde::Serialize) -> Result<String, Failure> {
    match serde_json::to_string(record) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Failure::new(
            ExitCode::Internal,
            format!("cannot write the output: {error}"),
        )),
    }
}

/// Writes one line for people to stderr, after the program's name.
pub(super) fn note(text: &str) {
    // There is nowhere to report that stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{PROGRAM}: {text}");
}

/// Writes one line of result to stderr, without the program's name.
pub(super) fn result(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes part of a line to stderr.
pub(super) fn prompt(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes a failure and, if there is one, the way out.
pub(super) fn failure(message: &str, hint: Option<&str>) {
    note(message);
    if let Some(hint) = hint {
        result(&format!("hint: {hint}"));
    }
}
