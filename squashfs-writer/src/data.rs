//! File contents: cut into blocks, holes left out, tail ends packed into fragments, appended in
//! order.
//!
//! The blocks of one file lie next to each other: a fragment block goes out only between files.

use super::pool::{Block, Pool};
use super::{Error, Options};
use std::io::{self, BufWriter, Write};

/// Names contents written through one [`super::Writer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DataId(pub(super) u32);

/// Where a fragment block lies and its size word.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fragment {
    pub(super) start: u64,
    pub(super) size: u32,
}

/// A file's tail end: which fragment block, and where in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    pub(super) fragment: u32,
    pub(super) offset: u32,
}

/// Where the contents of one file lie.
#[derive(Debug, Clone, Default)]
pub(super) struct FileData {
    pub(super) start: Option<u64>,
    pub(super) size: u64,
    /// Bytes in blocks that are holes.
    pub(super) sparse: u64,
    /// Size words; 0 is a hole.
    pub(super) blocks: Vec<u32>,
    pub(super) tail: Option<Tail>,
}

enum Purpose {
    Data { file: usize, block: usize },
    Fragment(usize),
}

/// Appends blocks to the output.
pub(super) struct DataWriter<W: Write> {
    out: BufWriter<W>,
    position: u64,
    /// Set while a block is on its way to the output, so that none is ever lost unnoticed.
    is_broken: bool,
    pool: Pool<Purpose>,
    block_size: usize,
    pack_tails: bool,
    files: Vec<FileData>,
    fragments: Vec<Fragment>,
    /// The fragment block that is being filled.
    fragment: Vec<u8>,
    /// The block of the current file that is being filled.
    block: Vec<u8>,
}

/// All blocks of an image, and the output they were written to.
pub(super) struct Finished<W: Write> {
    pub(super) out: BufWriter<W>,
    pub(super) position: u64,
    pub(super) files: Vec<FileData>,
    pub(super) fragments: Vec<Fragment>,
}

impl<W: Write> DataWriter<W> {
    pub(super) fn new(out: BufWriter<W>, position: u64, options: &Options) -> Result<Self, Error> {
        Ok(Self {
            out,
            position,
            is_broken: false,
            pool: Pool::new(options.compression, options.threads)?,
            block_size: options.block_size as usize,
            pack_tails: options.pack_tails,
            files: Vec::new(),
            fragments: Vec::new(),
            fragment: Vec::new(),
            block: Vec::new(),
        })
    }

