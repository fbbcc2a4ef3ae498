//! The configuration of an image, as OCI and Docker define it, and what Shifter keeps of it.
//!
//! It comes from the image's author: nothing in it is trusted to be printable or short.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use shifter_core::ids::{IdError, ImageId};
use shifter_core::meta::ImageMeta;
use shifter_core::reference::Digest;
use shifter_core::sanitize;
use thiserror::Error;

use crate::hash;

/// Says why an image's configuration cannot be used.
#[derive(Debug, Error)]
pub enum ImageConfigError {
    /// It is not JSON of the expected form.
    #[error("the image's configuration is not valid")]
    Syntax(#[source] serde_json::Error),
    /// A layer's digest is not acceptable.
    #[error("the image's configuration has an unacceptable layer digest")]
    Digest(#[source] shifter_core::reference::RefError),
    /// Manifest and configuration are not of one image.
    #[error("the manifest has {manifest} layers and the image's configuration {config}")]
    LayerCount {
        /// Layers in the manifest.
        manifest: usize,
        /// Layers in the configuration.
        config: usize,
    },
    /// The image is for another kind of machine.
    #[error("the image is for {found}, and {wanted} is wanted")]
    Platform {
        /// What the image is for.
        found: String,
        /// What this machine is, or the user asked for.
        wanted: String,
    },
    /// The id could not be made.
    #[error("the image has no id")]
    Id(#[from] IdError),
}

/// What an image says of itself.
#[derive(Debug)]
pub struct ImageConfig {
    /// Its id: the SHA-256 of the configuration.
    pub id: ImageId,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<String>,
    /// What the runtime needs to know; the access lists are empty.
    pub meta: ImageMeta,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RawProcess>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawProcess {
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    user: Option<String>,
}

/// A command: a list, or in images of long ago one string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<String>),
    One(String),
}

impl Words {
    /// Returns the words; an empty command is none.
    fn bytes(self) -> Option<Vec<Vec<u8>>> {
        let words = match self {
            Words::List(words) => words,
            Words::One(word) => vec!["/bin/sh".into(), "-c".into(), word],
        };
        (!words.is_empty()).then(|| words.into_iter().map(String::into_bytes).collect())
    }
}

impl ImageConfig {
    /// Parses the configuration of an image with `layer_count` layers for `architecture`.
    pub fn parse(
        bytes: &[u8],
        layer_count: usize,
        architecture: &str,
    ) -> Result<Self, ImageConfigError> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(ImageConfigError::Syntax)?;
        let fits = |found: &str, wanted: &str| found.is_empty() || found == wanted;
        if !fits(&raw.os, "linux") || !fits(&raw.architecture, architecture) {
            return Err(ImageConfigError::Platform {
                found: sanitize::text(&format!("{}/{}", raw.os, raw.architecture)),
                wanted: format!("linux/{architecture}"),
            });
        }
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        for diff_id in &diff_ids {
            Digest::parse(diff_id).map_err(ImageConfigError::Digest)?;
        }
        if diff_ids.len() != layer_count {
            let (manifest, config) = (layer_count, diff_ids.len());
            return Err(ImageConfigError::LayerCount { manifest, config });
        }
        let id = ImageId::parse(&hash::sha256_hex(bytes))?;
        Ok(Self {
            id,
            diff_ids,
            meta: raw.config.unwrap_or_default().into_meta(),
        })
    }
}

impl RawProcess {
    fn into_meta(self) -> ImageMeta {
        let filled =
            |text: Option<String>| text.filter(|text| !text.is_empty()).map(String::into_bytes);
        let env = self.env.unwrap_or_default();
        let env = env.iter().filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (!key.is_empty()).then(|| (key.as_bytes().to_vec(), value.as_bytes().to_vec()))
        });
        ImageMeta {
            format: "squashfs".into(),
            entry: self.entrypoint.and_then(Words::bytes),
            cmd: self.cmd.and_then(Words::bytes),
            workdir: filled(self.working_dir),
            env: env.collect(),
            volumes: self
                .volumes
                .unwrap_or_default()
                .into_keys()
                .map(String::into_bytes)
                .collect(),
            user: filled(self.user),
            ..ImageMeta::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIFF_ID: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn parse(text: &str, layers: usize) -> Result<ImageConfig, String> {
        ImageConfig::parse(text.as_bytes(), layers, "amd64").map_err(|error| error.to_string())
    }

    #[test]
    fn takes_what_the_runtime_needs() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"x","history":[{{}}],
            "config":{{"Env":["PATH=/bin","EMPTY=","NOVALUE","=x","A=b=c"],"Entrypoint":["/e","-x"],
            "Cmd":[],"WorkingDir":"/w","Volumes":{{"/data":{{}}}},"User":"1000","Labels":{{"a":"b"}},
            "ExposedPorts":{{}}}},"rootfs":{{"type":"layers","diff_ids":["{DIFF_ID}"]}}}}"#
        );
        let config = parse(&text, 1).unwrap();
        assert_eq!(config.diff_ids, [DIFF_ID]);
        assert_eq!(config.id.as_str(), hash::sha256_hex(text.as_bytes()));
        let meta = config.meta;
        let pair = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        assert_eq!(
            meta.env,
            [pair("PATH", "/bin"), pair("EMPTY", ""), pair("A", "b=c")]
        );
        assert_eq!(meta.entry.unwrap(), [b"/e".to_vec(), b"-x".to_vec()]);
        assert_eq!((meta.cmd, meta.workdir.unwrap()), (None, b"/w".to_vec()));
        assert_eq!(
            (meta.volumes, meta.user.unwrap()),
            (vec![b"/data".to_vec()], b"1000".to_vec())
        );
        assert_eq!(meta.format, "squashfs");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let rootfs = format!(r#""rootfs":{{"diff_ids":["{DIFF_ID}"]}}"#);
        let table = [
            (format!(r#"{{{rootfs}}}"#), 1, ""),
            (format!(r#"{{"config":null,{rootfs}}}"#), 1, ""),
            (format!(r#"{{"config":{{"Cmd":"date"}},{rootfs}}}"#), 1, ""),
            (
                format!(r#"{{{rootfs}}}"#),
                2,
                "the manifest has 2 layers and",
            ),
            (
                format!(r#"{{"os":"windows",{rootfs}}}"#),
                1,
                "the image is for windows/, and",
            ),
            (
                format!(r#"{{"os":"linux","architecture":"arm64",{rootfs}}}"#),
                1,
                "the image is for linux/arm64, and linux/amd64 is wanted",
            ),
            (
                r#"{"rootfs":{"diff_ids":["md5:x"]}}"#.into(),
                1,
                "the image's configuration has an",
            ),
            ("{}".into(), 0, "the image's configuration is not valid"),
        ];
        for (text, layers, expect) in table {
            let found = parse(&text, layers).err().unwrap_or_default();
            assert!(
                found.starts_with(expect) && found.is_empty() == expect.is_empty(),
                "{found}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes: Vec<u8>) {
            let _ = ImageConfig::parse(&bytes, 1, "amd64");
        }
    }
}
