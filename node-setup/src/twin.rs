//! Private containers that are like one that runs: a copy of its mounts instead of new ones.
//!
//! Tasks of a job, and users at their prompts, start the same container again and again. So who
//! builds one leaves a note of what decides what it is like, and of the namespace that it is in,
//! beside the hint of the image's loop device; and who would build the same copies that namespace
//! if there still is one. The copy is as private as what would have been built.
//!
//! | what decides | how a change is seen |
//! |---|---|
//! | user, groups, image, hosts, the job that it is started in | they are in the note |
//! | the image's file, the configuration, /etc/hosts, /etc/resolv.conf, what lies at /opt/udiImage | by inode, size and times |
//! | directories that it shows: the site's, /tmp, /var/tmp | by mount and inode |
//! | what is mounted on the host, where the caller sees it | by the numbers of all mounts, which the kernel uses once (listmount(2), Linux 6.8) |
//!
//! A mount of the host's that is moved, or whose own flags are changed, without being unmounted is
//! seen by new containers when the last one like them has ended. Containers with volumes, modules, scratch space
//! or hooks are always built: what these bring is looked up as their user, or has effects.
//!
//! Only root writes notes, the kernel never gives the number of a namespace to another one
//! (NS_GET_MNTNS_ID, Linux 6.11), and no process in a container can mount or unmount there: that
//! takes privileges over the namespace that nobody in it has. What the kernel mounts by itself when
//! somebody goes there (automounts of network file systems) comes along.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::chdir;
use serde::Serialize;
use shifter_core::config::DEFAULT_PATH;
use shifter_core::hostlist::HostSlots;
use shifter_core::identity::Identity;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, RUN_DIR};

use crate::error::{Context, Result};
use crate::image::Source;
use crate::patience::UNIQUE;
use crate::process::{leave_to_exec, read_at_once};
use crate::root::RootRequest;
use crate::state::RunDir;
use crate::watch::Awaited;
use crate::{loopdev, namespace, sys};

/// Bytes that a note may have; containers that take more to describe are always built.
const NOTE_LIMIT: usize = 32 << 10;

/// Where notes are, below [`RUN_DIR`].
const NOTES: &str = "images";

/// One start of so many looks whether there are too many notes.
const SELDOM: u32 = 16;

/// Files of the host that a root is made from.
const FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// Directories of the host that every container shows and that need not be mounts there.
const DIRS: [&str; 2] = ["/tmp", "/var/tmp"];

/// What a private container is like.
pub struct Likeness {
    name: String,
    traits: Vec<u8>,
    mounts: Vec<u64>,
}

/// What decides it beside the host's mounts, as it is written down.
#[derive(Serialize)]
struct Traits<'a> {
    version: &'a str,
    user: &'a Identity,
    image: &'a str,
    within: Option<&'a JobId>,
    hosts: &'a [HostSlots],
    files: Vec<Option<File>>,
    dirs: Vec<Dir>,
}

/// A file as it was: device, inode, size, times of the last changes.
#[derive(Clone, Copy, Serialize)]
pub struct File([u32; 2], u64, u64, [(i64, u32); 2]);

/// A directory: the mount that it is on, and its inode.
#[derive(Serialize)]
struct Dir(u64, u64);

/// A note that is to be written when the container is there.
pub struct Note {
    dir: OwnedFd,
    name: String,
    traits: Vec<u8>,
}

/// Looks at the configuration's file, which is to be read after that.
pub fn configuration() -> Option<File> {
    file(CWD, DEFAULT_PATH).ok()?
}

impl Likeness {
    /// Describes what is asked for under this configuration; nothing if it is always to be built, or
    /// if the kernel cannot tell all that decides.
    pub fn of(request: &RootRequest<'_>, configuration: Option<File>) -> Result<Option<Self>> {
        let (config, image) = (request.config, request.image);
        let (Source::SiteFile(image_file), Some(configuration)) = (&image.source, configuration)
        else {
            return Ok(None);
        };
        let is_plain = request.volumes.is_empty()
            && request.modules.is_empty()
            && request.writable.is_none()
            && config.hooks.pre_mount.is_empty()
            && config.hooks.post_mount.is_empty()
            && config.root.udi_image.is_none();
        if !is_plain {
            return Ok(None);
        }
        let udi = layout::udi_image(&config.prefix);
        let mut files = vec![
            file(image_file, ""),
            Ok(Some(configuration)),
            file(CWD, &*udi),
        ];
        files.extend(FILES.map(|path| file(CWD, path)));
        let mut dirs: Vec<_> = DIRS.map(dir).into();
        for volume in config.site_mounts().entries() {
            request.watch.on(Awaited::SiteMount(&volume.from))?;
            dirs.push(dir(&*volume.from));
        }
        request.watch.on(Awaited::Nothing)?;
        let files: rustix::io::Result<Vec<_>> = files.into_iter().collect();
        let dirs: Option<Vec<_>> = dirs.into_iter().collect();
        // Last: what was looked at may have been mounted by that.
        let (Ok(files), Some(dirs), Ok(mounts)) = (files, dirs, sys::mounts()) else {
            return Ok(None);
        };
        let traits = serde_json::to_vec(&Traits {
            version: env!("CARGO_PKG_VERSION"),
            user: request.user,
            image: &image.id,
            within: request.within,
            hosts: request.hosts,
            files,
            dirs,
        });
        let name = format!("{}.{}", loopdev::hint_of(image_file)?, request.user.uid);
        Ok(traits.ok().map(|traits| Self {
            name,
            traits,
            mounts,
        }))
    }

