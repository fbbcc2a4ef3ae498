//! Acting as the storage's owner for the length of a closure.
//!
//! The effective ids are changed, and with them the ids that count for files: root's real and saved
//! ids stay, so the owner's own processes can neither signal nor trace this one meanwhile.

use std::process::abort;

use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::error::{Context, Result};

/// Runs `work` so that storage sees `uid` and `gid` and no other group. One who is the owner already
/// works as is.
///
/// Aborts the process if root's identity cannot be restored: going on half-privileged is worse.
pub(crate) fn as_owner<T>(uid: u32, gid: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
    if geteuid().as_raw() == uid {
        return work();
    }
    let (own_uid, own_gid) = (geteuid(), getegid());
    let own_groups = getgroups().step("read", "groups")?;
    let become_owner = || {
        set_thread_groups(&[])?;
        set_thread_res_gid(None, Gid::from_raw(gid), None)?;
        set_thread_res_uid(None, Uid::from_raw(uid), None)
    };
    let result = become_owner()
        .step("act as uid", uid.to_string())
        .and_then(|()| work());
    // The uid first: it is what the others need.
    let restore = || {
        set_thread_res_uid(None, own_uid, None)?;
        set_thread_res_gid(None, own_gid, None)?;
        set_thread_groups(&own_groups)
    };
    if restore().is_err() {
        abort();
    }
    result
}
