//! Whatever a file says of itself: an answer after a bounded number of reads, of bounded size.
#![no_main]

use std::cell::Cell;
use std::io;

use libfuzzer_sys::fuzz_target;
use shifter_core::elf::{Elf, Source};

struct Counted<'a>(&'a [u8], Cell<usize>);

impl Source for Counted<'_> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.1.set(self.1.get() + 1);
        self.0.read_at(offset, bytes)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let file = Counted(bytes, Cell::new(0));
    if let Ok(elf) = Elf::read(&file) {
        assert!(elf.needed.len() <= 4096 && elf.requires.len() <= 4097);
        let _ = (elf.glibc_needed(), elf.glibc_defined());
    }
    assert!(file.1.get() < 1 << 20);
});
