//! Giving up every privilege, for good, and making sure of it.

use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::process::read_record;

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
    take_ids(caller)?;
    forbid_new_privileges()?;
    verify(|status| status.is_only(caller) && status.has_groups_of(caller) && status.is_final())
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
    verify(|status| status.is_only(caller) && status.is_final())
}

/// Takes from a task that is still root, because the batch system has yet to make it its user, what
/// no program in a container may ever have: the bounding set, what is inherited, new privileges
/// and root's own group. The batch system's own change of ids empties the rest.
///
/// # Errors
/// As for [`become_user`].
pub fn confine() -> Result<()> {
    let groups = crate::sys::groups().map_err(|_| Error::Privilege("cannot read the groups"))?;
    let users: Vec<Gid> = groups.into_iter().filter(|gid| !gid.is_root()).collect();
    set_thread_groups(&users).map_err(failed)?;
    empty_bounding_set()?;
    clear_ambient_capability_set().map_err(failed)?;
    let sets = capabilities(None).map_err(failed)?;
    let sets = CapabilitySets {
        inheritable: CapabilitySet::empty(),
        ..sets
    };
    set_capabilities(None, sets).map_err(failed)?;
    forbid_new_privileges()
}

/// Makes sure that a task that was confined is its user and nothing more.
///
/// # Errors
/// As for [`become_user`].
pub fn check_is_confined(caller: &Caller) -> Result<()> {
    verify(|status| status.is_only(caller) && status.has_groups_of(caller) && status.is_final())
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
    set_no_new_privs(true).map_err(failed)
}

/// Becomes the caller for work outside of any container: setuid programs such as sudo stay
/// usable, with which a site lets users pull into its store.
///
/// # Errors
/// As for [`become_user`].
pub fn become_caller(caller: &Caller) -> Result<()> {
    take_ids(caller)?;
    verify(|status| status.is_only(caller) && status.has_groups_of(caller))
}

fn take_ids(caller: &Caller) -> Result<()> {
    let groups: Vec<Gid> = caller
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
    set_thread_groups(&groups).map_err(failed)?;
    set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    set_thread_res_uid(uid, uid, uid).map_err(failed)?;
    empty_sets()
}

fn empty_sets() -> Result<()> {
    // With the other two the ambient set is empty as well: nothing is in it that is not in both
    // (capabilities(7)).
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(failed)
}

/// Makes sure that the process is what it should be, and so that root cannot be had back: without
/// CAP_SETUID and CAP_SETGID an id can only become another of the process's own (setresuid(2)).
fn verify(is_right: impl FnOnce(&Status<'_>) -> bool) -> Result<()> {
    let status = read_record("/proc/self/status").unwrap_or_default();
    is_right(&Status(&String::from_utf8_lossy(&status)))
        .then_some(())
        .ok_or(Error::Privilege("privileges are still there"))
}

/// The text of /proc/PID/status (proc_pid_status(5)): the kernel's own account of a process.
struct Status<'a>(&'a str);

impl Status<'_> {
    fn field(&self, name: &str) -> Option<&str> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(':').map(str::trim)
    }

    fn numbers(&self, name: &str) -> Option<Vec<u32>> {
        let words = self.field(name)?.split_ascii_whitespace();
        words.map(|word| word.parse().ok()).collect()
    }

    fn is_empty(&self, set: &str) -> bool {
        self.field(set).map(|bits| u64::from_str_radix(bits, 16)) == Some(Ok(0))
    }

    /// True if all ids are the caller's: real, effective, saved and that for files; and no
    /// capability is left.
    fn is_only(&self, caller: &Caller) -> bool {
        self.numbers("Uid") == Some(vec![caller.uid; 4])
            && self.numbers("Gid") == Some(vec![caller.gid; 4])
            && ["CapInh", "CapPrm", "CapEff", "CapAmb"]
                .iter()
                .all(|set| self.is_empty(set))
    }

    fn has_groups_of(&self, caller: &Caller) -> bool {
        let groups = self.numbers("Groups");
        groups.is_some_and(|groups| groups.iter().all(|gid| caller.groups.contains(gid)))
    }

    /// True if no program that is started can ever gain anything.
    fn is_final(&self) -> bool {
        self.is_empty("CapBnd") && self.field("NoNewPrivs") == Some("1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RID: &str = "Name:\tUid: 0\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t8 9 \n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
        CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n";

    fn verdicts(text: &str) -> [bool; 3] {
        let (status, groups) = (Status(text), vec![8, 9]);
        let (uid, gid) = (7, 8);
        let caller = Caller { uid, gid, groups };
        [
            status.is_only(&caller),
            status.has_groups_of(&caller),
            status.is_final(),
        ]
    }

    #[test]
    fn whatever_is_left_is_seen() {
        assert_eq!(verdicts(RID), [true; 3]);
        let no_groups = RID.replace("8 9 ", "");
        assert_eq!(verdicts(&no_groups), [true; 3]);
        for (from, to, expected) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t0\t7\t7", [false, true, true]),
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t7\t7\t0", [false, true, true]),
            ("Gid:\t8\t8", "Gid:\t8\t0", [false, true, true]),
            ("8 9 ", "8 9 0", [true, false, true]),
            ("CapEff:\t0", "CapEff:\t2", [false, true, true]),
            ("CapAmb:\t0", "CapAmb:\t2", [false, true, true]),
            ("CapBnd:\t0", "CapBnd:\t2", [true, true, false]),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", [true, true, false]),
            ("Gid:", "Gud:", [false, true, true]),
            ("Groups:", "Group:", [true, false, true]),
        ] {
            assert_eq!(verdicts(&RID.replace(from, to)), expected, "{to}");
        }
        assert_eq!(verdicts(""), [false; 3]);
    }
}
