//! The system calls that no library wraps: the only `unsafe` code of this crate.
//!
//! Each function is one call with typed arguments; none of them decides anything.
#![allow(
    unsafe_code,
    reason = "raw system calls live here and nowhere else in the crate"
)]

mod mounts;

use std::ffi::{CStr, CString, c_int, c_long, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

pub use mounts::{magic_of_mount, mounts};
use rustix::mount::MountAttrFlags;
use rustix::process::Pid;
use rustix::thread::{Gid, Uid};

/// How mounts arriving elsewhere reach a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Left as it is.
    Keep,
    /// Nothing arrives and nothing leaves.
    Private,
    /// What is mounted on the original arrives; nothing leaves.
    Slave,
}

/// Adds `set` to the flags of a mount, and below it too where `recursive`; `path` may be empty.
///
/// mount_setattr(2), Linux 5.12: the only call that reaches submounts and leaves flags alone
/// that it was not asked to change.
pub fn mount_setattr(
    mount: impl AsFd,
    set: MountAttrFlags,
    propagation: Propagation,
    recursive: bool,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: u64::from(set.bits()),
        attr_clr: 0,
        propagation: match propagation {
            Propagation::Keep => 0,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
        },
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static string, `attr` lives across the call and its size is its own.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Makes every mount of the process's namespace a slave of what it is a copy of: nothing that is
/// mounted here leaves.
pub fn enslave_mounts() -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: libc::MS_SLAVE,
        userns_fd: 0,
    };
    // SAFETY: the path is a static string, `attr` lives across the call and its size is its own.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Returns the first call that the kernel lacks of those with which roots are built and watched.
pub fn missing_call() -> Option<&'static str> {
    const NEEDED: [(&str, c_long); 9] = [
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("fsopen", libc::SYS_fsopen),
        ("fsconfig", libc::SYS_fsconfig),
        ("fsmount", libc::SYS_fsmount),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("openat2", libc::SYS_openat2),
        ("pidfd_open", libc::SYS_pidfd_open),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ];
    const NONE: c_long = 0;
    const NO_DESCRIPTOR: c_long = -1;
    let is_missing = |&(_, number): &(&str, c_long)| {
        // SAFETY: null pointers, lengths of nothing and descriptors that are none: the kernel refuses
        // that before it reads or writes memory, or changes anything.
        let made = check(unsafe { libc::syscall(number, NO_DESCRIPTOR, NONE, NONE, NONE, NONE) });
        made.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS))
    };
    NEEDED.into_iter().find(is_missing).map(|(name, _)| name)
}

/// Gives the process a mount namespace of its own.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS does not touch the descriptor table, and this crate has no threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?)
}

/// Gives the process a user namespace of its own, in which it has every capability.
pub fn unshare_users() -> io::Result<()> {
    // SAFETY: CLONE_NEWUSER does not touch the descriptor table, and this crate has no threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER) }?)
}

/// Makes a copy of the process; returns nothing in the copy.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this crate has no threads, so no lock is held by somebody who is not copied.
    let pid = unsafe { libc::fork() };
    check(i64::from(pid))?;
    Ok(Pid::from_raw(pid))
}

/// Ends a copy of the process without running what is to run when the process itself ends.
pub fn exit(code: c_int) -> ! {
    // SAFETY: ends the process and touches no memory of it.
    unsafe { libc::_exit(code) }
}

/// Has every descriptor but 0, 1 and 2 closed when a program is started; Linux 5.11.
pub fn close_on_exec() -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: plain integers; nothing is closed now, so no owner of a descriptor loses it.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, CLOSE_RANGE_CLOEXEC) })
}

/// Closes every descriptor but 0, 1, 2 and this one; Linux 5.9. For a copy of the process, which
/// does not use what it has taken over, and ends without dropping it.
pub fn close_all_but_standard_and(kept: impl AsFd) -> io::Result<()> {
    let kept = kept.as_fd().as_raw_fd().cast_unsigned();
    if kept > 3 {
        close_range(3, kept - 1)?;
    }
    close_range(kept + 1, u32::MAX)
}

/// Closes every descriptor but 0, 1 and 2: what a program was started with, before it has any of its own.
pub fn close_all_but_standard() -> io::Result<()> {
    close_range(3, u32::MAX)
}

