//! No header and no token server's answer makes the registry client panic or loop.
#![no_main]

use image_manager::registry::untrusted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    assert!(untrusted::challenges(&text) <= text.len());
    let _ = untrusted::token(bytes);
});
