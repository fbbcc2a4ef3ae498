//! Looking at files with a user's eyes: fsuid, fsgid and groups for the length of a closure.

use std::process::abort;

use rustix::process::{getegid, geteuid};
use rustix::thread::{Gid, Uid, set_thread_groups};

use crate::error::{Context, Result};
use crate::sys;

/// Runs `look` so that the kernel checks file permissions as for `uid`, `gid` and `groups`;
/// capabilities over files are gone meanwhile.
///
/// A process without privilege looks as the user it is.
///
/// Aborts the process if root's identity cannot be restored: going on half-privileged is worse.
pub fn as_user<T>(uid: u32, gid: u32, groups: &[u32], look: impl FnOnce() -> T) -> Result<T> {
    if geteuid().as_raw() == uid && uid != 0 {
        return Ok(look());
    }
    let own_groups = sys::groups().step("read", "groups")?;
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups).step("set", "groups")?;
    let seen = sys::set_fs_ids(Uid::from_raw(uid), Gid::from_raw(gid)).map(|()| look());
    let restored =
        sys::set_fs_ids(Uid::ROOT, getegid()).is_ok() && set_thread_groups(&own_groups).is_ok();
    if !restored {
        abort();
    }
    seen.step("act as", "the user")
}
