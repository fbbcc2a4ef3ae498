//! Fetching one blob once: from the cache, from whoever downloads it already, or from the registry.
//!
//! `<hex>` is a complete blob, `<hex>.part` the beginning of one, `<hex>.lock` the right to write
//! the latter. A part is only ever appended to; what turned out to be wrong is removed and begun
//! again under a new inode. So after a crash a part is a valid beginning, and the next download
//! reads it once, for the hash, and asks the registry for the rest.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shifter_core::sanitize;

use super::flight::{End, Flight, Trust};
use super::{BlobCache, CacheError, Progress, lock_name, part_name};
use crate::files;
use crate::hash::Hasher;
use crate::registry::{Descriptor, RegistryError};
use crate::store::StoreError;

/// Bytes collected before they are written: file systems that stripe like large writes.
const WRITE_SIZE: usize = 1 << 20;
/// Time after which less than that is written, so that readers need not wait for a slow registry.
const WRITE_INTERVAL: Duration = Duration::from_millis(250);
/// How often somebody else's download is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Delivers a blob's bytes from an offset on into a sink.
pub(super) type Source<'a> =
    dyn Fn(u64, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), RegistryError> + 'a;

/// One blob that is to be had.
pub(super) struct Download<'a> {
    pub cache: &'a BlobCache,
    pub blob: &'a Descriptor,
    pub flight: &'a Flight,
    pub dir: &'a OwnedFd,
    /// Where the registry's answers come from, for messages.
    pub origin: &'a str,
    pub watch: &'a (dyn Fn(Progress<'_>) + Sync),
}

/// The file that a blob is written to.
struct Part<'a> {
    download: &'a Download<'a>,
    file: Arc<File>,
    hasher: Hasher,
    buffer: Vec<u8>,
    /// Bytes that are in the file.
    written: u64,
    last_write: Instant,
}

impl Download<'_> {
    /// Has the blob when it returns `Ok`.
    pub fn run(&self, source: &Source<'_>) -> Result<(), CacheError> {
        let (mut seen, mut has_told) = (0, false);
        loop {
            self.cache.insist_on_going()?;
            if self.take_complete()? {
                (self.watch)(Progress::Present(self.blob.size.saturating_sub(seen)));
                return Ok(());
            }
            let lock = files::try_lock(self.dir, &lock_name(self.blob))
                .map_err(|error| self.failed("lock", error))?;
            let Some(lock) = lock else {
                if !has_told {
                    (self.watch)(Progress::Waiting("this host"));
                    has_told = true;
                }
                self.follow(&mut seen)?;
                std::thread::sleep(POLL);
                continue;
            };
            // Whoever held the lock before may have finished.
            let done = match self.take_complete() {
                Ok(true) => {
                    (self.watch)(Progress::Present(self.blob.size.saturating_sub(seen)));
                    Ok(())
                }
                Ok(false) => self.fetch(source, seen),
                Err(error) => Err(error),
            };
            let unlocked = files::remove(self.dir, &lock_name(self.blob))
                .map_err(|error| self.failed("unlock", error));
            drop(lock);
            return done.and(unlocked);
        }
    }

    /// Shows readers what another process has written so far.
    fn follow(&self, seen: &mut u64) -> Result<(), CacheError> {
        let part = files::open(self.dir, &part_name(self.blob))
            .map_err(|error| self.failed("read", error))?;
        if let Some(file) = part {
            let length = file.metadata().map_or(0, |meta| meta.len());
            let length = length.min(self.blob.size);
            if length > *seen {
                (self.watch)(Progress::Elsewhere(length - *seen));
                *seen = length;
            }
            self.flight.show(&Arc::new(file), length, Trust::Unread);
        }
        Ok(())
    }

    /// Uses a blob that is there already; who reads it compares it with the digest.
    fn take_complete(&self) -> Result<bool, CacheError> {
        let name = self.blob.digest.hex();
        let found = files::open(self.dir, name).map_err(|error| self.failed("read", error))?;
        let Some(file) = found else { return Ok(false) };
        let length = file
            .metadata()
            .map_err(|error| self.failed("examine", error))?
            .len();
        if length != self.blob.size {
            if self.is_intact(&file)? {
                return Err(self.forged(format!(
                    "the manifest promises {} bytes, it has {length}",
                    self.blob.size
                )));
            }
            files::remove(self.dir, name).map_err(|error| self.failed("remove from", error))?;
            return Ok(false);
        }
        let file = Arc::new(file);
        self.flight.show(&file, length, Trust::Unread);
        Ok(true)
    }

    fn is_intact(&self, file: &File) -> Result<bool, CacheError> {
        let mut hasher = Hasher::like(&self.blob.digest);
        super::hash_file(file, &mut hasher).map_err(|error| self.failed("read", error))?;
        Ok(hasher.finish() == self.blob.digest.to_string())
    }

    /// Downloads what is missing. A wrong digest is fetched again once.
    fn fetch(&self, source: &Source<'_>, seen: u64) -> Result<(), CacheError> {
        let mut wrong = String::new();
        for attempt in 0..2 {
            let mut part = self.open_part()?;
            if attempt == 0 {
                (self.watch)(Progress::Present(part.written.saturating_sub(seen)));
            }
            if let Err(error) = part.fill(source) {
                let is_useless = part.written == 0
                    || match &error {
                        // What is full is not helped by half a blob.
                        CacheError::Store(error) => matches!(error, StoreError::Full { .. }),
                        CacheError::Registry(error) => {
                            matches!(error, RegistryError::Forged { .. })
                        }
                        CacheError::Abandoned => false,
                    };
                if is_useless {
                    // The error is what matters; the next sweep takes what this does not.
                    let _ = files::remove(self.dir, &part_name(self.blob));
                }
                return Err(error);
            }
            let (file, found) = (Arc::clone(&part.file), part.hasher.finish());
            if found == self.blob.digest.to_string() {
                let name = self.blob.digest.hex();
                rustix::fs::renameat(self.dir, part_name(self.blob), self.dir, name)
                    .map_err(|error| self.failed("write to", error.into()))?;
                self.flight.show(&file, self.blob.size, Trust::Hashed);
                return Ok(());
            }
            wrong = found;
            files::remove(self.dir, &part_name(self.blob))
                .map_err(|error| self.failed("remove from", error))?;
        }
        Err(self.forged(format!("its digest is {wrong}, not {}", self.blob.digest)))
    }

    /// Opens the part that is there, or begins one.
    fn open_part(&self) -> Result<Part<'_>, CacheError> {
        let name = part_name(self.blob);
        let fail = |error| self.failed("write to", error);
        let mut file = files::open_private(self.dir, &name).map_err(fail)?;
        let mut length = file.metadata().map_err(fail)?.len();
        if length > self.blob.size {
            files::remove(self.dir, &name).map_err(fail)?;
            file = files::open_private(self.dir, &name).map_err(fail)?;
            length = 0;
        }
        let file = Arc::new(file);
        self.flight.show(&file, length, Trust::Hashed);
        let mut hasher = Hasher::like(&self.blob.digest);
        if length > 0 {
            super::hash_file(&file, &mut hasher).map_err(fail)?;
        }
        Ok(Part {
            download: self,
            file,
            hasher,
            buffer: Vec::with_capacity(WRITE_SIZE),
            written: length,
            last_write: Instant::now(),
        })
    }

    fn forged(&self, reason: String) -> CacheError {
        CacheError::Registry(RegistryError::Forged {
            what: "the blob",
            address: sanitize::text(self.origin),
            reason,
        })
    }

    fn failed(&self, action: &'static str, error: io::Error) -> CacheError {
        self.cache.failed(action, error, self.blob.size).into()
    }
}

