//! The records of inodes: 64 bytes, extended attributes, and what finds the content.
//!
//! ```text
//! inode        u16 form and layout, u16 size of attributes, u16 mode, u16 0, u64 size,
//!              u32 blocks, address or device, u32 number, u32 uid, u32 gid, u64 mtime, u32 0, u32 links
//! attributes   12 bytes of header, then u8 name size, u8 prefix, u16 value size, name, value; each
//!              at a multiple of 4
//! tail         of a directory or the target of a link: within one block
//! clusters     16 bytes of header, then 8 for each 4 KiB of a compressed file's content
//! ```

use super::{BLOCK, BLOCK_BITS};
use crate::Error;
use crate::attributes::{Attributes, Xattr, split_name};
use crate::tree::Content;

pub(super) const SIZE: u64 = 64;
/// Positions of inodes are multiples of this, and their numbers count it.
pub(super) const SLOT: u64 = 32;

/// The long form of the record.
const EXTENDED: u16 = 1;
const COMPRESSED_BLOCKS: u16 = 0x2;
const WHOLE_FILE_IN_PACKED: u64 = 1 << 63;

const PLAIN: u16 = 0;
const HEAD: u16 = 1;
const FOLLOWING: u16 = 2;
/// Marks, in the first one that follows a head, the cluster's blocks.
const COUNT: u16 = 1 << 11;

/// Where an inode's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In blocks of its own from this one on, or nowhere.
    Plain(u32),
    /// The last, partial block behind the inode, the others from this one on.
    Inline(u32),
    /// In clusters, which take this many blocks.
    Clusters(u32),
    /// No content, but a device.
    Device(u32),
}

/// All that a record says.
pub(super) struct Record<'a> {
    pub(super) layout: Layout,
    pub(super) kind: u16,
    pub(super) size: u64,
    pub(super) number: u32,
    pub(super) links: u32,
    pub(super) attributes: &'a Attributes,
    pub(super) mtime: u32,
}

/// The type in modes, and the one in directories.
pub(super) fn kind_numbers(content: Content<'_>) -> (u16, u8) {
    match content {
        Content::File(_) => (0o100_000, 1),
        Content::Directory => (0o040_000, 2),
        Content::CharDevice(_) => (0o020_000, 3),
        Content::BlockDevice(_) => (0o060_000, 4),
        Content::Fifo => (0o010_000, 5),
        Content::Socket => (0o140_000, 6),
        Content::Symlink(_) => (0o120_000, 7),
    }
}

impl Record<'_> {
    /// The record and the attributes behind it.
    pub(super) fn encode(&self) -> Result<Vec<u8>, Error> {
        let xattrs = encode_xattrs(&self.attributes.xattrs)?;
        let (layout, word) = match self.layout {
            Layout::Plain(at) => (0, at),
            Layout::Clusters(blocks) => (1, blocks),
            Layout::Inline(at) => (2, at),
            Layout::Device(device) => (0, device),
        };
        let count = match xattrs.len() {
            0 => 0,
            length => (length - XATTR_HEADER) / 4 + 1,
        };
        let mut out = Vec::with_capacity(SIZE as usize + xattrs.len()); // 64
        // `encode_xattrs` made sure that the count fits.
        for half in [
            EXTENDED | layout << 1,
            count as u16,
            self.kind | self.attributes.mode,
            0,
        ] {
            out.extend_from_slice(&half.to_le_bytes());
        }
        out.extend_from_slice(&self.size.to_le_bytes());
        for word in [
            word,
            self.number,
            self.attributes.uid,
            self.attributes.gid,
            self.mtime,
            0, // high bits of the time
            0, // nanoseconds
            self.links,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.resize(SIZE as usize, 0); // 64
        out.extend_from_slice(&xattrs);
        Ok(out)
    }
}

const XATTR_HEADER: usize = 12;
/// The numbers of the name spaces.
const NAME_SPACES: [u8; 3] = [1, 4, 6];

/// Bytes that attributes take behind an inode.
pub(super) fn xattrs_size(xattrs: &[Xattr]) -> Result<u64, Error> {
    Ok(encode_xattrs(xattrs)?.len() as u64)
}

