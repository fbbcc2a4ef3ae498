//! Images that are in no store: squashfs files that users name by a path, and directory trees, by
//! the path where the site allows it or by the site's name for them.
//!
//! What a user names is opened with the user's eyes and then judged by its descriptor. A tree
//! appears read-only, without what is mounted in it, set-user-id programs or devices; it may
//! change meanwhile, as every directory of the host may.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use shifter_core::config::Config;
use shifter_core::layout::RUN_DIR;
use shifter_core::meta::ImageMeta;
use shifter_core::reference::ImageRef;
use shifter_core::sanitize;
use shifter_core::trusted;
use shifter_core::volmap::contains;

use crate::caller::Caller;
use crate::error::{Context, Error, Result};
use crate::fsuser::as_user;
use crate::image::{Image, Source};
use crate::mnt;
use crate::sys::Propagation;

const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// What is kept of such an image where that of others is kept: nothing but what must be there.
const NO_META: &[u8] = b"FORMAT: none\n";

/// Opens the squashfs file that a reference names.
///
/// # Errors
/// [`Error::BadImage`] if it is not there, not the user's to read, or no squashfs file.
pub fn file(reference: &ImageRef, caller: &Caller) -> Result<Image> {
    let path = reference.repository();
    let open = || {
        let resolve = ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind != FileType::RegularFile {
            return Ok(Err(kind));
        }
        // To open a device or a pipe can do something; a file is only opened to be read.
        let again = format!("/proc/self/fd/{}", found.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(again, flags, Mode::empty()).map(Ok)
    };
    let bad = |reason: String| Error::BadImage {
        image: reference.canonical(),
        reason,
    };
    let opened = as_user(caller.uid, caller.gid, &caller.groups, open)?;
    let opened: rustix::io::Result<_> = opened;
    let file = match opened {
        Ok(Ok(file)) => file,
        Ok(Err(FileType::Directory)) => {
            let way = sanitize::text(path);
            return Err(bad(format!(
                "it is a directory, which is named 'local:{way}'"
            )));
        }
        Ok(Err(_)) => return Err(bad("it is not a regular file".into())),
        Err(error) => return Err(bad(std::io::Error::from(error).to_string())),
    };
    let name = format!("file:{}", mnt::path_of(file.as_fd()));
    let image = of_host(name, Source::UserFile(file));
    image.check_superblock()?;
    Ok(image)
}

/// Opens the directory tree that a reference names.
///
/// # Errors
/// [`Error::Denied`] where the site does not allow it, [`Error::BadImage`] if it is not there or
/// not the user's to read.
pub fn tree(config: &Config, reference: &ImageRef, caller: &Caller) -> Result<Image> {
    let bad = |reason: String| Error::BadImage {
        image: reference.canonical(),
        reason,
    };
    if let Some(name) = reference.tree() {
        return named_tree(config, name);
    }
    let path = reference.repository();
    let open = || rustix::fs::openat2(CWD, path, DIR, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let opened = as_user(caller.uid, caller.gid, &caller.groups, open)?;
    let allowed = &config.store.local_dirs;
    let denied = |reason: String| Error::Denied {
        what: format!(
            "image '{}' {reason}",
            sanitize::text(&reference.canonical())
        ),
        hint: None,
    };
    if allowed.is_empty() {
        let reason = "is a directory, and this site runs none";
        return Err(denied(reason.into()));
    }
    let dir = opened.map_err(|error| bad(std::io::Error::from(error).to_string()))?;
    let place = mnt::path_of(dir.as_fd());
    let is_allowed = allowed.iter().any(|dir| {
        // As the kernel writes it, links resolved; one that is not there allows nothing.
        let dir = mnt::open_host(&dir.to_string_lossy());
        dir.is_ok_and(|dir| contains(&mnt::path_of(dir.as_fd()), &place))
    });
    if !is_allowed {
        let dirs: Vec<_> = allowed.iter().map(|dir| dir.to_string_lossy()).collect();
        let dirs = dirs.join(", ");
        return Err(denied(format!("is not below {dirs}")));
    }
    Ok(of_host(format!("local:{place}"), Source::Tree(dir)))
}

/// Takes the host itself as the image of a job, where the site allows that.
///
/// # Errors
/// [`Error::Denied`] where it does not.
pub fn host(config: &Config) -> Result<Image> {
    if config.slurm.ccm {
        return Ok(of_host("local:/".into(), Source::Host));
    }
    Err(Error::Denied {
        what: "this site does not allow --ccm".into(),
        hint: None,
    })
}

/// Clones the host's whole tree, in a namespace of the container's own: writable where the host's is,
/// without set-user-id programs, and without Shifter's own state.
pub fn clone_host() -> Result<OwnedFd> {
    match unmount(RUN_DIR, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error).step("unmount", RUN_DIR),
    }
    let clone = mnt::clone_path("/", true)?;
    mnt::restrict(&clone, mnt::SAFE, Propagation::Keep)?;
    Ok(clone)
}

/// Opens the directory tree to which the site gave this name.
///
/// # Errors
/// [`Error::BadImage`] if it gave it to none, [`Error::Untrusted`] if the tree is not what it must be.
pub fn named_tree(config: &Config, name: &str) -> Result<Image> {
    let reference = format!("local:{name}");
    let path = config.store.trees.get(name);
    let path = path.ok_or_else(|| Error::BadImage {
        image: reference.clone(),
        reason: "the site has no tree of this name".into(),
    })?;
    let owners = [0, config.store.image_owner];
    let path = trusted::audit(path, &owners).map_err(Error::Untrusted)?;
    let flags = DIR | OFlags::NOFOLLOW;
    let dir = rustix::fs::open(&path, flags, Mode::empty()).step("open tree", &path)?;
    Ok(of_host(reference, Source::Tree(dir)))
}

/// Clones the mount at a tree; the clone is attached nowhere yet.
pub fn clone_tree(dir: &OwnedFd, recursive: bool) -> Result<OwnedFd> {
    let clone = mnt::clone(dir, recursive)?;
    mnt::restrict(&clone, mnt::SAFE_RO, Propagation::Private)?;
    Ok(clone)
}

fn of_host(name: String, source: Source) -> Image {
    Image {
        id: name.clone(),
        reference: name,
        meta: ImageMeta::default(),
        meta_bytes: NO_META.to_vec(),
        source,
    }
}
