//! Writes squashfs 4.0 images, in one pass over the data; and erofs images of the same blocks
//! ([`Format::Erofs`]).
//!
//! File contents come first, in any order, through [`Writer::start_file`]; when all are in, a
//! [`Tree`] says which names, links and attributes the image has, and [`Writer::finish`] appends
//! the metadata and fills in the superblock. A file that was never finished is therefore not an
//! image at all. The same input gives the same bytes, whatever the number of threads:
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
//! # Work and memory
//!
//! The caller's thread feeds: it cuts contents into blocks, packs small files into fragment
//! blocks, and appends what comes back, in order. A pool of [`Options::threads`] compresses, each
//! with a compressor of its own. The caller waits when the pool has its fill, so memory is
//! bounded whatever comes:
//!
//! - some 4 MiB for each thread ([`Options::threads`] says of what it consists), and 1 MiB of
//!   output not yet written;
//! - some 150 bytes for each file with its name, half of them in the [`Tree`] and half in what becomes of it, and
//!   4 for each of its blocks;
//! - to find equal files, 50 bytes for each block and each small file, at most 90 MB.
//!
//! # What goes where
//!
//! Blocks are in the order in which files were given, and small files share fragment blocks with
//! those given before and after them: give together what is read together. Archives of layers
//! list directories in order, which is good enough. A block or fragment block is read and
//! decompressed as a whole. The kernel keeps very few of them (three fragment blocks, and eight
//! blocks of metadata) and what it decompressed of a file that was read; so a program that opens
//! many small files all over the image is served by smaller blocks.
//!
//! Metadata is in the order of a walk by name. Long directories have an index, so that looking up
//! a name does not read the listing from its start.
//!
//! With [`Options::share_equal`] a file whose stored blocks are those of an earlier file, or of
//! the start of one, is not stored again, nor are equal small files and tail ends. Contents are
//! equal if their BLAKE3 digests are.
//!
//! # Limits
//!
//! | what | limit | beyond it |
//! |---|---|---|
//! | names | 255 bytes, any but `/` and NUL | [`Error::Name`] |
//! | targets of symbolic links | 4095 bytes | [`Error::Inode`] |
//! | different owners and groups together | 65535, of any 32 bits | [`Error::TooMany`] |
//! | inodes, files | 2^32 - 3 | [`Error::TooMany`] |
//! | metadata | 4 GiB compressed for each table | [`Error::TooMany`] |
//! | names of one directory | 4 GiB | [`Error::TooMany`] |
//! | device numbers | major 4095, minor 1048575 | [`Error::Inode`] |
//! | extended attributes | `user.`, `trusted.`, `security.`; names 255 bytes, values 64 KiB | [`Error::Xattr`] |
//! | times | whole seconds from 1970 to 2106 | see [`clamp_time`] |
//! | size of files and of the image | 2^64 | |
//!
//! Attributes of POSIX ACLs have no place in the format.
//!
//! In erofs the attributes of one inode have 256 KiB together, and values one byte less than 64 KiB; the
//! image has 16 TiB, and a file at most 64 GiB of holes. It has zstd, lz4 or no compression, and neither
//! [`Options::pack_tails`] nor [`Options::export`]. Each block takes a multiple of 4 KiB, and metadata
//! is not compressed.
//!
//! # Layout
//!
//! Of squashfs; erofs's is in its module. All integers are little endian:
//!
//! ```text
//! superblock (96 bytes)     written as zeroes, patched last
//! compressor options        one uncompressed metadata block, if the compressor has any
//! data and fragment blocks  each compressed on its own, in the order in which they came
//! inode table               metadata blocks: u16 size (bit 15: stored raw), <= 8 KiB of records
//! directory table           metadata blocks
//! fragment table            metadata blocks, then their positions as u64
//! export table              the same, if asked for: u64 reference of each inode, by number
//! id table                  the same: u32 ids
//! xattr table               pairs and ids as metadata blocks, then a header with positions
//! padding to 4 KiB
//! ```

#![forbid(unsafe_code)]

mod appender;
mod attributes;
mod compress;
mod data;
mod directory;
mod duplicates;
mod erofs;
mod inode;
mod metadata;
mod names;
mod pool;
mod superblock;
mod tables;
mod tree;
mod writer;
mod xattr;

#[cfg(test)]
mod tests;

pub use attributes::{AttributeTable, Attributes, Shared, Xattr, clamp_time};
pub use compress::Compression;
pub use data::{DataId, FileWriter};
pub use tree::{InodeId, Kind, Tree};
pub use writer::{Summary, Writer};

use std::io;

/// Smallest block size that squashfs knows.
pub const MIN_BLOCK_SIZE: u32 = 4096;
/// Largest block size that squashfs knows.
pub const MAX_BLOCK_SIZE: u32 = 1 << 20;

/// File system of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Squashfs 4.0: every kernel, every tool.
    #[default]
    Squashfs,
    /// Erofs as Linux 6.1 reads it, with zstd from 6.10 on; compressed by zstd, lz4 or not at all.
    Erofs,
}

impl Format {
    /// Whether images of this format can be compressed so.
    pub fn has(self, compression: Compression) -> bool {
        self == Self::Squashfs || erofs::has(compression)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "squashfs" => Ok(Self::Squashfs),
            "erofs" => Ok(Self::Erofs),
            _ => Err(Error::Options {
                option: "format",
                reason: "must be squashfs or erofs",
            }),
        }
    }
}

/// How an image is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// File system.
    pub format: Format,
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
            format: Format::default(),
            compression: Compression::default(),
            block_size: 64 * 1024,
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
    #[error("cannot write the image")]
    Write {
        /// What the operating system answered.
        source: io::Error,
    },
    /// A compressor failed or its thread died.
    #[error("cannot compress a block of the image")]
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
    #[error("the image does not fit into its format: more than {limit} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The format's limit.
        limit: u64,
    },
}
