//! Files below an open directory: confined opening, durable replacement.
//!
//! Everything is relative to a directory descriptor and follows no symbolic link, so whoever can
//! rename directories above cannot lead a write elsewhere. Modes never depend on the umask.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

const CONFINED: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Opens a directory by its full path; with `follow` the last component may be a link.
pub(crate) fn open_dir(path: &Path, follow: bool) -> io::Result<OwnedFd> {
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens the directory `name` of this user, which is made with exactly `mode` if it is missing.
pub(crate) fn make_dir(dir: impl AsFd, name: &str, mode: u32) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let opened = open_subdir(dir, name)?;
    let found = rustix::fs::fstat(&opened)?;
    if found.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("'{name}' belongs to uid {}", found.st_uid),
        ));
    }
    // Also after a kill between the two steps.
    if found.st_mode & 0o7777 != mode {
        rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode))?;
    }
    Ok(opened)
}

/// Opens the directory at a relative path.
pub(crate) fn open_subdir(dir: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        dir,
        path,
        flags,
        Mode::empty(),
        CONFINED,
    )?)
}

/// Opens a regular file for reading; none if it does not exist.
pub(crate) fn open(dir: impl AsFd, path: &str) -> io::Result<Option<File>> {
    // O_NONBLOCK: a FIFO must not hang the caller.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat2(dir, path, flags, Mode::empty(), CONFINED) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if file.metadata()?.is_file() {
        Ok(Some(file))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ))
    }
}

/// Reads a regular file of at most `limit` bytes; none if it does not exist.
pub(crate) fn read(dir: impl AsFd, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open(dir, path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is too large",
        ));
    }
    Ok(Some(bytes))
}

/// Returns the size of a regular file; none if there is no regular file of that name.
pub(crate) fn size(dir: impl AsFd, name: &str) -> Option<u64> {
    let found = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    is_file.then(|| u64::try_from(found.st_size).unwrap_or_default())
}

/// Makes a new file, mode 0600, in place of an older one of that name.
pub(crate) fn create(dir: impl AsFd, name: &str) -> io::Result<File> {
    remove(&dir, name)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(dir, name, flags, Mode::from_raw_mode(0o600), CONFINED)?.into())
}

/// Opens the file `name` of this user for reading and writing, made with mode 0600 if it is missing.
pub(crate) fn open_private(dir: impl AsFd, name: &str) -> io::Result<File> {
    // O_NONBLOCK: a FIFO must not hang the caller.
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let file = File::from(rustix::fs::openat2(dir, name, flags, mode, CONFINED)?);
    let found = rustix::fs::fstat(&file)?;
    let refuse = |rule| Err(io::Error::new(io::ErrorKind::InvalidInput, rule));
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return refuse("it is not a regular file");
    }
    if found.st_uid != rustix::process::geteuid().as_raw() {
        return refuse("it belongs to somebody else");
    }
    // Whatever the umask was, and after a kill between two steps.
    if found.st_mode & 0o7777 != 0o600 {
        rustix::fs::fchmod(&file, mode)?;
    }
    Ok(file)
}

/// Gives a finished file its mode and its name: a reader sees the old file or the new one.
pub(crate) fn publish(
    dir: impl AsFd,
    temporary: &str,
    file: &File,
    target: (impl AsFd, &str),
    mode: u32,
) -> io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    file.sync_all()?;
    rustix::fs::renameat(dir, temporary, &target.0, target.1)?;
    sync(target.0)
}

/// Writes a small file and publishes it.
pub(crate) fn replace(
    dir: impl AsFd,
    temporary: &str,
    bytes: &[u8],
    target: (impl AsFd, &str),
    mode: u32,
) -> io::Result<()> {
    let mut file = create(&dir, temporary)?;
    file.write_all(bytes)?;
    publish(dir, temporary, &file, target, mode)
}

/// Makes renames and removals in a directory durable.
pub(crate) fn sync(dir: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(dir)?)
}

/// Removes the file `name`, which is no path, if it exists.
pub(crate) fn remove(dir: impl AsFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lists the names in a directory, those that are not UTF-8 left out: none of ours are.
pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    // A descriptor of its own: the position of `dir` stays where it is.
    for entry in rustix::fs::Dir::read_from(dir)? {
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn nothing_outside_the_directory_is_reached() {
        let temp = tempfile::tempdir().unwrap();
        let dir = open_dir(temp.path(), false).unwrap();
        std::os::unix::fs::symlink("/etc", temp.path().join("link")).unwrap();
        assert!(read(&dir, "link/passwd", 1 << 20).is_err());
        assert!(read(&dir, "../x", 9).is_err());
        assert!(open_subdir(&dir, "link").is_err());
        assert!(make_dir(&dir, "link", 0o755).is_err());
        assert!(create(&dir, "../x").is_err() && open_private(&dir, "link/x").is_err());
        assert!(open_dir(&temp.path().join("link"), false).is_err());
        assert_eq!(read(&dir, "missing", 9).unwrap(), None);
    }

    #[test]
    fn replaces_and_limits() {
        let temp = tempfile::tempdir().unwrap();
        let dir = open_dir(temp.path(), false).unwrap();
        let sub = make_dir(&dir, "sub", 0o755).unwrap();
        for text in ["one", "two"] {
            replace(&dir, ".tmp", text.as_bytes(), (&sub, "f"), 0o644).unwrap();
            assert_eq!(read(&dir, "sub/f", 3).unwrap().unwrap(), text.as_bytes());
        }
        assert!(read(&dir, "sub/f", 2).is_err());
        assert_eq!(names(&dir).unwrap(), ["sub"]);
        assert_eq!(size(&sub, "f"), Some(3));
        assert_eq!(size(&dir, "sub"), None);
        let mode = |path| {
            std::fs::metadata(temp.path().join(path))
                .unwrap()
                .permissions()
                .mode()
        };
        assert_eq!(
            (mode("sub") & 0o7777, mode("sub/f") & 0o7777),
            (0o755, 0o644)
        );
    }
}
