//! Metadata blocks: streams of records cut into 8 KiB pieces, each compressed on its own.
//!
//! A block is stored as a u16 (size, bit 15 set if raw) and its bytes. Records may cross blocks.
//! Streams are collected in memory, because squashfs wants the inode table before the directory
//! table while both grow together.

use super::Error;
use super::compress::{Compression, Compressor};

/// Bytes of records per metadata block.
pub(super) const BLOCK: usize = 8192;
const RAW: u16 = 0x8000;

/// Where a record starts: its block, relative to the start of the table, and the offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub(super) block: u64,
    pub(super) offset: u16,
}

impl Position {
    /// The 64-bit form that the superblock and the xattr table use.
    pub(super) fn reference(self) -> u64 {
        self.block << 16 | u64::from(self.offset)
    }

    /// The position that a reference of [`Self::reference`] names.
    pub(super) fn of(reference: u64) -> Self {
        Self {
            block: reference >> 16,
            offset: reference as u16, // the lower half
        }
    }

    /// The block as the 32-bit number that inodes and directory headers have room for.
    pub(super) fn block32(self) -> Result<u32, Error> {
        u32::try_from(self.block).map_err(|_| Error::TooMany {
            what: "bytes of metadata",
            limit: u64::from(u32::MAX),
        })
    }
}

/// One stream of metadata blocks.
pub(super) struct MetadataWriter {
    compressor: Compressor,
    pending: Vec<u8>,
    scratch: Vec<u8>,
    stored: Vec<u8>,
}

impl MetadataWriter {
    pub(super) fn new(compression: Compression) -> Result<Self, Error> {
        Ok(Self {
            compressor: Compressor::new(compression, BLOCK)
                .map_err(|source| Error::Compress { source })?,
            pending: Vec::with_capacity(BLOCK),
            scratch: Vec::new(),
            stored: Vec::new(),
        })
    }

    /// Where the next byte will be.
    pub(super) fn position(&self) -> Position {
        // `pending` is flushed as soon as it is full, so the offset is always below 8192.
        Position {
            block: self.stored.len() as u64,
            offset: self.pending.len() as u16,
        }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == BLOCK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let smaller = self
            .compressor
            .compress(&self.pending, &mut self.scratch)
            .map_err(|source| Error::Compress { source })?;
        let (block, flag) = if smaller {
            (&self.scratch, 0)
        } else {
            (&self.pending, RAW)
        };
        self.stored
            .extend_from_slice(&(block.len() as u16 | flag).to_le_bytes());
        self.stored.extend_from_slice(block);
        self.pending.clear();
        Ok(())
    }

    /// Ends the stream and returns it as it goes into the image.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, Error> {
        if !self.pending.is_empty() {
            self.flush()?;
        }
        Ok(self.stored)
    }
}

/// A table of equal records: its blocks, and where each block starts relative to the first.
pub(super) struct Table {
    pub(super) stored: Vec<u8>,
    pub(super) starts: Vec<u64>,
}

impl Table {
    /// Builds a table from its records laid end to end.
    pub(super) fn new(records: &[u8], compression: Compression) -> Result<Self, Error> {
        let mut writer = MetadataWriter::new(compression)?;
        let mut starts = Vec::with_capacity(records.len().div_ceil(BLOCK));
        for block in records.chunks(BLOCK) {
            starts.push(writer.position().block);
            writer.write(block)?;
        }
        Ok(Self {
            stored: writer.finish()?,
            starts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_cross_blocks_without_gaps() {
        let mut writer = MetadataWriter::new(Compression::None).unwrap();
        writer.write(&[1; BLOCK - 1]).unwrap();
        assert_eq!(
            writer.position(),
            Position {
                block: 0,
                offset: 8191
            }
        );
        writer.write(&[2; 2]).unwrap();
        assert_eq!(
            writer.position(),
            Position {
                block: 2 + 8192,
                offset: 1
            }
        );
        assert_eq!(writer.position().reference(), (8194 << 16) | 1);
        let stored = writer.finish().unwrap();
        assert_eq!(stored.len(), 2 + 8192 + 2 + 1);
        assert_eq!(&stored[..2], &(0x8000u16 | 8192).to_le_bytes());
        assert_eq!(&stored[8194..], &[1, 0x80, 2]);
    }

    #[test]
    fn a_full_block_moves_the_position_to_the_next_one() {
        let mut writer = MetadataWriter::new(Compression::None).unwrap();
        writer.write(&[1; BLOCK]).unwrap();
        assert_eq!(
            writer.position(),
            Position {
                block: 8194,
                offset: 0
            }
        );
        assert_eq!(writer.finish().unwrap().len(), 8194);
    }

    #[test]
    fn tables_note_each_block() {
        let table = Table::new(&vec![7; 2 * BLOCK + 4], Compression::None).unwrap();
        assert_eq!(table.starts, [0, 8194, 16388]);
        assert_eq!(table.stored.len(), 16388 + 2 + 4);
        assert_eq!(Table::new(&[], Compression::None).unwrap().starts.len(), 0);
    }

    #[test]
    fn blocks_beyond_32_bits_are_refused() {
        let far = Position {
            block: 1 << 32,
            offset: 0,
        };
        assert!(matches!(far.block32(), Err(Error::TooMany { .. })));
    }
}
