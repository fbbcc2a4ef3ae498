//! Image stores: the site's, and each user's own in `~/.shifter`.
//!
//! ```text
//! <id>.squashfs or <id>.erofs  <id>.meta  index/<type>/<escaped reference>     see shifter_core::store
//! <id>.json      where the image came from, see [`ImageRecord`]
//! .lock-<id>     lease, held while an image is published or removed, see `lease`
//! .lock-<id>-<source>  lease, held while an image is built from a source; taken before .lock-<id>
//! .new-<id>      the image is not yet one: tells what a killed pull left from what was there
//! .tmp-<id>*.*   files of an image that is being built, owned by whoever holds the lease of that name
//! .unused-<id>  says since when an image has had no tag, see `gc`
//! .lock-index    lease, held while a tag is written or removed; taken after .lock-<id>, never before
//! .tmp-index     a tag that is being written
//! .cache         blobs, see crate::cache (`cache` in a user's store)
//! ```
//!
//! This module opens and reads stores; `image_lock` and `write` change them. A user's store serves only its
//! owner. Nothing here decides what may be *mounted*: that is judged again on the node.

mod acl;
mod error;
mod gc;
mod image_lock;
pub(crate) mod lease;
mod record;
mod verify;
mod workshop;
mod write;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use shifter_core::ids::ImageId;
use shifter_core::meta::{self, ImageMeta};
use shifter_core::reference::{ImageRef, TypeRules};
use shifter_core::store::{self as layout, IndexEntry};

use crate::files;

pub use acl::{AclError, Audience};
pub(crate) use error::is_full;
pub use error::{StoreError, megabytes};
pub use gc::{Collected, Unused};
pub use image_lock::ImageLock;
pub use lease::{Owner, Waiting};
pub use record::{ImageRecord, LayerRecord};
pub use verify::{Fault, Finding};
pub use workshop::{Sealed, Workshop};
pub use write::Removed;

/// Whose store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// The store that the whole site uses.
    Site,
    /// The store of the user who runs this program.
    User,
}

impl StoreKind {
    /// Returns the word used on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            StoreKind::Site => "site",
            StoreKind::User => "user",
        }
    }
}

/// Returns the time as tags and records have it, in seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

/// Who wants to see images.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// Real uid.
    pub uid: u32,
    /// All groups.
    pub gids: Vec<u32>,
}

impl Viewer {
    /// Describes the user who runs this program.
    pub fn current() -> io::Result<Self> {
        let mut gids: Vec<u32> = rustix::process::getgroups()?
            .iter()
            .map(|g| g.as_raw())
            .collect();
        gids.push(rustix::process::getgid().as_raw());
        Ok(Self {
            uid: rustix::process::getuid().as_raw(),
            gids,
        })
    }
}

/// An image as a store has it.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// The store it is in.
    pub kind: StoreKind,
    /// Its id.
    pub id: ImageId,
    /// The tag it was found by, in canonical form; none for an image without one.
    pub reference: Option<String>,
    /// The image file.
    pub path: PathBuf,
    /// Size of the image file, in bytes.
    pub size: u64,
    /// Digest it was pulled by.
    pub digest: Option<String>,
    /// Time of the pull, in seconds since 1970.
    pub pulled: Option<u64>,
    /// What the image says of itself.
    pub meta: ImageMeta,
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    kind: StoreKind,
    path: PathBuf,
    dir: OwnedFd,
    owner: u32,
    cache_dir: Option<PathBuf>,
    cache_limit: u64,
}

impl Store {
    /// Opens the site store for reading; none if it does not exist yet.
    pub fn open_site(path: &Path) -> Result<Option<Self>, StoreError> {
        Self::open(StoreKind::Site, path, true)
    }

    /// Opens the user's own store for reading; none if it does not exist yet.
    pub fn open_user(home: &Path) -> Result<Option<Self>, StoreError> {
        let Some(store) = Self::open(StoreKind::User, &home.join(".shifter"), false)? else {
            return Ok(None);
        };
        store.insist_on_owner(rustix::process::geteuid().as_raw())?;
        Ok(Some(store))
    }

