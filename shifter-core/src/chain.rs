//! An error and its causes as one line.

use std::error::Error;

use crate::sanitize;

/// Returns an error and its causes, joined by `: `, without the numbers of the system's errors: the
/// words before them say the same.
pub fn line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // A transparent error says the same as its cause.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    sanitize::plain(line)
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
