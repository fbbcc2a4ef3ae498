//! The right to build one image from one source, and the file that it is built into.
//!
//! A build may take long, and be slow on purpose: any registry can name the configuration of somebody else's image,
//! and any layers with it. So pulls wait for each other's builds only if they are from the same
//! source, and the image's own lock is taken when there is something to publish.

use std::fs::File;
use std::path::PathBuf;

use shifter_core::ids::ImageId;

use super::image_lock::{LOCK_PREFIX, TEMPORARY_PREFIX};
use super::lease::{self, Lease, Waiting};
use super::{Store, StoreError, record};
use crate::files;
use crate::hash;

/// Digits of a source's hash in names.
const KEY_LENGTH: usize = 16;

/// The right to build an image from a source.
pub struct Workshop<'a> {
    store: &'a Store,
    /// `<id>-<key of the source>`.
    stem: String,
    lease: Lease,
}

/// A finished image that is on the disk, and has no name in the store yet.
pub struct Sealed<'a> {
    workshop: &'a Workshop<'a>,
    file: &'a File,
    /// Its digest, if it could be read.
    pub(super) blake3: Option<String>,
}

impl<'a> Workshop<'a> {
    /// Waits for the right.
    pub(super) fn acquire(
        store: &'a Store,
        id: &ImageId,
        source: &str,
        waiting: &Waiting<'_>,
    ) -> Result<Self, StoreError> {
        let key = &hash::sha256_hex(source.as_bytes())[..KEY_LENGTH];
        let stem = format!("{id}-{key}");
        let name = format!("{LOCK_PREFIX}{stem}");
        let lease = lease::acquire(&store.dir, &name, waiting)
            .map_err(|error| store.failed("lock", store.path.join(name), error, 0))?;
        let workshop = Self { store, stem, lease };
        // What an earlier holder left when it was killed.
        workshop.clear()?;
        Ok(workshop)
    }

    /// Removes what is left of a build by who was killed, unless somebody is at work on it.
    pub(super) fn sweep(store: &'a Store, id: &ImageId, key: &str) -> Result<(), StoreError> {
        let stem = format!("{id}-{key}");
        let name = format!("{LOCK_PREFIX}{stem}");
        let lease = lease::try_acquire(&store.dir, &name)
            .map_err(|error| store.failed("lock", store.path.join(name), error, 0))?;
        // It is cleared as it is dropped.
        drop(lease.map(|lease| Self { store, stem, lease }));
        Ok(())
    }

    /// Opens the file that the image is built into.
    pub fn begin(&self) -> Result<File, StoreError> {
        files::create(&self.store.dir, &self.temporary())
            .map_err(|error| self.store.failed("make", self.path(), error, 0))
    }

    /// Has the disk write a finished image, and computes its digest meanwhile.
    pub fn seal(&'a self, file: &'a File) -> Result<Sealed<'a>, StoreError> {
        self.check()?;
        let (hash, synced) = std::thread::scope(|scope| {
            let hash = || record::hash_image(file, |_| Ok(()));
            let hashing = std::thread::Builder::new().spawn_scoped(scope, hash);
            let synced = file.sync_all();
            match hashing {
                Ok(thread) => (thread.join(), synced),
                Err(_) => (Ok(hash()), synced),
            }
        });
        synced.map_err(|error| self.store.failed("write", self.path(), error, 0))?;
        Ok(Sealed {
            workshop: self,
            file,
            blake3: hash.ok().and_then(Result::ok),
        })
    }

    /// Fails if somebody else took over, because this process was suspended for long.
    fn check(&self) -> Result<(), StoreError> {
        let path = self.store.path.join(format!("{LOCK_PREFIX}{}", self.stem));
        self.lease
            .check()
            .map_err(StoreError::io("go on under", &path))
    }

    fn clear(&self) -> Result<(), StoreError> {
        files::remove(&self.store.dir, &self.temporary())
            .map_err(StoreError::io("remove", &self.path()))
    }

    fn temporary(&self) -> String {
        format!("{TEMPORARY_PREFIX}{}.squashfs", self.stem)
    }

    fn path(&self) -> PathBuf {
        self.store.path.join(self.temporary())
    }
}

impl Drop for Workshop<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next pull; what is not ours any more is left.
        if self.check().is_ok() {
            let _ = self.clear();
        }
    }
}

impl Sealed<'_> {
    /// Gives the image its name, durably.
    pub(super) fn publish(&self, name: &str, mode: u32) -> Result<(), StoreError> {
        let (workshop, store) = (self.workshop, self.workshop.store);
        workshop.check()?;
        let (temporary, target) = (workshop.temporary(), (&store.dir, name));
        files::publish(&store.dir, &temporary, self.file, target, mode)
            .map_err(|error| store.failed("write", store.path.join(name), error, 0))
    }
}
