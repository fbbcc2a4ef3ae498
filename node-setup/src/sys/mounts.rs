//! What the kernel tells of mounts by number: statmount(2) and listmount(2), Linux 6.8.

use std::ffi::c_long;
use std::io;

use super::check;

/// What is asked of statmount(2): struct mnt_id_req in its first version.
#[repr(C)]
struct MountRequest {
    size: u32,
    spare: u32,
    mount: u64,
    asked: u64,
}

/// What it answers: the beginning of struct statmount, and room for the rest.
#[repr(C)]
#[derive(Default)]
struct MountAnswer {
    size: u32,
    options: u32,
    answered: u64,
    device: [u32; 2],
    magic: u64,
    rest: [u64; 32],
    more: [u64; 28],
}

/// Returns the magic number of the file system that a mount of the process's namespace shows, by the
/// mount's unique id; asks that file system nothing. statmount(2), Linux 6.8.
pub fn magic_of_mount(unique_id: u64) -> io::Result<u64> {
    // The same on every architecture but Alpha; libc does not have it.
    const SYS_STATMOUNT: c_long = 457;
    const STATMOUNT_SB_BASIC: u64 = 1;
    let request = MountRequest {
        size: size_of::<MountRequest>() as u32,
        spare: 0,
        mount: unique_id,
        asked: STATMOUNT_SB_BASIC,
    };
    let mut answer = MountAnswer::default();
    // SAFETY: the kernel reads one mnt_id_req, whose size `request` says, and writes at most the
    // size of `answer`, which is ours and for which all bits are values.
    check(unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            &raw mut answer,
            size_of::<MountAnswer>(),
            0,
        )
    })?;
    if answer.answered & STATMOUNT_SB_BASIC == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(answer.magic)
}

/// Mounts that are listed at most.
const MOUNTS_LIMIT: usize = 512;

/// Returns the numbers of all mounts that the process can reach, which the kernel never uses again;
/// an error where there are 512 or more. listmount(2), Linux 6.8.
pub fn mounts() -> io::Result<Vec<u64>> {
    // The same on every architecture but Alpha; libc does not have it.
    const SYS_LISTMOUNT: c_long = 458;
    const LSMT_ROOT: u64 = u64::MAX;
    let request = MountRequest {
        size: size_of::<MountRequest>() as u32,
        spare: 0,
        mount: LSMT_ROOT,
        asked: 0,
    };
    let mut numbers = [0_u64; MOUNTS_LIMIT];
    // SAFETY: the kernel reads one mnt_id_req, whose size `request` says, and writes at most as many
    // numbers as there is room for.
    let count = unsafe {
        libc::syscall(
            SYS_LISTMOUNT,
            &raw const request,
            numbers.as_mut_ptr(),
            MOUNTS_LIMIT,
            0,
        )
    };
    check(count)?;
    match usize::try_from(count)
        .ok()
        .and_then(|count| numbers.get(..count))
    {
        Some(numbers) if numbers.len() < MOUNTS_LIMIT => Ok(numbers.to_vec()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<MountRequest>(), 24);
        assert_eq!(size_of::<MountAnswer>(), 512);
    }

    #[test]
    fn a_mount_has_one_number_as_long_as_it_is_there() {
        let first = match mounts() {
            Ok(first) => first,
            // Before Linux 6.8.
            Err(error) => return assert_eq!(error.raw_os_error(), Some(libc::ENOSYS)),
        };
        assert!(!first.is_empty());
        let mut sorted = first.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), first.len());
        assert!(magic_of_mount(first[0]).is_ok());
    }
}
