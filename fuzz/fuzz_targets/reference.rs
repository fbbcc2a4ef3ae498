//! A reference that parses has a canonical form, which is the same reference under any rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shifter_core::reference::{ImageRef, ImageType, TypeRules};

fuzz_target!(|text: &str| {
    let site_types = ["gitlab".to_owned()];
    for default_type in ["docker", "id", "local", "custom", "gitlab"] {
        let rules = |default_type| TypeRules {
            default_type,
            site_types: &site_types,
        };
        let Ok(image) = ImageRef::parse(text, &rules(default_type)) else {
            continue;
        };
        let canonical = image.canonical();
        for other in ["docker", "id", "local", "custom", "gitlab"] {
            assert_eq!(
                ImageRef::parse(&canonical, &rules(other)).as_ref(),
                Ok(&image)
            );
        }
        assert!(
            !canonical
                .chars()
                .any(|c| c.is_control() || c.is_whitespace())
        );
        // A file is opened as its user, who may go where he likes; all others become parts of paths.
        let mut components = image.repository().split('/');
        assert!(
            *image.image_type() == ImageType::File
                || !components.any(|component| component == "..")
        );
    }
});
