//! Mount namespaces: making one that can be pinned, entering, returning.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
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

/// Gives the process a namespace of its own that the kernel takes for newer than the one before.
///
/// A namespace can be pinned only in an older one (ELOOP otherwise). Linux 6.18 tells the age by
/// an id of which each CPU has a stock, so that one made on another CPU than its parent may
/// count as the older. Every CPU is tried, and the last one until its stock is used up; where
/// the parent is the machine's first namespace, the first attempt succeeds.
pub fn unshare_newer() -> Result<()> {
    let before = sys::mount_namespace_id(own()?);
    let allowed = sched_getaffinity(None).step("read", "CPU affinity")?;
    let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let mut result = Ok(());
    let mut moved = false;
    for cpu in std::iter::once(None)
        .chain(cpus.map(Some))
        .chain((0..=BATCH).map(|_| None))
    {
        if let Some(cpu) = cpu {
            let mut one = CpuSet::new();
            one.set(cpu);
            sched_setaffinity(None, &one).step("set", "CPU affinity")?;
            moved = true;
        }
        result = sys::unshare_mounts().step("unshare", "mount namespace");
        let is_newer = match (&before, sys::mount_namespace_id(own()?)) {
            (Ok(before), Ok(now)) => now > *before,
            _ => true, // An older kernel counts correctly.
        };
        if result.is_err() || is_newer {
            break;
        }
    }
    if moved {
        sched_setaffinity(None, &allowed).step("restore", "CPU affinity")?;
    }
    result
}
