//! The metadata beside each image, `<id>.meta`, as the C Shifter reads and writes it.
//!
//! ```text
//! FORMAT: squashfs            names the file <id>.squashfs
//! USERACL: 1000,1001          who may use the image; without both lists everybody may
//! GROUPACL: 100
//! ENTRY: ["/bin/sh", "-c"]    see [`list`]
//! CMD: ["bash"]
//! WORKDIR: /work
//! ENV: NAME=value             one line each
//! VOLUME: /data               one line each
//! USER: nobody                never acted upon: users are themselves in a container
//! ```
//!
//! Values are bytes, not text. A value ends with its line, so that no value may contain a newline:
//! writing one is refused, and [`ImageMeta::remove_unwritable`] drops such variables first. Access
//! lists are written before anything the image's author has chosen. On reading, a second access
//! list or format is an error, because only a forged line can be one; so is an access list that
//! cannot be read or that names nobody, which the C Shifter took for "everybody". Keys that are
//! not known and variables without `=` are ignored, and nothing is ever printed.

mod list;
#[cfg(test)]
mod tests;

use thiserror::Error;

use crate::sanitize;

/// Bytes that the metadata of an image may have.
pub const SIZE_LIMIT: usize = 1 << 20;

/// Lines that the metadata of an image may have.
pub const LINE_LIMIT: usize = 16 << 10;

/// Says why metadata cannot be read or written.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MetaError {
    /// There are too many bytes.
    #[error("the image's metadata is larger than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// There are too many lines.
    #[error("the image's metadata has more than {LINE_LIMIT} lines")]
    TooManyLines,
    /// The image has no format.
    #[error("the image's metadata has no FORMAT")]
    NoFormat,
    /// The format cannot be a part of a file name.
    #[error("the image's format '{}' is not 1 to 16 letters and digits", sanitize::bytes(.0))]
    Format(Vec<u8>),
    /// A line contains a NUL byte.
    #[error("line {line} of the image's metadata contains a NUL byte")]
    Nul {
        /// The line, counted from 1.
        line: usize,
    },
    /// A key that may stand once stands twice.
    #[error("line {line} of the image's metadata is a second {key}")]
    Twice {
        /// The line, counted from 1.
        line: usize,
        /// The key.
        key: &'static str,
    },
    /// An access list is not one.
    #[error("{key} '{}' in the image's metadata is not a list of numbers", sanitize::bytes(.value))]
    Acl {
        /// `USERACL` or `GROUPACL`.
        key: &'static str,
        /// The value as it came.
        value: Vec<u8>,
    },
    /// There are access lists, and nobody is on them.
    #[error("the image's access lists are empty")]
    EmptyAcl,
    /// A list of arguments is not one.
    #[error("{key} '{}' in the image's metadata is not a list of strings", sanitize::bytes(.value))]
    List {
        /// `ENTRY` or `CMD`.
        key: &'static str,
        /// The value as it came.
        value: Vec<u8>,
    },
    /// A value that is to be written contains a newline or NUL, or an environment name is empty
    /// or contains `=`.
    #[error("{key} '{}' of the image cannot be written to its metadata", sanitize::bytes(.value))]
    Unwritable {
        /// The key.
        key: &'static str,
        /// The value, or the name of the variable.
        value: Vec<u8>,
    },
}

/// What the image says about how it is to be used, and the site about who may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageMeta {
    /// File system of the image, and suffix of its file.
    pub format: String,
    /// Program with leading arguments.
    pub entry: Option<Vec<Vec<u8>>>,
    /// Default arguments.
    pub cmd: Option<Vec<Vec<u8>>>,
    /// Directory to start in.
    pub workdir: Option<Vec<u8>>,
    /// Variables, in the image's order.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Directories that the image declares as volumes.
    pub volumes: Vec<Vec<u8>>,
    /// User that the image wants to run as; never acted upon.
    pub user: Option<Vec<u8>>,
    /// Uids that may use the image.
    pub user_acl: Vec<u32>,
    /// Gids that may use the image.
    pub group_acl: Vec<u32>,
}

