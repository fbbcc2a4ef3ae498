//! Opening an image of a store: verified as a descriptor, then mounted.
//!
//! The site store belongs to root or its configured owner, and all users share what is mounted
//! from it. A store that a user owns is looked at with that user's eyes only, serves that user
//! only, and its images get a loop device and superblock of their own each time.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use shifter_core::config::{Config, UserImages};
use shifter_core::ids::ImageId;
use shifter_core::manifest::ResolvedImage;
use shifter_core::meta::ImageMeta;
use shifter_core::reference::{ImageRef, ImageType};
use shifter_core::sanitize;
use shifter_core::store::{self, IndexEntry};
use shifter_core::trusted::{self, TrustError};

use crate::caller::Caller;
use crate::error::{Context, Error, Result};
use crate::fsuser::as_user;
use crate::loopdev::{self, LoopDevice};
use crate::mnt::{self, Kept};
use crate::process::leave_to_exec;
use crate::state::RunDir;
use crate::watch::{Awaited, Watch};
use crate::{filesystem, host_image, superblock};

/// Bytes that a `.meta` file may have.
const META_LIMIT: u64 = 1 << 20;

const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

/// An open image store.
pub struct Store {
    dir: OwnedFd,
    /// Who may have written its files.
    owners: Vec<u32>,
    /// The user as whom it is read; the site's is read as root.
    reader: Option<Caller>,
    /// Why its erofs images are not mounted; none if they are.
    no_erofs: Option<&'static str>,
}

/// An image, opened and verified.
#[derive(Debug)]
pub struct Image {
    /// The id; of an image that is in no store, its reference.
    pub id: String,
    /// How the user named it.
    pub reference: String,
    /// Its metadata.
    pub meta: ImageMeta,
    /// The metadata as stored.
    pub meta_bytes: Vec<u8>,
    pub(crate) source: Source,
}

/// Where an image's files come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file of the site's store: all users share its superblock.
    SiteFile(OwnedFd),
    /// A file that the user may have written.
    UserFile(OwnedFd),
    /// A directory.
    Tree(OwnedFd),
    /// The host's own tree, with everything that is mounted in it.
    Host,
    /// A mount that was made without privilege, in the user's own namespaces.
    Mounted(OwnedFd),
}

/// A user's own store, if there is one; or why it is not fit to be one.
type OwnStore = std::result::Result<Option<Store>, &'static str>;

/// What a reference leads to.
pub enum Found {
    /// An image to be mounted.
    Image(Box<Image>),
    /// An image that is the user's own, which only a process without privilege may mount.
    OnlyRootless,
}

impl Store {
    /// Opens the site store.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::Step`]: the store is missing (not mounted?) or not trusted.
    /// This is the node's failure, never the user's.
    pub fn site(config: &Config) -> Result<Self> {
        let owners = vec![0, config.store.image_owner];
        let path = trusted::audit(&config.store.path, &owners).map_err(Error::Store)?;
        let dir = rustix::fs::open(&path, DIR, Mode::empty()).step("open image store", &path)?;
        // An empty mount point is not an empty store: every pull leaves an index.
        rustix::fs::statat(&dir, "index", AtFlags::SYMLINK_NOFOLLOW)
            .step("find the index of image store", &path)?;
        Ok(Self {
            dir,
            owners,
            reader: None,
            no_erofs: (!config.store.mounts_erofs()).then_some(filesystem::NOT_AT_SITE),
        })
    }

    /// Opens the store of `caller` at `path`; nothing if there is none, and the reason if it is not
    /// fit to be one.
    fn of_user(caller: &Caller, path: &str) -> Result<OwnStore> {
        let open =
            || rustix::fs::openat2(CWD, path, DIR, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
        let dir = match as_user(caller.uid, caller.gid, &caller.groups, open)? {
            Ok(dir) => dir,
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Err("it is not a directory")),
            // Also a home that nobody may look into.
            Err(_) => return Ok(Ok(None)),
        };
        let stat = rustix::fs::fstat(&dir).step("examine", path)?;
        if stat.st_uid != caller.uid {
            return Ok(Err("it belongs to somebody else"));
        }
        if stat.st_mode & 0o022 != 0 {
            return Ok(Err("others can write it"));
        }
        Ok(Ok(Some(Self {
            dir,
            owners: vec![caller.uid],
            reader: Some(caller.clone()),
            no_erofs: Some(filesystem::NOT_OF_USERS),
        })))
    }

