//! Where a root needs something the image does not have: the directories that are overlaid.
//!
//! An image is read-only, so a file or mount point that it lacks is made in a layer: a directory
//! on the root's tmpfs that is laid over just that directory of the image, or, where the whole
//! top-level directory is missing, in the root itself. The overlay has no upper directory:
//! nothing is ever copied up, and there is none between a program and its libraries unless
//! somebody asks for a mount point next to them.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::thread::{Gid, Uid};
use shifter_core::sanitize;

use crate::error::{Context, Error, Result};
use crate::image::ImageTree;
use crate::mnt;
use crate::state::{make_dir, make_dir_with_mode};

/// Why a mount point cannot be made.
pub type Refusal = String;

/// What a mount point must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file.
    File,
}

impl Kind {
    /// Tells which of the two an open file is, if either.
    pub fn of(stat: &Stat) -> Option<Self> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Some(Kind::Dir),
            FileType::RegularFile => Some(Kind::File),
            _ => None,
        }
    }
}

/// The overlaid directories of a root, collected before any of them is mounted.
pub struct Layers<'a> {
    image: &'a ImageTree,
    root: &'a OwnedFd,
    store: OwnedFd,
    layers: Vec<Layer>,
}

struct Layer {
    dir: String,
    lower: OwnedFd,
    upper: OwnedFd,
}

impl<'a> Layers<'a> {
    /// Starts with none; `store` is a directory on the root's tmpfs outside of the root.
    pub fn new(image: &'a ImageTree, root: &'a OwnedFd, store: OwnedFd) -> Self {
        Self {
            image,
            root,
            store,
            layers: Vec::new(),
        }
    }

    /// True if the image's directory `dir` is overlaid.
    pub fn covers(&self, dir: &str) -> bool {
        self.layers.iter().any(|layer| layer.dir == dir)
    }

    /// Opens a directory in which entries of `/name`, top-level, can be made.
    pub fn top_level(&mut self, name: &str) -> Result<OwnedFd> {
        match self.image.open(&format!("/{name}")) {
            Ok((lower, canonical)) if canonical == format!("/{name}") => {
                self.layer(canonical, lower)
            }
            // Not in the image: it lives in the root. A link there would have been refused.
            _ => make_public_dir(self.root, name),
        }
    }

    /// Makes sure that `path` can be mounted on, for a target that no other mount contains.
    /// Returns a refusal where the image has something else there.
    pub fn mount_point(
        &mut self,
        path: &str,
        kind: Kind,
    ) -> Result<std::result::Result<(), Refusal>> {
        let mut existing = path;
        let (lower, canonical) = loop {
            match self.image.open(existing) {
                Ok(found) => break found,
                Err(Errno::NOENT) => {}
                Err(error) => return Ok(Err(format!("the image has no such place ({error})"))),
            }
            existing = match existing.rsplit_once('/') {
                Some(("", _)) | None => "/",
                Some((parent, _)) => parent,
            };
        };
        let stat = rustix::fs::fstat(&lower).step("examine", existing)?;
        let missing: Vec<&str> = path[existing.len()..]
            .split('/')
            .filter(|n| !n.is_empty())
            .collect();
        let Some((last, parents)) = missing.split_last() else {
            let fits = Kind::of(&stat) == Some(kind);
            let what = if kind == Kind::Dir {
                "directory"
            } else {
                "file"
            };
            return Ok(if fits {
                Ok(())
            } else {
                Err(format!("the image's is not a {what}"))
            });
        };
        if Kind::of(&stat) != Some(Kind::Dir) {
            return Ok(Err(format!("the image's '{existing}' is not a directory")));
        }
        let first = parents.first().unwrap_or(last);
        if rustix::fs::statat(&lower, *first, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(Err("the image has a link there that leads nowhere".into()));
        }
        let mut dir = if canonical == "/" {
            self.root.try_clone().step("open", "/")?
        } else {
            self.layer(canonical, lower)?
        };
        let mut make = || {
            for name in parents {
                dir = make_public_dir(&dir, name)?;
            }
            match kind {
                Kind::Dir => make_public_dir(&dir, last).map(drop),
                Kind::File => write_given(&dir, last, &[], 0o644),
            }
        };
        match make() {
            // The same place by another way through the image's links.
            Err(Error::Step { source, .. }) if source.raw_os_error() == Some(libc::ENOTDIR) => {
                Ok(Err("another mount has a file there".into()))
            }
            made => made.map(Ok),
        }
    }

    /// Mounts the overlays on the finished top level of the root, outer ones first. Returns a
    /// refusal where the image's links lead to a directory that the root does not have.
    pub fn mount(mut self) -> Result<std::result::Result<(), Refusal>> {
        self.layers
            .sort_by_key(|layer| layer.dir.matches('/').count());
        for layer in &self.layers {
            let overlay = mnt::overlay(&layer.upper, &layer.lower)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let target = match mnt::open_inside(self.root, &layer.dir, flags) {
                Ok(target) => target,
                Err(error) => {
                    let dir = sanitize::text(&layer.dir);
                    let reason = std::io::Error::from(error);
                    return Ok(Err(format!(
                        "nothing can be placed in its '{dir}': {reason}"
                    )));
                }
            };
            mnt::attach(&overlay, &target)?;
        }
        Ok(Ok(()))
    }

    /// Returns the layer over the image's directory `dir`, made where it is missing.
    fn layer(&mut self, dir: String, lower: OwnedFd) -> Result<OwnedFd> {
        if let Some(layer) = self.layers.iter().find(|layer| layer.dir == dir) {
            return layer.upper.try_clone().step("open", &*dir);
        }
        let stat = rustix::fs::fstat(&lower).step("examine", &*dir)?;
        let upper = make_dir(&self.store, &self.layers.len().to_string())?;
        copy_attributes(&upper, &stat)?;
        let handle = upper.try_clone().step("open", &*dir)?;
        self.layers.push(Layer { dir, lower, upper });
        Ok(handle)
    }
}

/// Gives an open directory or file the owner and mode of another.
pub fn copy_attributes(fd: impl AsFd, stat: &Stat) -> Result<()> {
    let fd = fd.as_fd();
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(fd, Some(uid), Some(gid)).step("set the owner of", "directory")?;
    // Setuid, setgid and sticky bits mean nothing on a read-only mount with nosuid.
    let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
    rustix::fs::fchmod(fd, mode).step("set the mode of", "directory")
}

/// Makes a directory of mode 0755 where it is missing, and opens it.
pub fn make_public_dir(parent: impl AsFd, name: &str) -> Result<OwnedFd> {
    make_dir_with_mode(parent, name, Mode::from_raw_mode(0o755))
}

/// Writes a small file into a layer.
pub fn write_given(dir: impl AsFd, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = match rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode)) {
        Ok(fd) => File::from(fd),
        // The same mount point was asked for twice, or the site's file is a mount point.
        Err(Errno::EXIST) if bytes.is_empty() => return Ok(()),
        Err(error) => return Err(error).step("create", name),
    };
    file.write_all(bytes).step("write", name)
}
