//! Manifests and indexes of the OCI and Docker v2 formats: one media type, one structure.
//!
//! A document must say what it is, contain what that kind has and nothing of the other kind
//! (CVE-2021-41190): otherwise two programs could read two images out of one digest. Schema 1 and
//! artifacts that are not images are refused by name.

use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;
use shifter_core::reference::Digest;
use shifter_core::sanitize;
use thiserror::Error;

/// Layers an image may have; docker itself stops at 127.
const LAYER_LIMIT: usize = 1000;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
const IMAGE_CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// The `Accept` header of a request for a manifest.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Says why a manifest or index cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It is not JSON of the expected form.
    #[error("it is not a valid document")]
    Syntax(#[source] serde_json::Error),
    /// It is a manifest and an index at once, or claims to be what it is not.
    #[error("it is ambiguous: {0}")]
    Ambiguous(String),
    /// It has the format that registries stopped serving years ago.
    #[error("the image exists only in the obsolete schema 1 format and must be pushed again")]
    SchemaOne,
    /// It is something other than a container image.
    #[error("it is not a container image but '{0}'")]
    NotAnImage(String),
    /// It names a blob by a digest that is not acceptable.
    #[error("a digest in it is not acceptable")]
    Digest(#[source] shifter_core::reference::RefError),
    /// It has more layers than any real image.
    #[error("it has {0} layers, more than {LAYER_LIMIT}")]
    TooManyLayers(usize),
    /// Nothing in the index fits this machine.
    #[error("the image does not exist for {wanted}, only for {available}")]
    NoPlatform {
        /// The platform of this machine.
        wanted: String,
        /// What the index has.
        available: String,
    },
    /// Indexes lead to indexes.
    #[error("it leads from index to index")]
    TooDeep,
}

impl ManifestError {
    /// True if the registry did its part, and the image is of no use here.
    pub(super) fn is_about_the_image(&self) -> bool {
        matches!(
            self,
            Self::SchemaOne | Self::NotAnImage(_) | Self::NoPlatform { .. }
        )
    }
}

/// Names a blob or manifest: its kind, digest and length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type, empty if none is given.
    pub media_type: String,
    /// The digest.
    pub digest: Digest,
    /// The length in bytes.
    pub size: u64,
    platform: Option<Platform>,
}

impl Descriptor {
    /// Names a blob that is known from elsewhere than a manifest.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image's configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// What a registry keeps under a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

/// Parses a document that arrived with the given `Content-Type`.
pub(crate) fn parse(bytes: &[u8], content_type: &str) -> Result<Document, ManifestError> {
    let header = content_type.split(';').next().unwrap_or_default().trim();
    if SCHEMA_1.contains(&header) {
        return Err(ManifestError::SchemaOne);
    }
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(ManifestError::Syntax)?;
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
        return Err(ManifestError::SchemaOne);
    }
    let inside = raw.media_type.as_deref().unwrap_or_default();
    let known = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];
    if !inside.is_empty() && known.contains(&header) && inside != header {
        let text = format!(
            "it says '{}' and came as '{header}'",
            sanitize::text(inside)
        );
        return Err(ManifestError::Ambiguous(text));
    }
    // Simple file servers send application/json; then the document must say what it is.
    let kind = if known.contains(&header) {
        header
    } else {
        inside
    };
    let is_index = match kind {
        OCI_INDEX | DOCKER_INDEX => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        "" => return Err(ManifestError::NotAnImage(sanitize::text(header))),
        other => return Err(ManifestError::NotAnImage(sanitize::text(other))),
    };
    match (is_index, raw.manifests, raw.config, raw.layers) {
        (true, Some(entries), None, None) => Ok(Document::Index(
            entries.into_iter().map(check).collect::<Result<_, _>>()?,
        )),
        (false, None, Some(config), Some(layers)) => {
            if !IMAGE_CONFIGS.contains(&config.media_type.as_str()) {
                return Err(ManifestError::NotAnImage(sanitize::text(
                    &config.media_type,
                )));
            }
            if layers.len() > LAYER_LIMIT {
                return Err(ManifestError::TooManyLayers(layers.len()));
            }
            let layers = layers.into_iter().map(check).collect::<Result<_, _>>()?;
            Ok(Document::Manifest(Manifest {
                config: check(config)?,
                layers,
            }))
        }
        (true, ..) => Err(ManifestError::Ambiguous(
            "an index has 'manifests' and no layers".into(),
        )),
        (false, ..) => Err(ManifestError::Ambiguous(
            "a manifest has 'config' and 'layers' and no 'manifests'".into(),
        )),
    }
}

/// True if a descriptor of this media type leads to a document of the kind that was found.
pub(super) fn is_kind(media_type: &str, document: &Document) -> bool {
    match media_type {
        OCI_INDEX | DOCKER_INDEX => matches!(document, Document::Index(_)),
        OCI_MANIFEST | DOCKER_MANIFEST => matches!(document, Document::Manifest(_)),
        _ => false,
    }
}

fn check(raw: RawDescriptor) -> Result<Descriptor, ManifestError> {
    Ok(Descriptor {
        media_type: raw.media_type,
        digest: Digest::parse(&raw.digest).map_err(ManifestError::Digest)?,
        size: raw.size,
        platform: raw.platform,
    })
}

