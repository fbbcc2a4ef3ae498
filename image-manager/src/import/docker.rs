//! Archives of `docker save`: `manifest.json` lists images, their names, configurations and layers.
//!
//! The names of configuration and layers in the archive are only names. What pins an image is its
//! configuration, whose digest is the image's id, and the digests of layers in there.

use serde::Deserialize;
use shifter_core::reference::Digest;

use super::error::ImportError;
use super::names::Names;
use super::section::Section;
use super::{Blob, CONFIG_LIMIT, Found, IMAGE_LIMIT, MANIFEST_LIMIT};
use crate::hash;

/// The list of images.
pub(super) const LIST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Raw {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// An image in the archive.
#[derive(Debug)]
pub(super) struct Image {
    config: String,
    layers: Vec<String>,
}

/// Lists the images of an archive.
pub(super) fn list(names: &Names) -> Result<Vec<Found<Image>>, ImportError> {
    let bytes = small(&names.file(LIST)?, LIST, MANIFEST_LIMIT)?;
    let raw: Vec<Raw> = serde_json::from_slice(&bytes).map_err(|source| ImportError::Syntax {
        name: LIST.into(),
        source,
    })?;
    if raw.len() > IMAGE_LIMIT {
        return Err(ImportError::Member {
            name: LIST.into(),
            reason: format!("lists more than {IMAGE_LIMIT} images"),
        });
    }
    let found = raw.into_iter().map(|raw| Found {
        names: raw.repo_tags.unwrap_or_default(),
        image: Image {
            config: raw.config,
            layers: raw.layers.unwrap_or_default(),
        },
    });
    Ok(found.collect())
}

/// Finds the configuration and the layers of an image.
pub(super) fn read(names: &Names, image: &Image) -> Result<(Vec<u8>, Vec<Blob>), ImportError> {
    let config = small(&names.file(&image.config)?, &image.config, CONFIG_LIMIT)?;
    check_name(&image.config, &config)?;
    let layer = |name: &String| {
        Ok(Blob {
            section: names.file(name)?,
            // Docker writes them uncompressed, others do not: the content decides.
            media_type: String::new(),
            digest: digest_in(name).filter(|_| name.starts_with("blobs/")),
        })
    };
    let layers = image.layers.iter().map(layer);
    Ok((config, layers.collect::<Result<_, ImportError>>()?))
}

/// Reads a document of at most `limit` bytes.
pub(super) fn small(file: &Section, name: &str, limit: u64) -> Result<Vec<u8>, ImportError> {
    let bytes = file.bytes(limit).map_err(ImportError::Read)?;
    bytes.ok_or_else(|| ImportError::Member {
        name: name.to_owned(),
        reason: format!("has more than {limit} bytes"),
    })
}

/// A configuration that is named by a digest has that digest.
fn check_name(name: &str, config: &[u8]) -> Result<(), ImportError> {
    match digest_in(name) {
        Some(digest) if !hash::matches(config, &digest) => Err(ImportError::Member {
            name: name.to_owned(),
            reason: "is not what its name says: its digest is another".into(),
        }),
        _ => Ok(()),
    }
}

/// Reads the digest out of `<hex>.json`, `sha256:<hex>` and `blobs/sha256/<hex>`.
fn digest_in(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    let stem = last.strip_suffix(".json").unwrap_or(last);
    let hex = stem.strip_prefix("sha256:").unwrap_or(stem);
    Digest::parse(&format!("sha256:{hex}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_digests() {
        let hex = hash::sha256_hex(b"x");
        for name in [
            format!("{hex}.json"),
            format!("sha256:{hex}"),
            format!("blobs/sha256/{hex}"),
        ] {
            assert!(check_name(&name, b"x").is_ok(), "{name}");
            assert!(check_name(&name, b"y").is_err(), "{name}");
        }
        assert!(check_name("config.json", b"y").is_ok());
    }
}
