//! What stays in a cache and what goes: room for a pull, the size limit, and what the dead left.
//!
//! A pull says first which blobs it needs ([`BlobCache::reserve`]). The others go, the longest unused
//! first. Whoever removes one moves it aside, asks again who needs it, and only then removes it; a
//! pull that came meanwhile and did not find it has it downloaded.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};
use shifter_core::reference::Digest;

use super::BlobCache;
use super::folder::{self, LOCK, PART, TRIM, TRIM_LOCK, USE_PREFIX};
use crate::files;
use crate::hash::Hasher;
use crate::registry::Descriptor;
use crate::store::lease;
use crate::store::{StoreError, is_full};

/// Age at which the beginning of a blob goes: nobody came back for the rest.
const KEEP_PARTS: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is in a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Complete blobs.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Beginnings of blobs.
    pub parts: usize,
    /// Their bytes.
    pub part_bytes: u64,
}

impl Usage {
    /// Returns the bytes of everything in it.
    pub fn all_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.part_bytes)
    }
}

/// What making a cache smaller did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Blobs and beginnings of blobs that are gone.
    pub removed: usize,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Bytes that are left.
    pub kept_bytes: u64,
}

/// A blob, or the beginning of one.
struct Item<'a> {
    folder: &'a OwnedFd,
    name: String,
    digest: Digest,
    size: u64,
    used: SystemTime,
}

impl BlobCache {
    /// Keeps these blobs for this pull, as far as they are here, and makes room for the rest.
    ///
    /// # Errors
    /// [`StoreError::Full`] if what is missing cannot fit whatever goes.
    pub fn reserve(&self, blobs: &[&Descriptor]) -> Result<(), StoreError> {
        if blobs.is_empty() {
            return Ok(());
        }
        let digests = blobs.iter().map(|blob| blob.digest.to_string()).collect();
        let lease = lease::announce(&self.dir, USE_PREFIX, digests)
            .map_err(|error| self.failed("write to", error, 0))?;
        self.uses().push(lease);
        allow_descriptors(blobs.len());
        // Where the scope is not known yet, any folder's will do: this is about room alone.
        let folders = folder::all(&self.dir).map_err(|error| self.failed("list", error, 0))?;
        let (mut need, mut image) = (0u64, 0u64);
        for blob in blobs {
            let (here, missing) = divide(&folders, blob);
            need = need.saturating_add(missing);
            image = image.saturating_add(here).saturating_add(missing);
        }
        // On one disk with the image, which may be as large as its layers: nobody knows before, so
        // this makes room and refuses nothing.
        let wanted = match self.is_beside_images {
            true => need.saturating_add(image),
            false => need,
        };
        let mut free = self.free()?;
        // A manifest may promise anything: what cannot fit is no reason to remove what others use.
        if wanted > free && need <= free.saturating_add(self.usage()?.all_bytes()) {
            self.remove_unused(|_| Ok(self.free()? < wanted))?;
            free = self.free()?;
        }
        if need <= free {
            return Ok(());
        }
        Err(StoreError::Full {
            dir: self.path.clone(),
            need,
            free: Some(free),
        })
    }

    /// Removes blobs that do not help because there is no room for the image, as far as no other
    /// pull needs them, and ends what [`BlobCache::reserve`] began.
    pub fn give_back(&self, blobs: &[&Descriptor]) -> Result<(), StoreError> {
        self.release();
        let fail = |error| self.failed("clear", error, 0);
        let used = self.used().map_err(fail)?;
        let folders = folder::all(&self.dir).map_err(fail)?;
        for item in self.items(&folders)? {
            let is_ours = blobs.iter().any(|blob| blob.digest == item.digest);
            if is_ours && !used.contains(&item.digest.to_string()) {
                self.remove_item(&item).map_err(fail)?;
            }
        }
        Ok(())
    }

    /// Ends what [`BlobCache::reserve`] began.
    pub fn release(&self) {
        self.uses().clear();
    }

    /// Removes the longest unused blobs until at most `limit` bytes are left, or all that are left
    /// are in use. Does nothing if somebody else is at it.
    pub fn trim(&self, limit: u64) -> Result<Trimmed, StoreError> {
        self.remove_unused(|kept| Ok(kept > limit))
    }

