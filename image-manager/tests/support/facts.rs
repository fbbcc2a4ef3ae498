//! What can be seen of a tree, wherever it comes from: a directory, a mounted image, a tar.

use image_manager::layer::{Budget, Chunk, EntryKind, LayerReader, Limits, Metadata};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// One name of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub what: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: i64,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path of the same inode.
    pub same_as: String,
    /// How many names it says it has; 0 for directories, where file systems disagree.
    pub links: u64,
}

/// All names of a tree; bytes that are not ASCII are escaped.
pub type Tree = BTreeMap<String, Facts>;

pub fn printable(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

pub fn file(content: &[u8]) -> String {
    let mut whole = ContentHash::default();
    whole.data(content);
    whole.finish()
}

/// Identifies contents by size and digest.
#[derive(Default)]
pub struct ContentHash {
    size: u64,
    hasher: Sha256,
}

impl ContentHash {
    pub fn data(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.hasher.update(bytes);
    }

    pub fn hole(&mut self, length: u64) {
        let zeroes = [0; 65536];
        let mut left = length;
        while left > 0 {
            let now = left.min(65536);
            self.data(&zeroes[..now as usize]);
            left -= now;
        }
    }

    pub fn finish(self) -> String {
        let digest: String = self
            .hasher
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("file {} {digest}", self.size)
    }
}

/// Compares two trees name by name.
pub fn assert_same(got: &Tree, want: &Tree, what: &str) {
    let differences = differences(got, want);
    assert!(
        differences.is_empty(),
        "{what}:\n{}",
        differences.join("\n")
    );
}

pub fn differences(got: &Tree, want: &Tree) -> Vec<String> {
    let mut differences = Vec::new();
    for (path, facts) in want {
        match got.get(path) {
            None => differences.push(format!("missing {path}: {facts:?}")),
            Some(other) if other != facts => {
                differences.push(format!("{path}:\n  got  {other:?}\n  want {facts:?}"));
            }
            Some(_) => {}
        }
    }
    for path in got.keys().filter(|path| !want.contains_key(*path)) {
        differences.push(format!("unexpected {path}: {:?}", got[path]));
    }
    differences
}

/// A tree in a file system.
pub fn of_directory(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut inodes = HashMap::new();
    look(root, b"", &mut tree, &mut inodes);
    // In the order of the finished map, so that the first name is the same everywhere.
    let mut first: HashMap<u64, String> = HashMap::new();
    for path in tree.keys().cloned().collect::<Vec<_>>() {
        let name = first
            .entry(inodes[&path])
            .or_insert_with(|| path.clone())
            .clone();
        tree.get_mut(&path).unwrap().same_as = name;
    }
    tree
}

fn look(at: &Path, path: &[u8], tree: &mut Tree, inodes: &mut HashMap<String, u64>) {
    let meta = std::fs::symlink_metadata(at).unwrap();
    let kind = meta.file_type();
    let device = || {
        (
            rustix::fs::major(meta.rdev()),
            rustix::fs::minor(meta.rdev()),
        )
    };
    let what = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        format!(
            "-> {}",
            printable(std::fs::read_link(at).unwrap().as_os_str().as_bytes())
        )
    } else if kind.is_char_device() {
        format!("char {:?}", device())
    } else if kind.is_block_device() {
        format!("block {:?}", device())
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else if kind.is_socket() {
        "socket".to_owned()
    } else {
        let mut contents = ContentHash::default();
        let mut file = std::fs::File::open(at).unwrap();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break,
                count => contents.data(&buffer[..count]),
            }
        }
        contents.finish()
    };
    let facts = Facts {
        what,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: meta.mtime(),
        xattrs: xattrs(at),
        same_as: String::new(),
        links: if kind.is_dir() { 0 } else { meta.nlink() },
    };
    inodes.insert(printable(path), meta.ino());
    tree.insert(printable(path), facts);
    if kind.is_dir() {
        for child in std::fs::read_dir(at).unwrap() {
            let child = child.unwrap();
            let name = child.file_name();
            let below = if path.is_empty() {
                name.as_bytes().to_vec()
            } else {
                [path, name.as_bytes()].join(&b'/')
            };
            look(&child.path(), &below, tree, inodes);
        }
    }
}

fn xattrs(at: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let size = rustix::fs::llistxattr(at, &mut names[..]).unwrap_or(0);
    let list = names[..size]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty());
    list.map(|name| {
        let mut value = vec![0; 65536];
        let size = rustix::fs::lgetxattr(at, name, &mut value[..]).unwrap();
        value.truncate(size);
        (printable(name), value)
    })
    .collect()
}

/// A tree in an archive, without its root directory.
pub fn of_tar(archive: Vec<u8>) -> Tree {
    let budget = Budget::new(&Limits::default());
    let blob = Cursor::new(archive);
    let mut reader = LayerReader::open(blob, "", false, &budget).unwrap();
    let mut tree = Tree::new();
    let mut links = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let path = printable(&entry.path);
        let what = match entry.kind {
            EntryKind::HardLink(target) => {
                links.push((path, printable(&target)));
                continue;
            }
            EntryKind::Directory => "dir".to_owned(),
            EntryKind::Symlink(target) => format!("-> {}", printable(&target)),
            EntryKind::CharDevice { major, minor } => format!("char {:?}", (major, minor)),
            EntryKind::BlockDevice { major, minor } => format!("block {:?}", (major, minor)),
            EntryKind::Fifo => "fifo".to_owned(),
            EntryKind::File { .. } => {
                let mut contents = ContentHash::default();
                while let Some(chunk) = reader.next_chunk().unwrap() {
                    match chunk {
                        Chunk::Data(bytes) => contents.data(bytes),
                        Chunk::Hole(length) => contents.hole(length),
                    }
                }
                contents.finish()
            }
        };
        let Metadata {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = entry.metadata;
        let facts = Facts {
            what,
            mode: mode.into(),
            owner: (uid, gid),
            mtime: mtime.into(),
            xattrs: xattrs
                .into_iter()
                .map(|(name, value)| (printable(&name), value))
                .collect(),
            same_as: path.clone(),
            links: 0,
        };
        tree.insert(path, facts);
    }
    // The archive's order decides which name is the link: make it the first one everywhere.
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, target) in links {
        let facts = tree[&target].clone();
        groups
            .entry(facts.same_as.clone())
            .or_insert_with(|| vec![target])
            .push(path.clone());
        tree.insert(path, facts);
    }
    for group in groups.values() {
        let first = group.iter().min().unwrap();
        for path in group {
            tree.get_mut(path).unwrap().same_as = first.clone();
        }
    }
    tree.remove("");
    count_links(&mut tree);
    tree
}

/// Counts the names of each inode that is not a directory.
pub fn count_links(tree: &mut Tree) {
    let mut counts: HashMap<String, u64> = HashMap::new();
    for facts in tree.values() {
        *counts.entry(facts.same_as.clone()).or_default() += 1;
    }
    for facts in tree.values_mut().filter(|facts| facts.what != "dir") {
        facts.links = counts[&facts.same_as];
    }
}
