//! The first block of an erofs image: nothing for boot loaders, then the superblock, then what the
//! kernel must know of the compressor.

use super::{BLOCK, BLOCK_BITS};
use crate::compress::Compression;

/// Where the superblock lies in its block.
const AT: usize = 1024;
const SIZE: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;

/// The superblock has a checksum.
const COMPAT_CHECKSUM: u32 = 0x1;
/// Compressed data ends where its blocks end.
const LEADING_ZEROES: u32 = 0x1;
/// Clusters of several blocks, and the compressor's configuration behind the superblock.
const LARGE_CLUSTERS: u32 = 0x2;
/// Files that are parts of the packed inode, and clusters that several files share.
const SHARED_CLUSTERS: u32 = 0x20;

/// The numbers of erofs's compressors.
const LZ4: u8 = 0;
const ZSTD: u8 = 3;

/// What the superblock says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Superblock {
    pub(super) compression: Compression,
    /// Bytes of file content in each cluster.
    pub(super) cluster: u32,
    pub(super) root: u16,
    pub(super) packed: u64,
    pub(super) inodes: u64,
    pub(super) mtime: u32,
    pub(super) blocks: u32,
    /// The block from which inodes are counted.
    pub(super) metadata: u32,
    /// Whether clusters are used by more than one file.
    pub(super) is_shared: bool,
}

/// The number of a compressor that erofs has as well; what is stored as it is belongs to lz4's.
pub(super) fn algorithm(compression: Compression) -> Option<u8> {
    match compression {
        Compression::Zstd { .. } => Some(ZSTD),
        Compression::Lz4 | Compression::None => Some(LZ4),
        Compression::Gzip { .. } | Compression::Xz { .. } => None,
    }
}

impl Superblock {
    /// The whole first block.
    pub(super) fn encode(&self) -> Vec<u8> {
        let shared = if self.is_shared { SHARED_CLUSTERS } else { 0 };
        let algorithm = algorithm(self.compression).unwrap_or(LZ4); // `Writer::new` made sure
        let mut block = vec![0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| {
            block[AT + at..][..bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &COMPAT_CHECKSUM.to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &self.root.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(24, &u64::from(self.mtime).to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.metadata.to_le_bytes());
        put(
            80,
            &(LEADING_ZEROES | LARGE_CLUSTERS | shared).to_le_bytes(),
        );
        put(84, &(1u16 << algorithm).to_le_bytes());
        put(96, &self.packed.to_le_bytes());
        let configuration = self.configuration();
        put(SIZE, &(configuration.len() as u16).to_le_bytes()); // at most 14
        put(SIZE + 2, &configuration);
        let sum = crc32c(&block[AT..]);
        block[AT + 4..][..4].copy_from_slice(&sum.to_le_bytes());
        block
    }

    fn configuration(&self) -> Vec<u8> {
        match self.compression {
            // Format 0, and the window's logarithm less 10.
            Compression::Zstd { .. } => {
                let log = self.cluster.trailing_zeros() as u8; // 12 to 20
                vec![0, log - 10, 0, 0, 0, 0]
            }
            // How far back matches reach, and blocks of a cluster.
            _ => {
                let mut bytes = u16::MAX.to_le_bytes().to_vec();
                let blocks = (self.cluster >> BLOCK_BITS) as u16; // at most 256
                bytes.extend_from_slice(&blocks.to_le_bytes());
                bytes.resize(14, 0);
                bytes
            }
        }
    }
}

/// CRC-32C without its last inversion; 3 KB once for each image need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
