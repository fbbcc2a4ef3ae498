//! The top level of a root, and what is shown in it: as little of an overlay as can be.
//!
//! Each look-up of an absolute path begins in the root directory, and in each directory of an
//! overlay the kernel judges twice whether it may go on. So a root is a directory of the layer's
//! tmpfs ([`own`]), in which everything is mounted:
//!
//! | in the top level | what it becomes |
//! |---|---|
//! | a directory that nothing is added to | a clone of the image's |
//! | one that the layer has, too | a clone of the overlay's; if it may hold programs, its directories are covered by clones of the image's, as far as the layer has nothing in them |
//! | one that the host, the site or a volume covers | an empty one |
//! | a file | a clone of the image's |
//! | a link | a link |
//!
//! Images with more or other things in their top level, those over which a site's hook or the user
//! writes, and the first private container of an image on a node keep the overlay as their root,
//! covered by the image's directories with programs ([`expose`]). Either way there is no overlay
//! between a program and its libraries.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags};

use crate::error::{Context, Result};
use crate::image::ImageTree;
use crate::layer::{Entry, Kind, LIST_LIMIT, Layer, list_open};
use crate::mnt::{self, SAFE_RO};
use crate::sys::Propagation;

/// Entries that a root of its own may have: each is a mount.
const OWN_LIMIT: usize = 64;

/// Directories of the image that may be cloned over an overlay; what is beyond is merely slower.
const CLONE_LIMIT: usize = 256;

/// Top-level directories in which nobody keeps programs, or which the host provides.
const QUIET: [&str; 14] = [
    "boot",
    "dev",
    "etc",
    "home",
    "lost+found",
    "media",
    "mnt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "var",
];

/// Of those, the ones that the host provides.
pub const HOSTS: [&str; 4] = ["dev", "proc", "sys", "tmp"];

/// Names in the layer's tmpfs of the layer itself and of the root.
const LAYER: &str = "layer";
const ROOT: &str = "root";

/// True if an image with these entries can have a root of its own.
pub fn can_be_own(entries: &[Entry]) -> bool {
    let is_plain = |entry: &Entry| {
        use FileType::{Directory, RegularFile, Symlink};
        matches!(entry.kind, Directory | RegularFile | Symlink)
    };
    entries.len() <= OWN_LIMIT && entries.iter().all(is_plain)
}

/// Makes the place of the layer beside that of a root of its own, in a tmpfs.
pub fn place_of_layer(tmpfs: &OwnedFd) -> Result<OwnedFd> {
    rustix::fs::mkdirat(tmpfs, LAYER, Mode::from_raw_mode(0o755)).step("create", "layer")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(tmpfs, LAYER, flags, Mode::empty()).step("open", "layer")
}

/// A root of its own that is being made.
struct Own<'a> {
    layer: &'a Layer<'a>,
    tmpfs: &'a OwnedFd,
    overlay: &'a OwnedFd,
    root: OwnedFd,
}

/// Makes a root of its own in the layer's tmpfs and mounts it over the overlay, which is mounted
/// over the image; `is_covered` tells which paths of the top level something will be mounted on.
pub fn own(
    layer: &Layer<'_>,
    tmpfs: &OwnedFd,
    overlay: &OwnedFd,
    entries: &[Entry],
    is_covered: impl Fn(&str) -> bool,
) -> Result<OwnedFd> {
    rustix::fs::mkdirat(tmpfs, ROOT, Mode::from_raw_mode(0o755)).step("create", "root")?;
    let root = mnt::clone_at(tmpfs, ROOT.as_bytes(), false)?;
    // The tmpfs can be written through its own mount alone, which goes when the root is entered.
    mnt::restrict(&root, SAFE_RO, Propagation::Private)?;
    mnt::attach(&root, overlay)?;
    let own = Own {
        layer,
        tmpfs,
        overlay,
        root,
    };
    let added = layer.top();
    let is_added = |name: &[u8]| added.iter().any(|(added, _)| added.as_bytes() == name);
    let is_covered = |name: &str| HOSTS.contains(&name) || is_covered(&format!("/{name}"));
    for (name, kind) in &added {
        match kind {
            Kind::Dir if is_covered(name) => own.dir(name.as_bytes())?,
            Kind::Dir => own.both(name)?,
            Kind::File => own.file(name.as_bytes())?,
        }
    }
    for entry in entries.iter().filter(|entry| !is_added(&entry.name)) {
        let is_covered = str::from_utf8(&entry.name).is_ok_and(is_covered);
        // Its listing may say what it likes: names twice, files that are directories.
        own.entry(entry, is_covered)
            .map_err(|error| layer.image().blame(error))?;
    }
    Ok(own.root)
}

