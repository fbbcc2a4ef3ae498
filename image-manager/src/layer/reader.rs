//! Entries of an archive and their contents.

use super::header::{BLOCK, Header, text};
use super::pax::{self, Pax};
use super::sparse::{self, MapReader, OldMap, Part, SparseMap};
use super::stream::{Budget, Check, End, Stream};
use super::{LayerError, normalise};
use shifter_core::sanitize;
use squashfs_writer::Attributes as Metadata;
use std::io::Read;
use std::sync::Arc;

/// Extended headers and long names at most; the longest useful ones have some 70 KiB.
const MAX_EXTENSION: u64 = 1 << 20;
/// What an extended attribute costs in memory besides its bytes.
const XATTR_COST: usize = 64;
/// Longest target of a symbolic link.
const MAX_TARGET: usize = 4095;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file and its size, holes included.
    File {
        /// Bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link and its target as found.
    Symlink(Vec<u8>),
    /// A further name of the file at this normalised path.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the root, normalised; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Its attributes.
    pub metadata: Metadata,
}

/// A piece of a file's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// That many zero bytes.
    Hole(u64),
}

/// What is left to read of the current entry's contents.
#[derive(Default)]
struct Contents {
    /// Parts with data, the last one first.
    parts: Vec<Part>,
    /// Offset in the file.
    at: u64,
    size: u64,
    /// Bytes that fill up the last block.
    padding: u64,
}

/// Reads the entries of one layer, in the order of the archive.
pub struct LayerReader {
    stream: Stream,
    budget: Arc<Budget>,
    contents: Contents,
    entries: u64,
    ended: bool,
}

