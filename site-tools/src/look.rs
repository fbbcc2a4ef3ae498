//! Looking at files without being harmed by them: with a size limit, and never waiting for the
//! other end of a FIFO.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use shifter_core::trusted::{self, TrustError};
use shifter_core::{pattern, small};

use crate::output;

/// Who is told which path is looked at.
static LISTENER: OnceLock<fn(&Path)> = OnceLock::new();

/// Has `listener` told, from now on, of each path before it is looked at.
pub(crate) fn announce(listener: fn(&Path)) {
    // The first one stays.
    let _ = LISTENER.set(listener);
}

/// Says that this path is looked at now: nobody knows whether it answers.
pub(crate) fn at(path: &Path) {
    if let Some(listener) = LISTENER.get() {
        listener(path);
    }
}

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    at(path);
    small::read(path, limit)
}

/// Reads a file of the kernel or of the system as text; what cannot be read is empty.
pub(crate) fn text(path: impl AsRef<Path>) -> String {
    // Files below /proc say that their size is 0, so they are read to their end.
    let bytes = read(path.as_ref(), 16 << 20).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Judges a file or directory and everything above it: it may belong to root or `owners` and to
/// nobody else, and nobody else may write it. Says what is wrong and the way out.
pub(crate) fn trust(path: &Path, owners: &[u32]) -> Result<PathBuf, (String, String)> {
    at(path);
    let owners = [&[0], owners].concat();
    trusted::audit(path, &owners).map_err(|error| {
        let hint = match &error {
            TrustError::Unreadable { path, source } => match source.kind() {
                io::ErrorKind::NotFound => format!(
                    "make '{}', mount what it is on, or correct the path",
                    path.display()
                ),
                io::ErrorKind::PermissionDenied => "run this as root".to_owned(),
                _ => "look at the file system it is on".to_owned(),
            },
            TrustError::Untrusted { path, .. } if !path.is_absolute() => {
                "write the whole path".to_owned()
            }
            // A directory such as /tmp is as it should be; what must be trusted is not for there.
            TrustError::Untrusted { path, .. } if is_sticky(path) => {
                format!("use a place outside of '{}'", path.display())
            }
            TrustError::Untrusted { path, .. } => format!(
                "chown root '{0}' && chmod go-w '{0}', or use another place",
                path.display()
            ),
            TrustError::TooLarge { .. } => "make it smaller".to_owned(),
        };
        (output::chain(&error), hint)
    })
}

fn is_sticky(path: &Path) -> bool {
    let mode = path.metadata().map_or(0, |meta| meta.mode());
    mode & 0o1000 != 0
}

/// True if the failure of [`trust`] or of a look at a file is one of permission alone.
pub(crate) fn is_denied(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::PermissionDenied)
}

/// Finds a program in the directories in which Shifter looks for the system's.
pub(crate) fn program(names: &[&str]) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .flat_map(|dir| names.iter().map(move |name| Path::new(dir).join(name)))
        .find(|path| path.is_file())
}

/// Returns the effective uid of this process.
pub(crate) fn own_uid() -> u32 {
    ids(&text("/proc/self/status")).map_or(u32::MAX, |(_, effective)| effective)
}

/// Returns the real and effective uid in the text of /proc/PID/status.
pub(crate) fn ids(status: &str) -> Option<(u32, u32)> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut ids = ids.split_ascii_whitespace().map(str::parse);
    Some((ids.next()?.ok()?, ids.next()?.ok()?))
}

/// Lists the names that match a pattern in which `*` is any text and `?` any character, sorted.
/// Names that begin with a dot match only a pattern that does.
pub(crate) fn expand(dir: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
    at(dir);
    let mut names = Vec::new();
    for entry in dir.read_dir()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') == pattern.starts_with('.')
            && pattern::fits(pattern.as_bytes(), name.as_bytes())
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_says() {
        assert!(text("/proc/filesystems").contains("tmpfs"));
        assert_eq!(ids("Name:\tx\nUid:\t5\t0\t0\t0\n"), Some((5, 0)));
        assert_eq!(ids("Uid:\tx"), None);
    }

    #[test]
    fn trust_names_the_way_out() {
        assert!(trust(Path::new("/etc/passwd"), &[]).is_ok());
        let (message, hint) = trust(Path::new("/no/such"), &[]).unwrap_err();
        assert!(
            message.contains("'/no/such'") && hint.contains("mount"),
            "{message} {hint}"
        );
        let dir = tempfile::tempdir().unwrap();
        let (message, hint) = trust(dir.path(), &[]).unwrap_err();
        assert!(
            message.contains("not trusted") && hint.contains(" place"),
            "{message} {hint}"
        );
    }
}
