//! Building a container's root in a mount namespace of its own.
//!
//! ```text
//! /run/shifter, while building:   image   the squashfs mount
//!                                 layer   a tmpfs: what the image lacks (see [`crate::layer`])
//!                                 overlay of both
//!                                 root    R: a directory of the tmpfs (see [`crate::top`])
//! R  becomes "/":   usr, ...              clones of the image's directories
//!                   etc, var, opt         clones of the overlay's
//!                   proc sys dev tmp      clones of the host's
//!                   site mounts, volumes
//! ```
//!
//! The four are stacked on one another in the new namespace, over what the host has there. When
//! the build is done the process's root is R, and nothing of the host is left in the namespace
//! but what was put on R.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType};
use rustix::mount::MountAttrFlags;
use shifter_core::config::Config;
use shifter_core::hostlist::HostSlots;
use shifter_core::identity::Identity;
use shifter_core::ids::JobId;
use shifter_core::layout::RUN_DIR;
use shifter_core::sanitize;
use shifter_core::ssh::JobKeys;
use shifter_core::volmap::VolumeMap;

use crate::error::{Context, Error, Result};
use crate::etc::{self, ShifterConfig};
use crate::ground::Ground;
use crate::hooks::Stage;
use crate::image::{Image, ImageTree};
use crate::layer::{self, Entry, Layer};
use crate::mnt::{self, Kept, ROOT_SOURCE, SAFE};
use crate::scratch::Scratch;
use crate::state::RunDir;
use crate::sys::{self, Propagation};
use crate::watch::{Awaited, Watch};
use crate::{hooks, modules, namespace, rootless, ssh, state, top, volumes};

/// Entries that the top level of an image may have.
const TOP_LEVEL_LIMIT: usize = 1000;

/// Inode of the root of every proc mount (PROC_ROOT_INO in the kernel).
const PROC_ROOT_INODE: u64 = 1;

/// Top-level directories in which the site places files: a link would lead it elsewhere.
const SITE_DIRS: [&str; 3] = ["etc", "var", "opt"];

/// Everything that decides what a root looks like.
pub struct RootRequest<'a> {
    /// The site's configuration.
    pub config: &'a Config,
    /// The image.
    pub image: &'a Image,
    /// The user.
    pub user: &'a Identity,
    /// The user's volumes, already judged by policy.
    pub volumes: &'a VolumeMap,
    /// The modules, already checked.
    pub modules: &'a [String],
    /// The job that it is the root of.
    pub job: Option<&'a JobId>,
    /// The job that a private container is started in: the teardown knows it by that.
    pub within: Option<&'a JobId>,
    /// The job's nodes.
    pub hosts: &'a [HostSlots],
    /// The keys with which the job's nodes reach one another, if they do.
    pub ssh: Option<&'a JobKeys>,
    /// Whether and where the user may write over the image.
    pub writable: Option<Writable>,
    /// True if the root is to outlive the process.
    pub is_pinned: bool,
    /// Directory of the batch system that the container shows, if it exists.
    pub spool: Option<&'a str>,
    /// Who is told what is waited for.
    pub watch: &'a dyn Watch,
}

/// The user may write over the image, into memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writable {
    /// The directory that becomes the user's.
    pub path: Option<String>,
}

/// A finished root.
pub struct Root {
    /// Its mount, whose device mountinfo shows in every namespace derived from it.
    pub mount: OwnedFd,
    /// The overlay of which it shows directories, or which it is.
    pub overlay: OwnedFd,
    /// The host's mounts just before the namespace was copied, if the kernel tells.
    pub host_mounts: Option<Vec<u64>>,
    /// What was asked for and not done.
    pub warnings: Vec<String>,
}

