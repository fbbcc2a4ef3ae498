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
//! its flock or by its pid; one on another machine, or one that was stopped, when its record does not
//! change any more.
//! That is watched with this machine's stopwatch, and the age is measured against a file just
//! written to the same file system, so no two clocks are compared.
//!
//! A dead holder's lease is taken over by whoever links `NAME.<its nonce>` and still finds the lease
//! that it began with at NAME after it: the last of such a chain has the lease, and a nonce is
//! taken over once. NAME itself is never replaced, because NFS and FUSE move a file that is open
//! out of the way first, and for that moment it would seem free; who gives the lease back removes it.
//!
//! A process that was suspended for longer than all this may wake up without its lease. So what
//! is done under one must do no harm when two do it: everything here is written beside its name
//! and renamed, and [`Lease::check`] comes first.

mod heart;
mod record;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::cancel::Cancel;
use crate::files;
pub(crate) use record::Identity;
pub use record::Owner;

const PREFIX: &str = ".lease-";
/// Takers-over that may have died one after the other.
const CHAIN_LIMIT: usize = 256;
/// Tries after which somebody is always faster.
const TRY_LIMIT: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// Nobody wants to hear of a wait that is shorter.
const WORTH_TELLING: Duration = Duration::from_millis(200);
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
    /// The nonce of the record at the name: this process's, or that of the first of the dead.
    root: String,
    nonce: String,
    /// The claims from the first of the dead to this process.
    claims: Vec<String>,
    /// Shows that this process lives.
    _file: Arc<File>,
}

/// The records that lead to a lease's holder.
struct Chain {
    root: (File, Owner),
    /// The last record and its place, if that is not the root.
    last: Option<(File, Owner)>,
    claims: Vec<String>,
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
    nonce: String,
    /// Its name where it needs one.
    temporary: Option<String>,
}

/// How to wait for what somebody else has.
#[derive(Clone, Copy)]
pub struct Waiting<'a> {
    /// Ends the waiting.
    pub cancel: Option<&'a Cancel>,
    /// Hears, once for each lease, who has it.
    pub tell: &'a dyn Fn(&Owner),
}

impl Waiting<'static> {
    /// Waits as long as it takes and tells nobody.
    pub const QUIET: Self = Self {
        cancel: None,
        tell: &|_| (),
    };
}

