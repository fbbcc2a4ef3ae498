//! The file under a cache: made by the storage's owner, reachable by nobody.
//!
//! It never has a name where the file system can do that (O_TMPFILE); elsewhere it has one for
//! the moment between two system calls, in a directory that only its owner and root can search,
//! while it is empty. Lustre, GPFS and most FUSE file systems are of the second kind.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use shifter_core::trusted::{self, TrustError};

use super::seed::Seed;
use crate::error::{Context, Error, Result};
use crate::fsuser::as_user;
use crate::state;

/// How the names begin that files have for a moment.
const PREFIX: &str = ".shifter-cache-";

const PRIVATE: Mode = Mode::from_raw_mode(0o600);

/// The directory for backing files, verified.
pub struct BackingDir {
    dir: OwnedFd,
    path: PathBuf,
    owner: u32,
    group: u32,
}

impl BackingDir {
    /// Opens the directory with the owner's eyes: root may have no say there (root_squash).
    ///
    /// # Errors
    /// [`Error::Untrusted`] names the path and the rule that is broken, [`Error::Step`] what is
    /// not there: the node's failures, both.
    pub fn open(path: &Path, owner: u32) -> Result<Self> {
        let look = || -> Result<(OwnedFd, Stat)> {
            let real = trusted::audit(path, &[owner]).map_err(Error::Untrusted)?;
            // Before it is opened, which may fail for the same reason and say less.
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statat(CWD, path, nofollow).step("examine", path)?;
            judge(path, &stat, owner)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(CWD, &real, flags, Mode::empty()).step("open", path)?;
            let stat = rustix::fs::fstat(&dir).step("examine", path)?;
            judge(path, &stat, owner)?;
            Ok((dir, stat))
        };
        let (dir, stat) = as_user(owner, 0, &[], look)??;
        Ok(Self {
            dir,
            path: path.to_owned(),
            owner,
            group: stat.st_gid,
        })
    }

    /// Makes a file that nobody but the holder of its descriptor can reach, with the seed in it.
    pub fn create(&self, seed: &Seed) -> Result<File> {
        let create = || -> Result<File> {
            let file = File::from(self.nameless()?);
            self.verify(&file)?;
            let room = "make a per-node cache in";
            seed.write(&file).step(room, &self.path)?;
            Ok(file)
        };
        as_user(self.owner, self.group, &[], create)?
    }

    fn nameless(&self) -> Result<OwnedFd> {
        let step = "make a per-node cache in";
        let access = OFlags::RDWR | OFlags::CLOEXEC;
        // O_EXCL: not even its holder can give it a name.
        let flags = access | OFlags::TMPFILE | OFlags::EXCL;
        match rustix::fs::openat(&self.dir, ".", flags, PRIVATE) {
            // As open(2) lists what file systems and kernels without O_TMPFILE answer.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::NOSYS | Errno::INVAL) => {}
            other => return other.step(step, &self.path),
        }
        self.sweep()?;
        let name = format!("{PREFIX}{}", random_word()?);
        let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.dir, &name, flags, PRIVATE).step(step, &self.path)?;
        self.forget(&name)?;
        Ok(file)
    }

    /// Removes the names that set-ups left which were killed right between making and removing
    /// theirs, on whatever node. One that is at it now loses nothing: the name is all that goes.
    fn sweep(&self) -> Result<()> {
        let names = state::list(&self.dir)?;
        names
            .iter()
            .filter(|name| name.starts_with(PREFIX))
            .try_for_each(|name| self.forget(name))
    }

    fn forget(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).step("remove a name from", &self.path),
        }
    }

    /// Makes sure of the file before anything is in it.
    fn verify(&self, file: &File) -> Result<()> {
        let stat = rustix::fs::fstat(file).step("examine a file in", &self.path)?;
        let rule = if stat.st_nlink != 0 {
            // NFS renames what is open, and leaves it there when the node dies.
            "a file there still has a name after that was removed"
        } else if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            "what is made there is no regular file"
        } else if stat.st_uid != self.owner || stat.st_mode & 0o7777 != PRIVATE.as_raw_mode() {
            "a file there is not its maker's alone"
        } else {
            return Ok(());
        };
        Err(untrusted(&self.path, rule.to_owned()))
    }
}

/// Judges the directory itself; what is above it has been judged.
fn judge(path: &Path, stat: &Stat, owner: u32) -> Result<()> {
    let (found, mode) = (stat.st_uid, stat.st_mode & 0o7777);
    let rule = if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        "it must be a directory and not a link".to_owned()
    } else if found != owner {
        format!("it belongs to uid {found} and must belong to uid {owner}")
    } else if mode != 0o700 {
        format!("its mode is {mode:04o} and must be 0700")
    } else {
        return Ok(());
    };
    Err(untrusted(path, rule))
}

fn untrusted(path: &Path, rule: String) -> Error {
    Error::Untrusted(TrustError::Untrusted {
        path: path.to_owned(),
        rule,
    })
}

/// Returns a word that nobody can guess.
fn random_word() -> Result<String> {
    const SOURCE: &str = "/dev/urandom";
    let mut bytes = [0; 16];
    let mut source = File::open(SOURCE).step("open", SOURCE)?;
    source.read_exact(&mut bytes).step("read", SOURCE)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
