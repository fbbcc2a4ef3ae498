//! Manifests and indexes of the OCI and Docker v2 formats: one media type, one structure.
//!
//! A document must say what it is, contain what that kind has and nothing of the other kind
//! (CVE-2021-41190): otherwise two programs could read two images out of one digest. Schema 1 and
//! artifacts that are not images are refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use shifter_core::reference::Digest;
use shifter_core::sanitize;
use thiserror::Error;

use super::platform::{Platform, Wanted};

/// Layers an image may have; docker itself stops at 127.
const LAYER_LIMIT: usize = 1000;

/// Entries an index may have.
const ENTRY_LIMIT: usize = 4096;

/// Other places of a layer that are tried.
const URL_LIMIT: usize = 4;

/// Platforms that a message lists.
const LISTED: usize = 20;

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
    /// One of its layers is not a tar archive.
    #[error("one of its layers is not a file system but '{0}'")]
    NotALayer(String),
    /// It names a blob by a digest that is not acceptable.
    #[error("a digest in it is not acceptable")]
    Digest(#[source] shifter_core::reference::RefError),
    /// It has more layers than any real image.
    #[error("it has {0} layers, more than {LAYER_LIMIT}")]
    TooManyLayers(usize),
    /// It lists more images than any real index.
    #[error("it lists {0} images, more than {ENTRY_LIMIT}")]
    TooManyEntries(usize),
    /// Nothing in the index fits.
    #[error("the image does not exist for {wanted}, only for {available}")]
    NoPlatform {
        /// The platform that is wanted.
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
            Self::SchemaOne | Self::NotAnImage(_) | Self::NotALayer(_) | Self::NoPlatform { .. }
        )
    }

    /// Returns a known way out.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::SchemaOne => {
                Some("pull it with docker 25 or older, or skopeo, and push it again")
            }
            Self::NoPlatform { .. } => Some("choose one of them with '--platform'"),
            _ => None,
        }
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
    /// Other places where a foreign layer is; https alone.
    pub(super) urls: Vec<String>,
    platform: Option<Platform>,
    is_attachment: bool,
}

impl Descriptor {
    /// Names a blob that is known from elsewhere than a manifest.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            platform: None,
            is_attachment: false,
        }
    }

    /// False for what lies beside images in an index: attestations, signatures, other artifacts.
    fn is_image(&self) -> bool {
        let is_known = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX]
            .contains(&self.media_type.as_str());
        let is_unknown = self.platform.as_ref().is_some_and(Platform::is_unknown);
        is_known && !is_unknown && !self.is_attachment
    }
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
    #[serde(default)]
    urls: Vec<String>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    artifact_type: Option<String>,
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
        (true, Some(entries), None, None) if entries.len() > ENTRY_LIMIT => {
            Err(ManifestError::TooManyEntries(entries.len()))
        }
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
            let layers = layers
                .into_iter()
                .map(check)
                .collect::<Result<Vec<_>, _>>()?;
            if let Some(layer) = layers.iter().find(|layer| !is_layer(&layer.media_type)) {
                return Err(ManifestError::NotALayer(sanitize::text(&layer.media_type)));
            }
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

/// True for what a layer may be: a tar, packed or not, in the registry or elsewhere.
fn is_layer(media_type: &str) -> bool {
    const PREFIXES: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let packing = PREFIXES
        .iter()
        .find_map(|prefix| media_type.strip_prefix(prefix));
    let packing = packing.map(|packing| packing.trim_start_matches(['+', '.']));
    matches!(packing, Some("" | "gzip" | "zstd"))
}

fn check(raw: RawDescriptor) -> Result<Descriptor, ManifestError> {
    // BuildKit marks its attestations so; an artifact says what it is.
    let is_reference = raw
        .annotations
        .is_some_and(|notes| notes.contains_key("vnd.docker.reference.type"));
    let is_attachment = is_reference || raw.artifact_type.is_some_and(|kind| !kind.is_empty());
    let mut urls = raw.urls;
    urls.retain(|url| url.starts_with("https://"));
    urls.truncate(URL_LIMIT);
    Ok(Descriptor {
        media_type: raw.media_type,
        digest: Digest::parse(&raw.digest).map_err(ManifestError::Digest)?,
        size: raw.size,
        urls,
        platform: raw.platform,
        is_attachment,
    })
}

/// What an index has.
pub(crate) struct Choice<'a> {
    /// The entries that fit, the best one first. Indexes without a platform come last: what is in
    /// them may fit.
    pub fitting: Vec<&'a Descriptor>,
    /// The platforms of all entries, for people.
    pub available: Vec<String>,
}

