//! Fetching one blob once: from the cache, from whoever downloads it already, or from the registry.
//!
//! The part of a blob is only ever appended to, by whoever has its lease; what turned out to be
//! wrong is removed and begun again under a new inode. So after a crash a part is a valid
//! beginning, and the next download reads it once, for the hash, and asks the registry for the
//! rest. Nothing is synchronised to the disk: what a power failure damages is noticed when it is
//! read, and fetched again.
//!
//! What another process of this machine writes is read while it grows. Not so what another node
//! writes: NFS and Lustre may show the length of a file before its bytes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shifter_core::sanitize;

use super::flight::{End, Flight, Trust};
use super::folder::{Names, Scope};
use super::keep::is_intact;
use super::{BlobCache, CacheError, Progress};
use crate::files;
use crate::hash::Hasher;
use crate::registry::{Descriptor, RegistryError};
use crate::store::StoreError;
use crate::store::lease::{Attempt, Contender, Lease};

/// Bytes collected before they are written: file systems that stripe like large writes.
const WRITE_SIZE: usize = 1 << 20;
/// Time after which less than that is written, so that readers need not wait for a slow registry.
const WRITE_INTERVAL: Duration = Duration::from_millis(250);
/// How often somebody else's download is looked at, at first and at last.
const FIRST_POLL: Duration = Duration::from_millis(5);
const LAST_POLL: Duration = Duration::from_millis(100);

/// Delivers a blob's bytes from an offset on into a sink. From the first byte on it compares them
/// with the digest, too.
pub(super) type Source<'a> =
    dyn Fn(u64, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), RegistryError> + 'a;

/// One blob that is to be had.
pub(super) struct Download<'a> {
    pub cache: &'a BlobCache,
    pub blob: &'a Descriptor,
    pub flight: &'a Flight,
    pub scope: Scope,
    /// The folder of the scope.
    pub dir: &'a OwnedFd,
    /// Where the registry's answers come from, for messages.
    pub origin: &'a str,
    /// Which registry: its speed is its own.
    pub registry: &'a str,
    pub watch: &'a (dyn Fn(Progress<'_>) + Sync),
    /// False if a login turned out to be needed, so that the blob belongs elsewhere.
    pub is_in_scope: &'a dyn Fn(&Scope) -> bool,
}

/// What came of trying to have a blob.
enum Done {
    Here,
    /// It is downloaded from another registry.
    Elsewhere,
}

/// The file that a blob is written to.
struct Part<'a> {
    download: &'a Download<'a>,
    names: &'a Names,
    lease: &'a Lease,
    file: Arc<File>,
    hasher: Option<Hasher>,
    buffer: Vec<u8>,
    /// Bytes that are in the file.
    written: u64,
    last_write: Instant,
}

