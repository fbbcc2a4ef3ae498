//! File contents: cut into blocks, holes left out, tail ends packed into fragments.
//!
//! The caller's thread does this and everything else but the compressing. Bytes are copied once,
//! into the block that they become part of, and once more where a small file joins others in a
//! fragment block. The blocks of one file lie next to each other: a fragment block goes out only
//! between files.

use super::appender::Appender;
use super::duplicates::{Digest, KnownTails};
use super::pool::Pool;
use super::{Error, Format, Options};
use std::io::{self, Read, Seek, Write};

/// Marks, in the size word of a block, one that is stored as it is.
pub(super) const RAW: u32 = 1 << 24;

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
#[derive(Debug, Clone)]
pub(super) struct FileData {
    pub(super) size: u64,
    /// Which of all blocks is its first.
    first: u64,
    start: u64,
    tail: Tail,
}

/// What `start` and the fragment of a tail are where there is none.
const NOWHERE: u64 = u64::MAX;
const NO_TAIL: Tail = Tail {
    fragment: u32::MAX,
    offset: 0,
};

impl FileData {
    /// Where its first block is stored, if one is.
    pub(super) fn start(&self) -> Option<u64> {
        (self.start != NOWHERE).then_some(self.start)
    }

    pub(super) fn set_start(&mut self, start: Option<u64>) {
        self.start = start.unwrap_or(NOWHERE);
    }

    pub(super) fn tail(&self) -> Option<Tail> {
        (self.tail.fragment != NO_TAIL.fragment).then_some(self.tail)
    }
}

/// All files, 32 bytes each, and 4 for each of their blocks.
pub(super) struct Files {
    list: Vec<FileData>,
    /// Size words of the blocks of all files, in their order; 0 is a hole.
    words: Vec<u32>,
    block_size: u64,
}

impl Files {
    fn start(&mut self) {
        self.list.push(FileData {
            size: 0,
            first: self.words.len() as u64,
            start: NOWHERE,
            tail: NO_TAIL,
        });
    }

    pub(super) fn get(&self, id: DataId) -> Result<&FileData, Error> {
        let reason = "the file's contents are of another image";
        let data = self.list.get(id.0 as usize);
        data.ok_or(Error::Inode { reason })
    }

    /// A file that is known to be there.
    pub(super) fn file(&mut self, index: usize) -> &mut FileData {
        &mut self.list[index]
    }

    /// Notes what a block of a file became; returns which one of the file's it is.
    pub(super) fn set_word(&mut self, file: usize, block: usize, word: u32) -> usize {
        self.words[block] = word;
        block - self.list[file].first as usize // an index of `words`
    }

    /// The size words of a file.
    pub(super) fn blocks(&self, id: DataId) -> &[u32] {
        let first = |index: usize| self.list.get(index).map(|data| data.first as usize);
        let index = id.0 as usize;
        let start = first(index).unwrap_or(self.words.len());
        &self.words[start..first(index + 1).unwrap_or(self.words.len())]
    }

    /// Bytes of a file in blocks that are holes.
    pub(super) fn sparse(&self, id: DataId) -> u64 {
        let size = self.list.get(id.0 as usize).map_or(0, |data| data.size);
        let holes = (0u64..)
            .zip(self.blocks(id))
            .filter(|(_, word)| **word == 0);
        let bytes = |(index, _): (u64, _)| self.block_size.min(size - index * self.block_size);
        holes.map(bytes).sum()
    }

    /// Whether any file has holes.
    pub(super) fn have_holes(&self) -> bool {
        self.words.contains(&0)
    }
}

enum Purpose {
    Data { file: usize, block: usize },
    Fragment(usize),
}

/// Cuts contents into blocks and sends them on their way.
pub(super) struct DataWriter<W: Read + Write + Seek> {
    out: Appender<W>,
    /// Set while a block is on its way to the output, so that none is ever lost unnoticed.
    is_broken: bool,
    pool: Pool<Purpose>,
    block_size: usize,
    pack_tails: bool,
    share_equal: bool,
    format: Format,
    files: Files,
    fragments: Vec<Fragment>,
    known: KnownTails,
    /// The fragment block that is being filled.
    fragment: Vec<u8>,
    /// The block of the current file that is being filled.
    block: Vec<u8>,
}

/// All blocks of an image, and the output they were written to.
pub(super) struct Finished<W: Read + Write + Seek> {
    pub(super) out: Appender<W>,
    pub(super) files: Files,
    pub(super) fragments: Vec<Fragment>,
}

impl<W: Read + Write + Seek> DataWriter<W> {
    pub(super) fn new(out: Appender<W>, options: &Options) -> Result<Self, Error> {
        let block_size = options.block_size as usize;
        Ok(Self {
            out,
            is_broken: false,
            pool: Pool::new(options)?,
            block_size,
            pack_tails: options.pack_tails,
            share_equal: options.share_equal,
            format: options.format,
            files: Files {
                list: Vec::new(),
                words: Vec::new(),
                block_size: options.block_size.into(),
            },
            fragments: Vec::new(),
            known: KnownTails::default(),
            fragment: Vec::new(),
            block: Vec::new(),
        })
    }