/// Chooses the entry of an index for `architecture`, in Go's name for it, under Linux.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    architecture: &str,
) -> Result<&'a Descriptor, ManifestError> {
    // An index of one image often leaves the platform out: the image's configuration has it.
    if let [only] = entries
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let fits = |entry: &&Descriptor| {
        entry
            .platform
            .as_ref()
            .is_some_and(|p| p.os == "linux" && p.architecture == architecture)
    };
    // Of several variants the plainest runs everywhere: none, then v1 (amd64) and v8 (arm64).
    let rank = |entry: &&Descriptor| {
        let variant = entry.platform.as_ref().map_or("", |p| p.variant.as_str());
        match (architecture, variant) {
            (_, "") => 0,
            ("amd64", "v1") | ("arm64", "v8") => 1,
            _ => 2,
        }
    };
    entries.iter().filter(fits).min_by_key(rank).ok_or_else(|| {
        // Attestations are listed as unknown/unknown and are no images.
        let mut available: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .map(|platform| sanitize::text(&platform.to_string()))
            .collect();
        available.sort();
        available.dedup();
        let available = match available.is_empty() {
            true => "no platform at all".into(),
            false => available.join(", "),
        };
        ManifestError::NoPlatform {
            wanted: format!("linux/{architecture}"),
            available,
        }
    })
}

/// Returns this machine's architecture in the words that indexes use, which are Go's.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn descriptor(media_type: &str, digest: &str, extra: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":3{extra}}}"#)
    }

    fn manifest(media_type: &str, config: &str, extra: &str) -> String {
        let config = descriptor(config, A, "");
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", A, "");
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{config},"layers":[{layer}]{extra}}}"#
        )
    }

    #[test]
    fn one_media_type_one_structure() {
        let good = manifest(OCI_MANIFEST, IMAGE_CONFIGS[0], "");
        let index = format!(r#"{{"manifests":[{}]}}"#, descriptor(OCI_MANIFEST, A, ""));
        let both = manifest(OCI_MANIFEST, IMAGE_CONFIGS[0], r#","manifests":[]"#);
        let chart = manifest(OCI_MANIFEST, "application/vnd.cncf.helm.config.v1+json", "");
        let docker = manifest(DOCKER_MANIFEST, IMAGE_CONFIGS[1], "");
        let twice = manifest(OCI_MANIFEST, IMAGE_CONFIGS[0], r#","layers":[]"#);
        let table = [
            (&good, OCI_MANIFEST, "manifest"),
            (
                &good,
                "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
                "manifest",
            ),
            (&good, "application/json", "manifest"),
            (&docker, DOCKER_MANIFEST, "manifest"),
            (&index, OCI_INDEX, "index"),
            (
                &index,
                "application/json",
                "it is not a container image but 'application/json'",
            ),
            (&good, OCI_INDEX, "it is ambiguous: it says"),
            (&index, OCI_MANIFEST, "it is ambiguous: a manifest has"),
            (&both, OCI_MANIFEST, "it is ambiguous: a manifest has"),
            (
                &chart,
                OCI_MANIFEST,
                "it is not a container image but 'application/vnd.cncf.helm",
            ),
            (&twice, OCI_MANIFEST, "it is not a valid document"),
            (&"[]".to_owned(), OCI_MANIFEST, "it is not a valid document"),
            (
                &good,
                SCHEMA_1[1],
                "the image exists only in the obsolete schema 1",
            ),
            (
                &r#"{"schemaVersion":1}"#.to_owned(),
                "application/json",
                "the image exists only",
            ),
        ];
        for (text, header, expect) in table {
            let found = match parse(text.as_bytes(), header) {
                Ok(Document::Manifest(_)) => "manifest".to_owned(),
                Ok(Document::Index(_)) => "index".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(found.starts_with(expect), "{header}: {text}\n{found}");
        }
    }

    #[test]
    fn digests_are_checked_before_use() {
        for bad in [
            "sha256:../../x",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha256:abc",
            "",
        ] {
            let text = manifest(OCI_MANIFEST, IMAGE_CONFIGS[0], "").replace(A, bad);
            let error = parse(text.as_bytes(), OCI_MANIFEST).unwrap_err();
            assert!(matches!(error, ManifestError::Digest(_)), "{bad}: {error}");
        }
    }

    fn entries(platforms: &[&str]) -> Vec<Descriptor> {
        let entry = |(at, platform): (usize, &&str)| {
            let mut parts = platform.split('/');
            let mut next = || parts.next().unwrap_or_default().to_owned();
            let platform = Platform {
                os: next(),
                architecture: next(),
                variant: next(),
            };
            let digest = Digest::parse(A).unwrap();
            Descriptor {
                media_type: OCI_MANIFEST.into(),
                digest,
                size: at as u64,
                platform: (!platform.os.is_empty()).then_some(platform),
            }
        };
        platforms.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn chooses_the_platform() {
        let table: [(&[&str], Option<u64>); 8] = [
            (&["linux/arm64", "linux/amd64"], Some(1)),
            (&["linux/amd64/v3", "linux/amd64"], Some(1)),
            (&["linux/amd64/v3", "linux/amd64/v1"], Some(1)),
            (&["linux/amd64/v3"], Some(0)),
            (&["windows/amd64", "linux/arm64"], None),
            (&[""], Some(0)),
            (&["", ""], None),
            (&[], None),
        ];
        for (platforms, expect) in table {
            let entries = entries(platforms);
            let found = choose(&entries, "amd64").ok().map(|entry| entry.size);
            assert_eq!(found, expect, "{platforms:?}");
        }
        let listed = entries(&[
            "linux/s390x",
            "unknown/unknown",
            "linux/arm64/v8",
            "linux/s390x",
        ]);
        assert_eq!(
            choose(&listed, "amd64").unwrap_err().to_string(),
            "the image does not exist for linux/amd64, only for linux/arm64/v8, linux/s390x"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes: Vec<u8>, header in "\\PC*") {
            let _ = parse(&bytes, &header);
        }
    }
}