impl Part<'_> {
    /// Appends what is missing; what came before an error stays.
    fn fill(&mut self, source: &Source<'_>) -> Result<(), CacheError> {
        let download = self.download;
        let have = self.written;
        if have == download.blob.size {
            return Ok(());
        }
        let result = source(have, &mut |bytes| self.take(bytes));
        let flushed = self.flush();
        match result {
            Ok(()) => {}
            Err(RegistryError::Write(error)) => return Err(self.write_error(error)),
            Err(error) => {
                // The registry's reason is what matters; what was not written is fetched again.
                let _ = flushed;
                return Err(error.into());
            }
        }
        flushed.map_err(|error| self.write_error(error))?;
        if self.written == download.blob.size {
            return Ok(());
        }
        Err(download.forged(format!(
            "the manifest promises {} bytes, the registry sent {}",
            download.blob.size, self.written
        )))
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.download.cache.check_going()?;
        (self.download.watch)(Progress::Received(bytes.len() as u64));
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_SIZE || self.last_write.elapsed() >= WRITE_INTERVAL {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let length = self.written + self.buffer.len() as u64;
        if length > self.download.blob.size {
            self.buffer.clear();
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the registry sent more than the manifest promises",
            ));
        }
        self.file.write_all_at(&self.buffer, self.written)?;
        self.hasher.update(&self.buffer);
        self.buffer.clear();
        self.written = length;
        self.last_write = Instant::now();
        let download = self.download;
        download.flight.show(&self.file, length, Trust::Hashed);
        Ok(())
    }

    fn write_error(&self, error: io::Error) -> CacheError {
        match error.downcast::<CacheError>() {
            Ok(error) => error,
            Err(error) => self.download.failed("write to", error),
        }
    }
}

/// Ends a flight however its download ends, also by a panic.
pub(super) struct Landing<'a> {
    pub flight: &'a Flight,
    pub end: End,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.flight.finish(self.end);
    }
}