    pub(super) fn start_file(&mut self) -> FileWriter<'_, W> {
        self.block.clear();
        self.files.start();
        FileWriter { data: self }
    }

    pub(super) fn end_sharing(&mut self) {
        self.known = KnownTails::default();
        self.out.end_sharing();
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
        let last = self.files.list.len() - 1;
        self.files.file(last)
    }

    fn push_block(&mut self, word: u32) -> usize {
        self.files.words.push(word);
        self.files.words.len() - 1
    }

    /// Ends a block of the current file, full or not.
    fn end_block(&mut self) -> Result<(), Error> {
        let length = self.block.len() as u64;
        // The last one is never a hole in erofs, where holes are whole clusters.
        let may_be_hole = self.format == Format::Squashfs || self.block.len() == self.block_size;
        let is_hole = may_be_hole && is_zero(&self.block);
        let block = self.push_block(0);
        let file = self.files.list.len() - 1;
        self.current().size += length;
        if is_hole {
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
        let id = u32::try_from(self.files.list.len() - 1).map_err(|_| too_many)?;
        if !self.block.is_empty() {
            let is_small = self.current().first == self.files.words.len() as u64;
            if is_small || self.pack_tails {
                self.pack_tail()?;
            } else {
                self.end_block()?;
            }
        }
        Ok(DataId(id))
    }

    fn pack_tail(&mut self) -> Result<(), Error> {
        let length = self.block.len();
        let digest = self.share_equal.then(|| Digest::of(&self.block));
        let current = self.fragment_index()?;
        let known = digest.and_then(|digest| self.known.find(&digest, length, current));
        let tail = match known {
            Some(tail) => tail,
            None => {
                let tail = self.append_tail()?;
                if let Some(digest) = digest {
                    self.known.insert(digest, tail);
                }
                tail
            }
        };
        self.block.clear();
        let file = self.current();
        file.size += length as u64;
        file.tail = tail;
        Ok(())
    }

    /// Index of the fragment block that is being filled; its own entry comes when it is full.
    fn fragment_index(&self) -> Result<u32, Error> {
        u32::try_from(self.fragments.len()).map_err(|_| Error::TooMany {
            what: "fragments",
            limit: u32::MAX.into(),
        })
    }

    fn append_tail(&mut self) -> Result<Tail, Error> {
        if self.fragment.len() + self.block.len() > self.block_size {
            self.end_fragment()?;
        }
        let tail = Tail {
            fragment: self.fragment_index()?,
            offset: self.fragment.len() as u32,
        };
        self.fragment.extend_from_slice(&self.block);
        Ok(tail)
    }

    fn end_fragment(&mut self) -> Result<(), Error> {
        let mut next = self.pool.buffer();
        next.reserve(self.block_size);
        let mut raw = std::mem::replace(&mut self.fragment, next);
        if self.format == Format::Erofs {
            // Fragment blocks lie end to end in one inode.
            raw.resize(self.block_size, 0);
        }
        self.fragments.push(Fragment::default());
        self.submit(raw, Purpose::Fragment(self.fragments.len() - 1))
    }

    fn submit(&mut self, raw: Vec<u8>, purpose: Purpose) -> Result<(), Error> {
        while self.pool.is_full() {
            self.store_next()?;
        }
        let is_hashed = self.share_equal && matches!(purpose, Purpose::Data { .. });
        self.pool.submit(raw, is_hashed, purpose)
    }

    /// Appends the oldest compressed block; `false` if there is none.
    fn store_next(&mut self) -> Result<bool, Error> {
        self.is_broken = true;
        let next = self.pool.next()?;
        match &next {
            Some((Purpose::Data { file, block: index }, block)) => {
                self.out
                    .append_block(&mut self.files, (*file, *index), block)?;
            }
            Some((Purpose::Fragment(index), block)) => {
                self.out.end_file(&mut self.files);
                self.fragments[*index] = Fragment {
                    start: self.out.append(block.bytes())?,
                    size: block.size_word(),
                };
            }
            None => {}
        }
        self.is_broken = false;
        let Some((_, block)) = next else {
            return Ok(false);
        };
        self.pool.recycle(block);
        Ok(true)
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
        self.out.end_file(&mut self.files);
        Ok(Finished {
            out: self.out,
            files: self.files,
            fragments: self.fragments,
        })
    }

    /// Leaves a gap, which the format allows between files.
    #[cfg(test)]
    pub(super) fn leave_gap(&mut self, bytes: u64) -> Result<(), Error> {
        while self.store_next()? {}
        self.out.end_file(&mut self.files);
        self.out.leave_gap(bytes)
    }
}

/// The contents of one file, on their way into the image.
///
/// Dropping it without [`FileWriter::finish`] leaves dead bytes in the image but does no harm.
pub struct FileWriter<'a, W: Read + Write + Seek> {
    data: &'a mut DataWriter<W>,
}

impl<W: Read + Write + Seek> FileWriter<'_, W> {
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

impl<W: Read + Write + Seek> Write for FileWriter<'_, W> {
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
