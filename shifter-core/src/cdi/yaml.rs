//! The part of YAML in which programs write CDI specifications.
//!
//! Block and flow collections, plain and quoted scalars, comments. Anchors, aliases, tags, block
//! texts, several documents and whatever else YAML has are refused with the line, never guessed
//! at: a specification decides what root mounts. Plain scalars stay text, whatever they look like
//! (`no` is "no", `0` is "0"), but for the null ones; who expects a number parses it.

use serde_json::{Map, Value};
use thiserror::Error;

/// Collections within collections.
const DEPTH_LIMIT: usize = 32;

/// Says what is not understood, and where.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}: {what}")]
pub struct YamlError {
    line: usize,
    what: &'static str,
}

type Result<T> = std::result::Result<T, YamlError>;

/// A line that says something.
struct Line<'a> {
    number: usize,
    indent: usize,
    text: &'a str,
}

/// Parses one document.
///
/// # Errors
/// [`YamlError`] for what is not YAML, and for what is and is not of the part described above.
pub fn parse(text: &str) -> Result<Value> {
    let mut parser = Parser {
        lines: lines(text)?,
        at: 0,
    };
    if parser.lines.is_empty() {
        return Ok(Value::Null);
    }
    let value = parser.block(0)?;
    match parser.lines.get(parser.at) {
        None => Ok(value),
        Some(line) => fault(line.number, "the indentation fits to nothing above"),
    }
}

fn fault<T>(line: usize, what: &'static str) -> Result<T> {
    Err(YamlError { line, what })
}

/// Splits the document into lines, without empty ones and those with nothing but a comment.
fn lines(text: &str) -> Result<Vec<Line<'_>>> {
    let mut found = Vec::new();
    let mut has_started = false;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.trim_end();
        let text = line.trim_start_matches(' ');
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if line == "---" && !has_started {
            has_started = true;
            continue;
        }
        has_started = true;
        if line.starts_with("---") || line.starts_with("...") || line.starts_with('%') {
            return fault(number, "only a single document is understood");
        }
        if text.starts_with('\t') {
            return fault(number, "a tab is no indentation");
        }
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return fault(number, "there is a control character");
        }
        found.push(Line {
            number,
            indent: line.len() - text.len(),
            text,
        });
    }
    Ok(found)
}

struct Parser<'a> {
    lines: Vec<Line<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    /// Parses what begins on the present line, at its indentation.
    fn block(&mut self, depth: usize) -> Result<Value> {
        let line = &self.lines[self.at];
        let (number, indent, text) = (line.number, line.indent, line.text);
        if depth > DEPTH_LIMIT {
            return fault(number, "there are too many levels");
        }
        if is_element(text) {
            self.sequence(indent, depth)
        } else if split_key(text, number)?.is_some() {
            self.mapping(indent, depth)
        } else {
            self.at += 1;
            self.inline(text, number, indent.checked_sub(1), depth)
        }
    }

    fn sequence(&mut self, indent: usize, depth: usize) -> Result<Value> {
        let mut elements = Vec::new();
        while let Some(line) = self.lines.get_mut(self.at) {
            if line.indent != indent || !is_element(line.text) {
                break;
            }
            let rest = line.text[1..].trim_start();
            if rest.is_empty() || rest.starts_with('#') {
                self.at += 1;
                elements.push(self.below(indent + 1, depth)?);
            } else {
                // What follows the dash begins a block of its own, at its own column.
                line.indent += line.text.len() - rest.len();
                line.text = rest;
                elements.push(self.block(depth + 1)?);
            }
        }
        Ok(Value::Array(elements))
    }

    fn mapping(&mut self, indent: usize, depth: usize) -> Result<Value> {
        let mut map = Map::new();
        while let Some(line) = self.lines.get(self.at) {
            let number = line.number;
            if line.indent != indent || is_element(line.text) {
                break;
            }
            let Some((key, rest)) = split_key(line.text, number)? else {
                return fault(number, "a key with ':' is expected");
            };
            self.at += 1;
            let value = if !rest.is_empty() && !rest.starts_with('#') {
                self.inline(rest, number, Some(indent), depth)?
            } else if self
                .lines
                .get(self.at)
                .is_some_and(|next| next.indent == indent && is_element(next.text))
            {
                // A list need not be indented more than its key.
                self.block(depth + 1)?
            } else {
                self.below(indent + 1, depth)?
            };
            if map.insert(key, value).is_some() {
                return fault(number, "the key is there twice");
            }
        }
        Ok(Value::Object(map))
    }

    /// Parses the block on the next line, if that is indented as far as `indent`.
    fn below(&mut self, indent: usize, depth: usize) -> Result<Value> {
        match self.lines.get(self.at) {
            Some(next) if next.indent >= indent => self.block(depth + 1),
            _ => Ok(Value::Null),
        }
    }

    /// Parses a scalar or flow collection, with the lines on which it goes on: those that are
    /// indented more than `indent`.
    fn inline(
        &mut self,
        first: &'a str,
        number: usize,
        indent: Option<usize>,
        depth: usize,
    ) -> Result<Value> {
        let mut text = String::from(first);
        while let Some(next) = self.lines.get(self.at) {
            if indent.is_some_and(|indent| next.indent <= indent) {
                break;
            }
            if text.contains(" #") {
                return fault(next.number, "a comment ends the value on the line above");
            }
            text.push(' ');
            text.push_str(next.text);
            self.at += 1;
        }
        let mut flow = Flow {
            rest: &text,
            number,
        };
        let value = flow.value(depth + 1, false)?;
        match flow.rest.trim_start() {
            "" => Ok(value),
            rest if rest.starts_with('#') && rest.len() < flow.rest.len() => Ok(value),
            _ => fault(number, "there is something behind the value"),
        }
    }
}

