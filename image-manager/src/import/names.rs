//! The names in an archive of images: which there are, and where each file lies.
//!
//! Names lead to entries of the archive and never to the file system. Docker's older archives have
//! symbolic links between layers; those are followed within the archive.

use std::collections::BTreeMap;

use super::error::ImportError;
use super::section::Section;
use crate::cancel::Cancel;
use crate::layer::{MemberKind, Members};

/// Entries that an archive of images may have: 100 images of 127 layers have fewer.
const ENTRY_LIMIT: usize = 100_000;
/// Links that may lead to one another.
const LINK_LIMIT: usize = 8;

/// What a name in an archive says of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vocabulary {
    /// Every archive may have it.
    Neutral,
    /// Archives of images have it.
    Images,
    /// Archives of images do not have it.
    Other,
}

/// True for the lists of images, which an archive of images has at its top.
pub(super) fn is_list(name: &[u8]) -> bool {
    [&b"manifest.json"[..], b"oci-layout"].contains(&name)
}

/// True for what a root file system has at its top, and an archive of images does not.
pub(super) fn is_of_root(name: &[u8]) -> bool {
    let top = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    let names = [
        "bin", "dev", "etc", "lib", "opt", "proc", "root", "sbin", "usr", "var",
    ];
    names.iter().any(|known| known.as_bytes() == top)
}

/// Tells what a name says of the archive it is in.
pub(super) fn vocabulary(name: &[u8]) -> Vocabulary {
    let Ok(name) = str::from_utf8(name) else {
        return Vocabulary::Other;
    };
    let is_hex = |text: &str| {
        text.len() == 64
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_images = match name.split('/').collect::<Vec<_>>()[..] {
        [""] => return Vocabulary::Neutral,
        ["manifest.json" | "repositories" | "oci-layout" | "index.json" | "blobs"] => true,
        ["blobs", "sha256" | "sha512", ..] => true,
        [file] => {
            let stem = file.strip_prefix("sha256:").unwrap_or(file);
            let suffixes = ["", ".json", ".tar", ".tar.gz"];
            let mut stems = suffixes
                .iter()
                .filter_map(|suffix| stem.strip_suffix(suffix));
            stems.any(is_hex)
        }
        [folder, "VERSION" | "json" | "layer.tar"] => is_hex(folder),
        _ => false,
    };
    match is_images {
        true => Vocabulary::Images,
        false => Vocabulary::Other,
    }
}

/// The entries of an archive by their names.
#[derive(Debug)]
pub(super) struct Names {
    archive: Section,
    entries: BTreeMap<Vec<u8>, Place>,
}

#[derive(Clone, Debug)]
enum Place {
    File {
        offset: u64,
        size: u64,
    },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Other,
    /// Two entries of one name: programs differ in which of them they take.
    Twice,
}

impl Names {
    /// Looks through an archive.
    pub fn of(archive: &Section, cancel: &Cancel) -> Result<Self, ImportError> {
        let mut members = Members::new(archive.reader(), archive.length())?;
        let mut entries = BTreeMap::new();
        while let Some(member) = members.next_member()? {
            cancel.check()?;
            let place = match member.kind {
                MemberKind::Directory => continue,
                MemberKind::File { offset, size } => Place::File { offset, size },
                MemberKind::Symlink(target) => Place::Symlink(target),
                MemberKind::HardLink(target) => Place::HardLink(target),
                MemberKind::Other => Place::Other,
            };
            entries
                .entry(member.name)
                .and_modify(|place| *place = Place::Twice)
                .or_insert(place);
            if entries.len() > ENTRY_LIMIT {
                return Err(ImportError::Beyond {
                    limit: ENTRY_LIMIT as u64,
                    what: "entries",
                });
            }
        }
        Ok(Self {
            archive: archive.clone(),
            entries,
        })
    }

    /// True if there is something of that name.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name.as_bytes())
    }

    /// Returns a name that archives of images do not have.
    pub fn foreign(&self) -> Option<String> {
        let mut names = self.entries.keys();
        let foreign = names.find(|name| vocabulary(name) == Vocabulary::Other)?;
        Some(String::from_utf8_lossy(foreign).into_owned())
    }

    /// Returns the bytes of a file.
    pub fn file(&self, name: &str) -> Result<Section, ImportError> {
        let bad = |reason: &str| ImportError::Member {
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        let mut at = within(b"", name.as_bytes()).ok_or_else(|| bad("leads out of the archive"))?;
        for _ in 0..LINK_LIMIT {
            match self.entries.get(&at) {
                None => return Err(ImportError::Missing(name.to_owned())),
                Some(Place::File { offset, size }) => {
                    return Ok(self.archive.part(*offset, *size));
                }
                Some(Place::Symlink(target)) => {
                    let folder = match at.iter().rposition(|byte| *byte == b'/') {
                        Some(slash) => &at[..slash],
                        None => b"",
                    };
                    at = within(folder, target)
                        .ok_or_else(|| bad("is a link that leads out of the archive"))?;
                }
                Some(Place::HardLink(target)) => {
                    at = within(b"", target)
                        .ok_or_else(|| bad("is a link that leads out of the archive"))?;
                }
                Some(Place::Other) => return Err(bad("is not a file")),
                Some(Place::Twice) => return Err(bad("is there twice")),
            }
        }
        Err(bad("is a link to a link to a link"))
    }
}

/// Joins a folder and a relative path; none if that leads out of the archive.
fn within(folder: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    if path.starts_with(b"/") {
        return None;
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in folder
        .split(|b| *b == b'/')
        .chain(path.split(|b| *b == b'/'))
    {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_archives() {
        let hex = "a".repeat(64);
        let images = [
            "manifest.json",
            "blobs/sha256/x",
            &hex,
            &format!("{hex}.json"),
            &format!("{hex}/layer.tar"),
        ];
        for name in images {
            assert_eq!(vocabulary(name.as_bytes()), Vocabulary::Images, "{name}");
        }
        for name in ["bin", "etc/passwd", "blobs/x", "../manifest.json", "a.tar"] {
            assert_eq!(vocabulary(name.as_bytes()), Vocabulary::Other, "{name}");
        }
        assert_eq!(vocabulary(b""), Vocabulary::Neutral);
        assert!(is_list(b"manifest.json") && !is_list(b"a/manifest.json"));
        assert!(is_of_root(b"etc/passwd") && is_of_root(b"usr") && !is_of_root(b"etcetera"));
    }

    #[test]
    fn paths_stay_within() {
        for (folder, path, expect) in [
            ("a", "../b/layer.tar", Some("b/layer.tar")),
            ("", "./x//y", Some("x/y")),
            ("a", "../../x", None),
            ("", "../x", None),
            ("a", "/x", None),
            ("a/b", "..", Some("a")),
        ] {
            let found = within(folder.as_bytes(), path.as_bytes());
            assert_eq!(found.as_deref(), expect.map(str::as_bytes), "{path}");
        }
    }
}
