//! The file systems that images have, and how the kernel mounts them: squashfs, and erofs where the site
//! wants it.
//!
//! Both are mounted from a loop device: mounted again, it gives the same superblock, and with it the
//! same cached pages. Linux 6.12 and newer mount erofs of a file as well, but each such mount has a
//! superblock of its own, so that the files of an image are decompressed and cached once for each
//! container. Therefore only nodes without loop devices do that.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::error::{Error, Result};
use crate::loopdev::{self, LoopDevice};
use crate::mnt;

/// The format that every image may have.
pub const SQUASHFS: &str = "squashfs";
/// The format that images of the site's store may have where the site says so.
pub const EROFS: &str = "erofs";

/// Why a user's own images are no erofs: they never meet the kernel's.
pub const NOT_OF_USERS: &str = "erofs images are mounted from the site's store alone";
/// Why the site's are none either.
pub const NOT_AT_SITE: &str = "this site mounts no erofs images (store.format, store.mount_erofs)";

/// Why an image of this format is not mounted; `no_erofs` is the reason for one kind.
pub fn judge(
    format: &str,
    no_erofs: Option<&'static str>,
) -> std::result::Result<(), &'static str> {
    match (format, no_erofs) {
        (SQUASHFS, _) | (EROFS, None) => Ok(()),
        (EROFS, Some(reason)) => Err(reason),
        _ => Err("only squashfs and erofs images are mounted"),
    }
}

/// Mounts an image's file; the mount is attached nowhere yet. `attach` gives the loop device that has it.
///
/// # Errors
/// [`Error::BadImage`] if it is the file that the kernel refuses, [`Error::Step`] if it is the node
/// that cannot.
pub fn mount(
    format: &str,
    image: &str,
    file: &OwnedFd,
    attach: impl FnOnce() -> Result<LoopDevice>,
) -> Result<OwnedFd> {
    if format != EROFS {
        let device = attach()?;
        return make(SQUASHFS, &device.path(), image);
    }
    if loopdev::exist() {
        let device = attach()?;
        return make(EROFS, &device.path(), image);
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    make(EROFS, &path, image).map_err(|error| match error {
        Error::Step { source, .. } if source.raw_os_error() == Some(libc::ENOTBLK) => {
            Error::BadImage {
                image: image.to_owned(),
                // Those without pages of their own, such as overlay and tmpfs, are not enough.
                reason: "without loop devices, erofs images need Linux 6.12 and a store on \
                         a parallel or local file system"
                    .to_owned(),
            }
        }
        other => other,
    })
}

fn make(kind: &'static str, source: &str, image: &str) -> Result<OwnedFd> {
    let options = [("source", Some(source)), ("ro", None)];
    mnt::make(kind, &options, mnt::SAFE_RO).map_err(|error| {
        let Error::Step { source, .. } = &error else {
            return error;
        };
        let reason = match (kind, source.raw_os_error()) {
            (_, Some(number)) if is_the_nodes(kind, number) => return error,
            (EROFS, Some(libc::EOPNOTSUPP)) => {
                "this node's kernel lacks the image's compression (zstd needs Linux 6.10)"
                    .to_owned()
            }
            // The store's own file was found well: what the kernel refuses is its content.
            _ => format!("the kernel cannot mount it: {source}"),
        };
        Error::BadImage {
            image: image.to_owned(),
            reason,
        }
    })
}

/// Whether a mount that fails so is the node's fault, whatever the file has.
fn is_the_nodes(kind: &str, number: i32) -> bool {
    match number {
        // A kernel without the file system, or that mounts it of devices alone, or not for us.
        libc::ENODEV | libc::ENOSYS | libc::EPERM | libc::EACCES => true,
        libc::ENOTBLK => kind == EROFS,
        // One that has no more of something. An EIO may be either's: damaged blocks give it too.
        libc::ENOMEM | libc::ENFILE | libc::EMFILE | libc::ENOSPC => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erofs_is_the_sites_to_allow_and_never_a_users() {
        for (format, no_erofs, is_good) in [
            ("squashfs", None, true),
            ("squashfs", Some(NOT_OF_USERS), true),
            ("erofs", None, true),
            ("erofs", Some(NOT_OF_USERS), false),
            ("erofs", Some(NOT_AT_SITE), false),
            ("ext4", None, false),
            ("", Some(NOT_OF_USERS), false),
        ] {
            let judged = judge(format, no_erofs);
            assert_eq!(judged.is_ok(), is_good, "{format} {no_erofs:?}");
        }
    }

    #[test]
    fn a_node_without_memory_is_no_bad_image() {
        for number in [libc::ENODEV, libc::ENOMEM, libc::ENFILE, libc::EPERM] {
            assert!(is_the_nodes(SQUASHFS, number), "{number}");
        }
        for number in [libc::EINVAL, libc::EIO, libc::ENOTBLK] {
            assert!(!is_the_nodes(SQUASHFS, number), "{number}");
        }
        assert!(is_the_nodes(EROFS, libc::ENOTBLK));
        assert!(!is_the_nodes(EROFS, libc::EOPNOTSUPP));
    }
}
