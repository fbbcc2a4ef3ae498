//! OCI layouts, as a directory or in an archive: `index.json` leads by digests to everything else.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use serde::Deserialize;
use shifter_core::reference::Digest;

use super::docker::small;
use super::error::ImportError;
use super::names::Names;
use super::section::Section;
use super::{Blob, CONFIG_LIMIT, Found, IMAGE_LIMIT, MANIFEST_LIMIT};
use crate::files;
use crate::hash;
use crate::registry::{
    Descriptor, Document, ManifestError, Wanted, choose, no_platform, parse_document,
};

/// The list of images.
pub(super) const LIST: &str = "index.json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Indexes that may lead to one another.
const DEPTH_LIMIT: usize = 3;
/// Annotations with an image's name, the whole name first.
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// Where the files of a layout are.
pub(super) enum Layout<'a> {
    Directory(&'a OwnedFd),
    Archive(&'a Names),
}

/// An image in the layout: the entries for its platforms.
#[derive(Debug)]
pub(super) struct Image(Vec<Descriptor>);

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    manifests: Vec<RawEntry>,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// What an image of a layout consists of.
pub(super) struct Parts {
    pub digest: Digest,
    pub config: Vec<u8>,
    pub layers: Vec<Blob>,
}

impl Layout<'_> {
    /// Lists the images; entries of one name are one image for several platforms.
    pub fn list(&self) -> Result<Vec<Found<Image>>, ImportError> {
        let bytes = small(&self.file(LIST)?, LIST, MANIFEST_LIMIT)?;
        let raw: RawIndex =
            serde_json::from_slice(&bytes).map_err(|source| ImportError::Syntax {
                name: LIST.into(),
                source,
            })?;
        let entries = match self.parse(LIST, &bytes, INDEX)? {
            Document::Index(entries) => entries,
            Document::Manifest(_) => return Err(ImportError::NoImage),
        };
        if entries.len() > IMAGE_LIMIT {
            return Err(ImportError::Member {
                name: LIST.into(),
                reason: format!("lists more than {IMAGE_LIMIT} images"),
            });
        }
        let mut found: Vec<Found<Image>> = Vec::new();
        for (entry, raw) in entries.into_iter().zip(raw.manifests) {
            let names = raw.annotations.as_ref().map_or_else(Vec::new, names_in);
            match found.iter_mut().find(|known| known.names == names) {
                Some(known) => known.image.0.push(entry),
                None => found.push(Found {
                    names,
                    image: Image(vec![entry]),
                }),
            }
        }
        Ok(found)
    }

    /// Finds manifest, configuration and layers of an image for a platform.
    pub fn read(&self, image: &Image, wanted: &Wanted) -> Result<Parts, ImportError> {
        let unusable = |name: &str, source| ImportError::Document {
            name: name.to_owned(),
            source,
        };
        let one = match &image.0[..] {
            [one] => one,
            several => best(several, wanted).map_err(|e| unusable(LIST, e))?,
        };
        let digest = one.digest.clone();
        let mut at = one.clone();
        for _ in 0..DEPTH_LIMIT {
            let name = blob_name(&at.digest);
            let bytes = self.document(&at, MANIFEST_LIMIT)?;
            let entries = match self.parse(&name, &bytes, &at.media_type)? {
                Document::Index(entries) => entries,
                Document::Manifest(manifest) => {
                    let config = self.document(&manifest.config, CONFIG_LIMIT)?;
                    let layers = manifest.layers.iter().map(|layer| self.layer(layer));
                    return Ok(Parts {
                        digest,
                        config,
                        layers: layers.collect::<Result<_, _>>()?,
                    });
                }
            };
            at = best(&entries, wanted)
                .map_err(|e| unusable(&name, e))?
                .clone();
        }
        Err(ImportError::Member {
            name: LIST.into(),
            reason: "leads from index to index".into(),
        })
    }

    fn layer(&self, layer: &Descriptor) -> Result<Blob, ImportError> {
        let name = blob_name(&layer.digest);
        let section = self.file(&name)?;
        self.check_size(&name, layer, section.length())?;
        Ok(Blob {
            section,
            media_type: layer.media_type.clone(),
            digest: Some(layer.digest.clone()),
        })
    }

    /// Reads a blob and compares it with its digest.
    fn document(&self, blob: &Descriptor, limit: u64) -> Result<Vec<u8>, ImportError> {
        let name = blob_name(&blob.digest);
        let bytes = small(&self.file(&name)?, &name, limit)?;
        self.check_size(&name, blob, bytes.len() as u64)?;
        if !hash::matches(&bytes, &blob.digest) {
            return Err(ImportError::Member {
                name,
                reason: "has another digest than its name".into(),
            });
        }
        Ok(bytes)
    }

    fn check_size(&self, name: &str, blob: &Descriptor, found: u64) -> Result<(), ImportError> {
        if found == blob.size {
            return Ok(());
        }
        Err(ImportError::Member {
            name: name.to_owned(),
            reason: format!("has {found} bytes and not {}", blob.size),
        })
    }

    fn parse(&self, name: &str, bytes: &[u8], kind: &str) -> Result<Document, ImportError> {
        parse_document(bytes, kind).map_err(|source| ImportError::Document {
            name: name.to_owned(),
            source,
        })
    }

    fn file(&self, name: &str) -> Result<Section, ImportError> {
        let dir = match self {
            Self::Archive(names) => return names.file(name),
            Self::Directory(dir) => dir,
        };
        let opened = files::open(dir, name).and_then(|file| file.map(Section::whole).transpose());
        match opened {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(ImportError::Missing(name.to_owned())),
            Err(error) => Err(ImportError::Member {
                name: name.to_owned(),
                reason: match Errno::from_io_error(&error) {
                    // What stands there must be the file itself.
                    Some(Errno::LOOP | Errno::XDEV) => "is or lies behind a symbolic link".into(),
                    _ => format!("cannot be opened: {error}"),
                },
            }),
        }
    }
}

/// The entry that fits best.
fn best<'a>(entries: &'a [Descriptor], wanted: &Wanted) -> Result<&'a Descriptor, ManifestError> {
    let choice = choose(entries, wanted);
    let best = choice.fitting.into_iter().next();
    best.ok_or_else(|| no_platform(wanted, choice.available))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Returns the names that can be an image's; a bare tag is none, but can be selected by.
fn names_in(annotations: &BTreeMap<String, String>) -> Vec<String> {
    let found = NAMES.iter().filter_map(|name| annotations.get(*name));
    found.take(1).cloned().collect()
}
