//! A volume map that parses has a signature that parses to itself, and is what its origin may ask.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shifter_core::volmap::{Origin, VolumeMap, contains, judge_user_target};

fuzz_target!(|text: &str| {
    for origin in [Origin::User, Origin::Site] {
        let Ok(map) = VolumeMap::parse(text, origin) else {
            continue;
        };
        let signature = map.signature();
        let again = VolumeMap::parse(&signature, origin).expect("a signature parses");
        assert_eq!(again.signature(), signature);
        for volume in map.entries() {
            assert!(contains("/", &volume.from) && contains("/", &volume.to));
            assert!(
                ![&volume.from, &volume.to]
                    .iter()
                    .any(|path| path.contains("//"))
            );
            if origin == Origin::User {
                assert_eq!(judge_user_target(&volume.to), Ok(()));
                assert!(!contains("/etc/passwd", &volume.to) && !contains("/proc", &volume.to));
                assert_ne!(volume.to, "/etc");
                assert!(!volume.flags.rec && !volume.flags.slave && !volume.flags.private);
            }
        }
    }
});