/// Builds the root. On success the process is in it, at "/"; on failure the process is in a
/// mount namespace that vanishes with it.
///
/// Without `run` the image shares no loop device with other containers.
pub fn build(request: &RootRequest<'_>, run: Option<&RunDir>) -> Result<Root> {
    let the_image = Awaited::Image(&request.image.reference);
    request.watch.on(the_image)?;
    let early = (!request.image.is_host()).then(|| request.image.mount(run));
    let early = early.transpose()?;
    volumes::trigger(request)?;

    let host_mounts = match request.is_pinned {
        true => None,
        false => sys::mounts().ok(),
    };
    if request.is_pinned {
        namespace::unshare_newer()?;
    } else {
        sys::unshare_mounts().step("unshare", "mount namespace")?;
    }
    // Before the first mount: nothing made here may reach the host.
    let ground = match request.image.is_rootless() {
        true => Ground::take_as_user()?,
        false => Ground::take(&request.config.torque.node_context_prefix)?,
    };

    let (image_mount, is_shared) = match early {
        Some(mount) => mount,
        None => request.image.mount(run)?,
    };

    let source = match request.within {
        Some(job) => format!("{ROOT_SOURCE}:{job}"),
        None => ROOT_SOURCE.to_owned(),
    };
    let size = format!("{}m", request.config.root.tmpfs_size_mib);
    let options = [
        ("source", Some(&*source)),
        ("mode", Some("0755")),
        ("size", Some(&*size)),
    ];
    let layer_mount = mnt::make("tmpfs", &options, SAFE)?;
    if request.image.is_rootless() {
        mnt::attach_at(&layer_mount, CWD, rootless::place()?.as_bytes())?;
    } else if mnt::attach_at(&layer_mount, CWD, RUN_DIR.as_bytes()).is_err() {
        state::make_place()?;
        mnt::attach_at(&layer_mount, CWD, RUN_DIR.as_bytes())?;
    }
    let site_hooks = &request.config.hooks;
    // Hooks have deadlines of their own.
    request.watch.on(Awaited::Nothing)?;
    hooks::run(
        Stage::PreMount,
        &site_hooks.pre_mount,
        request,
        layer_mount.as_fd(),
    )?;
    request.watch.on(the_image)?;
    mnt::attach(&image_mount, &layer_mount)?;
    let image = ImageTree::new(image_mount, request.image);

    let entries = top_level(&image, request)?;
    check_site_dirs(&entries, request)?;
    // Nothing has been read yet of an image that is new on the node, and each entry would be: that
    // pays for a root that is joined, not for one that is made for a command.
    let is_own = (request.is_pinned || is_shared)
        && request.writable.is_none()
        && site_hooks.pre_mount.is_empty()
        && !image.is_whole
        && top::can_be_own(&entries);
    let (tmpfs, layer_dir) = match is_own {
        true => {
            let dir = top::place_of_layer(&layer_mount)?;
            (Some(layer_mount), dir)
        }
        false => (None, layer_mount),
    };
    let mut layer = Layer::new(&image, &entries, layer_dir);
    if !site_hooks.pre_mount.is_empty() {
        layer.adopt()?;
    }
    give_files(request, &mut layer)?;
    if let Some(keys) = request.ssh {
        ssh::give_files(keys, request, &image, &mut layer)?;
    }
    for name in top::HOSTS {
        let is_dir = |e: &Entry| e.name == name.as_bytes() && e.kind == FileType::Directory;
        if !entries.iter().any(is_dir) {
            layer.dir(&format!("/{name}"))?;
        }
    }
    let brought = modules::place::plan(request, || {
        let dir = mnt::make("tmpfs", &options, SAFE)?;
        mnt::attach(&dir, &image.dir)?;
        Ok(dir)
    })?;
    let mounts = volumes::plan(request, &mut layer, brought.mounts)?;
    let scratch = scratch(request, &image, &mounts)?;
    let overlay = layer.mount(&source, scratch.as_ref())?;
    mnt::attach(&overlay, &image.dir)?;
    let root = match &tmpfs {
        Some(tmpfs) => {
            let is_covered = |path: &str| volumes::are_on(&mounts, path);
            top::own(&layer, tmpfs, &overlay, &entries, is_covered)?
        }
        None => overlay.try_clone().step("open", "root")?,
    };
    host_dirs(&root, &image.kept)?;
    if tmpfs.is_none() && scratch.is_none() {
        top::expose(&root, &layer, &entries)?;
    }
    volumes::attach(&mounts, &root, &layer, request, run)?;
    hooks::run(
        Stage::PostMount,
        &site_hooks.post_mount,
        request,
        root.as_fd(),
    )?;
    let selected = modules::selected(request.config, request.modules)?;
    for (name, module) in request.modules.iter().zip(selected) {
        hooks::run(
            Stage::Module(name),
            &module.root_hook,
            request,
            root.as_fd(),
        )?;
    }

    ground.leave_for(&root)?;
    if !request.is_pinned {
        image.kept.leave_to_exec();
        std::mem::forget((mounts, layer, tmpfs));
        std::mem::forget(image);
    }
    Ok(Root {
        mount: root,
        overlay,
        host_mounts,
        warnings: brought.warnings,
    })
}

