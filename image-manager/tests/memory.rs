//! What a build needs of memory: not what an image has in bytes, and little for each of its files.
//!
//! A program of its own, because what is measured is the whole process.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use image_manager::build::{BuildOptions, LayerSource, Open, build_image};
use std::io::{self, Cursor, Read};
use support::tar::Sample;

const LAYERS: usize = 4;
const SMALL_FILES: usize = 10_000;
const LARGE_FILES: usize = 8;
const LARGE: usize = 6 << 20;

/// A layer that is made while it is read.
struct Layer {
    number: usize,
    next: usize,
    part: Cursor<Vec<u8>>,
}

impl Layer {
    fn entry(&self) -> Vec<u8> {
        let (layer, entry) = (self.number, self.next);
        if entry < SMALL_FILES {
            let name = format!("opt/package-{}/lib/module_{entry}_{layer}.py", entry / 100);
            return Sample::file(name, format!("{layer}:{entry}")).bytes();
        }
        let word =
            |n: usize| ((n ^ layer) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15 + entry as u64);
        let noise: Vec<u8> = (0..LARGE / 8).flat_map(|n| word(n).to_le_bytes()).collect();
        Sample::file(format!("large/{layer}-{entry}"), noise).bytes()
    }
}

impl Read for Layer {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.part.read(out)?;
            if count > 0 || self.next == SMALL_FILES + LARGE_FILES {
                return Ok(count);
            }
            self.part = Cursor::new(self.entry());
            self.next += 1;
        }
    }
}

/// The most memory that this process ever had, in MB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kilobytes = line.split_whitespace().nth(1).unwrap();
    kilobytes.parse::<u64>().unwrap() / 1024
}

#[test]
fn memory_does_not_grow_with_the_image() {
    let open = |number| {
        move || -> io::Result<Box<dyn Read + Send>> {
            Ok(Box::new(Layer {
                number,
                next: 0,
                part: Cursor::default(),
            }))
        }
    };
    let opens: Vec<_> = (0..LAYERS).map(open).collect();
    let sources: Vec<_> = opens
        .iter()
        .map(|open| LayerSource {
            media_type: String::new(),
            diff_id: None,
            open: open as &Open<'_>,
        })
        .collect();
    let mut options = BuildOptions::default();
    options.squashfs.threads = 2;
    let mut out = tempfile::tempfile().unwrap();
    let report = build_image(&sources, &mut out, &options).unwrap();
    assert!(report.bytes_in > 190 << 20, "{}", report.bytes_in);
    assert_eq!(report.entries, 40_000 + 32 + 2 + 2 * 100);
    let peak = peak();
    assert!(peak < 100, "{peak} MB for {} MB", report.bytes_in >> 20);
}
