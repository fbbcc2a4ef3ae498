//! Reads one layer blob: decompression, tar entries, limits, diff_id.
//!
//! [`LayerReader`] yields entries with normalised paths and raw byte names, and the contents of
//! those entries as data and holes. It never touches a file system: what an entry would do to a
//! tree is [`crate::merge`]'s business.
//!
//! The tar format is parsed here and not by the `tar` crate because that one keeps names and pax
//! records of any size in memory, does not know GNU sparse files in pax form, and leaves to each
//! caller which of several contradicting headers wins. Where archives are ambiguous this reader
//! follows the Go library that container engines use, so that one digest means one tree:
//! pax records override the header, GNU long names override both, global pax headers are ignored,
//! links and devices have no contents whatever their size field says.

mod error;
mod gzip;
mod header;
mod index;
mod path;
mod pax;
mod reader;
mod sparse;
mod stream;
mod window;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
#[path = "../tests/support/tar.rs"]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

pub use error::LayerError;
pub use index::{IndexError, Member, MemberKind, Members, is_archive};
pub use path::{PathError, normalise};
pub use reader::{Chunk, Entry, EntryKind, LayerReader};
/// Owner, permissions, time and extended attributes of an entry; times outside of what an image can hold
/// are set to the nearest, attributes are as found, whatever their name space.
pub use squashfs_writer::Attributes as Metadata;
pub use stream::{Budget, End};

/// What the layers of one image may cost, so that a hostile image cannot fill disk or memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Layers of an image.
    pub layers: usize,
    /// Uncompressed bytes of all layers; the holes of sparse files count.
    pub bytes: u64,
    /// Uncompressed bytes per byte of a blob, above [`Limits::free_bytes`].
    pub ratio: u64,
    /// Uncompressed bytes that each layer may have whatever its ratio.
    pub free_bytes: u64,
    /// Entries of all layers; twice as many files may result, because archives need not list
    /// directories.
    pub entries: u32,
    /// Bytes of all paths, link targets and extended attributes of all layers.
    pub name_bytes: u64,
    /// Bytes of a path; a path component never has more than 255.
    pub path_bytes: usize,
    /// Bytes of all extended attributes of one entry, names and values.
    pub xattr_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 512,
            bytes: 256 << 30,
            ratio: 200,
            free_bytes: 4 << 30,
            entries: 1_000_000,
            name_bytes: 512 << 20,
            path_bytes: 4095,
            xattr_bytes: 64 << 10,
        }
    }
}
