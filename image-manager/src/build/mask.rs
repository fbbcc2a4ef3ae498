//! What upper layers hide of lower ones, as far as names alone can tell.
//!
//! Layers come top first, so the exact answer is not known yet when a file's bytes pass by: links
//! on its path, or to it, may be in a layer still to come. This is a guess that is nearly always
//! right, made from digests of paths; the merge decides in the end, and a wrong guess costs dead
//! bytes in the image or a second look at a layer, never a wrong image.

use crate::layer::{Entry, EntryKind};
use crate::merge::{Meaning, meaning, split};
use std::collections::{HashMap, HashSet};

/// Whatever lower layers have at this path is hidden, unless both are directories.
const AT: u8 = 1;
/// Whatever lower layers have below this path is hidden.
const BELOW: u8 = 2;
/// A hard link above needs what lower layers have at this path.
const NEEDED: u8 = 4;

/// What the layers seen so far hide of those below them.
#[derive(Default)]
pub(super) struct Mask {
    paths: HashMap<u64, u8>,
    /// Of the layer being read, which hides nothing of itself.
    pending: Vec<(u64, u8)>,
    /// The directory that was asked about last: neighbours in an archive mostly share theirs.
    directory: Option<Directory>,
}

struct Directory {
    path: Vec<u8>,
    digest: u64,
    is_hidden: bool,
}

impl Mask {
    /// Takes an entry of the layer being read.
    pub(super) fn note(&mut self, entry: &Entry) {
        let path = &entry.path;
        // Names that make no sense are for the merge to refuse.
        match meaning(path) {
            Err(_) | Ok(Meaning::Root | Meaning::Ignored) => {}
            Ok(Meaning::Opaque { directory }) => self.pending.push((digest(directory), BELOW)),
            Ok(Meaning::Whiteout { parent, name }) => {
                let hidden = child(digest(parent), name);
                self.pending.push((hidden, AT | BELOW));
            }
            Ok(Meaning::Name { .. }) => match &entry.kind {
                // The merge ignores it.
                EntryKind::CharDevice { major: 0, minor: 0 } => {}
                EntryKind::Directory => self.pending.push((digest(path), AT)),
                EntryKind::HardLink(target) => {
                    self.pending.push((digest(path), AT | BELOW));
                    self.pending.push((digest(target), NEEDED));
                }
                _ => self.pending.push((digest(path), AT | BELOW)),
            },
        }
    }

    /// Ends a layer: what comes now lies below it.
    pub(super) fn end_layer(&mut self) {
        self.directory = None;
        let own = |(path, flags): &(u64, u8)| (*flags & BELOW != 0).then_some(*path);
        // Mostly a link's target is in its own layer.
        let own: HashSet<u64> = match self.pending.iter().any(|(_, flags)| *flags == NEEDED) {
            true => self.pending.iter().filter_map(own).collect(),
            false => HashSet::new(),
        };
        for &(path, flags) in self.pending.iter().filter(|(_, flags)| *flags != NEEDED) {
            let known = self.paths.entry(path).or_default();
            *known = *known & !NEEDED | flags;
        }
        for &(path, flags) in self.pending.iter().filter(|(_, flags)| *flags == NEEDED) {
            if !own.contains(&path) {
                *self.paths.entry(path).or_default() |= flags;
            }
        }
        self.pending = Vec::new();
    }

    /// Whether the bytes of a file at this path are probably not needed.
    pub(super) fn hides(&mut self, path: &[u8]) -> bool {
        let Ok(Meaning::Name { parent, name }) = meaning(path) else {
            return true;
        };
        let (digest, is_hidden) = self.directory(parent);
        match self.paths.get(&child(digest, name)) {
            Some(flags) if flags & NEEDED != 0 => false,
            Some(flags) if flags & AT != 0 => true,
            _ => is_hidden,
        }
    }

    fn directory(&mut self, path: &[u8]) -> (u64, bool) {
        if let Some(known) = self.directory.as_ref().filter(|known| known.path == path) {
            return (known.digest, known.is_hidden);
        }
        let is_opaque = |digest: u64| {
            self.paths
                .get(&digest)
                .is_some_and(|flags| flags & BELOW != 0)
        };
        let mut digest = ROOT;
        let mut is_hidden = is_opaque(digest);
        for name in names(path) {
            digest = child(digest, name);
            is_hidden |= is_opaque(digest);
        }
        let path = path.to_vec();
        self.directory = Some(Directory {
            path,
            digest,
            is_hidden,
        });
        (digest, is_hidden)
    }
}

