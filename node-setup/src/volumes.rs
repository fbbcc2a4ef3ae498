//! What of the host appears in a root: the site's mounts and the user's volumes.
//!
//! A user's source is opened once, as the user, and from then on only its descriptor counts.
//! It must lie, links resolved, within a site mount; the kernel has checked by then that the
//! user may read it.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use shifter_core::config::Module;
use shifter_core::identity::Identity;
use shifter_core::sanitize;
use shifter_core::volmap::{self, Volume, VolumeFlags, VolumeMap, contains};

use crate::error::{Context, Error, Result};
use crate::fsuser::as_user;
use crate::layer::{Kind, Layer};
use crate::mnt::{self, SAFE};
use crate::modules;
use crate::node_cache::{self, Cache};
use crate::root::RootRequest;
use crate::state::RunDir;
use crate::sys::Propagation;
use crate::watch::Awaited;

/// Directories of the host that every container has beside the site's own.
const BUILT_IN: [&str; 5] = ["/proc", "/sys", "/dev", "/tmp", "/var/tmp"];

/// Of those, the ones from which users may mount, and over which: they hold nothing of the site's.
const SCRATCH: [&str; 2] = ["/tmp", "/var/tmp"];

/// Where a link of an image's must not lead a mount of the site's: what is there is the site's, too.
const OF_SITE: [&str; 3] = ["/etc", "/opt", "/var"];

/// A mount that is made and has its flags, but is attached nowhere yet.
pub struct Planned {
    target: String,
    mount: OwnedFd,
    /// The volume as the user typed it; none for the site's.
    volume: Option<Volume>,
    /// The cache that is mounted instead of the source.
    cache: Option<Cache>,
}

/// Opens every source of the user's on the host, before the namespace is unshared, and lets go of
/// it: an automount must be triggered where its daemon sees it, and be there when the namespace is
/// copied. What cannot be opened is refused by [`plan`].
pub fn trigger(request: &RootRequest<'_>) -> Result<()> {
    if request.volumes.is_empty() {
        return Ok(());
    }
    let site = SiteView::of(request)?;
    for volume in request.volumes.entries() {
        let place = site.host_path(&volume.from);
        let source = Awaited::Source(volume, Path::new(&place));
        request.watch.on(source)?;
        let _ = open_source(volume, &site, request.user)?;
    }
    request.watch.on(Awaited::Nothing)
}

impl Planned {
    /// A file or directory of the site's, which nobody can write here.
    pub fn read_only(target: &str, source: &OwnedFd, is_recursive: bool) -> Result<Self> {
        let mount = mnt::clone(source, is_recursive)?;
        mnt::restrict(&mount, mnt::SAFE_RO, Propagation::Private)?;
        Ok(Self::of_site(target, mount))
    }

    /// Directories of the site's, the first one laid over the others.
    pub fn laid_over(target: &str, dirs: &[&OwnedFd]) -> Result<Self> {
        Ok(Self::of_site(target, mnt::overlay(mnt::ROOT_SOURCE, dirs)?))
    }

    /// A device node.
    pub fn device(target: &str, source: &OwnedFd) -> Result<Self> {
        let mount = mnt::clone(source, false)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        mnt::restrict(&mount, flags, Propagation::Private)?;
        Ok(Self::of_site(target, mount))
    }

    fn of_site(target: &str, mount: OwnedFd) -> Self {
        Self {
            target: target.to_owned(),
            mount,
            volume: None,
            cache: None,
        }
    }
}

/// Clones the batch system's own directory, where it exists: what is in it for a job is made after
/// the root. Its permissions are those of the host.
fn spool(request: &RootRequest<'_>) -> Result<Option<Planned>> {
    let Some(path) = request.spool else {
        return Ok(None);
    };
    let source = match mnt::open_host(path) {
        Ok(source) => source,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).step("open", path),
    };
    let mount = mnt::clone(&source, true)?;
    mnt::restrict(&mount, SAFE, Propagation::Private)?;
    Ok(Some(Planned::of_site(path, mount)))
}

