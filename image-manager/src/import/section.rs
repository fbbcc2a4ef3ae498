//! Parts of files, read at positions of their own, so that many readers share one open file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use shifter_core::reference::Digest;

use crate::cancel::Cancel;
use crate::hash::Hasher;

/// A part of an open file.
#[derive(Clone, Debug)]
pub(super) struct Section {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

/// What changes when a file is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp([i64; 5]);

impl Section {
    /// All of a file.
    pub fn whole(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            offset: 0,
            length,
        })
    }

    /// A part of this part; what lies outside of it is cut off.
    pub fn part(&self, offset: u64, length: u64) -> Self {
        let offset = offset.min(self.length);
        Self {
            file: Arc::clone(&self.file),
            offset: self.offset.saturating_add(offset),
            length: length.min(self.length - offset),
        }
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn stamp(&self) -> io::Result<Stamp> {
        let meta = self.file.metadata()?;
        let length = i64::try_from(meta.len()).unwrap_or(i64::MAX);
        let (changed, nanoseconds) = (meta.ctime(), meta.ctime_nsec());
        let (modified, fraction) = (meta.mtime(), meta.mtime_nsec());
        Ok(Stamp([length, changed, nanoseconds, modified, fraction]))
    }

    /// Reads all of it, if that is at most `limit` bytes.
    pub fn bytes(&self, limit: u64) -> io::Result<Option<Vec<u8>>> {
        if self.length > limit {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    pub fn reader(&self) -> SectionReader {
        SectionReader {
            section: self.clone(),
            at: 0,
        }
    }
}

/// Reads a part of a file.
#[derive(Debug)]
pub(super) struct SectionReader {
    section: Section,
    at: u64,
}

impl Read for SectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.section.length.saturating_sub(self.at);
        let room = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let at = self.section.offset.saturating_add(self.at);
        let count = self.section.file.read_at(&mut buffer[..room], at)?;
        if count == 0 {
            // The file is shorter than it was.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for SectionReader {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let to = match position {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.section.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Compares what is read with a digest: the end is an error if it is another.
pub(super) struct Verified<R> {
    inner: R,
    hasher: Option<Hasher>,
    digest: Option<Digest>,
    cancel: Cancel,
}

impl<R: Read> Verified<R> {
    pub fn new(inner: R, digest: Option<&Digest>, cancel: &Cancel) -> Self {
        Self {
            inner,
            hasher: digest.map(Hasher::like),
            digest: digest.cloned(),
            cancel: cancel.clone(),
        }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        let count = self.inner.read(buffer)?;
        if count > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..count]);
            }
            return Ok(count);
        }
        if let (Some(hasher), Some(digest)) = (self.hasher.take(), &self.digest) {
            let found = hasher.finish();
            if !buffer.is_empty() && found != digest.to_string() {
                let text = format!("its digest is {found}, not {digest}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_parts() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"0123456789").unwrap();
        let all = Section::whole(file).unwrap();
        let part = all.part(2, 5);
        assert_eq!(part.bytes(5).unwrap().unwrap(), b"23456");
        assert_eq!(part.bytes(4).unwrap(), None);
        assert_eq!(part.part(3, 99).bytes(99).unwrap().unwrap(), b"56");
        assert_eq!(part.part(99, 1).length(), 0);
    }

    #[test]
    fn a_wrong_digest_is_an_error_at_the_end() {
        let digest = |text: &[u8]| {
            Digest::parse(&format!("sha256:{}", crate::hash::sha256_hex(text))).unwrap()
        };
        let read = |digest: &Digest, cancel: &Cancel| {
            let mut bytes = Vec::new();
            Verified::new(&b"abc"[..], Some(digest), cancel)
                .read_to_end(&mut bytes)
                .map(|_| bytes)
        };
        let cancel = Cancel::default();
        assert_eq!(read(&digest(b"abc"), &cancel).unwrap(), b"abc");
        assert!(read(&digest(b"abd"), &cancel).is_err());
        cancel.cancel();
        assert!(read(&digest(b"abc"), &cancel).is_err());
    }
}
