//! The layer over an image: what a root needs that the image does not have.
//!
//! An image is read-only, so files and mount points that it lacks are made on a tmpfs that is
//! laid over the whole image. The overlay has no upper directory unless the user asked for
//! scratch space: nothing is ever copied up. What of it a root shows is for [`crate::top`].

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::thread::{Gid, Uid};

use crate::error::{Context, Error, Result};
use crate::image::ImageTree;
use crate::mnt::{self, Kept};
use crate::scratch::Scratch;

/// Why a mount point cannot be made.
pub type Refusal = String;

/// Entries that a directory of the layer, or one whose children are cloned one by one, may have.
pub const LIST_LIMIT: usize = 1000;

/// Bytes of entries that are read at once.
const LIST_BUFFER: usize = 8 << 10;

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

/// The layer while it is being filled. Nobody else has seen its tmpfs yet, so that paths in it
/// name what was made there and nothing else.
pub struct Layer<'a> {
    image: &'a ImageTree,
    /// The image's top level.
    top: &'a [Entry],
    dir: OwnedFd,
    /// Directories of the layer, as absolute paths.
    dirs: BTreeSet<String>,
    /// Files in its top level.
    top_files: RefCell<BTreeSet<String>>,
}

impl<'a> Layer<'a> {
    /// Starts an empty layer on `dir`, the root of a tmpfs, over an image with `top` in its top
    /// level.
    pub fn new(image: &'a ImageTree, top: &'a [Entry], dir: OwnedFd) -> Self {
        Self {
            image,
            top,
            dir,
            dirs: BTreeSet::from(["/".to_owned()]),
            top_files: RefCell::default(),
        }
    }

