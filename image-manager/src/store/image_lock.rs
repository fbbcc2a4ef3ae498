//! The right to publish, change or remove one image, and what is done under it: nothing that takes long.
//!
//! Order of a publication: image, record, metadata, tag, each made durable before the next; with
//! the metadata the image is there. `.new-<id>` says meanwhile that it is not yet one. Killed at any
//! point a pull leaves the old state, the new state, or files that carry the id of a dead lease and
//! are cleared by whoever has the lease next.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use shifter_core::ids::ImageId;
use shifter_core::meta::ImageMeta;
use shifter_core::store as layout;

use super::acl;
use super::lease::{self, Lease, Waiting};
use super::record::{self, ImageRecord};
use super::workshop::Sealed;
use super::{Store, StoreError};
use crate::build::BuildOptions;
use crate::files;

pub(super) const LOCK_PREFIX: &str = ".lock-";
const NEW_PREFIX: &str = ".new-";
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";

/// The right to publish, change or remove one image; nobody else has it meanwhile.
pub struct ImageLock<'a> {
    store: &'a Store,
    id: ImageId,
    lease: Lease,
}

/// Finds in a store's listing the images that somebody is, or was when killed, at work on; with the
/// key of the source if they were being built.
pub(super) fn left_names(names: &[String]) -> BTreeSet<(ImageId, Option<String>)> {
    let prefixes = [LOCK_PREFIX, NEW_PREFIX, TEMPORARY_PREFIX];
    let rests = names
        .iter()
        .filter_map(|name| prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)));
    let left = rests.filter_map(|rest| {
        let stem = rest.split('.').next().unwrap_or_default();
        let (id, key) = match stem.split_once('-') {
            Some((id, key)) => (id, Some(key.to_owned())),
            None => (stem, None),
        };
        Some((ImageId::parse(id).ok()?, key))
    });
    left.collect()
}

impl<'a> ImageLock<'a> {
    /// Waits for the right.
    pub(super) fn acquire(
        store: &'a Store,
        id: &ImageId,
        waiting: &Waiting<'_>,
    ) -> Result<Self, StoreError> {
        let name = lock_name(id);
        let lease = lease::acquire(&store.dir, &name, waiting)
            .map_err(|error| store.failed("lock", store.path.join(name), error, 0))?;
        Self::begin_with(store, id, lease)
    }

    /// Takes the right if nobody has it.
    pub(super) fn try_acquire(store: &'a Store, id: &ImageId) -> Result<Option<Self>, StoreError> {
        let name = lock_name(id);
        let lease = lease::try_acquire(&store.dir, &name)
            .map_err(|error| store.failed("lock", store.path.join(name), error, 0))?;
        lease
            .map(|lease| Self::begin_with(store, id, lease))
            .transpose()
    }

    fn begin_with(store: &'a Store, id: &ImageId, lease: Lease) -> Result<Self, StoreError> {
        let lock = Self {
            store,
            id: id.clone(),
            lease,
        };
        lock.recover()?;
        Ok(lock)
    }

    /// Returns the image's metadata if the image is complete.
    pub fn complete(&self) -> Result<Option<ImageMeta>, StoreError> {
        let file = self.store.image_file(&self.id);
        if file.is_none_or(|(_, size)| size == 0) {
            return Ok(None);
        }
        self.store.meta(&self.id)
    }

    /// Returns what is known of where the image came from, if anything is.
    pub fn record(&self) -> Result<Option<ImageRecord>, StoreError> {
        self.store.record(&self.id)
    }

    /// The form in which the image is to be built: one that is there keeps its format, so that whoever has
    /// read its metadata finds the file.
    pub fn form(&self, wanted: &BuildOptions) -> Result<BuildOptions, StoreError> {
        let found = self.complete()?.and_then(|found| found.format.parse().ok());
        Ok(found.map_or_else(|| wanted.clone(), |format| wanted.in_format(format)))
    }

    /// Publishes a finished image, what is known of it, and its metadata. One that was published
    /// meanwhile, in another format, stays: whoever has read its metadata finds the file.
    pub fn publish(
        &self,
        image: &Sealed<'_>,
        meta: &ImageMeta,
        mut record: ImageRecord,
    ) -> Result<(), StoreError> {
        let store = self.store;
        let found = self.complete().ok().flatten();
        let meta = &match found {
            Some(found) if found.format != meta.format => return self.widen(&found, meta),
            // Who may see an image that was there may see it still.
            Some(found) => acl::union(meta, &found),
            None => {
                let name = new_name(&self.id);
                files::create(&store.dir, &name)
                    .map_err(|error| store.failed("make", store.path.join(name), error, 0))?;
                meta.clone()
            }
        };
        let mode = store.image_mode(meta);
        record.blake3.clone_from(&image.blake3);
        self.check()?;
        image.publish(&layout::image_file(&self.id, &meta.format), mode)?;
        self.write("json", &record.to_bytes(), mode)?;
        self.write_meta(meta)
    }