/// FNV-1a, 64 bits. Paths made to collide do no harm, see above.
const ROOT: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

fn child(directory: u64, name: &[u8]) -> u64 {
    let step = |state: u64, byte: &u8| (state ^ u64::from(*byte)).wrapping_mul(PRIME);
    step(name.iter().fold(directory, step), &b'/')
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
}

fn digest(path: &[u8]) -> u64 {
    let (parent, name) = split(path);
    let directory = names(parent).fold(ROOT, child);
    match name {
        b"" => directory,
        _ => child(directory, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Metadata;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.as_bytes().to_vec(),
            kind,
            metadata: Metadata::default(),
        }
    }

    fn file(path: &str) -> Entry {
        entry(path, EntryKind::File { size: 1 })
    }

    /// Which of `paths` are hidden below `layers`, top first.
    fn hidden<'a>(layers: &[Vec<Entry>], paths: &[&'a str]) -> Vec<&'a str> {
        let mut mask = Mask::default();
        for layer in layers {
            for entry in layer {
                mask.note(entry);
                assert!(!mask.hides(b"only/lower/layers"));
            }
            mask.end_layer();
        }
        let mut paths = paths.to_vec();
        paths.retain(|path| mask.hides(path.as_bytes()));
        paths
    }

    #[test]
    fn names_hide_what_lies_below() {
        let paths = [
            "a", "a/b", "a/b/c", "ab", "a/bc", "d", "d/e", "d/e/f", "l", "l/x", "t",
        ];
        let link = |target: &str| EntryKind::HardLink(target.as_bytes().to_vec());
        for (what, layers, want) in [
            ("nothing", vec![vec![]], vec![]),
            (
                "a file",
                vec![vec![file("a")]],
                vec!["a", "a/b", "a/b/c", "a/bc"],
            ),
            (
                "a nested one",
                vec![vec![file("a/b")]],
                vec!["a/b", "a/b/c"],
            ),
            (
                "a directory",
                vec![vec![entry("d", EntryKind::Directory)]],
                vec!["d"],
            ),
            (
                "a link",
                vec![vec![entry("l", EntryKind::Symlink(b"d".to_vec()))]],
                vec!["l", "l/x"],
            ),
            (
                "whiteouts",
                vec![vec![file(".wh.a"), file("d/.wh.e")]],
                vec!["a", "a/b", "a/b/c", "a/bc", "d/e", "d/e/f"],
            ),
            (
                "an opaque directory",
                vec![vec![file("d/.wh..wh..opq")]],
                vec!["d/e", "d/e/f"],
            ),
            (
                "an opaque root",
                vec![vec![file(".wh..wh..opq")]],
                paths.to_vec(),
            ),
            (
                "another file system's whiteout",
                vec![vec![entry(
                    "a",
                    EntryKind::CharDevice { major: 0, minor: 0 },
                )]],
                vec![],
            ),
            (
                "a hard link",
                vec![vec![entry("l", link("t"))]],
                vec!["l", "l/x"],
            ),
            (
                "a hard link's target, deleted as well",
                vec![vec![file(".wh.t")], vec![entry("l", link("t"))]],
                vec!["l", "l/x"],
            ),
            (
                "a hard link's target of its own layer",
                vec![vec![file("t"), entry("l", link("t"))]],
                vec!["l", "l/x", "t"],
            ),
            (
                "a target that a layer between has",
                vec![vec![entry("l", link("t"))], vec![file("t")]],
                vec!["l", "l/x", "t"],
            ),
        ] {
            assert_eq!(hidden(&layers, &paths), want, "{what}");
        }
    }

    #[test]
    fn markers_have_no_bytes_of_use() {
        let mut mask = Mask::default();
        for path in [".wh.a", "d/.wh..wh..opq", ".wh..wh.plnk/1.2", ".wh.", ""] {
            assert!(mask.hides(path.as_bytes()), "{path}");
        }
    }
}
