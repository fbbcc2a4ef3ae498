//! Removing images that nothing names any more.
//!
//! An image loses its last tag when a newer one is pulled, but jobs that were submitted before have
//! its id. So it goes in two steps: the first collection that finds it without a tag notes the time
//! in `.unused-<id>`, and one that comes after the time it is kept removes it. A tag in between makes
//! it used again.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use shifter_core::ids::ImageId;

use super::image_lock::{ImageLock, TEMPORARY_PREFIX, lock_name};
use super::lease::Waiting;
use super::{Store, StoreError, is_full};
use crate::cancel::Cancel;
use crate::files;

const MARK_PREFIX: &str = ".unused-";
/// Files that belong to an image file; without it nothing uses them.
const COMPANIONS: [&str; 2] = [".meta", ".json"];

/// An image without a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// Its id.
    pub id: ImageId,
    /// Size of its file.
    pub size: u64,
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that are gone.
    pub removed: Vec<Unused>,
    /// Images without a tag that are kept for a while.
    pub kept: Vec<Unused>,
    /// Files that belonged to images which are not there.
    pub strays: Vec<String>,
    /// Bytes that killed pulls had written; not counted in advance.
    pub unfinished_bytes: u64,
}

impl Store {
    /// Removes images that have been without a tag for `keep`; changes nothing if `dry_run`.
    pub fn collect(
        &self,
        keep: Duration,
        dry_run: bool,
        waiting: &Waiting<'_>,
    ) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        if !dry_run {
            let before = self.unfinished_bytes()?;
            self.sweep()?;
            collected.unfinished_bytes = before.saturating_sub(self.unfinished_bytes()?);
        }
        let mut tagged = BTreeSet::new();
        for path in self.index_files()? {
            // What cannot be read may name any image, so that none is known to be unused.
            let entry = self.index_entry(&path)?;
            tagged.extend(entry.map(|entry| entry.id));
        }
        let names: BTreeSet<String> = self.names(".")?.into_iter().collect();
        for id in self.ids()? {
            if waiting.cancel.is_some_and(Cancel::is_cancelled) {
                return Ok(collected);
            }
            let mark = format!("{MARK_PREFIX}{id}");
            if tagged.contains(&id) {
                if !dry_run && names.contains(&mark) {
                    self.remove_file(&mark)?;
                }
                continue;
            }
            // Somebody is at work on it, and will give it a tag.
            if names.contains(&lock_name(&id)) {
                continue;
            }
            let size = self.image_file(&id).map_or(0, |(_, size)| size);
            let unused = Unused { id, size };
            if keep.is_zero() || self.age(&mark)? >= keep {
                if dry_run || self.remove_unused(&unused.id, waiting)? {
                    collected.removed.push(unused);
                }
                if !dry_run {
                    self.remove_file(&mark)?;
                }
                continue;
            }
            if !dry_run && !names.contains(&mark) {
                match files::create(&self.dir, &mark) {
                    // A full disk must not keep anybody from collecting: its time begins later.
                    Err(error) if !is_full(&error) => {
                        return Err(StoreError::io("make", &self.path.join(&mark))(error));
                    }
                    _ => {}
                }
            }
            collected.kept.push(unused);
        }
        self.collect_strays(&names, &tagged, dry_run, &mut collected)?;
        Ok(collected)
    }

    /// Removes what is left of images whose file is not there.
    fn collect_strays(
        &self,
        names: &BTreeSet<String>,
        tagged: &BTreeSet<ImageId>,
        dry_run: bool,
        collected: &mut Collected,
    ) -> Result<(), StoreError> {
        for name in names {
            let companion = COMPANIONS.iter().find_map(|end| name.strip_suffix(end));
            let stem = companion.or_else(|| name.strip_prefix(MARK_PREFIX));
            let Some(id) = stem.and_then(|stem| ImageId::parse(stem).ok()) else {
                continue;
            };
            let has_image = || self.image_file(&id).is_some();
            let is_used = has_image() || tagged.contains(&id) || names.contains(&lock_name(&id));
            let is_gone = collected.removed.iter().any(|removed| removed.id == id);
            if is_used || is_gone {
                continue;
            }
            if !dry_run {
                // A pull may have begun since the store was listed, and its files have these names.
                let Some(_lock) = ImageLock::try_acquire(self, &id)? else {
                    continue;
                };
                if has_image() {
                    continue;
                }
                self.remove_file(name)?;
            }
            collected.strays.push(name.clone());
        }
        Ok(())
    }

    /// Returns the bytes of images that are being built, or were when their pull was killed.
    fn unfinished_bytes(&self) -> Result<u64, StoreError> {
        let names = self.names(".")?;
        let unfinished = names
            .iter()
            .filter(|name| name.starts_with(TEMPORARY_PREFIX));
        let sizes = unfinished.filter_map(|name| files::size(&self.dir, name));
        Ok(sizes.sum())
    }

    /// Returns for how long an image has been known to be unused.
    fn age(&self, mark: &str) -> Result<Duration, StoreError> {
        let file = files::open(&self.dir, mark).map_err(StoreError::io("examine", &self.path))?;
        let Some(file) = file else {
            return Ok(Duration::ZERO);
        };
        let modified = file.metadata().and_then(|meta| meta.modified());
        let modified = modified.map_err(StoreError::io("examine", &self.path.join(mark)))?;
        Ok(SystemTime::now()
            .duration_since(modified)
            .unwrap_or_default())
    }

    /// Removes an image unless it has got a tag meanwhile.
    fn remove_unused(&self, id: &ImageId, waiting: &Waiting<'_>) -> Result<bool, StoreError> {
        match self.remove_image(id, waiting) {
            Ok(removed) => Ok(removed.is_some()),
            Err(StoreError::HasTags { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn remove_file(&self, name: &str) -> Result<(), StoreError> {
        files::remove(&self.dir, name).map_err(StoreError::io("remove", &self.path.join(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn id(digit: char) -> ImageId {
        ImageId::parse(&digit.to_string().repeat(64)).unwrap()
    }

    fn put(dir: &Path, digit: char, tag: Option<&str>) {
        let id = id(digit);
        std::fs::write(dir.join(format!("{id}.squashfs")), b"hsqs").unwrap();
        std::fs::write(dir.join(format!("{id}.meta")), b"FORMAT: squashfs\n").unwrap();
        if let Some(tag) = tag {
            std::fs::create_dir_all(dir.join("index/docker")).unwrap();
            let entry = serde_json::json!({"reference": format!("docker:{tag}:1"), "id": id,
                "digest": null, "pulled": 0, "size": 4});
            std::fs::write(
                dir.join(format!("index/docker/{tag}%3A1")),
                entry.to_string(),
            )
            .unwrap();
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "index")
            .collect();
        names.sort();
        names
    }

    fn ids(unused: &[Unused]) -> Vec<ImageId> {
        unused.iter().map(|unused| unused.id.clone()).collect()
    }

    #[test]
    fn images_without_tags_go_after_a_while() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::create_user(home.path()).unwrap();
        let dir = home.path().join(".shifter");
        put(&dir, 'a', Some("x"));
        put(&dir, 'b', None);
        let before = names(&dir);
        let dry = store.collect(7 * DAY, true, &Waiting::QUIET).unwrap();
        assert_eq!(
            (ids(&dry.kept), names(&dir)),
            (vec![id('b')], before.clone())
        );

        let first = store.collect(7 * DAY, false, &Waiting::QUIET).unwrap();
        assert_eq!((ids(&first.kept), first.removed), (vec![id('b')], vec![]));
        let mark = dir.join(format!(".unused-{}", id('b')));
        let old = SystemTime::now() - 8 * DAY;
        std::fs::File::options()
            .append(true)
            .open(&mark)
            .unwrap()
            .set_modified(old)
            .unwrap();
        // A tag makes it used again, and the time begins anew.
        put(&dir, 'b', Some("y"));
        let again = store.collect(7 * DAY, false, &Waiting::QUIET).unwrap();
        assert_eq!((again.kept, again.removed), (vec![], vec![]));
        assert!(!mark.exists());
        std::fs::remove_file(dir.join("index/docker/y%3A1")).unwrap();
        let anew = store.collect(7 * DAY, false, &Waiting::QUIET).unwrap();
        assert_eq!(ids(&anew.kept), [id('b')]);
        std::fs::File::options()
            .append(true)
            .open(&mark)
            .unwrap()
            .set_modified(old)
            .unwrap();
        let last = store.collect(7 * DAY, false, &Waiting::QUIET).unwrap();
        assert_eq!(ids(&last.removed), [id('b')]);
        let left = ["squashfs", "meta"].map(|end| format!("{}.{end}", id('a')));
        assert!(names(&dir).iter().all(|name| left.contains(name)));
    }

    #[test]
    fn at_once_if_so_wished_and_strays_too() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::create_user(home.path()).unwrap();
        let dir = home.path().join(".shifter");
        put(&dir, 'b', None);
        std::fs::write(dir.join(format!("{}.meta", id('c'))), b"").unwrap();
        std::fs::write(dir.join(format!(".unused-{}", id('c'))), b"").unwrap();
        std::fs::write(dir.join("notes.json"), b"{}").unwrap();
        let done = store
            .collect(Duration::ZERO, false, &Waiting::QUIET)
            .unwrap();
        assert_eq!((ids(&done.removed), done.strays.len()), (vec![id('b')], 2));
        assert_eq!(names(&dir), ["notes.json"]);
    }

    #[test]
    fn what_a_killed_pull_had_written_is_counted() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::create_user(home.path()).unwrap();
        let dir = home.path().join(".shifter");
        let dead = dir.join(format!(".tmp-{}-0123.squashfs", id('c')));
        std::fs::write(&dead, [0; 5000]).unwrap();
        let workshop = store.workshop(&id('d'), "x", &Waiting::QUIET).unwrap();
        workshop.begin().unwrap().set_len(70_000).unwrap();
        let count = |dry_run| {
            let done = store.collect(DAY, dry_run, &Waiting::QUIET).unwrap();
            (done.unfinished_bytes, dead.exists())
        };
        assert_eq!(count(true), (0, true));
        assert_eq!(count(false), (5000, false));
    }

    #[test]
    fn what_a_pull_has_just_written_is_no_stray() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::create_user(home.path()).unwrap();
        let meta = format!("{}.meta", id('c'));
        std::fs::write(home.path().join(".shifter").join(&meta), b"").unwrap();
        // Listed before the pull took its lease.
        let names = BTreeSet::from([meta.clone()]);
        let collect = || {
            let mut collected = Collected::default();
            let done = store.collect_strays(&names, &BTreeSet::new(), false, &mut collected);
            done.map(|()| collected.strays)
        };
        let pull = store.lock(&id('c'), &Waiting::QUIET).unwrap();
        assert_eq!(collect().unwrap(), Vec::<String>::new());
        drop(pull);
        assert_eq!(collect().unwrap(), [meta]);
    }

    #[test]
    fn nothing_goes_while_a_tag_cannot_be_read() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::create_user(home.path()).unwrap();
        let dir = home.path().join(".shifter");
        put(&dir, 'b', Some("x"));
        std::fs::write(dir.join("index/docker/x%3A1"), b"{").unwrap();
        assert!(
            store
                .collect(Duration::ZERO, false, &Waiting::QUIET)
                .is_err()
        );
        assert_eq!(names(&dir).len(), 2);
    }
}