/// Makes the scratch space that the user asks for.
fn scratch(
    request: &RootRequest<'_>,
    image: &ImageTree,
    mounts: &[volumes::Planned],
) -> Result<Option<Scratch>> {
    let Some(Writable { path }) = &request.writable else {
        return Ok(None);
    };
    let scratch = Scratch::new(request.config.root.writable_tmpfs_size_mib, &image.dir)?;
    if let Some(path) = path {
        if volumes::cover(mounts, path) {
            return Err(Error::Denied {
                what: format!("'{path}' cannot be made writable: it lies in another mount"),
                hint: None,
            });
        }
        scratch.give(path, request.user, image)?;
    }
    Ok(Some(scratch))
}

/// Lists the image's top level.
fn top_level(image: &ImageTree, request: &RootRequest<'_>) -> Result<Vec<Entry>> {
    let entries = layer::list(&image.dir, TOP_LEVEL_LIMIT, &image.kept)
        .map_err(|error| image.blame(error))?;
    entries.ok_or_else(|| Error::BadImage {
        image: request.image.reference.clone(),
        reason: format!("its top level has more than {TOP_LEVEL_LIMIT} entries"),
    })
}

/// Makes sure that the site's directories are directories, or missing.
fn check_site_dirs(entries: &[Entry], request: &RootRequest<'_>) -> Result<()> {
    let wrong = |entry: &&Entry| {
        let is_sites = SITE_DIRS.iter().any(|dir| dir.as_bytes() == entry.name);
        is_sites && entry.kind != FileType::Directory
    };
    match entries.iter().find(wrong) {
        None => Ok(()),
        Some(entry) => Err(Error::BadImage {
            image: request.image.reference.clone(),
            reason: format!("its '/{}' is not a directory", sanitize::bytes(&entry.name)),
        }),
    }
}

/// Writes the account files, the host list and what tools expect to find.
fn give_files(request: &RootRequest<'_>, layer: &mut Layer<'_>) -> Result<()> {
    let config = ShifterConfig {
        identifier: &request.image.id,
        user: &request.user.name,
        vol_map: &request.volumes.signature(),
        modules: &request.modules.join(","),
    };
    layer.dir("/etc")?;
    layer.dir("/var")?;
    layer.dir_unless_image_has("/var/tmp")?;
    for (path, mode) in etc::DIRS {
        layer.dir_if_missing(path, mode)?;
    }
    // Of the host everybody's accounts are known already.
    let is_host = request.image.is_host();
    let mut files = match is_host {
        true => Vec::new(),
        false => etc::etc_files(request.user),
    };
    files.extend(etc::var_files(request.hosts, &config, request.job));
    for file in files {
        layer.file(file.path, &file.bytes, file.mode)?;
    }
    if is_host {
        return Ok(());
    }
    layer.link("/etc/mtab", "/proc/mounts")?;
    // Where the C Shifter keeps what it leaves out; nothing is left out here.
    layer.link("/etc/group.orig", "group")
}

/// Attaches what the host provides in every container, to a root that nothing is attached to yet.
fn host_dirs(root: &OwnedFd, kept: &Kept) -> Result<()> {
    for name in ["proc", "sys", "tmp", "var/tmp"] {
        let clone = mnt::clone_path(&format!("/{name}"), true)?;
        if name == "proc" {
            check_is_proc(&clone)?;
        }
        // The layer has both directories of the last one, so no link of the image's is on the way.
        mnt::attach_at(&clone, root, name.as_bytes())?;
        kept.keep(clone);
    }
    // All of them at once: nobody else is in this namespace to see them meanwhile.
    mnt::restrict(root, SAFE, Propagation::Private)?;
    let clone = mnt::clone_path("/dev", true)?;
    // Not nodev: /dev/null is a device.
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mnt::restrict(&clone, flags, Propagation::Private)?;
    mnt::attach_at(&clone, root, b"dev")?;
    kept.keep(clone);
    Ok(())
}

/// Makes sure that a mount is the kernel's proc and not something that merely lies there.
///
/// A clone of the host's keeps hidepid; a new proc mount would not.
fn check_is_proc(mount: &OwnedFd) -> Result<()> {
    let magic = rustix::fs::fstatfs(mount).step("examine", "/proc")?.f_type;
    let inode = rustix::fs::fstat(mount).step("examine", "/proc")?.st_ino;
    if (magic, inode) == (libc::PROC_SUPER_MAGIC, PROC_ROOT_INODE) {
        Ok(())
    } else {
        Err(std::io::Error::from_raw_os_error(libc::ENODEV)).step("find", "/proc")
    }
}
