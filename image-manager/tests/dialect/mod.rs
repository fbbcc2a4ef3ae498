//! Registries whose every answer the test writes, and clients that talk to them.
//!
//! A server of our own rather than a real one: what is tested is what real ones do on bad days.
#![allow(dead_code, reason = "each test program uses a part of this")]

pub mod certificates;
pub mod reply;
pub mod server;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use image_manager::registry::{
    Client, Descriptor, Logins, Patience, Proxies, RegistryError, Repository,
};
use sha2::{Digest as _, Sha256};
use shifter_core::config::Registry;
use shifter_core::reference::{Digest, ImageRef, TypeRules};

pub use reply::Reply;
#[allow(unused_imports, reason = "each test program uses a part of this")]
pub use server::{Request, Server};

/// Parses a reference as at any site.
pub fn reference(text: &str) -> ImageRef {
    let rules = TypeRules {
        default_type: "docker",
        site_types: &[],
    };
    ImageRef::parse(text, &rules).unwrap()
}

/// Patience for tests: as often as usual, and quickly.
pub fn patience() -> Patience {
    Patience {
        progress: Duration::from_millis(400),
        pause: Duration::from_millis(4),
        pause_limit: Duration::from_millis(20),
        ..Patience::default()
    }
}

pub fn plain() -> Registry {
    Registry {
        plain_http: true,
        ..Registry::default()
    }
}

/// A client without logins that speaks plain http to these registries.
pub fn client(registries: &[&str]) -> Client {
    let entries = registries.iter().map(|name| (name.to_string(), plain()));
    let entries: BTreeMap<String, Registry> = entries.collect();
    Client::new(entries, Logins::default(), Proxies::default()).with_patience(patience())
}

/// Returns the digest of bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Digest::parse(&format!("sha256:{hex}")).unwrap()
}

/// Describes bytes as a layer.
pub fn descriptor(bytes: &[u8]) -> Descriptor {
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    Descriptor::new(media_type, digest(bytes), bytes.len() as u64)
}

/// Bytes that repeat nowhere.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(|_| next()).collect()
}

/// Fetches a blob from `offset` on.
pub fn fetch(
    repository: &Repository<'_>,
    blob: &Descriptor,
    offset: u64,
) -> (Vec<u8>, Result<(), RegistryError>) {
    let mut bytes = Vec::new();
    let result = repository.blob_from(blob, offset, |part| {
        bytes.extend_from_slice(part);
        Ok(())
    });
    (bytes, result)
}

/// The words of an error and all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// A value that a server's thread changes.
#[derive(Default)]
pub struct Counter(Mutex<u64>);

impl Counter {
    /// Adds one and returns what was there before.
    pub fn next(&self) -> u64 {
        let mut value = self.0.lock().unwrap();
        *value += 1;
        *value - 1
    }
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Asks for the manifest of `x` and returns the error, as people and programs see it.
pub fn error_of(client: &Client, registry: &str) -> (RegistryError, String) {
    let reference = reference(&format!("{registry}/x"));
    let error = client
        .repository(&reference)
        .and_then(|repository| repository.resolve(&reference))
        .expect_err(registry);
    let text = format!("{} {:?}", chain(&error), error);
    (error, text)
}

/// A manifest with one layer of this description.
pub fn manifest_with(layer: serde_json::Value, config: &[u8]) -> String {
    serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(config).to_string(), "size": config.len(),
        },
        "layers": [layer],
    })
    .to_string()
}
