//! The entries of a layer, packed: a million of them must fit into memory until all layers are
//! there to be merged.
//!
//! Each entry says only how it differs from the one before: how much of the path they share, and
//! what else is not the same.
//!
//! ```text
//! tag        kind, and which of the fields below are there
//! shared     bytes of the path before that are kept
//! rest       length and bytes that follow them
//! owner      mode, uid, gid         unless the same as before
//! mtime                             unless the same as before
//! content    size, target, or major and minor
//! attributes count, then lengths and bytes of names and values
//! ```
//!
//! Numbers have seven bits in each byte, the lowest first; the high bit says that more follow.

use crate::layer::{Entry, EntryKind, Metadata};
use std::collections::VecDeque;

/// Bytes that are allocated, and given back, at once.
const CHUNK: usize = 64 * 1024;

const KIND: u8 = 0b0000_0111;
const HAS_OWNER: u8 = 0b0000_1000;
const HAS_MTIME: u8 = 0b0001_0000;
const HAS_XATTRS: u8 = 0b0010_0000;

/// Entries in the order of their archive.
#[derive(Default)]
pub(super) struct EntryList {
    chunks: VecDeque<Vec<u8>>,
    last: Last,
    scratch: Vec<u8>,
}

/// What the next entry is compared with.
#[derive(Default)]
struct Last {
    path: Vec<u8>,
    owner: (u16, u32, u32),
    mtime: u32,
}

impl EntryList {
    /// Appends an entry.
    pub(super) fn push(&mut self, entry: &Entry) {
        let mut packed = std::mem::take(&mut self.scratch);
        packed.clear();
        self.last.pack(entry, &mut packed);
        match self.chunks.back_mut() {
            Some(chunk) if chunk.capacity() - chunk.len() >= packed.len() => {
                chunk.extend_from_slice(&packed);
            }
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK.max(packed.len()));
                chunk.extend_from_slice(&packed);
                self.chunks.push_back(chunk);
            }
        }
        self.scratch = packed;
    }

    /// Gives what was allocated and not used back.
    pub(super) fn finish(mut self) -> Entries {
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.shrink_to_fit();
        }
        Entries {
            chunks: self.chunks,
            at: 0,
            last: Last::default(),
        }
    }
}

/// The entries of a list, which frees its memory on the way.
pub(super) struct Entries {
    chunks: VecDeque<Vec<u8>>,
    /// Offset in the first chunk.
    at: usize,
    last: Last,
}

impl Iterator for Entries {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        if self.at == self.chunks.front()?.len() {
            self.chunks.pop_front();
            self.at = 0;
        }
        let chunk = self.chunks.front()?;
        let mut packed = &chunk[self.at..];
        let entry = self.last.unpack(&mut packed)?;
        self.at = chunk.len() - packed.len();
        Some(entry)
    }
}

impl Last {
    fn pack(&mut self, entry: &Entry, out: &mut Vec<u8>) {
        let Entry {
            path,
            kind,
            metadata,
        } = entry;
        let owner = (metadata.mode, metadata.uid, metadata.gid);
        let mut tag = kind_number(kind);
        tag |= if owner == self.owner { 0 } else { HAS_OWNER };
        tag |= if metadata.mtime == self.mtime {
            0
        } else {
            HAS_MTIME
        };
        tag |= if metadata.xattrs.is_empty() {
            0
        } else {
            HAS_XATTRS
        };
        out.push(tag);

        let pairs = path.iter().zip(&self.path);
        let shared = pairs.take_while(|(new, old)| new == old).count();
        put_number(out, shared as u64);
        put_bytes(out, &path[shared..]);
        if tag & HAS_OWNER != 0 {
            for number in [owner.0.into(), owner.1, owner.2] {
                put_number(out, number.into());
            }
        }
        if tag & HAS_MTIME != 0 {
            put_number(out, metadata.mtime.into());
        }
        match kind {
            EntryKind::File { size } => put_number(out, *size),
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => put_bytes(out, target),
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                put_number(out, (*major).into());
                put_number(out, (*minor).into());
            }
            EntryKind::Directory | EntryKind::Fifo => {}
        }
        if tag & HAS_XATTRS != 0 {
            put_number(out, metadata.xattrs.len() as u64);
            for (name, value) in &metadata.xattrs {
                put_bytes(out, name);
                put_bytes(out, value);
            }
        }

