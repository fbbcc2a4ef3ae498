//! Metadata that was read and is written again is the same metadata, who may use the image included.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shifter_core::meta::{ImageMeta, MetaError};

fuzz_target!(|bytes: &[u8]| {
    let Ok(meta) = ImageMeta::parse(bytes) else {
        return;
    };
    match meta.to_bytes() {
        Ok(written) => assert_eq!(ImageMeta::parse(&written), Ok(meta)),
        // Escapes make a list longer than it was.
        Err(error) => assert_eq!(error, MetaError::TooLarge),
    }
});
