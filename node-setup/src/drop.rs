//! Giving up every privilege, for good, and making sure of it.

use rustix::process::{getegid, geteuid, getgid, getgroups, getuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, no_new_privs, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::caller::Caller;
use crate::error::{Error, Result};

/// Highest capability number there can be.
const LAST_CAPABILITY: u32 = 63;

/// Becomes the caller with nothing beyond: groups, gid, uid, empty capability sets, empty
/// bounding set, no_new_privs.
///
/// # Errors
/// [`Error::Privilege`] if any of it cannot be done or has not taken effect; the caller must
/// end the process then.
pub fn become_user(caller: &Caller) -> Result<()> {
    let failed = |_| Error::Privilege("cannot give up privileges");
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
    become_caller(caller)?;
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
    let failed = |_| Error::Privilege("cannot give up privileges");
    let groups: Vec<Gid> = caller
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
    set_thread_groups(&groups).map_err(failed)?;
    set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    set_thread_res_uid(uid, uid, uid).map_err(failed)?;
    clear_ambient_capability_set().map_err(failed)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed)?;
    verify(caller)
        .then_some(())
        .ok_or(Error::Privilege("privileges are still there"))
}

fn is_bounding_set_empty() -> bool {
    (0..=LAST_CAPABILITY)
        .filter_map(|number| CapabilitySet::from_bits(1 << number))
        // EINVAL: a capability that this kernel does not know.
        .all(|capability| capability_is_in_bounding_set(capability) != Ok(true))
}

/// True if nothing is left, and root cannot be had back.
fn verify(caller: &Caller) -> bool {
    let (uid, gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
    let groups = getgroups().unwrap_or_default();
    let caps = capabilities(None);
    getuid() == uid
        && geteuid() == uid
        && getgid() == gid
        && getegid() == gid
        && groups
            .iter()
            .all(|gid| caller.groups.contains(&gid.as_raw()))
        && caps.is_ok_and(|c| (c.effective | c.permitted | c.inheritable).is_empty())
        && set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_err()
        && set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).is_err()
}
