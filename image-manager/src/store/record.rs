//! What is known of where an image came from: `<id>.json` beside `<id>.squashfs`.
//!
//! `.meta` is the C Shifter's and nothing may be added to it. This record is for people, and for
//! checking the store: nothing is permitted because of it, and an image without one is an image.
//! Readers ignore keys that they do not know.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};
use shifter_core::ids::ImageId;

use crate::hash;

/// Bytes that a record may have.
const LIMIT: u64 = 1 << 20;
/// Bytes that each word of the author's may have; a longer one says nothing.
const WORD_LIMIT: usize = 256;

/// Where an image came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageRecord {
    /// Registry and repository, `docker.io/library/debian`, or what else it was made of.
    pub source: String,
    /// True if the registry gave it only to who has a login.
    pub is_private: bool,
    /// Digest of the manifest, or of the index, that the reference stood for.
    pub digest: Option<String>,
    /// What it runs on, `linux/amd64`.
    pub platform: Option<String>,
    /// When its author made it, in the author's words.
    pub created: Option<String>,
    /// Real uid of who pulled it first.
    pub pulled_by: Option<u32>,
    /// Time of that pull, in seconds since 1970.
    pub pulled: Option<u64>,
    /// Its layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// The labels that its author gave it.
    pub labels: BTreeMap<String, String>,
    /// BLAKE3 of the image file, in hexadecimal: a pull ends by computing it, and it is the fastest.
    pub blake3: Option<String>,
}

/// One layer of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerRecord {
    /// Its media type.
    pub media_type: String,
    /// Digest of the blob.
    pub digest: String,
    /// Length of the blob.
    pub size: u64,
    /// Digest of the uncompressed tar.
    pub diff_id: String,
}

/// The parts of an image's configuration that go into the record.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Described {
    created: Option<String>,
    os: String,
    architecture: String,
    variant: Option<String>,
    config: Option<Labels>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Labels {
    labels: Option<BTreeMap<String, String>>,
}

impl ImageRecord {
    /// Takes from an image's configuration what is of interest; one that cannot be read says
    /// nothing.
    pub fn describe(&mut self, config: &[u8]) {
        let found: Described = serde_json::from_slice(config).unwrap_or_default();
        let is_word = |text: &String| !text.is_empty() && text.len() <= WORD_LIMIT;
        let parts = [Some(found.os), Some(found.architecture), found.variant];
        let parts: Vec<String> = parts.into_iter().flatten().filter(is_word).collect();
        self.platform = (!parts.is_empty()).then(|| parts.join("/"));
        self.created = found.created.filter(is_word);
        self.labels = found
            .config
            .and_then(|config| config.labels)
            .unwrap_or_default();
    }

    /// Writes the record; labels that would make it too large are left out.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let write = |record: &Self| serde_json::to_vec(record).unwrap_or_default();
        let bytes = write(self);
        if bytes.len() as u64 <= LIMIT {
            return bytes;
        }
        write(&Self {
            labels: BTreeMap::new(),
            ..self.clone()
        })
    }

    /// Reads a record.
    pub(super) fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

/// Reads the record of an image, if there is one that may be read.
pub(super) fn read(dir: &std::os::fd::OwnedFd, id: &ImageId) -> io::Result<Option<ImageRecord>> {
    let bytes = match crate::files::read(dir, &file_name(id), LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        bytes => bytes?,
    };
    Ok(bytes.map(|bytes| ImageRecord::parse(&bytes)).transpose()?)
}

/// Returns the file name of an image's record.
pub(super) fn file_name(id: &ImageId) -> String {
    format!("{id}.json")
}

/// Computes what [`ImageRecord::blake3`] says.
pub(super) fn hash_image(
    file: &File,
    mut watch: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hash::read_file(file, |bytes| {
        hasher.update(bytes);
        watch(bytes.len() as u64)
    })?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_a_configuration_says() {
        let mut record = ImageRecord::default();
        record.describe(
            br#"{"created":"2026-01-02T03:04:05Z","os":"linux","architecture":"arm64",
                "variant":"v8","config":{"Labels":{"a":"b"}},"history":[{}]}"#,
        );
        assert_eq!(record.platform.as_deref(), Some("linux/arm64/v8"));
        assert_eq!(record.created.as_deref(), Some("2026-01-02T03:04:05Z"));
        assert_eq!(record.labels["a"], "b");
        for odd in [
            &b"{}"[..],
            b"null",
            b"nonsense",
            br#"{"config":{"Labels":null}}"#,
        ] {
            record.describe(odd);
            assert_eq!(record, ImageRecord::default());
        }
    }

    #[test]
    fn a_record_stays_small() {
        let mut record = ImageRecord {
            source: "quay.io/x".into(),
            ..ImageRecord::default()
        };
        let back = |record: &ImageRecord| ImageRecord::parse(&record.to_bytes()).unwrap();
        record.labels.insert("a".into(), "b".into());
        assert_eq!(back(&record), record);
        record.labels.insert("long".into(), "x".repeat(2 << 20));
        assert_eq!(
            (back(&record).source.as_str(), back(&record).labels.len()),
            ("quay.io/x", 0)
        );
        let long = "x".repeat(2 << 20);
        let config = serde_json::json!({"created": long, "os": "linux", "variant": long});
        record.describe(config.to_string().as_bytes());
        assert_eq!(back(&record).platform.as_deref(), Some("linux"));
        let later = br#"{"source":"x","a key of tomorrow":1}"#;
        assert_eq!(ImageRecord::parse(later).unwrap().source, "x");
    }
}
