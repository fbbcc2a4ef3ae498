//! Mounts as descriptors: made, cloned and attached without naming a path that could change.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{Context, Result};
use crate::process;
use crate::sys::{Propagation, mount_setattr};

/// Look-ups of one path before giving up against somebody who renames files all the time.
const RETRIES: usize = 10_000;

/// Name of a root's tmpfs and overlay in mountinfo, followed by `:` and the job's id for a private container
/// within a job.
pub const ROOT_SOURCE: &str = "shifter";

/// What every mount in a container has: no setuid programs, no devices.
pub const SAFE: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// The same, and not writable.
pub const SAFE_RO: MountAttrFlags = SAFE.union(MountAttrFlags::MOUNT_ATTR_RDONLY);

/// Descriptors of a root that are of no more use but need not be closed one by one. If the root
/// comes to be they are left to the command's execve(2), and if not they are closed with this, for
/// they keep its file systems.
#[derive(Debug, Default)]
pub struct Kept(RefCell<Vec<OwnedFd>>);

impl Kept {
    /// Keeps a descriptor, or closes it where there may be too many.
    pub fn keep(&self, fd: OwnedFd) {
        if process::may_stay_open(&fd) {
            self.0.borrow_mut().push(fd);
        }
    }

    /// Leaves all of them open.
    pub fn leave_to_exec(&self) {
        self.0.take().into_iter().for_each(process::leave_to_exec);
    }
}

/// Makes a mount of a file system; it is attached nowhere yet. An option without a value is a
/// flag.
pub fn make(
    kind: &'static str,
    options: &[(&str, Option<&str>)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).step("open file system", kind)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value),
            None => fsconfig_set_flag(&context, *key),
        }
        .step("configure file system", kind)?;
    }
    fsconfig_create(&context).step("mount file system", kind)?;
    // The context is closed: it would keep the file system, and with it a FUSE daemon.
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).step("mount file system", kind)
}

/// Lays directories over one another, the first one on top, for reading only, under this name in
/// mountinfo; it is attached nowhere yet.
pub fn overlay(source: &str, dirs: &[&OwnedFd]) -> Result<OwnedFd> {
    let lower = layers(dirs);
    make("overlay", &overlay_options(source, &lower), SAFE_RO)
}

/// Lays `lower`, and over it what is written to `upper`, both given with what they need beside
/// them; it is attached nowhere yet.
pub fn writable_overlay(
    source: &str,
    [upper, work]: [&OwnedFd; 2],
    lower: [&OwnedFd; 2],
    is_users: bool,
) -> Result<OwnedFd> {
    let lower = layers(&lower);
    let [upper, work] = [upper, work].map(magic);
    let mut options = overlay_options(source, &lower).to_vec();
    options.extend([("upperdir", Some(&*upper)), ("workdir", Some(&*work))]);
    if is_users {
        options.push(("userxattr", None));
    }
    make("overlay", &options, SAFE)
}

/// The layers' own overlay attributes must not lead the kernel elsewhere (an image is hostile
/// data): no redirects, no metadata-only files.
fn overlay_options<'a>(source: &'a str, lower: &'a str) -> [(&'a str, Option<&'a str>); 4] {
    [
        ("source", Some(source)),
        ("lowerdir", Some(lower)),
        ("redirect_dir", Some("nofollow")),
        ("metacopy", Some("off")),
    ]
}

fn layers(dirs: &[&OwnedFd]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|dir| magic(dir)).collect();
    dirs.join(":")
}

/// Names an open directory for an option of a file system.
fn magic(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

/// Clones the mount at an open file or directory, with what is mounted below it if `recursive`.
/// The clone keeps the flags of the original and is attached nowhere.
pub fn clone(of: impl AsFd, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let of = of.as_fd();
    match open_tree(of, "", flags) {
        Ok(tree) => Ok(tree),
        Err(error) => Err(error).step("clone mount", path_of(of).as_str()),
    }
}

/// Opens a file or directory of the host to be cloned; directories trigger automounts.
pub fn open_host(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR) => rustix::fs::open(path, flags, Mode::empty()),
        other => other,
    }
}

/// Clones the mount at a path of the host's, links followed and automounts triggered.
pub fn clone_path(path: &str, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).step("clone mount", path)
}

/// Clones an entry of an open directory, which must not be a link.
pub fn clone_at(dir: impl AsFd, name: &[u8], recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(dir, name, flags).step("clone mount", &*String::from_utf8_lossy(name))
}

/// Attaches a mount to an open file or directory.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let target = target.as_fd();
    match move_mount(mount, "", target, "", flags) {
        Ok(()) => Ok(()),
        Err(error) => Err(error).step("mount at", path_of(target).as_str()),
    }
}

/// Attaches a mount to an entry of an open directory, which must not be a link.
pub fn attach_at(mount: impl AsFd, dir: impl AsFd, name: &[u8]) -> Result<()> {
    move_mount(
        mount,
        "",
        dir,
        name,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .step("mount at", &*String::from_utf8_lossy(name))
}

/// Adds flags to a mount and everything below it; flags it has stay.
pub fn restrict(mount: impl AsFd, flags: MountAttrFlags, propagation: Propagation) -> Result<()> {
    mount_setattr(mount, flags, propagation, true).step("restrict", "mount")
}

/// Opens what `path` names inside `root`, links and `..` never leaving it.
pub fn open_inside(root: impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    open_resolved(root.as_fd(), path, flags, resolve)
}

/// Opens the directory or file at `path` inside `root`; ELOOP where a link is on the way.
pub fn open_unlinked(root: impl AsFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    open_resolved(root.as_fd(), path, OFlags::PATH, resolve)
}

fn open_resolved(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    // EAGAIN: any rename or mount on the machine while the kernel followed a '..' (openat2(2)).
    (0..RETRIES)
        .map(|_| rustix::fs::openat2(root, path, flags, Mode::empty(), resolve))
        .find(|opened| !matches!(opened, Err(Errno::AGAIN)))
        .unwrap_or(Err(Errno::AGAIN))
}

/// Returns where an open file is, seen from the process's root.
pub fn path_of(fd: BorrowedFd<'_>) -> String {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::readlinkat(CWD, link, Vec::new())
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_else(|_| String::from("?"))
}

/// Returns `(major, minor)` of the file system an open file is on, as mountinfo writes it.
pub fn device_of(fd: impl AsFd) -> Result<(u32, u32)> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .step("examine", "mount")?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}
