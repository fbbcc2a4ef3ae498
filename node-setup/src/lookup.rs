//! Who is uid N? Without loading a name service module into a privileged process.
//!
//! The local files answer first, as in every nsswitch.conf in use; what they do not know is
//! asked of the host's `getent`, run as nobody with a fixed environment and a deadline. So are a
//! user's groups, unless there is nobody but the local file to know them.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shifter_core::identity::{self, GROUP_LIMIT, Group, Identity};
use shifter_core::trusted;

use crate::error::{Error, Result};
use crate::nsswitch;
use crate::process;

const GROUPS: &str = "/etc/group";
const GETENT: &str = "/usr/bin/getent";
const DEADLINE: Duration = Duration::from_secs(5);
const OUTPUT_LIMIT: usize = 4 << 20;
const NOBODY: u32 = 65534;

/// Returns the account of `uid` with all its groups, as a job's launch node knows it.
///
/// # Errors
/// [`Error::Account`] if nobody knows the uid or the name service does not answer in 5 s.
pub fn identity(uid: u32) -> Result<Identity> {
    with_groups(account(uid)?)
}

/// Returns the account of the user with this name, with all its groups and `group` as the one it
/// runs with, or its own where nothing is said.
///
/// # Errors
/// [`Error::Name`] if nobody knows one of the names; otherwise as [`identity()`].
pub fn identity_of_name(name: &str, group: Option<&str>) -> Result<Identity> {
    let line = line_of("passwd", "user", name)?;
    let uid = line.split(':').nth(2).and_then(|uid| uid.parse().ok());
    let account = uid.and_then(|uid| Identity::from_passwd_line(&line, uid));
    let mut identity = with_groups(account.ok_or_else(|| Error::Name {
        kind: "user",
        name: name.to_owned(),
        reason: "its account is not well-formed".into(),
    })?)?;
    if let Some(group) = group {
        let line = line_of("group", "group", group)?;
        let (gid, _) = identity::group_of_line(&line).ok_or_else(|| Error::Name {
            kind: "group",
            name: group.to_owned(),
            reason: "its entry is not well-formed".into(),
        })?;
        for gid in [identity.gid, gid] {
            if !identity.groups.iter().any(|known| known.gid == gid) {
                let name = (gid != identity.gid).then(|| group.to_owned());
                identity.groups.push(Group { gid, name });
            }
        }
        identity.gid = gid;
    }
    Ok(identity)
}

/// Finds the line with this name in a file of accounts, or asks for it.
fn line_of(database: &str, kind: &'static str, name: &str) -> Result<String> {
    let unknown = |reason: String| Error::Name {
        kind,
        name: name.to_owned(),
        reason,
    };
    let find = |text: &str| {
        let mut lines = text.lines();
        let line = lines.find(|line| line.split(':').next() == Some(name));
        line.map(str::to_owned)
    };
    if !identity::is_account_name(name) {
        return Err(unknown("it cannot be a name".into()));
    }
    if let Some(line) = find(&read_local(&format!("/etc/{database}"))) {
        return Ok(line);
    }
    // getent takes digits for a number: then the line has another name.
    let answer = ask_getent(database, &[name.to_owned()]).map_err(unknown)?;
    find(&answer).ok_or_else(|| unknown("no name service knows it".into()))
}

fn with_groups(mut identity: Identity) -> Result<Identity> {
    let uid = identity.uid;
    let local = read_local(GROUPS);
    let gids = match local_groups(&identity.name, &local) {
        Some(gids) => gids,
        None => {
            let answer = getent(uid, "initgroups", std::slice::from_ref(&identity.name))?;
            let gids = answer.split_ascii_whitespace().skip(1);
            gids.filter_map(|gid| gid.parse().ok()).collect()
        }
    };
    identity.groups = named_groups(uid, identity.gid, gids.into_iter(), &local)?;
    Ok(identity)
}

/// Returns the groups that have the user as a member, by the text of the local file; nothing if that
/// does not know all.
fn local_groups(user: &str, text: &str) -> Option<Vec<u32>> {
    let is_whole = !text.is_empty() && text.len() < OUTPUT_LIMIT;
    if !is_whole || !nsswitch::has_only_local_groups() {
        return None;
    }
    let lines = text
        .split('\n')
        .filter(|line| identity::has_member(line, user));
    // What is odd here may be understood by the C library.
    lines
        .map(|line| Some(identity::group_of_line(line)?.0))
        .collect()
}

/// Returns the account of `uid` with the groups that the process already has.
pub fn identity_with_groups(uid: u32, gid: u32, gids: &[u32]) -> Result<Identity> {
    let mut identity = account(uid)?;
    identity.gid = gid;
    identity.groups = named_groups(uid, gid, gids.iter().copied(), &read_local(GROUPS))?;
    Ok(identity)
}

