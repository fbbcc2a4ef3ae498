//! Blobs on disk, verified: `<cache>/<algorithm>/<hex>`, directories 0700, files 0600.
//!
//! A blob is written to `.tmp-<hex>` under a lock, compared with its digest, and renamed; two pulls
//! that need one blob download it once. Callers get the open file and never the path, so what was
//! verified is what is used, even if another pull removes the blob from the cache meanwhile.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use shifter_core::reference::Digest;

use crate::files;
use crate::hash::Hasher;
use crate::registry::{Descriptor, RegistryError, Repository};
use crate::store::{Store, StoreError, is_full};

const TEMPORARY_PREFIX: &str = ".tmp-";

/// Says why a blob could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The registry did not deliver.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The disk did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The blobs of one store.
pub struct BlobCache {
    dir: OwnedFd,
    path: PathBuf,
}

impl BlobCache {
    /// Opens the cache that belongs to a store.
    pub fn of_store(store: &Store) -> Result<Self, StoreError> {
        let (dir, path) = store.cache_dir()?;
        Ok(Self { dir, path })
    }

    /// Fails if the blobs that are not here yet cannot fit.
    pub fn check_space<'a>(
        &self,
        blobs: impl IntoIterator<Item = &'a Descriptor>,
    ) -> Result<(), StoreError> {
        let is_missing = |blob: &&Descriptor| {
            files::size(
                &self.dir,
                &format!("{}/{}", blob.digest.algorithm(), blob.digest.hex()),
            )
            .is_none()
        };
        let need = blobs
            .into_iter()
            .filter(is_missing)
            .fold(0u64, |sum, blob| sum.saturating_add(blob.size));
        let found = rustix::fs::fstatvfs(&self.dir)
            .map_err(|error| StoreError::io("examine", &self.path)(error.into()))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if need <= free {
            return Ok(());
        }
        Err(StoreError::Full {
            dir: self.path.clone(),
            need,
            free: Some(free),
        })
    }

    /// Returns a blob, from here or from the registry; `on_bytes` hears of every part downloaded.
    pub fn fetch(
        &self,
        repository: &Repository<'_>,
        blob: &Descriptor,
        mut on_bytes: impl FnMut(u64),
    ) -> Result<File, CacheError> {
        let dir = self.folder(&blob.digest)?;
        let name = blob.digest.hex();
        if let Some(file) = self.open(&dir, blob)? {
            on_bytes(blob.size);
            return Ok(file);
        }
        let temporary = format!("{TEMPORARY_PREFIX}{name}");
        let mut file =
            files::lock(&dir, &temporary, || ()).map_err(|e| self.failed("lock", e, blob.size))?;
        // Whoever held the lock before may have finished the download.
        if let Some(finished) = self.open(&dir, blob)? {
            files::remove(&dir, &temporary).map_err(|e| self.failed("remove", e, 0))?;
            on_bytes(blob.size);
            return Ok(finished);
        }
        let written = file
            .set_len(0)
            .map_err(RegistryError::Write)
            .and_then(|()| {
                repository.blob(blob, |part| {
                    on_bytes(part.len() as u64);
                    file.write_all(part)
                })
            })
            .map_err(|error| match error {
                RegistryError::Write(error) => self.failed("write to", error, blob.size).into(),
                error => CacheError::from(error),
            })
            .and_then(|()| {
                rustix::fs::renameat(&dir, &temporary, &dir, name)
                    .map_err(|e| self.failed("write to", e.into(), blob.size).into())
            });
        if let Err(error) = written {
            // The error is what matters; the next sweep takes what this does not.
            let _ = files::remove(&dir, &temporary);
            return Err(error);
        }
        file.rewind().map_err(|e| self.failed("read", e, 0))?;
        Ok(file)
    }

    /// Removes a blob.
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let dir = self.folder(digest)?;
        files::remove(dir, digest.hex()).map_err(|error| self.failed("remove from", error, 0))
    }

    /// Removes parts of blobs that killed pulls left.
    pub fn sweep(&self) -> Result<(), StoreError> {
        for algorithm in ["sha256", "sha512"] {
            let Ok(dir) = files::open_subdir(&self.dir, algorithm) else {
                continue;
            };
            let names = files::names(&dir).map_err(|error| self.failed("list", error, 0))?;
            for name in names
                .iter()
                .filter(|name| name.starts_with(TEMPORARY_PREFIX))
            {
                let lock =
                    files::try_lock(&dir, name).map_err(|error| self.failed("lock", error, 0))?;
                if let Some(_held) = lock {
                    files::remove(&dir, name).map_err(|e| self.failed("remove from", e, 0))?;
                }
            }
        }
        Ok(())
    }

    /// Opens a blob if it is here and intact; a damaged one is removed.
    fn open(&self, dir: &OwnedFd, blob: &Descriptor) -> Result<Option<File>, StoreError> {
        let name = blob.digest.hex();
        let fail = |error| self.failed("read", error, 0);
        let Some(mut file) = files::open(dir, name).map_err(fail)? else {
            return Ok(None);
        };
        let mut hasher = Hasher::like(&blob.digest);
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = file.read(&mut buffer).map_err(fail)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        if hasher.finish() != blob.digest.to_string() {
            files::remove(dir, name).map_err(fail)?;
            return Ok(None);
        }
        file.rewind().map_err(fail)?;
        Ok(Some(file))
    }

    fn folder(&self, digest: &Digest) -> Result<OwnedFd, StoreError> {
        files::make_dir(&self.dir, digest.algorithm(), 0o700)
            .map_err(|error| self.failed("make a directory in", error, 0))
    }

    fn failed(&self, action: &'static str, error: io::Error, need: u64) -> StoreError {
        if is_full(&error) {
            StoreError::Full {
                dir: self.path.clone(),
                need,
                free: None,
            }
        } else {
            StoreError::io(action, &self.path)(error)
        }
    }
}
