//! What can be seen of two trees, name by name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{lgetxattr, llistxattr, major, minor};
use rustix::io::Errno;

/// One name, without its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Type, size of a file, target of a link, number of a device.
    pub what: String,
    /// Permissions.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Seconds since 1970.
    pub mtime: i64,
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// All names of the same inode; those of directories are no links.
    pub same: BTreeSet<PathBuf>,
}

/// A tree by the names in it; the root's is empty.
pub type Tree = BTreeMap<PathBuf, Facts>;

/// Looks at a tree.
pub fn read(root: &Path) -> Result<Tree> {
    let (mut tree, mut inodes) = (Tree::new(), HashMap::new());
    look(root, Path::new(""), &mut tree, &mut inodes)?;
    for names in inodes.values() {
        for name in names {
            if let Some(facts) = tree.get_mut(name) {
                facts.same.clone_from(names);
            }
        }
    }
    Ok(tree)
}

fn look(
    root: &Path,
    name: &Path,
    tree: &mut Tree,
    inodes: &mut HashMap<u64, BTreeSet<PathBuf>>,
) -> Result<()> {
    // Joining nothing would add a slash, which follows links.
    let path = if name.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(name)
    };
    let meta = fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_symlink() {
        format!("link to {:?}", fs::read_link(&path)?)
    } else if kind.is_file() {
        format!("file of {} bytes", meta.len())
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else if kind.is_socket() {
        "socket".to_owned()
    } else {
        let letter = if kind.is_char_device() { 'c' } else { 'b' };
        format!("{letter} {} {}", major(meta.rdev()), minor(meta.rdev()))
    };
    let facts = Facts {
        what,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: meta.mtime(),
        xattrs: xattrs(&path)?,
        same: BTreeSet::new(),
    };
    tree.insert(name.to_owned(), facts);
    if !kind.is_dir() {
        let names = inodes.entry(meta.ino()).or_default();
        names.insert(name.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(&path)? {
        look(root, &name.join(entry?.file_name()), tree, inodes)?;
    }
    Ok(())
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 65536];
    let size = match llistxattr(path, &mut names[..]) {
        // What a squashfs without any says.
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut found = BTreeMap::new();
    for name in names[..size].split(|byte| *byte == 0) {
        if !name.is_empty() {
            let mut value = vec![0; 65536];
            let size = lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
            value.truncate(size);
            found.insert(name.to_vec(), value);
        }
    }
    Ok(found)
}

/// Returns what differs between two trees: at most 20 names, each with both sides.
pub fn differences(got: &Tree, want: &Tree) -> Vec<String> {
    let names: BTreeSet<&PathBuf> = got.keys().chain(want.keys()).collect();
    let different = names
        .into_iter()
        .filter(|name| got.get(*name) != want.get(*name));
    let lines = different.map(|name| {
        let (got, want) = (got.get(name), want.get(name));
        format!("{name:?}\n  got  {got:?}\n  want {want:?}")
    });
    lines.take(20).collect()
}

/// Fails unless the files of both trees that have the same name and size have the same contents.
pub fn ensure_same_contents(tree: &Tree, got: &Path, want: &Path) -> Result<u64> {
    let mut total = 0;
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    for (name, facts) in tree {
        // One name of each file is enough.
        if !facts.what.starts_with("file") || facts.same.first() != Some(name) {
            continue;
        }
        let (mut one, mut other) = (File::open(got.join(name))?, File::open(want.join(name))?);
        loop {
            let count = one.read(&mut left)?;
            other.read_exact(&mut right[..count])?;
            ensure!(left[..count] == right[..count], "{name:?}: other contents");
            total += count as u64;
            if count == 0 {
                break;
            }
        }
        ensure!(other.read(&mut right)? == 0, "{name:?}: not all of it");
    }
    Ok(total)
}
