//! The output: appends what comes, in the order in which it comes, and leaves out a file whose
//! blocks are there already.
//!
//! Blocks of one file lie next to each other, so a file can share the blocks of another only from
//! its start on. While the blocks of a file are those of an earlier one, nothing is written. If it
//! turns out to go on differently, what was left out is copied from where the earlier file has it.

use super::Error;
use super::data::Files;
use super::duplicates::{Digest, KnownStarts};
use super::pool::Block;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

/// Large writes suit parallel file systems.
const BUFFER: usize = 1 << 20;

/// The output and how far it is.
pub(super) struct Appender<W: Read + Write + Seek> {
    out: BufWriter<W>,
    position: u64,
    known: KnownStarts,
    current: Option<Current>,
}

/// The file whose blocks are coming.
struct Current {
    file: usize,
    so_far: Digest,
    /// The earlier file that has the same blocks so far, and how many stored bytes those are.
    twin: Option<(usize, u64)>,
}

impl<W: Read + Write + Seek> Appender<W> {
    /// Starts at the start of `out`.
    pub(super) fn new(mut out: W) -> Result<Self, Error> {
        out.seek(SeekFrom::Start(0))
            .map_err(|source| Error::Write { source })?;
        Ok(Self {
            out: BufWriter::with_capacity(BUFFER, out),
            position: 0,
            known: KnownStarts::default(),
            current: None,
        })
    }

    pub(super) fn end_sharing(&mut self) {
        self.known = KnownStarts::default();
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Appends bytes and returns where they start.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let start = self.position;
        self.out
            .write_all(bytes)
            .map_err(|source| Error::Write { source })?;
        self.position += bytes.len() as u64;
        Ok(start)
    }

    /// Appends one block of a file, by its number among all files' blocks, or leaves it out.
    pub(super) fn append_block(
        &mut self,
        files: &mut Files,
        (file, block_index): (usize, usize),
        block: &Block,
    ) -> Result<(), Error> {
        let word = block.size_word();
        let index = files.set_word(file, block_index, word);
        let Some(digest) = block.digest() else {
            let start = self.append(block.bytes())?;
            start_at(files, file, start);
            return Ok(());
        };
        if self.current.as_ref().is_none_or(|known| known.file != file) {
            self.end_file(files);
            self.current = Some(Current {
                file,
                so_far: Digest::default(),
                twin: None,
            });
        }
        let Some(current) = &mut self.current else {
            return Ok(()); // it was set above
        };
        current.so_far = current.so_far.then(index, word, digest);
        let (so_far, twin) = (current.so_far, current.twin);
        let is_alone = files.file(file).start().is_some();
        let known = self.known.find(&so_far).filter(|_| !is_alone);
        if let Some(earlier) = known {
            let bytes = twin.map_or(0, |(_, bytes)| bytes) + block.bytes().len() as u64;
            current.twin = Some((earlier, bytes));
            return Ok(());
        }
        current.twin = None;
        if let Some((earlier, bytes)) = twin {
            let from = files.file(earlier).start().unwrap_or(0); // all in the table have one
            files.file(file).set_start(Some(self.position));
            self.copy(from, bytes)?;
        }
        let start = self.append(block.bytes())?;
        start_at(files, file, start);
        self.known.insert(so_far, file);
        Ok(())
    }

    /// Says that no block of the same file follows.
    pub(super) fn end_file(&mut self, files: &mut Files) {
        if let Some(Current {
            file,
            twin: Some((earlier, _)),
            ..
        }) = self.current.take()
        {
            let start = files.file(earlier).start();
            files.file(file).set_start(start);
        }
    }

    /// Appends what is in the output already.
    fn copy(&mut self, from: u64, length: u64) -> Result<(), Error> {
        let mut buffer = vec![0; length.min(BUFFER as u64) as usize]; // at most BUFFER
        let mut done = 0;
        while done < length {
            let now = buffer.len().min((length - done) as usize); // at most BUFFER
            self.read(from + done, &mut buffer[..now])
                .map_err(|source| Error::Write { source })?;
            self.append(&buffer[..now])?;
            done += now as u64;
        }
        Ok(())
    }

    fn read(&mut self, from: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.out.seek(SeekFrom::Start(from))?; // flushes
        self.out.get_mut().read_exact(into)?;
        self.out.seek(SeekFrom::Start(self.position))?;
        Ok(())
    }

    /// Writes what belongs at the start and gives the output back.
    pub(super) fn complete(mut self, head: &[u8]) -> Result<W, Error> {
        let write = |source| Error::Write { source };
        self.out.seek(SeekFrom::Start(0)).map_err(write)?;
        self.out.write_all(head).map_err(write)?;
        self.out.into_inner().map_err(|e| write(e.into_error()))
    }

    /// Leaves a gap, which the format allows between files.
    #[cfg(test)]
    pub(super) fn leave_gap(&mut self, bytes: u64) -> Result<(), Error> {
        self.position += bytes;
        let target = SeekFrom::Start(self.position);
        self.out
            .seek(target)
            .map_err(|source| Error::Write { source })?;
        Ok(())
    }
}

/// Notes where a file's first block is.
fn start_at(files: &mut Files, file: usize, start: u64) {
    let file = files.file(file);
    file.set_start(Some(file.start().unwrap_or(start)));
}
