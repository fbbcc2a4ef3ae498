//! Errors as lines for people.

use std::error::Error;

pub use shifter_core::chain::line as chain;
use shifter_core::sanitize;

/// Writes an error as the lines a user sees: the message, what belongs to it, and the way out.
pub fn lines(error: &dyn Error, hint: Option<String>) -> Vec<String> {
    let message = format!("shifter: {}", chain(error));
    let mut lines: Vec<String> = message.lines().map(sanitize::text).collect();
    lines.extend(hint.map(|hint| format!("hint: {}", sanitize::text(&hint))));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::submit::SubmitError;

    #[test]
    fn message_causes_and_way_out() {
        let error = SubmitError::NoImage;
        let hint = error.hint();
        let expected = [
            "shifter: cannot use --volume, --module, --autoshift, --entrypoint or --sshd without --image",
            "hint: add --image=REF",
        ];
        assert_eq!(lines(&error, hint), expected);
        let outer = std::io::Error::other("a\x1b[2J");
        assert_eq!(lines(&outer, None), ["shifter: a\\u{1b}[2J"]);
    }
}