fn account(uid: u32) -> Result<Identity> {
    let find = |text: &str| {
        text.lines()
            .find_map(|line| Identity::from_passwd_line(line, uid))
    };
    if let Some(identity) = find(&read_local("/etc/passwd")) {
        return Ok(identity);
    }
    let answer = getent(uid, "passwd", &[uid.to_string()])?;
    find(&answer).ok_or_else(|| unknown(uid, "no name service knows it"))
}

/// Names groups by the text of the local file, and by the name service where that knows none.
fn named_groups(
    uid: u32,
    primary: u32,
    more: impl Iterator<Item = u32>,
    local: &str,
) -> Result<Vec<Group>> {
    let mut gids: Vec<u32> = std::iter::once(primary)
        .chain(more)
        .take(GROUP_LIMIT)
        .collect();
    gids.sort_unstable();
    gids.dedup();
    let mut groups: Vec<Group> = gids
        .into_iter()
        .map(|gid| Group { gid, name: None })
        .collect();
    name_groups(&mut groups, local);
    let missing: Vec<String> = groups
        .iter()
        .filter(|g| g.name.is_none())
        .map(|g| g.gid.to_string())
        .collect();
    if !missing.is_empty() {
        name_groups(&mut groups, &getent(uid, "group", &missing)?);
    }
    Ok(groups)
}

/// Names those of the groups, which are sorted, that the text knows and that have no name yet.
fn name_groups(groups: &mut [Group], text: &str) {
    for (gid, name) in text.lines().filter_map(identity::group_of_line) {
        if let Ok(at) = groups.binary_search_by_key(&gid, |group| group.gid) {
            groups[at].name.get_or_insert_with(|| name.to_owned());
        }
    }
}

/// Reads an account file of the host; a missing or strange one is an empty one.
fn read_local(path: &str) -> String {
    // Where it cannot be read, getent is asked.
    let bytes = process::open(path).and_then(|file| process::read_at_once(file, OUTPUT_LIMIT));
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

/// Runs `getent DATABASE KEYS...` and returns what it prints; keys it does not know are absent.
fn getent(uid: u32, database: &str, keys: &[String]) -> Result<String> {
    ask_getent(database, keys).map_err(|reason| unknown(uid, &reason))
}

fn ask_getent(database: &str, keys: &[String]) -> std::result::Result<String, String> {
    let failed = |error: std::io::Error| format!("'{GETENT}': {error}");
    trusted::audit(Path::new(GETENT), &[0]).map_err(|error| error.to_string())?;
    let mut command = Command::new(GETENT);
    command
        .arg(database)
        .args(keys)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if rustix::process::geteuid().is_root() {
        // Command drops the supplementary groups when root changes to another uid.
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = command.spawn().map_err(failed)?;
    let output = read_until(&mut child, Instant::now() + DEADLINE);
    // Also where all was said: a name service may keep the program from ending.
    let _ = child.kill();
    let _ = child.wait();
    let bytes = output.ok_or("the name service does not answer")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads the child's output to its end, or returns nothing if the deadline comes first.
fn read_until(child: &mut Child, deadline: Instant) -> Option<Vec<u8>> {
    let mut pipe = child.stdout.take()?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    while bytes.len() < OUTPUT_LIMIT {
        let left = deadline.checked_duration_since(Instant::now())?;
        let timeout = Timespec::try_from(left).ok()?;
        let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        }
        match pipe.read(&mut chunk) {
            Ok(0) => return Some(bytes),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    None
}

fn unknown(uid: u32, reason: &str) -> Error {
    Error::Account {
        uid,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_root_in_the_local_files() {
        let root = identity_with_groups(0, 0, &[0]).unwrap();
        assert_eq!((root.name.as_str(), root.uid, root.gid), ("root", 0, 0));
        assert_eq!(
            root.groups,
            [Group {
                gid: 0,
                name: Some("root".into())
            }]
        );
    }

    #[test]
    fn names_are_looked_up_and_the_group_is_the_one_given() {
        let root = identity_of_name("root", None).unwrap();
        assert_eq!((root.uid, root.gid, root.name.as_str()), (0, 0, "root"));
        let other = identity_of_name("root", Some("daemon")).unwrap();
        assert_ne!(other.gid, 0);
        assert!(other.gids().contains(&0) && other.gids().contains(&other.gid));
        for (user, group) in [
            ("0", None),
            ("no such user", None),
            ("-x", None),
            ("root", Some("0")),
        ] {
            let error = identity_of_name(user, group).unwrap_err();
            assert!(matches!(error, Error::Name { .. }), "{user}: {error}");
        }
    }

    #[test]
    fn asks_getent_for_groups_and_says_who_is_unknown() {
        assert!(identity(0).unwrap().groups.iter().any(|g| g.gid == 0));
        let error = identity(3_999_999_999).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Account {
                    uid: 3_999_999_999,
                    ..
                }
            ),
            "{error}"
        );
    }
}
