//! Changing what a store's tags mean: writing and removing them, sweeping what a killed pull left.
//!
//! The index is changed under a lease of its own, which is taken after that of an image and never
//! before. Every file is written beside its name and renamed, so that two who both believe to
//! have the lease leave the one or the other.

use std::io;
use std::path::PathBuf;

use shifter_core::ids::ImageId;
use shifter_core::meta::ImageMeta;
use shifter_core::reference::ImageRef;
use shifter_core::store::{self as layout, IndexEntry};

use super::image_lock::{ImageLock, left_names};
use super::lease::{self, Waiting};
use super::workshop::Workshop;
use super::{Store, StoreError, StoreKind};
use crate::files;

const INDEX_LOCK: &str = ".lock-index";
const INDEX_TEMPORARY: &str = ".tmp-index";

/// What [`Store::remove`] removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The image the tag pointed to.
    pub id: ImageId,
    /// True if no other tag points to the image, and its files are gone too.
    pub image_removed: bool,
}

impl Store {
    /// Waits for the right to change an image.
    pub fn lock(&self, id: &ImageId, waiting: &Waiting<'_>) -> Result<ImageLock<'_>, StoreError> {
        ImageLock::acquire(self, id, waiting)
    }

    /// Waits for the right to build an image from `source`, which is taken before [`Store::lock`] and never
    /// after it.
    pub fn workshop(
        &self,
        id: &ImageId,
        source: &str,
        waiting: &Waiting<'_>,
    ) -> Result<Workshop<'_>, StoreError> {
        Workshop::acquire(self, id, source, waiting)
    }

    /// Removes what killed pulls left, as far as nobody is at work on it.
    pub fn sweep(&self) -> Result<(), StoreError> {
        let names = self.names(".")?;
        for (id, key) in left_names(&names) {
            match key {
                Some(key) => Workshop::sweep(self, &id, &key)?,
                None => drop(ImageLock::try_acquire(self, &id)?),
            }
        }
        let is_index = |name: &&String| name.starts_with(INDEX_LOCK);
        if names
            .iter()
            .any(|name| is_index(&name) || name == INDEX_TEMPORARY)
        {
            let path = self.path.join(INDEX_LOCK);
            let lease = lease::try_acquire(&self.dir, INDEX_LOCK);
            if let Some(_lease) = lease.map_err(|error| self.failed("lock", path, error, 0))? {
                self.clear_index()?;
            }
        }
        for name in names.iter().filter(|name| lease::is_leftover(name)) {
            lease::sweep(&self.dir, name)
                .map_err(StoreError::io("clear", &self.path.join(name)))?;
        }
        Ok(())
    }

    /// Points a tag to an image, which must be there and locked by the caller.
    pub fn tag(
        &self,
        reference: &ImageRef,
        entry: &IndexEntry,
        waiting: &Waiting<'_>,
    ) -> Result<(), StoreError> {
        let record = |source| StoreError::Record {
            path: self.path.clone(),
            source,
        };
        let name = layout::index_path(reference).map_err(record)?;
        let bytes = serde_json::to_vec(entry).map_err(|error| record(error.into()))?;
        let path = self.path.join(&name);
        let Some((folder, file)) = name.rsplit_once('/') else {
            return Err(StoreError::io("write", &path)(
                io::ErrorKind::InvalidInput.into(),
            ));
        };
        self.with_index(waiting, || {
            let write = || {
                let mut dir = self.dir.try_clone()?;
                for part in folder.split('/') {
                    dir = files::make_dir(&dir, part, self.dir_mode())?;
                }
                let mode = self.public_mode();
                files::replace(&self.dir, INDEX_TEMPORARY, &bytes, (&dir, file), mode)?;
                files::sync(&self.dir)
            };
            write().map_err(|error| self.failed("write", path.clone(), error, bytes.len() as u64))
        })
    }