    /// Opens the image with this id, if `uid` with `gids` may use it.
    ///
    /// # Errors
    /// [`Error::NoImage`] if there is none or the user may not have it; [`Error::BadImage`].
    pub fn image(&self, id: &ImageId, name: &str, uid: u32, gids: &[u32]) -> Result<Image> {
        let missing = || Error::NoImage(name.to_owned());
        let bad = |reason: &str| Error::BadImage {
            image: name.to_owned(),
            reason: reason.into(),
        };
        let (meta_file, size) = self
            .regular(&store::meta_file(id), name)?
            .ok_or_else(missing)?;
        let meta_bytes = read_all(meta_file, size, META_LIMIT).ok_or_else(|| bad("no metadata"))?;
        let meta = ImageMeta::parse(&meta_bytes).map_err(|error| bad(&error.to_string()))?;
        if !meta.permits(uid, gids, None) {
            return Err(missing());
        }
        filesystem::judge(&meta.format, self.no_erofs).map_err(bad)?;
        let (file, _) = self
            .regular(&store::image_file(id, &meta.format), name)?
            .ok_or_else(missing)?;
        let source = match self.reader {
            None => Source::SiteFile(file),
            Some(_) => Source::UserFile(file),
        };
        Ok(Image {
            id: id.to_string(),
            reference: name.to_owned(),
            meta,
            meta_bytes,
            source,
        })
    }

    /// Finds the id that a reference has in this store.
    pub fn resolve(&self, reference: &ImageRef) -> Result<ImageId> {
        let name = reference.canonical();
        if let Some(id) = reference.image_id() {
            return Ok(id.clone());
        }
        let bad = |reason: String| Error::BadImage {
            image: name.clone(),
            reason,
        };
        let path = store::index_path(reference).map_err(|error| bad(error.to_string()))?;
        let (file, size) = self
            .regular(&path, &name)?
            .ok_or_else(|| Error::NoImage(name.clone()))?;
        let bytes = read_all(file, size, store::ENTRY_LIMIT).unwrap_or_default();
        let entry = IndexEntry::parse(&bytes, reference).map_err(|e| bad(e.to_string()))?;
        Ok(entry.id)
    }

    /// Opens a regular file of the store that only the store's owners can have written; returns it
    /// with its size.
    fn regular(&self, path: &str, image: &str) -> Result<Option<(OwnedFd, u64)>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let open = || rustix::fs::openat2(&self.dir, path, flags, Mode::empty(), resolve);
        let opened = match &self.reader {
            Some(caller) => as_user(caller.uid, caller.gid, &caller.groups, open)?,
            None => open(),
        };
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).step("open", path),
        };
        let stat = rustix::fs::fstat(&fd).step("examine", path)?;
        match untrusted(&stat, &self.owners) {
            None => Ok(Some((fd, u64::try_from(stat.st_size).unwrap_or_default()))),
            Some(reason) => Err(Error::BadImage {
                image: image.to_owned(),
                reason: reason.to_owned(),
            }),
        }
    }
}

