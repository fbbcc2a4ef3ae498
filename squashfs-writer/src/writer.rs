//! The writer itself: superblock first as zeroes, then data, then all metadata, then the
//! superblock again.

use super::appender::Appender;
use super::data::{DataWriter, FileWriter, Finished};
use super::metadata::Table;
use super::superblock::{self, Superblock};
use super::tables::Tables;
use super::tree::Tree;
use super::{Compression, Error, Format, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, Options, erofs};
use std::io::{Read, Seek, Write};

/// The kernel reads whole device blocks; 4 KiB suits every device.
const PADDING: u64 = 4096;

/// What an image became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Inodes in the image, the root included.
    pub inodes: u32,
    /// Size of the image, padding included.
    pub bytes: u64,
}

/// Writes one image; see the [crate](crate) for an example.
pub struct Writer<W: Read + Write + Seek> {
    data: DataWriter<W>,
    options: Options,
}

impl<W: Read + Write + Seek> Writer<W> {
    /// Starts an image at the start of `out`, which should be empty. It must be open for reading
    /// as well: parts of it are read again where a file begins like an earlier one.
    pub fn new(out: W, options: &Options) -> Result<Self, Error> {
        let size = options.block_size;
        if !size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&size) {
            let reason = "must be a power of two from 4 KiB to 1 MiB";
            return Err(Error::Options {
                option: "block_size",
                reason,
            });
        }
        options.compression.check()?;
        let mut out = Appender::new(out)?;
        match options.format {
            Format::Squashfs => {
                out.append(&[0; superblock::SIZE])?;
                if let Some(block) = options.compression.options() {
                    out.append(&(0x8000 | block.len() as u16).to_le_bytes())?; // at most 8
                    out.append(&block)?;
                }
            }
            Format::Erofs => {
                erofs::check(options)?;
                out.append(&[0; erofs::BLOCK])?;
            }
        }
        let data = DataWriter::new(out, options)?;
        Ok(Self {
            data,
            options: options.clone(),
        })
    }

    /// Starts the contents of a regular file.
    pub fn start_file(&mut self) -> FileWriter<'_, W> {
        self.data.start_file()
    }

    /// Gives back the memory in which equal files are found. What is still written is not shared with what was.
    pub fn end_sharing(&mut self) {
        self.data.end_sharing();
    }

    /// Appends the metadata of `tree` and completes the image. The output is flushed, but not
    /// synchronised with the disk.
    pub fn finish(self, tree: &Tree) -> Result<(W, Summary), Error> {
        let finished = self.data.finish()?;
        if self.options.format == Format::Erofs {
            return erofs::finish(finished, tree, &self.options);
        }
        let Finished {
            mut out,
            files,
            fragments,
        } = finished;
        let compression = self.options.compression;
        let tables = Tables::new(tree, &files, compression)?.build(self.options.export)?;

        let mut records = Vec::with_capacity(fragments.len() * 16);
        for fragment in &fragments {
            records.extend_from_slice(&fragment.start.to_le_bytes());
            records.extend_from_slice(&fragment.size.to_le_bytes());
            records.extend_from_slice(&[0; 4]);
        }
        let inode_table = out.append(&tables.inodes)?;
        let directory_table = out.append(&tables.directories)?;
        let fragment_table = match fragments.len() {
            0 => superblock::ABSENT,
            _ => append_table(&mut out, &Table::new(&records, compression)?, &[])?,
        };
        let export_table = match self.options.export {
            false => superblock::ABSENT,
            true => append_table(&mut out, &Table::new(&tables.numbered, compression)?, &[])?,
        };
        let ids: Vec<u8> = tables.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let id_table = append_table(&mut out, &Table::new(&ids, compression)?, &[])?;
        let xattr_table = match tables.xattrs.finish(compression)? {
            None => superblock::ABSENT,
            Some(xattrs) => {
                let mut head = out.append(&xattrs.pairs)?.to_le_bytes().to_vec();
                head.extend_from_slice(&xattrs.count.to_le_bytes());
                head.extend_from_slice(&[0; 4]);
                append_table(&mut out, &xattrs.ids, &head)?
            }
        };
        let bytes_used = out.position();
        let padding = bytes_used.next_multiple_of(PADDING) - bytes_used;
        out.append(&vec![0; padding as usize])?; // less than 4096

        let block = Superblock {
            inodes: tables.count,
            mtime: self.options.mtime.unwrap_or(tables.newest),
            block_size: self.options.block_size,
            fragments: fragments.len() as u32, // counted in 32 bits as they came
            compressor: compression.id(),
            has_options: compression.options().is_some(),
            is_raw: compression == Compression::None,
            packs_tails: self.options.pack_tails,
            shares_equal: self.options.share_equal,
            ids: tables.ids.len() as u16, // at most 65535
            root: tables.root.reference(),
            bytes_used,
            id_table,
            xattr_table,
            inode_table,
            directory_table,
            fragment_table,
            export_table,
        };
        let bytes = out.position();
        let file = out.complete(&block.encode())?;
        Ok((
            file,
            Summary {
                inodes: tables.count,
                bytes,
            },
        ))
    }

    #[cfg(test)]
    pub(super) fn leave_gap(&mut self, bytes: u64) -> Result<(), Error> {
        self.data.leave_gap(bytes)
    }
}

/// Appends a table's blocks, then `head` and the blocks' positions; returns where `head` is.
fn append_table<W: Read + Write + Seek>(
    out: &mut Appender<W>,
    table: &Table,
    head: &[u8],
) -> Result<u64, Error> {
    let first = out.append(&table.stored)?;
    let mut index = head.to_vec();
    for start in &table.starts {
        index.extend_from_slice(&(first + start).to_le_bytes());
    }
    out.append(&index)
}
