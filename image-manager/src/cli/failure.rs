//! A failure as the user sees it: one line, perhaps a hint, and the code the program ends with.

use shifter_core::exit::ExitCode;
use shifter_core::reference::ImageRef;
use shifter_core::sanitize;

use super::output;
use crate::store::StoreError;

/// What went wrong, ready to be printed.
#[derive(Debug)]
pub(super) struct Failure {
    pub code: ExitCode,
    pub message: String,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(code: ExitCode, message: String) -> Self {
        Self {
            code,
            message,
            hint: None,
        }
    }

    pub fn internal(message: String) -> Self {
        Self::new(ExitCode::Internal, message)
    }

    /// Ends the program with success although not everything was done: nobody reads any more.
    pub fn silent() -> Self {
        Self::new(ExitCode::Success, String::new())
    }

    pub fn with_hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into();
        self
    }

    pub fn of_store(context: &str, error: &StoreError) -> Self {
        let message = format!("{context}: {}", output::chain(error));
        Self::new(error.exit_code(), message).with_hint(error.hint())
    }

    /// Prints the failure and returns its code.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            output::failure(&self.message, self.hint.as_deref());
        }
        self.code
    }
}

/// Says how a file of that name would be named, if there is one.
pub(super) fn file_hint(text: &str) -> Option<String> {
    let path = std::path::Path::new(text);
    if text.starts_with(['/', '.', '~']) || text.contains('@') {
        return None;
    }
    let meta = path.metadata().ok()?;
    (meta.is_file() || meta.is_dir())
        .then(|| format!("did you mean the file ./{}?", sanitize::text(text)))
}

/// Keeps the worst failure's code for the end of the program.
#[derive(Default)]
pub(super) struct Outcome(Option<ExitCode>);

impl Outcome {
    /// Takes the code of one of several.
    pub fn add(&mut self, code: ExitCode) {
        if code != ExitCode::Success {
            self.0 = Some(self.0.map_or(code, |worst| worse(worst, code)));
        }
    }

    /// Returns the worst code of all.
    pub fn code(&self) -> ExitCode {
        self.0.unwrap_or(ExitCode::Success)
    }
}

/// The worse of two: what is the machine's fault before the registry's, and that before what the
/// user can mend.
fn worse(one: ExitCode, other: ExitCode) -> ExitCode {
    let rank = |code: ExitCode| match code {
        ExitCode::Success => 0,
        ExitCode::Usage => 1,
        ExitCode::Image => 2,
        ExitCode::Denied => 3,
        ExitCode::Registry => 4,
        ExitCode::Privilege => 5,
        _ => 6,
    };
    if rank(other) > rank(one) { other } else { one }
}

/// Returns what a reference is called in messages.
pub(super) fn shown(reference: &ImageRef) -> String {
    sanitize::text(&reference.canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_several_counts() {
        let table = [
            (vec![], ExitCode::Success),
            (vec![ExitCode::Success], ExitCode::Success),
            (vec![ExitCode::Image, ExitCode::Success], ExitCode::Image),
            (
                vec![ExitCode::Image, ExitCode::Registry],
                ExitCode::Registry,
            ),
            (
                vec![ExitCode::Internal, ExitCode::Denied],
                ExitCode::Internal,
            ),
        ];
        for (codes, expect) in table {
            let mut outcome = Outcome::default();
            codes.into_iter().for_each(|code| outcome.add(code));
            assert_eq!(outcome.code(), expect);
        }
    }

    #[test]
    fn files_are_recognised() {
        assert_eq!(
            file_hint("src").as_deref(),
            Some("did you mean the file ./src?")
        );
        assert_eq!(file_hint("no/such/file"), None);
        assert_eq!(file_hint("./src"), None);
    }
}