    /// The image that it is over.
    pub fn image(&self) -> &'a ImageTree {
        self.image
    }

    /// Takes over the directories that a hook of the site's has made in the layer.
    pub fn adopt(&mut self) -> Result<()> {
        let dir = self.dir.try_clone().step("open", "layer")?;
        self.adopt_below(&dir, "")
    }

    fn adopt_below(&mut self, dir: &OwnedFd, path: &str) -> Result<()> {
        let entries = list(dir, LIST_LIMIT, &self.image.kept)?.ok_or(Errno::FBIG);
        for Entry { name, kind } in entries.step("list", "what a hook made")? {
            let Ok(name) = std::str::from_utf8(&name) else {
                continue;
            };
            if kind == FileType::Directory {
                let path = format!("{path}/{name}");
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let below = rustix::fs::openat(dir, name, flags, Mode::empty());
                self.adopt_below(&below.step("open", &*path)?, &path)?;
                self.dirs.insert(path);
            }
        }
        Ok(())
    }

    /// Makes sure that the layer has a directory: like the image's where that has it.
    pub fn dir(&mut self, path: &str) -> Result<()> {
        if self.dirs.contains(path) {
            return Ok(());
        }
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.dir(if parent.is_empty() { "/" } else { parent })?;
        let stat = match self.top_level(path) {
            Some(None) => Err(Errno::NOENT),
            _ => self.image.stat(path),
        };
        match stat {
            Ok(stat) if Kind::of(&stat) == Some(Kind::Dir) => {
                self.make_dir(path, Mode::from_raw_mode(stat.st_mode & 0o777))?;
                copy_attributes(&self.dir, below(path), &stat)
            }
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {
                self.make_dir(path, Mode::from_raw_mode(0o755))
            }
            Err(error) => {
                let failed: Result<()> = Err(error).step("examine", path);
                failed.map_err(|error| self.image.blame(error))
            }
        }
    }

    /// The same where the image has something else there than a directory; for a path whose
    /// parent the layer has, so that no link is on the way.
    pub fn dir_unless_image_has(&mut self, path: &str) -> Result<()> {
        let stat = rustix::fs::statat(&self.image.dir, below(path), AtFlags::SYMLINK_NOFOLLOW);
        match stat {
            Ok(stat) if Kind::of(&stat) == Some(Kind::Dir) => Ok(()),
            Err(Errno::NOENT) if !self.has(path) => self.make_dir(path, Mode::from_raw_mode(0o755)),
            _ => self.dir(path),
        }
    }

    /// Makes a directory where neither the image nor a hook of the site's has anything at all; for
    /// a path whose parent the layer has.
    pub fn dir_if_missing(&mut self, path: &str, mode: u32) -> Result<()> {
        let image = rustix::fs::statat(&self.image.dir, below(path), AtFlags::SYMLINK_NOFOLLOW);
        if self.has(path) || !matches!(image, Err(Errno::NOENT)) {
            return Ok(());
        }
        match rustix::fs::mkdirat(&self.dir, below(path), Mode::from_raw_mode(mode)) {
            Ok(()) => _ = self.dirs.insert(path.to_owned()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error).step("create directory", path),
        }
        Ok(())
    }

    /// Makes a directory in one that the layer has, whatever the image's is like, and gives it
    /// mode, owner and group.
    pub fn own_dir(&mut self, path: &str, mode: u32, uid: u32, gid: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode);
        self.make_dir(path, mode)?;
        rustix::fs::chmodat(&self.dir, below(path), mode, AtFlags::empty())
            .step("set the mode of", path)?;
        self.give(path, uid, gid)
    }

    /// Gives a file or directory of the layer to a user and a group.
    pub fn give(&self, path: &str, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(&self.dir, below(path), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .step("set the owner of", path)
    }

    /// What the image has at a path of its top level; nothing for paths below that.
    fn top_level(&self, path: &str) -> Option<Option<FileType>> {
        let name = top_name(path)?;
        let mut entries = self.top.iter();
        let found = entries.find(|entry| entry.name == name.as_bytes());
        Some(found.map(|entry| entry.kind))
    }

    /// True if the root has a directory of this name in its top level, and no link.
    pub fn has_top_level_dir(&self, path: &str) -> bool {
        match self.top_level(path) {
            Some(Some(FileType::Directory)) => true,
            Some(_) => self.has(path),
            None => false,
        }
    }

    /// Makes sure that the layer has a directory that the image does not have.
    fn new_dir(&mut self, path: &str) -> Result<()> {
        if self.has(path) {
            return Ok(());
        }
        self.make_dir(path, Mode::from_raw_mode(0o755))
    }

    fn make_dir(&mut self, path: &str, mode: Mode) -> Result<()> {
        rustix::fs::mkdirat(&self.dir, below(path), mode).step("create directory", path)?;
        self.dirs.insert(path.to_owned());
        Ok(())
    }

    /// Writes a small file into a directory that the layer has.
    pub fn file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode);
        if let Some(name) = top_name(path) {
            self.top_files.borrow_mut().insert(name.to_owned());
        }
        if bytes.is_empty() {
            let kind = FileType::RegularFile;
            return rustix::fs::mknodat(&self.dir, below(path), kind, mode, 0).step("create", path);
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, below(path), flags, mode).step("create", path)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = rustix::io::write(&file, rest).step("write", path)?;
            rest = rest.get(count..).unwrap_or_default();
        }
        self.keep(file);
        Ok(())
    }

    /// Makes a symbolic link in a directory that the layer has.
    pub fn link(&self, path: &str, target: &str) -> Result<()> {
        rustix::fs::symlinkat(target, &self.dir, below(path)).step("link", path)
    }

    /// Makes sure that `path` can be mounted on, for a target that no other mount contains.
    /// Returns a refusal where the image has something else there.
    pub fn mount_point(
        &mut self,
        path: &str,
        kind: Kind,
    ) -> Result<std::result::Result<(), Refusal>> {
        // The usual cases, without asking the kernel.
        match self.top_level(path) {
            Some(Some(FileType::Directory)) if kind == Kind::Dir => return Ok(Ok(())),
            Some(None) if kind == Kind::Dir => return self.dir(path).map(Ok),
            _ => {}
        }
        if let Some((parent, name)) = path.rsplit_once('/')
            && self.top_level(parent) == Some(Some(FileType::Directory))
        {
            // No link is on the way.
            match self.image.stat(path) {
                Ok(stat) if Kind::of(&stat) == Some(kind) => return Ok(Ok(())),
                Err(Errno::NOENT) => return self.make_missing(parent, &[], name, kind),
                _ => {}
            }
        }
        let mut existing = path;
        let (place, canonical) = loop {
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
        let stat = rustix::fs::fstat(&place).step("examine", existing)?;
        let rest = path.get(existing.len()..).unwrap_or_default();
        let missing: Vec<&str> = rest.split('/').filter(|n| !n.is_empty()).collect();
        let Some((last, parents)) = missing.split_last() else {
            let (own, what) = match kind {
                Kind::Dir => ("a directory", "directory"),
                Kind::File => ("a file", "regular file"),
            };
            return Ok(if Kind::of(&stat) == Some(kind) {
                Ok(())
            } else {
                Err(format!(
                    "it is {own}, and what the image has there is no {what}"
                ))
            });
        };
        if Kind::of(&stat) != Some(Kind::Dir) {
            return Ok(Err(format!("the image's '{existing}' is not a directory")));
        }
        let first = parents.first().unwrap_or(last);
        if rustix::fs::statat(&place, *first, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(Err("the image has a link there that leads nowhere".into()));
        }
        self.keep(place);
        self.make_missing(&canonical, parents, last, kind)
    }

    /// Makes the mount point `last` in the directory `at` of the image, with the `parents` on the
    /// way to it: neither they nor it are in the image.
    fn make_missing(
        &mut self,
        at: &str,
        parents: &[&str],
        last: &str,
        kind: Kind,
    ) -> Result<std::result::Result<(), Refusal>> {
        let mut dir = at.to_owned();
        let mut make = || {
            self.dir(&dir)?;
            for name in parents {
                dir = join(&dir, name);
                self.new_dir(&dir)?;
            }
            let path = join(&dir, last);
            match kind {
                Kind::Dir => self.new_dir(&path),
                Kind::File => self.file(&path, b"", 0o644),
            }
        };
        match make() {
            Err(Error::Step { source, .. }) => match Errno::from_io_error(&source) {
                // The same place by another way through the image's links.
                Some(Errno::NOTDIR) => Ok(Err("another mount has a file there".into())),
                Some(Errno::EXIST) => self.is_there(&join(&dir, last), kind),
                _ => Err(source).step("create", &*join(&dir, last)),
            },
            made => made.map(Ok),
        }
    }

    /// Judges a place in the layer that was there already.
    fn is_there(&self, path: &str, kind: Kind) -> Result<std::result::Result<(), Refusal>> {
        let stat = rustix::fs::statat(&self.dir, below(path), AtFlags::SYMLINK_NOFOLLOW);
        Ok(match stat {
            Ok(stat) if Kind::of(&stat) == Some(kind) => Ok(()),
            _ => Err("another mount or the site has something else there".into()),
        })
    }

    /// Mounts the overlay of the layer over the image, under this name in mountinfo; it is attached
    /// nowhere yet.
    pub fn mount(&self, source: &str, scratch: Option<&Scratch>) -> Result<OwnedFd> {
        let Some(Scratch { upper, work, .. }) = scratch else {
            return mnt::overlay(source, &[&self.dir, &self.image.dir]);
        };
        // Without privilege the overlay cannot keep its notes in attributes that are root's.
        let is_users = self.image.is_whole;
        let lower = [&self.dir, &self.image.dir];
        mnt::writable_overlay(source, [upper, work], lower, is_users)
    }

    /// Keeps a descriptor of the root that is of no more use.
    pub fn keep(&self, fd: OwnedFd) {
        self.image.kept.keep(fd);
    }

    /// True if the image itself has something at a path.
    pub fn covers_image_at(&self, path: &str) -> bool {
        self.image.stat(path).is_ok()
    }

    /// Names what it has in its top level, and whether that is a directory or a file.
    pub fn top(&self) -> Vec<(String, Kind)> {
        let dirs = self.dirs.iter().filter_map(|path| top_name(path));
        let files = self.top_files.borrow();
        dirs.map(|name| (name.to_owned(), Kind::Dir))
            .chain(files.iter().map(|name| (name.clone(), Kind::File)))
            .collect()
    }

    /// True if the layer has this directory of the image's.
    pub fn has(&self, path: &str) -> bool {
        self.dirs.contains(path)
    }
}

