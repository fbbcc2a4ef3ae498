//! No bytes make the importer panic; what it makes is a configuration; and what it says fits on a
//! terminal.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use shifter_core::config::Config;
use site_tools::import::{ImportError, Options, import};

fuzz_target!(|bytes: &[u8]| {
    for ignores_unknown in [false, true] {
        let options = Options {
            ignores_unknown,
            prefix: Some("/opt/shifter".into()),
        };
        match import(bytes, "udiRoot.conf", &options) {
            Ok(imported) => {
                let config = Config::parse(&imported.toml, Path::new("/x")).expect("verified");
                assert_eq!(config.prefix, Path::new("/opt/shifter"));
                for remark in imported.remarks {
                    assert!(!remark.key.contains(char::is_control));
                    assert!(!remark.text.contains(char::is_control));
                }
            }
            Err(ImportError::Unverified(why)) => panic!("{why}"),
            Err(error) => assert!(!error.to_string().contains(char::is_control)),
        }
    }
});