impl ImageMeta {
    /// Parses the content of a `.meta` file.
    pub fn parse(bytes: &[u8]) -> Result<Self, MetaError> {
        if bytes.len() > SIZE_LIMIT {
            return Err(MetaError::TooLarge);
        }
        let mut meta = ImageMeta::default();
        let (mut format, mut user_acl, mut group_acl) = (None, None, None);
        for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
            let number = index + 1;
            if number > LINE_LIMIT {
                return Err(MetaError::TooManyLines);
            }
            if line.contains(&0) {
                return Err(MetaError::Nul { line: number });
            }
            let Some((key, value)) = split_once(line, b':') else {
                continue;
            };
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match key {
                b"FORMAT" => once(&mut format, parse_format(value)?, number, "FORMAT")?,
                b"USERACL" => {
                    once(
                        &mut user_acl,
                        parse_acl("USERACL", value)?,
                        number,
                        "USERACL",
                    )?;
                }
                b"GROUPACL" => {
                    once(
                        &mut group_acl,
                        parse_acl("GROUPACL", value)?,
                        number,
                        "GROUPACL",
                    )?;
                }
                b"ENTRY" => meta.entry = parse_list("ENTRY", value)?,
                b"CMD" => meta.cmd = parse_list("CMD", value)?,
                b"WORKDIR" => meta.workdir = some_value(value),
                b"USER" => meta.user = some_value(value),
                b"VOLUME" => meta.volumes.extend(some_value(value)),
                b"ENV" => {
                    let pair = split_once(value, b'=').filter(|(name, _)| !name.is_empty());
                    meta.env
                        .extend(pair.map(|(name, value)| (name.to_vec(), value.to_vec())));
                }
                _ => {}
            }
        }
        meta.format = format.ok_or(MetaError::NoFormat)?;
        let is_restricted = user_acl.is_some() || group_acl.is_some();
        meta.user_acl = user_acl.unwrap_or_default();
        meta.group_acl = group_acl.unwrap_or_default();
        if is_restricted && meta.is_public() {
            return Err(MetaError::EmptyAcl);
        }
        Ok(meta)
    }

    /// Writes what [`ImageMeta::parse`] and the C Shifter read.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MetaError> {
        let mut lines = Lines::default();
        parse_format(self.format.as_bytes())?;
        lines.push("FORMAT", self.format.as_bytes())?;
        for (key, acl) in [("USERACL", &self.user_acl), ("GROUPACL", &self.group_acl)] {
            let ids: Vec<String> = acl.iter().map(u32::to_string).collect();
            let value = ids.join(",").into_bytes();
            if acl.contains(&u32::MAX) {
                return Err(MetaError::Acl { key, value });
            }
            if !value.is_empty() {
                lines.push(key, &value)?;
            }
        }
        for (key, strings) in [("ENTRY", &self.entry), ("CMD", &self.cmd)] {
            if let Some(strings) = strings {
                let value = list::write(strings);
                // The list's own escapes take care of newlines, but no argument can have a NUL.
                if strings.iter().any(|string| string.contains(&0)) {
                    return Err(MetaError::Unwritable { key, value });
                }
                lines.push(key, &value)?;
            }
        }
        lines.optional("WORKDIR", self.workdir.as_deref())?;
        for (name, value) in &self.env {
            if !is_writable_variable(name, value) {
                return Err(MetaError::Unwritable {
                    key: "ENV",
                    value: name.clone(),
                });
            }
            lines.push("ENV", &[name.as_slice(), b"=", value].concat())?;
        }
        for volume in &self.volumes {
            lines.optional("VOLUME", Some(volume))?;
        }
        lines.optional("USER", self.user.as_deref())?;
        lines.finish()
    }

    /// Removes the variables that no line can hold, and returns their names for a warning.
    pub fn remove_unwritable(&mut self) -> Vec<Vec<u8>> {
        let removed = self
            .env
            .extract_if(.., |(name, value)| !is_writable_variable(name, value));
        removed.map(|(name, _)| name).collect()
    }

    /// True if neither list restricts who may use the image.
    pub fn is_public(&self) -> bool {
        self.user_acl.is_empty() && self.group_acl.is_empty()
    }

    /// True if a user with these groups may use the image: it is public, the user owns it, or the
    /// user or a group is on a list. Root is nobody special.
    pub fn permits(&self, uid: u32, gids: &[u32], owner: Option<u32>) -> bool {
        self.is_public()
            || owner == Some(uid)
            || self.user_acl.contains(&uid)
            || gids.iter().any(|gid| self.group_acl.contains(gid))
    }
}