impl LayerReader {
    /// Starts to read a blob. `verify` computes the digest that [`Self::finish`] returns.
    pub fn open<R: Read + Send + 'static>(
        blob: R,
        media_type: &str,
        verify: bool,
        budget: &Arc<Budget>,
    ) -> Result<Self, LayerError> {
        let check = Check {
            digest: verify,
            crc: true,
        };
        Self::start(blob, media_type, check, budget)
    }

    /// The same with the digest, for a caller who compares it: a weaker checksum in the blob is
    /// then not looked at.
    pub fn open_known<R: Read + Send + 'static>(
        blob: R,
        media_type: &str,
        budget: &Arc<Budget>,
    ) -> Result<Self, LayerError> {
        let check = Check {
            digest: true,
            crc: false,
        };
        Self::start(blob, media_type, check, budget)
    }

    fn start<R: Read + Send + 'static>(
        blob: R,
        media_type: &str,
        check: Check,
        budget: &Arc<Budget>,
    ) -> Result<Self, LayerError> {
        Ok(Self {
            stream: Stream::open(blob, media_type, check, Arc::clone(budget))?,
            budget: Arc::clone(budget),
            contents: Contents::default(),
            entries: 0,
            ended: false,
        })
    }

    /// The next entry, after skipping what was not read of the last one; `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        self.skip_contents()?;
        if self.ended {
            return Ok(None);
        }
        self.entries += 1;
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.header_block()? else {
                self.ended = true;
                return match extensions.is_empty() {
                    true => Ok(None),
                    false => Err(self.malformed("it ends with an extended header")),
                };
            };
            let header = Header::parse(&block).map_err(|reason| self.malformed(reason))?;
            let size = header.size().map_err(|reason| self.malformed(reason))?;
            match header.kind() {
                b'x' => {
                    let records = self.extension(size)?;
                    let parsed = pax::parse(&records).map_err(|reason| self.malformed(reason))?;
                    extensions.pax = Some(parsed);
                }
                b'L' => extensions.name = Some(text(&self.extension(size)?).to_vec()),
                b'K' => extensions.link = Some(text(&self.extension(size)?).to_vec()),
                b'g' => drop(self.extension(size)?),
                _ => {
                    self.budget.take_entry()?;
                    return self.entry(header, extensions).map(Some);
                }
            }
        }
    }

    /// The next piece of the current entry's contents; `None` at its end.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk<'_>>, LayerError> {
        let contents = &mut self.contents;
        let next = contents
            .parts
            .last()
            .map_or(contents.size, |part| part.offset);
        if contents.at < next {
            let hole = next - contents.at;
            contents.at = next;
            return Ok(Some(Chunk::Hole(hole)));
        }
        let Some(part) = contents.parts.last_mut() else {
            return Ok(None);
        };
        let bytes = self.stream.available()?.len() as u64;
        if bytes == 0 {
            return Err(LayerError::Truncated);
        }
        let count = bytes.min(part.length);
        part.offset += count;
        part.length -= count;
        contents.at += count;
        if part.length == 0 {
            contents.parts.pop();
            contents.drop_empty();
        }
        let count = count as usize; // at most one piece
        self.stream.consume(count);
        Ok(Some(Chunk::Data(self.stream.consumed(count))))
    }

    /// Reads to the end of the blob, behind the end of the archive too.
    pub fn finish(mut self) -> Result<End, LayerError> {
        while self.next_entry()?.is_some() {}
        self.stream.finish()
    }

    fn malformed(&self, reason: &'static str) -> LayerError {
        LayerError::Malformed {
            number: self.entries,
            reason,
        }
    }

    fn skip_contents(&mut self) -> Result<(), LayerError> {
        let contents = std::mem::take(&mut self.contents);
        for part in &contents.parts {
            self.stream.skip(part.length)?;
        }
        // Some writers leave out the padding of the very last entry.
        match self.stream.skip(contents.padding) {
            Err(LayerError::Truncated) => Ok(()),
            other => other,
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let mut block = [0; BLOCK];
        Ok(self.stream.fill(&mut block)?.then_some(block))
    }

    /// The next header; `None` at the end, which is two zero blocks, or one and nothing.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        match self.block()? {
            Some(block) if block == [0; BLOCK] => match self.block()? {
                None => Ok(None),
                Some(block) if block == [0; BLOCK] => Ok(None),
                Some(_) => Err(self.malformed("it follows an end marker")),
            },
            other => Ok(other),
        }
    }

    /// The contents of an extended header or a long name.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > MAX_EXTENSION {
            let what = "bytes in an extended header";
            return Err(LayerError::Limit {
                what,
                limit: MAX_EXTENSION,
            });
        }
        let mut bytes = vec![0; size as usize]; // at most 1 MiB
        if size > 0 && !self.stream.fill(&mut bytes)? {
            return Err(LayerError::Truncated);
        }
        self.stream.skip(padding(size))?;
        Ok(bytes)
    }

    fn entry(&mut self, header: Header<'_>, extensions: Extensions) -> Result<Entry, LayerError> {
        let Extensions { pax, name, link } = extensions;
        let mut pax = pax.unwrap_or_default();
        let sparse_name = pax.sparse.name.take();
        let raw = sparse_name
            .or(name)
            .or(pax.path.take())
            .unwrap_or_else(|| header.name());
        let raw_link = link
            .or(pax.link.take())
            .unwrap_or_else(|| header.link().to_vec());
        let limit = self.budget.limits().path_bytes;
        let path = normalise(&raw, limit).map_err(|e| refused(&raw, e.reason()))?;
        let kind = self.kind(&header, &raw, raw_link)?;
        if path.is_empty() && kind != EntryKind::Directory {
            return Err(refused(&raw, "the root of an image must be a directory"));
        }
        let target_bytes = match &kind {
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len(),
            _ => 0,
        };
        self.budget.take_name_bytes(path.len() + target_bytes)?;
        let metadata = self.metadata(&header, &mut pax, &raw)?;
        let kind = match kind {
            EntryKind::File { .. } => {
                let stored = header.size().map_err(|reason| self.malformed(reason))?;
                let stored = pax.size.unwrap_or(stored);
                EntryKind::File {
                    size: self.start_contents(&header, &pax, stored)?,
                }
            }
            other => other,
        };
        Ok(Entry {
            path,
            kind,
            metadata,
        })
    }

    /// What an entry is; a file's size is not known yet.
    fn kind(
        &self,
        header: &Header<'_>,
        raw: &[u8],
        link: Vec<u8>,
    ) -> Result<EntryKind, LayerError> {
        let refuse = |reason| Err(refused(raw, reason));
        Ok(match header.kind() {
            b'5' => EntryKind::Directory,
            // Archives older than kinds mark directories so.
            0 if raw.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File { size: 0 },
            b'1' => {
                let target = normalise(&link, self.budget.limits().path_bytes);
                EntryKind::HardLink(target.map_err(|e| refused(raw, e.link_reason()))?)
            }
            b'2' if link.is_empty() => return refuse("its link target is empty"),
            b'2' if link.contains(&0) => return refuse("its link target contains a NUL"),
            b'2' if link.len() > MAX_TARGET => {
                return refuse("its link target is longer than 4095 bytes");
            }
            b'2' => EntryKind::Symlink(link),
            kind @ (b'3' | b'4') => {
                let device = header.device().map_err(|reason| self.malformed(reason))?;
                let fits = |n: i64, bits: u32| u32::try_from(n).ok().filter(|n| n >> bits == 0);
                match (fits(device.0, 12), fits(device.1, 20)) {
                    (Some(major), Some(minor)) if kind == b'3' => {
                        EntryKind::CharDevice { major, minor }
                    }
                    (Some(major), Some(minor)) => EntryKind::BlockDevice { major, minor },
                    _ => return refuse("its device number is out of range"),
                }
            }
            b'6' => EntryKind::Fifo,
            _ => return refuse("its kind is unknown"),
        })
    }

    fn metadata(
        &self,
        header: &Header<'_>,
        pax: &mut Pax,
        raw: &[u8],
    ) -> Result<Metadata, LayerError> {
        let malformed = |reason| self.malformed(reason);
        let id = |own: Result<i64, _>, pax: Option<i64>| {
            let id = pax.map_or(own, Ok).map_err(malformed)?;
            // The last id means "none" to the kernel.
            u32::try_from(id)
                .ok()
                .filter(|&id| id != u32::MAX)
                .ok_or_else(|| refused(raw, "its owner is out of range"))
        };
        let mtime = pax
            .mtime
            .map_or_else(|| header.mtime(), Ok)
            .map_err(malformed)?;
        let xattrs = std::mem::take(&mut pax.xattrs);
        let size: usize = xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        let limit = self.budget.limits().xattr_bytes;
        if size > limit {
            let what = "bytes of extended attributes on one entry";
            return Err(LayerError::Limit {
                what,
                limit: limit as u64,
            });
        }
        self.budget
            .take_name_bytes(size + xattrs.len() * XATTR_COST)?;
        Ok(Metadata {
            mode: (header.mode().map_err(malformed)? & 0o7777) as u16,
            uid: id(header.uid(), pax.uid)?,
            gid: id(header.gid(), pax.gid)?,
            mtime: mtime.clamp(0, u32::MAX.into()) as u32,
            xattrs,
        })
    }

    /// Prepares reading a file's contents, `stored` bytes of which are in the archive; returns
    /// the size of the file.
    fn start_contents(
        &mut self,
        header: &Header<'_>,
        pax: &Pax,
        stored: u64,
    ) -> Result<u64, LayerError> {
        let malformed = |number, reason| LayerError::Malformed { number, reason };
        let number = self.entries;
        let records = &pax.sparse;
        let version = match (records.major, records.minor) {
            (Some(major), Some(minor)) => Some((major, minor)),
            (None, None) if !records.map.is_empty() => Some((0, 1)),
            (None, None) => None,
            _ => return Err(malformed(number, "its sparse version is incomplete")),
        };
        let (parts, size, map_bytes) = if header.kind() == b'S' {
            let (map, size) = self.old_map(header)?;
            (map, size, 0)
        } else {
            match version {
                None => {
                    let whole = Part {
                        offset: 0,
                        length: stored,
                    };
                    (vec![whole], stored, 0)
                }
                Some((0, 0 | 1)) => {
                    let parts = sparse::from_numbers(&records.map);
                    let parts = parts.map_err(|reason| malformed(number, reason))?;
                    (parts, records.size.unwrap_or(stored), 0)
                }
                Some((1, 0)) => {
                    let (parts, map_bytes) = self.new_map(stored)?;
                    (parts, records.size.unwrap_or(stored), map_bytes)
                }
                Some(_) => return Err(malformed(number, "its sparse version is unknown")),
            }
        };
        let data = stored - map_bytes;
        let map = SparseMap::new(parts, size, data).map_err(|reason| malformed(number, reason))?;
        self.budget.take_bytes(size - data)?;
        self.contents = Contents {
            parts: map.parts.into_iter().rev().collect(),
            at: 0,
            size,
            padding: padding(stored),
        };
        self.contents.drop_empty();
        Ok(size)
    }

    fn old_map(&mut self, header: &Header<'_>) -> Result<(Vec<Part>, u64), LayerError> {
        let parsed = OldMap::parse(header.block());
        let (mut map, size) = parsed.map_err(|reason| self.malformed(reason))?;
        while map.continues {
            let block = self.block()?.ok_or(LayerError::Truncated)?;
            map.extend(&block)
                .map_err(|reason| self.malformed(reason))?;
        }
        Ok((map.parts, size))
    }

    /// Reads the map at the start of the contents; also returns how many of those it takes.
    fn new_map(&mut self, stored: u64) -> Result<(Vec<Part>, u64), LayerError> {
        let mut reader = MapReader::default();
        let mut used = 0;
        while used + BLOCK as u64 <= stored {
            let block = self.block()?.ok_or(LayerError::Truncated)?;
            used += BLOCK as u64;
            let parts = reader
                .push(&block)
                .map_err(|reason| self.malformed(reason))?;
            if let Some(parts) = parts {
                return Ok((parts, used));
            }
        }
        Err(self.malformed("its sparse map is longer than its contents"))
    }
}

impl Contents {
    /// Parts without data would never be finished by reading.
    fn drop_empty(&mut self) {
        while self.parts.last().is_some_and(|part| part.length == 0) {
            self.parts.pop();
        }
    }
}

/// What the headers in front of an entry's own say.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.link.is_none()
    }
}

fn refused(raw: &[u8], reason: &'static str) -> LayerError {
    LayerError::Refused {
        path: sanitize::bytes(raw),
        reason,
    }
}

fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}
