//! Everything that is printed: data on stdout, words for people on stderr.
//!
//! The only place in this crate that writes to either. Progress is one line that is written over,
//! and only if stderr is a terminal.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use shifter_core::sanitize;

use crate::pull::Step;
use crate::store::megabytes;

const PROGRAM: &str = "shifterimg";
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Writes data to stdout.
pub(super) fn data(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes one line for people to stderr.
pub(super) fn note(text: &str) {
    // There is nowhere to report that stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{PROGRAM}: {text}");
}

/// Writes one line of result to stderr, without the program's name.
pub(super) fn result(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes a failure and, if there is one, the way out.
pub(super) fn failure(message: &str, hint: Option<&str>) {
    note(message);
    if let Some(hint) = hint {
        result(&format!("hint: {hint}"));
    }
}

/// Joins an error and its causes to one line.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // A transparent error says the same as its cause.
        if !line.ends_with(&text) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&text);
        }
        next = error.source();
    }
    line
}

/// The progress of one pull.
pub(super) struct Progress {
    label: String,
    state: Option<Mutex<Option<Instant>>>,
}

impl Progress {
    /// Shows progress for `label` if stderr is a terminal and `wanted`.
    pub fn new(label: &str, wanted: bool) -> Self {
        let shown = wanted && io::stderr().is_terminal();
        Self {
            label: sanitize::text(label),
            state: shown.then(Mutex::default),
        }
    }

    /// Shows a step.
    pub fn show(&self, step: Step) {
        let Some(state) = &self.state else { return };
        let mut last = state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (text, is_frequent) = match step {
            Step::Resolving => ("asking the registry".to_owned(), false),
            Step::Waiting => ("another pull of this image is running".to_owned(), false),
            Step::Building => ("writing the image".to_owned(), false),
            Step::Downloading(done, total) => (
                format!("{} of {}", megabytes(done), megabytes(total)),
                done < total,
            ),
        };
        if is_frequent && last.is_some_and(|at| now.duration_since(at) < PROGRESS_INTERVAL) {
            return;
        }
        *last = Some(now);
        let _ = write!(io::stderr().lock(), "\r\x1b[K{}: {text}", self.label);
    }

    /// Removes the line.
    pub fn clear(&self) {
        if self.state.is_some() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheError;
    use crate::pull::PullError;
    use crate::store::StoreError;

    #[test]
    fn chains_say_each_level_once() {
        let inner = StoreError::io("open", std::path::Path::new("/x"))(io::Error::other("why"));
        let error = PullError::from(CacheError::from(inner));
        assert_eq!(chain(&error), "cannot open '/x': why");
    }
}
