//! Directories that may never answer: those of a FUSE file system whose daemon has stopped.
//!
//! A system call there waits until the daemon answers or the process is killed. So a child tries
//! first, and only a moment is spent on it. All of this is done as the user.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::process::{
    PidfdFlags, Signal, WaitOptions, chdir, pidfd_open, pidfd_send_signal, waitpid,
};

use crate::process::read_proc;
use crate::sys;

/// What a start waits at most for the working directory.
const PATIENCE: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// File systems that have no device and are this machine's own, by name and by magic number (those
/// that libc does not know: ramfs and zfs).
const OWN: [&[u8]; 6] = [b"tmpfs", b"overlay", b"btrfs", b"zfs", b"ramfs", b"rootfs"];
const OWN_MAGIC: [i64; 5] = [
    libc::TMPFS_MAGIC,
    libc::OVERLAYFS_SUPER_MAGIC,
    libc::BTRFS_SUPER_MAGIC,
    0x8584_58f6,
    0x2fc1_2fc1,
];

/// STATX_MNT_ID_UNIQUE: the kernel's own number of a mount, which is never used again (Linux 6.8).
pub const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Where a file system keeps its files, as far as it concerns how long it may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// On a disk of this machine or in its memory.
    Own,
    /// With a daemon.
    Fuse,
    /// Elsewhere.
    Other,
}

impl Kind {
    fn of_magic(magic: u64) -> Self {
        match i64::try_from(magic) {
            Ok(libc::FUSE_SUPER_MAGIC) => Self::Fuse,
            Ok(magic) if OWN_MAGIC.contains(&magic) => Self::Own,
            _ => Self::Other,
        }
    }

    fn of_name(name: &[u8]) -> Self {
        match name {
            _ if OWN.contains(&name) => Self::Own,
            _ if name.starts_with(b"fuse") => Self::Fuse,
            _ => Self::Other,
        }
    }
}

/// What a child that was killed may take to die.
const MOMENT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// False if the directory lies on a FUSE file system that does not answer in time.
pub fn answers(dir: &[u8]) -> bool {
    let is_on_fuse = match kind_at(Path::new(OsStr::from_bytes(dir))) {
        Some(kind) => kind == Kind::Fuse,
        None => is_on_fuse(&read_proc("/proc/self/mountinfo").unwrap_or_default(), dir),
    };
    !is_on_fuse
        // The child enters it, so that nothing but an answer is waited for.
        || ends_in(PATIENCE, || _ = chdir(dir)).unwrap_or(true)
}

/// False if what is at `path` is certainly on a disk of this machine or in its memory. Asks no file
/// system anything, so that it answers at once.
pub fn may_stall(path: &Path) -> bool {
    kind_at(path) != Some(Kind::Own)
}

/// Tells what kind of file system a path is on, as far as the kernel knows without asking any.
fn kind_at(path: &Path) -> Option<Kind> {
    // Only what the kernel has in memory and believes without asking (Linux 5.12).
    let resolve = ResolveFlags::CACHED | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve).ok()?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&place, c"", flags, StatxFlags::MNT_ID | UNIQUE).ok()?;
    // A file system on a device of this machine has that device's number.
    if stat.stx_dev_major != 0 {
        return Some(Kind::Own);
    }
    if stat.stx_mask & UNIQUE.bits() != 0 {
        return sys::magic_of_mount(stat.stx_mnt_id)
            .ok()
            .map(Kind::of_magic);
    }
    let mounts = read_proc("/proc/self/mountinfo").unwrap_or_default();
    kind_of_mount(&mounts, stat.stx_mnt_id).map(Kind::of_name)
}

/// Finds the type of a file system in the text of mountinfo by the number of the mount.
fn kind_of_mount(mountinfo: &[u8], number: u64) -> Option<&[u8]> {
    let number = format!("{number} ");
    let mut lines = mountinfo.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(number.as_bytes()))?;
    let fields = line.split(|byte| *byte == b' ');
    fields.skip_while(|field| *field != b"-").nth(1)
}

