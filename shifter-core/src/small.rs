//! Reading files that are not believed to be small, or to be files.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::trusted::O_NONBLOCK;

/// Reads a regular file of at most `limit` bytes; nobody waits for the other end of a pipe, or reads
/// what has no end.
///
/// # Errors
/// The operating system's, and those of what is no such file.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_no_directory_and_nothing_large() {
        assert!(read(Path::new("/etc"), 10).is_err());
        assert!(read(Path::new("/dev/zero"), 10).is_err());
        assert!(read(Path::new("/etc/passwd"), 1).is_err());
        // Files below /proc say that their size is 0.
        assert!(!read(Path::new("/proc/self/stat"), 4096).unwrap().is_empty());
    }
}
