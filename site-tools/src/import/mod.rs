//! From a C Shifter's `udiRoot.conf` to a `shifter.toml`.
//!
//! ```text
//! grammar   bytes ─▶ settings: key, value, line
//! keys      which settings there are, and what becomes of each
//! convert   settings ─▶ draft and remarks
//! values    numbers, lists and sizes
//! draft     tables of the new configuration ─▶ TOML
//! ```
//!
//! Nothing is written that [`Config::parse`] does not accept: each piece is tried on it before it
//! enters the draft, and the whole once more at the end. What cannot be carried over is never
//! dropped in silence.

mod convert;
mod draft;
mod grammar;
mod keys;
#[cfg(test)]
mod tests;
mod values;

use std::path::{Path, PathBuf};

use shifter_core::config::{Config, ConfigError};
use shifter_core::sanitize;
use thiserror::Error;

/// Bytes that a configuration may have, old or new.
pub const SIZE_LIMIT: u64 = 1 << 20;

/// What the caller decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Report unknown keys instead of refusing the file.
    pub ignores_unknown: bool,
    /// Where this Shifter is installed; none: where the configuration's default says.
    pub prefix: Option<PathBuf>,
}

/// The new configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The text of the `shifter.toml`.
    pub toml: String,
    /// What the administrator should know, in the order of the lines.
    pub remarks: Vec<Remark>,
}

/// Something that is not in the new configuration, or that is there and means something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The line of the old configuration.
    pub line: usize,
    /// The key.
    pub key: String,
    /// What is the matter, and the way out.
    pub text: String,
}

/// Says why a configuration cannot be imported.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ImportError {
    /// A line that the C Shifter would not have understood either.
    #[error("{}:{line}: {message}", sanitize::text(.file))]
    Line {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
        /// The way out.
        hint: String,
    },
    /// The new configuration would be larger than one may be.
    #[error("the new configuration would be larger than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// The new configuration is not one: a defect.
    #[error("cannot make a configuration of it: {0}")]
    Unverified(String),
}

impl ImportError {
    /// Returns the way out, where one is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            ImportError::Line { hint, .. } => Some(hint),
            ImportError::TooLarge => Some("shorten siteFs and siteEnv"),
            ImportError::Unverified(_) => None,
        }
    }
}

/// Converts the bytes of a `udiRoot.conf`; `file` is its name, for messages.
///
/// # Errors
/// Names the first line that is not text, that is no setting, or whose key is unknown.
pub fn import(bytes: &[u8], file: &str, options: &Options) -> Result<Imported, ImportError> {
    let parsed = grammar::parse(bytes, file)?;
    let settings = keys::known(parsed.settings, file, options.ignores_unknown)?;
    let (draft, mut remarks) = convert::convert(&settings, options);
    remarks.extend(parsed.ignored);
    remarks.sort_by_key(|remark| remark.line);
    let toml = draft.render(file);
    if toml.len() as u64 > SIZE_LIMIT {
        return Err(ImportError::TooLarge);
    }
    match Config::parse(&toml, Path::new("shifter.toml")) {
        Ok(_) => Ok(Imported { toml, remarks }),
        Err(error) => Err(ImportError::Unverified(describe(&error))),
    }
}

/// Says what the configuration's parser has against something.
fn describe(error: &ConfigError) -> String {
    match error {
        // The file and the line are those of a piece, and the piece is named by the caller.
        ConfigError::Invalid { message, .. } => message.clone(),
        other => crate::output::chain(other),
    }
}