        self.path.truncate(shared);
        self.path.extend_from_slice(&path[shared..]);
        self.owner = owner;
        self.mtime = metadata.mtime;
    }

    /// Takes one entry off the front; `None` would mean that [`Self::pack`] did not write it.
    fn unpack(&mut self, packed: &mut &[u8]) -> Option<Entry> {
        let tag = packed.split_off_first().copied()?;
        let shared = usize::try_from(number(packed)?).ok()?;
        self.path.truncate(shared);
        self.path.extend_from_slice(bytes(packed)?);
        let number32 = |packed: &mut &[u8]| u32::try_from(number(packed)?).ok();
        if tag & HAS_OWNER != 0 {
            let mode = u16::try_from(number(packed)?).ok()?;
            self.owner = (mode, number32(packed)?, number32(packed)?);
        }
        if tag & HAS_MTIME != 0 {
            self.mtime = number32(packed)?;
        }
        let kind = match tag & KIND {
            0 => EntryKind::File {
                size: number(packed)?,
            },
            1 => EntryKind::Directory,
            2 => EntryKind::Symlink(bytes(packed)?.to_vec()),
            3 => EntryKind::HardLink(bytes(packed)?.to_vec()),
            4 => EntryKind::CharDevice {
                major: number32(packed)?,
                minor: number32(packed)?,
            },
            5 => EntryKind::BlockDevice {
                major: number32(packed)?,
                minor: number32(packed)?,
            },
            _ => EntryKind::Fifo,
        };
        let mut xattrs = Vec::new();
        if tag & HAS_XATTRS != 0 {
            for _ in 0..number(packed)? {
                let name = bytes(packed)?.to_vec();
                xattrs.push((name, bytes(packed)?.to_vec()));
            }
        }
        let (mode, uid, gid) = self.owner;
        Some(Entry {
            path: self.path.clone(),
            kind,
            metadata: Metadata {
                mode,
                uid,
                gid,
                mtime: self.mtime,
                xattrs,
            },
        })
    }
}

fn kind_number(kind: &EntryKind) -> u8 {
    match kind {
        EntryKind::File { .. } => 0,
        EntryKind::Directory => 1,
        EntryKind::Symlink(_) => 2,
        EntryKind::HardLink(_) => 3,
        EntryKind::CharDevice { .. } => 4,
        EntryKind::BlockDevice { .. } => 5,
        EntryKind::Fifo => 6,
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn number(packed: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *packed.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn bytes<'a>(packed: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(packed)?).ok()?;
    packed.split_off(..length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>().prop_map(|byte| byte % 4 * 85), 0..longest)
    }

    fn any_kind() -> impl Strategy<Value = EntryKind> {
        let device = (any::<u32>(), any::<u32>());
        prop_oneof![
            any::<u64>().prop_map(|size| EntryKind::File { size }),
            Just(EntryKind::Directory),
            any_bytes(300).prop_map(EntryKind::Symlink),
            any_bytes(300).prop_map(EntryKind::HardLink),
            device.prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
            device.prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
            Just(EntryKind::Fifo),
        ]
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let number = || prop_oneof![Just(0u32), Just(1000), any::<u32>()];
        let xattrs = prop::collection::vec((any_bytes(20), any_bytes(200)), 0..2);
        let metadata = (any::<u16>(), number(), number(), number(), xattrs).prop_map(
            |(mode, uid, gid, mtime, xattrs)| Metadata {
                mode,
                uid,
                gid,
                mtime,
                xattrs,
            },
        );
        (any_bytes(100), any_kind(), metadata).prop_map(|(path, kind, metadata)| Entry {
            path,
            kind,
            metadata,
        })
    }

    proptest! {
        #[test]
        fn lists_give_back_what_they_took(entries in prop::collection::vec(any_entry(), 0..20)) {
            let mut entries = entries;
            if let Some(entry) = entries.last_mut() {
                // Larger than a chunk.
                entry.metadata.xattrs.push((b"user.large".to_vec(), vec![1; 2 * CHUNK]));
                entries.push(entries[0].clone());
            }
            let mut list = EntryList::default();
            entries.iter().for_each(|entry| list.push(entry));
            prop_assert_eq!(list.finish().collect::<Vec<_>>(), entries);
        }
    }

    #[test]
    fn an_ordinary_entry_takes_few_bytes() {
        let mut list = EntryList::default();
        for number in 0..100_000 {
            let path = format!("opt/conda/lib/python3.11/site-packages/package/module_{number}.py");
            list.push(&Entry {
                path: path.into_bytes(),
                kind: EntryKind::File { size: 5000 },
                metadata: Metadata {
                    mode: 0o644,
                    mtime: 1_700_000_000 + number % 3,
                    ..Metadata::default()
                },
            });
        }
        let entries = list.finish();
        let bytes: usize = entries.chunks.iter().map(Vec::capacity).sum();
        assert!(bytes < 100_000 * 24, "{bytes}");
        assert_eq!(entries.count(), 100_000);
    }
}
