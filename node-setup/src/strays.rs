//! Finding and ending processes that are still in a container when its job is over.
//!
//! A process is a container's by its mount namespace, or, where it has made itself a namespace
//! of its own since, by the device of the root in its mountinfo; never by its name.
//! Where a root is seen in the host's namespace, it is the root directory that tells. Containers that
//! the job's user has made for single commands are in no journal: of those the kernel says by their
//! cgroup whose job they are, or, with batch systems that make none, the name of the root's overlay,
//! for processes of the job's own user: it says in which job the container was started, and nothing
//! that its processes do to their environment, session or parents changes it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use shifter_core::ids::JobId;

use crate::caller;
use crate::error::{Context, Result};
use crate::host_view;
use crate::mnt::ROOT_SOURCE;
use crate::process::read_record;
use crate::state;

/// What is to be ended.
pub struct Wanted<'a> {
    /// The processes of these roots.
    pub marks: &'a [Marks],
    /// And those of private containers that belong to this job.
    pub job: Option<&'a JobId>,
    /// The job's user, where it is known: for the containers that no cgroup tells of.
    pub uid: Option<u32>,
}

/// What marks the processes of one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The job's user; an administrator who looks into the root is left alone.
    pub uid: u32,
    /// Inode of the root's mount namespace.
    pub namespace: u64,
    /// Device of the root: of its own tmpfs, or its overlay.
    pub device: (u32, u32),
    /// Device of its overlay, if that is told: of what a process takes along of a root, `/etc` is it.
    pub overlay: Option<(u32, u32)>,
    /// Where the root is seen in the host's namespace, if it is.
    pub place: Option<PathBuf>,
}

/// Time between asking a process to end and ending it.
const GRACE: Duration = Duration::from_millis(500);

/// Time after which a process that does not die is reported.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends every process that is wanted, and returns those that would not die.
///
/// First each is asked to end, once: to many programs a second request means to stop at once. Those
/// that stay are stopped, until a scan finds none that is not, and only then killed: whoever kills
/// processes one by one that make others never comes to an end.
pub fn end_all(wanted: &Wanted<'_>) -> Result<Vec<u32>> {
    let start = Instant::now();
    let mut empty_scans = 0;
    let (mut asked, mut stopped) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let mut found = scan(wanted)?;
        // Twice: a process that forked while we read /proc may have hidden its child.
        empty_scans = if found.is_empty() { empty_scans + 1 } else { 0 };
        if empty_scans == 2 {
            return Ok(Vec::new());
        }
        let elapsed = start.elapsed();
        if elapsed > PATIENCE {
            // As many as there are now, whatever they leave behind.
            send(&found, Signal::KILL);
            return Ok(found.into_iter().map(|(pid, _)| pid).collect());
        }
        if elapsed < GRACE {
            found.retain(|(pid, _)| asked.insert(*pid));
            send(&found, Signal::TERM);
        } else if found.iter().all(|(pid, _)| stopped.contains(pid)) {
            send(&found, Signal::KILL);
        } else {
            send(&found, Signal::STOP);
            stopped.extend(found.iter().map(|(pid, _)| *pid));
            // At once again: what they have just made is not stopped yet.
            continue;
        }
        if empty_scans == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Says which processes do not end, and why where the kernel tells.
pub fn complaint(alive: &[u32]) -> String {
    let waits = |pid: &&u32| {
        let status = read_record(format!("/proc/{pid}/stat")).unwrap_or_default();
        is_uninterruptible(&status)
    };
    let why = match alive.iter().find(waits) {
        Some(_) => ": they wait for a file system or device that does not answer",
        None => "",
    };
    format!("processes {alive:?} do not end{why}")
}

/// Reads the state from the text of /proc/PID/stat: after the name, which may have anything in it.
fn is_uninterruptible(stat: &[u8]) -> bool {
    let name_end = stat.iter().rposition(|byte| *byte == b')');
    name_end.is_some_and(|end| stat[end..].starts_with(b") D"))
}

fn send(processes: &[(u32, OwnedFd)], signal: Signal) {
    for (_, pidfd) in processes {
        // The only failure is that it has died meanwhile.
        let _ = pidfd_send_signal(pidfd, signal);
    }
}

fn scan(wanted: &Wanted<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let own = state::own_namespace()?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").step("list", "/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Some(pid) = i32::try_from(number).ok().and_then(Pid::from_raw) else {
            continue;
        };
        if !is_wanted(&entry.path(), own, wanted) {
            continue;
        }
        // The descriptor names one process for good; look again now that it cannot be another.
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && is_wanted(&entry.path(), own, wanted)
        {
            found.push((number, pidfd));
        }
    }
    Ok(found)
}