/// Opens every source and makes sure that every target can be mounted on; `brought` is what
/// modules bring, from which no volume can be taken.
///
/// # Errors
/// [`Error::Volume`] where the user asks for something that is not there or not allowed;
/// [`Error::Step`] where a site mount is missing on this node.
pub fn plan(
    request: &RootRequest<'_>,
    layer: &mut Layer<'_>,
    brought: Vec<Planned>,
) -> Result<Vec<Planned>> {
    let mut mounts = site_mounts(request)?;
    mounts.extend(spool(request)?);
    if !request.volumes.is_empty() {
        let site = SiteView::of(request)?;
        for volume in request.volumes.entries() {
            request.watch.on(Awaited::Volume(volume))?;
            mounts.push(user_volume(volume, &site, request)?);
        }
        request.watch.on(Awaited::Image(&request.image.reference))?;
    }
    mounts.extend(brought);
    mounts.sort_by_key(|mount| (mount.volume.is_some(), mount.target.matches('/').count()));
    for (at, mount) in mounts.iter().enumerate() {
        check_below_others(mount, &mounts[..at])?;
        let built_in = BUILT_IN.iter().any(|dir| contains(dir, &mount.target));
        // What could contain it is attached before it.
        let outer = mounts.iter().take(at);
        if built_in
            || outer
                .into_iter()
                .any(|outer| contains(&outer.target, &mount.target))
        {
            continue; // Its mount point is in what the outer mount brings.
        }
        let stat = match &mount.volume {
            Some(volume) => {
                request.watch.on(Awaited::Volume(volume))?;
                let stat = examine(&mount.mount, volume)?;
                request.watch.on(Awaited::Image(&request.image.reference))?;
                stat
            }
            None => rustix::fs::fstat(&mount.mount).step("examine", &*mount.target)?,
        };
        let kind = Kind::of(&stat).unwrap_or(Kind::File);
        if let Err(refusal) = layer.mount_point(&mount.target, kind)? {
            return Err(match &mount.volume {
                Some(volume) => refused(volume, refusal, None),
                None => Error::BadImage {
                    image: request.image.reference.clone(),
                    reason: format!("cannot place the site's '{}': {refusal}", mount.target),
                },
            });
        }
    }
    Ok(mounts)
}

/// Makes sure that a mount of the site's can be laid over, or into, those that come before it.
fn check_below_others(mount: &Planned, earlier: &[Planned]) -> Result<()> {
    let outer = earlier.iter().rev();
    let mut outer = outer.filter(|outer| contains(&outer.target, &mount.target));
    let Some(outer) = outer.next().filter(|_| mount.volume.is_none()) else {
        return Ok(());
    };
    let is_dir = |of: &Planned| -> Result<bool> {
        let stat = rustix::fs::fstat(&of.mount).step("examine", &*of.target)?;
        Ok(Kind::of(&stat) == Some(Kind::Dir))
    };
    let reason = match (outer.target == mount.target, is_dir(outer)?) {
        (false, true) => return Ok(()),
        (false, false) => format!("another of its mounts is '{}', a file", outer.target),
        (true, outer_is_dir) if is_dir(mount)? != outer_is_dir => {
            "a directory and a file are to be there, both the site's".to_owned()
        }
        (true, _) => return Ok(()),
    };
    let target = mount.target.clone();
    Err(Error::SiteMount { target, reason })
}

/// True if a path of the container lies in one of the mounts, or in what the host provides.
pub fn cover(mounts: &[Planned], path: &str) -> bool {
    let mut targets = mounts.iter().map(|mount| mount.target.as_str());
    targets.any(|target| contains(target, path)) || BUILT_IN.iter().any(|dir| contains(dir, path))
}

/// True if one of the mounts goes on this path of the container itself.
pub fn are_on(mounts: &[Planned], path: &str) -> bool {
    mounts.iter().any(|mount| mount.target == path)
}