/// The lines of a file that is being written.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    count: usize,
}

impl Lines {
    fn push(&mut self, key: &'static str, value: &[u8]) -> Result<(), MetaError> {
        if !fits_a_line(value) {
            return Err(MetaError::Unwritable {
                key,
                value: value.to_vec(),
            });
        }
        for part in [key.as_bytes(), b": ", value, b"\n"] {
            self.bytes.extend_from_slice(part);
        }
        self.count += 1;
        Ok(())
    }

    /// Writes a value unless it is missing.
    fn optional(&mut self, key: &'static str, value: Option<&[u8]>) -> Result<(), MetaError> {
        match value {
            Some(value) if !is_missing(value) => self.push(key, value),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<Vec<u8>, MetaError> {
        // The empty text after the last newline counts as a line to the reader.
        if self.count >= LINE_LIMIT {
            return Err(MetaError::TooManyLines);
        }
        if self.bytes.len() > SIZE_LIMIT {
            return Err(MetaError::TooLarge);
        }
        Ok(self.bytes)
    }
}

fn fits_a_line(value: &[u8]) -> bool {
    !value.contains(&b'\n') && !value.contains(&0)
}

fn is_writable_variable(name: &[u8], value: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'=') && fits_a_line(name) && fits_a_line(value)
}

/// True for an empty value and for `None`, which the C Shifter's gateway writes for a missing one.
fn is_missing(value: &[u8]) -> bool {
    matches!(value, b"" | b"None")
}

fn some_value(value: &[u8]) -> Option<Vec<u8>> {
    (!is_missing(value)).then(|| value.to_vec())
}

fn once<T>(
    slot: &mut Option<T>,
    value: T,
    line: usize,
    key: &'static str,
) -> Result<(), MetaError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(MetaError::Twice { line, key }),
    }
}

fn parse_format(value: &[u8]) -> Result<String, MetaError> {
    let is_format = (1..=16).contains(&value.len()) && value.iter().all(u8::is_ascii_alphanumeric);
    match String::from_utf8(value.to_vec()) {
        Ok(format) if is_format => Ok(format),
        _ => Err(MetaError::Format(value.to_vec())),
    }
}

fn parse_acl(key: &'static str, value: &[u8]) -> Result<Vec<u32>, MetaError> {
    if value.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let id = |item: &[u8]| {
        let digits = item.trim_ascii();
        let text = str::from_utf8(digits)
            .ok()
            .filter(|_| digits.iter().all(u8::is_ascii_digit));
        // u32::MAX means "no id" to the kernel.
        text?.parse().ok().filter(|id| *id != u32::MAX)
    };
    let ids = value
        .split(|b| *b == b',')
        .map(id)
        .collect::<Option<Vec<u32>>>();
    ids.ok_or_else(|| MetaError::Acl {
        key,
        value: value.to_vec(),
    })
}

fn parse_list(key: &'static str, value: &[u8]) -> Result<Option<Vec<Vec<u8>>>, MetaError> {
    match some_value(value) {
        None => Ok(None),
        Some(value) if value.starts_with(b"[") => match list::parse(&value) {
            Some(strings) => Ok(Some(strings)),
            None => Err(MetaError::List { key, value }),
        },
        Some(value) => Ok(Some(vec![value])),
    }
}

fn split_once(line: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|b| *b == separator)?;
    let (before, rest) = line.split_at(at);
    Some((before, rest.split_at(1).1))
}
