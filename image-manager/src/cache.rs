//! Blobs on disk, verified: `<cache>/<algorithm>/<hex>`, directories 0700, files 0600.
//!
//! A blob is written to `.tmp-<hex>` under a lock, compared with its digest, and renamed; two pulls
//! that need one blob download it once. Callers get the open file and never the path, so what was
//! verified is what is used, even if another pull removes the blob from the cache meanwhile. Blobs
//! of pulls that failed and were never tried again go after a week.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use shifter_core::reference::Digest;

use crate::files;
use crate::hash::Hasher;
use crate::registry::{Descriptor, RegistryError, Repository};
use crate::store::{Store, StoreError, is_full};

const TEMPORARY_PREFIX: &str = ".tmp-";
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

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

    /// Removes parts of blobs that killed pulls left, and blobs that nobody came back for.
    pub fn sweep(&self) -> Result<(), StoreError> {
        for algorithm in ["sha256", "sha512"] {
            let Ok(dir) = files::open_subdir(&self.dir, algorithm) else {
                continue;
            };
            for name in files::names(&dir).map_err(|error| self.failed("list", error, 0))? {
                self.sweep_file(&dir, &name)
                    .map_err(|error| self.failed("clear", error, 0))?;
            }
        }
        Ok(())
    }

    fn sweep_file(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        if name.starts_with(TEMPORARY_PREFIX) {
            return match files::try_lock(dir, name)? {
                Some(_held) => files::remove(dir, name),
                None => Ok(()),
            };
        }
        let Some(file) = files::open(dir, name)? else {
            return Ok(());
        };
        let age = SystemTime::now().duration_since(file.metadata()?.modified()?);
        if age.is_ok_and(|age| age > KEEP) {
            files::remove(dir, name)
        } else {
            Ok(())
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeping_takes_what_nobody_uses() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::create_user(home.path()).unwrap();
        let cache = BlobCache::of_store(&store).unwrap();
        let digest = Digest::parse(&format!("sha256:{}", "a".repeat(64))).unwrap();
        let dir = cache.folder(&digest).unwrap();
        let week = Duration::from_secs(7 * 24 * 3600);
        for (name, age) in [(".tmp-dead", 0), (".tmp-live", 9), ("new", 6), ("old", 8)] {
            let file = files::create(&dir, name).unwrap();
            file.set_modified(SystemTime::now() - week / 7 * age)
                .unwrap();
        }
        let live = files::try_lock(&dir, ".tmp-live").unwrap();
        cache.sweep().unwrap();
        assert_eq!(files::names(&dir).unwrap(), [".tmp-live", "new"]);
        drop(live);
        cache.sweep().unwrap();
        assert_eq!(files::names(&dir).unwrap(), ["new"]);
    }
}
