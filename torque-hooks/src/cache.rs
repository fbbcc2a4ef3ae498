//! nscd's databases on their way from the launch node to the others: what is in use of them.
//!
//! ```text
//! SIZE COUNT        of the file in bytes, of the pages that follow: 64 bits each, little-endian
//! COUNT numbers     of pages of 4 KiB that are not empty, ascending: 32 bits each
//! COUNT pages
//! ```
//!
//! The databases grow to 32 MiB and more, and most of that is never written. Neither side has more of
//! one in memory than the numbers of its pages.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use shifter_core::chain;
use shifter_core::trusted::{self, TrustError};

use crate::say::{self, Weight};

/// Databases of nscd that are copied, under these names in the shared state.
pub const CACHES: [(&str, &str); 2] = [
    ("nscd-passwd", "/var/cache/nscd/passwd"),
    ("nscd-group", "/var/cache/nscd/group"),
];

const PAGE: usize = 4 << 10;

/// Bytes that a copy may have on its way: every node reads them.
pub const COPY_LIMIT: u64 = 64 << 20;

/// Bytes that a database may have, empty pages included.
const SIZE_LIMIT: u64 = 1 << 30;

/// Where nscd counts its collections of garbage, and where in the file that is: it moves what is in use
/// while the number is odd.
const CYCLE: std::ops::Range<usize> = 8..12;

/// A database of this node's, read as its copy.
pub struct Database {
    /// What the copy is called in the shared state.
    pub name: &'static str,
    file: File,
    /// The beginning of the copy, what was read of it already, and pages that come after it.
    head: Vec<u8>,
    read: u64,
    pages: Vec<u32>,
    cycle: [u8; 4],
}

impl Database {
    fn open(name: &'static str, file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        if size > SIZE_LIMIT {
            return Err(too_large());
        }
        let cycle = cycle_of(&file)?;
        let mut pages = Vec::new();
        let mut page = [0; PAGE];
        for number in 0..page_count(size) {
            read_page(&file, number, &mut page)?;
            if page.iter().any(|byte| *byte != 0) {
                pages.push(number);
            }
        }
        let mut head = size.to_le_bytes().to_vec();
        head.extend((pages.len() as u64).to_le_bytes());
        head.extend(pages.iter().flat_map(|number| number.to_le_bytes()));
        let database = Self {
            name,
            file,
            head,
            read: 0,
            pages,
            cycle,
        };
        match database.length() as u64 > COPY_LIMIT {
            true => Err(too_large()),
            false => Ok(database),
        }
    }

    /// Returns the bytes of the copy.
    pub fn length(&self) -> usize {
        self.head.len() + self.pages.len() * PAGE
    }

    /// True if nscd has moved things about since it was opened: the copy is worth nothing.
    pub fn is_torn(&self) -> bool {
        let is_odd = self.cycle[0] & 1 == 1;
        is_odd || cycle_of(&self.file).is_ok_and(|cycle| cycle != self.cycle)
    }
}

impl Read for Database {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let at = usize::try_from(self.read).unwrap_or(usize::MAX);
        let mut page = [0; PAGE];
        let rest = if let Some(rest) = self.head.get(at..).filter(|rest| !rest.is_empty()) {
            rest
        } else {
            let at = at - self.head.len();
            let Some(number) = self.pages.get(at / PAGE) else {
                return Ok(0);
            };
            read_page(&self.file, *number, &mut page)?;
            &page[at % PAGE..]
        };
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        self.read += count as u64;
        Ok(count)
    }
}

/// Opens this node's databases; those that are not there are left out, and those that cannot be handed
/// on with a word in the log: the nodes then look accounts up for themselves.
pub fn own() -> Vec<Database> {
    let open = |(name, path): (&'static str, &str)| {
        let why = match trusted::open(Path::new(path), &[0]) {
            Ok(file) => match Database::open(name, file) {
                Ok(database) => return Some(database),
                Err(error) => format!("cannot copy '{path}': {error}"),
            },
            Err(TrustError::Unreadable { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return None;
            }
            Err(error) => chain::line(&error),
        };
        say::log(Weight::Warning, &why);
        None
    };
    CACHES.into_iter().filter_map(open).collect()
}

/// Makes a database of its copy.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is none.
pub fn unpack(copy: &mut impl Read, file: &File) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut number = [0; 8];
    copy.read_exact(&mut number)?;
    let size = u64::from_le_bytes(number);
    copy.read_exact(&mut number)?;
    let count = u64::from_le_bytes(number);
    if size > SIZE_LIMIT || count > u64::from(page_count(size)) {
        return Err(invalid());
    }
    let mut pages = Vec::new();
    for _ in 0..count {
        let mut number = [0; 4];
        copy.read_exact(&mut number)?;
        let number = u32::from_le_bytes(number);
        if number >= page_count(size) || pages.last().is_some_and(|last| *last >= number) {
            return Err(invalid());
        }
        pages.push(number);
    }
    file.set_len(0)?;
    file.set_len(size)?;
    let mut page = [0; PAGE];
    for number in pages {
        copy.read_exact(&mut page)?;
        let offset = u64::from(number) * PAGE as u64;
        let length = usize::try_from(size - offset).unwrap_or(PAGE).min(PAGE);
        file.write_all_at(&page[..length], offset)?;
    }
    match copy.read(&mut page)? {
        0 => (&*file).flush(),
        _ => Err(invalid()),
    }
}

