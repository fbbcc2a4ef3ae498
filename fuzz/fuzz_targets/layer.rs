//! A layer's archive is read to its end or refused, within its budget, and no path leads out of it.
#![no_main]

use std::io::Cursor;

use image_manager::layer::{Budget, LayerReader, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        bytes: 16 << 20,
        ..Limits::default()
    };
    let blob = Cursor::new(bytes.to_vec());
    let Ok(mut reader) = LayerReader::open(blob, "", false, &Budget::new(&limits)) else {
        return;
    };
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut names = entry.path.split(|byte| *byte == b'/');
        assert!(!entry.path.starts_with(b"/") && !names.any(|name| name == b".."));
        while let Ok(Some(_)) = reader.next_chunk() {}
    }
});
