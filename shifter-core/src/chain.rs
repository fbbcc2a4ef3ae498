//! An error and its causes as one line.

use std::error::Error;

/// Returns an error and its causes, joined by `: `, without the numbers of the system's errors: the
/// words before them say the same.
pub fn line(error: &(dyn Error + 'static)) -> String {
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
    without_numbers(line)
}

fn without_numbers(mut text: String) -> String {
    const MARK: &str = " (os error ";
    while let Some(start) = text.find(MARK) {
        let Some(length) = text[start..].find(')') else {
            break;
        };
        text.replace_range(start..=start + length, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("cannot open 'x'")]
        Opaque(#[source] std::io::Error),
        #[error(transparent)]
        Transparent(#[from] Box<Sample>),
    }

    #[test]
    fn each_level_is_said_once() {
        let opaque = Sample::Opaque(std::io::Error::other("why"));
        let error = Sample::Transparent(Box::new(opaque));
        assert_eq!(line(&error), "cannot open 'x': why");
        let system = Sample::Opaque(std::io::Error::from_raw_os_error(2));
        assert_eq!(line(&system), "cannot open 'x': No such file or directory");
    }
}