/// Attaches what was planned to the finished root, outer targets before inner ones.
pub fn attach(
    mounts: &[Planned],
    root: &OwnedFd,
    layer: &Layer<'_>,
    request: &RootRequest<'_>,
    run: Option<&RunDir>,
) -> Result<()> {
    let root_path = OnceCell::new();
    for mount in mounts {
        if mount.volume.is_none() && layer.has_top_level_dir(&mount.target) {
            let name = mount.target.trim_start_matches('/');
            mnt::attach_at(&mount.mount, root, name.as_bytes())?;
            continue;
        }
        let open = || mnt::open_inside(root, &mount.target, OFlags::PATH);
        let place_of = |target: &OwnedFd| {
            let root_path = root_path.get_or_init(|| mnt::path_of(root.as_fd()));
            let path = mnt::path_of(target.as_fd());
            match path.strip_prefix(root_path.as_str()) {
                None | Some("") => "/".to_owned(),
                Some(path) => path.to_owned(),
            }
        };
        let target = match &mount.volume {
            None => match mnt::open_unlinked(root, &mount.target) {
                // A link of the image's, which may lead elsewhere, but not everywhere.
                Err(Errno::LOOP) => {
                    let target = open().map_err(|error| misplaced(mount, request, error))?;
                    judge_site_target(mount, &place_of(&target), request)?;
                    target
                }
                opened => opened.map_err(|error| misplaced(mount, request, error))?,
            },
            Some(volume) => {
                request.watch.on(Awaited::Volume(volume))?;
                // With the user's eyes: what lies in other users' directories is not told.
                let user = request.user;
                let target = as_user(user.uid, user.gid, &user.gids(), open)?;
                let target = target.map_err(|error| missing_target(volume, error))?;
                let path = &*place_of(&target);
                judge_resolved(volume, path, mounts)?;
                if contains("/etc", path) && layer.covers_image_at(path) {
                    let reason = format!("the image has its own '{}'", sanitize::text(path));
                    return Err(refused(volume, reason, None));
                }
                same_kind(volume, &mount.mount, &target)?;
                target
            }
        };
        let made = match (&mount.cache, &mount.volume) {
            // Not before now: every volume has been judged.
            (Some(cache), Some(volume)) => {
                request.watch.on(Awaited::Cache(volume))?;
                let made = cache.make(volume, request.user, run)?;
                // It has nothing of what the site shows read-only.
                mnt::restrict(&made, SAFE, Propagation::Private)?;
                Some(made)
            }
            _ => None,
        };
        let tree = made.as_ref().unwrap_or(&mount.mount);
        mnt::attach(tree, &target).map_err(|error| match (&mount.volume, error) {
            // Somebody removed the target since.
            (Some(volume), Error::Step { source, .. }) => refused(volume, source.to_string(), None),
            (_, error) => error,
        })?;
        layer.keep(target);
    }
    request.watch.on(Awaited::Nothing)
}

fn misplaced(mount: &Planned, request: &RootRequest<'_>, error: Errno) -> Error {
    let reason = std::io::Error::from(error).to_string();
    misplaced_because(mount, request, &reason)
}

fn misplaced_because(mount: &Planned, request: &RootRequest<'_>, reason: &str) -> Error {
    Error::BadImage {
        image: request.image.reference.clone(),
        reason: format!("cannot place the site's '{}': {reason}", mount.target),
    }
}

/// Judges where a link of the image's leads a mount of the site's: over nothing that the site or
/// the host gives every container.
fn judge_site_target(mount: &Planned, path: &str, request: &RootRequest<'_>) -> Result<()> {
    let mut given = BUILT_IN.iter().chain(&OF_SITE);
    let hides = given.any(|dir| contains(path, dir));
    let mut hosts = BUILT_IN.iter().filter(|dir| !SCRATCH.contains(dir));
    if hides || hosts.any(|dir| contains(dir, path)) {
        let reason = format!("the image's link leads to '{}'", sanitize::text(path));
        return Err(misplaced_because(mount, request, &reason));
    }
    Ok(())
}

/// The site's mounts and those of the modules in use.
fn site_maps(request: &RootRequest<'_>) -> Result<Vec<VolumeMap>> {
    let modules = modules::selected(request.config, request.modules)?;
    let maps = modules.into_iter().map(Module::site_mounts);
    Ok(std::iter::once(request.config.site_mounts())
        .chain(maps)
        .collect())
}