    /// Removes a tag, and the image if that was its last one; an image without tags is removed
    /// by its id. None if there is nothing of that name.
    pub fn remove(
        &self,
        reference: &ImageRef,
        waiting: &Waiting<'_>,
    ) -> Result<Option<Removed>, StoreError> {
        if let Some(id) = reference.image_id() {
            return self.remove_image(id, waiting);
        }
        loop {
            let Some(seen) = self.entry(reference)? else {
                return Ok(None);
            };
            let lock = self.lock(&seen.id, waiting)?;
            let removed = self.with_index(waiting, || {
                // A pull may have moved the tag while this waited for the lock.
                match self.entry(reference)? {
                    Some(entry) if entry.id == seen.id => {}
                    _ => return Ok(None),
                }
                let name = layout::index_path(reference).map_err(|source| StoreError::Record {
                    path: self.path.clone(),
                    source,
                })?;
                self.unlink(&name)?;
                let image_removed = self.tags(&seen.id)?.is_empty();
                if image_removed {
                    lock.discard()?;
                }
                Ok(Some(Removed {
                    id: seen.id.clone(),
                    image_removed,
                }))
            })?;
            if removed.is_some() {
                return Ok(removed);
            }
        }
    }

    pub(super) fn remove_image(
        &self,
        id: &ImageId,
        waiting: &Waiting<'_>,
    ) -> Result<Option<Removed>, StoreError> {
        if self.image_file(id).is_none() {
            return Ok(None);
        }
        let lock = self.lock(id, waiting)?;
        self.with_index(waiting, || {
            let tags = self.tags(id)?;
            if !tags.is_empty() {
                return Err(StoreError::HasTags {
                    tags: tags.join(", "),
                });
            }
            lock.discard()?;
            Ok(Some(Removed {
                id: id.clone(),
                image_removed: true,
            }))
        })
    }

    /// Lists the references that point to an image, in canonical form.
    pub(super) fn tags(&self, id: &ImageId) -> Result<Vec<String>, StoreError> {
        let mut tags = Vec::new();
        for path in self.index_files()? {
            let bytes = files::read(&self.dir, &path, layout::ENTRY_LIMIT)
                .map_err(StoreError::io("read", &self.path.join(&path)))?;
            let entry = bytes.and_then(|b| serde_json::from_slice::<IndexEntry>(&b).ok());
            tags.extend(entry.filter(|e| e.id == *id).map(|e| e.reference));
        }
        Ok(tags)
    }

    /// Runs `action` while nobody else changes the index.
    fn with_index<T>(
        &self,
        waiting: &Waiting<'_>,
        action: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let path = self.path.join(INDEX_LOCK);
        let lock = lease::acquire(&self.dir, INDEX_LOCK, waiting)
            .map_err(|error| self.failed("lock", path, error, 0))?;
        let done = action();
        let cleared = self.clear_index();
        drop(lock);
        done.and_then(|value| cleared.map(|()| value))
    }

    /// Removes what a tag was written to, also by a killed process.
    fn clear_index(&self) -> Result<(), StoreError> {
        files::remove(&self.dir, INDEX_TEMPORARY)
            .map_err(StoreError::io("remove", &self.path.join(INDEX_TEMPORARY)))
    }

    /// Removes a file at a path below the store, durably.
    pub(super) fn unlink(&self, path: &str) -> Result<(), StoreError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        files::open_subdir(&self.dir, folder)
            .and_then(|dir| files::remove(&dir, name).and_then(|()| files::sync(dir)))
            .map_err(StoreError::io("remove", &self.path.join(path)))
    }

    /// Says that the store cannot hold an image, which needs at least `need` bytes.
    pub fn full(&self, need: u64) -> StoreError {
        let free = rustix::fs::fstatvfs(&self.dir).ok();
        let free = free.map(|found| found.f_bavail.saturating_mul(found.f_frsize));
        // A disk with enough room is not what is full: it is somebody's quota.
        let free = free.filter(|free| *free < need);
        StoreError::Full {
            dir: self.path.clone(),
            need,
            free,
        }
    }

    pub(super) fn failed(
        &self,
        action: &'static str,
        path: PathBuf,
        error: io::Error,
        need: u64,
    ) -> StoreError {
        if super::is_full(&error) {
            StoreError::Full {
                dir: self.path.clone(),
                need,
                free: None,
            }
        } else {
            StoreError::Io {
                action,
                path,
                source: error,
            }
        }
    }

    fn dir_mode(&self) -> u32 {
        match self.kind {
            StoreKind::Site => 0o755,
            StoreKind::User => 0o700,
        }
    }

    fn public_mode(&self) -> u32 {
        match self.kind {
            StoreKind::Site => 0o644,
            StoreKind::User => 0o600,
        }
    }

    pub(super) fn image_mode(&self, meta: &ImageMeta) -> u32 {
        if meta.is_public() {
            self.public_mode()
        } else {
            0o600
        }
    }
}
