//! A CDI specification that parses names absolute paths without '..' and variables with a name;
//! what of it is written as JSON on one line is the same as YAML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shifter_core::cdi::{Spec, Specs, yaml};

fuzz_target!(|text: &str| {
    if let Ok(value) = yaml::parse(text) {
        // One level more may be one too many.
        if let Ok(again) = yaml::parse(&value.to_string()) {
            assert_eq!(again, value);
        }
    }
    for is_json in [true, false] {
        let Ok(spec) = Spec::parse(text.as_bytes(), is_json) else {
            continue;
        };
        let kind = spec.kind.clone();
        let mut specs = Specs::default();
        specs.add(0, "a".into(), spec);
        for name in ["0", "all"] {
            let Ok(edits) = specs.select(&[format!("{kind}={name}")]) else {
                continue;
            };
            let nodes = edits.nodes.iter().flat_map(|n| [&n.path, &n.host_path]);
            let mounts = edits
                .mounts
                .iter()
                .flat_map(|m| [&m.container_path, &m.host_path]);
            for path in nodes.chain(mounts) {
                assert!(path.starts_with('/') && path != "/" && !path.contains("//"));
                assert!(!path.split('/').any(|part| part == ".."));
            }
            assert!(
                edits
                    .env
                    .iter()
                    .all(|(name, _)| !name.is_empty() && !name.contains('='))
            );
        }
    }
});
