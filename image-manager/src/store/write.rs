//! Changing a store: publishing an image, writing and removing tags, sweeping what a killed
//! pull left.
//!
//! Order of a publication: image, metadata, tag, each made durable before the next. Killed at any
//! point it leaves the old state, the new state, or files that carry the id of an unlocked lock
//! file and are swept by the next pull.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use shifter_core::ids::ImageId;
use shifter_core::meta::ImageMeta;
use shifter_core::reference::ImageRef;
use shifter_core::store::{self as layout, IndexEntry};

use super::{Store, StoreError, StoreKind};
use crate::build::BuildOptions;
use crate::files;

const LOCK_PREFIX: &str = ".lock-";
const TEMPORARY_PREFIX: &str = ".tmp-";
const INDEX_LOCK: &str = ".lock-index";
const INDEX_TEMPORARY: &str = ".tmp-index";
/// What a lock file says while its image is not complete.
const NEW: &[u8] = b"new\n";

/// The right to build, change or remove one image; nobody else has it meanwhile.
pub struct ImageLock<'a> {
    store: &'a Store,
    id: ImageId,
    file: File,
}

/// What [`Store::remove`] removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The image the tag pointed to.
    pub id: ImageId,
    /// True if no other tag points to the image, and its files are gone too.
    pub image_removed: bool,
}

