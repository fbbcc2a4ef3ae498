//! Blobs on disk, verified; directories 0700, files 0600; see `folder` for where each is.
//!
//! A blob is downloaded once however many pulls want it: [`BlobCache::download`] takes it from the
//! cache, follows the process that is at it, or appends to what an earlier try left.
//! [`BlobCache::reader`] gives its bytes from the first one on, also while they arrive. What a reader
//! gets to the end of has the digest it was asked for by.

mod download;
mod flight;
mod folder;
mod keep;
mod reader;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shifter_core::reference::Digest;

use crate::cancel::Cancel;
use crate::files;
use crate::registry::{Access, Descriptor, RegistryError, Repository};
use crate::store::lease::Lease;
use crate::store::{Store, StoreError, is_full};
use download::{Download, Landing};
use flight::{End, Flight, State, Trust};
use folder::Scope;
pub use keep::{Trimmed, Usage};
pub use reader::{BlobError, BlobReader};

/// Says why a blob could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The registry did not deliver.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The disk did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another thread of this pull failed, and says why.
    #[error("the download was given up")]
    Abandoned,
    /// A login turned out to be needed: it is begun again where private blobs are.
    #[error("a login turned out to be needed")]
    Private,
}

/// What a download is doing, for whoever watches. The bytes add up to the blob's size.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// So many bytes were there already.
    Present(u64),
    /// So many bytes came from the registry.
    Received(u64),
    /// So many bytes were downloaded by somebody else meanwhile.
    Elsewhere(u64),
    /// Somebody else downloads it: where.
    Waiting(&'a str),
}

/// Where a blob comes from if it is not here.
struct Origin<'a> {
    /// For messages.
    name: &'a str,
    registry: &'a str,
    /// Whom it may serve, as far as that is known now.
    scope: &'a dyn Fn() -> Scope,
    source: &'a download::Source<'a>,
}

/// The blobs of one store, and those of them that one pull is fetching.
pub struct BlobCache {
    dir: OwnedFd,
    path: PathBuf,
    /// True if the images take their room from the same disk.
    is_beside_images: bool,
    flights: Mutex<BTreeMap<String, Arc<Flight>>>,
    is_abandoned: AtomicBool,
    cancel: Cancel,
    /// What says to others which blobs are needed here.
    uses: Mutex<Vec<Lease>>,
}

impl BlobCache {
    /// Opens the cache that belongs to a store.
    pub fn of_store(store: &Store) -> Result<Self, StoreError> {
        let (dir, path) = store.cache_dir()?;
        let is_beside_images = store
            .is_on_disk_of(&dir)
            .map_err(StoreError::io("examine", &path))?;
        Ok(Self {
            dir,
            path,
            is_beside_images,
            flights: Mutex::default(),
            is_abandoned: AtomicBool::new(false),
            cancel: Cancel::default(),
            uses: Mutex::default(),
        })
    }

    /// Has downloads and readers stop when somebody asks for it.
    pub fn with_cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Returns a blob's bytes from the first one on. Reading waits for [`BlobCache::download`] of
    /// the same blob, which some other thread calls before or meanwhile, or for
    /// [`BlobCache::abandon`]. Any number of readers may follow one blob, one after the other too.
    pub fn reader(&self, blob: &Descriptor) -> BlobReader {
        let (flight, digest) = (self.flight(&blob.digest), blob.digest.clone());
        BlobReader::new(flight, digest, self.cancel.clone())
    }

