//! What was written before, by its digest: tail ends, and the blocks at the start of files.
//!
//! Equal digests are taken for equal contents: BLAKE3 has no known collisions, and images are
//! made of data that strangers chose. Memory is bounded by [`LIMIT`]: what comes after that many
//! is written whether it was there before or not. The tables depend on the contents and their
//! order alone, so that the same input gives the same image.

use super::data::Tail;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Digests in each of the two tables: as many as fit before a table grows beyond 45 MB.
const LIMIT: usize = (1 << 20) / 8 * 7;

/// A tail end smaller than this is written again unless its twin is in the same fragment block:
/// it saves little, and whoever reads it would have to read another block.
pub(super) const SMALL: usize = 512;

/// A BLAKE3 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// Digest of a file up to and including one more block. The block's number is part of it,
    /// and with it the holes before; a hole has no block of its own.
    pub(super) fn then(&self, index: usize, size_word: u32, block: &Self) -> Self {
        let mut bytes = [0; 76];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..64].copy_from_slice(&block.0);
        bytes[64..72].copy_from_slice(&(index as u64).to_le_bytes());
        bytes[72..].copy_from_slice(&size_word.to_le_bytes());
        Self::of(&bytes)
    }
}

/// A table that stops growing.
struct Known<T>(HashMap<Digest, T>);

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Copy> Known<T> {
    fn get(&self, digest: &Digest) -> Option<T> {
        self.0.get(digest).copied()
    }

    fn insert(&mut self, digest: Digest, value: T) {
        let has_room = self.0.len() < LIMIT;
        match self.0.entry(digest) {
            Entry::Occupied(mut known) => *known.get_mut() = value,
            Entry::Vacant(slot) if has_room => {
                slot.insert(value);
            }
            Entry::Vacant(_) => {}
        }
    }
}

/// Tail ends that lie in a fragment block.
#[derive(Default)]
pub(super) struct KnownTails(Known<Tail>);

impl KnownTails {
    /// Where the same bytes lie already; `current` is the fragment block that is being filled.
    pub(super) fn find(&self, digest: &Digest, length: usize, current: u32) -> Option<Tail> {
        let tail = self.0.get(digest)?;
        (length >= SMALL || tail.fragment == current).then_some(tail)
    }

    /// Notes a tail end, in the place of a twin further away.
    pub(super) fn insert(&mut self, digest: Digest, tail: Tail) {
        self.0.insert(digest, tail);
    }
}

/// Starts of files: the digest of their blocks up to each one names the file that has them.
#[derive(Default)]
pub(super) struct KnownStarts(Known<u32>);

impl KnownStarts {
    pub(super) fn find(&self, digest: &Digest) -> Option<usize> {
        self.0.get(digest).map(|file| file as usize)
    }

    pub(super) fn insert(&mut self, digest: Digest, file: usize) {
        // The number of files is counted in 32 bits when one ends.
        if let Ok(file) = u32::try_from(file) {
            self.0.insert(digest, file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_tail_is_not_fetched_from_far_away() {
        let (small, large) = (Digest::of(b"small"), Digest::of(b"large"));
        let tail = Tail {
            fragment: 3,
            offset: 0,
        };
        let mut known = KnownTails::default();
        assert!(known.find(&small, 5, 3).is_none());
        known.insert(small, tail);
        known.insert(large, tail);
        assert!(known.find(&small, SMALL - 1, 3).is_some());
        assert!(known.find(&small, SMALL - 1, 4).is_none());
        assert!(known.find(&large, SMALL, 4).is_some());
    }

    #[test]
    fn the_digest_of_a_start_tells_order_place_and_size() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let start = Digest::default();
        let ab = start.then(0, 1, &a).then(1, 1, &b);
        assert_eq!(ab, start.then(0, 1, &a).then(1, 1, &b));
        for other in [
            start.then(0, 1, &b).then(1, 1, &a),
            start.then(0, 1, &a).then(2, 1, &b),
            start.then(1, 1, &a).then(2, 1, &b),
            start.then(0, 2, &a).then(1, 1, &b),
            start.then(0, 1, &a),
        ] {
            assert_ne!(ab, other);
        }
    }

    #[test]
    fn tables_stop_growing() {
        let mut known = Known::default();
        for n in 0..LIMIT as u32 + 5 {
            known.insert(Digest::of(&n.to_le_bytes()), n);
        }
        assert_eq!(known.0.len(), LIMIT);
        let (first, last) = (0u32, LIMIT as u32 + 4);
        assert_eq!(known.get(&Digest::of(&first.to_le_bytes())), Some(0));
        assert_eq!(known.get(&Digest::of(&last.to_le_bytes())), None);
    }
}
