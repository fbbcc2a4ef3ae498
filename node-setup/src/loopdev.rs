//! One loop device per image file and node, without a reference count of our own.
//!
//! A device is attached with autoclear: the kernel frees it when the last mount and the last
//! open descriptor are gone. Whoever opens an attached device keeps it attached, so a hint that
//! is found true after the device was opened stays true. The hints lie in
//! `/run/shifter/images/<device>-<inode>` and hold one line: `loop size ctime`. Beside them lie the
//! notes of [`crate::twin`].
//!
//! A file that is to be written gets a device of its own, without a hint.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use shifter_core::layout::RUN_DIR;

use crate::error::{Context, Result};
use crate::state;
use crate::sys::{self, LOOP_AUTOCLEAR, LOOP_DIRECT_IO, LOOP_READ_ONLY};
use crate::twin;

/// How an image is attached.
const IMAGE: u32 = LOOP_READ_ONLY | LOOP_AUTOCLEAR;

const CONTROL: &str = "/dev/loop-control";

/// How long to wait for others: for a hint's lock, or when they take every free device first.
const PATIENCE: Duration = Duration::from_secs(5);

/// Hints that may lie there before those of no use are looked for.
const ENOUGH_HINTS: usize = 64;

/// A loop device with an image file, attached as long as this or a mount of it lives.
pub struct LoopDevice {
    number: u32,
    /// True if others on this node had the file attached to it already.
    pub is_shared: bool,
    _held: OwnedFd,
}

impl LoopDevice {
    /// Returns the device's path.
    pub fn path(&self) -> String {
        device_path(self.number)
    }
}

