//! Building a container's root in a mount namespace of its own.
//!
//! ```text
//! T  tmpfs, attached over /run/shifter in the new namespace while building, then gone
//! ├── image    the squashfs mount, whole
//! ├── layers   upper parts of the overlays (see [`crate::layers`])
//! └── root     R: bind mount of itself, becomes "/": one mount point per entry of the image
//! ```
//!
//! When the build is done the process's root is R, and nothing of T or the host is left in the
//! namespace but R and what was put on it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};
use shifter_core::config::Config;
use shifter_core::hostlist::HostSlots;
use shifter_core::identity::Identity;
use shifter_core::layout::RUN_DIR;
use shifter_core::sanitize;
use shifter_core::volmap::VolumeMap;

use crate::error::{Context, Error, Result};
use crate::etc::{self, GivenFile, ShifterConfig};
use crate::image::{Image, ImageTree};
use crate::layers::{Layers, copy_attributes, make_public_dir, write_given};
use crate::mnt::{self, SAFE, SAFE_RO};
use crate::state::{RunDir, make_dir};
use crate::sys::{self, Propagation, mount_setattr};
use crate::{namespace, state, volumes};

/// Entries that the top level of an image may have.
const TOP_LEVEL_LIMIT: usize = 1000;

/// Inode of the root of every proc mount (PROC_ROOT_INO in the kernel).
const PROC_ROOT_INODE: u64 = 1;

/// Top-level directories that the host provides, whatever the image has there.
const HOST_DIRS: [&str; 4] = ["proc", "sys", "dev", "tmp"];

/// Name of a root's tmpfs in mountinfo.
pub const ROOT_SOURCE: &str = "shifter";

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
    /// The job's nodes.
    pub hosts: &'a [HostSlots],
    /// True if the root is to outlive the process.
    pub is_pinned: bool,
}

/// A finished root.
pub struct Root {
    /// `(major, minor)` of its tmpfs: mountinfo shows it in every namespace derived from it.
    pub device: (u32, u32),
    /// Its mount namespace.
    pub namespace: OwnedFd,
}

/// Builds the root. On success the process is in it, at "/"; on failure the process is in a
/// mount namespace that vanishes with it.
///
/// Without `run` the image shares no loop device with other containers.
pub fn build(request: &RootRequest<'_>, run: Option<&RunDir>) -> Result<Root> {
    let image_mount = request.image.mount(run)?;

    if request.is_pinned {
        namespace::unshare_newer()?;
    } else {
        sys::unshare_mounts().step("unshare", "mount namespace")?;
    }
    let host_root =
        rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("open", "/")?;
    // Before the first mount: nothing made here may reach the host (shared is systemd's default).
    mnt::restrict(&host_root, MountAttrFlags::empty(), Propagation::Slave)?;
    let namespace = namespace::own()?;

    let size = format!("{}m", request.config.root.tmpfs_size_mib);
    let options = [
        ("source", Some(ROOT_SOURCE)),
        ("mode", Some("0755")),
        ("size", Some(&*size)),
    ];
    let base = mnt::make("tmpfs", &options, SAFE)?;
    state::make_place()?;
    mnt::attach_at(&base, CWD, RUN_DIR.as_bytes())?;
    let tree = ImageTree::new(attach_below(&base, "image", image_mount)?);
    let root_dir = make_public_dir(&base, "root")?;
    let root = mnt::clone(&root_dir, false)?;
    mnt::attach(&root, &root_dir)?;

    // What the kernel cannot read of an image is the image's fault, not the node's.
    let of_image = |error| match error {
        Error::Step {
            step,
            object,
            source,
        } => Error::BadImage {
            image: request.image.reference.clone(),
            reason: format!("cannot {step} its '{}': {source}", sanitize::text(&object)),
        },
        other => other,
    };
    let entries = top_level(&tree, &request.image.reference).map_err(of_image)?;
    let mut layers = Layers::new(&tree, &root, make_dir(&base, "layers")?);
    give_files(request, &mut layers)?;
    let mounts = volumes::plan(request, &mut layers)?;
    for entry in &entries {
        place(entry, &tree, &root, &layers).map_err(of_image)?;
    }
    layers.mount()?.map_err(|reason| Error::BadImage {
        image: request.image.reference.clone(),
        reason,
    })?;
    host_dirs(&root)?;
    volumes::attach(&mounts, &root, request)?;

    mount_setattr(&root, SAFE_RO, Propagation::Private, false).step("make read-only", "/")?;
    let device = mnt::device_of(&root)?;
    enter(&root)?;
    Ok(Root { device, namespace })
}

/// Makes `root` the root of the process and of its namespace; the host's tree goes.
fn enter(root: &OwnedFd) -> Result<()> {
    fchdir(root).step("change to", "the new root")?;
    // The old root is stacked on the new one and taken off again: no directory for it is needed.
    pivot_root(".", ".").step("pivot to", "the new root")?;
    unmount(".", UnmountFlags::DETACH).step("unmount", "the host's tree")?;
    chdir("/").step("change to", "/")
}

fn attach_below(base: &OwnedFd, name: &str, mount: OwnedFd) -> Result<OwnedFd> {
    make_dir(base, name)?;
    mnt::attach_at(&mount, base, name.as_bytes())?;
    Ok(mount)
}