/// Chooses from the entries of an index.
pub(crate) fn choose<'a>(entries: &'a [Descriptor], wanted: &Wanted) -> Choice<'a> {
    let images: Vec<&Descriptor> = entries.iter().filter(|e| e.is_image()).collect();
    let platforms = images.iter().filter_map(|entry| entry.platform.as_ref());
    let available = platforms.map(Platform::to_string).collect();
    // An index of one image often leaves the platform out: the image's configuration has it.
    if let [only] = images[..]
        && only.platform.is_none()
    {
        let fitting = vec![only];
        return Choice { fitting, available };
    }
    let is_index = |entry: &Descriptor| matches!(&*entry.media_type, OCI_INDEX | DOCKER_INDEX);
    let rank = |entry: &&Descriptor| match &entry.platform {
        Some(platform) => wanted.rank(platform),
        None => is_index(entry).then_some(u32::MAX),
    };
    let mut fitting: Vec<(u32, &Descriptor)> = images
        .iter()
        .filter_map(|entry| Some((rank(entry)?, *entry)))
        .collect();
    fitting.sort_by_key(|(rank, _)| *rank);
    let fitting = fitting.into_iter().map(|(_, entry)| entry).collect();
    Choice { fitting, available }
}

/// Says that nothing fits, and what there is.
pub(crate) fn no_platform(wanted: &Wanted, mut available: Vec<String>) -> ManifestError {
    available.sort();
    available.dedup();
    let more = available.len().saturating_sub(LISTED);
    available.truncate(LISTED);
    let mut list = match available.is_empty() {
        true => "no platform at all".into(),
        false => available.join(", "),
    };
    if more > 0 {
        list.push_str(&format!(" and {more} more"));
    }
    ManifestError::NoPlatform {
        wanted: wanted.to_string(),
        available: list,
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
            let mut entry = Descriptor::new(OCI_MANIFEST, Digest::parse(A).unwrap(), at as u64);
            entry.platform = (!platform.os.is_empty()).then_some(platform);
            entry
        };
        platforms.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn chooses_the_platform() {
        let wanted = Wanted::parse("linux/amd64/v3").unwrap();
        let table: [(&[&str], Option<u64>); 9] = [
            (&["linux/arm64", "linux/amd64"], Some(1)),
            (&["linux/amd64/v2", "linux/amd64"], Some(0)),
            (&["linux/amd64/v4", "linux/amd64/v1"], Some(1)),
            (&["linux/amd64/v4"], None),
            (&["windows/amd64", "linux/arm64"], None),
            (&["unknown/unknown", "linux/amd64"], Some(1)),
            (&[""], Some(0)),
            (&["", ""], None),
            (&[], None),
        ];
        for (platforms, expect) in table {
            let entries = entries(platforms);
            let found = choose(&entries, &wanted)
                .fitting
                .first()
                .map(|found| found.size);
            assert_eq!(found, expect, "{platforms:?}");
        }
        let listed = entries(&[
            "linux/s390x",
            "unknown/unknown",
            "linux/arm64/v8",
            "linux/s390x",
        ]);
        assert_eq!(
            no_platform(&wanted, choose(&listed, &wanted).available).to_string(),
            "the image does not exist for linux/amd64/v3, only for linux/arm64/v8, linux/s390x"
        );
    }

    #[test]
    fn what_lies_beside_images_is_no_image() {
        let wanted = Wanted::parse("linux/amd64").unwrap();
        let platform = r#","platform":{"os":"linux","architecture":"amd64"}"#;
        let note = r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#;
        let artifact = r#","artifactType":"application/vnd.x""#;
        let image = descriptor(OCI_MANIFEST, A, platform);
        let nested = descriptor(OCI_INDEX, A, "").replace("\"size\":3", "\"size\":9");
        let others = [
            descriptor(OCI_MANIFEST, A, &format!("{platform}{note}")),
            descriptor(OCI_MANIFEST, A, &format!("{platform}{artifact}")),
            descriptor("application/vnd.x", A, platform),
        ];
        for other in others {
            let text = format!(r#"{{"manifests":[{nested},{other},{image}]}}"#);
            let Document::Index(entries) = parse(text.as_bytes(), OCI_INDEX).unwrap() else {
                panic!("{text}");
            };
            let sizes: Vec<u64> = choose(&entries, &wanted)
                .fitting
                .iter()
                .map(|e| e.size)
                .collect();
            assert_eq!(
                sizes,
                [3, 9],
                "the image, then the index that may have one: {text}"
            );
        }
    }

    #[test]
    fn layers_and_their_places() {
        let oci = "application/vnd.oci.image.layer.v1.tar";
        let table = [
            (oci.to_owned(), true),
            (format!("{oci}+gzip"), true),
            (format!("{oci}+zstd"), true),
            (format!("{oci}+gzip+encrypted"), false),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip".into(),
                true,
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into(),
                true,
            ),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd".into(),
                true,
            ),
            ("application/vnd.in-toto+json".into(), false),
            (String::new(), false),
        ];
        for (media_type, expect) in table {
            let urls = r#","urls":["https://a/x","http://b/x","file:///etc/passwd"]"#;
            let layer = descriptor(&media_type, A, urls);
            let config = descriptor(IMAGE_CONFIGS[0], A, "");
            let text = format!(r#"{{"config":{config},"layers":[{layer}]}}"#);
            match parse(text.as_bytes(), OCI_MANIFEST) {
                Ok(Document::Manifest(manifest)) => {
                    assert!(expect, "{media_type}");
                    assert_eq!(manifest.layers[0].urls, ["https://a/x"]);
                }
                Err(ManifestError::NotALayer(_)) => assert!(!expect, "{media_type}"),
                other => panic!("{media_type}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes: Vec<u8>, header in "\\PC*") {
            let _ = parse(&bytes, &header);
        }
    }
}