    /// Opens the site store for writing and makes it if only the last directory is missing.
    pub fn create_site(path: &Path, image_owner: u32) -> Result<Self, StoreError> {
        if rustix::process::geteuid().as_raw() != image_owner {
            return Err(StoreError::NotOwner { owner: image_owner });
        }
        let store = Self::create(StoreKind::Site, path, 0o755)?;
        store.insist_on_owner(image_owner)?;
        Ok(store)
    }

    /// Opens the user's own store for writing and makes it if it is missing.
    pub fn create_user(home: &Path) -> Result<Self, StoreError> {
        let store = Self::create(StoreKind::User, &home.join(".shifter"), 0o700)?;
        store.insist_on_owner(rustix::process::geteuid().as_raw())?;
        Ok(store)
    }

    fn open(kind: StoreKind, path: &Path, follow: bool) -> Result<Option<Self>, StoreError> {
        let dir = match files::open_dir(path, follow) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open", path)(error)),
        };
        let owner = rustix::fs::fstat(&dir)
            .map_err(|error| StoreError::io("examine", path)(error.into()))?
            .st_uid;
        Ok(Some(Self {
            kind,
            path: path.to_owned(),
            dir,
            owner,
            cache_dir: None,
            cache_limit: u64::MAX,
        }))
    }

    fn create(kind: StoreKind, path: &Path, mode: u32) -> Result<Self, StoreError> {
        let follow = kind == StoreKind::Site;
        if let Some(store) = Self::open(kind, path, follow)? {
            return Ok(store);
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
        else {
            let rule = "its path is not a directory's name".to_owned();
            return Err(StoreError::Untrusted {
                path: path.to_owned(),
                rule,
            });
        };
        files::open_dir(parent, true)
            .and_then(|parent| files::make_dir(parent, name, mode))
            .map_err(StoreError::io("make the directory", path))?;
        Self::open(kind, path, follow)?
            .ok_or_else(|| StoreError::io("open", path)(io::ErrorKind::NotFound.into()))
    }

    /// Refuses a store that somebody else could have filled.
    fn insist_on_owner(&self, uid: u32) -> Result<(), StoreError> {
        let untrusted = |rule: String| StoreError::Untrusted {
            path: self.path.clone(),
            rule,
        };
        if self.owner != uid {
            return Err(untrusted(format!(
                "it belongs to uid {}, not {uid}",
                self.owner
            )));
        }
        let found = rustix::fs::fstat(&self.dir)
            .map_err(|error| StoreError::io("examine", &self.path)(error.into()))?;
        if found.st_mode & 0o022 != 0 {
            let mode = found.st_mode & 0o7777;
            return Err(untrusted(format!("its mode {mode:04o} lets others write")));
        }
        Ok(())
    }

    /// Returns whose store it is.
    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// Returns the directory, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says where the store's cache is, if not inside of it, and how large it may be.
    pub fn with_cache(mut self, dir: Option<PathBuf>, limit: u64) -> Self {
        (self.cache_dir, self.cache_limit) = (dir, limit);
        self
    }

    /// Returns how many bytes the cache may keep between pulls.
    pub fn cache_limit(&self) -> u64 {
        self.cache_limit
    }

    /// Returns the directory of the blob cache, made if it is missing.
    pub(crate) fn cache_dir(&self) -> Result<(OwnedFd, PathBuf), StoreError> {
        if let Some(path) = &self.cache_dir {
            // Not through a link, whoever can put one there.
            let place = Self::create(StoreKind::User, path, 0o700)?;
            place.insist_on_owner(self.owner)?;
            return Ok((place.dir, place.path));
        }
        let name = self.cache_name();
        let path = self.path.join(name);
        let dir = files::make_dir(&self.dir, name, 0o700)
            .map_err(StoreError::io("make the directory", &path))?;
        Ok((dir, path))
    }

    /// True if its file system is mounted so that nothing can be written.
    pub(crate) fn is_read_only(&self) -> bool {
        let found = rustix::fs::fstatvfs(&self.dir);
        found.is_ok_and(|found| found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    }

    /// Finds the image of a tag if nothing of the tag, the image and who may see it would change; its
    /// path and size.
    pub(crate) fn find_unchanged(
        &self,
        reference: &ImageRef,
        (id, digest): (&ImageId, &str),
        wanted: &ImageMeta,
        may_have: impl FnOnce(&ImageMeta, Option<&ImageRecord>) -> bool,
    ) -> Result<Option<(PathBuf, u64)>, StoreError> {
        let entry = self.entry(reference)?;
        let is_same = entry.is_some_and(|e| e.id == *id && e.digest.as_deref() == Some(digest));
        let (Some(meta), Some((name, size))) = (self.meta(id)?, self.image_file(id)) else {
            return Ok(None);
        };
        let is_as_wide = acl::union(&meta, wanted) == meta;
        let may_have = may_have(&meta, self.record(id)?.as_ref());
        Ok((is_same && is_as_wide && may_have && size > 0).then(|| (self.path.join(name), size)))
    }

    /// True if the store has a blob cache.
    pub(crate) fn has_cache(&self) -> bool {
        let path = self.cache_dir.clone();
        path.unwrap_or_else(|| self.path.join(self.cache_name()))
            .is_dir()
    }

    fn cache_name(&self) -> &'static str {
        match self.kind {
            StoreKind::Site => ".cache",
            StoreKind::User => "cache",
        }
    }

    /// True if `dir` and the images are on one file system.
    pub(crate) fn is_on_disk_of(&self, dir: &OwnedFd) -> io::Result<bool> {
        Ok(rustix::fs::fstat(dir)?.st_dev == rustix::fs::fstat(&self.dir)?.st_dev)
    }

    /// Finds an image; one that `viewer` may not use looks exactly like one that is not there.
    pub fn lookup(
        &self,
        reference: &ImageRef,
        viewer: &Viewer,
    ) -> Result<Option<StoredImage>, StoreError> {
        if let Some(id) = reference.image_id() {
            return self.image(id, None, viewer);
        }
        match self.entry(reference)? {
            Some(entry) => self.image(&entry.id.clone(), Some(entry), viewer),
            None => Ok(None),
        }
    }

    /// Lists every image that `viewer` may use, by reference, those without a tag last; and what
    /// could not be read.
    pub fn list(
        &self,
        rules: &TypeRules<'_>,
        viewer: &Viewer,
    ) -> Result<(Vec<StoredImage>, Vec<StoreError>), StoreError> {
        let (mut images, mut problems) = (Vec::new(), Vec::new());
        let mut keep = |found: Result<Option<StoredImage>, StoreError>| match found {
            Ok(image) => images.extend(image),
            Err(problem) => problems.push(problem),
        };
        let mut tagged = BTreeSet::new();
        for entry in self.entries(rules)? {
            let id = entry.id.clone();
            keep(self.image(&id, Some(entry), viewer));
            tagged.insert(id);
        }
        for id in self.ids()?.into_iter().filter(|id| !tagged.contains(id)) {
            keep(self.image(&id, None, viewer));
        }
        Ok((images, problems))
    }

    /// Reads the entry of a tag.
    fn entry(&self, reference: &ImageRef) -> Result<Option<IndexEntry>, StoreError> {
        let record = |path: PathBuf| move |source| StoreError::Record { path, source };
        let name = layout::index_path(reference).map_err(record(self.path.clone()))?;
        let path = self.path.join(&name);
        let bytes = files::read(&self.dir, &name, layout::ENTRY_LIMIT)
            .map_err(StoreError::io("read", &path))?;
        match bytes {
            Some(bytes) => Ok(Some(
                IndexEntry::parse(&bytes, reference).map_err(record(path))?,
            )),
            None => Ok(None),
        }
    }

    fn image(
        &self,
        id: &ImageId,
        entry: Option<IndexEntry>,
        viewer: &Viewer,
    ) -> Result<Option<StoredImage>, StoreError> {
        let (Some(meta), Some((name, size))) = (self.meta(id)?, self.image_file(id)) else {
            return Ok(None);
        };
        if self.kind == StoreKind::Site && !meta.permits(viewer.uid, &viewer.gids, Some(self.owner))
        {
            return Ok(None);
        }
        let (reference, digest, pulled) = match entry {
            Some(entry) => (Some(entry.reference), entry.digest, Some(entry.pulled)),
            None => (None, None, None),
        };
        let (kind, path) = (self.kind, self.path.join(name));
        Ok(Some(StoredImage {
            kind,
            id: id.clone(),
            reference,
            path,
            size,
            digest,
            pulled,
            meta,
        }))
    }

    /// Reads an image's metadata; what may not be read is as good as missing.
    fn meta(&self, id: &ImageId) -> Result<Option<ImageMeta>, StoreError> {
        let name = layout::meta_file(id);
        let bytes = match files::read(&self.dir, &name, meta::SIZE_LIMIT as u64) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &self.path.join(name))(error)),
        };
        let parsed = ImageMeta::parse(&bytes);
        parsed.map(Some).map_err(|source| StoreError::Meta {
            id: id.to_string(),
            source,
        })
    }

    /// Reads what is known of where an image came from; what may not be read is as good as missing.
    pub fn record(&self, id: &ImageId) -> Result<Option<ImageRecord>, StoreError> {
        let path = self.path.join(record::file_name(id));
        record::read(&self.dir, id).map_err(StoreError::io("read", &path))
    }

    /// Reads the entries that stand where their reference belongs, by reference. What is no entry is
    /// left out: whoever looks that reference up is told.
    fn entries(&self, rules: &TypeRules<'_>) -> Result<Vec<IndexEntry>, StoreError> {
        let mut found = Vec::new();
        for path in self.index_files()? {
            let bytes = files::read(&self.dir, &path, layout::ENTRY_LIMIT)
                .ok()
                .flatten();
            let entry = bytes.and_then(|b| serde_json::from_slice::<IndexEntry>(&b).ok());
            let is_in_place = |entry: &IndexEntry| {
                ImageRef::parse(&entry.reference, rules)
                    .is_ok_and(|r| layout::index_path(&r).is_ok_and(|wanted| wanted == path))
            };
            found.extend(entry.filter(is_in_place));
        }
        found.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(found)
    }

    /// Lists the paths of all index entries below the store.
    fn index_files(&self) -> Result<Vec<String>, StoreError> {
        let mut found = Vec::new();
        for kind in self.names("index")? {
            let folder = format!("index/{kind}");
            found.extend(
                self.names(&folder)?
                    .iter()
                    .map(|name| format!("{folder}/{name}")),
            );
        }
        Ok(found)
    }

    fn ids(&self) -> Result<Vec<ImageId>, StoreError> {
        let names = self.names(".")?;
        let stem = |name: &String| {
            let (stem, end) = name.rsplit_once('.')?;
            layout::FORMATS.contains(&end).then(|| stem.to_owned())
        };
        let stems = names.iter().filter_map(stem);
        let ids = stems.filter_map(|stem| ImageId::parse(&stem).ok());
        Ok(ids.collect())
    }

    /// Finds the file of an image, whatever its format; its name and size.
    fn image_file(&self, id: &ImageId) -> Option<(String, u64)> {
        layout::FORMATS.iter().find_map(|format| {
            let name = layout::image_file(id, format);
            let size = files::size(&self.dir, &name)?;
            Some((name, size))
        })
    }

    /// Lists a directory of the store; a missing one is empty.
    fn names(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let listed = files::open_subdir(&self.dir, folder).and_then(files::names);
        match listed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(StoreError::io("list", &self.path.join(folder))),
        }
    }
}

#[cfg(test)]
mod tests;