/// Does `work` in a child and tells whether it came to an end in time.
pub fn ends_in(patience: Timespec, work: impl FnOnce()) -> io::Result<bool> {
    let Some(child) = sys::fork()? else {
        work();
        sys::exit(0);
    };
    let pidfd = pidfd_open(child, PidfdFlags::empty())?;
    let ended = |patience: Timespec| {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        // Signals are blocked, so nothing interrupts it.
        poll(&mut fds, Some(&patience)).is_ok_and(|ready| ready > 0)
    };
    let in_time = ended(patience);
    if !in_time {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        ended(MOMENT);
    }
    // Nothing to collect where the caller ignores SIGCHLD.
    let _ = waitpid(Some(child), WaitOptions::NOHANG);
    Ok(in_time)
}

/// Finds the mount that `dir` lies in, in the text of mountinfo: the innermost, of those at one
/// place the last.
fn is_on_fuse(mountinfo: &[u8], dir: &[u8]) -> bool {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let found = lines.filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let place = unescaped(fields.nth(4)?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let rest = dir.strip_prefix(place.as_slice())?;
        let contains = place == b"/" || rest.is_empty() || rest.starts_with(b"/");
        contains.then(|| (place.len(), kind.starts_with(b"fuse")))
    });
    found
        .max_by_key(|(length, _)| *length)
        .is_some_and(|(_, is_fuse)| is_fuse)
}

/// Undoes mountinfo's `\040` for a space and the like.
pub fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        let digits = more.get(..3).filter(|_| *first == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[3..];
            }
            None => bytes.push(*first),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number() {
        let text =
            b"12 0 0:1 / / rw - ext4 /dev/x rw\n2 1 0:2 / /a rw shared:1 - fuse.sshfs s rw\n";
        assert_eq!(kind_of_mount(text, 2), Some(&b"fuse.sshfs"[..]));
        assert_eq!(kind_of_mount(text, 12), Some(&b"ext4"[..]));
        assert_eq!(kind_of_mount(text, 1), None);
    }

    #[test]
    fn a_mount_is_told_by_its_names_and_numbers_alike() {
        let number = |magic: i64| Kind::of_magic(magic.cast_unsigned());
        for (name, magic, kind) in [
            (&b"tmpfs"[..], libc::TMPFS_MAGIC, Kind::Own),
            (b"overlay", libc::OVERLAYFS_SUPER_MAGIC, Kind::Own),
            (b"fuse.sshfs", libc::FUSE_SUPER_MAGIC, Kind::Fuse),
            (b"nfs4", libc::NFS_SUPER_MAGIC, Kind::Other),
            (b"proc", libc::PROC_SUPER_MAGIC, Kind::Other),
        ] {
            assert_eq!((Kind::of_name(name), number(magic)), (kind, kind));
        }
        // Where the kernel has statmount(2), it agrees with the text.
        assert_eq!(kind_at(Path::new("/proc")), Some(Kind::Other));
    }

    #[test]
    fn what_is_not_there_or_not_a_disk_may_stall() {
        assert!(may_stall(Path::new("/no/such/place")));
        assert!(may_stall(Path::new("/proc/self")));
    }

    #[test]
    fn the_innermost_mount_counts() {
        let text = b"1 0 0:1 / / rw - ext4 /dev/x rw\n2 1 0:2 / /a rw shared:1 - fuse.sshfs s rw\n\
            3 2 0:3 / /a/b rw - tmpfs t rw\n4 1 0:4 / /c\\040d rw - fuse f rw\n";
        for (dir, expected) in [
            ("/", false),
            ("/a", true),
            ("/a/x/y", true),
            ("/ab", false),
            ("/a/b/c", false),
            ("/c d/e", true),
            ("/c", false),
        ] {
            assert_eq!(is_on_fuse(text, dir.as_bytes()), expected, "{dir}");
        }
        let stacked = b"1 0 0:1 / /a rw - fuse f rw\n2 1 0:2 / /a rw - tmpfs t rw\n";
        assert!(!is_on_fuse(stacked, b"/a"));
    }
}
