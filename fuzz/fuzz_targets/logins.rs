//! No file with logins makes the registry client panic, and no error shows what is in it.
#![no_main]

use image_manager::registry::untrusted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for registry in ["docker.io", "h:5000"] {
        if let Err(error) = untrusted::logins(bytes, registry) {
            assert!(error.starts_with("it is not valid at line "), "{error}");
        }
    }
});
