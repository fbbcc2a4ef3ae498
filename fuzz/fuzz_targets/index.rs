//! No manifest or index makes the registry client panic, and what it says of one fits on a terminal.
#![no_main]

use std::error::Error;

use image_manager::registry::untrusted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The first line is the type that it came as.
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (header, body) = bytes.split_at(end.unwrap_or(0));
    let header = String::from_utf8_lossy(header);
    if let Err(error) = untrusted::manifest(body, &header) {
        let mut at: Option<&dyn Error> = Some(&error);
        while let Some(error) = at {
            // What serde_json says of a place in the text is not the other side's.
            assert!(error.is::<serde_json::Error>() || !error.to_string().contains(char::is_control));
            at = error.source();
        }
    }
});