fn is_element(text: &str) -> bool {
    text == "-" || text.starts_with("- ")
}

/// Splits `key: value`; nothing if the text has no key.
fn split_key(text: &str, number: usize) -> Result<Option<(String, &str)>> {
    if text.starts_with(['\'', '"']) {
        let mut flow = Flow { rest: text, number };
        let key = flow.quoted()?;
        let Some(rest) = flow.rest.trim_start().strip_prefix(':') else {
            return Ok(None);
        };
        return Ok((rest.is_empty() || rest.starts_with(' ')).then(|| (key, rest.trim_start())));
    }
    if text.starts_with(['[', '{']) {
        return Ok(None);
    }
    let end = text.find(" #").unwrap_or(text.len());
    let at = match text[..end].find(": ") {
        Some(at) => at,
        None if text[..end].trim_end().ends_with(':') => text[..end].trim_end().len() - 1,
        None => return Ok(None),
    };
    let key = text[..at].trim_end();
    check_plain(key, number)?;
    Ok(Some((key.to_owned(), text[at + 1..].trim_start())))
}

/// Refuses the beginnings of what is not understood.
fn check_plain(text: &str, number: usize) -> Result<()> {
    match text.chars().next() {
        Some('&' | '*') => fault(number, "anchors and aliases are not understood"),
        Some('!') => fault(number, "tags are not understood"),
        Some('|' | '>') => fault(number, "block texts are not understood"),
        Some('?' | '%' | '@' | '`' | ',' | ']' | '}') => {
            fault(number, "a value cannot begin like this")
        }
        None => fault(number, "a value is expected"),
        _ => Ok(()),
    }
}

/// What is written within a line.
struct Flow<'a> {
    rest: &'a str,
    number: usize,
}