/// Finds the image that a user asks for by reference: a file or directory of the host, or an image
/// in the site store, else, where the site allows it, in the user's own.
pub fn open_for_user(
    config: &Config,
    reference: &ImageRef,
    caller: &Caller,
    home: &str,
    is_rootless: bool,
    watch: &dyn Watch,
) -> Result<Found> {
    if let Some(tree) = reference.image_id().and_then(ImageId::tree) {
        return host_image::named_tree(config, &tree).map(Found::of);
    }
    let name = reference.canonical();
    let policy = config.store.user_images;
    let is_left = policy == UserImages::Fuse && !is_rootless;
    if let ImageType::Local | ImageType::File = reference.image_type() {
        watch.on(Awaited::ImageAt(Path::new(reference.repository())))?;
    }
    match reference.image_type() {
        ImageType::Local => return host_image::tree(config, reference, caller).map(Found::of),
        ImageType::File if policy == UserImages::No => {
            let what = format!(
                "image '{}' is no image of the site's",
                sanitize::text(&name)
            );
            return Err(not_run(what));
        }
        ImageType::File if is_left => return Ok(Found::OnlyRootless),
        ImageType::File => return host_image::file(reference, caller).map(Found::of),
        _ => {}
    }
    let open = |store: &Store| {
        let id = store.resolve(reference)?;
        store.image(&id, &name, caller.uid, &caller.gids())
    };
    watch.on(Awaited::Store(&config.store.path))?;
    let missing = match Store::site(config).and_then(|store| open(&store)) {
        Err(error @ Error::NoImage(_)) => error,
        // A machine that never had a site store; one that is not mounted leaves its mount point.
        Err(Error::Store(TrustError::Unreadable { path, source }))
            if source.kind() == ErrorKind::NotFound =>
        {
            Error::Store(TrustError::Unreadable { path, source })
        }
        Err(Error::Step { source, .. })
            if is_rootless && source.raw_os_error() == Some(libc::EACCES) =>
        {
            Error::NoImage(name.clone())
        }
        other => return other.map(Found::of),
    };
    let path = format!("{home}/.shifter");
    watch.on(Awaited::UsersStore(Path::new(&path)))?;
    let store = match Store::of_user(caller, &path)? {
        Ok(Some(store)) => store,
        Ok(None) => return Err(missing),
        Err(reason) => {
            let path = sanitize::text(&path);
            let reason = format!(
                "it is not in the site store, and your own store '{path}' is not used: {reason}"
            );
            return Err(Error::BadImage {
                image: name,
                reason,
            });
        }
    };
    match open(&store) {
        Err(Error::NoImage(_)) => Err(missing),
        Ok(_) if policy == UserImages::No => {
            let what = format!("image '{}' is in your own store", sanitize::text(&name));
            Err(not_run(what))
        }
        Ok(_) if is_left => Ok(Found::OnlyRootless),
        Ok(image) => {
            image.check_superblock()?;
            Ok(Found::of(image))
        }
        Err(error) => Err(error),
    }
}

/// Opens the image that a job was given.
///
/// # Errors
/// As for [`Store::image`] and [`host_image::named_tree`].
pub fn open_for_job(
    config: &Config,
    image: &ResolvedImage,
    uid: u32,
    gids: &[u32],
) -> Result<Image> {
    match image.id.tree() {
        Some(name) => host_image::named_tree(config, &name),
        None => Store::site(config)?.image(&image.id, &image.reference, uid, gids),
    }
}

/// Returns what a container calls the image of a job.
pub fn id_in_job(image: &ResolvedImage) -> String {
    let tree = image.id.tree().map(|name| format!("local:{name}"));
    tree.unwrap_or_else(|| image.id.to_string())
}

fn not_run(what: String) -> Error {
    Error::Denied {
        what: format!("{what}, and this site runs none of users' own"),
        hint: Some("pull it into the site store"),
    }
}

impl Found {
    fn of(image: Image) -> Self {
        Self::Image(Box::new(image))
    }
}

impl Image {
    /// True if the container is made without any privilege.
    pub fn is_rootless(&self) -> bool {
        matches!(self.source, Source::Mounted(_))
    }

    /// True if it is the host's own tree, which is mounted in the container's namespace only.
    pub fn is_host(&self) -> bool {
        matches!(self.source, Source::Host)
    }

    /// Refuses a user's file that no writer of squashfs makes, before anything is tried with it.
    pub(crate) fn check_superblock(&self) -> Result<()> {
        let Source::UserFile(file) = &self.source else {
            return Ok(());
        };
        superblock::check(file).map_err(|reason| Error::BadImage {
            image: self.reference.clone(),
            reason,
        })
    }

    /// Mounts the image; the mount is attached nowhere yet. One of the site's shares its loop
    /// device and superblock with every other container of it on this node; true if there is one.
    /// `run` is the state of the node where the caller has it open.
    pub fn mount(&self, run: Option<&RunDir>) -> Result<(OwnedFd, bool)> {
        let is_shared = Cell::new(false);
        let mount = match &self.source {
            Source::SiteFile(file) => {
                let attach =
                    || site_device(file, run).inspect(|device| is_shared.set(device.is_shared));
                filesystem::mount(&self.meta.format, &self.reference, file, attach)
            }
            Source::UserFile(file) => {
                let attach = || loopdev::attach(file, None);
                filesystem::mount(filesystem::SQUASHFS, &self.reference, file, attach)
            }
            Source::Tree(dir) => host_image::clone_tree(dir, false),
            Source::Host => host_image::clone_host(),
            Source::Mounted(mount) => mount.try_clone().step("open", "image"),
        };
        Ok((mount?, is_shared.get()))
    }
}

