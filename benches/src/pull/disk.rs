//! A file system of its own for what pulls write: what is used of it at most is what they need.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use rustix::fs::statvfs;
use shifter_tests::call::Call;

/// Where it is mounted.
pub const AT: &str = "/tmp/bench/disk";

/// Often enough for what lasts.
const INTERVAL: Duration = Duration::from_millis(5);

/// The file system, until this is dropped.
pub struct Disk {
    file: String,
}

impl Disk {
    /// Makes it in a file.
    pub fn make(file: &str) -> Result<Self> {
        Call::shell(&format!(
            "set -e; rm -f {file}; truncate -s 24G {file}; mkdir -p {AT}
             mkfs.ext4 -q -m 0 -E lazy_itable_init=0,lazy_journal_init=0 {file}
             mount -o loop,noatime {file} {AT}"
        ))
        .ok()?;
        let file = file.to_owned();
        Ok(Self { file })
    }

    /// Waits until what was written before is on the disk.
    pub fn settle(&self) -> Result<()> {
        Call::new(["sync", "-f", AT]).ok().map(drop)
    }

    /// Returns the bytes in use, also by files that are open and have no name.
    pub fn used(&self) -> Result<u64> {
        let state = statvfs(AT)?;
        Ok((state.f_blocks - state.f_bfree) * state.f_frsize)
    }

    /// Does something, and returns how much was in use at most, beyond what was at the beginning.
    pub fn watch<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
        let (before, most, is_done) = (self.used()?, AtomicU64::new(0), AtomicBool::new(false));
        let done = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    most.fetch_max(self.used().unwrap_or(0), Ordering::Relaxed);
                    std::thread::sleep(INTERVAL);
                }
            });
            let done = act();
            is_done.store(true, Ordering::Relaxed);
            done
        })?;
        let most = most.into_inner().max(self.used()?);
        Ok((done, most.saturating_sub(before)))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The world would unmount it, but not remove the file.
        let script = format!("umount -l {AT}; rm -f {}", self.file);
        let _ = Call::shell(&script).output();
    }
}
