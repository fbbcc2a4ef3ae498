//! Why layers cannot be merged.

use shifter_core::sanitize;

/// Why layers cannot be merged. Paths are made printable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MergeError {
    /// An entry lies below something that is not a directory.
    #[error("entry '{path}' lies below something that is not a directory")]
    ParentNotDirectory {
        /// The entry, or the directory that it needs.
        path: String,
    },
    /// Symbolic links lead in a circle, or through too many steps.
    #[error("entry '{path}' leads through too many symbolic links")]
    LinkLoop {
        /// The entry, or the directory that it needs.
        path: String,
    },
    /// Symbolic links lead to a path or a name that is too long.
    #[error("entry '{path}' leads to a path that is too long")]
    LongPath {
        /// The entry, or the directory that it needs.
        path: String,
    },
    /// The image has too many files.
    #[error("the layers have more than {limit} files and directories")]
    TooMany {
        /// How many are allowed.
        limit: usize,
    },
    /// A hard link's target does not exist.
    #[error("entry '{path}' is a hard link to '{target}', which does not exist")]
    LinkTargetMissing {
        /// The entry.
        path: String,
        /// What it names.
        target: String,
    },
    /// A hard link's target is a directory.
    #[error("entry '{path}' is a hard link to '{target}', which is a directory")]
    LinkTargetDirectory {
        /// The entry.
        path: String,
        /// What it names.
        target: String,
    },
    /// A whiteout that names nothing, or an entry below a whiteout.
    #[error("entry '{path}' is not a valid whiteout")]
    Whiteout {
        /// The entry.
        path: String,
    },
}

impl MergeError {
    pub(super) fn parent(path: &[u8]) -> Self {
        Self::ParentNotDirectory {
            path: sanitize::bytes(path),
        }
    }

    pub(super) fn link_loop(path: &[u8]) -> Self {
        Self::LinkLoop {
            path: sanitize::bytes(path),
        }
    }

    pub(super) fn long(path: &[u8]) -> Self {
        Self::LongPath {
            path: sanitize::bytes(path),
        }
    }

    pub(super) fn whiteout(path: &[u8]) -> Self {
        Self::Whiteout {
            path: sanitize::bytes(path),
        }
    }
}