/// An entry of a directory of the image.
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: FileType,
}

/// Lists an open directory of the image; nothing if it has more than `limit` entries.
pub fn list(dir: &OwnedFd, limit: usize, kept: &Kept) -> Result<Option<Vec<Entry>>> {
    // A mount's own descriptor is an O_PATH one and cannot be listed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::openat(dir, c".", flags, Mode::empty()).step("open", "image")?;
    let entries = list_open(&open, limit);
    kept.keep(open);
    entries
}

/// The same for a directory that is open for reading.
pub fn list_open(dir: &OwnedFd, limit: usize) -> Result<Option<Vec<Entry>>> {
    let mut buffer = Vec::with_capacity(LIST_BUFFER);
    let mut reader = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut entries = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = entry.step("list", "image")?;
        let name: &CStr = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
                FileType::from_raw_mode(stat.step("examine", "image")?.st_mode)
            }
            kind => kind,
        };
        let name = name.to_bytes().to_vec();
        entries.push(Entry { name, kind });
        if entries.len() > limit {
            return Ok(None);
        }
    }
    Ok(Some(entries))
}

/// Gives a directory below `dir` the owner and mode of another.
pub fn copy_attributes(dir: impl AsFd, path: &str, stat: &Stat) -> Result<()> {
    let dir = dir.as_fd();
    if (stat.st_uid, stat.st_gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::chownat(dir, path, Some(uid), Some(gid), nofollow) {
            // In a user's own namespace there is nobody else to own anything.
            Err(_) if !geteuid().is_root() => {}
            done => done.step("set the owner of", path)?,
        }
    }
    // The bits that our own mode mask has taken away.
    if stat.st_mode & 0o022 != 0 || stat.st_mode & 0o1000 != 0 {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o1777);
        rustix::fs::chmodat(dir, path, mode, AtFlags::empty()).step("set the mode of", path)?;
    }
    Ok(())
}

/// Returns the name of a path in the top level.
fn top_name(path: &str) -> Option<&str> {
    path.strip_prefix('/')
        .filter(|name| !name.is_empty() && !name.contains('/'))
}

/// Appends a name to an absolute path.
pub fn join(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

/// Makes an absolute path one that is looked up from a directory.
fn below(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        relative => relative,
    }
}
