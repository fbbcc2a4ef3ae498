//! The names of a tree's directories, packed: a million of them must fit into memory beside all else.
//!
//! All bytes are in one buffer, each name with its length before it; a directory is a sorted list of where
//! its names are. Names that come in their order, as from a sorted archive, are appended;
//! others wait in a short sorted list until there are enough of them to be worth a merge.

use super::Error;
use super::tree::InodeId;

/// Names that wait: inserting among them is cheap, and so is merging once for each so many.
const WAITING: usize = 4096;

/// The bytes of names and of links' targets.
#[derive(Default)]
pub(super) struct Text(Vec<u8>);

/// Where a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At(u32);

impl Text {
    /// Keeps a text of at most 65535 bytes.
    pub(super) fn push(&mut self, text: &[u8]) -> Result<At, Error> {
        let too_many = |_| Error::TooMany {
            what: "bytes of names",
            limit: u32::MAX.into(),
        };
        let at = u32::try_from(self.0.len()).map_err(too_many)?;
        self.0.extend_from_slice(&(text.len() as u16).to_le_bytes()); // names and targets are short
        self.0.extend_from_slice(text);
        Ok(At(at))
    }

    pub(super) fn get(&self, At(at): At) -> &[u8] {
        let at = at as usize;
        let length = u16::from_le_bytes([self.0[at], self.0[at + 1]]);
        &self.0[at + 2..][..length.into()]
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    name: At,
    inode: InodeId,
}

/// The names in one directory.
#[derive(Default)]
pub(super) struct Names {
    sorted: Vec<Entry>,
    waiting: Vec<Entry>,
}

impl Names {
    /// Adds a name; `false` if the directory has it already.
    pub(super) fn insert(
        &mut self,
        text: &mut Text,
        name: &[u8],
        inode: InodeId,
    ) -> Result<bool, Error> {
        let find = |list: &[Entry]| list.binary_search_by_key(&name, |entry| text.get(entry.name));
        let is_next = self
            .sorted
            .last()
            .is_none_or(|last| text.get(last.name) < name);
        if is_next && self.waiting.is_empty() {
            let name = text.push(name)?;
            self.sorted.push(Entry { name, inode });
            return Ok(true);
        }
        let (Err(_), Err(at)) = (find(&self.sorted), find(&self.waiting)) else {
            return Ok(false);
        };
        let name = text.push(name)?;
        self.waiting.insert(at, Entry { name, inode });
        if self.waiting.len() >= WAITING {
            self.sorted.append(&mut self.waiting);
            // Two sorted runs are merged in one pass.
            self.sorted
                .sort_by(|a, b| text.get(a.name).cmp(text.get(b.name)));
        }
        Ok(true)
    }

    /// The names in the order of their bytes.
    pub(super) fn iter<'a>(&'a self, text: &'a Text) -> impl Iterator<Item = (&'a [u8], InodeId)> {
        let known = |entry: &'a Entry| (text.get(entry.name), entry.inode);
        let mut lists = [&self.sorted, &self.waiting].map(|list| list.iter().map(known).peekable());
        std::iter::from_fn(move || {
            let [sorted, waiting] = &mut lists;
            match (sorted.peek(), waiting.peek()) {
                (Some(a), Some(b)) if b.0 < a.0 => waiting.next(),
                (Some(_), _) => sorted.next(),
                (None, _) => waiting.next(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_in_order_and_none_comes_twice() {
        let (mut text, mut names) = (Text::default(), Names::default());
        // All numbers below 20,000 in an order far from theirs.
        let name = |n: u32| format!("{:05}", n * 7919 % 20_000).into_bytes();
        for n in 0..20_000 {
            assert!(names.insert(&mut text, &name(n), InodeId(n)).unwrap());
            assert!(!names.insert(&mut text, &name(n / 2), InodeId(n)).unwrap());
        }
        let all: Vec<_> = names.iter(&text).collect();
        for (expected, (found, inode)) in (0u32..).zip(&all) {
            assert_eq!(*found, format!("{expected:05}").as_bytes());
            assert_eq!(*found, name(inode.0));
        }
        assert_eq!(all.len(), 20_000);
        assert_eq!(size_of::<Entry>(), 8);
    }
}
