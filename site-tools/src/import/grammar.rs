//! The lines of a `udiRoot.conf`, as the C Shifter reads them.
//!
//! ```text
//! file    := { comment | setting | other }
//! comment := "#" in the first column, also between the lines of one value
//! setting := key "=" value { "\" newline value }     the lines of a value are joined by a space
//! ```
//!
//! Space around keys, values and their lines does not count, so a carriage return before the end of
//! a line does not either. Where the C Shifter passes over a line in silence, it is reported.

use shifter_core::sanitize;

use super::{ImportError, Remark};

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting<'a> {
    /// The key.
    pub key: &'a str,
    /// The whole value, without space around it.
    pub value: String,
    /// The line of the key, counted from 1.
    pub line: usize,
}

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    /// The settings, in order.
    pub settings: Vec<Setting<'a>>,
    /// Lines that are neither settings nor comments.
    pub ignored: Vec<Remark>,
}

/// Settings that a file may have: many times what any site has.
const SETTING_LIMIT: usize = 4096;

/// C's `isspace` in the locale that programs start with.
const SPACE: [char; 6] = [' ', '\t', '\n', '\r', '\x0b', '\x0c'];

/// Splits a file into its settings.
pub(super) fn parse<'a>(bytes: &'a [u8], file: &str) -> Result<Parsed<'a>, ImportError> {
    let mut parsed = Parsed {
        settings: Vec::new(),
        ignored: Vec::new(),
    };
    let mut open: Option<Setting<'a>> = None;
    // What comes after the last newline is a line only if there is something.
    let lines = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    for (at, line) in lines.split(|byte| *byte == b'\n').enumerate() {
        let number = at + 1;
        let text = text(line, number, file)?;
        if text.starts_with('#') {
            continue;
        }
        let (mut setting, rest) = match open.take() {
            Some(setting) => (setting, text),
            None => match text.split_once('=') {
                Some((key, rest)) => {
                    let setting = Setting {
                        key: key.trim_matches(SPACE),
                        value: String::new(),
                        line: number,
                    };
                    (setting, rest)
                }
                None => {
                    parsed.ignored.extend(unset(text, number));
                    continue;
                }
            },
        };
        let rest = rest.trim_matches(SPACE);
        let (part, goes_on) = match rest.strip_suffix('\\') {
            Some(part) => (part.trim_matches(SPACE), true),
            None => (rest, false),
        };
        if !setting.value.is_empty() && !part.is_empty() {
            setting.value.push(' ');
        }
        setting.value.push_str(part);
        if parsed.settings.len() == SETTING_LIMIT {
            return Err(ImportError::Line {
                file: file.to_owned(),
                line: number,
                message: format!("there are more than {SETTING_LIMIT} settings"),
                hint: "is this the right file?".into(),
            });
        }
        if goes_on {
            open = Some(setting);
        } else {
            parsed.settings.push(setting);
        }
    }
    match open {
        None => Ok(parsed),
        Some(setting) => Err(ImportError::Line {
            file: file.to_owned(),
            line: setting.line,
            message: format!(
                "{}: the file ends within the value",
                sanitize::text(setting.key)
            ),
            hint: "remove the '\\' at the end of the last line".into(),
        }),
    }
}

fn text<'a>(line: &'a [u8], number: usize, file: &str) -> Result<&'a str, ImportError> {
    let wrong = |message: &str, hint: &str| ImportError::Line {
        file: file.to_owned(),
        line: number,
        message: message.into(),
        hint: hint.into(),
    };
    if line.contains(&0) {
        let hint = "is this the right file? It must be text";
        return Err(wrong("there is a NUL byte", hint));
    }
    std::str::from_utf8(line).map_err(|_| {
        wrong(
            "the line is not UTF-8 text",
            "convert the file, for example with 'iconv -f latin1 -t utf8'",
        )
    })
}

fn unset(text: &str, line: usize) -> Option<Remark> {
    let text = text.trim_matches(SPACE);
    (!text.is_empty() && !text.starts_with('#')).then(|| Remark {
        line,
        key: sanitize::text(&text.chars().take(40).collect::<String>()),
        text: "not carried over: it is no setting, and the C Shifter passed over it too".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Vec<(String, String, usize)> {
        let parsed = parse(text.as_bytes(), "x").unwrap();
        let settings = parsed.settings.into_iter();
        settings
            .map(|s| (s.key.to_owned(), s.value, s.line))
            .collect()
    }

    #[test]
    fn lines() {
        type Expected = (&'static str, &'static str, usize);
        let table: [(&str, &[Expected]); 10] = [
            ("a=b", &[("a", "b", 1)]),
            ("\r\n a = b = c \r\n", &[("a", "b = c", 2)]),
            ("#a=b\n# \nc=", &[("c", "", 3)]),
            (
                "a=1 \\\n  2\\\r\n3\nb=4",
                &[("a", "1 2 3", 1), ("b", "4", 4)],
            ),
            ("a=1\\\n#2\\\n3", &[("a", "1 3", 1)]),
            ("a=\\\n\\\n1", &[("a", "1", 1)]),
            ("a=1\\\n\nb=2", &[("a", "1", 1), ("b", "2", 3)]),
            ("a=1\\\nb=2", &[("a", "1 b=2", 1)]),
            ("=x", &[("", "x", 1)]),
            ("", &[]),
        ];
        for (text, expect) in table {
            let expect: Vec<(String, String, usize)> = expect
                .iter()
                .map(|(key, value, line)| ((*key).into(), (*value).into(), *line))
                .collect();
            assert_eq!(settings(text), expect, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_setting_is_reported() {
        let parsed = parse(b"\n  # indented\nhello\n", "x").unwrap();
        assert_eq!((parsed.ignored.len(), parsed.ignored[0].line), (1, 3));
        for (bytes, expect) in [
            (&b"a=\xff"[..], "x:1: the line is not UTF-8 text"),
            (b"a=b\nc=\0", "x:2: there is a NUL byte"),
            (b"a=1\nb=2\\", "x:2: b: the file ends within the value"),
            (b"b=2\\\n", "x:1: b: the file ends within the value"),
            (
                "a=\n".repeat(4097).as_bytes(),
                "x:4097: there are more than 4096 settings",
            ),
        ] {
            assert_eq!(parse(bytes, "x").unwrap_err().to_string(), expect);
        }
    }
}
