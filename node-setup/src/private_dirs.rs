//! Directories of the host that a job has for itself, such as the `/tmp` of job_container/tmpfs, taken
//! along into its root.
//!
//! The batch system makes them after its prolog, in mount namespaces of the job's steps, so that a
//! root is built without them. Whoever joins it first from such a namespace lays them over the host's,
//! for all: they are the same for every step of the job.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Result};
use crate::mnt::{self, SAFE};
use crate::state;
use crate::sys::Propagation;

/// The directories, of those that every root has from the host, that a batch system may replace.
const DIRS: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// In a root's directory: it is locked by who takes directories along, and not empty afterwards.
const MARK: &str = "private";

/// Clones of the directories, with what tells one directory from another.
pub struct PrivateDirs(Vec<(&'static str, Identity, OwnedFd)>);

type Identity = (u64, u64);

impl PrivateDirs {
    /// Clones the directories as the process sees them; nothing where it is in the host's own
    /// namespace, or where somebody has taken them along before. `root` is the root's directory.
    pub fn collect(root: &OwnedFd) -> Result<Option<Self>> {
        let hosts = state::host_namespace_of(root)?;
        if hosts == state::own_namespace()? || !is_empty(root)? {
            return Ok(None);
        }
        let mut dirs = Vec::new();
        for path in DIRS {
            let Some(identity) = identity(path)? else {
                continue;
            };
            let clone = mnt::clone_path(path, true)?;
            mnt::restrict(&clone, SAFE, Propagation::Private)?;
            dirs.push((path, identity, clone));
        }
        Ok(Some(Self(dirs)))
    }

    /// Lays those over the root's own that are others. The process is in the root.
    pub fn attach(self, root: &OwnedFd) -> Result<()> {
        let mark = state::create_file(root.as_fd(), MARK)?;
        rustix::fs::flock(&mark, FlockOperation::LockExclusive).step("lock", MARK)?;
        let mut mark = File::from(mark);
        if mark.read(&mut [0]).step("read", MARK)? > 0 {
            return Ok(());
        }
        for (path, private, clone) in self.0 {
            if identity(path)?.is_some_and(|own| own != private) {
                // Not a link: the layer or the host has made the place, never the image.
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let place = rustix::fs::open(path, flags, Mode::empty()).step("open", path)?;
                mnt::attach(&clone, &place)?;
            }
        }
        mark.write_all(b"1").step("write", MARK)
    }
}

fn is_empty(root: &OwnedFd) -> Result<bool> {
    Ok(match state::open_file(root, MARK)? {
        Some(file) => file.metadata().step("examine", MARK)?.len() == 0,
        None => true,
    })
}

fn identity(path: &str) -> Result<Option<Identity>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    match rustix::fs::statat(rustix::fs::CWD, path, flags) {
        Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).step("examine", path),
    }
}