/// An entry of the image's top level.
struct Entry {
    name: Vec<u8>,
    stat: Stat,
}

/// Lists the image's top level, without what the host provides.
fn top_level(image: &ImageTree, reference: &str) -> Result<Vec<Entry>> {
    let bad = |reason: String| Error::BadImage {
        image: reference.to_owned(),
        reason,
    };
    let mut entries = Vec::new();
    // A mount's own descriptor is an O_PATH one and cannot be listed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&image.dir, ".", flags, Mode::empty()).step("open", "image")?;
    for entry in rustix::fs::Dir::new(dir).step("list", "image")? {
        let entry = entry.step("list", "image")?;
        let name = entry.file_name().to_bytes();
        if [b".".as_slice(), b".."].contains(&name)
            || HOST_DIRS.iter().any(|dir| dir.as_bytes() == name)
        {
            continue;
        }
        let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(&image.dir, name, nofollow).step("examine", "image")?;
        // The site writes there; a link would lead it elsewhere.
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if [b"etc".as_slice(), b"var", b"opt"].contains(&name) && !is_dir {
            let name = String::from_utf8_lossy(name);
            return Err(bad(format!("its '/{name}' is not a directory")));
        }
        entries.push(Entry {
            name: name.to_vec(),
            stat,
        });
        if entries.len() > TOP_LEVEL_LIMIT {
            return Err(bad(format!(
                "its top level has more than {TOP_LEVEL_LIMIT} entries"
            )));
        }
    }
    Ok(entries)
}

/// Makes one top-level entry of the image appear in the root. Devices, pipes and sockets do not.
fn place(entry: &Entry, image: &ImageTree, root: &OwnedFd, layers: &Layers<'_>) -> Result<()> {
    let Entry { name, stat } = entry;
    let shown = String::from_utf8_lossy(name).into_owned();
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(root, name.as_slice(), Mode::from_raw_mode(0o755))
                .or_else(|e| {
                    if e == rustix::io::Errno::EXIST {
                        Ok(())
                    } else {
                        Err(e)
                    }
                })
                .step("create directory", &*shown)?;
            if !layers.covers(&format!("/{shown}")) {
                let clone = mnt::clone_at(&image.dir, name, false)?;
                mnt::attach_at(&clone, root, name)?;
            }
        }
        FileType::RegularFile => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::openat(root, name.as_slice(), flags, Mode::empty())
                .step("create", &*shown)?;
            copy_attributes(&file, stat)?;
            let clone = mnt::clone_at(&image.dir, name, false)?;
            mnt::attach_at(&clone, root, name)?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&image.dir, name.as_slice(), Vec::new())
                .step("read link", &*shown)?;
            rustix::fs::symlinkat(&target, root, name.as_slice()).step("link", &*shown)?;
        }
        _ => {}
    }
    Ok(())
}

/// Writes the account files, the host list and what tools expect to find.
fn give_files(request: &RootRequest<'_>, layers: &mut Layers<'_>) -> Result<()> {
    let give = |dir: &OwnedFd, files: Vec<GivenFile>| {
        files
            .iter()
            .try_for_each(|file| write_given(dir, file.name, &file.bytes, file.mode))
    };
    let etc = layers.top_level("etc")?;
    give(&etc, etc::etc_files(request.user))?;
    rustix::fs::symlinkat("/proc/mounts", &etc, "mtab").step("link", "mtab")?;
    let var = layers.top_level("var")?;
    let config = ShifterConfig {
        identifier: request.image.id.as_str(),
        user: &request.user.name,
        vol_map: &request.volumes.signature(),
        modules: &request.modules.join(","),
    };
    give(&var, etc::var_files(request.hosts, &config))?;
    make_public_dir(&var, "tmp").map(drop)
}

/// Attaches what the host provides in every container.
fn host_dirs(root: &OwnedFd) -> Result<()> {
    for name in HOST_DIRS {
        let source = format!("/{name}");
        let fd = volumes::open_host(&source).step("open", &*source)?;
        // A clone keeps hidepid; a new proc mount would not. Not a directory that merely lies there.
        let magic = rustix::fs::fstatfs(&fd).step("examine", &*source)?.f_type;
        let inode = rustix::fs::fstat(&fd).step("examine", &*source)?.st_ino;
        if name == "proc" && (magic, inode) != (libc::PROC_SUPER_MAGIC, PROC_ROOT_INODE) {
            return Err(std::io::Error::from_raw_os_error(libc::ENODEV)).step("find", "/proc");
        }
        let flags = match name {
            // Not nodev: /dev/null is a device.
            "dev" => MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
            "tmp" => SAFE,
            _ => SAFE | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        };
        let clone = mnt::clone(&fd, true)?;
        mnt::restrict(&clone, flags, Propagation::Private)?;
        make_public_dir(root, name)?;
        mnt::attach_at(&clone, root, name.as_bytes())?;
    }
    let source = volumes::open_host("/var/tmp").step("open", "/var/tmp")?;
    let clone = mnt::clone(&source, true)?;
    mnt::restrict(&clone, SAFE, Propagation::Private)?;
    let target = mnt::open_inside(root, "/var/tmp", OFlags::PATH).step("open", "/var/tmp")?;
    mnt::attach(&clone, target.as_fd())
}
