//! Layers in files, and images built of them.
#![allow(dead_code, reason = "each test program uses a part of it")]

use image_manager::build::{BuildError, BuildOptions, BuildReport, LayerSource, Open, build_image};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

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
    pub layers: Vec<Layer>,
}

#[derive(Clone)]
pub struct Layer {
    pub path: PathBuf,
    pub media_type: String,
    pub diff_id: Option<String>,
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
        self.layers.push(Layer {
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
        let report = self.build_into(out.as_file_mut(), options)?;
        Ok((out, report))
    }

    pub fn build_into(
        &self,
        out: &mut File,
        options: &BuildOptions,
    ) -> Result<BuildReport, BuildError> {
        let open = |layer: &Layer| -> Box<Open<'static>> {
            let path = layer.path.clone();
            Box::new(move || Ok(Box::new(File::open(&path)?) as Box<dyn Read + Send>))
        };
        let opens: Vec<_> = self.layers.iter().map(open).collect();
        let sources: Vec<_> = self
            .layers
            .iter()
            .zip(&opens)
            .map(|(layer, open)| LayerSource {
                media_type: layer.media_type.clone(),
                diff_id: layer.diff_id.clone(),
                open: &**open,
            })
            .collect();
        build_image(&sources, out, options)
    }

    pub fn error(&self) -> BuildError {
        self.build(&BuildOptions::default()).unwrap_err()
    }
}