impl Own<'_> {
    fn path(name: &[u8]) -> Vec<u8> {
        [ROOT.as_bytes(), b"/", name].concat()
    }

    /// Shows an entry of the image's that the layer does not have.
    fn entry(&self, Entry { name, kind }: &Entry, is_covered: bool) -> Result<()> {
        match kind {
            FileType::Directory => self.dir(name)?,
            FileType::Symlink => return self.link(name),
            _ => self.file(name)?,
        }
        match is_covered {
            true => Ok(()),
            false => self.show(&self.layer.image().dir, name),
        }
    }

    fn dir(&self, name: &[u8]) -> Result<()> {
        rustix::fs::mkdirat(self.tmpfs, Self::path(name), Mode::from_raw_mode(0o755))
            .step("create directory", &*String::from_utf8_lossy(name))
    }

    fn file(&self, name: &[u8]) -> Result<()> {
        let (kind, mode) = (FileType::RegularFile, Mode::from_raw_mode(0o644));
        rustix::fs::mknodat(self.tmpfs, Self::path(name), kind, mode, 0)
            .step("create", &*String::from_utf8_lossy(name))
    }

    fn link(&self, name: &[u8]) -> Result<()> {
        let shown = || String::from_utf8_lossy(name).into_owned();
        let target = rustix::fs::readlinkat(&self.layer.image().dir, name, Vec::new());
        let target = target.step("read link", &*shown())?;
        rustix::fs::symlinkat(target, self.tmpfs, Self::path(name)).step("link", &*shown())
    }

    /// Mounts what `tree` has under this name.
    fn show(&self, tree: &OwnedFd, name: &[u8]) -> Result<()> {
        let clone = mnt::clone_at(tree, name, false)?;
        mnt::attach_at(&clone, &self.root, name)?;
        self.layer.keep(clone);
        Ok(())
    }

    /// Shows a directory that the layer has, and the image perhaps.
    fn both(&self, name: &str) -> Result<()> {
        self.dir(name.as_bytes())?;
        self.show(self.overlay, name.as_bytes())?;
        if is_quiet(self.layer.image(), name.as_bytes()) {
            return Ok(());
        }
        let mut budget = CLONE_LIMIT;
        let trees = (&self.layer.image().dir, &self.root);
        expose_entry(trees, self.layer, "", name.as_bytes(), &mut budget)
            .map_err(|error| self.layer.image().blame(error))
    }
}

fn is_quiet(image: &ImageTree, name: &[u8]) -> bool {
    let quiet: &[&str] = if image.is_host { &HOSTS } else { &QUIET };
    quiet.iter().any(|quiet| quiet.as_bytes() == name)
}

/// Covers the directories of the root that may hold programs by the image's own, as far as the
/// layer has nothing in them.
pub fn expose(root: &OwnedFd, layer: &Layer<'_>, entries: &[Entry]) -> Result<()> {
    let image = layer.image();
    let mut budget = CLONE_LIMIT;
    for Entry { name, kind } in entries {
        if *kind == FileType::Directory && !is_quiet(image, name) {
            let trees = (&image.dir, root);
            expose_entry(trees, layer, "", name, &mut budget)
                .map_err(|error| image.blame(error))?;
        }
    }
    Ok(())
}

/// The same for the entry `name` of the directory at `path`, open in image and root.
fn expose_entry(
    (image, root): (&OwnedFd, &OwnedFd),
    layer: &Layer<'_>,
    path: &str,
    name: &[u8],
    budget: &mut usize,
) -> Result<()> {
    let Some(left) = budget.checked_sub(1) else {
        return Ok(());
    };
    *budget = left;
    // A name that is not text is none of the layer's, which come from options.
    let path = std::str::from_utf8(name).map(|name| format!("{path}/{name}"));
    let Some(path) = path.ok().filter(|path| layer.has(path)) else {
        let clone = mnt::clone_at(image, name, layer.image().is_whole)?;
        mnt::attach_at(&clone, root, name)?;
        layer.keep(clone);
        return Ok(());
    };
    let open = |dir: &OwnedFd, access: OFlags| {
        let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(dir, name, flags, Mode::empty())
    };
    // Where the layer has a directory of its own instead, there is nothing to clone.
    let Ok(image) = open(image, OFlags::RDONLY) else {
        return Ok(());
    };
    // Beside so many entries a walk through the overlay is what is left.
    let mut entries = list_open(&image, LIST_LIMIT)?.unwrap_or_default();
    entries.retain(|entry| entry.kind == FileType::Directory);
    if !entries.is_empty()
        && let Ok(root) = open(root, OFlags::PATH)
    {
        for Entry { name, .. } in entries {
            expose_entry((&image, &root), layer, &path, &name, budget)?;
        }
        layer.keep(root);
    }
    layer.keep(image);
    Ok(())
}
