//! The system calls that no library wraps: the only `unsafe` code of this crate.
//!
//! Each function is one call with typed arguments; none of them decides anything.
#![allow(
    unsafe_code,
    reason = "raw system calls live here and nowhere else in the crate"
)]

use std::ffi::{CStr, CString, c_int, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

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

/// Gives the process a mount namespace of its own.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS does not touch the descriptor table, and this crate has no threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?)
}

/// Returns the id of an open mount namespace, by which the kernel tells which of two is newer;
/// ENOTTY before Linux 6.11.
pub fn mount_namespace_id(namespace: impl AsFd) -> io::Result<u64> {
    const NS_GET_MNTNS_ID: c_ulong = 0x8008_B705;
    let mut id = 0_u64;
    // SAFETY: the kernel writes one u64, and `id` is one.
    check(i64::from(unsafe {
        libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_MNTNS_ID, &raw mut id)
    }))?;
    Ok(id)
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

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const LOOP_GET_STATUS64: c_ulong = 0x4C05;
const LOOP_CONFIGURE: c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: c_ulong = 0x4C82;

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

/// Attaches `file`, read-only, to a loop device that frees itself when nobody has it open or
/// mounted any more; EBUSY if somebody else was faster.
pub fn loop_configure(device: impl AsFd, file: impl AsFd) -> io::Result<()> {
    let config = LoopConfig {
        fd: file.as_fd().as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: LoopInfo {
            flags: LOOP_READ_ONLY | LOOP_AUTOCLEAR,
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

/// Blocks every signal and returns the mask that was in force.
pub fn block_signals() -> io::Result<SignalMask> {
    let mut all = SignalMask::empty();
    // SAFETY: writes one signal set that we own.
    check(i64::from(unsafe { libc::sigfillset(&raw mut all.0) }))?;
    all.swap()
}

/// A signal mask.
pub struct SignalMask(libc::sigset_t);

impl SignalMask {
    fn empty() -> Self {
        // SAFETY: sigset_t is an array of integers, for which zero is a value.
        Self(unsafe { std::mem::zeroed() })
    }

    /// Puts the mask into force and returns the one before.
    pub fn swap(&self) -> io::Result<SignalMask> {
        let mut old = Self::empty();
        // SAFETY: reads one signal set and writes another, both ours.
        check(i64::from(unsafe {
            libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, &raw mut old.0)
        }))?;
        Ok(old)
    }
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

/// Starts a child process that does `work` and ends.
pub fn fork(work: impl FnOnce()) -> io::Result<Pid> {
    // SAFETY: this crate has no threads, so the child is a whole copy and may do what we may.
    let pid = unsafe { libc::fork() };
    check(i64::from(pid))?;
    match Pid::from_raw(pid) {
        Some(child) => Ok(child),
        None => {
            work();
            // SAFETY: ends the child at once; nothing of the parent's is run at its exit.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Tells whether a number is an open descriptor.
pub fn is_open(fd: c_int) -> bool {
    // SAFETY: F_GETFD reads flags of a number that need not be a descriptor.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Borrows one of the descriptors 0, 1 and 2, which the caller has made sure are open.
pub fn standard(fd: c_int) -> BorrowedFd<'static> {
    debug_assert!((0..=2).contains(&fd));
    // SAFETY: 0, 1 and 2 are never closed by this crate.
    unsafe { BorrowedFd::borrow_raw(fd) }
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
