//! `--writable-tmpfs`: what a user writes over the image, kept in memory and gone with it.
//!
//! The overlay of the root gets an upper directory on a tmpfs of its own with a size limit. Files
//! can be created where the image's modes let the user, and everywhere below a directory that the
//! user named: that one, with all directories in it, is made the user's.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::thread::{Gid, Uid};
use shifter_core::identity::Identity;

use crate::error::{Context, Error, Result};
use crate::image::ImageTree;
use crate::layer::{self, Entry, join};
use crate::mnt::{self, Kept, SAFE};

/// Directories below the named one that are made the user's, and how deep they may lie.
const DIR_LIMIT: usize = 10_000;
const DEPTH_LIMIT: usize = 100;

/// Entries that one of them may have.
const ENTRY_LIMIT: usize = 100_000;

/// Files and directories that may be made, for each MiB of the size.
const INODES_PER_MIB: u32 = 256;

/// The scratch space of one root.
pub struct Scratch {
    /// Keeps the tmpfs until the overlay has it.
    pub mount: OwnedFd,
    /// What is written.
    pub upper: OwnedFd,
    /// What the overlay needs beside it.
    pub work: OwnedFd,
}

impl Scratch {
    /// Makes the tmpfs and attaches it to `place`, where the kernel finds it.
    pub fn new(size_mib: u32, place: &OwnedFd) -> Result<Self> {
        let size = format!("{size_mib}m");
        let inodes = size_mib.saturating_mul(INODES_PER_MIB).to_string();
        let options = [
            ("mode", Some("0755")),
            ("size", Some(&*size)),
            ("nr_inodes", Some(&*inodes)),
        ];
        let mount = mnt::make("tmpfs", &options, SAFE)?;
        mnt::attach(&mount, place)?;
        let dir = |name| {
            rustix::fs::mkdirat(&mount, name, Mode::from_raw_mode(0o755))
                .step("create directory", name)?;
            open_dir(&mount, name)
        };
        let (upper, work) = (dir("upper")?, dir("work")?);
        Ok(Self { mount, upper, work })
    }

    /// Makes the directory at `path`, and those of the image below it, the user's.
    pub fn give(&self, path: &str, user: &Identity, image: &ImageTree) -> Result<()> {
        let mut given = 0;
        let (mut at, mut upper) = (String::from("/"), open_dir(&self.upper, ".")?);
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        for (depth, name) in names.iter().enumerate() {
            at = join(&at, name);
            let stat = image.stat(&at).ok();
            match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                None | Some(FileType::Directory) => {}
                Some(FileType::Symlink) => {
                    let reason = format!("the image's '{at}' is a link: name where it leads");
                    return Err(refused(path, &reason));
                }
                Some(_) => {
                    let reason = format!("the image's '{at}' is not a directory");
                    return Err(refused(path, &reason));
                }
            }
            rustix::fs::mkdirat(&upper, *name, Mode::from_raw_mode(0o755))
                .step("create directory", &*at)?;
            if depth + 1 == names.len() {
                own(&upper, name.as_bytes(), user)?;
            } else if let Some(stat) = stat {
                layer::copy_attributes(&upper, name, &stat)?;
            }
            upper = open_dir(&upper, *name)?;
        }
        match image.open(path) {
            Ok((dir, _)) => give_below(path, (&dir, &image.kept), &upper, user, 0, &mut given)
                .map_err(|error| image.blame(error)),
            Err(_) => Ok(()),
        }
    }
}

fn give_below(
    path: &str,
    (image, kept): (&OwnedFd, &Kept),
    upper: &OwnedFd,
    user: &Identity,
    depth: usize,
    given: &mut usize,
) -> Result<()> {
    let entries = layer::list(image, ENTRY_LIMIT, kept)?;
    let entries = entries.ok_or_else(|| refused(path, "a directory there has too many entries"))?;
    for Entry { name, kind } in entries {
        if kind != FileType::Directory {
            continue;
        }
        *given += 1;
        if *given > DIR_LIMIT || depth > DEPTH_LIMIT {
            return Err(refused(path, "the image has too many directories there"));
        }
        rustix::fs::mkdirat(upper, name.as_slice(), Mode::from_raw_mode(0o755))
            .step("create directory", path)?;
        own(upper, &name, user)?;
        let (image, upper) = (open_dir(image, &*name)?, open_dir(upper, &*name)?);
        give_below(path, (&image, kept), &upper, user, depth + 1, given)?;
    }
    Ok(())
}

fn own(dir: &OwnedFd, name: &[u8], user: &Identity) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), nofollow)
        .step("set the owner of", "scratch space")
}

fn open_dir(dir: &OwnedFd, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dir, name, flags, Mode::empty()).step("open", "scratch space")
}

fn refused(path: &str, reason: &str) -> Error {
    Error::Denied {
        what: format!("'{path}' cannot be made writable: {reason}"),
        hint: None,
    }
}
