//! Why the shared state cannot be used, or something in it is not believed.

use std::io;
use std::path::Path;

use shifter_core::sanitize;
use shifter_core::trusted::TrustError;
use thiserror::Error;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: what was attempted, on which object, and why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The configured directory is not there, or others than its owner could change it.
    #[error("cannot use the shared state")]
    Untrusted(#[from] TrustError),
    /// A step failed.
    #[error("cannot {step} '{}'", sanitize::text(.object))]
    Step {
        /// What was attempted: "create", "read".
        step: &'static str,
        /// On what.
        object: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Something is there and is not believed.
    #[error("shared state '{}' is not used: {rule}", sanitize::text(.object))]
    Refused {
        /// The file or directory.
        object: String,
        /// The rule that it breaks.
        rule: Rule,
    },
    /// A name or size is none that a state can have.
    #[error("shared state cannot have a file '{}'", sanitize::text(.0))]
    File(String),
}

/// A rule that every part of the shared state keeps.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Rule {
    /// It has the kind that it must have.
    #[error("it is no {0}")]
    Kind(&'static str),
    /// The owner can read it.
    #[error("the storage's owner may not read it")]
    Access,
    /// It belongs to the owner.
    #[error("it belongs to uid {found} and must belong to uid {expected}")]
    Owner {
        /// Whose it is.
        found: u32,
        /// Whose it must be.
        expected: u32,
    },
    /// Nobody else has access.
    #[error("its mode {0:04o} lets others in")]
    Mode(u32),
    /// It is not larger than anything sensible.
    #[error("it is too large")]
    Size,
    /// It begins with a stamp that this version writes.
    #[error("its stamp is not well-formed")]
    Stamp,
    /// It was written for the very job that the batch system speaks of.
    #[error("it is for {what} '{}' and the batch system says '{expected}'", sanitize::text(.found))]
    Mismatch {
        /// The thing compared.
        what: &'static str,
        /// What the stamp says.
        found: String,
        /// What it must say.
        expected: String,
    },
    /// It was written a short while ago.
    #[error("it was written {age_secs} s ago")]
    Age {
        /// How long ago, or in how many seconds by this node's clock.
        age_secs: u64,
    },
    /// All its files are there.
    #[error("a part of it is missing")]
    Incomplete,
    /// The accounts in it can be understood and are the user's.
    #[error("its accounts are not well-formed")]
    Accounts,
}

impl Error {
    pub(crate) fn refused(object: &str, rule: Rule) -> Self {
        let object = object.to_owned();
        Self::Refused { object, rule }
    }

    /// True if the storage works, and what is there counts as absent.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// Says what was attempted when the system refuses it.
pub(crate) trait Context<T> {
    fn step(self, step: &'static str, object: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn step(self, step: &'static str, object: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| Error::Step {
            step,
            object: object.as_ref().display().to_string(),
            source: error.into(),
        })
    }
}
