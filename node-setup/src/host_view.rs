//! A job's root in the host's own namespace, at one place: ALPS changes root there and knows no
//! namespaces (`root.visibility = "host"`).
//!
//! What is attached is a copy of the pinned namespace's mounts. One job can have the place. Undoing
//! goes by what is mounted there: nothing but the job's own root is ever taken away.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use shifter_core::config::{Config, Visibility};
use shifter_core::trusted;

use crate::error::{Context, Error, Result};
use crate::mnt;
use crate::process;
use crate::state::{self, RunDir};

/// In the node's state: held by whoever looks at the place and then uses it.
const LOCK: &str = "host-view";

/// Mounts of one root that may lie on one another at the place: one, and none but one to take away.
const LAYERS: usize = 16;

/// A copy of a root that is attached nowhere yet, and where it is to be.
pub struct HostView {
    tree: OwnedFd,
    place: PathBuf,
}

impl HostView {
    /// Takes what [`copy`] made.
    pub fn new(tree: OwnedFd, place: PathBuf) -> Self {
        Self { tree, place }
    }

    /// Returns where the root is to be.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Attaches the copy; the process is in the host's namespace.
    ///
    /// # Errors
    /// [`Error::Step`] with EBUSY if another job's root, or anything else, is mounted there.
    pub fn attach(&self, run: &RunDir) -> Result<()> {
        let lock = state::create_file(run.dir(), LOCK)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).step("lock", LOCK)?;
        let place = open(&self.place).step("open directory", &self.place)?;
        if is_mount(&place)? {
            return Err(Errno::BUSY).step("mount at", &self.place);
        }
        mnt::attach(&self.tree, &place)
    }
}

/// Copies the root that the process is in; the copy is attached nowhere yet.
pub fn copy() -> Result<OwnedFd> {
    mnt::clone_path("/", true)
}

/// Returns the place where the site wants jobs' roots to be seen, if it does.
///
/// # Errors
/// [`Error::Untrusted`] if others than root could lead it elsewhere.
pub fn place(config: &Config) -> Result<Option<PathBuf>> {
    match config.root.visibility {
        Visibility::Namespace => Ok(None),
        Visibility::Host => trusted::audit(&config.root.udi_mount, &[0])
            .map(Some)
            .map_err(Error::Untrusted),
    }
}

/// Takes a root of this device away from the place; anything else there stays.
///
/// # Errors
/// [`Error::Step`] with EBUSY if something is mounted over it: then both stay.
pub fn detach(place: &Path, device: (u32, u32)) -> Result<()> {
    for _ in 0..LAYERS {
        let dir = match open(place) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).step("open directory", place),
        };
        if !is_mount(&dir)? || mnt::device_of(&dir)? != device {
            break;
        }
        drop(dir);
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        unmount(place, flags).step("unmount", place)?;
    }
    let mounts = process::read_proc("/proc/self/mountinfo").step("read", "mountinfo")?;
    if is_listed(&String::from_utf8_lossy(&mounts), place, device) {
        return Err(Errno::BUSY).step("unmount", place);
    }
    Ok(())
}

/// True if the text of mountinfo has a mount of the device at the place.
fn is_listed(mountinfo: &str, place: &Path, (major, minor): (u32, u32)) -> bool {
    let (device, place) = (format!("{major}:{minor}"), place.to_string_lossy());
    mountinfo.lines().any(|line| {
        let fields: Vec<&str> = line.split(' ').take(5).collect();
        matches!(fields[..], [_, _, of, _, at] if of == device && at == place)
    })
}

/// True if a process whose root directory is this one is in a root at the place.
pub fn is_within(root: &Path, place: &Path) -> bool {
    root.starts_with(place)
}

fn open(place: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(place, flags, Mode::empty())
}

fn is_mount(dir: &OwnedFd) -> Result<bool> {
    let stat = rustix::fs::statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .step("examine", "udi_mount")?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_covered_root_is_still_found() {
        let text = "500 499 0:45 / /var/udiMount ro - overlay shifter ro\n\
                    501 500 0:46 / /var/udiMount rw - tmpfs mine rw\n";
        let place = Path::new("/var/udiMount");
        assert!(is_listed(text, place, (0, 45)));
        assert!(!is_listed(text, place, (0, 4)));
        assert!(!is_listed(text, Path::new("/var"), (0, 45)));
        assert!(!is_listed("", place, (0, 45)));
    }

    #[test]
    fn a_root_within_the_place_is_told_by_whole_names() {
        let place = Path::new("/var/udiMount");
        assert!(is_within(Path::new("/var/udiMount"), place));
        assert!(is_within(Path::new("/var/udiMount/usr"), place));
        assert!(!is_within(Path::new("/var/udiMount2"), place));
        assert!(!is_within(Path::new("/"), place));
    }
}