impl Download<'_> {
    /// Has the blob when it returns `Ok`.
    pub fn run(&self, source: &Source<'_>) -> Result<(), CacheError> {
        match self.run_as(&Names::shared(self.blob), source)? {
            Done::Here => Ok(()),
            // Any registry can name any blob, and give it as slowly as it likes.
            Done::Elsewhere => {
                let names = Names::of_registry(self.blob, self.registry);
                self.run_as(&names, source).map(drop)
            }
        }
    }

    fn run_as(&self, names: &Names, source: &Source<'_>) -> Result<Done, CacheError> {
        let (mut seen, mut has_told, mut poll) = (0, false, FIRST_POLL);
        let mut contender =
            Contender::new(self.dir, &names.lock).map_err(|error| self.failed("lock", error))?;
        contender.says(vec![self.registry.to_owned()]);
        loop {
            self.cache.insist_on_going()?;
            if self.take_complete()? {
                (self.watch)(Progress::Present(self.blob.size.saturating_sub(seen)));
                return Ok(Done::Here);
            }
            let attempt = contender.attempt();
            match attempt.map_err(|error| self.failed("lock", error))? {
                Attempt::Held(lease) => {
                    // Whoever had the lease before may have finished.
                    if self.take_complete()? {
                        continue;
                    }
                    return self.fetch(source, names, &lease, seen).map(|()| Done::Here);
                }
                Attempt::Busy(owner) if owner.says_other(self.registry) => {
                    return Ok(Done::Elsewhere);
                }
                Attempt::Busy(owner) => {
                    if !has_told {
                        (self.watch)(Progress::Waiting(&owner.describe()));
                        has_told = true;
                    }
                    self.follow(names, contender.is_here(&owner), &mut seen)?;
                }
            }
            std::thread::sleep(poll);
            poll = (poll * 3 / 2).min(LAST_POLL);
        }
    }

    /// Shows readers what another process has written so far, if it can be read already.
    fn follow(&self, names: &Names, is_readable: bool, seen: &mut u64) -> Result<(), CacheError> {
        let part =
            files::open(self.dir, &names.part).map_err(|error| self.failed("read", error))?;
        if let Some(file) = part {
            let length = file.metadata().map_or(0, |meta| meta.len());
            let length = length.min(self.blob.size);
            if length > *seen {
                (self.watch)(Progress::Elsewhere(length - *seen));
                *seen = length;
            }
            if is_readable {
                self.flight.show(&Arc::new(file), length, Trust::Unread);
            }
        }
        Ok(())
    }

    /// Uses a blob that is there already; who reads it compares it with the digest.
    fn take_complete(&self) -> Result<bool, CacheError> {
        let folders = self.scope.find(&self.cache.dir, &self.blob.digest);
        for folder in folders.map_err(|error| self.failed("open", error))? {
            if let Some(file) = self.take_from(&folder)? {
                // Tells what is used from what is not. It may be somebody else's turn to remove it.
                let _ = crate::store::lease::touch(&file);
                self.flight
                    .show(&Arc::new(file), self.blob.size, Trust::Unread);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take_from(&self, folder: &OwnedFd) -> Result<Option<File>, CacheError> {
        let name = self.blob.digest.hex();
        let Some(file) = files::open(folder, name).map_err(|error| self.failed("read", error))?
        else {
            return Ok(None);
        };
        let length = file
            .metadata()
            .map_err(|error| self.failed("examine", error))?
            .len();
        if length == self.blob.size {
            return Ok(Some(file));
        }
        let digest = &self.blob.digest;
        if is_intact(&file, digest).map_err(|error| self.failed("read", error))? {
            return Err(self.forged(format!(
                "the manifest promises {} bytes, it has {length}",
                self.blob.size
            )));
        }
        files::remove(folder, name).map_err(|error| self.failed("remove from", error))?;
        Ok(None)
    }

    /// Downloads what is missing. What is not the blob is fetched again once, from its first byte.
    fn fetch(
        &self,
        source: &Source<'_>,
        names: &Names,
        lease: &Lease,
        seen: u64,
    ) -> Result<(), CacheError> {
        let mut is_second = false;
        loop {
            let mut part = self.open_part(names, lease)?;
            if !is_second {
                (self.watch)(Progress::Present(part.written.saturating_sub(seen)));
            }
            match part.fill(source).and_then(|()| part.compare()) {
                Ok(()) => return self.complete(&part),
                Err(error) => {
                    part.give_back(&error);
                    let is_forged =
                        matches!(error, CacheError::Registry(RegistryError::Forged { .. }));
                    if is_second || !is_forged {
                        return Err(error);
                    }
                }
            }
            is_second = true;
        }
    }

    /// Gives a blob its name.
    fn complete(&self, part: &Part<'_>) -> Result<(), CacheError> {
        part.lease
            .check()
            .map_err(|error| self.failed("go on in", error))?;
        let name = self.blob.digest.hex();
        rustix::fs::renameat(self.dir, &part.names.part, self.dir, name)
            .map_err(|error| self.failed("write to", error.into()))?;
        self.flight.show(&part.file, self.blob.size, Trust::Hashed);
        Ok(())
    }

    /// Opens the part that is there, or begins one.
    fn open_part<'b>(&'b self, names: &'b Names, lease: &'b Lease) -> Result<Part<'b>, CacheError> {
        let name = &names.part;
        let fail = |error| self.failed("write to", error);
        let mut file = files::open_private(self.dir, name).map_err(fail)?;
        let mut length = file.metadata().map_err(fail)?.len();
        if length > self.blob.size {
            files::remove(self.dir, name).map_err(fail)?;
            file = files::open_private(self.dir, name).map_err(fail)?;
            length = 0;
        }
        let file = Arc::new(file);
        self.flight.show(&file, length, Trust::Hashed);
        // Who delivers a blob from its first byte compares it.
        let mut hasher = None;
        if length > 0 || self.blob.size == 0 {
            let hasher = hasher.insert(Hasher::like(&self.blob.digest));
            hasher.update_from(&file).map_err(fail)?;
        }
        self.preallocate(&file, name, length)?;
        Ok(Part {
            download: self,
            names,
            lease,
            file,
            hasher,
            buffer: Vec::with_capacity(WRITE_SIZE),
            written: length,
            last_write: Instant::now(),
        })
    }

    /// Has the disk, or the quota, say at once that there is not enough room; and the blob in one
    /// piece.
    fn preallocate(&self, file: &File, name: &str, length: u64) -> Result<(), CacheError> {
        let missing = self.blob.size.saturating_sub(length);
        if missing == 0 {
            return Ok(());
        }
        let beyond = rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, beyond, length, missing).map_err(io::Error::from) {
            Err(error) if crate::store::is_full(&error) => {
                let _ = files::remove(self.dir, name);
                Err(self.failed("write to", error))
            }
            // NFS and Lustre may not know it.
            _ => Ok(()),
        }
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
        // What is known to be wrong is shown to no reader: it would fail first, for another reason.
        if matches!(result, Err(RegistryError::Forged { .. })) {
            self.buffer.clear();
        }
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

    /// Compares the digest, unless whoever delivered the blob has.
    fn compare(&mut self) -> Result<(), CacheError> {
        let Some(hasher) = self.hasher.take() else {
            return Ok(());
        };
        let (found, wanted) = (hasher.finish(), &self.download.blob.digest);
        if found == wanted.to_string() {
            return Ok(());
        }
        let reason = format!("its digest is {found}, not {wanted}");
        Err(self.download.forged(reason))
    }

    /// After a failure: removes what is of no use, and keeps the beginning of the blob for later.
    fn give_back(&self, error: &CacheError) {
        let is_useless = match error {
            // What is full is not helped by half a blob.
            CacheError::Store(error) => matches!(error, StoreError::Full { .. }),
            CacheError::Registry(error) => matches!(error, RegistryError::Forged { .. }),
            CacheError::Abandoned => false,
            // Bytes that not everybody may have do not stay where everybody's are.
            CacheError::Private => true,
        };
        let download = self.download;
        if self.lease.check().is_err() {
            // It is somebody else's now.
            return;
        }
        // The error is what matters; the next sweep takes what this does not.
        let _ = if is_useless || self.written == 0 {
            files::remove(download.dir, &self.names.part)
        } else {
            // What was set aside for the rest.
            self.file.set_len(self.written)
        };
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let download = self.download;
        download.cache.check_going()?;
        if !(download.is_in_scope)(&download.scope) {
            return Err(io::Error::other(CacheError::Private));
        }
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
        self.lease.check()?;
        self.file.write_all_at(&self.buffer, self.written)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.buffer);
        }
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
