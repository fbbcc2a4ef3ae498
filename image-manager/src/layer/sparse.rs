//! The maps of GNU sparse files: which parts of a file are in the archive.
//!
//! Old GNU headers have four pairs and more in blocks behind the header; version 1.0 starts the
//! contents with decimal lines (count, then offset and length of each part), padded to 512.

use super::header::{BLOCK, number};
use super::pax::decimal;

/// Parts of one file at most, so that a map cannot exhaust memory.
pub(super) const MAX_PARTS: usize = 1 << 16;

/// A part of a file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The parts of a map in order, checked against the file's size and the bytes in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SparseMap {
    pub(super) parts: Vec<Part>,
}

impl SparseMap {
    /// Parts must be in order, apart, within the file, and add up to what the archive has.
    pub(super) fn new(parts: Vec<Part>, size: u64, stored: u64) -> Result<Self, &'static str> {
        let (mut end, mut sum) = (0, 0u64);
        for part in &parts {
            if part.offset < end {
                return Err("its sparse map is out of order");
            }
            end = part
                .offset
                .checked_add(part.length)
                .ok_or("its sparse map overflows")?;
            sum = sum.saturating_add(part.length);
        }
        if end > size {
            return Err("its sparse map exceeds the file");
        }
        if sum != stored {
            return Err("its sparse map does not match its contents");
        }
        Ok(Self { parts })
    }
}

/// Offsets and lengths in turn, as pax records have them.
pub(super) fn from_numbers(numbers: &[u64]) -> Result<Vec<Part>, &'static str> {
    if numbers.len() / 2 > MAX_PARTS {
        return Err(TOO_MANY);
    }
    Ok(numbers
        .chunks_exact(2)
        .map(|p| Part {
            offset: p[0],
            length: p[1],
        })
        .collect())
}

const TOO_MANY: &str = "its sparse map has too many parts";

/// The map of an old GNU header.
pub(super) struct OldMap {
    pub(super) parts: Vec<Part>,
    /// Whether a block with more parts follows.
    pub(super) continues: bool,
}

impl OldMap {
    /// Reads the header's own pairs; the second value is the file's size.
    pub(super) fn parse(header: &[u8; BLOCK]) -> Result<(Self, u64), &'static str> {
        let mut map = Self {
            parts: Vec::new(),
            continues: header[482] != 0,
        };
        map.add(&header[386..482])?;
        let size = u64::try_from(number(&header[483..495])?).map_err(|_| "its size is negative")?;
        Ok((map, size))
    }

    /// Reads a block that follows the header.
    pub(super) fn extend(&mut self, block: &[u8; BLOCK]) -> Result<(), &'static str> {
        self.continues = block[504] != 0;
        self.add(&block[..504])
    }

    fn add(&mut self, pairs: &[u8]) -> Result<(), &'static str> {
        for pair in pairs.chunks_exact(24) {
            if pair[0] == 0 {
                break; // an unused pair
            }
            if self.parts.len() == MAX_PARTS {
                return Err(TOO_MANY);
            }
            let field = |bytes| {
                u64::try_from(number(bytes)?).map_err(|_| "its sparse map has a negative number")
            };
            self.parts.push(Part {
                offset: field(&pair[..12])?,
                length: field(&pair[12..])?,
            });
        }
        Ok(())
    }
}

/// Collects the map of version 1.0 from the first blocks of an entry's contents.
#[derive(Default)]
pub(super) struct MapReader {
    text: Vec<u8>,
    lines: usize,
}

impl MapReader {
    /// Takes one block; the parts once the map is complete.
    pub(super) fn push(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Part>>, &'static str> {
        // Each number has at most 20 digits and a newline.
        if self.text.len() > (MAX_PARTS + 1) * 2 * 21 {
            return Err(TOO_MANY);
        }
        self.text.extend_from_slice(block);
        self.lines += block.iter().filter(|&&b| b == b'\n').count();
        let mut lines = self.text.split(|&b| b == b'\n');
        if self.lines == 0 {
            return Err("its sparse map does not start with a count");
        }
        let count = decimal(lines.next().unwrap_or_default())?;
        let count = usize::try_from(count)
            .ok()
            .filter(|&n| n <= MAX_PARTS)
            .ok_or(TOO_MANY)?;
        if self.lines < 1 + 2 * count {
            return Ok(None);
        }
        let numbers = lines
            .take(2 * count)
            .map(decimal)
            .collect::<Result<Vec<_>, _>>()?;
        from_numbers(&numbers).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64, length: u64) -> Part {
        Part { offset, length }
    }

    #[test]
    fn maps_are_checked() {
        for (parts, size, stored, good) in [
            (vec![part(0, 5), part(5, 5), part(20, 0)], 20, 10, true),
            (vec![], 100, 0, true),
            (vec![part(0, 5), part(4, 5)], 20, 10, false),
            (vec![part(10, 5), part(0, 5)], 20, 10, false),
            (vec![part(0, 21)], 20, 21, false),
            (vec![part(0, 5)], 20, 6, false),
            (vec![part(0, 5)], 20, 4, false),
            (vec![part(u64::MAX, 2)], 20, 2, false),
        ] {
            let map = SparseMap::new(parts.clone(), size, stored);
            assert_eq!(map.is_ok(), good, "{parts:?}");
        }
    }

    #[test]
    fn version_1_maps_may_span_blocks() {
        let mut text = b"60\n".to_vec();
        for n in 0..60u64 {
            text.extend_from_slice(format!("{}\n{}\n", n * 100_000, 512).as_bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let mut reader = MapReader::default();
        let blocks: Vec<[u8; BLOCK]> = text.chunks(BLOCK).map(|b| b.try_into().unwrap()).collect();
        assert!(blocks.len() > 1);
        let (last, first) = blocks.split_last().unwrap();
        for block in first {
            assert_eq!(reader.push(block), Ok(None));
        }
        let parts = reader.push(last).unwrap().unwrap();
        assert_eq!((parts.len(), parts[59]), (60, part(5_900_000, 512)));

        for bad in ["", "x\n", "-1\n", "1\n1\nx\n", "99999999\n", "1"] {
            let mut block = [0; BLOCK];
            block[..bad.len()].copy_from_slice(bad.as_bytes());
            assert!(MapReader::default().push(&block).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn endless_maps_end() {
        let mut reader = MapReader::default();
        let mut first = [b'1'; BLOCK];
        first[..6].copy_from_slice(b"65000\n");
        assert_eq!(reader.push(&first), Ok(None));
        assert!((0..10_000).any(|_| reader.push(&[b'1'; BLOCK]).is_err()));
    }
}
