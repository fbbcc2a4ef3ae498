//! No text makes the configuration's parser panic, and every error fits on a terminal.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shifter_core::config::Config;
use shifter_core::reference::ImageRef;

fuzz_target!(|text: &str| {
    match Config::parse(text, Path::new("/etc/shifter/shifter.toml")) {
        Ok(config) => {
            let _ = config.site_mounts();
            // The default type is one that exists.
            let error = ImageRef::parse("Ä", &config.type_rules()).expect_err("not a reference");
            assert!(!error.to_string().contains("image type"));
        }
        Err(error) => assert!(
            !error
                .to_string()
                .chars()
                .any(|c| c.is_control() && c != '\n')
        ),
    }
});
