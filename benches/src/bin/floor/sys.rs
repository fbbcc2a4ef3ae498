//! The system calls that no library wraps safely: the only `unsafe` code of this crate.
#![allow(
    unsafe_code,
    reason = "raw system calls live here and nowhere else in the crate"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// `struct loop_config` of <linux/loop.h>: descriptor, block size, then 232 bytes of loop_info64
/// of which only the flags are set, then 64 reserved bytes.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    ids_and_limits: [u64; 5],
    number_and_encryption: [u32; 3],
    flags: u32,
    names_and_key: [u8; 160],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const READ_ONLY_AND_AUTOCLEAR: u32 = 1 | 4;

/// Gives the process a mount namespace of its own.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS does not touch the descriptor table, and this program has no threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?)
}

/// Gives the process a host name of its own.
pub fn unshare_host_name() -> io::Result<()> {
    // SAFETY: CLONE_NEWUTS does not touch the descriptor table, and this program has no threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUTS) }?)
}

/// Attaches a file to a free loop device, which frees itself when nobody has it any more, and
/// returns its path and descriptor.
pub fn attach_loop(file: &OwnedFd) -> io::Result<(String, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = rustix::fs::open("/dev/loop-control", flags, Mode::empty())?;
    loop {
        // SAFETY: this ioctl takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let path = format!("/dev/loop{number}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let device = rustix::fs::open(&path, flags, Mode::empty())?;
        match configure(&device, file) {
            Ok(()) => return Ok((path, device)),
            // Somebody else was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
}

fn configure(device: impl AsFd, file: impl AsFd) -> io::Result<()> {
    let config = LoopConfig {
        fd: file.as_fd().as_raw_fd().cast_unsigned(),
        block_size: 0,
        ids_and_limits: [0; 5],
        number_and_encryption: [0; 3],
        flags: READ_ONLY_AND_AUTOCLEAR,
        names_and_key: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    let device = device.as_fd().as_raw_fd();
    // SAFETY: the kernel reads one loop_config, whose size and layout `LoopConfig` has.
    check(unsafe { libc::ioctl(device, LOOP_CONFIGURE, &raw const config) }).map(drop)
}

/// Returns how many of the file's pages are in memory, and how many there are.
pub fn resident_pages(file: &File, length: u64) -> io::Result<(usize, usize)> {
    let length = usize::try_from(length).unwrap_or(0);
    if length == 0 {
        return Ok((0, 0));
    }
    let mut pages = vec![0_u8; length.div_ceil(rustix::param::page_size())];
    // SAFETY: a fresh mapping at an address that the kernel chooses overlaps nothing.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel writes one byte for each page of the mapping, and `pages` has as many.
    let result = check(unsafe { libc::mincore(map, length, pages.as_mut_ptr()) });
    // SAFETY: exactly the mapping made above, to which no reference was made.
    unsafe { libc::munmap(map, length) };
    result?;
    let resident = pages.iter().filter(|page| *page & 1 == 1).count();
    Ok((resident, pages.len()))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
