//! Layers in files, and images built of them.
#![allow(dead_code, reason = "each test program uses a part of it")]

use image_manager::build::{BuildError, BuildOptions, BuildReport, LayerSource, build_image};
use sha2::{Digest, Sha256};
use std::io::Write;

pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// Blobs in a directory of their own.
pub struct Blobs {
    directory: tempfile::TempDir,
    pub layers: Vec<LayerSource>,
}

impl Blobs {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            layers: Vec::new(),
        }
    }

    pub fn add(&mut self, blob: &[u8], media_type: &str, diff_id: Option<String>) -> &mut Self {
        let path = self
            .directory
            .path()
            .join(format!("layer-{}", self.layers.len()));
        std::fs::write(&path, blob).unwrap();
        self.layers.push(LayerSource {
            path,
            media_type: media_type.into(),
            diff_id,
        });
        self
    }

    pub fn build(
        &self,
        options: &BuildOptions,
    ) -> Result<(tempfile::NamedTempFile, BuildReport), BuildError> {
        let mut out = tempfile::NamedTempFile::new().unwrap();
        out.write_all(&[0xaa; 100_000]).unwrap(); // whatever was there must go
        let report = build_image(&self.layers, out.as_file_mut(), options)?;
        Ok((out, report))
    }

    pub fn error(&self) -> BuildError {
        self.build(&BuildOptions::default()).unwrap_err()
    }
}
