//! The extended attribute table: each distinct set of attributes is stored once.
//!
//! A pair is u16 prefix id, u16 name size, name without its prefix, u32 value size, value. An id
//! record is u64 reference to the first pair, u32 count, u32 size of all pairs.

use super::attributes::split_name;
use super::compress::Compression;
use super::metadata::{MetadataWriter, Table};
use super::{Error, Xattr};
use std::collections::HashMap;

/// Index of an inode without attributes.
pub(super) const NONE: u32 = u32::MAX;

const MAX_VALUE: usize = 64 * 1024;

/// Collects the sets of attributes.
pub(super) struct XattrWriter<'a> {
    pairs: MetadataWriter,
    ids: Vec<u8>,
    known: HashMap<&'a [Xattr], u32>,
}

/// The finished table: its pairs, its ids, and how many ids there are.
pub(super) struct Xattrs {
    pub(super) pairs: Vec<u8>,
    pub(super) ids: Table,
    pub(super) count: u32,
}

impl<'a> XattrWriter<'a> {
    pub(super) fn new(compression: Compression) -> Result<Self, Error> {
        let pairs = MetadataWriter::new(compression)?;
        Ok(Self {
            pairs,
            ids: Vec::new(),
            known: HashMap::new(),
        })
    }

    /// The index of a set of attributes.
    pub(super) fn index(&mut self, xattrs: &'a [Xattr]) -> Result<u32, Error> {
        if xattrs.is_empty() {
            return Ok(NONE);
        }
        if let Some(&index) = self.known.get(xattrs) {
            return Ok(index);
        }
        let limit = u64::from(NONE);
        let index = u32::try_from(self.known.len())
            .ok()
            .filter(|&index| index < NONE);
        let index = index.ok_or(Error::TooMany {
            what: "sets of extended attributes",
            limit,
        })?;
        let start = self.pairs.position().reference();
        let mut size = 0;
        for (name, value) in xattrs {
            let pair = encode(name, value)?;
            size += pair.len();
            self.pairs.write(&pair)?;
        }
        let too_large = |_| Error::TooMany {
            what: "bytes of extended attributes on one inode",
            limit: u32::MAX.into(),
        };
        let count = u32::try_from(xattrs.len()).map_err(too_large)?;
        let size = u32::try_from(size).map_err(too_large)?;
        self.ids.extend_from_slice(&start.to_le_bytes());
        self.ids.extend_from_slice(&count.to_le_bytes());
        self.ids.extend_from_slice(&size.to_le_bytes());
        self.known.insert(xattrs, index);
        Ok(index)
    }

    /// The finished table; `None` if no inode has attributes.
    pub(super) fn finish(self, compression: Compression) -> Result<Option<Xattrs>, Error> {
        if self.known.is_empty() {
            return Ok(None);
        }
        let count = self.known.len() as u32; // `index` counted
        let ids = Table::new(&self.ids, compression)?;
        Ok(Some(Xattrs {
            pairs: self.pairs.finish()?,
            ids,
            count,
        }))
    }
}

fn encode(name: &[u8], value: &[u8]) -> Result<Vec<u8>, Error> {
    let refuse = |reason| Error::Xattr {
        name: name.escape_ascii().to_string(),
        reason,
    };
    let (space, rest) = split_name(name).map_err(refuse)?;
    if value.len() > MAX_VALUE {
        return Err(refuse("values have at most 65536 bytes"));
    }
    let mut pair = Vec::with_capacity(8 + rest.len() + value.len());
    pair.extend_from_slice(&(space as u16).to_le_bytes()); // 0 to 2, as the format has them
    pair.extend_from_slice(&(rest.len() as u16).to_le_bytes()); // at most 255
    pair.extend_from_slice(rest);
    pair.extend_from_slice(&(value.len() as u32).to_le_bytes()); // at most 64 KiB
    pair.extend_from_slice(value);
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_shared_and_bad_names_refused() {
        let a = vec![(b"user.a".to_vec(), b"1".to_vec())];
        let b = vec![(b"user.a".to_vec(), Vec::new())];
        let same = a.clone();
        let mut writer = XattrWriter::new(Compression::None).unwrap();
        assert_eq!(writer.index(&[]).unwrap(), NONE);
        assert_eq!(writer.index(&a).unwrap(), 0);
        assert_eq!(writer.index(&b).unwrap(), 1);
        assert_eq!(writer.index(&same).unwrap(), 0);
        let table = writer.finish(Compression::None).unwrap().unwrap();
        assert_eq!(table.count, 2);
        let words: Vec<u32> = table.ids.stored[2..]
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [0, 0, 1, 10, 10, 0, 1, 9]);
        assert_eq!(
            table.pairs[2..],
            [
                0, 0, 1, 0, b'a', 1, 0, 0, 0, b'1', 0, 0, 1, 0, b'a', 0, 0, 0, 0
            ]
        );

        for (name, size) in [
            (&b"system.posix_acl_access"[..], 1),
            (b"user.", 1),
            (b"user.x", 65537),
            (b"user.\0", 0),
        ] {
            assert!(encode(name, &vec![0; size]).is_err(), "{name:?}");
        }
        let none = XattrWriter::new(Compression::None).unwrap();
        assert!(none.finish(Compression::None).unwrap().is_none());
    }
}
