//! Directories and files of the shared state, reached without links from the audited directory.
//!
//! Everything here runs as the owner and takes a name of one component, or of two of our own.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use shifter_core::trusted::{self, TrustError};

use crate::error::{Context, Error, Result, Rule};

const PRIVATE: Mode = Mode::from_raw_mode(0o600);
const PRIVATE_DIR: Mode = Mode::from_raw_mode(0o700);

/// Bytes that are copied at once.
const CHUNK: usize = 256 << 10;

/// How the names begin of what is still being written.
pub(crate) const NEW: &str = ".new-";

/// How the names begin of what is being removed.
pub(crate) const OLD: &str = ".old-";

/// Examines the configured directory, and all above it, and opens it.
pub(crate) fn open_audited(path: &Path, owner: u32) -> Result<OwnedFd> {
    let real = trusted::audit(path, &[owner])?;
    let dir = open_dir(CWD, &real, ResolveFlags::empty()).step("open", path)?;
    let stat = rustix::fs::fstat(&dir).step("examine", path)?;
    judge(&stat, owner, FileType::Directory).map_err(|rule| TrustError::Untrusted {
        path: path.to_owned(),
        rule: rule.to_string(),
    })?;
    Ok(dir)
}

/// Opens a directory; nothing if there is none.
pub(crate) fn open(dir: impl AsFd, name: &str, owner: u32) -> Result<Option<OwnedFd>> {
    let found = match open_dir(dir, name, ResolveFlags::BENEATH) {
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
            return Err(Error::refused(name, Rule::Kind("directory")));
        }
        Err(Errno::ACCESS) => return Err(Error::refused(name, Rule::Access)),
        other => other.step("open", name)?,
    };
    let stat = rustix::fs::fstat(&found).step("examine", name)?;
    judge(&stat, owner, FileType::Directory).map_err(|rule| Error::refused(name, rule))?;
    Ok(Some(found))
}

fn open_dir(dir: impl AsFd, name: impl AsRef<Path>, scope: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, name.as_ref(), flags, Mode::empty(), links | scope)
}

/// Opens a directory, and makes it first where that is needed.
pub(crate) fn open_or_make(dir: impl AsFd, name: &str, owner: u32) -> Result<OwnedFd> {
    if let Some(found) = open(&dir, name, owner)? {
        return Ok(found);
    }
    match make(&dir, name) {
        // Another node was faster.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).step("create", name),
    }
    open(&dir, name, owner)?
        .ok_or(Errno::NOENT)
        .step("open", name)
}

/// Makes a directory that is its maker's alone.
pub(crate) fn make(dir: impl AsFd, name: &str) -> Result<(), Errno> {
    rustix::fs::mkdirat(dir, name, PRIVATE_DIR)
}

/// Opens a file; nothing if there is none.
pub(crate) fn open_file(dir: impl AsFd, name: &str, owner: u32) -> Result<Option<File>> {
    // O_NONBLOCK: a FIFO there must not hang the caller.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(dir, name, flags, Mode::empty(), within) {
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::XDEV | Errno::NXIO) => {
            return Err(Error::refused(name, Rule::Kind("regular file")));
        }
        Err(Errno::ACCESS) => return Err(Error::refused(name, Rule::Access)),
        other => other.step("open", name)?,
    };
    let stat = rustix::fs::fstat(&file).step("examine", name)?;
    judge(&stat, owner, FileType::RegularFile).map_err(|rule| Error::refused(name, rule))?;
    Ok(Some(file.into()))
}

/// Reads a file of at most `limit` bytes; nothing if there is none.
pub(crate) fn read(
    dir: impl AsFd,
    name: &str,
    owner: u32,
    limit: usize,
) -> Result<Option<Vec<u8>>> {
    let Some(file) = open_file(dir, name, owner)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .step("read", name)?;
    if bytes.len() > limit {
        return Err(Error::refused(name, Rule::Size));
    }
    Ok(Some(bytes))
}