/// The same, with no exception.
pub fn close_all() -> io::Result<()> {
    close_range(0, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: plain integers. What values own is closed under them, but no owner uses or drops it
    // any more, or there is none yet, as the callers' own callers see to.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

/// Makes the next child, and no other, the first process of a new process namespace: with it the
/// kernel ends all that it started. To be undone by entering the process's own namespace again.
pub fn unshare_children() -> io::Result<()> {
    // SAFETY: CLONE_NEWPID does not touch the descriptor table, and this crate has no threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID) }?)
}

/// Has the command run in a session of its own, with signals as in a fresh process and no
/// descriptor beyond 2, and die with this process. `alive` and `own` are the ends of a pipe
/// that nobody writes to: the child sees it closed if this process died before it was tied to it.
pub fn isolate(command: &mut Command, alive: BorrowedFd<'_>, own: BorrowedFd<'_>) {
    let (alive, own) = (alive.as_raw_fd(), own.as_raw_fd());
    let tie = move || -> io::Result<()> {
        // SAFETY: takes no argument.
        check(i64::from(unsafe { libc::setsid() }))?;
        for signal in 1..=LAST_SIGNAL {
            // Not signal(3): the C library keeps two for itself and lets nobody reset them.
            // SAFETY: the kernel reads one sigaction, which is smaller than these zeros, and zero
            // is SIG_DFL, no flags and no mask; signals that cannot be set stay as they are.
            unsafe {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    signal,
                    DEFAULT_ACTION.as_ptr(),
                    std::ptr::null_mut::<u64>(),
                    size_of::<u64>(),
                )
            };
        }
        let kill = libc::SIGKILL as c_ulong;
        // SAFETY: PR_SET_PDEATHSIG takes the number of a signal.
        check(i64::from(unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, kill)
        }))?;
        // SAFETY: the number is the child's copy of a descriptor, which nothing else here uses.
        unsafe { libc::close(own) };
        let mut pipe = libc::pollfd {
            fd: alive,
            events: 0,
            revents: 0,
        };
        // SAFETY: reads and writes one pollfd, which is ours.
        let closed = unsafe { libc::poll(&raw mut pipe, 1, 0) };
        if closed != 0 {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // Also the caller's, of which we know nothing.
        // SAFETY: marks descriptors as closed by the execve(2) that follows; none is closed here.
        check(unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3_u32,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        })
    };
    // SAFETY: between fork and exec `tie` makes system calls alone: it neither allocates nor locks.
    unsafe { command.pre_exec(tie) };
}

/// Lets the process wait for its children, whatever its caller ignored, until it is dropped.
pub struct Waiting(libc::sighandler_t);

impl Waiting {
    /// Has the kernel keep how children end.
    pub fn begin() -> Self {
        // SAFETY: SIG_DFL is no function of ours, and there are no threads to surprise.
        Self(unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // SAFETY: nothing in this crate sets handlers, so it is SIG_DFL or SIG_IGN.
        unsafe { libc::signal(libc::SIGCHLD, self.0) };
    }
}

/// The highest number of a signal (_NSIG in the kernel).
const LAST_SIGNAL: c_int = 64;

/// The kernel's struct sigaction, and room to spare.
static DEFAULT_ACTION: [u64; 8] = [0; 8];

/// Returns the id of an open mount namespace, by which the kernel tells which of two is newer;
/// ENOTTY before Linux 6.11.
pub fn mount_namespace_id(namespace: impl AsFd) -> io::Result<u64> {
    const NS_GET_MNTNS_ID: libc::Ioctl = libc::_IOR::<u64>(0xB7, 5);
    let mut id = 0_u64;
    // SAFETY: the kernel writes one u64, and `id` is one.
    check(i64::from(unsafe {
        libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_MNTNS_ID, &raw mut id)
    }))?;
    Ok(id)
}

/// Returns the soft limit on the stack of another process; nothing is no limit at all.
pub fn stack_limit_of(process: Pid) -> io::Result<Option<u64>> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let process = process.as_raw_nonzero().get();
    // SAFETY: the kernel writes one rlimit64, which is ours, and reads none.
    check(i64::from(unsafe {
        libc::prlimit64(
            process,
            libc::RLIMIT_STACK,
            std::ptr::null(),
            &raw mut limit,
        )
    }))?;
    Ok((limit.rlim_cur != libc::RLIM64_INFINITY).then_some(limit.rlim_cur))
}

/// Returns the supplementary groups of the thread.
pub fn groups() -> io::Result<Vec<Gid>> {
    const USUAL: usize = 64;
    let mut few = [0; USUAL];
    // SAFETY: the kernel writes at most as many ids as the array has.
    let count = unsafe { libc::getgroups(USUAL as c_int, few.as_mut_ptr()) };
    match usize::try_from(count) {
        Ok(count) => Ok(few
            .iter()
            .take(count)
            .map(|gid| Gid::from_raw(*gid))
            .collect()),
        Err(_) => Ok(rustix::process::getgroups()?),
    }
}