/// The flags of a site mount.
fn site_flags(flags: &VolumeFlags) -> MountAttrFlags {
    if flags.ro { mnt::SAFE_RO } else { SAFE }
}

fn site_mounts(request: &RootRequest<'_>) -> Result<Vec<Planned>> {
    let mut mounts = Vec::new();
    // In a user's own namespace the kernel keeps together what is mounted in each other.
    let is_rootless = request.image.is_rootless();
    let maps = site_maps(request)?;
    for volume in maps.iter().flat_map(VolumeMap::entries) {
        let Volume { from, to, flags } = volume;
        request.watch.on(Awaited::SiteMount(from))?;
        let mount = match mnt::clone_path(from, flags.rec || is_rootless) {
            // Without privilege a container has what its user can reach.
            Err(Error::Step { source, .. })
                if is_rootless && source.raw_os_error() == Some(libc::EACCES) =>
            {
                continue;
            }
            cloned => cloned.map_err(|error| of_site(error, from))?,
        };
        let propagation = if flags.slave {
            Propagation::Slave
        } else {
            Propagation::Private
        };
        mnt::restrict(&mount, site_flags(flags), propagation)?;
        mounts.push(Planned::of_site(to, mount));
    }
    Ok(mounts)
}

/// Says that it is one of the site's mounts that is missing.
fn of_site(error: Error, path: &str) -> Error {
    match error {
        Error::Step { source, .. } => Error::Step {
            step: "open site mount",
            object: path.to_owned(),
            source,
        },
        other => other,
    }
}

/// The site mounts as users' sources are judged by them.
struct SiteView {
    /// `(path in the container, canonical path on the host, flags)`.
    dirs: Vec<(String, String, MountAttrFlags)>,
}

impl SiteView {
    fn of(request: &RootRequest<'_>) -> Result<Self> {
        let mut dirs = Vec::new();
        let maps = site_maps(request)?;
        for Volume { from, to, flags } in maps.iter().flat_map(VolumeMap::entries) {
            let fd = match mnt::open_host(from) {
                Err(Errno::ACCESS) if request.image.is_rootless() => continue,
                opened => opened.step("open site mount", &**from)?,
            };
            dirs.push((to.clone(), mnt::path_of(fd.as_fd()), site_flags(flags)));
        }
        for dir in SCRATCH {
            // The host may have a link there.
            let fd = mnt::open_host(dir).step("open", dir)?;
            dirs.push((dir.to_owned(), mnt::path_of(fd.as_fd()), SAFE));
        }
        Ok(Self { dirs })
    }

    /// Translates a path of the container, where users know the site mounts, to the host's.
    fn host_path(&self, path: &str) -> String {
        let found = self
            .dirs
            .iter()
            .filter(|(target, ..)| contains(target, path));
        match found.max_by_key(|(target, ..)| target.len()) {
            Some((target, host, _)) => format!("{host}{}", &path[target.len()..]),
            None => path.to_owned(),
        }
    }

    /// Returns the flags of the site mount that contains a path; none if users may not mount it.
    fn flags(&self, host_path: &str) -> Option<MountAttrFlags> {
        let found = self.dirs.iter();
        let found = found.filter(|(_, host, _)| contains(host, host_path));
        found
            .max_by_key(|(_, host, flags)| {
                let is_writable = !flags.contains(MountAttrFlags::MOUNT_ATTR_RDONLY);
                (host.len(), is_writable)
            })
            .map(|(.., flags)| *flags)
    }

    fn hint(&self) -> String {
        let names: Vec<&str> = self
            .dirs
            .iter()
            .map(|(target, ..)| target.as_str())
            .collect();
        format!("volumes can be taken from {}", names.join(", "))
    }
}

