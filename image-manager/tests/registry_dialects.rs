//! The token dialects of registries, as their recorded exchanges have them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod dialect;
#[path = "dialect/recording.rs"]
mod recording;
mod site;

use std::fs;
use std::path::Path;

use dialect::{chain, patience, plain, reference};
use image_manager::registry::{Access, Client, Logins, Proxies};
use recording::Recording;

/// Logins of a home whose docker file has this content.
fn logins(home: &Path, content: &serde_json::Value) -> Logins {
    fs::create_dir_all(home.join(".docker")).unwrap();
    fs::write(home.join(".docker/config.json"), content.to_string()).unwrap();
    Logins::of_home(home, rustix::process::geteuid().as_raw())
}

#[test]
fn recorded_exchanges() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialect/recorded");
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.sort();
    assert!(names.len() >= 14, "{names:?}");
    for path in names {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let recording = Recording::parse(&fs::read_to_string(&path).unwrap());
        let (server, faults) = recording.serve();
        let home = tempfile::tempdir().unwrap();
        let entry = recording.entry.clone().unwrap_or(serde_json::json!({}));
        let content = serde_json::json!({"auths": {&server.address: entry}});
        let rules = std::collections::BTreeMap::from([(server.address.clone(), plain())]);
        let client = Client::new(rules, logins(home.path(), &content), Proxies::default())
            .with_patience(patience());
        let image = reference(&format!("{}/{}", server.address, recording.image));
        let resolved = client.repository(&image).unwrap().resolve(&image);
        let faults = faults.lock().unwrap().join("\n");
        assert!(faults.is_empty(), "{name}: {faults}");
        let resolved = resolved.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        let expect = match recording.is_private {
            true => Access::Private,
            false => Access::Public,
        };
        assert_eq!(resolved.access, expect, "{name}");
        assert_eq!(server.requests().len(), recording.count(), "{name}");
    }
}
