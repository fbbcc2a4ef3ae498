//! Identifiers that become path components: checked once, here, and never again.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::reference::is_plain_name;

/// Says which identifier was refused, and why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdError {
    /// An image id is not 64 lower-case hexadecimal digits.
    #[error("'{}' is not an image id (64 hexadecimal digits)", crate::sanitize::text(.0))]
    Image(String),
    /// A job id or cluster name has a character or a length that no batch system uses.
    #[error("'{}' is not a {kind} (1 to 64 of A-Z a-z 0-9 . _ - [ ], not starting with . or -)", crate::sanitize::text(.text))]
    Name {
        /// What the text was to be.
        kind: &'static str,
        /// The text as it came.
        text: String,
    },
}

/// An image's id: the SHA-256 of its configuration, 64 lower-case hexadecimal digits. Those of a
/// tree of the site's, which has nothing to be hashed, are its name and zeros.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(String);

impl ImageId {
    /// Accepts exactly 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 64 && text.bytes().all(digits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Image(text.to_owned()))
        }
    }

    /// Returns the id that stands for a tree of the site's; nothing if the text is no name of one.
    pub fn of_tree(name: &str) -> Option<Self> {
        if !is_tree_name(name) {
            return None;
        }
        let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
        Some(Self(format!("{digits:0<64}")))
    }

    /// Returns the name of the tree that the id stands for; nothing for an image of a store, as no
    /// digest is text that ends in zeros.
    pub fn tree(&self) -> Option<String> {
        let digits = |at: usize| u8::from_str_radix(self.0.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..64).step_by(2).map(digits).collect();
        let name = String::from_utf8(bytes?).ok()?;
        let name = name.trim_end_matches('\0');
        is_tree_name(name).then(|| name.to_owned())
    }

    /// Returns the 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// True for what may name a tree of the site's: an id has room for 31 bytes and a zero.
pub(crate) fn is_tree_name(text: &str) -> bool {
    text.len() < 32 && is_plain_name(text)
}

/// A batch system's job id (`17`, `1[2].server`) or a cluster's name; safe as a path component.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// Accepts 1 to 64 of `A-Z a-z 0-9 . _ - [ ]`, not starting with `.` or `-`.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        check_name("job id", text).map(Self)
    }

    /// Returns the id as the batch system writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_name(kind: &'static str, text: &str) -> Result<String, IdError> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"._-[]".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(ok) && !text.starts_with(['.', '-']) {
        Ok(text.to_owned())
    } else {
        Err(IdError::Name {
            kind,
            text: text.to_owned(),
        })
    }
}

macro_rules! string_id {
    ($type:ident) => {
        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(&text)
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
string_id!(ImageId);
string_id!(JobId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_ids() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(ImageId::parse(&good).unwrap().as_str(), good);
        for bad in [
            "",
            "abc",
            &good.to_uppercase(),
            &format!("{good}0"),
            &good.replace('0', "/"),
        ] {
            assert!(ImageId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_of_trees() {
        for name in ["sl6", "a", &"x".repeat(31)] {
            let id = ImageId::of_tree(name).unwrap();
            assert_eq!(id.tree().as_deref(), Some(name));
            assert_eq!(ImageId::parse(id.as_str()), Ok(id));
        }
        for name in ["", "-a", "a/b", "a\0", &"x".repeat(32)] {
            assert_eq!(ImageId::of_tree(name), None, "{name}");
        }
        for id in ["5".repeat(64), "0".repeat(64), format!("{:0<64}", "61002f")] {
            assert_eq!(ImageId::parse(&id).unwrap().tree(), None, "{id}");
        }
    }

    #[test]
    fn job_ids() {
        for good in ["17", "1[2].server", "3.head-node", "a_b"] {
            assert_eq!(JobId::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".17",
            "-17",
            "a/b",
            "a b",
            "a\n",
            "$(x)",
            &"9".repeat(65),
        ] {
            assert!(JobId::parse(bad).is_err(), "{bad}");
        }
    }
}
