//! The records of the inode table.
//!
//! Each kind has a basic form and an extended one, which is used only where the basic one has no
//! room: extended attributes, a file with several links, holes, or anything beyond 4 GiB, a
//! directory with a long listing.

use super::Error;
use super::attributes::Attributes;
use super::data::FileData;
use super::directory::Listing;
use super::tree::Content;
use super::xattr::NONE;

/// No fragment.
const NO_FRAGMENT: u32 = u32::MAX;
/// Extended types follow the basic ones at this distance.
const EXTENDED: u16 = 7;
pub(super) const DIRECTORY: u16 = 1;
/// "." and ".." count as this many bytes of a listing.
const DOTS: u64 = 3;

/// What every record starts with, apart from its type.
pub(super) struct Head<'a> {
    pub(super) attributes: &'a Attributes,
    pub(super) mtime: u32,
    pub(super) uid: u16,
    pub(super) gid: u16,
    pub(super) number: u32,
    pub(super) links: u32,
    pub(super) xattrs: u32,
}

/// The basic type of an inode, as directories store it.
pub(super) fn kind_number(content: Content<'_>) -> u16 {
    match content {
        Content::Directory => DIRECTORY,
        Content::File(_) => 2,
        Content::Symlink(_) => 3,
        Content::BlockDevice(_) => 4,
        Content::CharDevice(_) => 5,
        Content::Fifo => 6,
        Content::Socket => 7,
    }
}

struct Record(Vec<u8>);

impl Record {
    fn new(head: &Head<'_>, kind: u16) -> Self {
        let mut record = Self(Vec::with_capacity(64));
        let attributes = head.attributes;
        record.u16s(&[kind, attributes.mode, head.uid, head.gid]);
        record.u32s(&[head.mtime, head.number]);
        record
    }

    fn u16s(&mut self, words: &[u16]) {
        words
            .iter()
            .for_each(|w| self.0.extend_from_slice(&w.to_le_bytes()));
    }

    fn u32s(&mut self, words: &[u32]) {
        words
            .iter()
            .for_each(|w| self.0.extend_from_slice(&w.to_le_bytes()));
    }

    fn u64s(&mut self, words: &[u64]) {
        words
            .iter()
            .for_each(|w| self.0.extend_from_slice(&w.to_le_bytes()));
    }
}

/// A regular file's record.
pub(super) fn file(head: &Head<'_>, data: &FileData, blocks: &[u32], sparse: u64) -> Vec<u8> {
    let start = data.start().unwrap_or(0);
    let (fragment, offset) = data
        .tail()
        .map_or((NO_FRAGMENT, 0), |t| (t.fragment, t.offset));
    let basic = head.xattrs == NONE && head.links == 1 && sparse == 0;
    let mut record = match (u32::try_from(start), u32::try_from(data.size)) {
        (Ok(start), Ok(size)) if basic => {
            let mut record = Record::new(head, 2);
            record.u32s(&[start, fragment, offset, size]);
            record
        }
        _ => {
            let mut record = Record::new(head, 2 + EXTENDED);
            record.u64s(&[start, data.size, sparse]);
            record.u32s(&[head.links, fragment, offset, head.xattrs]);
            record
        }
    };
    record.u32s(blocks);
    record.0
}

/// The record of anything that is neither a regular file nor a directory.
pub(super) fn special(head: &Head<'_>, content: Content<'_>) -> Vec<u8> {
    let is_extended = head.xattrs != NONE;
    let number = kind_number(content) + if is_extended { EXTENDED } else { 0 };
    let mut record = Record::new(head, number);
    record.u32s(&[head.links]);
    match content {
        Content::Symlink(target) => {
            record.u32s(&[target.len() as u32]); // at most 4095
            record.0.extend_from_slice(target);
        }
        Content::CharDevice(number) | Content::BlockDevice(number) => record.u32s(&[number]),
        Content::Fifo | Content::Socket | Content::File(_) | Content::Directory => {}
    }
    if is_extended {
        record.u32s(&[head.xattrs]);
    }
    record.0
}

/// A directory's record; `parent` is its parent's inode number.
pub(super) fn directory(head: &Head<'_>, listing: &Listing, parent: u32) -> Result<Vec<u8>, Error> {
    let block = listing.start.block32()?;
    let offset = listing.start.offset;
    let size = listing.size + DOTS;
    if let Ok(size) = u16::try_from(size)
        && head.xattrs == NONE
        && listing.index.is_empty()
    {
        let mut record = Record::new(head, DIRECTORY);
        record.u32s(&[block, head.links]);
        record.u16s(&[size, offset]);
        record.u32s(&[parent]);
        return Ok(record.0);
    }
    let limit = u64::from(u32::MAX);
    let size = u32::try_from(size).map_err(|_| Error::TooMany {
        what: "bytes of names in one directory",
        limit,
    })?;
    let mut record = Record::new(head, DIRECTORY + EXTENDED);
    record.u32s(&[head.links, size, block, parent]);
    record.u16s(&[listing.index.len() as u16, offset]); // `Listing` has at most 65535
    record.u32s(&[head.xattrs]);
    for entry in &listing.index {
        record.u32s(&[entry.at, entry.block, entry.name.len() as u32 - 1]);
        record.0.extend_from_slice(&entry.name);
    }
    Ok(record.0)
}
