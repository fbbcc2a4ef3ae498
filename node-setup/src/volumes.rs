//! What of the host appears in a root: the site's mounts and the user's volumes.
//!
//! A user's source is opened once, as the user, and from then on only its descriptor counts.
//! It must lie, links resolved, within a site mount; the kernel has checked by then that the
//! user may read it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use shifter_core::sanitize;
use shifter_core::trusted;
use shifter_core::volmap::{self, Volume, contains};

use crate::error::{Context, Error, Result};
use crate::fsuser::as_user;
use crate::layers::{Kind, Layers};
use crate::mnt::{self, SAFE};
use crate::root::RootRequest;
use crate::sys::Propagation;

/// Directories of the host that every container has beside the site's own.
const BUILT_IN: [&str; 5] = ["/proc", "/sys", "/dev", "/tmp", "/var/tmp"];

/// Of those, the ones from which users may mount.
const SCRATCH: [&str; 2] = ["/tmp", "/var/tmp"];

const UDI_IMAGE: &str = "/opt/udiImage";

/// A mount to be made.
pub struct Planned {
    target: String,
    source: OwnedFd,
    recursive: bool,
    attributes: MountAttrFlags,
    propagation: Propagation,
    /// The volume as the user typed it; none for the site's.
    volume: Option<Volume>,
}