/// Attaches a file of the site's, or finds the device that has it.
fn site_device(file: &OwnedFd, run: Option<&RunDir>) -> Result<LoopDevice> {
    if let Some(run) = run {
        return loopdev::attach(file, Some(&run.subdir("images")?));
    }
    if let Some(device) = loopdev::recall_unlocked(file)? {
        return Ok(device);
    }
    let run = RunDir::open_for_hints();
    let hints = run.as_ref().map(|run| run.subdir("images")).transpose()?;
    loopdev::attach(file, hints.as_ref())
}

fn untrusted(stat: &Stat, owners: &[u32]) -> Option<&'static str> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        Some("its file in the store is not a regular file")
    } else if !owners.contains(&stat.st_uid) {
        Some("its file in the store does not belong to the store's owner")
    } else if stat.st_mode & 0o022 != 0 {
        Some("its file in the store can be written by others")
    } else {
        None
    }
}

fn read_all(fd: OwnedFd, size: u64, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(8 << 10);
    let file = File::from(fd);
    (&file)
        .take(trusted::expected(size, limit))
        .read_to_end(&mut bytes)
        .ok()?;
    leave_to_exec(file);
    (bytes.len() as u64 <= limit).then_some(bytes)
}

/// The mounted image, attached where overlays can refer to it while a root is built.
pub struct ImageTree {
    /// The image's root directory.
    pub dir: OwnedFd,
    /// True if what is mounted in it comes along: the kernel keeps it together, or it is the host.
    pub is_whole: bool,
    /// True if it is the host's own tree: nothing in it is covered but what must be.
    pub is_host: bool,
    /// What was opened of it, and of the root that is built on it.
    pub kept: Kept,
    path: OnceCell<String>,
    reference: String,
}

impl ImageTree {
    /// Wraps the attached mount of an image.
    pub fn new(dir: OwnedFd, image: &Image) -> Self {
        Self {
            dir,
            is_whole: image.is_rootless() || image.is_host(),
            is_host: image.is_host(),
            kept: Kept::default(),
            path: OnceCell::new(),
            reference: image.reference.clone(),
        }
    }

    /// Makes a step that failed in the image's own files the image's fault: what the kernel cannot
    /// read of it takes no node out of service.
    pub fn blame(&self, error: Error) -> Error {
        match error {
            Error::Step {
                step,
                object,
                source,
            } => Error::BadImage {
                image: self.reference.clone(),
                reason: format!("cannot {step} its '{}': {source}", sanitize::text(&object)),
            },
            other => other,
        }
    }

    /// Opens `path` inside the image, links followed and never left; returns it with its
    /// canonical path.
    pub fn open(&self, path: &str) -> rustix::io::Result<(OwnedFd, String)> {
        let fd = mnt::open_inside(&self.dir, path, OFlags::PATH)?;
        let canonical = mnt::path_of(fd.as_fd());
        // The kernel does not write paths longer than a page.
        let root = self.path.get_or_init(|| mnt::path_of(self.dir.as_fd()));
        let inside = canonical.strip_prefix(root).ok_or(Errno::NAMETOOLONG)?;
        let inside = if inside.is_empty() { "/" } else { inside };
        Ok((fd, inside.to_owned()))
    }

    /// Examines what is at `path`, no link of which is followed.
    pub fn stat(&self, path: &str) -> rustix::io::Result<Stat> {
        let relative = path.trim_start_matches('/');
        if !relative.contains('/') {
            return rustix::fs::statat(&self.dir, relative, AtFlags::SYMLINK_NOFOLLOW);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&self.dir, relative, flags, Mode::empty(), resolve) {
            Ok(fd) => rustix::fs::fstat(fd),
            Err(Errno::LOOP) => Err(Errno::NOENT),
            Err(error) => Err(error),
        }
    }
}
