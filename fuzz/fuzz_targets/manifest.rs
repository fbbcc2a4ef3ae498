//! A manifest that was read and is written again is the same manifest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shifter_core::manifest::{JobManifest, ManifestError};

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = JobManifest::parse(bytes) else {
        return;
    };
    let _ = manifest.volume_map();
    match manifest.to_bytes() {
        Ok(written) => {
            assert_eq!(
                JobManifest::parse(&written).expect("what was written"),
                manifest
            );
        }
        Err(error) => assert!(matches!(error, ManifestError::TooLarge)),
    }
});