impl Flow<'_> {
    fn value(&mut self, depth: usize, is_nested: bool) -> Result<Value> {
        self.rest = self.rest.trim_start();
        if depth > DEPTH_LIMIT {
            return fault(self.number, "there are too many levels");
        }
        match self.rest.chars().next() {
            Some('[') => self.list(depth),
            Some('{') => self.map(depth),
            Some('\'' | '"') => self.quoted().map(Value::String),
            _ => self.plain(is_nested),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value> {
        let mut elements = Vec::new();
        self.skip('[');
        while !self.skip(']') {
            elements.push(self.value(depth + 1, true)?);
            self.separator(']')?;
        }
        Ok(Value::Array(elements))
    }

    fn map(&mut self, depth: usize) -> Result<Value> {
        let mut map = Map::new();
        self.skip('{');
        while !self.skip('}') {
            let key = if self.rest.starts_with(['\'', '"']) {
                self.quoted()?
            } else {
                let end = self.rest.find([':', ',', '}']).unwrap_or(self.rest.len());
                let (key, rest) = self.rest.split_at(end);
                check_plain(key, self.number)?;
                self.rest = rest;
                key.trim_end().to_owned()
            };
            if !self.skip(':') {
                return fault(self.number, "a key with ':' is expected");
            }
            let value = self.value(depth + 1, true)?;
            self.separator('}')?;
            if map.insert(key, value).is_some() {
                return fault(self.number, "the key is there twice");
            }
        }
        Ok(Value::Object(map))
    }

    /// Takes one character, with the spaces on both sides of it.
    fn skip(&mut self, expected: char) -> bool {
        match self.rest.trim_start().strip_prefix(expected) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn separator(&mut self, end: char) -> Result<()> {
        if self.skip(',') || self.rest.trim_start().starts_with(end) {
            self.rest = self.rest.trim_start();
            Ok(())
        } else {
            fault(self.number, "a ',' or the closing bracket is expected")
        }
    }

    fn quoted(&mut self) -> Result<String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1).peekable();
        let quote = if self.rest.starts_with('"') {
            '"'
        } else {
            '\''
        };
        while let Some((at, c)) = chars.next() {
            if c == quote {
                if quote == '\'' && chars.next_if(|(_, next)| *next == '\'').is_some() {
                    text.push('\'');
                    continue;
                }
                self.rest = &self.rest[at + 1..];
                return Ok(text);
            }
            if c != '\\' || quote == '\'' {
                text.push(c);
                continue;
            }
            match chars.next().map(|(_, escaped)| escaped) {
                Some(plain @ ('"' | '\\' | '/' | ' ')) => text.push(plain),
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                _ => return fault(self.number, "the escape after '\\' is not understood"),
            }
        }
        fault(self.number, "the closing quote is missing")
    }

    fn plain(&mut self, is_nested: bool) -> Result<Value> {
        let mut end = self.rest.find(" #").unwrap_or(self.rest.len());
        if is_nested {
            end = end.min(self.rest.find([',', ']', '}', '[', '{']).unwrap_or(end));
        }
        let (text, rest) = self.rest.split_at(end);
        let text = text.trim_end();
        check_plain(text, self.number)?;
        if text.contains(": ") || text.ends_with(':') || text.starts_with("- ") {
            return fault(self.number, "there is a value within a value");
        }
        self.rest = rest;
        Ok(match text {
            "~" | "null" | "Null" | "NULL" => Value::Null,
            text => Value::String(text.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn collections_and_scalars() {
        let table = [
            ("", json!(null)),
            ("---\n# nothing\n", json!(null)),
            ("a: b", json!({"a": "b"})),
            ("a:\n- 1\n- no\nb: ~", json!({"a": ["1", "no"], "b": null})),
            (
                "a:\n    - b: c\n      d: e\n    - f",
                json!({"a": [{"b": "c", "d": "e"}, "f"]}),
            ),
            ("- - a\n  - b\n- c", json!([["a", "b"], "c"])),
            (
                "-\n  a: b\n-\n- c: {}",
                json!([{"a": "b"}, null, {"c": {}}]),
            ),
            (
                "a: [ro, \"x, y\", 'it''s', [], {b: c}]",
                json!({"a": ["ro", "x, y", "it's", [], {"b": "c"}]}),
            ),
            (
                "a: [ro,\n  rw,\n  ]\nb: {c: d, e: [f]}",
                json!({"a": ["ro", "rw"], "b": {"c": "d", "e": ["f"]}}),
            ),
            (
                "a: b # not this\nc: d#this # no",
                json!({"a": "b", "c": "d#this"}),
            ),
            (
                "- libcuda.so.1::/usr/lib/libcuda.so",
                json!(["libcuda.so.1::/usr/lib/libcuda.so"]),
            ),
            ("'a b': \"c\\\"d\\n\" # e", json!({"a b": "c\"d\n"})),
            (
                "a: one\n  two\nb: \"three\n  four\"",
                json!({"a": "one two", "b": "three four"}),
            ),
            ("a: http://x/y?z=[1]", json!({"a": "http://x/y?z=[1]"})),
            ("a:   # comment\n  b: c", json!({"a": {"b": "c"}})),
        ];
        for (text, value) in table {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        let table = [
            ("a: &x b", 1),
            ("a: *x", 1),
            ("a: !!int 3", 1),
            ("a: |\n  text", 1),
            ("a: b\n---\nc: d", 2),
            ("%YAML 1.2\n---\na: b", 1),
            ("a: b\n\tc: d", 2),
            ("a: b\na: c", 2),
            ("a: [b", 1),
            ("a: \"b", 1),
            ("a: \"\\x41\"", 1),
            ("a: b: c", 1),
            ("a:\n  b: c\n d: e", 3),
            ("- a\nb: c", 2),
            ("a: b\nc", 2),
            ("a: 'b' c", 1),
            ("? a\n: b", 1),
            ("a: {b}", 1),
            ("a: b\u{7}", 1),
            ("a: b # c\n  d", 2),
            ("<<: *x", 1),
            ("a: @b", 1),
        ];
        for (text, line) in table {
            let error = parse(text).map_err(|error| error.line);
            assert_eq!(error, Err(line), "{text}");
        }
        let deep = "[".repeat(1000);
        assert!(parse(&deep).unwrap_err().what.contains("levels"));
        let deep = "- ".repeat(1000) + "a";
        assert!(parse(&deep).unwrap_err().what.contains("levels"));
    }

    /// Writes a value as Go's programs do: lists under their key, quotes where needed.
    fn write(value: &Value, indent: usize, out: &mut String) {
        let pad = " ".repeat(indent);
        match value {
            Value::Array(list) if !list.is_empty() => {
                for element in list {
                    out.push_str(&format!("\n{pad}-"));
                    write(element, indent + 2, out);
                }
            }
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    out.push_str(&format!("\n{pad}'{}':", key.replace('\'', "''")));
                    write(value, indent + 2, out);
                }
            }
            Value::String(text) => out.push_str(&format!(" '{}'", text.replace('\'', "''"))),
            other => out.push_str(&format!(" {other}")),
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Null), "[ -~]{0,12}".prop_map(Value::String),];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::btree_map("[ -~]{1,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in values()) {
            let mut text = String::new();
            write(&value, 0, &mut text);
            prop_assert_eq!(parse(&text), Ok(value), "{}", text);
        }

        #[test]
        fn json_on_one_line_is_read(value in values()) {
            prop_assert_eq!(parse(&value.to_string()), Ok(value));
        }

        #[test]
        fn reading_is_total(text in "([-:\\[\\]{}#'\"|&* \n]|[ab]){0,60}") {
            let _ = parse(&text);
        }
    }
}