    /// Moves the process into a copy of the container that is like this, to "/"; false if there is
    /// none.
    pub fn enter(&self) -> Result<bool> {
        let Some(twin) = self.find() else {
            return Ok(false);
        };
        if namespace::enter(&twin).is_err() {
            return Ok(false);
        }
        leave_to_exec(twin);
        sys::unshare_mounts().step("unshare", "mount namespace")?;
        chdir("/").step("change to", "/")?;
        Ok(true)
    }

    fn find(&self) -> Option<OwnedFd> {
        let path = format!("{RUN_DIR}/{NOTES}/{}", self.name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let note = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let text = read_note(&note)?;
        leave_to_exec(note);
        let end = text.iter().position(|byte| *byte == b'\n')?;
        let (place, rest) = text.split_at(end);
        (rest == described(&self.traits, &self.mounts)).then(|| namespace_at(place))?
    }

    /// Prepares a note for the container that is about to be built; nothing where none can be kept.
    pub fn prepare(self) -> Option<Note> {
        let path = format!("{RUN_DIR}/{NOTES}");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dir = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(dir) => dir,
            // The first container of the node.
            Err(_) => RunDir::open_for_hints()?.subdir(NOTES).ok()?,
        };
        // On a login host no teardown does it. Not each time: all of them are looked at.
        if std::process::id().is_multiple_of(SELDOM) {
            loopdev::sweep_if_many(&dir).ok()?;
        }
        Some(Note {
            dir,
            name: self.name,
            traits: self.traits,
        })
    }
}

impl Note {
    /// Writes the note, once the process is in the container; `mounts` is what its namespace was
    /// copied from. Where that fails, the next one like it is built.
    pub fn write(self, mounts: Option<&[u64]>) {
        let own = rustix::process::getpid().as_raw_nonzero();
        let number = namespace::own().ok().and_then(|namespace| {
            let number = sys::mount_namespace_id(&namespace).ok();
            leave_to_exec(namespace);
            number
        });
        let (Some(number), Some(mounts)) = (number, mounts) else {
            return;
        };
        let place = format!("{own} {number}");
        let text = [place.as_bytes(), &described(&self.traits, mounts)].concat();
        if text.len() > NOTE_LIMIT {
            return;
        }
        let (dir, new) = (&self.dir, format!("{}.{own}", self.name));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, &*new, flags, Mode::RUSR | Mode::WUSR);
        let written = file.and_then(|file| rustix::io::write(file, &text));
        if written != Ok(text.len()) || rustix::fs::renameat(dir, &*new, dir, &*self.name).is_err()
        {
            let _ = rustix::fs::unlinkat(dir, &*new, AtFlags::empty());
        }
    }
}

/// Writes down what decides, after the place of the container.
fn described(traits: &[u8], mounts: &[u64]) -> Vec<u8> {
    let mut text = vec![b'\n'];
    text.extend(traits);
    for mount in mounts {
        text.push(b' ');
        text.extend(mount.to_string().into_bytes());
    }
    text
}

/// True if a name in the directory of hints is that of a note.
pub fn is_note(name: &str) -> bool {
    name.contains('.')
}

/// True if the namespace that a note names is still there.
pub fn is_in_use(note: impl AsFd) -> bool {
    let text = read_note(note).unwrap_or_default();
    let place = text.split(|byte| *byte == b'\n').next();
    place.and_then(namespace_at).is_some()
}

/// Reads a note, if only root can have written it.
fn read_note(note: impl AsFd) -> Option<Vec<u8>> {
    let stat = rustix::fs::fstat(&note).ok()?;
    let is_roots = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_uid == 0
        && stat.st_mode & 0o022 == 0;
    is_roots.then(|| read_at_once(note, NOTE_LIMIT + 64).ok())?
}

/// Opens the namespace of the process `PID`, if it is the one with the number that is told.
fn namespace_at(place: &[u8]) -> Option<OwnedFd> {
    let (pid, number) = std::str::from_utf8(place).ok()?.split_once(' ')?;
    let (pid, number): (u32, u64) = (pid.parse().ok()?, number.parse().ok()?);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let found = rustix::fs::open(format!("/proc/{pid}/ns/mnt"), flags, Mode::empty()).ok()?;
    (sys::mount_namespace_id(&found).ok()? == number).then_some(found)
}

/// Describes a file, if there is one; an empty path is what `at` is.
fn file(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<Option<File>> {
    let stat = match rustix::fs::statx(at, path, AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let times = [stat.stx_mtime, stat.stx_ctime].map(|time| (time.tv_sec, time.tv_nsec));
    let device = [stat.stx_dev_major, stat.stx_dev_minor];
    Ok(Some(File(device, stat.stx_ino, stat.stx_size, times)))
}

/// Describes a directory, without asking a server for what the kernel knows.
fn dir(path: impl rustix::path::Arg) -> Option<Dir> {
    let mask = StatxFlags::INO | UNIQUE;
    let stat = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, mask).ok()?;
    let is_told = stat.stx_mask & UNIQUE.bits() != 0;
    is_told.then_some(Dir(stat.stx_mnt_id, stat.stx_ino))
}