/// Opens every source and makes sure that every target can be mounted on.
///
/// # Errors
/// [`Error::Volume`] where the user asks for something that is not there or not allowed;
/// [`Error::Step`] where a site mount is missing on this node.
pub fn plan(request: &RootRequest<'_>, layers: &mut Layers<'_>) -> Result<Vec<Planned>> {
    let mut mounts = site_mounts(request)?;
    let site = SiteView::of(&mounts);
    for volume in request.volumes.entries() {
        mounts.push(user_volume(volume, &site, request)?);
    }
    mounts.sort_by_key(|mount| (mount.volume.is_some(), mount.target.matches('/').count()));
    for (at, mount) in mounts.iter().enumerate() {
        let built_in = BUILT_IN.iter().any(|dir| contains(dir, &mount.target));
        // What could contain it is attached before it.
        if built_in
            || mounts[..at]
                .iter()
                .any(|outer| contains(&outer.target, &mount.target))
        {
            continue; // Its mount point is in what the outer mount brings.
        }
        let stat = rustix::fs::fstat(&mount.source).step("examine", &*mount.target)?;
        let kind = Kind::of(&stat).unwrap_or(Kind::File);
        if let Err(refusal) = layers.mount_point(&mount.target, kind)? {
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

/// Attaches what was planned to the finished root, outer targets before inner ones.
pub fn attach(mounts: &[Planned], root: &OwnedFd, request: &RootRequest<'_>) -> Result<()> {
    let root_path = mnt::path_of(root.as_fd());
    for mount in mounts {
        let open = || mnt::open_inside(root, &mount.target, OFlags::PATH);
        let target = match &mount.volume {
            // The mount point was found in the image or made: a link of the image's leads away.
            None => open().map_err(|error| misplaced(mount, request, error))?,
            Some(volume) => {
                // With the user's eyes: what lies in other users' directories is not told.
                let user = request.user;
                let target = as_user(user.uid, user.gid, &user.gids(), open)?;
                let target = target.map_err(|error| missing_target(volume, error))?;
                let path = mnt::path_of(target.as_fd());
                judge_resolved(volume, path.strip_prefix(&root_path).unwrap_or("/"), mounts)?;
                same_kind(volume, &mount.source, &target)?;
                target
            }
        };
        let clone = mnt::clone(&mount.source, mount.recursive)?;
        mnt::restrict(&clone, mount.attributes, mount.propagation)?;
        mnt::attach(&clone, &target).map_err(|error| match (&mount.volume, error) {
            // Somebody removed the target since.
            (Some(volume), Error::Step { source, .. }) => refused(volume, source.to_string(), None),
            (_, error) => error,
        })?;
    }
    Ok(())
}

fn misplaced(mount: &Planned, request: &RootRequest<'_>, error: Errno) -> Error {
    let reason = std::io::Error::from(error);
    Error::BadImage {
        image: request.image.reference.clone(),
        reason: format!("cannot place the site's '{}': {reason}", mount.target),
    }
}

/// Opens a file or directory of the host to be cloned; directories trigger automounts.
pub fn open_host(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR) => rustix::fs::open(path, flags, Mode::empty()),
        other => other,
    }
}

fn site_mounts(request: &RootRequest<'_>) -> Result<Vec<Planned>> {
    let mut mounts = Vec::new();
    for volume in request.config.site_mounts().entries() {
        let flags = &volume.flags;
        let source = open_host(&volume.from).step("open site mount", &*volume.from)?;
        let read_only = if flags.ro {
            MountAttrFlags::MOUNT_ATTR_RDONLY
        } else {
            SAFE
        };
        mounts.push(Planned {
            target: volume.to.clone(),
            source,
            recursive: flags.rec,
            attributes: SAFE | read_only,
            propagation: if flags.slave {
                Propagation::Slave
            } else {
                Propagation::Private
            },
            volume: None,
        });
    }
    if let Some(path) = &request.config.root.udi_image {
        // Users run what is in it, so only root may have put it there.
        let path = &trusted::audit(path, &[0]).map_err(Error::Untrusted)?;
        mounts.push(Planned {
            target: UDI_IMAGE.to_owned(),
            source: open_host(&path.to_string_lossy()).step("open", path)?,
            recursive: false,
            attributes: mnt::SAFE_RO,
            propagation: Propagation::Private,
            volume: None,
        });
    }
    Ok(mounts)
}

/// The site mounts as users' sources are judged by them.
struct SiteView {
    /// `(path in the container, canonical path on the host, flags)`.
    dirs: Vec<(String, String, MountAttrFlags)>,
}

impl SiteView {
    fn of(mounts: &[Planned]) -> Self {
        let of = |mount: &Planned| {
            let host = mnt::path_of(mount.source.as_fd());
            (mount.target.clone(), host, mount.attributes)
        };
        let mut dirs: Vec<_> = mounts
            .iter()
            .filter(|mount| mount.target != UDI_IMAGE)
            .map(of)
            .collect();
        dirs.extend(SCRATCH.map(|dir| (dir.to_owned(), dir.to_owned(), SAFE)));
        Self { dirs }
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
    if volume.flags.per_node_cache.is_some() {
        let hint = Some("use a site mount or /tmp for temporary files".to_owned());
        return Err(refused(
            volume,
            "perNodeCache is not available here".into(),
            hint,
        ));
    }
    let user = request.user;
    let host_path = site.host_path(&volume.from);
    let open = || {
        // For reading, not O_PATH: the user must be able to read it, and automounts must trigger.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::openat2(
            CWD,
            &*host_path,
            flags,
            Mode::empty(),
            ResolveFlags::NO_MAGICLINKS,
        )
    };
    let opened = as_user(user.uid, user.gid, &user.gids(), open)?;
    let source = opened.map_err(|error| {
        let reason = std::io::Error::from(error).to_string();
        refused(volume, reason, (error == Errno::NOENT).then(|| site.hint()))
    })?;
    // What the site shows read-only stays so.
    let Some(site_flags) = site.flags(&mnt::path_of(source.as_fd())) else {
        let reason = "the source is not within a site mount".to_owned();
        return Err(refused(volume, reason, Some(site.hint())));
    };
    let stat = rustix::fs::fstat(&source).step("examine", &*volume.from)?;
    if Kind::of(&stat).is_none() {
        let reason = "the source is neither a directory nor a regular file".to_owned();
        return Err(refused(volume, reason, None));
    }
    let read_only = if volume.flags.ro {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        SAFE
    };
    Ok(Planned {
        target: volume.to.clone(),
        source,
        recursive: true,
        attributes: site_flags | read_only,
        propagation: Propagation::Private,
        volume: Some(volume.clone()),
    })
}

/// Judges where a target really is, after links in the image have been followed.
fn judge_resolved(volume: &Volume, path: &str, mounts: &[Planned]) -> Result<()> {
    let path = if path.is_empty() { "/" } else { path };
    if volmap::judge_user_target(path).is_err() {
        let path = sanitize::text(path);
        let reason = format!("it leads to '{path}', which users cannot mount on");
        return Err(refused(volume, reason, None));
    }
    let site = mounts.iter().filter(|mount| mount.volume.is_none());
    let built_in = BUILT_IN.into_iter().map(str::to_owned);
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

fn same_kind(volume: &Volume, source: &OwnedFd, target: &OwnedFd) -> Result<()> {
    let kind = |fd: &OwnedFd| -> Result<Option<Kind>> {
        Ok(Kind::of(
            &rustix::fs::fstat(fd).step("examine", &*volume.to)?,
        ))
    };
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

fn refused(volume: &Volume, reason: String, hint: Option<String>) -> Error {
    Error::Volume {
        from: volume.from.clone(),
        to: volume.to.clone(),
        reason,
        hint,
    }
}
