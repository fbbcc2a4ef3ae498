//! Leases: the right to change something in a directory that many nodes share.
//!
//! ```text
//! NAME            the lease: a record of its holder, whose mtime its holder renews
//! NAME.<nonce>    somebody is taking over the lease with that nonce
//! .lease-<nonce>  a record that is about to become one of these, where O_TMPFILE is not known
//! ```
//!
//! Nothing is needed of the file system that NFS or Lustre lack: a lease is taken by link(2),
//! which one process alone succeeds with. A holder on this machine that died is known at once, by
//! its flock or by its pid; one on another machine when its record does not change any more.
//! That is watched with this machine's stopwatch, and the age is measured against a file just
//! written to the same file system, so no two clocks are compared.
//!
//! A dead holder's lease is taken over by whoever links `NAME.<its nonce>` and still finds that
//! lease at NAME after it: a nonce is taken over once. A process that was suspended for longer
//! than all this may wake up without its lease. So what is done under one must do no harm when two
//! do it: everything here is written beside its name and renamed, and [`Lease::check`] comes first.

mod heart;
mod record;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::files;
pub(crate) use record::Identity;
pub use record::Owner;

const PREFIX: &str = ".lease-";
/// Takers-over that may have died one after the other.
const CHAIN_LIMIT: usize = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// When a holder on another machine counts as dead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Its record is this old and does not change while it is watched for `watched`, ...
    pub stale: Duration,
    /// ... or it does not change for `stale` while it is watched, however old it seems, ...
    pub watched: Duration,
    /// ... or it is this old.
    pub abandoned: Duration,
}

impl Timing {
    pub const USUAL: Self = Self {
        stale: Duration::from_secs(20),
        watched: Duration::from_secs(8),
        abandoned: Duration::from_secs(3600),
    };
}

/// A lease that this process holds; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Lease {
    dir: OwnedFd,
    name: String,
    file: Arc<File>,
}

/// Somebody who wants a lease and remembers what was seen of its holder.
#[derive(Debug)]
pub(crate) struct Contender<'a> {
    dir: &'a OwnedFd,
    name: &'a str,
    identity: Identity,
    timing: Timing,
    /// The holder's nonce and mtime, and since when they are the same.
    seen: Option<(String, SystemTime, Instant)>,
    has_unnamed_files: bool,
    /// What the record says is in use.
    uses: Vec<String>,
}

/// What came of trying once.
#[derive(Debug)]
pub(crate) enum Attempt {
    Held(Lease),
    Busy(Owner),
}

/// A record that has no place yet.
struct Ready {
    file: File,
    /// Its name where it needs one.
    temporary: Option<String>,
}