/// Reads a page; what is behind the end of the file is empty.
fn read_page(file: &File, number: u32, page: &mut [u8; PAGE]) -> io::Result<()> {
    page.fill(0);
    let offset = u64::from(number) * PAGE as u64;
    let mut length = 0;
    while length < PAGE {
        match file.read_at(&mut page[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn page_count(size: u64) -> u32 {
    // No more than a million, of a size within its limit.
    u32::try_from(size.div_ceil(PAGE as u64)).unwrap_or(u32::MAX)
}

fn cycle_of(file: &File) -> io::Result<[u8; 4]> {
    let mut page = [0; PAGE];
    read_page(file, 0, &mut page)?;
    let mut cycle = [0; 4];
    cycle.copy_from_slice(&page[CYCLE]);
    Ok(cycle)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn database(parts: &[(u64, &[u8])], size: u64) -> Database {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        Database::open("nscd-passwd", file).unwrap()
    }

    fn unpacked(mut copy: &[u8]) -> io::Result<Vec<u8>> {
        let mut file = tempfile::tempfile()?;
        file.write_all(b"what was there before")?;
        unpack(&mut copy, &file)?;
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut file)?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn a_database_arrives_as_it_was_and_its_empty_pages_do_not_travel() {
        let size = (32 << 20) + 100;
        let parts: [(u64, &[u8]); 3] = [
            (0, &[1, 0, 0, 0, 104, 0, 0, 0, 2, 0, 0, 0]),
            ((5 << 20) - 2, b"over two pages"),
            (size - 3, b"end"),
        ];
        let mut database = database(&parts, size);
        assert_eq!(database.length(), 16 + 4 * 4 + 4 * 4096);
        let mut copy = Vec::new();
        database.read_to_end(&mut copy).unwrap();
        assert_eq!(copy.len(), database.length());
        let bytes = unpacked(&copy).unwrap();
        assert_eq!(bytes.len() as u64, size);
        for (at, part) in parts {
            let at = usize::try_from(at).unwrap();
            assert_eq!(&bytes[at..at + part.len()], part);
        }
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 3 + 14 + 3);
        assert!(!database.is_torn());
        database.file.write_all_at(&[4], 8).unwrap();
        assert!(database.is_torn(), "another collection");
    }

    #[test]
    fn what_is_too_large_stays() {
        for size in [SIZE_LIMIT + 1, u64::MAX >> 1] {
            let file = tempfile::tempfile().unwrap();
            if file.set_len(size).is_ok() {
                assert!(Database::open("x", file).is_err());
            }
        }
        let mut empty = database(&[], 0);
        let mut copy = Vec::new();
        empty.read_to_end(&mut copy).unwrap();
        assert_eq!(
            (copy.as_slice(), unpacked(&copy).unwrap().len()),
            (&[0; 16][..], 0)
        );
    }

    #[test]
    fn what_is_no_copy_makes_no_database() {
        let mut copy = Vec::new();
        let parts: [(u64, &[u8]); 2] = [(0, b"a"), (9000, b"b")];
        database(&parts, 10_000).read_to_end(&mut copy).unwrap();
        assert!(unpacked(&copy).is_ok());
        let changed = |at: usize, byte: u8| {
            let mut copy = copy.clone();
            copy[at] = byte;
            copy
        };
        for bad in [
            copy[..copy.len() - 1].to_vec(),
            [&copy[..], b"x"].concat(),
            // The size; the number of pages; pages in no order, and behind the end.
            changed(7, 1),
            changed(8, 9),
            changed(16, 2),
            changed(20, 3),
        ] {
            assert!(unpacked(&bad).is_err(), "{:?}", &bad[..24.min(bad.len())]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_small(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = bytes;
            // Sizes that a test can write.
            bytes.iter_mut().take(8).skip(2).for_each(|byte| *byte = 0);
            let _ = unpacked(&bytes);
        }
    }
}
