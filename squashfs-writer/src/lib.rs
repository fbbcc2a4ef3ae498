//! Writes squashfs 4.0 images, in one pass over the data.
//!
//! File contents come first, in any order, through [`Writer::start_file`]; when all are in, a
//! [`Tree`] says which names, links and attributes the image has, and [`Writer::finish`] appends
//! the metadata and fills in the superblock. A file that was never finished is therefore not a
//! squashfs image at all. The same input gives the same bytes, whatever the number of threads:
//! no clock and no randomness is used.
//!
//! This crate never reads a tree from disk, never needs privilege and never interprets names
//! beyond refusing those that the kernel could not show.
//!
//! ```
//! use squashfs_writer::{Attributes, Kind, Options, Tree, Writer};
//! use std::io::Write;
//!
//! let mut writer = Writer::new(std::io::Cursor::new(Vec::new()), &Options::default())?;
//! let mut file = writer.start_file();
//! file.write_all(b"hello\n")?;
//! let data = file.finish()?;
//!
//! let mut tree = Tree::new(Attributes { mode: 0o755, ..Attributes::default() })?;
//! let inode = tree.add_inode(
//!     Kind::File(data),
//!     Attributes { mode: 0o644, ..Attributes::default() },
//! )?;
//! tree.link(Tree::ROOT, b"hello.txt", inode)?;
//! let (image, summary) = writer.finish(&tree)?;
//! assert_eq!(summary.inodes, 2);
//! assert_eq!(image.into_inner().len() as u64 % 4096, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Layout, all integers little endian:
//!
//! ```text
//! superblock (96 bytes)     written as zeroes, patched last
//! compressor options        one uncompressed metadata block, if not the default
//! data and fragment blocks  each compressed on its own, in the order in which they came
//! inode table               metadata blocks: u16 size (bit 15: stored raw), <= 8 KiB of records
//! directory table           metadata blocks
//! fragment table            metadata blocks, then their positions as u64
//! id table                  metadata blocks, then their positions as u64
//! xattr table               pairs and ids as metadata blocks, then a header with positions
//! padding to 4 KiB
//! ```

#![forbid(unsafe_code)]

mod appender;
mod compress;
mod data;
mod directory;
mod duplicates;
mod inode;
mod metadata;
mod pool;
mod superblock;
mod tables;
mod tree;
mod writer;
mod xattr;

#[cfg(test)]
mod tests;

pub use compress::Compression;
pub use data::{DataId, FileWriter};
pub use tree::{Attributes, InodeId, Kind, Tree, Xattr, clamp_time};
pub use writer::{Summary, Writer};

use std::io;

/// Smallest block size that squashfs knows.
pub const MIN_BLOCK_SIZE: u32 = 4096;
/// Largest block size that squashfs knows.
pub const MAX_BLOCK_SIZE: u32 = 1 << 20;

/// How an image is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Compressor for data and metadata.
    pub compression: Compression,
    /// Bytes of file content per block: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Threads that compress; with 0 or 1 the caller's own thread does it. Each has at most 1 MiB
    /// of blocks under way (two blocks, if that is more), as much again for what becomes of them,
    /// and its compressor: in all some 4 MiB.
    pub threads: usize,
    /// Time in the superblock; `None` takes the newest time of any inode.
    pub mtime: Option<u32>,
    /// Whether the last, partial block of a file larger than one block is packed with others:
    /// a little smaller, but one seek more to read such a file to its end.
    pub pack_tails: bool,
    /// Whether files with equal contents share the space for them, at the cost of a digest of
    /// what is stored.
    pub share_equal: bool,
    /// Whether inodes can be found by their numbers, as the kernel needs for NFS exports and file
    /// handles: 8 bytes for each.
    pub export: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            block_size: 128 * 1024,
            // More compressors than this only wait for the one thread that feeds them.
            threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(16)),
            mtime: None,
            pack_tails: false,
            share_equal: true,
            export: false,
        }
    }
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option has a value outside what squashfs allows.
    #[error("squashfs option {option}: {reason}")]
    Options {
        /// Field of [`Options`].
        option: &'static str,
        /// What is allowed.
        reason: &'static str,
    },
    /// The output could not be written; the kind of `source` tells a full disk from the rest.
    #[error("cannot write the squashfs image")]
    Write {
        /// What the operating system answered.
        source: io::Error,
    },
    /// A compressor failed or its thread died.
    #[error("cannot compress a block of the squashfs image")]
    Compress {
        /// What the compressor said.
        source: io::Error,
    },
    /// A name cannot be in a directory.
    #[error("cannot store the name '{name}': {reason}")]
    Name {
        /// The name, made printable.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// An inode has attributes or content that squashfs cannot hold.
    #[error("cannot store an inode: {reason}")]
    Inode {
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// An extended attribute cannot be stored.
    #[error("cannot store the extended attribute '{name}': {reason}")]
    Xattr {
        /// Its full name, made printable.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The image as a whole needs more than the format can count.
    #[error("the image does not fit into squashfs: more than {limit} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The format's limit.
        limit: u64,
    },
}
