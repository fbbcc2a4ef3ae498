//! Where a process stands in the host's tree while it builds a root, and how it leaves that tree.
//!
//! | the process's root | how the new root takes its place |
//! |---|---|
//! | its namespace's | pivot_root(2) |
//! | its namespace's, and the kernel's first file system: a node that runs from its initramfs | that one is moved nowhere: the new root is moved over it, as switch_root(8) does, and everything else that is mounted there is taken away |
//! | another directory: ALPS changes root to `/dsl` first | the process goes back to its namespace's root, then as above |
//!
//! In each case the new root ends as that of the namespace, so that setns(2) alone joins it, and no
//! other mount can be reached in the namespace, not even by who gets every capability in a copy of
//! it: the kernel lets nobody take off what lies over the first file system in such a copy.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use crate::error::{Context, Error, Result};
use crate::namespace::{self, change_root, directory};
use crate::patience::unescaped;
use crate::sys;

/// Readings of the list of mounts until nothing but the new root is left. Each takes away at
/// least the topmost one at every place.
const ROUNDS: usize = 64;

/// Where a process stands, in a mount namespace that is its own.
#[derive(Default)]
pub struct Ground {
    /// The namespace's root, if the process has another.
    bottom: Option<OwnedFd>,
}

impl Ground {
    /// Keeps all mounts made from here on from reaching the host. The process has a fresh copy of
    /// the host's namespace, and stays in the root directory that it has.
    ///
    /// That may be another than the namespace's only if it is `context`, the one that the site
    /// names. A process in a container has left a changed root: through whatever others keep
    /// open in there, `..` leads out of it. So the kernel gives no user namespace to a process
    /// with a changed root either.
    ///
    /// # Errors
    /// [`Error::Denied`] in any other changed root.
    pub fn take(context: &Path) -> Result<Self> {
        let root = directory("/")?;
        // Leads to the namespace's root, whatever the process's was.
        namespace::enter(namespace::own()?)?;
        let bottom = directory("/")?;
        // Shared is systemd's default; below a changed root alone it would not be all of them.
        sys::enslave_mounts().step("restrict", "the host's mounts")?;
        let place = place_of(&root)?;
        if place == place_of(&bottom)? {
            return Ok(Self::default());
        }
        let is_sites = !context.as_os_str().is_empty()
            && directory(context).is_ok_and(|named| place_of(&named).is_ok_and(|it| it == place));
        if !is_sites {
            return Err(Error::Denied {
                what: "containers cannot be started after a change of root: '/' is not the node's"
                    .into(),
                hint: Some("a site allows one directory of its own: torque.node_context_prefix"),
            });
        }
        change_root(&root)?;
        Ok(Self {
            bottom: Some(bottom),
        })
    }

    /// The same without privilege: the kernel has seen to it that root is the namespace's.
    pub fn take_as_user() -> Result<Self> {
        sys::enslave_mounts().step("restrict", "the host's mounts")?;
        Ok(Self::default())
    }

    /// Makes `root`, which is mounted somewhere in the tree, the root of the process and of its
    /// namespace; the host's tree goes.
    pub fn leave_for(self, root: &OwnedFd) -> Result<()> {
        if let Some(bottom) = &self.bottom {
            change_root(bottom)?;
        }
        fchdir(root).step("change to", "the new root")?;
        // The old root is stacked on the new one and taken off again: no directory for it is needed.
        match pivot_root(".", ".") {
            Ok(()) => unmount(".", UnmountFlags::DETACH).step("unmount", "the host's tree")?,
            Err(Errno::INVAL) => cover(root)?,
            Err(error) => return Err(error).step("pivot to", "the new root"),
        }
        chdir("/").step("change to", "/")
    }
}

/// Moves the new root over one that cannot be moved itself, takes away what else is mounted there,
/// and changes root. The process is in the new root's directory.
///
/// The host's mounts would be out of reach as they are, but the kernel would go by its /proc and /sys
/// where it asks whether a user namespace may mount others (runc's `--no-pivot` had that).
fn cover(root: &OwnedFd) -> Result<()> {
    let list = "/proc/self/mountinfo";
    let mut list = File::open(list).step("read", list)?;
    let (new, below) = (place_of(root)?.0, place_of(&directory("/")?)?.0);
    if !is_first(&read(&mut list)?, below) {
        return Err(Errno::INVAL).step("pivot to", "the new root");
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root, "", CWD, "/", flags).step("move to '/'", "the new root")?;
    // The process's root is still the one below, and its paths lead to what is mounted on that.
    for _ in 0..ROUNDS {
        let places = mounted_on(&read(&mut list)?, below, new);
        if places.is_empty() {
            return chroot(".").step("change root to", "the new root");
        }
        for place in places {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            unmount(&*place, flags).step("unmount", &*String::from_utf8_lossy(&place))?;
        }
    }
    Err(Errno::BUSY).step("unmount", "the host's tree")
}

fn read(list: &mut File) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    list.seek(SeekFrom::Start(0)).step("read", "mountinfo")?;
    list.read_to_end(&mut text).step("read", "mountinfo")?;
    Ok(text)
}

/// Yields number, parent's number and place of each mount in the text of mountinfo.
fn mounts(text: &[u8]) -> impl Iterator<Item = (u64, u64, Vec<u8>)> {
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    text.split(|byte| *byte == b'\n').filter_map(move |line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (own, parent) = (number(fields.next()?)?, number(fields.next()?)?);
        Some((own, parent, unescaped(fields.nth(2)?)))
    })
}

/// True if a mount is mounted on none.
fn is_first(text: &[u8], mount: u64) -> bool {
    mounts(text).any(|(own, parent, _)| own == mount && parent == mount)
}

/// Lists the places of the mounts that lie on `below`, but that of `new`.
fn mounted_on(text: &[u8], below: u64, new: u64) -> Vec<Vec<u8>> {
    mounts(text)
        .filter(|(own, parent, _)| *parent == below && ![below, new].contains(own))
        .map(|(_, _, place)| place)
        .collect()
}

/// Returns mount and inode of a directory: what tells it from every other one of the namespace.
fn place_of(dir: &OwnedFd) -> Result<(u64, u64)> {
    let mask = StatxFlags::INO | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(dir, "", AtFlags::EMPTY_PATH, mask).step("examine", "/")?;
    Ok((stat.stx_mnt_id, stat.stx_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_the_first_mount_is_listed_but_the_new_root() {
        let text = b"1 1 0:2 / / rw - rootfs rootfs rw\n\
                     20 1 0:20 / /proc rw - tmpfs proc rw\n\
                     21 20 0:21 / /proc rw - proc proc rw\n\
                     22 1 0:22 / /a\\040b rw shared:1 - tmpfs x rw\n\
                     23 22 0:23 / /a\\040b/c rw - tmpfs x rw\n\
                     30 1 0:30 / / ro - overlay shifter ro\nnonsense\n";
        let places = mounted_on(text, 1, 30);
        assert_eq!(places, [b"/proc".to_vec(), b"/a b".to_vec()]);
        assert!(is_first(text, 1));
        // On every other node the root has a mount below it.
        assert!(!is_first(text, 30) && !is_first(text, 9));
    }
}
