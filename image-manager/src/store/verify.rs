//! Comparing a store with what it says of itself: image files with their recorded digests, tags with
//! images, metadata with its form.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use shifter_core::ids::ImageId;
use shifter_core::reference::{ImageRef, TypeRules};
use shifter_core::store::{self as layout, IndexEntry};

use super::record::hash_image;
use super::{Store, StoreError};
use crate::cancel::Cancel;
use crate::files;
use crate::hash::{self, Hasher};

/// What was found out of one file.
#[derive(Debug)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// The image that is concerned, if one is.
    pub id: Option<ImageId>,
    /// What is wrong with it; none if nothing is.
    pub fault: Option<Fault>,
}

/// What is wrong with a file of a store.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file's content is not what was published.
    #[error("its blake3 is {found}, not {recorded}")]
    Changed {
        /// What was published.
        recorded: String,
        /// What it is.
        found: String,
    },
    /// It cannot be said whether it changed.
    #[error("no digest is recorded for it")]
    Unrecorded,
    /// It cannot be read or does not have its form.
    #[error(transparent)]
    Unusable(#[from] StoreError),
    /// The image has no metadata, and so nobody can use it.
    #[error("there is no metadata for it")]
    NoMetadata,
    /// The tag's image is not there.
    #[error(
        "'{}' leads to image {id}, which is not there",
        shifter_core::sanitize::text(reference)
    )]
    NoImage {
        /// The tag.
        reference: String,
        /// The image.
        id: ImageId,
    },
    /// The tag says another size than the image has.
    #[error(
        "'{}' is of {recorded} bytes, and its image has {found}",
        shifter_core::sanitize::text(reference)
    )]
    Size {
        /// The tag.
        reference: String,
        /// What the tag says.
        recorded: u64,
        /// What the image has.
        found: u64,
    },
    /// The file is not a tag, or not where its tag belongs.
    #[error("it is not the entry of the tag that it is named after")]
    Misplaced,
}

impl Fault {
    /// True if the store cannot be used as it is; an image of which nothing is recorded can be.
    pub fn is_serious(&self) -> bool {
        !matches!(self, Self::Unrecorded)
    }
}

impl Store {
    /// Compares every image, or those with the given ids, and every tag. `watch` hears of the bytes
    /// that were read.
    pub fn verify(
        &self,
        only: Option<&[ImageId]>,
        rules: &TypeRules<'_>,
        cancel: &Cancel,
        watch: &dyn Fn(u64),
    ) -> Result<Vec<Finding>, StoreError> {
        let is_wanted = |id: &ImageId| only.is_none_or(|only| only.contains(id));
        let mut findings = Vec::new();
        for id in self.ids()?.into_iter().filter(is_wanted) {
            if cancel.is_cancelled() {
                return Ok(findings);
            }
            findings.extend(self.verify_image(&id, cancel, watch)?);
        }
        for path in self.index_files()? {
            let (id, fault) = match self.index_entry(&path) {
                Err(error) if only.is_none() => (None, Some(error.into())),
                Ok(Some(entry)) if is_wanted(&entry.id) => {
                    let fault = self.verify_entry(&entry, &path, rules);
                    (Some(entry.id), fault)
                }
                _ => continue,
            };
            let path = self.path.join(path);
            findings.push(Finding { path, id, fault });
        }
        Ok(findings)
    }

    /// Counts what [`Store::verify`] will read of images.
    pub fn image_bytes(&self, only: Option<&[ImageId]>) -> Result<u64, StoreError> {
        let ids = self.ids()?;
        let wanted = ids
            .iter()
            .filter(|id| only.is_none_or(|only| only.contains(id)));
        let sizes = wanted.filter_map(|id| self.image_file(id));
        Ok(sizes.map(|(_, size)| size).sum())
    }

    /// Compares one image; none if the caller may not read it.
    fn verify_image(
        &self,
        id: &ImageId,
        cancel: &Cancel,
        watch: &dyn Fn(u64),
    ) -> Result<Option<Finding>, StoreError> {
        // Removed meanwhile.
        let Some((name, _)) = self.image_file(id) else {
            return Ok(None);
        };
        let path = self.path.join(&name);
        let file = match files::open(&self.dir, &name) {
            Ok(Some(file)) => file,
            // Removed meanwhile, or somebody else's.
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            Err(error) => {
                let fault = Some(StoreError::io("open", &path)(error).into());
                return Ok(Some(Finding {
                    path,
                    id: Some(id.clone()),
                    fault,
                }));
            }
        };
        let compare = || -> Result<(), Fault> {
            if self.meta(id)?.is_none() {
                return Err(Fault::NoMetadata);
            }
            let recorded = self.record(id)?.and_then(|record| record.blake3);
            let watch = |count| {
                watch(count);
                cancel.check().map_err(io::Error::other)
            };
            let hashed = match recorded {
                Some(_) => hash_image(&file, watch),
                // Imported squashfs files have their own digest as id.
                None => sha256(&file, watch),
            };
            // Nothing is known of what was not read to its end.
            if cancel.is_cancelled() {
                return Ok(());
            }
            let found = hashed.map_err(StoreError::io("read", &path))?;
            match recorded {
                Some(recorded) if recorded == found => Ok(()),
                Some(recorded) => Err(Fault::Changed { recorded, found }),
                None if found == id.as_str() => Ok(()),
                None => Err(Fault::Unrecorded),
            }
        };
        let fault = compare().err();
        Ok(Some(Finding {
            path: path.clone(),
            id: Some(id.clone()),
            fault,
        }))
    }

    fn verify_entry(&self, entry: &IndexEntry, path: &str, rules: &TypeRules<'_>) -> Option<Fault> {
        let is_in_place = ImageRef::parse(&entry.reference, rules)
            .is_ok_and(|r| layout::index_path(&r).is_ok_and(|wanted| wanted == path));
        if !is_in_place {
            return Some(Fault::Misplaced);
        }
        let reference = entry.reference.clone();
        match self.image_file(&entry.id).map(|(_, size)| size) {
            None => Some(Fault::NoImage {
                reference,
                id: entry.id.clone(),
            }),
            Some(found) if found != entry.size => Some(Fault::Size {
                reference,
                recorded: entry.size,
                found,
            }),
            Some(_) => None,
        }
    }

    /// Reads a file of the index; none if it went meanwhile.
    pub(super) fn index_entry(&self, path: &str) -> Result<Option<IndexEntry>, StoreError> {
        let full = self.path.join(path);
        let bytes = files::read(&self.dir, path, layout::ENTRY_LIMIT)
            .map_err(StoreError::io("read", &full))?;
        let parsed = bytes
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose();
        parsed.map_err(|error| StoreError::Record {
            path: full,
            source: error.into(),
        })
    }
}

fn sha256(file: &File, mut watch: impl FnMut(u64) -> io::Result<()>) -> io::Result<String> {
    let mut hasher = Hasher::sha256();
    hash::read_file(file, |bytes| {
        hasher.update(bytes);
        watch(bytes.len() as u64)
    })?;
    Ok(hasher.finish_hex())
}
