//! Everything that is printed: data on stdout, words for people on stderr.
//!
//! The only place in this crate that writes to either, beside [`super::progress`].

use std::io::{self, Write};

use shifter_core::sanitize;

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
        _ => Failure::internal(format!("cannot write the output: {}", chain(&error))),
    })
}

/// Writes a record as one line of JSON.
pub(super) fn record(record: &impl serde::Serialize) -> Result<(), Failure> {
    data(&json(record)?)
}

/// Returns a record as one line of JSON.
pub(super) fn json(record: &impl serde::Serialize) -> Result<String, Failure> {
    escaped(serde_json::to_string(record))
}

/// Returns a document as JSON that people can read.
pub(super) fn pretty(document: &impl serde::Serialize) -> Result<String, Failure> {
    escaped(serde_json::to_string_pretty(document))
}

/// Escapes what a terminal would obey: JSON's own rules leave a part of it as it is. Such characters
/// are only in strings, where the escape means the same.
fn escaped(text: serde_json::Result<String>) -> Result<String, Failure> {
    let text =
        text.map_err(|error| Failure::internal(format!("cannot write the output: {error}")))?;
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if c == '\n' || sanitize::is_printable(c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out.push('\n');
    Ok(out)
}

/// Escapes what a terminal would obey in a text of several lines.
pub(super) fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\n' | '\t') || sanitize::is_printable(c) {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_steer_no_terminal_and_mean_the_same() {
        let text = "a\u{1b}[2J\u{9b}2J\u{202e}gpj\u{e0041}größe\n";
        let line = json(&text).unwrap();
        assert_eq!(
            line,
            "\"a\\u001b[2J\\u009b2J\\u202egpj\\udb40\\udc41größe\\n\"\n"
        );
        let back: String = serde_json::from_str(&line).unwrap();
        assert_eq!(back, text);
        assert_eq!(harmless("a\u{202e}\tb\n"), "a\\u{202e}\tb\n");
    }
}