fn is_wanted(process: &Path, own: u64, wanted: &Wanted<'_>) -> bool {
    let Ok(namespace) = rustix::fs::stat(process.join("ns/mnt")).map(|stat| stat.st_ino) else {
        return false; // A zombie, or gone.
    };
    if namespace == own && wanted.marks.iter().all(|mark| mark.place.is_none()) {
        return false;
    }
    let read = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_default();
    // Not the owner of the directory, which is root for a process that may not be traced.
    let Some(uid) = real_uid(&read("status")).filter(|uid| *uid != 0) else {
        return false;
    };
    let mut marks = wanted.marks.iter().filter(|mark| mark.uid == uid);
    if namespace == own {
        // The host's: who changed root to where a root is seen. Only root could have done that.
        let root = fs::read_link(process.join("root")).unwrap_or_default();
        return marks.any(|mark| {
            let place = mark.place.as_deref();
            place.is_some_and(|place| host_view::is_within(&root, place))
        });
    }
    let is_marked = |mark: &Marks| {
        mark.namespace == namespace || {
            let mounts = read("mountinfo");
            let mut devices = std::iter::once(mark.device).chain(mark.overlay);
            devices.any(|device| shows_device(&mounts, device))
        }
    };
    marks.any(is_marked)
        || wanted.job.is_some_and(|job| {
            let mounts = read("mountinfo");
            let mut roots = roots(&mounts).peekable();
            let is_in_one = roots.peek().is_some();
            (wanted.uid == Some(uid) && roots.any(|within| within == Some(job.as_str())))
                || (is_in_one && caller::job_in_cgroups(&read("cgroup"), uid).as_ref() == Some(job))
        })
}

/// Finds the real uid in the text of /proc/PID/status.
fn real_uid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_ascii_whitespace().next()?.parse().ok()
}

/// True if a mount in the mountinfo text is of the device.
fn shows_device(mountinfo: &str, (major, minor): (u32, u32)) -> bool {
    let device = format!("{major}:{minor}");
    mountinfo
        .lines()
        .any(|line| line.split(' ').nth(2) == Some(&device))
}

/// Finds the roots of containers in the mountinfo text, and in which job each was started, if it is
/// a private one of a job's. Each shows its overlay, at least as `/etc` and `/var`.
fn roots(mountinfo: &str) -> impl Iterator<Item = Option<&str>> {
    mountinfo.lines().filter_map(|line| {
        let (_, overlay) = line.split_once(" - overlay ")?;
        let rest = overlay.split(' ').next()?.strip_prefix(ROOT_SOURCE)?;
        match rest {
            "" => Some(None),
            _ => rest.strip_prefix(':').map(Some),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_without_end_is_told_by_the_state() {
        assert!(is_uninterruptible(b"7 (sh) D 1 7 7"));
        assert!(is_uninterruptible(b"7 (a) S) D 1 7 7"));
        assert!(!is_uninterruptible(b"7 (x) D) R 1 7 7"));
        assert!(!is_uninterruptible(b""));
    }

    #[test]
    fn devices_are_compared_whole() {
        let text = "500 499 0:45 /root / ro,nosuid - overlay shifter ro\n";
        assert!(shows_device(text, (0, 45)));
        assert!(!shows_device(text, (0, 4)));
        assert!(!shows_device(text, (0, 450)));
        assert!(!shows_device("", (0, 45)));
        assert_eq!(real_uid("Name:\tx\nUid:\t2001\t0\t0\t0\n"), Some(2001));
        assert_eq!(real_uid(""), None);
    }

    #[test]
    fn roots_say_in_which_job_they_are() {
        let text = "500 499 0:45 / / ro,nosuid - overlay shifter ro\n\
                    501 500 0:46 / / rw shared:1 - overlay shifter:1[2].server rw\n";
        assert_eq!(roots(text).collect::<Vec<_>>(), [None, Some("1[2].server")]);
        // Nobody but root chooses the name of an overlay outside of a user namespace.
        let others = "5 4 0:4 / /x rw - overlay shifters rw\n5 4 0:4 / /shifter rw - overlay x rw\n\
                      6 4 0:4 / / rw - tmpfs shifter rw\n";
        assert_eq!(roots(others).count(), 0);
    }
}
