//! Lists of arguments in the metadata of an image.
//!
//! They are written as JSON arrays of strings, except that bytes from 0x80 on stand as they are:
//! where an argument is UTF-8, the array is JSON; where it is not, it still comes back byte for
//! byte. What is read is a superset, because gateways have written Python's form of a list for
//! years: `[u'/bin/sh', '-c', "it's"]`, with Python's escapes. The lone surrogates U+DC80 to
//! U+DCFF in such a list are single bytes 0x80 to 0xFF, as Python decodes file names.

/// Writes a list.
pub(super) fn write(strings: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"[".to_vec();
    for (index, string) in strings.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"\"" } else { b", \"" });
        for byte in string {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
                b'\n' => out.extend_from_slice(b"\\n"),
                0..0x20 | 0x7f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => out.push(*byte),
            }
        }
        out.push(b'"');
    }
    out.push(b']');
    out
}

/// Reads a list; `None` if it is not one, or if a string contains a NUL.
pub(super) fn parse(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut reader = Reader { rest: text };
    let mut strings = Vec::new();
    reader.expect(b'[')?;
    if reader.peek()? == b']' {
        reader.next();
    } else {
        loop {
            strings.push(reader.string()?);
            match reader.token()? {
                b',' => {}
                b']' => break,
                _ => return None,
            }
        }
    }
    reader.rest.trim_ascii().is_empty().then_some(strings)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// Returns the next byte that is not a space.
    fn token(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.next()
    }

    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.token()? == byte).then_some(())
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        let quote = match self.token()? {
            b'u' | b'b' => self.next()?,
            byte => byte,
        };
        if !matches!(quote, b'"' | b'\'') {
            return None;
        }
        let mut string = Vec::new();
        loop {
            match self.next()? {
                byte if byte == quote => break,
                b'\\' => self.escape(&mut string)?,
                byte => string.push(byte),
            }
        }
        (!string.contains(&0)).then_some(string)
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Option<()> {
        let byte = match self.next()? {
            b'x' => return self.code_point(2, out),
            b'u' => return self.code_point(4, out),
            b'U' => return self.code_point(8, out),
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'a' => 7,
            b'b' => 8,
            b'v' => 0x0b,
            b'f' => 0x0c,
            byte @ (b'"' | b'\'' | b'\\' | b'/') => byte,
            _ => return None,
        };
        out.push(byte);
        Some(())
    }

    fn code_point(&mut self, digits: usize, out: &mut Vec<u8>) -> Option<()> {
        let unit = self.hex(digits)?;
        let code = match unit {
            0xd800..0xdc00 => {
                // The first half of a character outside the 16-bit range.
                if (self.next()?, self.next()?) != (b'\\', b'u') {
                    return None;
                }
                let low = self.hex(4).filter(|low| (0xdc00..0xe000).contains(low))?;
                0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
            }
            0xdc80..0xdd00 => {
                out.push(u8::try_from(unit - 0xdc00).ok()?);
                return Some(());
            }
            unit => unit,
        };
        let c = char::from_u32(code)?;
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        Some(())
    }

    fn hex(&mut self, digits: usize) -> Option<u32> {
        (0..digits).try_fold(0, |value: u32, _| {
            let digit = char::from(self.next()?).to_digit(16)?;
            Some(value << 4 | digit)
        })
    }
}
