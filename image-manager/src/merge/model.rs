//! The merge once more, slow and obvious: one flat map from paths to inodes. For tests and fuzz
//! targets only.
#![allow(
    clippy::new_without_default,
    clippy::result_unit_err,
    clippy::unwrap_used,
    reason = "a model is short rather than general"
)]

use super::name::{self, Meaning};
use crate::layer::{Entry, EntryKind};
use std::collections::BTreeMap;

type Path = Vec<String>;

#[derive(Clone, Debug)]
enum Kind {
    Dir,
    Link(String),
    Other(String),
}

/// Paths, each with its inode and the layer that touched it last.
pub struct Model {
    names: BTreeMap<Path, (usize, usize)>,
    inodes: Vec<(Kind, u16, u32)>,
    layer: usize,
}

fn parts(path: &[u8]) -> Path {
    let text = String::from_utf8(path.to_vec()).unwrap();
    text.split('/')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

impl Model {
    /// Starts with an empty root directory.
    pub fn new() -> Self {
        let names = BTreeMap::from([(Path::new(), (0, 0))]);
        Self {
            names,
            inodes: vec![(Kind::Dir, 0o755, 0)],
            layer: 0,
        }
    }

    fn kind(&self, path: &Path) -> Option<Kind> {
        self.names
            .get(path)
            .map(|&(inode, _)| self.inodes[inode].0.clone())
    }

    /// Where a directory's path leads; an error if something on the way is not a directory, and
    /// whether that is because links lead in a circle.
    fn resolve(&self, path: Path) -> Result<Path, bool> {
        let mut links = 0;
        let mut done = Path::new();
        let mut ahead = path;
        while !ahead.is_empty() {
            let part = ahead.remove(0);
            if part == "." {
                continue;
            }
            if part == ".." {
                done.pop();
                continue;
            }
            done.push(part);
            match self.kind(&done) {
                None | Some(Kind::Dir) => {}
                Some(Kind::Other(_)) => return Err(false),
                Some(Kind::Link(target)) => {
                    links += 1;
                    if links > 40 {
                        return Err(true);
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    let mut next = parts(target.as_bytes());
                    next.append(&mut ahead);
                    ahead = next;
                }
            }
        }
        Ok(done)
    }

    fn make(&mut self, kind: Kind, mode: u16, uid: u32) -> usize {
        self.inodes.push((kind, mode, uid));
        self.inodes.len() - 1
    }

    /// Removes a path and everything below it, or only what this layer did not touch.
    fn remove(&mut self, path: &Path, keep_touched: bool, keep_itself: bool) {
        let layer = self.layer;
        self.names.retain(|name, &mut (_, touched)| {
            !name.starts_with(path)
                || keep_itself && name == path
                || keep_touched && touched == layer
        });
    }

    /// Puts a layer on top; after an error the entries before it have been applied.
    pub fn add_layer(&mut self, number: usize, entries: &[Entry]) -> Result<(), ()> {
        self.layer += 1;
        for (at, entry) in entries.iter().enumerate() {
            self.apply(entry, &format!("file {number}:{at}"))?;
        }
        Ok(())
    }

    fn apply(&mut self, entry: &Entry, source: &str) -> Result<(), ()> {
        let (parent, name) = match name::meaning(&entry.path).map_err(drop)? {
            Meaning::Ignored => return Ok(()),
            Meaning::Root => {
                self.inodes[0].1 = entry.metadata.mode;
                self.inodes[0].2 = entry.metadata.uid;
                return Ok(());
            }
            Meaning::Opaque { directory } => {
                if let Some(path) = self.existing_directory(directory)? {
                    self.remove(&path, true, true);
                }
                return Ok(());
            }
            Meaning::Whiteout { parent, name } => {
                if let Some(mut path) = self.existing_directory(parent)? {
                    path.push(String::from_utf8(name.to_vec()).unwrap());
                    self.remove(&path, true, false);
                }
                return Ok(());
            }
            Meaning::Name { parent, name } => (parent, name),
        };
        if entry.kind == (EntryKind::CharDevice { major: 0, minor: 0 }) {
            return Ok(());
        }
        let parent = self.resolve(parts(parent)).map_err(drop)?;
        for length in 0..=parent.len() {
            let path = parent[..length].to_vec();
            let inode = match self.names.get(&path) {
                Some(&(inode, _)) => inode,
                None => self.make(Kind::Dir, 0o755, 0),
            };
            self.names.insert(path, (inode, self.layer));
        }
        let mut path = parent;
        path.push(String::from_utf8(name.to_vec()).unwrap());
        let (mode, uid) = (entry.metadata.mode, entry.metadata.uid);
        let inode = match &entry.kind {
            EntryKind::Directory => {
                if let Some(Kind::Dir) = self.kind(&path) {
                    let inode = self.names[&path].0;
                    self.inodes[inode] = (Kind::Dir, mode, uid);
                    self.names.insert(path, (inode, self.layer));
                    return Ok(());
                }
                self.make(Kind::Dir, mode, uid)
            }
            EntryKind::HardLink(target) => {
                let (directory, last) = name::split(target);
                let mut target = self.existing_directory(directory)?.ok_or(())?;
                target.push(String::from_utf8(last.to_vec()).unwrap());
                match self.kind(&target) {
                    None | Some(Kind::Dir) => return Err(()),
                    Some(_) => self.names[&target].0,
                }
            }
            EntryKind::Symlink(target) => {
                let target = String::from_utf8(target.clone()).unwrap();
                self.make(Kind::Link(target), 0o777, uid)
            }
            _ => self.make(Kind::Other(source.to_owned()), mode, uid),
        };
        self.remove(&path, false, false);
        self.names.insert(path, (inode, self.layer));
        Ok(())
    }

    /// A directory that exists; nothing if the path ends elsewhere.
    fn existing_directory(&self, path: &[u8]) -> Result<Option<Path>, ()> {
        // A loop is an error everywhere, a file on the way only where something is made.
        match self.resolve(parts(path)) {
            Err(true) => Err(()),
            Err(false) => Ok(None),
            Ok(path) => Ok(matches!(self.kind(&path), Some(Kind::Dir)).then_some(path)),
        }
    }

    /// The same lines as the merger's.
    pub fn listing(&self) -> BTreeMap<String, String> {
        let text = |path: &Path| {
            path.iter()
                .map(|part| format!("/{part}"))
                .collect::<String>()
        };
        // In the order of the whole texts, as in the merger's listing.
        let sorted: BTreeMap<_, _> = self.names.iter().map(|(p, &(i, _))| (text(p), i)).collect();
        let mut first = BTreeMap::new();
        for (path, inode) in &sorted {
            first.entry(*inode).or_insert_with(|| path.clone());
        }
        let line = |inode: usize| {
            let (kind, mode, uid) = &self.inodes[inode];
            let what = match kind {
                Kind::Dir => "dir".to_owned(),
                Kind::Link(target) => format!("-> {target}"),
                Kind::Other(what) => what.clone(),
            };
            format!("{what} {mode:o} {uid} ={}", first[&inode])
        };
        sorted
            .iter()
            .map(|(path, &inode)| (path.clone(), line(inode)))
            .collect()
    }
}
