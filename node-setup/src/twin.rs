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
//! | the image's file, the configuration, /etc/hosts, /etc/resolv.conf | by inode, size and times |
//! | directories that it shows: the site's, /tmp, what lies at /opt/udiImage | by mount and inode |
//! | what is mounted on the host, where the caller sees it | by the numbers of all mounts, which the kernel uses once (listmount(2), Linux 6.8) |
//!
//! A mount of the host's whose own flags are changed without unmounting it is seen by new containers
//! when the last one like them has ended. Containers with volumes, modules, scratch space or hooks are always
//! built: what these bring is looked up as their user, or has effects.
//!
//! Only root writes notes, the kernel never gives the number of a namespace to another one
//! (NS_GET_MNTNS_ID, Linux 6.11), and no process in a container can change what is mounted there:
//! that takes privileges over the namespace that nobody in it has.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
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

/// Files of the host that a root is made from.
const FILES: [&str; 3] = [DEFAULT_PATH, "/etc/hosts", "/etc/resolv.conf"];

/// Directories of the host that every container shows and that need not be mounts there.
const DIRS: [&str; 2] = ["/tmp", "/var/tmp"];

/// What a private container is like.
pub struct Likeness {
    path: String,
    text: Vec<u8>,
}

/// All that decides it, as it is written down.
#[derive(Serialize)]
struct Traits<'a> {
    version: &'a str,
    user: &'a Identity,
    image: &'a str,
    within: Option<&'a JobId>,
    hosts: &'a [HostSlots],
    files: Vec<File>,
    dirs: Vec<Dir>,
    mounts: Vec<u64>,
}

/// A file as it was: device, inode, size, times of the last changes.
#[derive(Serialize)]
struct File([u32; 2], u64, u64, [(i64, u32); 2]);

/// A directory: the mount that it is on, and its inode.
#[derive(Serialize)]
struct Dir(u64, u64);

/// A note that is to be written when the container is there.
pub struct Note {
    file: OwnedFd,
    text: Vec<u8>,
}

impl Likeness {
    /// Describes what is asked for; nothing if it is always to be built, or if the kernel cannot tell
    /// all that decides.
    pub fn of(request: &RootRequest<'_>) -> Result<Option<Self>> {
        let Source::SiteFile(image) = &request.image.source else {
            return Ok(None);
        };
        let hooks = &request.config.hooks;
        let is_plain = request.volumes.is_empty()
            && request.modules.is_empty()
            && request.writable.is_none()
            && hooks.pre_mount.is_empty()
            && hooks.post_mount.is_empty();
        if !is_plain {
            return Ok(None);
        }
        let Ok(mounts) = sys::mounts() else {
            return Ok(None);
        };
        let mut files = vec![file(image, "")];
        files.extend(FILES.map(|path| file(CWD, path)));
        let config = &request.config;
        let site_mounts = config.site_mounts();
        let udi = layout::udi_image(&config.prefix);
        let mut dirs = vec![dir(&*udi)];
        dirs.extend(config.root.udi_image.as_deref().map(dir));
        dirs.extend(DIRS.map(dir));
        for volume in site_mounts.entries() {
            request.watch.on(Awaited::SiteMount(&volume.from))?;
            dirs.push(dir(&*volume.from));
        }
        request.watch.on(Awaited::Nothing)?;
        let (Some(files), Some(dirs)) = (
            files.into_iter().collect::<Option<Vec<File>>>(),
            dirs.into_iter().collect::<Option<Vec<Dir>>>(),
        ) else {
            return Ok(None);
        };
        let traits = Traits {
            version: env!("CARGO_PKG_VERSION"),
            user: request.user,
            image: &request.image.id,
            within: request.within,
            hosts: request.hosts,
            files,
            dirs,
            mounts,
        };
        let text = serde_json::to_vec(&traits).unwrap_or_default();
        let hint = loopdev::hint_of(image)?;
        let path = format!("{RUN_DIR}/images/{hint}.{}", request.user.uid);
        Ok((text.len() < NOTE_LIMIT).then_some(Self { path, text }))
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
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let note = rustix::fs::open(&*self.path, flags, Mode::empty()).ok()?;
        let text = read_note(&note)?;
        leave_to_exec(note);
        let end = text.iter().position(|byte| *byte == b'\n')?;
        let (place, rest) = text.split_at(end);
        (rest[1..] == *self.text).then(|| namespace_at(place))?
    }

    /// Opens a note for the container that is about to be built; nothing where none can be kept.
    pub fn prepare(self, request: &RootRequest<'_>) -> Result<Option<Note>> {
        if let Some(note) = self.open() {
            return Ok(Some(note));
        }
        // The first container of the node: where notes are kept is a mount, too.
        let made = RunDir::open_for_hints().map(|run| run.subdir("images"));
        match made {
            Some(Ok(_)) => Ok(Self::of(request)?.and_then(|likeness| likeness.open())),
            _ => Ok(None),
        }
    }

    fn open(&self) -> Option<Note> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&*self.path, flags, Mode::RUSR | Mode::WUSR).ok()?;
        let text = self.text.clone();
        Some(Note { file, text })
    }
}

impl Note {
    /// Writes the note, once the process is in the container. Where that fails, the next one like it
    /// is built.
    pub fn write(self) {
        let own = rustix::process::getpid();
        let own_namespace = namespace::own().ok();
        let number = own_namespace.and_then(|own| {
            let number = sys::mount_namespace_id(&own).ok();
            leave_to_exec(own);
            number
        });
        if let Some(number) = number {
            let place = format!("{} {number}\n", own.as_raw_nonzero());
            let text = [place.as_bytes(), &self.text].concat();
            let _ = rustix::io::write(&self.file, &text);
        }
    }
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

/// Describes a file; an empty path is what `at` is.
fn file(at: impl AsFd, path: &str) -> Option<File> {
    let mask = StatxFlags::BASIC_STATS;
    let stat = rustix::fs::statx(at, path, AtFlags::EMPTY_PATH, mask).ok()?;
    let times = [stat.stx_mtime, stat.stx_ctime].map(|time| (time.tv_sec, time.tv_nsec));
    let device = [stat.stx_dev_major, stat.stx_dev_minor];
    Some(File(device, stat.stx_ino, stat.stx_size, times))
}

/// Describes a directory, without asking a server for what the kernel knows.
fn dir(path: impl rustix::path::Arg) -> Option<Dir> {
    let mask = StatxFlags::INO | UNIQUE;
    let stat = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, mask).ok()?;
    let is_told = stat.stx_mask & UNIQUE.bits() != 0;
    is_told.then_some(Dir(stat.stx_mnt_id, stat.stx_ino))
}
