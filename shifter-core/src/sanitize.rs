//! Makes text that came from a user, a registry or a file safe to print or log.

/// Replaces control characters, invisible formatting characters and bidirectional overrides by
/// `\u{..}` escapes, and cuts the text at 512 characters.
pub fn text(raw: &str) -> String {
    const LIMIT: usize = 512;
    let mut out = String::with_capacity(raw.len().min(LIMIT));
    for (count, c) in raw.chars().enumerate() {
        if count == LIMIT {
            out.push('…');
            break;
        }
        if is_printable(c) {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
    }
    out
}

/// The same for bytes that may not be UTF-8: what is not becomes U+FFFD.
pub fn bytes(raw: &[u8]) -> String {
    text(&String::from_utf8_lossy(raw))
}

/// Takes the error numbers out of a message: the words before them say the same.
pub fn plain(mut text: String) -> String {
    const MARK: &str = " (os error ";
    while let Some(start) = text.find(MARK) {
        let Some(length) = text[start..].find(')') else {
            break;
        };
        text.replace_range(start..=start + length, "");
    }
    text
}

/// True for what a terminal shows and does not obey.
pub fn is_printable(c: char) -> bool {
    !(c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_are_left_out() {
        let source = std::io::Error::from_raw_os_error(2);
        let text = format!("a: {source}; no (os error; b: {source}");
        let said = "No such file or directory";
        assert_eq!(plain(text), format!("a: {said}; no (os error; b: {said}"));
        assert_eq!(plain("x (os error 2".into()), "x (os error 2");
    }

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(text("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(text("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        assert_eq!(text("größe/日本"), "größe/日本");
        assert_eq!(bytes(b"\xffx"), "\u{fffd}x");
        assert!(text(&"x".repeat(10_000)).chars().count() == 513);
    }
}