    /// Has a blob here when it returns `Ok`: it was here, or somebody else has fetched it meanwhile,
    /// or it comes from the registry, as far as it was not here.
    pub fn download(
        &self,
        repository: &Repository<'_>,
        blob: &Descriptor,
        watch: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<(), CacheError> {
        let scope = || match repository.access() {
            Access::Public => Scope::Public,
            Access::Private => Scope::Private(repository.source()),
        };
        let from = Origin {
            name: &format!("{}@{}", repository.source(), blob.digest),
            registry: repository.registry(),
            scope: &scope,
            source: &|offset, sink| repository.blob_from(blob, offset, sink),
        };
        self.obtain(blob, watch, &from)
    }

    fn obtain(
        &self,
        blob: &Descriptor,
        watch: &(dyn Fn(Progress<'_>) + Sync),
        from: &Origin<'_>,
    ) -> Result<(), CacheError> {
        let flight = self.flight(&blob.digest);
        let is_mine = flight.update(|state| {
            let is_free = !state.is_tended && state.end != Some(End::Complete);
            if is_free {
                (state.is_tended, state.end) = (true, None);
            }
            is_free
        });
        if !is_mine {
            return match flight.wait(|_| false).end {
                Some(End::Complete) => Ok(()),
                _ => Err(CacheError::Abandoned),
            };
        }
        let mut landing = Landing {
            flight: &flight,
            end: End::Failed,
        };
        loop {
            let scope = (from.scope)();
            let dir = scope
                .make(&self.dir, &blob.digest)
                .map_err(|error| self.failed("make a directory in", error, 0))?;
            let download = Download {
                cache: self,
                blob,
                flight: &flight,
                scope,
                dir: &dir,
                origin: from.name,
                registry: from.registry,
                watch,
                is_in_scope: &|scope| *scope == (from.scope)(),
            };
            match download.run(from.source) {
                Err(CacheError::Private) => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        landing.end = End::Complete;
        Ok(())
    }

    /// Waits until nobody downloads a blob any more, so that it is known whether its bytes were the
    /// right ones. One whose download has not begun is not waited for.
    pub fn settle(&self, blob: &Descriptor) {
        let flight = self.flight(&blob.digest);
        flight.wait(|state| !state.is_tended || self.cancel.is_cancelled());
    }

    /// Ends all downloads of this pull and all waiting for them, for the pull cannot succeed.
    pub fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::SeqCst);
        for flight in self.flights().values() {
            flight.update(|state| {
                if !state.is_tended && state.end.is_none() {
                    state.end = Some(End::Failed);
                }
            });
        }
    }

    /// After a failure, and when every download and reader has come to its end: compares with their
    /// digests the blobs that nobody has read to the end, removes those that are damaged, and
    /// begins anew. True if a second try may succeed where the first did not, because a blob was
    /// damaged in the cache or came wrong from the registry at first.
    pub fn recover(&self) -> Result<bool, StoreError> {
        let mut is_worth_it = false;
        let flights = std::mem::take(&mut *self.flights());
        self.is_abandoned.store(false, Ordering::SeqCst);
        for (text, flight) in flights {
            let Ok(digest) = Digest::parse(&text) else {
                continue;
            };
            let is_damaged = self.is_damaged(&digest, &flight.now())?;
            if is_damaged {
                self.remove(&digest)?;
            }
            is_worth_it |= is_damaged || flight.now().round > 0;
        }
        Ok(is_worth_it)
    }

    fn is_damaged(&self, digest: &Digest, state: &State) -> Result<bool, StoreError> {
        match (&state.file, state.end, state.trust) {
            (_, Some(End::Damaged), _) => Ok(true),
            (Some(file), Some(End::Complete), Trust::Unread) => keep::is_intact(file, digest)
                .map(|is_intact| !is_intact)
                .map_err(|error| self.failed("read", error, 0)),
            _ => Ok(false),
        }
    }

    /// Removes a blob, wherever it is.
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let fail = |error| self.failed("remove from", error, 0);
        for (name, folder) in folder::all(&self.dir).map_err(fail)? {
            if name.starts_with(digest.algorithm()) {
                files::remove(folder, digest.hex()).map_err(fail)?;
            }
        }
        Ok(())
    }

    fn uses(&self) -> MutexGuard<'_, Vec<Lease>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flights(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Flight>>> {
        // Nothing that holds the lock can panic.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flight(&self, digest: &Digest) -> Arc<Flight> {
        let mut flights = self.flights();
        let flight = flights
            .entry(digest.to_string())
            .or_insert_with(|| Arc::new(Flight::new()));
        if self.is_abandoned.load(Ordering::SeqCst) {
            flight.update(|state| {
                if !state.is_tended && state.end.is_none() {
                    state.end = Some(End::Failed);
                }
            });
        }
        Arc::clone(flight)
    }

    fn insist_on_going(&self) -> Result<(), CacheError> {
        match self.is_abandoned.load(Ordering::SeqCst) || self.cancel.is_cancelled() {
            true => Err(CacheError::Abandoned),
            false => Ok(()),
        }
    }

    /// The same for where only an input error can be returned.
    fn check_going(&self) -> io::Result<()> {
        self.insist_on_going().map_err(io::Error::other)
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
mod tests;
