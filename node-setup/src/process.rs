//! What a hostile caller can prepare for a setuid program, made harmless and given back.
//!
//! Descriptors 0 to 2, the file mode mask, resource limits and signals are put in order before
//! anything else happens, and restored for the command that runs in the container.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};

use crate::error::{Context, Error, Result};
use crate::sys::{self, SignalMask};

/// Limits that could stop the set-up half way, and what is enough for it; one that is lower is
/// relaxed, and in force again for the command.
const RELAXED: [(Resource, u64); 6] = [
    (Resource::Fsize, 1 << 30),
    (Resource::Nofile, ENOUGH_FILES),
    (Resource::As, 1 << 40),
    (Resource::Data, 1 << 40),
    (Resource::Stack, 1 << 20),
    (Resource::Cpu, u64::MAX),
];

const ENOUGH_FILES: u64 = 4096;

/// The devices behind /dev/null and /dev/full.
const NULL_DEVICE: u64 = libc::makedev(1, 3);
const FULL_DEVICE: u64 = libc::makedev(1, 7);

/// What the kernel lowers the stack's soft limit to for a setuid program (_STK_LIM).
const SETUID_STACK: u64 = 8 << 20;

/// Reads a file of /proc, which has no size to go by, in as few calls as there can be.
///
/// # Errors
/// As for open(2) and read(2).
pub fn read_proc(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PROC_SIZE);
    File::from(open(path)?)
        .take(PROC_LIMIT)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes that a file of /proc usually has less than, and those that are read at most.
const PROC_SIZE: usize = 16 << 10;
const PROC_LIMIT: u64 = 64 << 20;

/// Opens a file for reading; musl asks for close-on-exec in a call of its own.
///
/// # Errors
/// As for open(2).
pub fn open(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path.as_ref(), flags, Mode::empty())?)
}

/// Reads a file of /proc that the kernel writes as one record (proc_pid_status(5), cgroups(7)).
///
/// # Errors
/// As for open(2) and read(2).
pub fn read_record(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_at_once(open(path)?, usize::MAX)
}

/// Reads at most so many bytes of such a file, or of one of this machine's own disks or memory:
/// there a read that leaves room had all of it.
///
/// # Errors
/// As for read(2).
pub fn read_at_once(file: impl AsFd, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PROC_SIZE);
    loop {
        retry_on_intr(|| rustix::io::read(&file, spare_capacity(&mut bytes)))?;
        if bytes.len() < bytes.capacity() || bytes.len() >= limit {
            bytes.truncate(limit);
            bytes.shrink_to_fit();
            return Ok(bytes);
        }
        bytes.reserve(bytes.len());
    }
}

/// Gives up a descriptor without closing it: the execve(2) of the command closes all of them at
/// once, and so does the end of the process. For programs that build one root and end; nothing
/// that holds a lock is given up so.
pub fn leave_to_exec(fd: impl Into<OwnedFd>) {
    let fd = fd.into();
    if may_stay_open(&fd) {
        std::mem::forget(fd);
    }
}

/// True if enough descriptors are left for what comes: they are numbered from the lowest on.
pub fn may_stay_open(fd: &OwnedFd) -> bool {
    fd.as_raw_fd() <= HIGHEST_LEFT
}

const HIGHEST_LEFT: i32 = 60;

/// What the caller had, to be restored.
pub struct CallersProcess {
    umask: Mode,
    limits: Vec<(Resource, Rlimit)>,
    has_setuid_stack: bool,
    signals: SignalMask,
}

/// Opens /dev/null for each of the descriptors 0, 1 and 2 that is closed, so that no file of
/// ours ever takes its place; also for what the C library opened when a setuid program was started
/// without one: it does so in the direction that fails.
pub fn fill_standard_descriptors() -> Result<()> {
    let stdio = [
        (rustix::stdio::stdin(), OFlags::WRONLY),
        (rustix::stdio::stdout(), OFlags::RDONLY),
        (rustix::stdio::stderr(), OFlags::RDONLY),
    ];
    for (number, (fd, useless)) in stdio.into_iter().enumerate() {
        let is_usable = match rustix::fs::fstat(fd) {
            Ok(stat) => {
                !is_null_or_full(&stat)
                    || rustix::fs::fcntl_getfl(fd).step("examine", "standard descriptors")?
                        & OFlags::RWMODE
                        != useless
            }
            Err(Errno::BADF) => false,
            Err(error) => return Err(error).step("examine", "standard descriptors"),
        };
        if is_usable {
            continue;
        }
        let null =
            rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).step("open", "/dev/null")?;
        if null.as_raw_fd() as usize == number {
            // The lowest free number is this one, because all below are open.
            std::mem::forget(null);
            continue;
        }
        match number {
            0 => rustix::stdio::dup2_stdin(null),
            1 => rustix::stdio::dup2_stdout(null),
            _ => rustix::stdio::dup2_stderr(null),
        }
        .step("replace", "standard descriptors")?;
    }
    Ok(())
}

fn is_null_or_full(stat: &rustix::fs::Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR
        && [NULL_DEVICE, FULL_DEVICE].contains(&stat.st_rdev)
}