    pub(super) fn start_file(&mut self) -> FileWriter<'_, W> {
        self.block.clear();
        self.files.push(FileData::default());
        FileWriter { data: self }
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = self.block_size - self.block.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == self.block_size {
                self.end_block()?;
            }
        }
        Ok(())
    }

    fn append_hole(&mut self, mut length: u64) -> Result<(), Error> {
        while length > 0 {
            let room = (self.block_size - self.block.len()) as u64;
            if self.block.is_empty() && length >= room {
                self.push_block(0);
                self.current().size += room;
                self.current().sparse += room;
                length -= room;
            } else {
                let now = length.min(room);
                // At most one block.
                self.block.resize(self.block.len() + now as usize, 0);
                length -= now;
                if self.block.len() == self.block_size {
                    self.end_block()?;
                }
            }
        }
        Ok(())
    }

    /// The file being written: `start_file` is the only way here.
    fn current(&mut self) -> &mut FileData {
        let last = self.files.len() - 1;
        &mut self.files[last]
    }

    fn push_block(&mut self, word: u32) -> usize {
        let blocks = &mut self.current().blocks;
        blocks.push(word);
        blocks.len() - 1
    }

    /// Ends a block of the current file, full or not.
    fn end_block(&mut self) -> Result<(), Error> {
        let length = self.block.len() as u64;
        let is_hole = is_zero(&self.block);
        let block = self.push_block(0);
        let file = self.files.len() - 1;
        self.current().size += length;
        if is_hole {
            self.current().sparse += length;
            self.block.clear();
            return Ok(());
        }
        let raw = self.take_block();
        self.submit(raw, Purpose::Data { file, block })
    }

    fn take_block(&mut self) -> Vec<u8> {
        let mut next = self.pool.buffer();
        next.reserve(self.block_size);
        std::mem::replace(&mut self.block, next)
    }

    fn end_file(&mut self) -> Result<DataId, Error> {
        let too_many = Error::TooMany {
            what: "files",
            limit: u32::MAX.into(),
        };
        let id = u32::try_from(self.files.len() - 1).map_err(|_| too_many)?;
        if !self.block.is_empty() {
            if self.current().blocks.is_empty() || self.pack_tails {
                self.pack_tail()?;
            } else {
                self.end_block()?;
            }
        }
        Ok(DataId(id))
    }

    fn pack_tail(&mut self) -> Result<(), Error> {
        if self.fragment.len() + self.block.len() > self.block_size {
            self.end_fragment()?;
        }
        // The index of the fragment being filled; its own entry comes when it is full.
        let too_many = Error::TooMany {
            what: "fragments",
            limit: u32::MAX.into(),
        };
        let fragment = u32::try_from(self.fragments.len()).map_err(|_| too_many)?;
        let tail = Tail {
            fragment,
            offset: self.fragment.len() as u32,
        };
        self.fragment.extend_from_slice(&self.block);
        let length = self.block.len() as u64;
        self.block.clear();
        let file = self.current();
        file.size += length;
        file.tail = Some(tail);
        Ok(())
    }

    fn end_fragment(&mut self) -> Result<(), Error> {
        let next = self.pool.buffer();
        let raw = std::mem::replace(&mut self.fragment, next);
        self.fragments.push(Fragment::default());
        self.submit(raw, Purpose::Fragment(self.fragments.len() - 1))
    }

    fn submit(&mut self, raw: Vec<u8>, purpose: Purpose) -> Result<(), Error> {
        while self.pool.is_full() {
            self.store_next()?;
        }
        self.pool.submit(raw, purpose)
    }

    /// Appends the oldest compressed block; `false` if there is none.
    fn store_next(&mut self) -> Result<bool, Error> {
        self.is_broken = true;
        let next = self.pool.next()?;
        if let Some((purpose, block)) = &next {
            self.store(purpose, block)?;
        }
        self.is_broken = false;
        let Some((_, block)) = next else {
            return Ok(false);
        };
        self.pool.recycle(block);
        Ok(true)
    }

    fn store(&mut self, purpose: &Purpose, block: &Block) -> Result<(), Error> {
        self.out
            .write_all(block.bytes())
            .map_err(|source| Error::Write { source })?;
        match *purpose {
            Purpose::Data { file, block: index } => {
                let file = &mut self.files[file];
                file.start.get_or_insert(self.position);
                file.blocks[index] = block.size_word();
            }
            Purpose::Fragment(index) => {
                self.fragments[index] = Fragment {
                    start: self.position,
                    size: block.size_word(),
                };
            }
        }
        self.position += block.bytes().len() as u64;
        Ok(())
    }

    /// Appends everything that is still under way.
    pub(super) fn finish(mut self) -> Result<Finished<W>, Error> {
        if !self.fragment.is_empty() {
            self.end_fragment()?;
        }
        if self.is_broken {
            let source = io::Error::other("an earlier block could not be written");
            return Err(Error::Write { source });
        }
        while self.store_next()? {}
        Ok(Finished {
            out: self.out,
            position: self.position,
            files: self.files,
            fragments: self.fragments,
        })
    }

    /// Leaves a gap, which the format allows between files.
    #[cfg(test)]
    pub(super) fn leave_gap(&mut self, bytes: u64) -> Result<(), Error>
    where
        W: io::Seek,
    {
        while self.store_next()? {}
        self.position += bytes;
        let target = io::SeekFrom::Start(self.position);
        io::Seek::seek(&mut self.out, target).map_err(|source| Error::Write { source })?;
        Ok(())
    }
}

/// The contents of one file, on their way into the image.
///
/// Dropping it without [`FileWriter::finish`] leaves dead bytes in the image but does no harm.
pub struct FileWriter<'a, W: Write> {
    data: &'a mut DataWriter<W>,
}

impl<W: Write> FileWriter<'_, W> {
    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.data.append(bytes)
    }

    /// Appends `length` zero bytes; whole blocks of them take no space and no time.
    pub fn append_hole(&mut self, length: u64) -> Result<(), Error> {
        self.data.append_hole(length)
    }

    /// Ends the file and names its contents.
    pub fn finish(self) -> Result<DataId, Error> {
        self.data.end_file()
    }
}

impl<W: Write> Write for FileWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.append(bytes) {
            Ok(()) => Ok(bytes.len()),
            // The kind survives, so that a full disk is still known as one.
            Err(Error::Write { source }) => Err(source),
            Err(e) => Err(io::Error::other(e)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Looks at pieces, so that the compiler can use wide instructions and data ends it early.
fn is_zero(block: &[u8]) -> bool {
    block
        .chunks(256)
        .all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}