/// Changes the identity with which files are looked up, for this thread, and returns the one
/// before. Leaving 0 takes the file capabilities away, returning to 0 brings them back
/// (capabilities(7)).
pub fn set_fs_ids(uid: Uid, gid: Gid) -> io::Result<()> {
    // SAFETY: plain integers; neither call can fail, so each result is read by a second call
    // with an id that is never valid.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid.as_raw()) };
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid.as_raw()) };
    // SAFETY: as above.
    let now_gid = unsafe { libc::syscall(libc::SYS_setfsgid, u32::MAX) };
    // SAFETY: as above.
    let now_uid = unsafe { libc::syscall(libc::SYS_setfsuid, u32::MAX) };
    if (now_uid, now_gid) == (i64::from(uid.as_raw()), i64::from(gid.as_raw())) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// What LOOP_GET_STATUS64 and LOOP_CONFIGURE exchange (<linux/loop.h>).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoopInfo {
    /// st_dev of the backing file.
    pub device: u64,
    /// st_ino of the backing file.
    pub inode: u64,
    rdevice: u64,
    /// Where the image starts in the backing file.
    pub offset: u64,
    /// Where it ends; 0: at the end of the file.
    pub size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    /// [`LOOP_READ_ONLY`], [`LOOP_AUTOCLEAR`].
    pub flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// LO_FLAGS_READ_ONLY.
pub const LOOP_READ_ONLY: u32 = 1;
/// LO_FLAGS_AUTOCLEAR.
pub const LOOP_AUTOCLEAR: u32 = 4;
/// LO_FLAGS_DIRECT_IO.
pub const LOOP_DIRECT_IO: u32 = 16;

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

impl LoopInfo {
    const ZERO: LoopInfo = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// Returns the number of a loop device that nobody uses yet.
pub fn loop_get_free(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: this ioctl takes no argument.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Returns what a loop device is attached to; ENXIO if to nothing.
pub fn loop_status(device: impl AsFd) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::ZERO;
    // SAFETY: the kernel writes one loop_info64, and `LoopInfo` has its size and layout.
    check(i64::from(unsafe {
        libc::ioctl(device.as_fd().as_raw_fd(), LOOP_GET_STATUS64, &raw mut info)
    }))?;
    Ok(info)
}

/// Attaches `file` to a loop device with these flags and this sector size (0: the usual one);
/// EBUSY if somebody else was faster.
pub fn loop_configure(
    device: impl AsFd,
    file: impl AsFd,
    flags: u32,
    block_size: u32,
) -> io::Result<()> {
    let config = LoopConfig {
        fd: file.as_fd().as_raw_fd().cast_unsigned(),
        block_size,
        info: LoopInfo {
            flags,
            ..LoopInfo::ZERO
        },
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one loop_config, and `LoopConfig` has its size and layout.
    check(i64::from(unsafe {
        libc::ioctl(
            device.as_fd().as_raw_fd(),
            LOOP_CONFIGURE,
            &raw const config,
        )
    }))
}

/// Loads a module from its file, which the kernel decompresses where that is asked for
/// (MODULE_INIT_COMPRESSED_FILE, Linux 5.17).
///
/// finit_module(2): the kernel reads what was opened, whatever happens to the path meanwhile.
pub fn finit_module(file: impl AsFd, parameters: &CStr, is_compressed: bool) -> io::Result<()> {
    const MODULE_INIT_COMPRESSED_FILE: c_int = 4;
    let flags = if is_compressed {
        MODULE_INIT_COMPRESSED_FILE
    } else {
        0
    };
    // SAFETY: the kernel reads the string, which ends with NUL and lives across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_fd().as_raw_fd(),
            parameters.as_ptr(),
            flags,
        )
    })
}

/// Blocks every signal and returns the mask that was in force.
pub fn block_signals() -> io::Result<SignalMask> {
    SignalMask(u64::MAX).swap()
}

/// A signal mask as the kernel has it, with those that a C library uses itself: these leave out
/// what it keeps, and would not give it back.
pub struct SignalMask(u64);

impl SignalMask {
    /// Puts the mask into force and returns the one before.
    pub fn swap(&self) -> io::Result<SignalMask> {
        let mut old = 0_u64;
        // SAFETY: reads one signal set and writes another, both ours and of the size that is told.
        check(unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const self.0,
                &raw mut old,
                size_of::<u64>(),
            )
        })?;
        Ok(Self(old))
    }
}

/// Has the command begin with no signal blocked: it would inherit what this process blocks, and
/// neither end when it is told to nor hear its own alarms.
pub fn unblock_signals_of(command: &mut Command) {
    let unblock = || SignalMask(0).swap().map(drop);
    // SAFETY: between fork and exec one system call is made; it neither allocates nor locks.
    unsafe { command.pre_exec(unblock) };
}

/// Replaces the process by a program; returns only the reason why it could not.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| {
        let mut out: Vec<*const std::ffi::c_char> = list.iter().map(|s| s.as_ptr()).collect();
        out.push(std::ptr::null());
        out
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with NULL and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

fn check(result: i64) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