/// True if this node has loop devices at all.
pub fn exist() -> bool {
    let absent = [Errno::NOENT, Errno::NODEV, Errno::NXIO];
    let opened = rustix::fs::open(CONTROL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    opened.err().is_none_or(|error| !absent.contains(&error))
}

/// Returns the device that already has `file`, or attaches one. `hints` is the open
/// `/run/shifter/images`; without it the file gets a device of its own.
pub fn attach(file: &OwnedFd, hints: Option<&OwnedFd>) -> Result<LoopDevice> {
    let stat = rustix::fs::fstat(file).step("examine", "image")?;
    let Some(hints) = hints else {
        return attach_new(file, IMAGE, 0);
    };
    let name = hint_name(&stat);
    loop {
        let mut hint = File::from(state::create_file(hints.as_fd(), &name)?);
        // The holder may be a program that its user has frozen (cgroup.freeze): sharing is worth
        // a moment's wait, never more.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = rustix::fs::flock(&hint, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK {
                return Err(error).step("lock", &*name);
            }
            if Instant::now() > deadline {
                return attach_new(file, IMAGE, 0);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // A sweep removed the hint while we waited for its lock.
        if rustix::fs::fstat(&hint).step("examine", &*name)?.st_nlink == 0 {
            continue;
        }
        if let Some(device) = recall(&mut hint, &stat) {
            return Ok(device);
        }
        let device = attach_new(file, IMAGE, 0)?;
        let is_new = hint.metadata().step("examine", &*name)?.len() == 0;
        let line = format!("{} {} {}\n", device.number, stat.st_size, stat.st_ctime);
        hint.set_len(0).step("write", &*name)?;
        hint.rewind().step("write", &*name)?;
        hint.write_all(line.as_bytes()).step("write", &*name)?;
        // Jobs' teardowns sweep; on a login host there are none.
        if is_new {
            sweep_if_many(hints)?;
        }
        return Ok(device);
    }
}

/// Returns the device that already has `file`, if a hint says so and is found true. Takes no
/// lock and holds nothing of /run/shifter: the device itself tells whether the hint is true.
pub fn recall_unlocked(file: &OwnedFd) -> Result<Option<LoopDevice>> {
    let stat = rustix::fs::fstat(file).step("examine", "image")?;
    let path = format!("{RUN_DIR}/images/{}", hint_name(&stat));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(hint) = rustix::fs::open(path, flags, Mode::empty()) else {
        return Ok(None);
    };
    Ok(recall(&mut File::from(hint), &stat))
}

/// Returns the name of a file's hint.
pub fn hint_of(file: &OwnedFd) -> Result<String> {
    let stat = rustix::fs::fstat(file).step("examine", "image")?;
    Ok(hint_name(&stat))
}

/// Does the same as [`sweep`] where there may be much to remove.
pub fn sweep_if_many(hints: &OwnedFd) -> Result<()> {
    if state::list(hints)?.len() > ENOUGH_HINTS {
        sweep(hints)?;
    }
    Ok(())
}

/// Removes the hints whose device no longer has their file, and the notes whose container is gone.
pub fn sweep(hints: &OwnedFd) -> Result<()> {
    for name in state::list(hints)? {
        if twin::is_note(&name) {
            let note = state::open_file(hints, &name)?;
            if !note.is_some_and(twin::is_in_use) {
                state::remove_file(hints, &name)?;
            }
            continue;
        }
        let mut hint = File::from(state::create_file(hints.as_fd(), &name)?);
        if rustix::fs::flock(&hint, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let in_use = read_hint(&mut hint).is_some_and(|(number, ..)| {
            let has_file = open_device(number)
                .and_then(sys::loop_status)
                .is_ok_and(|info| name == name_of(info.device, info.inode));
            // The kernel frees a device when the last one closes it, which may just have been us.
            has_file && !is_free(number)
        });
        if !in_use {
            rustix::fs::unlinkat(hints, &name, AtFlags::empty()).step("remove", &*name)?;
        }
    }
    Ok(())
}

/// True if a device has no file, by sysfs, where nobody need open it.
fn is_free(number: u32) -> bool {
    let device = format!("/sys/block/loop{number}");
    rustix::fs::stat(&device).is_ok() && rustix::fs::stat(device + "/loop").is_err()
}

/// Opens the device that the hint names, if it still has exactly this file.
fn recall(hint: &mut File, stat: &Stat) -> Option<LoopDevice> {
    let (number, size, ctime) = read_hint(hint)?;
    if (size, ctime) != (stat.st_size, stat.st_ctime) {
        return None;
    }
    let held = open_device(number).ok()?;
    let info = sys::loop_status(&held).ok()?;
    let same = name_of(info.device, info.inode) == hint_name(stat)
        && info.flags & IMAGE == IMAGE
        && (info.offset, info.size_limit) == (0, 0);
    same.then_some(LoopDevice {
        number,
        is_shared: true,
        _held: held,
    })
}

fn read_hint(hint: &mut File) -> Option<(u32, i64, i64)> {
    let mut bytes = [0; 128];
    let count = hint.read(&mut bytes).ok()?;
    let text = std::str::from_utf8(bytes.get(..count)?).ok()?;
    let mut words = text.split_ascii_whitespace();
    let mut next = || words.next();
    Some((
        next()?.parse().ok()?,
        next()?.parse().ok()?,
        next()?.parse().ok()?,
    ))
}

/// Attaches a file that is to be written, to a device with sectors of `sector` bytes.
///
/// Direct I/O keeps the file's data from being cached twice, and writes a parallel or FUSE file
/// system in large pieces: there it more than doubles what reaches the storage. It begins with a
/// flush, though, which takes a local disk longer than all else.
pub fn attach_writable(file: impl AsFd, sector: u32) -> Result<LoopDevice> {
    let stat = rustix::fs::fstat(&file).step("examine", "file")?;
    // A file system on a device of this node has that device's number.
    let direct = match rustix::fs::major(stat.st_dev) {
        0 => LOOP_DIRECT_IO,
        _ => 0,
    };
    attach_new(file, LOOP_AUTOCLEAR | direct, sector)
}

fn attach_new(file: impl AsFd, flags: u32, sector: u32) -> Result<LoopDevice> {
    let access = OFlags::RDWR | OFlags::CLOEXEC;
    let control = rustix::fs::open(CONTROL, access, Mode::empty()).step("open", CONTROL)?;
    let file = file.as_fd();
    // Writable if the device's descriptor is, too.
    let access = match flags & LOOP_READ_ONLY {
        0 => OFlags::RDWR,
        _ => OFlags::RDONLY,
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let number = sys::loop_get_free(&control).step("find a free loop device in", CONTROL)?;
        // Between finding and attaching a device another process may take it (EBUSY), or the
        // device's node may not be there yet (ENOENT, ENXIO).
        let attempt = open_with(number, access)
            .and_then(|device| sys::loop_configure(&device, file, flags, sector).map(|()| device));
        match attempt {
            Ok(held) => {
                return Ok(LoopDevice {
                    number,
                    is_shared: false,
                    _held: held,
                });
            }
            Err(error) if is_transient(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(error) => return Err(error).step("attach a file to", &*device_path(number)),
        }
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::BUSY | Errno::NOENT | Errno::NXIO))
}

fn open_device(number: u32) -> std::io::Result<OwnedFd> {
    open_with(number, OFlags::RDONLY)
}

fn open_with(number: u32, access: OFlags) -> std::io::Result<OwnedFd> {
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(device_path(number), flags, Mode::empty())?)
}

fn device_path(number: u32) -> String {
    format!("/dev/loop{number}")
}

fn hint_name(stat: &Stat) -> String {
    name_of(stat.st_dev, stat.st_ino)
}

fn name_of(device: u64, inode: u64) -> String {
    format!("{device:x}-{inode}")
}
