//! Where the files of an uncompressed archive lie, without reading them.
//!
//! For archives that hold layers, not for layers: what stands in such an archive is looked up by
//! name, so names are compared as they are once `./` and double slashes are gone.

use std::io::{self, Read, Seek, SeekFrom};

use super::header::{BLOCK, Header};
use super::pax;

/// Longest name, link target or extended header.
const EXTENSION_LIMIT: u64 = 64 << 10;

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name, without `./` and without slashes at its ends; empty for the root.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
}

/// What an entry of an archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File {
        /// Where its bytes begin.
        offset: u64,
        /// How many there are.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link, and where it leads.
    Symlink(Vec<u8>),
    /// A further name of another entry.
    HardLink(Vec<u8>),
    /// A device, a pipe, or what this program does not know.
    Other,
}

/// Says why an archive cannot be looked through.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file cannot be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It breaks off or is no archive.
    #[error("entry {entry} of the archive is damaged: {reason}")]
    Damaged {
        /// Which entry, counted from 1.
        entry: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Goes through the entries of an uncompressed archive.
pub struct Members<R> {
    archive: R,
    at: u64,
    length: u64,
    count: u64,
}

impl<R: Read + Seek> Members<R> {
    /// Starts at the beginning of an archive of `length` bytes.
    pub fn new(mut archive: R, length: u64) -> Result<Self, IndexError> {
        archive.seek(SeekFrom::Start(0)).map_err(IndexError::Read)?;
        Ok(Self {
            archive,
            at: 0,
            length,
            count: 0,
        })
    }

    /// The next entry; none at the end.
    pub fn next_member(&mut self) -> Result<Option<Member>, IndexError> {
        self.count += 1;
        let (mut path, mut link, mut pax) = (None, None, pax::Pax::default());
        loop {
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let header = Header::parse(&block).map_err(|reason| self.damaged(reason))?;
            let stated = header.size().map_err(|reason| self.damaged(reason))?;
            match header.kind() {
                b'x' => {
                    let bytes = self.extension(stated)?;
                    pax = pax::parse(&bytes).map_err(|reason| self.damaged(reason))?;
                }
                b'L' => path = Some(self.extension(stated)?),
                b'K' => link = Some(self.extension(stated)?),
                b'g' => self.skip(stated)?,
                kind => {
                    let size = pax.size.unwrap_or(stated);
                    let name = path.or(pax.path).unwrap_or_else(|| header.name());
                    let target = link.or(pax.link).unwrap_or_else(|| header.link().to_vec());
                    return self.member(kind, &name, &target, size).map(Some);
                }
            }
        }
    }

    fn member(
        &mut self,
        kind: u8,
        name: &[u8],
        target: &[u8],
        size: u64,
    ) -> Result<Member, IndexError> {
        let offset = self.at;
        let is_directory = kind == b'5' || (matches!(kind, 0 | b'0') && name.ends_with(b"/"));
        let kind = match kind {
            _ if is_directory => MemberKind::Directory,
            0 | b'0' | b'7' => {
                self.skip(size)?;
                MemberKind::File { offset, size }
            }
            b'1' => MemberKind::HardLink(tidy(target)),
            b'2' => MemberKind::Symlink(until_nul(target).to_vec()),
            b'3' | b'4' | b'6' => MemberKind::Other,
            _ => {
                self.skip(size)?;
                MemberKind::Other
            }
        };
        Ok(Member {
            name: tidy(name),
            kind,
        })
    }

    /// Reads a header; none at the end, which is two empty blocks, or one, or none.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, IndexError> {
        if self.at == self.length {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.need(BLOCK as u64)?;
        self.archive
            .seek(SeekFrom::Start(self.at))
            .and_then(|_| self.archive.read_exact(&mut block))
            .map_err(IndexError::Read)?;
        self.at += BLOCK as u64;
        Ok((block != [0; BLOCK]).then_some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, IndexError> {
        if size > EXTENSION_LIMIT {
            return Err(self.damaged("its extended header is too long"));
        }
        self.need(size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.archive
            .read_exact(&mut bytes)
            .map_err(IndexError::Read)?;
        self.skip(size)?;
        Ok(bytes)
    }

    /// Moves behind contents and what fills up their last block.
    fn skip(&mut self, size: u64) -> Result<(), IndexError> {
        self.need(size)?;
        // Some writers leave out the padding of the last entry.
        let padded = size.next_multiple_of(BLOCK as u64);
        self.at = self.at.saturating_add(padded).min(self.length);
        Ok(())
    }

    fn need(&self, size: u64) -> Result<(), IndexError> {
        if self.length.saturating_sub(self.at) < size {
            return Err(self.damaged("the archive ends in it"));
        }
        Ok(())
    }

    fn damaged(&self, reason: &'static str) -> IndexError {
        let entry = self.count;
        IndexError::Damaged { entry, reason }
    }
}

/// True if `block` begins an archive.
pub fn is_archive(block: &[u8]) -> bool {
    block
        .first_chunk()
        .is_some_and(|block| *block != [0; BLOCK] && Header::parse(block).is_ok())
}

fn until_nul(name: &[u8]) -> &[u8] {
    name.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Takes away what does not change where a name leads; `..` stays.
fn tidy(name: &[u8]) -> Vec<u8> {
    let parts = until_nul(name).split(|&byte| byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Sample, archive};
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn members(bytes: &[u8]) -> Result<Vec<Member>, IndexError> {
        let mut found = Members::new(Cursor::new(bytes), bytes.len() as u64)?;
        let mut all = Vec::new();
        while let Some(member) = found.next_member()? {
            all.push(member);
        }
        Ok(all)
    }

    #[test]
    fn names_and_places() {
        let long = "d/".repeat(80) + "f";
        let tar = archive(&[
            Sample::dir("./"),
            Sample::file("./a//b", b"hello"),
            Sample::file(&long, b"x"),
            Sample::symlink("l", "../t"),
        ]);
        let found = members(&tar).unwrap();
        assert_eq!(found[0].name, b"");
        assert_eq!(found[1].name, b"a/b");
        let MemberKind::File { offset, size: 5 } = found[1].kind else {
            panic!("{found:?}");
        };
        assert_eq!(&tar[offset as usize..][..5], b"hello");
        assert_eq!(found[2].name, long.as_bytes());
        assert_eq!(found[3].kind, MemberKind::Symlink(b"../t".to_vec()));
        // Cut in the middle of a file.
        assert!(members(&tar[..1538]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            let _ = members(&bytes);
            let _ = is_archive(&bytes);
        }
    }
}
