//! Memory for programs that end within milliseconds: taken from one piece, in turn.
//!
//! A C library keeps order in memory for a long life: it asks the kernel for pages, gives them
//! back, and has them empty again the next time. A program of this crate needs less than the piece
//! before it becomes the command. What comes back to the piece is used again only if it was the last
//! that was taken; whoever needs more is served by the system.
#![allow(
    unsafe_code,
    reason = "an allocator is an unsafe trait, and hands out raw memory"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

/// Bytes of the piece; the pages that nobody touches cost nothing.
const SIZE: usize = 256 << 10;

/// The allocator: `#[global_allocator]` of programs that live briefly.
pub struct OnePiece {
    used: AtomicUsize,
    piece: UnsafeCell<Piece>,
}

#[repr(align(4096))]
struct Piece {
    _bytes: [u8; SIZE],
}

// SAFETY: no two callers are ever given the same part of the piece: `used` alone says what is free, is
// changed by compare-and-swap, and orders what was done with a part before it is given again.
unsafe impl Sync for OnePiece {}

impl OnePiece {
    /// One of which nothing is used.
    #[expect(clippy::new_without_default, reason = "for a static alone")]
    pub const fn new() -> Self {
        Self {
            used: AtomicUsize::new(0),
            piece: UnsafeCell::new(Piece { _bytes: [0; SIZE] }),
        }
    }

    fn base(&self) -> *mut u8 {
        self.piece.get().cast()
    }

    /// Returns where in the piece an allocation begins; nothing for one of the system's.
    fn offset(&self, at: *mut u8) -> Option<usize> {
        let offset = at.addr().checked_sub(self.base().addr())?;
        (offset < SIZE).then_some(offset)
    }

    /// Says that the last allocation ends at `to`, if the one that ends at `from` is the last.
    fn move_end(&self, from: usize, to: usize) -> bool {
        self.used
            .compare_exchange(from, to, AcqRel, Acquire)
            .is_ok()
    }
}

// SAFETY: what is handed out lies in the piece, is aligned, and overlaps nothing else that is in
// use; everything else is the system's.
unsafe impl GlobalAlloc for OnePiece {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let place = |used: usize| {
            let begin = used.next_multiple_of(layout.align());
            let end = begin.checked_add(layout.size())?;
            // The piece's own beginning is aligned to a page and no more.
            (end <= SIZE && layout.align() <= align_of::<Piece>()).then_some((begin, end))
        };
        let mut used = self.used.load(Acquire);
        while let Some((begin, end)) = place(used) {
            match self.used.compare_exchange_weak(used, end, AcqRel, Acquire) {
                // SAFETY: `place` leaves no part of it outside of the piece.
                Ok(_) => return unsafe { self.base().add(begin) },
                Err(now) => used = now,
            }
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        match self.offset(at) {
            Some(offset) => {
                self.move_end(offset + layout.size(), offset);
            }
            // SAFETY: what is not in the piece came from the system.
            None => unsafe { System.dealloc(at, layout) },
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(at) else {
            // SAFETY: what is not in the piece came from the system.
            return unsafe { System.realloc(at, layout, size) };
        };
        let is_last = size <= SIZE - offset && self.move_end(offset + layout.size(), offset + size);
        if is_last || size <= layout.size() {
            return at;
        }
        let Ok(larger) = Layout::from_size_align(size, layout.align()) else {
            return std::ptr::null_mut();
        };
        // SAFETY: no layout that grows has no size.
        let new = unsafe { self.alloc(larger) };
        if !new.is_null() {
            // SAFETY: the old allocation has as many bytes, the new one more, and they lie apart.
            unsafe { new.copy_from_nonoverlapping(at, layout.size()) };
            self.move_end(offset + layout.size(), offset);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    fn get(memory: &OnePiece, layout: Layout) -> *mut u8 {
        // SAFETY: no test asks for nothing.
        unsafe { memory.alloc(layout) }
    }

    fn resize(memory: &OnePiece, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: each test says the layout with which it got the place.
        unsafe { memory.realloc(at, layout, size) }
    }

    fn give_back(memory: &OnePiece, at: *mut u8, layout: Layout) {
        // SAFETY: each test says the layout with which it got the place.
        unsafe { memory.dealloc(at, layout) }
    }

    fn fill(at: *mut u8, byte: u8, count: usize) {
        // SAFETY: each test writes to what it has.
        unsafe { at.write_bytes(byte, count) }
    }

    fn bytes(at: *mut u8, count: usize) -> Vec<u8> {
        // SAFETY: each test reads what it has written.
        unsafe { std::slice::from_raw_parts(at, count) }.to_vec()
    }

    /// Not on the stack of a test.
    fn fresh() -> &'static OnePiece {
        static PIECES: [OnePiece; 2] = [const { OnePiece::new() }; 2];
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        &PIECES[NEXT.fetch_add(1, AcqRel)]
    }

    #[test]
    fn the_last_one_grows_and_goes_where_it_is() {
        let memory = fresh();
        let first = get(memory, layout(10, 1));
        let second = get(memory, layout(8, 64));
        assert_eq!(second.addr() % 64, 0);
        assert!(second.addr() >= first.addr() + 10);
        assert_eq!(resize(memory, second, layout(8, 64), 800), second);
        // It is not the last, and stays where it is only to become smaller.
        assert_eq!(resize(memory, first, layout(10, 1), 5), first);
        fill(first, 7, 5);
        let moved = resize(memory, first, layout(5, 1), 100);
        assert!(moved.addr() >= second.addr() + 800);
        assert_eq!(bytes(moved, 5), [7; 5]);
        give_back(memory, moved, layout(100, 1));
        assert_eq!(get(memory, layout(3, 1)), moved);
    }

    #[test]
    fn the_system_serves_who_needs_more() {
        let memory = fresh();
        let (small, most, large) = (layout(2, 1), layout(SIZE - 1, 1), layout(2 * SIZE, 1));
        let first = get(memory, most);
        assert_eq!(memory.offset(first), Some(0));
        let other = get(memory, small);
        assert_eq!(memory.offset(other), None);
        let other = resize(memory, other, small, large.size());
        give_back(memory, other, large);
        give_back(memory, first, most);
        // What grows beyond the piece leaves it.
        let begun = get(memory, small);
        assert_eq!(begun, first);
        fill(begun, 9, 2);
        let grown = resize(memory, begun, small, large.size());
        assert_eq!(memory.offset(grown), None);
        assert_eq!(bytes(grown, 2), [9; 2]);
        give_back(memory, grown, large);
    }
}
