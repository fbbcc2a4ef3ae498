//! Giving up every privilege, for good, and making sure of it.

use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, clear_ambient_capability_set,
    no_new_privs, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::process::read_proc;
use crate::sys;

/// Highest capability number there can be.
const LAST_CAPABILITY: u32 = 63;

/// Becomes the caller with nothing beyond: groups, gid, uid, empty capability sets, empty
/// bounding set, no_new_privs.
///
/// # Errors
/// [`Error::Privilege`] if any of it cannot be done or has not taken effect; the caller must
/// end the process then.
pub fn become_user(caller: &Caller) -> Result<()> {
    empty_bounding_set()?;
    become_caller(caller)?;
    forbid_new_privileges()
}

/// Gives up what a process has in a user namespace of its own, where it is the caller already and
/// groups cannot be set.
///
/// # Errors
/// As for [`become_user`].
pub fn stay_user(caller: &Caller) -> Result<()> {
    empty_bounding_set()?;
    empty_sets()?;
    forbid_new_privileges()?;
    is_only(caller)
        .then_some(())
        .ok_or(Error::Privilege("privileges are still there"))
}

fn failed(_: rustix::io::Errno) -> Error {
    Error::Privilege("cannot give up privileges")
}

fn empty_bounding_set() -> Result<()> {
    // The bounding set goes first: emptying it needs CAP_SETPCAP.
    for number in 0..=LAST_CAPABILITY {
        let Some(capability) = CapabilitySet::from_bits(1 << number) else {
            continue;
        };
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows this capability and those above it as little as anybody has them.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn forbid_new_privileges() -> Result<()> {
    set_no_new_privs(true).map_err(failed)?;
    (no_new_privs().unwrap_or(false) && is_bounding_set_empty())
        .then_some(())
        .ok_or(Error::Privilege("privileges are still there"))
}

/// Becomes the caller for work outside of any container: setuid programs such as sudo stay
/// usable, with which a site lets users pull into its store.
///
/// # Errors
/// As for [`become_user`].
pub fn become_caller(caller: &Caller) -> Result<()> {
    let groups: Vec<Gid> = caller
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
    set_thread_groups(&groups).map_err(failed)?;
    set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    set_thread_res_uid(uid, uid, uid).map_err(failed)?;
    empty_sets()?;
    let are_callers = |gid: &Gid| caller.groups.contains(&gid.as_raw());
    let groups = sys::groups();
    (is_only(caller) && groups.is_ok_and(|groups| groups.iter().all(are_callers)))
        .then_some(())
        .ok_or(Error::Privilege("privileges are still there"))
}

fn empty_sets() -> Result<()> {
    clear_ambient_capability_set().map_err(failed)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed)
}

/// True if no program that is started can ever have a capability.
fn is_bounding_set_empty() -> bool {
    let status = read_proc("/proc/self/status").unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    set.is_some_and(|set| u64::from_str_radix(set.trim(), 16) == Ok(0))
}

/// True if nothing beyond the caller's ids is left, and root cannot be had back.
fn is_only(caller: &Caller) -> bool {
    let caps = capabilities(None);
    sys::user_ids() == [caller.uid; 3]
        && sys::group_ids() == [caller.gid; 3]
        && caps.is_ok_and(|c| (c.effective | c.permitted | c.inheritable).is_empty())
        && set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_err()
        && set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).is_err()
}
