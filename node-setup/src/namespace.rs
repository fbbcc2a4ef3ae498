//! Mount namespaces: making one that can be pinned, and entering.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{chroot, fchdir};
use rustix::thread::{
    CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_getaffinity, sched_setaffinity,
};

use crate::error::{Context, Result};
use crate::sys;

/// Ids that one CPU hands out before it takes newer ones (COOKIE_LOCAL_BATCH in the kernel).
const BATCH: usize = 4096;

/// Opens the namespace the process is in.
pub fn own() -> Result<OwnedFd> {
    let path = "/proc/self/ns/mnt";
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step("open", path)
}

/// Moves the process into a namespace; its root and working directory become that one's root.
pub fn enter(namespace: impl AsFd) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .step("enter", "mount namespace")
}

/// Opens a directory, for its place alone.
pub fn directory(path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).step("open directory", path)
}

/// Makes an open directory the process's root and working directory.
pub fn change_root(dir: &OwnedFd) -> Result<()> {
    fchdir(dir).step("change to", "root directory")?;
    chroot(".").step("change root to", "root directory")
}

/// Opens the namespace with this inode, if a process is in it.
pub fn find(inode: u64) -> Result<Option<OwnedFd>> {
    let is_it = |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_ino == inode);
    let open = |process: &Path| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(process.join("ns/mnt"), flags, Mode::empty()).ok()
    };
    // The first process is in it unless the batch system's daemon has a namespace of its own.
    if let Some(found) = open(Path::new("/proc/1")).filter(is_it) {
        return Ok(Some(found));
    }
    let processes = std::fs::read_dir("/proc").step("list", "/proc")?.flatten();
    let mut numbered = processes.filter(|entry| {
        let name = entry.file_name();
        name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
    });
    Ok(numbered.find_map(|entry| open(&entry.path()).filter(is_it)))
}

/// Gives the process a namespace of its own that the kernel takes for newer than the one before.
///
/// A namespace can be pinned only in an older one (ELOOP otherwise). Linux 6.18 tells the age by
/// an id of which each CPU has a stock, so that one made on another CPU than its parent may
/// count as the older. Every CPU is tried, and the last one until its stock is used up; where
/// the parent is the machine's first namespace, the first attempt succeeds.
pub fn unshare_newer() -> Result<()> {
    let before = sys::mount_namespace_id(own()?);
    let unshare = || -> Result<bool> {
        sys::unshare_mounts().step("unshare", "mount namespace")?;
        Ok(match (&before, sys::mount_namespace_id(own()?)) {
            (Ok(before), Ok(now)) => now > *before,
            _ => true, // An older kernel counts correctly.
        })
    };
    if unshare()? {
        return Ok(());
    }
    // EINVAL where the kernel knows of more CPUs than a CpuSet: then this one must do.
    let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    let on_each_cpu = || -> Result<bool> {
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)) {
            let mut one = CpuSet::new();
            one.set(cpu);
            sched_setaffinity(None, &one).step("set", "CPU affinity")?;
            if unshare()? {
                return Ok(true);
            }
        }
        for _ in 0..=BATCH {
            if unshare()? {
                return Ok(true);
            }
        }
        Ok(false) // Pinning will say ELOOP.
    };
    let result = on_each_cpu();
    if allowed.count() > 0 {
        sched_setaffinity(None, &allowed).step("restore", "CPU affinity")?;
    }
    result.map(drop)
}