    /// Says that the image has its tag: from now on it stays.
    pub fn keep(&self) -> Result<(), StoreError> {
        let name = new_name(&self.id);
        files::remove(&self.store.dir, &name)
            .map_err(StoreError::io("remove", &self.store.path.join(name)))
    }

    /// Fails if somebody else took over, because this process was suspended for long.
    pub fn check(&self) -> Result<(), StoreError> {
        let path = self.store.path.join(lock_name(&self.id));
        self.lease
            .check()
            .map_err(StoreError::io("go on under", &path))
    }

    /// Returns where the image is and its size.
    pub fn image(&self) -> Result<(PathBuf, u64), StoreError> {
        match self.store.image_file(&self.id) {
            Some((name, size)) => Ok((self.store.path.join(name), size)),
            None => {
                let path = self.store.path.join(self.id.as_str());
                Err(StoreError::io("examine", &path)(
                    io::ErrorKind::NotFound.into(),
                ))
            }
        }
    }

    /// Lets more users see an image that is there: `wanted` is who may see it from now on.
    pub fn widen(&self, found: &ImageMeta, wanted: &ImageMeta) -> Result<(), StoreError> {
        let meta = acl::union(found, wanted);
        if meta == *found {
            return Ok(());
        }
        self.check()?;
        let mode = rustix::fs::Mode::from_raw_mode(self.store.image_mode(&meta));
        let image = layout::image_file(&self.id, &found.format);
        let names = [image, record::file_name(&self.id)];
        for name in names {
            let path = self.store.path.join(&name);
            let changed = match files::open(&self.store.dir, &name) {
                Ok(Some(file)) => rustix::fs::fchmod(file, mode).map_err(io::Error::from),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            changed.map_err(StoreError::io("change the mode of", &path))?;
        }
        self.write_meta(&meta)
    }

    fn write_meta(&self, meta: &ImageMeta) -> Result<(), StoreError> {
        let bytes = meta.to_bytes().map_err(|source| StoreError::Meta {
            id: self.id.to_string(),
            source,
        })?;
        self.write("meta", &bytes, self.store.image_mode(meta))
    }

    /// Publishes a small file of the image.
    fn write(&self, suffix: &str, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
        let (store, target) = (self.store, format!("{}.{suffix}", self.id));
        let temporary = self.temporary(suffix);
        files::replace(&store.dir, &temporary, bytes, (&store.dir, &target), mode)
            .map_err(|e| store.failed("write", store.path.join(target), e, bytes.len() as u64))
    }

    /// Clears what an earlier holder of the lease left when it was killed.
    fn recover(&self) -> Result<(), StoreError> {
        self.remove_temporaries()?;
        let was_new = files::size(&self.store.dir, &new_name(&self.id)).is_some();
        // An image without a tag that was there before keeps: a queued job may have its id.
        if was_new {
            if self.store.tags(&self.id)?.is_empty() {
                self.remove_files()?;
            }
            self.keep()?;
        }
        Ok(())
    }

    /// Removes the image, also if this process is killed in the middle of it.
    pub(super) fn discard(&self) -> Result<(), StoreError> {
        let (store, name) = (self.store, new_name(&self.id));
        match files::create(&store.dir, &name) {
            // A full disk must not keep anybody from removing images.
            Err(error) if !super::is_full(&error) => {
                return Err(store.failed("make", store.path.join(name), error, 0));
            }
            _ => {}
        }
        self.remove_files()?;
        self.keep()
    }

    fn remove_files(&self) -> Result<(), StoreError> {
        // The metadata first: without it the image counts as missing.
        self.store.unlink(&layout::meta_file(&self.id))?;
        self.store.unlink(&record::file_name(&self.id))?;
        for format in layout::FORMATS {
            self.store.unlink(&layout::image_file(&self.id, format))?;
        }
        Ok(())
    }

    fn remove_temporaries(&self) -> Result<(), StoreError> {
        for suffix in ["json", "meta"] {
            let name = self.temporary(suffix);
            files::remove(&self.store.dir, &name)
                .map_err(StoreError::io("remove", &self.store.path.join(name)))?;
        }
        Ok(())
    }

    fn temporary(&self, suffix: &str) -> String {
        format!("{TEMPORARY_PREFIX}{}.{suffix}", self.id)
    }
}

impl Drop for ImageLock<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next pull; what is not ours any more is left.
        if self.lease.check().is_ok() {
            let _ = self.recover();
        }
    }
}

/// Returns the name of the lease on an image.
pub(super) fn lock_name(id: &ImageId) -> String {
    format!("{LOCK_PREFIX}{id}")
}

fn new_name(id: &ImageId) -> String {
    format!("{NEW_PREFIX}{id}")
}
