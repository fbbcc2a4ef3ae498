//! Volume maps: what users write after `--volume` and sites write under `site_mounts`.
//!
//! ```text
//! map   := entry { ";" entry }            empty entries are skipped
//! entry := FROM ":" TO { ":" flag }       a map or an entry may stand in one pair of quotes
//! flag  := "ro" | "rec" | "slave" | "private" | "perNodeCache=" key "=" value { "," key "=" value }
//! ```
//!
//! A site may leave out `TO`, which is then `FROM`; a user must give it and may use only `ro` and
//! `perNodeCache`. Parsing judges grammar and policy together, so a [`VolumeMap`] is always one
//! that its origin may ask for. Paths are compared component by component, never as strings, and
//! a character that is not accepted is an error, never dropped.
//!
//! Nothing here looks at a file system: symbolic links in the image are judged by whoever resolved
//! them, with [`judge_user_target`]. A user's map names each target once. In a site's map the
//! later of two entries for one target covers the earlier, as with mount(8).

mod error;
mod grammar;
pub(crate) mod path;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;

pub use error::{EntryFault, PathFault, Side, VolumeError};
pub use path::contains;

/// Bytes that a whole map may have.
pub const MAP_LIMIT: usize = 32 << 10;

/// Entries that a map may have.
pub const ENTRY_LIMIT: usize = 256;

/// Entries of a map that may have a per-node cache.
pub const CACHE_LIMIT: usize = 32;

/// Who asks for a volume, and so which policy judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A user, on a command line, in the environment or in a job.
    User,
    /// The site, in a configuration that only root can have written.
    Site,
}

/// The file system inside a per-node cache.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum CacheFs {
    /// XFS, the default.
    Xfs,
    /// ext4, where the site allows it.
    Ext4,
}

impl CacheFs {
    /// Returns the name as users and mkfs write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            CacheFs::Xfs => "xfs",
            CacheFs::Ext4 => "ext4",
        }
    }
}

/// A file system of the job's own on each node, in a file mounted through a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerNodeCache {
    /// Size in bytes; from 1 to `i64::MAX`. Whether that is enough for the file system is for
    /// whoever makes it to judge.
    pub size: u64,
    /// Block size in bytes with which the C Shifter wrote the file; kept in the signature.
    pub block_size: u64,
    /// The file system to make.
    pub fs: CacheFs,
}

/// How a volume is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeFlags {
    /// Read-only.
    pub ro: bool,
    /// With everything that is mounted below the source.
    pub rec: bool,
    /// Later mounts and unmounts of the host reach the container.
    pub slave: bool,
    /// Later mounts and unmounts of the host do not reach the container.
    pub private: bool,
    /// A cache on each node instead of the source's content.
    pub per_node_cache: Option<PerNodeCache>,
}

/// One volume; both paths are absolute and normalised: no `//`, no `/./`, no trailing `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The directory or file of the host.
    pub from: String,
    /// Where the container sees it.
    pub to: String,
    /// How it is mounted.
    pub flags: VolumeFlags,
}

/// Writes the canonical form, with the flags in the C Shifter's order.
impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VolumeFlags {
            ro,
            rec,
            slave,
            private,
            per_node_cache,
        } = &self.flags;
        write!(f, "{}:{}", self.from, self.to)?;
        f.write_str(if *ro { ":ro" } else { "" })?;
        f.write_str(if *rec { ":rec" } else { "" })?;
        if let Some(PerNodeCache {
            size,
            block_size,
            fs,
        }) = per_node_cache
        {
            let fs = fs.as_str();
            write!(
                f,
                ":perNodeCache=size={size},bs={block_size},method=loop,fstype={fs}"
            )?;
        }
        f.write_str(if *slave { ":slave" } else { "" })?;
        f.write_str(if *private { ":private" } else { "" })
    }
}

/// Volumes that their origin may ask for, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeMap {
    entries: Vec<Volume>,
}

impl VolumeMap {
    /// Parses one map and judges it by the policy for `origin`.
    pub fn parse(text: &str, origin: Origin) -> Result<VolumeMap, VolumeError> {
        Self::parse_many([text], origin)
    }

    /// Parses several maps, as from a repeated `--volume`, as if they were one.
    pub fn parse_many<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        origin: Origin,
    ) -> Result<VolumeMap, VolumeError> {
        let mut entries: Vec<Volume> = Vec::new();
        let (mut bytes, mut caches) = (0, 0);
        for text in texts {
            // The separator that joining would add is counted as well.
            bytes += text.len() + 1;
            if bytes > MAP_LIMIT + 1 {
                return Err(VolumeError::MapTooLong { limit: MAP_LIMIT });
            }
            for entry in grammar::split(text) {
                if entries.len() == ENTRY_LIMIT {
                    return Err(VolumeError::TooManyEntries { limit: ENTRY_LIMIT });
                }
                let volume = grammar::entry(entry, origin).map_err(|fault| VolumeError::Entry {
                    entry: entry.to_owned(),
                    fault,
                })?;
                caches += usize::from(volume.flags.per_node_cache.is_some());
                if caches > CACHE_LIMIT {
                    return Err(VolumeError::TooManyCaches { limit: CACHE_LIMIT });
                }
                entries.push(volume);
            }
        }
        if origin == Origin::User {
            let mut targets = BTreeSet::new();
            if let Some(twice) = entries.iter().find(|volume| !targets.insert(&volume.to)) {
                return Err(VolumeError::TargetTwice {
                    path: twice.to.clone(),
                });
            }
        }
        Ok(VolumeMap { entries })
    }

    /// Returns the volumes in the order in which they were given.
    pub fn entries(&self) -> &[Volume] {
        &self.entries
    }

    /// True if the map has no volume.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns one text for all maps that ask for the same: the canonical entries, sorted by
    /// bytes and joined by `;`. It parses again.
    pub fn signature(&self) -> String {
        let mut entries: Vec<String> = self.entries.iter().map(Volume::to_string).collect();
        entries.sort_unstable();
        entries.join(";")
    }
}

/// Parses a size: a whole number of bytes, or of one of the units b, k, m, g, t, p, e.
pub fn parse_size(text: &str) -> Result<u64, &'static str> {
    grammar::size(text)
}

/// Judges where a user may place a volume; for a path that was resolved inside the image, so that
/// no symbolic link of the image leads to where the user could not have pointed.
pub fn judge_user_target(path: &str) -> Result<(), VolumeError> {
    user_target(path).map(drop)
}

/// Returns a path in its normal form if a user may place a volume there.
pub fn user_target(path: &str) -> Result<String, VolumeError> {
    path::clean(path, &[])
        .map_err(|fault| EntryFault::Path {
            side: Side::To,
            path: path.to_owned(),
            fault,
        })
        .and_then(|clean| policy::judge_target(&clean, Origin::User).map(|()| clean))
        .map_err(|fault| VolumeError::Target {
            path: path.to_owned(),
            fault,
        })
}
