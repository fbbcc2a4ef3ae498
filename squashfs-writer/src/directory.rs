//! The listings of the directory table, and the index of large ones.
//!
//! A listing is runs of entries sorted by name. A run starts with u32 count - 1, u32 inode block,
//! u32 inode number; its entries are u16 offset in that block, i16 distance from that number,
//! u16 basic type, u16 name size - 1, name. A new run starts where an entry cannot be said
//! relative to the header, after 256 entries, and at each new metadata block: there the index
//! gets an entry, so that the kernel need not read a listing from its start.

use super::Error;
use super::metadata::{BLOCK, MetadataWriter, Position};

const RUN: usize = 256;
const HEADER: usize = 12;
const ENTRY: usize = 8;
const MAX_INDEX: usize = u16::MAX as usize;

/// One name in a directory.
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    /// Where its inode is in the inode table.
    pub(super) inode: Position,
    pub(super) number: u32,
    pub(super) kind: u16,
}

/// Where a run starts that is the first in its metadata block.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct IndexEntry {
    /// Bytes from the start of the listing.
    pub(super) at: u32,
    /// Its metadata block, relative to the directory table.
    pub(super) block: u32,
    /// First name of the run.
    pub(super) name: Vec<u8>,
}

/// A listing that was written.
pub(super) struct Listing {
    pub(super) start: Position,
    pub(super) size: u64,
    pub(super) index: Vec<IndexEntry>,
}

/// Appends the listing of one directory; `names` must be sorted.
pub(super) fn write(table: &mut MetadataWriter, names: &[Name<'_>]) -> Result<Listing, Error> {
    let start = table.position();
    let mut listing = Listing {
        start,
        size: 0,
        index: Vec::new(),
    };
    let mut rest = names;
    let mut indexed_block = start.block;
    while let Some(first) = rest.first() {
        let here = table.position();
        if here.block != indexed_block && listing.index.len() < MAX_INDEX {
            indexed_block = here.block;
            // A listing beyond 4 GiB is refused when its inode is made.
            if let Ok(at) = u32::try_from(listing.size) {
                let block = here.block32()?;
                listing.index.push(IndexEntry {
                    at,
                    block,
                    name: first.name.to_vec(),
                });
            }
        }
        let run = run_length(rest, usize::from(here.offset));
        let (now, later) = rest.split_at(run);
        let bytes = encode_run(now)?;
        table.write(&bytes)?;
        listing.size += bytes.len() as u64;
        rest = later;
    }
    Ok(listing)
}

/// How many of `names` go into a run whose header is at `offset` of a metadata block.
fn run_length(names: &[Name<'_>], offset: usize) -> usize {
    let Some(first) = names.first() else { return 0 };
    let mut end = offset + HEADER;
    let mut count = 0;
    for name in names.iter().take(RUN) {
        let can_follow =
            end < BLOCK && name.inode.block == first.inode.block && distance(first, name).is_some();
        if count > 0 && !can_follow {
            break;
        }
        end += ENTRY + name.name.len();
        count += 1;
    }
    count
}

fn distance(first: &Name<'_>, name: &Name<'_>) -> Option<i16> {
    i16::try_from(i64::from(name.number) - i64::from(first.number)).ok()
}

fn encode_run(run: &[Name<'_>]) -> Result<Vec<u8>, Error> {
    let Some(first) = run.first() else {
        return Ok(Vec::new());
    };
    let mut bytes = Vec::with_capacity(HEADER + run.len() * (ENTRY + 16));
    bytes.extend_from_slice(&(run.len() as u32 - 1).to_le_bytes()); // 1 to 256
    bytes.extend_from_slice(&first.inode.block32()?.to_le_bytes());
    bytes.extend_from_slice(&first.number.to_le_bytes());
    for name in run {
        bytes.extend_from_slice(&name.inode.offset.to_le_bytes());
        let distance = distance(first, name).unwrap_or_default(); // `run_length` made sure
        bytes.extend_from_slice(&distance.to_le_bytes());
        bytes.extend_from_slice(&name.kind.to_le_bytes());
        bytes.extend_from_slice(&(name.name.len() as u16 - 1).to_le_bytes()); // 1 to 255
        bytes.extend_from_slice(name.name);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::Compression;
    use super::*;

    fn name(name: &[u8], block: u64, number: u32) -> Name<'_> {
        Name {
            name,
            inode: Position { block, offset: 7 },
            number,
            kind: 2,
        }
    }

    #[test]
    fn runs_end_where_an_entry_cannot_be_said() {
        let many: Vec<_> = (0..300).map(|n| name(b"x", 0, n)).collect();
        assert_eq!(run_length(&many, 0), 256);
        assert_eq!(run_length(&[name(b"a", 0, 1), name(b"b", 9000, 2)], 0), 1);
        for (far, run) in [(32_768, 2), (32_769, 1)] {
            assert_eq!(
                run_length(&[name(b"a", 0, 1), name(b"b", 0, far)], 0),
                run,
                "{far}"
            );
            let back = [name(b"a", 0, far + 1), name(b"b", 0, 1)];
            assert_eq!(run_length(&back, 0), run, "{far} back");
        }
        // 8192 - 12 - 9 = 8171: from there the second entry begins in the next block.
        let two = [name(b"a", 0, 1), name(b"b", 0, 2)];
        for (offset, run) in [(8170, 2), (8171, 1), (8190, 1)] {
            assert_eq!(run_length(&two, offset), run, "{offset}");
        }
        assert_eq!(run_length(&[], 0), 0);
    }

    #[test]
    fn the_index_points_at_the_first_run_of_each_block() {
        let text: Vec<_> = (0..2000)
            .map(|n| format!("name-{n:05}").into_bytes())
            .collect();
        let names: Vec<_> = text.iter().map(|t| name(t, 0, 1)).collect();
        let mut table = MetadataWriter::new(Compression::None).unwrap();
        table.write(&[0; 100]).unwrap();
        let listing = write(&mut table, &names).unwrap();
        assert_eq!(
            listing.start,
            Position {
                block: 0,
                offset: 100
            }
        );
        let stored = table.finish().unwrap();
        let flat: Vec<u8> = stored
            .chunks(BLOCK + 2)
            .flat_map(|block| block[2..].iter().copied())
            .collect();
        assert_eq!(listing.size + 100, flat.len() as u64);
        assert_eq!(listing.index.len(), flat.len() / BLOCK);
        for (number, entry) in listing.index.iter().enumerate() {
            let at = entry.at as usize + 100;
            assert_eq!(at / BLOCK, number + 1);
            assert_eq!(
                u64::from(entry.block),
                (number as u64 + 1) * (BLOCK as u64 + 2)
            );
            assert_eq!(flat[at + HEADER + ENTRY..][..10], entry.name);
        }
    }
}