    /// Says what is in the cache.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        let folders = folder::all(&self.dir).map_err(|error| self.failed("list", error, 0))?;
        for item in self.items(&folders)? {
            if item.name.ends_with(PART) {
                usage.parts += 1;
                usage.part_bytes += item.size;
            } else {
                usage.blobs += 1;
                usage.bytes += item.size;
            }
        }
        Ok(usage)
    }

    /// Compares every complete blob with its digest, removes those that are damaged, and returns
    /// them.
    pub fn verify(&self) -> Result<Vec<Digest>, StoreError> {
        let mut damaged = Vec::new();
        let fail = |error| self.failed("read", error, 0);
        let folders = folder::all(&self.dir).map_err(|error| self.failed("list", error, 0))?;
        for item in self.items(&folders)? {
            if item.name.ends_with(PART) {
                continue;
            }
            let Some(file) = files::open(item.folder, &item.name).map_err(fail)? else {
                continue;
            };
            if !is_intact(&file, &item.digest).map_err(fail)? {
                files::remove(item.folder, &item.name)
                    .map_err(|error| self.failed("remove from", error, 0))?;
                damaged.push(item.digest);
            }
        }
        Ok(damaged)
    }

    /// Removes what killed pulls left and no pull will use.
    pub fn sweep(&self) -> Result<(), StoreError> {
        let fail = |error| self.failed("clear", error, 0);
        for name in files::names(&self.dir).map_err(fail)? {
            if name.starts_with(USE_PREFIX) || lease::is_leftover(&name) {
                lease::sweep(&self.dir, &name).map_err(fail)?;
            } else if name.starts_with(TRIM_LOCK) {
                drop(lease::try_acquire(&self.dir, TRIM_LOCK).map_err(fail)?);
            }
        }
        let mut now = None;
        for (_, folder) in folder::all(&self.dir).map_err(fail)? {
            for name in files::names(&folder).map_err(fail)? {
                self.sweep_file(&folder, &name, &mut now).map_err(fail)?;
            }
        }
        Ok(())
    }

    fn sweep_file(
        &self,
        folder: &OwnedFd,
        name: &str,
        now: &mut Option<SystemTime>,
    ) -> io::Result<()> {
        if lease::is_leftover(name) {
            return lease::sweep(folder, name);
        }
        if name.ends_with(LOCK) {
            // Taking it removes a dead holder's, giving it back one's own.
            drop(lease::try_acquire(folder, name)?);
        } else if name.ends_with(TRIM) {
            if let Some(_trimming) = lease::try_acquire(&self.dir, TRIM_LOCK)? {
                files::remove(folder, name)?;
            }
        } else if let Some(stem) = name.strip_suffix(PART) {
            let Some(file) = files::open(folder, name)? else {
                return Ok(());
            };
            let now = match *now {
                Some(now) => now,
                None => *now.insert(lease::time(folder)?),
            };
            let age = now.duration_since(file.metadata()?.modified()?);
            if age.is_ok_and(|age| age > KEEP_PARTS)
                && let Some(_writing) = lease::try_acquire(folder, &format!("{stem}{LOCK}"))?
            {
                files::remove(folder, name)?;
            }
        }
        Ok(())
    }

    /// Removes unused blobs, the longest unused first, while `is_wanted` says so of the bytes left.
    fn remove_unused(
        &self,
        is_wanted: impl Fn(u64) -> Result<bool, StoreError>,
    ) -> Result<Trimmed, StoreError> {
        let fail = |error| self.failed("trim", error, 0);
        let lease = lease::try_acquire(&self.dir, TRIM_LOCK).map_err(fail)?;
        let folders = folder::all(&self.dir).map_err(fail)?;
        let mut items = self.items(&folders)?;
        let mut trimmed = Trimmed {
            kept_bytes: items.iter().map(|item| item.size).sum(),
            ..Trimmed::default()
        };
        if lease.is_none() {
            return Ok(trimmed);
        }
        items.sort_by_key(|item| item.used);
        let used = self.used().map_err(fail)?;
        for item in items {
            if !is_wanted(trimmed.kept_bytes)? {
                break;
            }
            if used.contains(&item.digest.to_string()) {
                continue;
            }
            if self.remove_item(&item).map_err(fail)? {
                trimmed.removed += 1;
                trimmed.removed_bytes += item.size;
                trimmed.kept_bytes -= item.size;
            }
        }
        Ok(trimmed)
    }

    /// Removes a blob unless somebody needs it now; false if it stays.
    fn remove_item(&self, item: &Item<'_>) -> io::Result<bool> {
        let (folder, name) = (item.folder, &item.name);
        if let Some(stem) = name.strip_suffix(PART) {
            return match lease::try_acquire(folder, &format!("{stem}{LOCK}")) {
                Ok(None) => Ok(false),
                Err(error) if !is_full(&error) => Err(error),
                _ => files::remove(folder, name).map(|()| true),
            };
        }
        let aside = format!("{name}{TRIM}");
        match rustix::fs::renameat(folder, name, folder, &aside) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            // Where even that needs room, the blob goes at once; who needs it downloads it.
            Err(Errno::NOSPC | Errno::DQUOT) => {
                return files::remove(folder, name).map(|()| true);
            }
            Err(error) => return Err(error.into()),
        }
        if self.used()?.contains(&item.digest.to_string()) {
            rustix::fs::renameat(folder, &aside, folder, name)?;
            return Ok(false);
        }
        files::remove(folder, &aside).map(|()| true)
    }

    /// Lists the digests that living pulls need.
    fn used(&self) -> io::Result<BTreeSet<String>> {
        let mut used = BTreeSet::new();
        for name in files::names(&self.dir)? {
            if name.starts_with(USE_PREFIX) {
                used.extend(lease::announced(&self.dir, &name)?);
            }
        }
        Ok(used)
    }

    fn items<'a>(&self, folders: &'a [(String, OwnedFd)]) -> Result<Vec<Item<'a>>, StoreError> {
        let fail = |error| self.failed("list", error, 0);
        let mut items = Vec::new();
        for (folder_name, folder) in folders {
            for name in files::names(folder).map_err(fail)? {
                let Some(digest) = folder::digest_of(folder_name, &name) else {
                    continue;
                };
                let Some(file) = files::open(folder, &name).map_err(fail)? else {
                    continue;
                };
                let meta = file.metadata().map_err(fail)?;
                items.push(Item {
                    folder,
                    name,
                    digest,
                    // A part may have room set aside for the rest.
                    size: meta.len().max(meta.blocks().saturating_mul(512)),
                    used: meta.modified().map_err(fail)?,
                });
            }
        }
        Ok(items)
    }

    fn free(&self) -> Result<u64, StoreError> {
        let found = rustix::fs::fstatvfs(&self.dir)
            .map_err(|error| StoreError::io("examine", &self.path)(error.into()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// Returns how much of a blob is here, and how much is still to be downloaded. A blob that is here has
/// the size that it has, whatever a manifest says.
fn divide(folders: &[(String, OwnedFd)], blob: &Descriptor) -> (u64, u64) {
    let algorithm = blob.digest.algorithm();
    let of_its_kind = folders
        .iter()
        .filter(|(name, _)| name.starts_with(algorithm));
    let divided = of_its_kind.map(|(_, folder)| match files::size(folder, blob.digest.hex()) {
        Some(size) => (size, 0),
        None => {
            let part = files::size(folder, &folder::Names::shared(blob).part).unwrap_or_default();
            let part = part.min(blob.size);
            (part, blob.size - part)
        }
    });
    let divided = divided.min_by_key(|(_, missing)| *missing);
    divided.unwrap_or((0, blob.size))
}

/// A pull has a descriptor for each of its layers, and the usual limit is 1024.
fn allow_descriptors(layers: usize) {
    let needed = layers as u64 + 200;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = limit.maximum.map(|most| most.min(needed)).or(Some(needed));
        // What cannot be had is missed where it is needed, and said there.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// True if a file has the digest.
pub(super) fn is_intact(file: &File, digest: &Digest) -> io::Result<bool> {
    let mut hasher = Hasher::like(digest);
    hasher.update_from(file)?;
    Ok(hasher.finish() == digest.to_string())
}