/// Takes the caller's hands off the process: signals blocked, limits relaxed, known umask.
pub fn take_over() -> Result<CallersProcess> {
    let signals = sys::block_signals().step("block", "signals")?;
    let umask = umask(Mode::from_raw_mode(0o022));
    let limits = RELAXED.map(|(resource, enough)| (resource, enough, getrlimit(resource)));
    let is_setuid_stack = |(resource, _, limit): &(Resource, u64, Rlimit)| {
        *resource == Resource::Stack && limit.current == Some(SETUID_STACK)
    };
    let has_setuid_stack = limits.iter().any(is_setuid_stack);
    let is_tight = |(_, enough, limit): &(Resource, u64, Rlimit)| {
        limit.current.is_some_and(|current| current < *enough)
    };
    let limits = limits.into_iter().filter(is_tight);
    let limits: Vec<_> = limits
        .map(|(resource, _, limit)| (resource, limit))
        .collect();
    for (resource, old) in &limits {
        let relaxed = match (resource, old.maximum) {
            // The kernel refuses to set no limit at all on descriptors.
            (Resource::Nofile, Some(hard)) => Some(hard.max(ENOUGH_FILES)),
            _ => None,
        };
        let relaxed = Rlimit {
            current: relaxed,
            maximum: relaxed,
        };
        // Without CAP_SYS_RESOURCE only the soft limit can go up, to the hard one.
        if setrlimit(*resource, relaxed).is_err() {
            let raised = Rlimit {
                current: old.maximum,
                maximum: old.maximum,
            };
            let _ = setrlimit(*resource, raised);
        }
    }
    Ok(CallersProcess {
        umask,
        limits,
        has_setuid_stack,
        signals,
    })
}

/// Names the process that started this one, so that it is told from a later one of the same number.
pub fn parent() -> Result<String> {
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    let parent = rustix::process::getppid().ok_or_else(gone);
    let pid = parent.step("find", "parent process")?;
    let name = name_of(pid.as_raw_nonzero().get()).ok_or_else(gone);
    name.step("examine", "parent process")
}

/// Names this process in the same way.
pub fn own() -> Result<String> {
    let name = name_of(rustix::process::getpid().as_raw_nonzero().get());
    let gone = || io::Error::from_raw_os_error(libc::ESRCH);
    name.ok_or_else(gone).step("examine", "own process")
}

/// Names a process in the same way; nothing if it is gone.
pub fn name_of(pid: i32) -> Option<String> {
    Some(format!("{pid} {}", start_of(pid)?))
}

/// True if the process that [`name_of`] named is alive.
pub fn lives(name: &[u8]) -> bool {
    let name = std::str::from_utf8(name).unwrap_or_default();
    let Some((pid, start)) = name.split_once(' ') else {
        return false;
    };
    let (pid, start) = (pid.parse().ok(), start.parse().ok());
    start.is_some() && pid.and_then(start_of) == start
}

/// Returns when a process was started, in ticks of the kernel's: field 22 of proc_pid_stat(5).
fn start_of(pid: i32) -> Option<u64> {
    let stat = read_record(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat).into_owned();
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Becomes root altogether, so that the caller can neither signal nor trace the process while
/// it holds privileges.
///
/// # Errors
/// [`Error::NotSetuid`] if the program is not setuid root or something prevents that.
pub fn become_root() -> Result<()> {
    let failed = |_| Error::NotSetuid;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(failed)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(failed)?;
    check_is_machines_root()
}

/// Makes sure that the process is root, and root of the machine.
///
/// # Errors
/// [`Error::Privilege`] for anyone else, and for root of a user namespace.
pub fn check_is_root() -> Result<()> {
    if !(rustix::process::getuid().is_root() && rustix::process::geteuid().is_root()) {
        return Err(Error::Privilege("only root can do this"));
    }
    check_is_machines_root()
}

/// Makes sure that root, which the process is, is root of the machine.
fn check_is_machines_root() -> Result<()> {
    let path = "/proc/self/ns/user";
    let namespace = rustix::fs::stat(path).step("examine", path)?.st_ino;
    if namespace == FIRST_USER_NAMESPACE {
        Ok(())
    } else {
        Err(Error::Privilege(
            "root of a user namespace is not root of the machine",
        ))
    }
}

/// Inode of the machine's first user namespace (PROC_USER_INIT_INO in the kernel).
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

impl CallersProcess {
    /// Gives umask and limits back.
    pub fn restore(&self) -> Result<()> {
        umask(self.umask);
        for (resource, limit) in &self.limits {
            setrlimit(*resource, *limit).step("restore", "resource limits")?;
        }
        Ok(())
    }

    /// Gives back the soft limit on the stack, which the kernel has lowered for the setuid program
    /// (execve(2) does since Linux 4.14); only for a process that is the caller again. The parent's
    /// tells what it was, if the kernel lets the caller see that. Anybody may raise a soft limit up
    /// to the hard one.
    pub fn restore_stack(&self) {
        if !self.has_setuid_stack {
            return;
        }
        let parents = rustix::process::getppid().map(sys::stack_limit_of);
        // `None` is no limit at all.
        let Some(Ok(parents)) = parents else {
            return;
        };
        let maximum = getrlimit(Resource::Stack).maximum;
        let current = match (parents, maximum) {
            (Some(parents), Some(hard)) => Some(parents.min(hard)),
            (parents, hard) => parents.or(hard),
        };
        if current.is_none_or(|current| current > SETUID_STACK) {
            let _ = setrlimit(Resource::Stack, Rlimit { current, maximum });
        }
    }

    /// Gives the signal mask back: pending signals arrive now.
    pub fn restore_signals(&self) -> Result<()> {
        self.signals.swap().step("restore", "signal mask").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let start = start_of(own).unwrap();
        assert!(lives(format!("{own} {start}").as_bytes()));
        assert!(lives(parent().unwrap().as_bytes()));
        for other in [
            format!("{own} {}", start - 1),
            String::new(),
            "1".into(),
            "x y".into(),
        ] {
            assert!(!lives(other.as_bytes()), "{other}");
        }
    }
}
