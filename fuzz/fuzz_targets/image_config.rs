//! No image's configuration makes the image manager panic; what is kept of one comes back from the
//! store as it was; and what is said of one fits on a terminal.
#![no_main]

use std::error::Error;

use image_manager::image_config::ImageConfig;
use libfuzzer_sys::fuzz_target;
use shifter_core::meta::ImageMeta;

fuzz_target!(|bytes: &[u8]| {
    for layers in 0..3 {
        match ImageConfig::parse(bytes, layers, "amd64") {
            Ok(config) => {
                assert_eq!(config.diff_ids.len(), layers);
                let mut meta = config.meta;
                meta.remove_unwritable();
                match meta.to_bytes() {
                    Ok(written) => assert_eq!(ImageMeta::parse(&written), Ok(meta)),
                    // An argument with a NUL, a directory with a line's end: the pull says so.
                    Err(error) => assert!(!error.to_string().contains(char::is_control)),
                }
            }
            Err(error) => {
                let mut at: Option<&dyn Error> = Some(&error);
                while let Some(error) = at {
                    // What serde_json says of a place in the text is sanitized where it is printed.
                    let text = error.to_string();
                    assert!(error.is::<serde_json::Error>() || !text.contains(char::is_control));
                    at = error.source();
                }
            }
        }
    }
});
