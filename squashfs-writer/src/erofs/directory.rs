//! The blocks of a directory: u64 inode, u16 offset of the name, u8 type, u8 0 for each entry, then
//! the names. Entries are in the order of their bytes, over all blocks; `.` and `..` are among them.

use super::BLOCK;

const ENTRY: usize = 12;

/// One name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u64,
    pub(super) kind: u8,
}

/// Bytes of a directory's content; `names` are the lengths of all its names in their order.
pub(super) fn size(names: impl Iterator<Item = usize>) -> u64 {
    let (mut blocks, mut filled) = (0, 0);
    for name in names {
        if filled + ENTRY + name > BLOCK {
            blocks += 1;
            filled = 0;
        }
        filled += ENTRY + name;
    }
    (blocks * BLOCK + filled) as u64
}

/// The content itself; all blocks but the last are full.
pub(super) fn encode(names: &[Name<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = names;
    while !rest.is_empty() {
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        let mut filled = 0;
        let fits = rest.iter().take_while(|name| {
            filled += ENTRY + name.name.len();
            filled <= BLOCK
        });
        let (now, later) = rest.split_at(fits.count());
        let mut offset = now.len() * ENTRY;
        for name in now {
            out.extend_from_slice(&name.inode.to_le_bytes());
            out.extend_from_slice(&(offset as u16).to_le_bytes()); // below 4096
            out.extend_from_slice(&[name.kind, 0]);
            offset += name.name.len();
        }
        now.iter().for_each(|name| out.extend_from_slice(name.name));
        rest = later;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_that_of_what_is_written() {
        for (count, length) in [(0, 1), (2, 2), (16, 244), (17, 244), (1000, 7), (40, 255)] {
            let text = vec![b'x'; length];
            let name = Name {
                name: &text,
                inode: 5,
                kind: 1,
            };
            let names = vec![name; count];
            let lengths = names.iter().map(|name| name.name.len());
            assert_eq!(
                size(lengths),
                encode(&names).len() as u64,
                "{count} {length}"
            );
        }
    }
}
