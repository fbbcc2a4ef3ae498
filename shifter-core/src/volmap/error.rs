//! Why a volume map is refused, in words that name the entry and the way out.

use std::fmt;

use thiserror::Error;

use crate::sanitize::text as safe;

/// Says which map, entry or target was refused, and why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VolumeError {
    /// All maps together are too long.
    #[error("the volume map is longer than {limit} bytes")]
    MapTooLong {
        /// Bytes a map may have.
        limit: usize,
    },
    /// There are too many entries.
    #[error("the volume map has more than {limit} entries")]
    TooManyEntries {
        /// Entries a map may have.
        limit: usize,
    },
    /// There are too many per-node caches.
    #[error("the volume map has more than {limit} per-node caches")]
    TooManyCaches {
        /// Per-node caches a map may have.
        limit: usize,
    },
    /// Two entries of a user's map have the same target.
    #[error("two volumes have the target '{}'", safe(.path))]
    TargetTwice {
        /// The target.
        path: String,
    },
    /// One entry is not well-formed or not allowed.
    #[error("volume '{}': {fault}", safe(.entry))]
    Entry {
        /// The entry as it came.
        entry: String,
        /// What is wrong with it.
        fault: EntryFault,
    },
    /// A path that was resolved inside an image is no place for a user's volume.
    #[error("cannot place a volume at '{}': {fault}", safe(.path))]
    Target {
        /// The resolved path.
        path: String,
        /// What is wrong with it.
        fault: EntryFault,
    },
}

impl VolumeError {
    /// True if it cannot be understood; false if it is, and is not allowed.
    pub fn is_malformed(&self) -> bool {
        match self {
            Self::Entry { fault, .. } | Self::Target { fault, .. } => fault.is_malformed(),
            Self::MapTooLong { .. }
            | Self::TooManyEntries { .. }
            | Self::TooManyCaches { .. }
            | Self::TargetTwice { .. } => false,
        }
    }

    /// Returns the way out, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Entry { fault, .. } | Self::Target { fault, .. } => fault.hint(),
            Self::TargetTwice { .. } => Some("give each volume a target of its own".into()),
            Self::TooManyEntries { .. } => {
                Some("one volume of a common parent directory shows all that is in it".into())
            }
            Self::MapTooLong { .. } | Self::TooManyCaches { .. } => None,
        }
    }
}

/// Which side of an entry a path stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The source, before the first colon.
    From,
    /// The target, after it.
    To,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::From => "source",
            Side::To => "target",
        })
    }
}

/// Says what is wrong with an absolute path.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PathFault {
    /// There is no text.
    #[error("it is empty")]
    Empty,
    /// It does not start with a slash.
    #[error("it is not absolute")]
    Relative,
    /// A component is `..`.
    #[error("it contains '..'")]
    Parent,
    /// A character is not accepted in paths here.
    #[error("character {position} is '{}', which is not accepted", .found.escape_debug())]
    Character {
        /// The character.
        found: char,
        /// Its place, counted in characters from 1.
        position: usize,
    },
    /// A component is longer than any file system accepts.
    #[error("a name in it is longer than {limit} bytes")]
    LongName {
        /// Bytes a name may have.
        limit: usize,
    },
    /// It is longer than the kernel accepts.
    #[error("it is longer than {limit} bytes")]
    TooLong {
        /// Bytes a path may have.
        limit: usize,
    },
}

/// Says what is wrong with one entry.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EntryFault {
    /// There is a source only, and its origin must name a target.
    #[error("it names no target")]
    NoTarget {
        /// The source.
        from: String,
    },
    /// One of the two paths is not accepted.
    #[error("{side} '{}': {fault}", safe(.path))]
    Path {
        /// Which of the two.
        side: Side,
        /// The path as it came.
        path: String,
        /// What is wrong with it.
        fault: PathFault,
    },
    /// The target is a directory that Shifter itself fills.
    #[error("target '{}' is reserved", safe(.path))]
    TargetReserved {
        /// The target.
        path: String,
    },
    /// The target lies in a directory in which users may place nothing.
    #[error("target '{}' is at or below '{below}', where users cannot place volumes", safe(.path))]
    TargetBelow {
        /// The target.
        path: String,
        /// The directory.
        below: &'static str,
    },
    /// No such flag exists.
    #[error("flag '{}' is not known", safe(.flag))]
    UnknownFlag {
        /// The flag as it came.
        flag: String,
    },
    /// The flag is for sites only.
    #[error("flag '{flag}' is reserved for the site")]
    FlagReserved {
        /// The flag.
        flag: &'static str,
    },
    /// A flag is given twice.
    #[error("flag '{flag}' is given twice")]
    FlagTwice {
        /// The flag.
        flag: &'static str,
    },
    /// A flag has a value and takes none.
    #[error("flag '{flag}' takes no value")]
    FlagValue {
        /// The flag.
        flag: &'static str,
    },
    /// Two kinds of propagation are asked for at once.
    #[error("flags 'slave' and 'private' exclude each other")]
    SlaveAndPrivate,
    /// A per-node cache has no size.
    #[error("perNodeCache needs a size")]
    CacheWithoutSize,
    /// No such key of a per-node cache exists.
    #[error("perNodeCache has no key '{}'", safe(.key))]
    CacheKey {
        /// The key as it came.
        key: String,
    },
    /// A key of a per-node cache is given twice.
    #[error("key '{key}' of perNodeCache is given twice")]
    CacheKeyTwice {
        /// The key.
        key: &'static str,
    },
    /// The value of a key of a per-node cache is not accepted.
    #[error("{key} '{}' of perNodeCache is {rule}", safe(.value))]
    CacheValue {
        /// The key.
        key: &'static str,
        /// The value as it came.
        value: String,
        /// What is wrong with it.
        rule: &'static str,
    },
}

impl EntryFault {
    fn is_malformed(&self) -> bool {
        match self {
            Self::TargetReserved { .. } | Self::TargetBelow { .. } | Self::FlagReserved { .. } => {
                false
            }
            Self::NoTarget { .. }
            | Self::Path { .. }
            | Self::UnknownFlag { .. }
            | Self::FlagTwice { .. }
            | Self::FlagValue { .. }
            | Self::SlaveAndPrivate
            | Self::CacheWithoutSize
            | Self::CacheKey { .. }
            | Self::CacheKeyTwice { .. }
            | Self::CacheValue { .. } => true,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoTarget { from } => {
                let from = safe(from);
                return Some(format!(
                    "write '{from}:/mnt' to see it at /mnt in the container"
                ));
            }
            Self::Path {
                fault: PathFault::Relative,
                ..
            } => "a volume is FROM:TO[:flag], both paths starting with '/'",
            Self::Path {
                fault: PathFault::Parent,
                ..
            } => "write the path without '..'",
            Self::TargetReserved { .. } | Self::TargetBelow { .. } => {
                "choose another target, such as '/mnt' or '/data'"
            }
            Self::UnknownFlag { flag } if flag.eq_ignore_ascii_case("rw") => {
                "leave it out: a volume is writable unless it has the flag 'ro'"
            }
            Self::UnknownFlag { .. } | Self::FlagReserved { .. } => {
                "users' flags are 'ro' and 'perNodeCache=size=…'"
            }
            Self::CacheWithoutSize | Self::CacheKey { .. } => {
                "write 'perNodeCache=size=100g', with ',bs=1m' or ',fs=xfs' as needed"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