/// Waits for a lease.
pub(crate) fn acquire(dir: &OwnedFd, name: &str, waiting: &Waiting<'_>) -> io::Result<Lease> {
    let mut contender = Contender::new(dir, name)?;
    let (mut has_told, mut pause, began) = (false, FIRST_PAUSE, Instant::now());
    loop {
        match contender.attempt()? {
            Attempt::Held(lease) => return Ok(lease),
            Attempt::Busy(owner) if !has_told && began.elapsed() >= WORTH_TELLING => {
                (waiting.tell)(&owner);
                has_told = true;
            }
            Attempt::Busy(_) => {}
        }
        if let Some(cancel) = waiting.cancel {
            cancel.check().map_err(io::Error::other)?;
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
    contender.name = &name;
    let placed = contender.place(&ready, &name);
    contender.clear(&ready)?;
    placed?;
    contender.lease(ready, None, Vec::new())
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

/// Removes such a record if its writer is dead and it does not lead to the holder of a lease.
pub(crate) fn sweep(dir: &OwnedFd, name: &str) -> io::Result<()> {
    if let Some((lease, _)) = name.rsplit_once('.')
        && !lease.is_empty()
        && let Some(chain) = Contender::new(dir, lease)?.follow()?
        && chain.claims.iter().any(|claim| claim == name)
    {
        return Ok(());
    }
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

    /// Has the record say something to those who contend for the same lease.
    pub fn says(&mut self, words: Vec<String>) {
        self.uses = words;
    }

    /// Tries once, without waiting.
    pub fn attempt(&mut self) -> io::Result<Attempt> {
        for _ in 0..TRY_LIMIT {
            let Some(chain) = self.follow()? else {
                if let Some(lease) = self.take_free()? {
                    return Ok(Attempt::Held(lease));
                }
                continue;
            };
            let (file, holder) = chain.last.as_ref().unwrap_or(&chain.root);
            let is_full = chain.claims.len() >= CHAIN_LIMIT;
            if is_full || !self.is_dead(file, holder)? {
                return Ok(Attempt::Busy(holder.clone()));
            }
            if let Some(lease) = self.take_over(chain)? {
                return Ok(Attempt::Held(lease));
            }
        }
        Ok(Attempt::Busy(Owner::default()))
    }

    /// Finds the holder; none if there is no lease.
    fn follow(&self) -> io::Result<Option<Chain>> {
        let Some(root) = self.read(self.name)? else {
            return Ok(None);
        };
        let mut chain = Chain {
            root,
            last: None,
            claims: Vec::new(),
        };
        while chain.claims.len() < CHAIN_LIMIT {
            let claim = self.claim(chain.holder());
            let Some(next) = self.read(&claim)? else {
                break;
            };
            chain.claims.push(claim);
            chain.last = Some(next);
        }
        Ok(Some(chain))
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
        match is_mine? {
            true => self.lease(ready, None, Vec::new()).map(Some),
            false => Ok(None),
        }
    }

    /// Takes the place of a dead holder; none if somebody else does or did.
    fn take_over(&self, mut chain: Chain) -> io::Result<Option<Lease>> {
        let ready = self.prepare()?;
        let claim = self.claim(chain.holder());
        let result = self.place(&ready, &claim).and_then(|is_mine| {
            if !is_mine {
                return Ok(false);
            }
            // Who has the lease may have given it back, and removed its claim, meanwhile.
            let is_current = is_current(self.dir, self.name, &chain.root.1.nonce)?;
            if !is_current {
                files::remove(self.dir, &claim)?;
            }
            Ok(is_current)
        });
        self.clear(&ready)?;
        match result? {
            true => {
                chain.claims.push(claim);
                self.lease(ready, Some(chain.root.1), chain.claims)
                    .map(Some)
            }
            false => Ok(None),
        }
    }

    fn claim(&self, holder: &Owner) -> String {
        format!("{}.{}", self.name, holder.nonce)
    }

    fn lease(&self, ready: Ready, root: Option<Owner>, claims: Vec<String>) -> io::Result<Lease> {
        let file = Arc::new(ready.file);
        heart::beat_for(&file);
        Ok(Lease {
            dir: self.dir.try_clone()?,
            name: self.name.to_owned(),
            root: root.map_or_else(|| ready.nonce.clone(), |owner| owner.nonce),
            nonce: ready.nonce,
            claims,
            _file: file,
        })
    }

    /// Writes a record of this process.
    fn prepare(&self) -> io::Result<Ready> {
        let mut owner = self.identity.owner()?;
        owner.uses.clone_from(&self.uses);
        let mut ready = self.make(&owner.nonce)?;
        // Where a file needs a name to get another, the two may not share their locks, as on FUSE.
        owner.is_flocked = ready.temporary.is_none()
            && flock(&ready.file, FlockOperation::NonBlockingLockExclusive)?;
        match record::write(&ready.file, &owner) {
            // A full disk must not keep anybody from removing images: an empty record counts, too.
            Err(error) if super::is_full(&error) => {
                ready.nonce = record::read(&ready.file)?.nonce;
                Ok(ready)
            }
            Err(error) => {
                self.clear(&ready)?;
                Err(error)
            }
            Ok(()) => Ok(ready),
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
                        nonce: nonce.to_owned(),
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
            nonce: nonce.to_owned(),
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
            Err(Errno::EXIST) => is_current(self.dir, name, &ready.nonce),
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
        let known = self.identity.is_dead(owner, file)?;
        if known == Some(true) {
            return Ok(true);
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
        // One of this machine, too, that lives and was stopped: Ctrl-Z must not lock out everybody.
        if watched >= self.timing.stale {
            return Ok(true);
        }
        if known.is_some() {
            return Ok(false);
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

impl Chain {
    fn holder(&self) -> &Owner {
        let (_, owner) = self.last.as_ref().unwrap_or(&self.root);
        owner
    }
}

impl Lease {
    /// Fails if somebody else has taken the lease over.
    pub fn check(&self) -> io::Result<()> {
        if self.is_held()? {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another process took over, because this one did not show life for too long",
        ))
    }

    fn is_held(&self) -> io::Result<bool> {
        let is_there = is_current(&self.dir, &self.name, &self.root)?;
        let is_mine = match self.claims.last() {
            Some(claim) => is_current(&self.dir, claim, &self.nonce)?,
            None => true,
        };
        let successor = format!("{}.{}", self.name, self.nonce);
        let successor = rustix::fs::statat(&self.dir, successor, AtFlags::SYMLINK_NOFOLLOW);
        match successor {
            Err(Errno::NOENT) => Ok(is_there && is_mine),
            Ok(_) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
impl Lease {
    /// Leaves it as a process does that dies: without a word, its flock gone.
    pub(crate) fn die(self) {
        flock(&self._file, FlockOperation::Unlock).unwrap();
        std::mem::forget(self);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What cannot be removed is taken over: this process does not hold it any more. The lease
        // comes first, for the claims mean nothing without it.
        if let Ok(true) = self.is_held()
            && files::remove(&self.dir, &self.name).is_ok()
        {
            for claim in &self.claims {
                let _ = files::remove(&self.dir, claim);
            }
        }
    }
}

/// True if `name` leads to the record with that nonce. Not every file system gives all links of a
/// file one inode number.
fn is_current(dir: &OwnedFd, name: &str, nonce: &str) -> io::Result<bool> {
    match files::open(dir, name)? {
        Some(file) => Ok(record::read(&file)?.nonce == nonce),
        None => Ok(false),
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