fn encode_xattrs(xattrs: &[Xattr]) -> Result<Vec<u8>, Error> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = vec![0; XATTR_HEADER];
    for (name, value) in xattrs {
        let refuse = |reason| Error::Xattr {
            name: name.escape_ascii().to_string(),
            reason,
        };
        let (space, rest) = split_name(name).map_err(refuse)?;
        let size = u16::try_from(value.len())
            .map_err(|_| refuse("values have at most 65535 bytes in an erofs image"))?;
        out.extend_from_slice(&[rest.len() as u8, NAME_SPACES[space]]); // at most 255
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
        if out.len() > XATTR_HEADER + usize::from(u16::MAX - 1) * 4 {
            return Err(refuse("the attributes of one file are too large together"));
        }
    }
    Ok(out)
}

/// Whether stored blocks are compressed, and where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cluster {
    /// Bytes of content: a multiple of 4 KiB but for a file's last one.
    pub(super) content: u64,
    /// First block.
    pub(super) block: u32,
    /// Blocks, if it is compressed; 0 if it lies there as it is.
    pub(super) compressed: u16,
    /// Whether all its blocks are that one block of zeroes.
    pub(super) is_hole: bool,
}

/// Bytes of the index of a file with clusters.
pub(super) fn index_size(size: u64) -> u64 {
    16 + size.div_ceil(BLOCK as u64) * 8
}

/// What stands before the index.
pub(super) fn index_header(algorithm: u8) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..6].copy_from_slice(&COMPRESSED_BLOCKS.to_le_bytes());
    header[6] = algorithm;
    header
}

/// What stands in the place of an index of a file that is a part of the packed inode.
pub(super) fn packed_header(offset: u64) -> [u8; 8] {
    (offset | WHOLE_FILE_IN_PACKED).to_le_bytes()
}

/// Appends the index of one cluster.
pub(super) fn put_cluster(out: &mut Vec<u8>, cluster: Cluster) {
    let pieces = cluster.content.div_ceil(1 << BLOCK_BITS) as u16; // at most 256
    for piece in 0..pieces {
        let (form, word) = if cluster.compressed == 0 {
            let step = if cluster.is_hole { 0 } else { u32::from(piece) };
            (PLAIN, (cluster.block + step).to_le_bytes())
        } else if piece == 0 {
            (HEAD, cluster.block.to_le_bytes())
        } else {
            let back = match piece {
                1 => COUNT | cluster.compressed,
                _ => piece,
            };
            let (back, on) = (back.to_le_bytes(), (pieces - piece).to_le_bytes());
            (FOLLOWING, [back[0], back[1], on[0], on[1]])
        };
        out.extend_from_slice(&form.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(cluster: Cluster) -> Vec<(u16, [u16; 2])> {
        let mut out = Vec::new();
        put_cluster(&mut out, cluster);
        let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
        let word = |w: &[u8]| (half(w), [half(&w[4..]), half(&w[6..])]);
        out.chunks(8).map(word).collect()
    }

    #[test]
    fn the_index_of_a_cluster_says_its_blocks_and_its_neighbours() {
        let cluster = Cluster {
            content: 3 * 4096 + 1,
            block: 7,
            compressed: 2,
            is_hole: false,
        };
        assert_eq!(
            words(cluster),
            [
                (HEAD, [7, 0]),
                (FOLLOWING, [COUNT | 2, 3]),
                (FOLLOWING, [2, 2]),
                (FOLLOWING, [3, 1]),
            ]
        );
        let plain = Cluster {
            content: 4097,
            compressed: 0,
            ..cluster
        };
        assert_eq!(words(plain), [(PLAIN, [7, 0]), (PLAIN, [8, 0])]);
        let hole = Cluster {
            is_hole: true,
            ..plain
        };
        assert_eq!(words(hole), [(PLAIN, [7, 0]), (PLAIN, [7, 0])]);
    }

    #[test]
    fn attributes_are_aligned_and_refused_as_squashfs_does() {
        let pair = |name: &[u8], size| vec![(name.to_vec(), vec![1; size])];
        assert_eq!(xattrs_size(&[]).unwrap(), 0);
        assert_eq!(xattrs_size(&pair(b"user.a", 1)).unwrap(), 12 + 8);
        assert_eq!(xattrs_size(&pair(b"user.a", 4)).unwrap(), 12 + 12);
        for (name, size) in [
            (&b"system.posix_acl_access"[..], 1),
            (b"user.", 1),
            (b"user.x", 65536),
            (b"user.\0", 0),
        ] {
            assert!(encode_xattrs(&pair(name, size)).is_err(), "{name:?}");
        }
        let large: Vec<_> = (0..5)
            .map(|n| (format!("user.{n}").into_bytes(), vec![0; 65535]))
            .collect();
        assert!(encode_xattrs(&large[..4]).is_err());
        assert!(encode_xattrs(&large[..3]).is_ok());
    }
}