/// Waits for a lease; `on_wait` hears once who has it.
pub(crate) fn acquire(
    dir: &OwnedFd,
    name: &str,
    on_wait: impl FnOnce(&Owner),
) -> io::Result<Lease> {
    let mut contender = Contender::new(dir, name)?;
    let (mut on_wait, mut pause) = (Some(on_wait), FIRST_PAUSE);
    loop {
        match contender.attempt()? {
            Attempt::Held(lease) => return Ok(lease),
            Attempt::Busy(owner) => {
                if let Some(notify) = on_wait.take() {
                    notify(&owner);
                }
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(LAST_PAUSE);
    }
}

/// Takes a lease if nobody has it.
pub(crate) fn try_acquire(dir: &OwnedFd, name: &str) -> io::Result<Option<Lease>> {
    match Contender::new(dir, name)?.attempt()? {
        Attempt::Held(lease) => Ok(Some(lease)),
        Attempt::Busy(_) => Ok(None),
    }
}

/// Says that this process uses something, for as long as the lease lives: a record of a name of its
/// own, which begins with `prefix`, and nobody contends for.
pub(crate) fn announce(dir: &OwnedFd, prefix: &str, uses: Vec<String>) -> io::Result<Lease> {
    let mut contender = Contender::new(dir, prefix)?;
    contender.uses = uses;
    let ready = contender.prepare()?;
    let owner = record::read(&ready.file)?;
    if owner.uses.is_empty() {
        contender.clear(&ready)?;
        return Err(io::ErrorKind::StorageFull.into());
    }
    let name = format!("{prefix}{}", owner.nonce);
    let placed = contender.place(&ready, &name);
    contender.clear(&ready)?;
    placed?;
    let mut lease = contender.lease(ready.file)?;
    lease.name = name;
    Ok(lease)
}

/// Returns what a process announced that it uses; nothing if it is dead.
pub(crate) fn announced(dir: &OwnedFd, name: &str) -> io::Result<Vec<String>> {
    let mut contender = Contender::new(dir, name)?;
    let Some((file, owner)) = contender.read(name)? else {
        return Ok(Vec::new());
    };
    Ok(match contender.is_dead(&file, &owner)? {
        true => Vec::new(),
        false => owner.uses,
    })
}

/// True if `name` is a record that is not, or not any more, a lease: [`sweep`] is for those.
pub(crate) fn is_leftover(name: &str) -> bool {
    let is_nonce = |text: &str| text.len() == record::NONCE_LENGTH;
    name.strip_prefix(PREFIX).is_some_and(is_nonce)
        || name
            .rsplit_once('.')
            .is_some_and(|(stem, nonce)| stem.contains("lock") && is_nonce(nonce))
}

/// Removes such a record if its writer is dead.
pub(crate) fn sweep(dir: &OwnedFd, name: &str) -> io::Result<()> {
    let mut contender = Contender::new(dir, name)?;
    let Some((file, owner)) = contender.read(name)? else {
        return Ok(());
    };
    if contender.is_dead(&file, &owner)? {
        files::remove(dir, name)?;
    }
    Ok(())
}

impl<'a> Contender<'a> {
    pub fn new(dir: &'a OwnedFd, name: &'a str) -> io::Result<Self> {
        Ok(Self {
            dir,
            name,
            identity: Identity::current()?,
            timing: Timing::USUAL,
            seen: None,
            has_unnamed_files: true,
            uses: Vec::new(),
        })
    }

    /// Tries once, without waiting.
    pub fn attempt(&mut self) -> io::Result<Attempt> {
        loop {
            let Some((file, root)) = self.read(self.name)? else {
                if let Some(lease) = self.take_free()? {
                    return Ok(Attempt::Held(lease));
                }
                continue;
            };
            let (mut file, mut holder, mut passed) = (file, root.clone(), Vec::new());
            while let Some((next, owner)) = self.read(&self.claim(&holder))? {
                if passed.len() == CHAIN_LIMIT {
                    return Ok(Attempt::Busy(owner));
                }
                passed.push(self.claim(&holder));
                (file, holder) = (next, owner);
            }
            if !self.is_dead(&file, &holder)? {
                return Ok(Attempt::Busy(holder));
            }
            if let Some(lease) = self.take_over(&root, &holder)? {
                for name in passed {
                    files::remove(self.dir, &name)?;
                }
                return Ok(Attempt::Held(lease));
            }
        }
    }

    /// True if a holder is on this machine, and the two see the same pages of a file.
    pub fn is_here(&self, owner: &Owner) -> bool {
        self.identity.shares_memory_with(owner)
    }

    /// Takes a lease that nobody has; none if somebody was faster.
    fn take_free(&self) -> io::Result<Option<Lease>> {
        let ready = self.prepare()?;
        let is_mine = self.place(&ready, self.name);
        self.clear(&ready)?;
        is_mine?.then(|| self.lease(ready.file)).transpose()
    }

    /// Takes the place of a dead holder; none if somebody else does or did.
    fn take_over(&self, root: &Owner, dead: &Owner) -> io::Result<Option<Lease>> {
        let ready = self.prepare()?;
        let claim = self.claim(dead);
        let result = self.place(&ready, &claim).and_then(|is_mine| {
            if !is_mine {
                return Ok(false);
            }
            // The name of the claim became free when an earlier taker-over was ready.
            let is_current = self
                .read(self.name)?
                .is_some_and(|(_, owner)| owner.nonce == root.nonce);
            if is_current {
                rustix::fs::renameat(self.dir, &claim, self.dir, self.name)?;
            } else {
                files::remove(self.dir, &claim)?;
            }
            Ok(is_current)
        });
        self.clear(&ready)?;
        result?.then(|| self.lease(ready.file)).transpose()
    }

    fn claim(&self, holder: &Owner) -> String {
        format!("{}.{}", self.name, holder.nonce)
    }

    fn lease(&self, file: File) -> io::Result<Lease> {
        let file = Arc::new(file);
        heart::beat_for(&file);
        Ok(Lease {
            dir: self.dir.try_clone()?,
            name: self.name.to_owned(),
            file,
        })
    }

    /// Writes a record of this process.
    fn prepare(&self) -> io::Result<Ready> {
        let mut owner = self.identity.owner()?;
        owner.uses.clone_from(&self.uses);
        let ready = self.make(&owner.nonce)?;
        owner.is_flocked = flock(&ready.file, FlockOperation::NonBlockingLockExclusive)?;
        match record::write(&ready.file, &owner) {
            // A full disk must not keep anybody from removing images: an empty record counts, too.
            Err(error) if !super::is_full(&error) => {
                self.clear(&ready)?;
                Err(error)
            }
            _ => Ok(ready),
        }
    }

    fn make(&self, nonce: &str) -> io::Result<Ready> {
        if self.has_unnamed_files {
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o600);
            match rustix::fs::openat(self.dir, ".", flags, mode) {
                Ok(file) => {
                    return Ok(Ready {
                        file: file.into(),
                        temporary: None,
                    });
                }
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let name = format!("{PREFIX}{nonce}");
        Ok(Ready {
            file: files::create(self.dir, &name)?,
            temporary: Some(name),
        })
    }

    /// Gives a record its place; false if that is taken.
    fn place(&self, ready: &Ready, name: &str) -> io::Result<bool> {
        let linked = match &ready.temporary {
            Some(temporary) => {
                rustix::fs::linkat(self.dir, temporary, self.dir, name, AtFlags::empty())
            }
            None => {
                let path = format!("/proc/self/fd/{}", ready.file.as_raw_fd());
                let follow = AtFlags::SYMLINK_FOLLOW;
                rustix::fs::linkat(rustix::fs::CWD, path, self.dir, name, follow)
            }
        };
        match linked {
            Ok(()) => Ok(true),
            // An NFS server whose first answer was lost says so of a link that it made.
            Err(Errno::EXIST) => is_current(self.dir, name, &ready.file),
            Err(error) => Err(error.into()),
        }
    }

    fn clear(&self, ready: &Ready) -> io::Result<()> {
        match &ready.temporary {
            Some(name) => files::remove(self.dir, name),
            None => Ok(()),
        }
    }

    /// Reads a record; none if there is no such file. One that is unreadable names nobody.
    fn read(&self, name: &str) -> io::Result<Option<(File, Owner)>> {
        let Some(file) = files::open(self.dir, name)? else {
            return Ok(None);
        };
        let owner = record::read(&file)?;
        Ok(Some((file, owner)))
    }

    /// Asks the file system what time it is.
    fn time(&self) -> io::Result<SystemTime> {
        let ready = self.make(&self.identity.owner()?.nonce)?;
        let touched = heart::touch(&ready.file).map_err(io::Error::from);
        let modified = touched.and_then(|()| ready.file.metadata()?.modified());
        self.clear(&ready)?;
        modified
    }

    /// Judges a holder from what is known of its machine, or from what was seen of its record.
    fn is_dead(&mut self, file: &File, owner: &Owner) -> io::Result<bool> {
        if let Some(is_dead) = self.identity.is_dead(owner, file)? {
            return Ok(is_dead);
        }
        let modified = file.metadata()?.modified()?;
        let since = match &self.seen {
            Some((nonce, time, since)) if *nonce == owner.nonce && *time == modified => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((owner.nonce.clone(), modified, now));
                now
            }
        };
        let watched = since.elapsed();
        if watched >= self.timing.stale {
            return Ok(true);
        }
        let age = self.time()?.duration_since(modified).unwrap_or_default();
        Ok(age >= self.timing.abandoned
            || (age >= self.timing.stale && watched >= self.timing.watched))
    }
}

/// Sets a file's times to the file system's idea of now.
pub(crate) fn touch(file: &File) -> io::Result<()> {
    Ok(heart::touch(file)?)
}

/// Asks the file system what time it is.
pub(crate) fn time(dir: &OwnedFd) -> io::Result<SystemTime> {
    Contender::new(dir, "time")?.time()
}

impl Lease {
    /// Fails if somebody else has taken the lease over.
    pub fn check(&self) -> io::Result<()> {
        if is_current(&self.dir, &self.name, &self.file)? {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another process took over, because this one did not show life for too long",
        ))
    }
}

#[cfg(test)]
impl Lease {
    /// Leaves it as a process does that dies: without a word, its flock gone.
    pub(crate) fn die(self) {
        flock(&self.file, FlockOperation::Unlock).unwrap();
        std::mem::forget(self);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What cannot be removed is taken over: this process does not hold it any more.
        if let Ok(true) = is_current(&self.dir, &self.name, &self.file) {
            let _ = files::remove(&self.dir, &self.name);
        }
    }
}

/// True if `name` leads to `file`.
fn is_current(dir: &OwnedFd, name: &str, file: &File) -> io::Result<bool> {
    let mine = rustix::fs::fstat(file)?;
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok((found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Locks a file within this machine; false if somebody has it or the file system has no such locks.
fn flock(file: &File, operation: FlockOperation) -> io::Result<bool> {
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => {
                return Ok(false);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