impl Store {
    /// Waits for the right to change an image; `on_wait` is called if somebody else has it.
    pub fn lock(&self, id: &ImageId, on_wait: impl FnOnce()) -> Result<ImageLock<'_>, StoreError> {
        let name = lock_name(id);
        let file = files::lock(&self.dir, &name, on_wait)
            .map_err(StoreError::io("lock", &self.path.join(name)))?;
        let lock = ImageLock {
            store: self,
            id: id.clone(),
            file,
        };
        lock.recover()?;
        Ok(lock)
    }

    /// Removes what killed pulls left, as far as nobody is at work on it.
    pub fn sweep(&self) -> Result<(), StoreError> {
        let mut left: Vec<ImageId> = self
            .names(".")?
            .iter()
            .filter_map(|name| {
                name.strip_prefix(LOCK_PREFIX)
                    .or_else(|| name.strip_prefix(TEMPORARY_PREFIX))
            })
            .filter_map(|rest| ImageId::parse(rest.split('.').next().unwrap_or_default()).ok())
            .collect();
        left.dedup();
        for id in left {
            let name = lock_name(&id);
            let file = files::try_lock(&self.dir, &name)
                .map_err(StoreError::io("lock", &self.path.join(name)))?;
            if let Some(file) = file {
                ImageLock {
                    store: self,
                    id,
                    file,
                }
                .recover()?;
            }
        }
        self.with_index(|| Ok(()))
    }

    /// Points a tag to an image, which must be there and locked by the caller.
    pub fn tag(&self, reference: &ImageRef, entry: &IndexEntry) -> Result<(), StoreError> {
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
        self.with_index(|| {
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
        on_wait: impl Fn(),
    ) -> Result<Option<Removed>, StoreError> {
        if let Some(id) = reference.image_id() {
            return self.remove_image(id, on_wait);
        }
        loop {
            let Some(seen) = self.entry(reference)? else {
                return Ok(None);
            };
            let lock = self.lock(&seen.id, &on_wait)?;
            let removed = self.with_index(|| {
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
                    lock.remove_files()?;
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

    fn remove_image(
        &self,
        id: &ImageId,
        on_wait: impl Fn(),
    ) -> Result<Option<Removed>, StoreError> {
        if files::size(&self.dir, &layout::image_file(id)).is_none() {
            return Ok(None);
        }
        let lock = self.lock(id, on_wait)?;
        self.with_index(|| {
            let tags = self.tags(id)?;
            if !tags.is_empty() {
                return Err(StoreError::HasTags {
                    tags: tags.join(", "),
                });
            }
            lock.remove_files()?;
            Ok(Some(Removed {
                id: id.clone(),
                image_removed: true,
            }))
        })
    }

    /// Lists the references that point to an image, in canonical form.
    fn tags(&self, id: &ImageId) -> Result<Vec<String>, StoreError> {
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
        action: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let path = self.path.join(INDEX_LOCK);
        let lock = files::lock(&self.dir, INDEX_LOCK, || ())
            .map_err(|error| self.failed("lock", path.clone(), error, 0))?;
        let done = action();
        let cleared = files::remove(&self.dir, INDEX_TEMPORARY)
            .and_then(|()| files::remove(&self.dir, INDEX_LOCK))
            .map_err(StoreError::io("remove", &path));
        drop(lock);
        done.and_then(|value| cleared.map(|()| value))
    }

    /// Removes a file at a path below the store, durably.
    fn unlink(&self, path: &str) -> Result<(), StoreError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        files::open_subdir(&self.dir, folder)
            .and_then(|dir| files::remove(&dir, name).and_then(|()| files::sync(dir)))
            .map_err(StoreError::io("remove", &self.path.join(path)))
    }

    fn failed(
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

    fn image_mode(&self, meta: &ImageMeta) -> u32 {
        if meta.is_public() {
            self.public_mode()
        } else {
            0o600
        }
    }
}

impl ImageLock<'_> {
    /// Returns the image's metadata if the image is complete.
    pub fn complete(&self) -> Result<Option<ImageMeta>, StoreError> {
        let size = files::size(&self.store.dir, &layout::image_file(&self.id));
        if size.is_none_or(|size| size == 0) {
            return Ok(None);
        }
        self.store.meta(&self.id)
    }

    /// The form that the image is to have.
    pub fn build_options(&self) -> &BuildOptions {
        &self.store.build
    }

    /// Opens the file that the image is built into.
    pub fn begin(&mut self) -> Result<File, StoreError> {
        let path = self.store.path.join(lock_name(&self.id));
        self.file
            .write_all(NEW)
            .map_err(|error| self.store.failed("write", path, error, NEW.len() as u64))?;
        let name = self.temporary("squashfs");
        files::create(&self.store.dir, &name).map_err(|error| {
            self.store
                .failed("make", self.store.path.join(name), error, 0)
        })
    }

    /// Publishes the finished image and its metadata; `file` is what [`ImageLock::begin`] opened.
    pub fn publish(&self, file: &File, meta: &ImageMeta) -> Result<(), StoreError> {
        let (store, target) = (self.store, layout::image_file(&self.id));
        let mode = store.image_mode(meta);
        files::publish(
            &store.dir,
            &self.temporary("squashfs"),
            file,
            (&store.dir, &target),
            mode,
        )
        .map_err(|error| store.failed("write", store.path.join(target), error, 0))?;
        self.write_meta(meta)
    }

    /// Says that the image has its tag: from now on it stays.
    pub fn keep(&self) -> Result<(), StoreError> {
        let path = self.store.path.join(lock_name(&self.id));
        self.file.set_len(0).map_err(StoreError::io("clear", &path))
    }

    /// Returns where the image is and its size.
    pub fn image(&self) -> Result<(PathBuf, u64), StoreError> {
        let name = layout::image_file(&self.id);
        let path = self.store.path.join(&name);
        match files::size(&self.store.dir, &name) {
            Some(size) => Ok((path, size)),
            None => Err(StoreError::io("examine", &path)(
                io::ErrorKind::NotFound.into(),
            )),
        }
    }

    /// Says that the store cannot hold the image, which needs at least `need` bytes.
    pub fn full(&self, need: u64) -> StoreError {
        let free = rustix::fs::fstatvfs(&self.store.dir).ok();
        let free = free.map(|found| found.f_bavail.saturating_mul(found.f_frsize));
        StoreError::Full {
            dir: self.store.path.clone(),
            need,
            free,
        }
    }

    /// Lets more users see an image that is there: `wanted` is who may see it from now on.
    pub fn widen(&self, found: &ImageMeta, wanted: &ImageMeta) -> Result<(), StoreError> {
        let mut meta = found.clone();
        if found.is_public() {
            return Ok(());
        } else if wanted.is_public() {
            (meta.user_acl, meta.group_acl) = (Vec::new(), Vec::new());
        } else {
            meta.user_acl.extend(&wanted.user_acl);
            meta.group_acl.extend(&wanted.group_acl);
            for acl in [&mut meta.user_acl, &mut meta.group_acl] {
                acl.sort_unstable();
                acl.dedup();
            }
        }
        if meta == *found {
            return Ok(());
        }
        let name = layout::image_file(&self.id);
        let path = self.store.path.join(&name);
        let mode = rustix::fs::Mode::from_raw_mode(self.store.image_mode(&meta));
        files::open(&self.store.dir, &name)
            .and_then(|file| file.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .and_then(|file| Ok(rustix::fs::fchmod(file, mode)?))
            .map_err(StoreError::io("change the mode of", &path))?;
        self.write_meta(&meta)
    }

    fn write_meta(&self, meta: &ImageMeta) -> Result<(), StoreError> {
        let (store, target) = (self.store, layout::meta_file(&self.id));
        let bytes = meta.to_bytes().map_err(|source| StoreError::Meta {
            id: self.id.to_string(),
            source,
        })?;
        let temporary = self.temporary("meta");
        files::replace(
            &store.dir,
            &temporary,
            &bytes,
            (&store.dir, &target),
            store.image_mode(meta),
        )
        .map_err(|e| store.failed("write", store.path.join(target), e, bytes.len() as u64))
    }

    /// Clears what an earlier holder of the lock left when it was killed.
    fn recover(&self) -> Result<(), StoreError> {
        self.remove_temporaries()?;
        let was_new = self
            .file
            .metadata()
            .map_err(StoreError::io("examine", &self.store.path))?
            .len()
            > 0;
        // An image without a tag that was there before keeps: a queued job may have its id.
        if was_new && self.store.tags(&self.id)?.is_empty() {
            self.remove_files()?;
        }
        self.keep()
    }

    fn remove_files(&self) -> Result<(), StoreError> {
        // The metadata first: without it the image counts as missing.
        self.store.unlink(&layout::meta_file(&self.id))?;
        self.store.unlink(&layout::image_file(&self.id))
    }

    fn remove_temporaries(&self) -> Result<(), StoreError> {
        for suffix in ["squashfs", "meta"] {
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
        // What cannot be removed now is swept by the next pull.
        if self.recover().is_ok() {
            let _ = files::remove(&self.store.dir, &lock_name(&self.id));
        }
    }
}

fn lock_name(id: &ImageId) -> String {
    format!("{LOCK_PREFIX}{id}")
}