fn user_volume(volume: &Volume, site: &SiteView, request: &RootRequest<'_>) -> Result<Planned> {
    let opened = open_source(volume, site, request.user)?;
    let source = opened.map_err(|error| {
        let reason = std::io::Error::from(error).to_string();
        refused(volume, reason, (error == Errno::NOENT).then(|| site.hint()))
    })?;
    // What the site shows read-only stays so.
    let path = mnt::path_of(source.as_fd());
    let Some(site_flags) = site.flags(&path) else {
        let reason = "the source is not within a site mount".to_owned();
        return Err(refused(volume, reason, Some(site.hint())));
    };
    let stat = examine(&source, volume)?;
    if Kind::of(&stat).is_none() {
        let reason = "the source is neither a directory nor a regular file".to_owned();
        return Err(refused(volume, reason, None));
    }
    let on_host = |path: &str| site.host_path(path);
    if volume.flags.per_node_cache.is_some() && request.image.is_rootless() {
        let reason = "a container without privilege has no perNodeCache".to_owned();
        let hint = "use an image of the site store, or other volumes".to_owned();
        return Err(refused(volume, reason, Some(hint)));
    }
    let cache = volume
        .flags
        .per_node_cache
        .map(|asked| node_cache::judge(volume, asked, (&stat, &path), on_host, request.config));
    let cache = cache.transpose()?;
    let read_only = if volume.flags.ro { mnt::SAFE_RO } else { SAFE };
    let mount = mnt::clone(&source, true)?;
    mnt::restrict(&mount, site_flags | read_only, Propagation::Private)?;
    Ok(Planned {
        target: volume.to.clone(),
        mount,
        volume: Some(volume.clone()),
        cache,
    })
}

/// Opens a source as the user.
fn open_source(
    volume: &Volume,
    site: &SiteView,
    user: &Identity,
) -> Result<rustix::io::Result<OwnedFd>> {
    let host_path = site.host_path(&volume.from);
    as_user(user.uid, user.gid, &user.gids(), || {
        // For reading, not O_PATH: the user must be able to read it, and automounts must trigger.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(CWD, &*host_path, flags, Mode::empty(), resolve)
    })
}

/// Judges where a target really is, after links in the image have been followed.
fn judge_resolved(volume: &Volume, path: &str, mounts: &[Planned]) -> Result<()> {
    if volmap::judge_user_target(path).is_err() {
        let path = sanitize::text(path);
        let reason = format!("it leads to '{path}', which users cannot mount on");
        return Err(refused(volume, reason, None));
    }
    let site = mounts.iter().filter(|mount| mount.volume.is_none());
    // All of /tmp may be hidden, as by a per-node cache; mounts of the site's in it may not.
    let built_in = BUILT_IN.into_iter().filter(|dir| !SCRATCH.contains(dir));
    let built_in = built_in.map(str::to_owned);
    match site
        .map(|m| m.target.clone())
        .chain(built_in)
        .find(|dir| contains(path, dir))
    {
        Some(dir) => Err(refused(
            volume,
            format!("it would hide the site's '{dir}'"),
            None,
        )),
        None => Ok(()),
    }
}

/// Examines a file of a volume's. A file system of the user's own making may answer anything, and
/// takes no node out of service by it.
fn examine(file: &OwnedFd, volume: &Volume) -> Result<Stat> {
    rustix::fs::fstat(file).map_err(|error| {
        let reason = std::io::Error::from(error).to_string();
        refused(volume, reason, None)
    })
}

fn same_kind(volume: &Volume, source: &OwnedFd, target: &OwnedFd) -> Result<()> {
    let kind = |fd: &OwnedFd| examine(fd, volume).map(|stat| Kind::of(&stat));
    if kind(source)? == kind(target)? {
        return Ok(());
    }
    let reason = "one is a directory and the other a file".to_owned();
    Err(refused(volume, reason, None))
}

fn missing_target(volume: &Volume, error: Errno) -> Error {
    let reason = format!(
        "the target cannot be reached: {}",
        std::io::Error::from(error)
    );
    let hint = "a target inside another mount must exist there already".to_owned();
    refused(volume, reason, Some(hint))
}

/// Refuses a volume.
pub fn refused(volume: &Volume, reason: String, hint: Option<String>) -> Error {
    Error::Volume {
        from: volume.from.clone(),
        to: volume.to.clone(),
        reason,
        hint,
    }
}
