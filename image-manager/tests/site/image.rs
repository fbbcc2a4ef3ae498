//! Images made by hand: tar archives, layers, configurations, manifests and indexes.

use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A blob with its media type.
#[derive(Clone, Debug)]
pub struct Blob {
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// A layer and the digest of its tar.
#[derive(Clone, Debug)]
pub struct Layer {
    pub blob: Blob,
    pub diff_id: String,
}

/// An image: manifest, configuration, layers.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Blob,
    pub config: Blob,
    pub layers: Vec<Layer>,
}

#[derive(Clone, Copy, Debug)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

impl Blob {
    pub fn new(media_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            media_type: media_type.to_owned(),
            bytes: bytes.into(),
        }
    }

    pub fn digest(&self) -> String {
        digest(&self.bytes)
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Makes a layer of regular files.
pub fn layer(packing: Packing, files: &[(&str, &[u8])]) -> Layer {
    let tar = tar(files);
    let (suffix, bytes) = match packing {
        Packing::Plain => ("", tar.clone()),
        Packing::Gzip => ("+gzip", gzip(&tar)),
        Packing::Zstd => ("+zstd", zstd::encode_all(tar.as_slice(), 1).unwrap()),
    };
    let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
    Layer {
        blob: Blob::new(&media_type, bytes),
        diff_id: digest(&tar),
    }
}

/// Makes an image of layers for an architecture; `process` is the `config` of its configuration.
pub fn image(architecture: &str, process: Value, layers: &[Layer]) -> Image {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": process,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = Blob::new(OCI_CONFIG, config.to_string());
    let descriptors: Vec<Value> = layers.iter().map(|layer| layer.blob.descriptor()).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": config.descriptor(), "layers": descriptors,
    });
    let manifest = Blob::new(OCI_MANIFEST, manifest.to_string());
    Image {
        manifest,
        config,
        layers: layers.to_vec(),
    }
}

/// A small image with one file.
pub fn small(content: &str) -> Image {
    with_motd(content, json!({"Env": ["PATH=/bin"]}))
}

/// The same with a label.
pub fn labelled(content: &str) -> Image {
    let process = json!({"Env": ["PATH=/bin"], "Labels": {"team": "climate"}});
    with_motd(content, process)
}

fn with_motd(content: &str, process: Value) -> Image {
    let layer = layer(Packing::Gzip, &[("etc/motd", content.as_bytes())]);
    image("amd64", process, &[layer])
}

impl Image {
    /// Rewrites the image in Docker's media types, with gzip layers.
    pub fn into_docker(mut self) -> Self {
        let text = String::from_utf8(self.manifest.bytes).unwrap();
        let text = text
            .replace(OCI_MANIFEST, DOCKER_MANIFEST)
            .replace(OCI_CONFIG, DOCKER_CONFIG)
            .replace(
                "application/vnd.oci.image.layer.v1.tar+gzip",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            );
        self.manifest = Blob::new(DOCKER_MANIFEST, text);
        self
    }

    /// The blobs that a registry must have before the manifest.
    pub fn blobs(&self) -> Vec<&Blob> {
        self.layers
            .iter()
            .map(|layer| &layer.blob)
            .chain([&self.config])
            .collect()
    }
}

/// Makes an index of manifests with their platforms (`linux/arm64`).
pub fn index(media_type: &str, entries: &[(&Image, &str)]) -> Blob {
    let entry = |(image, platform): &(&Image, &str)| {
        let mut descriptor = image.manifest.descriptor();
        let (os, architecture) = platform.split_once('/').unwrap();
        descriptor["platform"] = json!({"os": os, "architecture": architecture});
        descriptor
    };
    let manifests: Vec<Value> = entries.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    Blob::new(media_type, index.to_string())
}

/// Makes a tar archive of regular files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, "0000644\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", content.len()));
        put(136, "00000000000\0");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().div_ceil(512) * 512, 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// Bytes that do not compress, always the same for one seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8))
        .flat_map(|_| next())
        .take(length)
        .collect()
}
