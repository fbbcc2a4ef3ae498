//! Reading files that steer privileged code: configuration, manifests, hooks.
//!
//! Such a file counts only if root owns it and nobody else can write it or any directory on
//! the way to it, links included; otherwise whoever can write there is root already.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

// <bits/fcntl-linux.h>, the same number on every architecture Slurm runs on that is not Alpha or
// PA-RISC; std has no portable name for them and this crate takes no libc.
pub(crate) const O_NONBLOCK: i32 = 0o4000;

/// Links that a path may go through, as for the kernel.
const LINK_LIMIT: usize = 40;

/// Says which file or directory is not trusted and why.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The file or a directory above it could not be examined.
    #[error("cannot read '{}'", .path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Somebody other than the owner allowed could change the file.
    #[error("'{}' is not trusted: {rule}", .path.display())]
    Untrusted {
        /// The file or directory that breaks the rule.
        path: PathBuf,
        /// The rule that is broken and how to keep it.
        rule: String,
    },
    /// The file is larger than anything sensible.
    #[error("'{}' is larger than {limit} bytes", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The size it may have.
        limit: u64,
    },
}

/// Reads a file of at most `limit` bytes that only root can have written.
///
/// # Errors
/// Names the first file or directory that is not root's alone, or that cannot be read.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, TrustError> {
    let (file, size) = open_sized(path, &[0])?;
    let unreadable = |source| TrustError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::with_capacity(8 << 10);
    file.take(expected(size, limit))
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(TrustError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

/// Opens a regular file for reading if it and everything above it belongs to root or one of
/// `owners` and is writable by nobody else.
pub fn open(path: &Path, owners: &[u32]) -> Result<File, TrustError> {
    open_sized(path, owners).map(|(file, _)| file)
}

/// How many bytes of a file of this size to ask for: with its last one, so that nobody has to ask
/// whether there are more. A file without a size, as in /proc, is read to its end.
pub fn expected(size: u64, limit: u64) -> u64 {
    match size {
        0 => limit + 1,
        size => size.min(limit + 1),
    }
}

fn open_sized(path: &Path, owners: &[u32]) -> Result<(File, u64), TrustError> {
    let real = audit(path, owners)?;
    // O_NONBLOCK: a FIFO put there by mistake must not hang the caller.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(&real)
        .map_err(|source| TrustError::Unreadable {
            path: real.clone(),
            source,
        })?;
    let meta = file.metadata().map_err(|source| TrustError::Unreadable {
        path: real.clone(),
        source,
    })?;
    if !meta.is_file() {
        return Err(TrustError::Untrusted {
            path: real,
            rule: "it must be a regular file".into(),
        });
    }
    judge(&real, &meta, owners)?;
    Ok((file, meta.len()))
}

/// Examines every directory and link on the way to `path`, and what they lead to, and returns the
/// path without links. Nobody but the owners can make it lead elsewhere later.
pub fn audit(path: &Path, owners: &[u32]) -> Result<PathBuf, TrustError> {
    let unreadable = |source| TrustError::Unreadable {
        path: path.to_owned(),
        source,
    };
    if !path.is_absolute() {
        return Err(TrustError::Untrusted {
            path: path.to_owned(),
            rule: "it must be an absolute path".into(),
        });
    }
    let mut at = PathBuf::from("/");
    judge(&at, &at.symlink_metadata().map_err(unreadable)?, owners)?;
    let mut names = reversed(path);
    let mut links = 0;
    while let Some(name) = names.pop() {
        // As the kernel does: by way of where links have led.
        if name == ".." {
            at.pop();
            continue;
        }
        let step = at.join(&name);
        let meta = step.symlink_metadata().map_err(unreadable)?;
        judge(&step, &meta, owners)?;
        if !meta.is_symlink() {
            at = step;
            continue;
        }
        links += 1;
        if links > LINK_LIMIT {
            return Err(TrustError::Untrusted {
                path: path.to_owned(),
                rule: format!("it goes through more than {LINK_LIMIT} links"),
            });
        }
        let target = step.read_link().map_err(unreadable)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        names.extend(reversed(&target));
    }
    Ok(at)
}

/// Returns the names of a path, the last one first, without the root.
fn reversed(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

fn judge(path: &Path, meta: &Metadata, owners: &[u32]) -> Result<(), TrustError> {
    let untrusted = |rule: String| {
        Err(TrustError::Untrusted {
            path: path.to_owned(),
            rule,
        })
    };
    if meta.uid() != 0 && !owners.contains(&meta.uid()) {
        return untrusted(format!(
            "it belongs to uid {} and must belong to root",
            meta.uid()
        ));
    }
    // A link's own mode is always 0777 and means nothing.
    if !meta.file_type().is_symlink() && meta.mode() & 0o022 != 0 {
        return untrusted(format!(
            "its mode {:04o} lets others write; remove that with 'chmod go-w'",
            meta.mode() & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_others_can_change() {
        // The temporary directory is writable by all, so nothing below it is trusted.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        std::fs::write(&file, "y").unwrap();
        let error = read(&file, 10).unwrap_err();
        assert!(matches!(error, TrustError::Untrusted { .. }), "{error}");
        assert!(matches!(
            read(Path::new("x"), 1),
            Err(TrustError::Untrusted { .. })
        ));
        assert!(matches!(
            read(Path::new("/no/such"), 1),
            Err(TrustError::Unreadable { .. })
        ));
    }

    #[test]
    fn follows_links_as_the_kernel_does() {
        for path in [
            "/proc/1/../self/exe",
            "/etc/../usr/./bin/env",
            "/bin",
            "/etc/mtab",
        ] {
            let path = Path::new(path);
            let Ok(real) = path.canonicalize() else {
                continue;
            };
            let owner = real.symlink_metadata().unwrap().uid();
            // Links of the process's own belong to its user.
            let own = path.symlink_metadata().unwrap().uid();
            match audit(path, &[owner, own]) {
                Ok(found) => assert_eq!(found, real, "{}", path.display()),
                Err(error) => assert!(matches!(error, TrustError::Untrusted { .. }), "{error}"),
            }
        }
    }

    #[test]
    fn reads_a_system_file_within_its_limit() {
        assert!(!read(Path::new("/etc/passwd"), 1 << 20).unwrap().is_empty());
        assert!(matches!(
            read(Path::new("/etc/passwd"), 3),
            Err(TrustError::TooLarge { .. })
        ));
        assert!(matches!(
            open(Path::new("/etc"), &[]),
            Err(TrustError::Untrusted { .. })
        ));
    }
}