/// Makes a file that was not there, with these parts in it.
pub(crate) fn create(dir: impl AsFd, name: &str, parts: &[&[u8]]) -> Result<(), Errno> {
    create_with(dir, name, |mut file| {
        parts.iter().try_for_each(|part| file.write_all(part))?;
        if parts.is_empty() {
            Ok(())
        } else {
            file.sync_data()
        }
    })
}

/// The same with a line and then as many bytes of a source.
pub(crate) fn create_from(
    dir: impl AsFd,
    name: &str,
    line: &str,
    source: &mut dyn Read,
    length: u64,
) -> Result<(), Errno> {
    create_with(dir, name, |mut file| {
        file.write_all(line.as_bytes())?;
        let mut writer = BufWriter::with_capacity(CHUNK, file);
        let copied = std::io::copy(&mut source.take(length), &mut writer)?;
        writer.flush()?;
        match copied == length {
            true => file.sync_data(),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    })
}

fn create_with(
    dir: impl AsFd,
    name: &str,
    write: impl FnOnce(&File) -> std::io::Result<()>,
) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name, flags, PRIVATE)?);
    // What does not fit is seen at the latest when the data leave the node: close(2) tells nobody
    // here, sync does.
    write(&file).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Judges an open file or directory: of this kind, and its owner's alone.
fn judge(stat: &Stat, owner: u32, kind: FileType) -> Result<(), Rule> {
    let (found, mode) = (stat.st_uid, stat.st_mode & 0o7777);
    if FileType::from_raw_mode(stat.st_mode) != kind {
        Err(Rule::Kind(match kind {
            FileType::Directory => "directory",
            _ => "regular file",
        }))
    } else if found != owner {
        Err(Rule::Owner {
            found,
            expected: owner,
        })
    } else if mode & 0o077 != 0 {
        Err(Rule::Mode(mode))
    } else {
        Ok(())
    }
}

/// Lists a directory, of at most `limit` names.
pub(crate) fn list(dir: impl AsFd, what: &str, limit: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).step("list", what)? {
        let entry = entry.step("list", what)?;
        let name = entry.file_name().to_string_lossy();
        if name == "." || name == ".." {
            continue;
        }
        if names.len() == limit {
            return Err(Error::refused(what, Rule::Size));
        }
        names.push(name.into_owned());
    }
    Ok(names)
}

/// Returns what is known of a name itself, wherever it may lead; nothing if it is not there.
pub(crate) fn examine(dir: impl AsFd, name: &str) -> Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).step("examine", name),
    }
}

/// Takes a name away from whatever has it; returns the one that it has now, if there was one.
pub(crate) fn hide(dir: impl AsFd, name: &str) -> Result<Option<String>> {
    let hidden = format!("{OLD}{}", random_word()?);
    match rustix::fs::renameat(&dir, name, &dir, &hidden) {
        Ok(()) => Ok(Some(hidden)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).step("remove", name),
    }
}

/// Removes a file, a link, or a directory and what is in it; what is not there, or is another's to
/// remove at the same moment, is fine.
pub(crate) fn remove(dir: impl AsFd, name: &str) -> Result<()> {
    match unlink(&dir, name, AtFlags::empty()) {
        // As Linux and as POSIX have it.
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other.step("remove", name),
    }
    let inner = match open_dir(&dir, name, ResolveFlags::BENEATH) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.step("remove", name)?,
    };
    empty(&inner, name)?;
    unlink(&dir, name, AtFlags::REMOVEDIR).step("remove", name)
}

/// Removes what is in a directory.
pub(crate) fn empty(dir: impl AsFd, name: &str) -> Result<()> {
    let names = list(&dir, name, usize::MAX)?;
    names.iter().try_for_each(|file| remove(&dir, file))
}

fn unlink(dir: impl AsFd, name: &str, flags: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Returns a word that no other node makes.
pub(crate) fn random_word() -> Result<String> {
    Ok(format!("{:016x}", random()?))
}

/// Returns a number that no other node makes.
pub(crate) fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty()).step("read", "random numbers")?;
    Ok(u64::from_ne_bytes(bytes))
}
