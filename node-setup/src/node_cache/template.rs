//! Seeds that were made before, on this node: `/run/shifter/templates/<fs>-<size>`.
//!
//! They are sparse files of the private tmpfs, which only root can reach, and go with it when the
//! last job does. A cache is made without one, too: nothing depends on a template.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use shifter_core::volmap::CacheFs;

use super::mkfs;
use super::seed::Seed;
use crate::error::{Context, Result};
use crate::state::{self, RunDir};

/// Templates kept at once: users choose the sizes.
const COUNT_LIMIT: usize = 16;

/// Bytes of a seed that is kept; an XFS of any size has 0.2 MB.
const BYTES_LIMIT: u64 = 4 << 20;

/// Returns the seed of a file system, from its template or else made anew.
pub fn seed(run: Option<&RunDir>, fs: CacheFs, size: u64) -> Result<Seed> {
    let name = format!("{}-{size}", fs.as_str());
    let dir = run.and_then(|run| run.subdir("templates").ok());
    if let Some(seed) = dir.as_ref().and_then(|dir| recall(dir, &name, size)) {
        return Ok(seed);
    }
    let file = mkfs::make(fs, size)?;
    let seed = Seed::read(&file).step("read", &*name)?;
    if let Some(dir) = &dir
        && seed.bytes() <= BYTES_LIMIT
    {
        // The next cache is slower without it, no more than that.
        let _ = keep(dir, &name, &seed);
    }
    Ok(seed)
}

fn recall(dir: &OwnedFd, name: &str, size: u64) -> Option<Seed> {
    let file = state::open_file(dir, name).ok()??;
    Seed::read(&file).ok().filter(|seed| seed.size() == size)
}

/// Puts a template into the directory: all of it or, whatever happens, nothing.
fn keep(dir: &OwnedFd, name: &str, seed: &Seed) -> Result<()> {
    let mut names = state::list(dir)?;
    while names.len() >= COUNT_LIMIT {
        state::remove_file(dir, &names.remove(0))?;
    }
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let file = rustix::fs::openat(dir, ".", flags, mode).step("create", name)?;
    let file = File::from(file);
    seed.write(&file).step("write", name)?;
    // One that was not what it should be.
    state::remove_file(dir, name)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).step("create", name),
    }
}
