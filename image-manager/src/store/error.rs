//! What can go wrong with an image store.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use shifter_core::exit::ExitCode;
use shifter_core::meta::MetaError;
use shifter_core::sanitize;
use thiserror::Error;

/// Says which file of a store is concerned and why.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} '{}'", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// There is not enough room.
    #[error("no space left in '{}'{}", dir.display(), need_text(*need, *free))]
    Full {
        /// The directory that is full.
        dir: PathBuf,
        /// Bytes that are needed at least.
        need: u64,
        /// Bytes that are free, if known.
        free: Option<u64>,
    },
    /// A store that somebody else could change.
    #[error("the image store '{}' cannot be used: {rule}", path.display())]
    Untrusted {
        /// The store.
        path: PathBuf,
        /// The rule that is broken.
        rule: String,
    },
    /// Nothing can be written to the store.
    #[error("the image store '{}' is read-only here", path.display())]
    ReadOnly {
        /// The store.
        path: PathBuf,
    },
    /// Only the owner of the site store writes there.
    #[error("the site store belongs to uid {owner}")]
    NotOwner {
        /// Its owner.
        owner: u32,
    },
    /// There is no home directory to keep a store in.
    #[error("HOME does not name a directory that belongs to you")]
    NoHome,
    /// A record of the store does not say what it should.
    #[error("cannot use '{}'", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// The reason.
        source: shifter_core::store::StoreError,
    },
    /// The metadata of an image cannot be read or written.
    #[error("the metadata of image '{id}' cannot be used")]
    Meta {
        /// The image.
        id: String,
        /// The reason.
        source: MetaError,
    },
    /// An image that still has tags is not removed by its id.
    #[error("the image has the tags {}", sanitize::text(tags))]
    HasTags {
        /// The tags, separated by commas.
        tags: String,
    },
}

impl StoreError {
    /// Wraps an operation on `path` that needs no room; others become [`StoreError::Full`] if there
    /// is none.
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| StoreError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Returns the code the program ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotOwner { .. } | Self::HasTags { .. } => ExitCode::Denied,
            Self::Untrusted { .. } | Self::NoHome => ExitCode::Privilege,
            Self::Meta { .. } => ExitCode::Image,
            _ => ExitCode::Internal,
        }
    }

    /// Returns a known way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotOwner { owner } => Some(format!("run it as that user: sudo -u '#{owner}' …")),
            Self::ReadOnly { .. } => Some("pull where the store can be written".into()),
            Self::HasTags { .. } => Some("remove the tags instead".into()),
            Self::Full { .. } => {
                Some("remove images with 'shifter rmi', or have a quota enlarged".into())
            }
            _ => None,
        }
    }
}

fn need_text(need: u64, free: Option<u64>) -> String {
    match free {
        Some(free) => format!(": {} needed, {} free", megabytes(need), megabytes(free)),
        None if need > 0 => format!(": at least {} needed", megabytes(need)),
        None => String::new(),
    }
}

/// Writes a size as people read it: `63 MB`.
pub fn megabytes(bytes: u64) -> String {
    match bytes {
        0..=999 => format!("{bytes} B"),
        1_000..=999_499 => format!("{} kB", (bytes + 500) / 1_000),
        999_500..=9_999_499_999 => format!("{} MB", (bytes + 500_000) / 1_000_000),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// True if `error` or one of its causes is a full disk or an exhausted quota.
pub(crate) fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(
                io.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table = [
            (0, "0 B"),
            (999, "999 B"),
            (1_500, "2 kB"),
            (999_499, "999 kB"),
            (999_500, "1 MB"),
            (63_000_000, "63 MB"),
            (10_000_000_000, "10.0 GB"),
        ];
        for (bytes, text) in table {
            assert_eq!(megabytes(bytes), text);
        }
    }

    #[test]
    fn full_disks_are_found_in_the_chain() {
        let inner = io::Error::from(io::ErrorKind::StorageFull);
        let outer = StoreError::io("write", Path::new("/x"))(inner);
        assert!(is_full(&outer));
        assert!(!is_full(&StoreError::NoHome));
    }
}
