//! Making a file system in memory with the system's mkfs.
//!
//! The program is root's alone up the whole path, gets fixed arguments, an empty environment and
//! no descriptor but the file's, never sees a name or text of a user's, and has a deadline.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shifter_core::trusted::{self, TrustError};
use shifter_core::volmap::CacheFs;

use crate::error::{Context, Error, Result};

const DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Ten times what the largest file system takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// Bytes of a complaint that are looked at.
const COMPLAINT_LIMIT: u64 = 4096;

/// A size in bytes and as users write it.
pub type Size = (u64, &'static str);

/// Returns the smallest and the largest size of a file system. mkfs.xfs refuses less than 300 MiB;
/// for more than the largest, mkfs would need too much memory.
pub fn sizes(fs: CacheFs) -> (Size, Size) {
    match fs {
        CacheFs::Xfs => ((300 << 20, "300m"), (1 << 49, "512t")),
        CacheFs::Ext4 => ((1 << 20, "1m"), (1 << 44, "16t")),
    }
}

/// Returns what mkfs is told. Sectors are as large as blocks, so that every write is of the size
/// in which the file system below writes, too.
fn arguments(fs: CacheFs) -> &'static [&'static str] {
    match fs {
        // The log would grow to 2 GB with the size: all of it zeroed here, and written below. Without
        // what is for clones of files and for file systems that grow old, mounting makes 15 reads
        // instead of 23, each of them a wait for the storage.
        CacheFs::Xfs => &[
            "-q",
            "-f",
            "-K",
            "-s",
            "size=4096",
            "-l",
            "size=64m",
            "-m",
            "reflink=0,finobt=0",
        ],
        // No journal: nobody ever mounts what a crash has left. No second superblock, nothing
        // zeroed twice, and all metadata in one place: few blocks to write below.
        CacheFs::Ext4 => &[
            "-q",
            "-F",
            "-b",
            "4096",
            "-m",
            "0",
            "-O",
            "^has_journal,^resize_inode,sparse_super2",
            "-E",
            "lazy_itable_init=1,nodiscard,root_owner=0:0,num_backup_sb=0,packed_meta_blocks=1",
        ],
    }
}

/// Makes a file system in a file in memory, which is sparse.
///
/// # Errors
/// The program is missing, not trusted, fails or takes too long: all of it the node's failure.
pub fn make(fs: CacheFs, size: u64) -> Result<File> {
    let program = find(&format!("mkfs.{}", fs.as_str()))?;
    // Without CLOEXEC: the program opens it by its number.
    let file = memfd_create("cache", MemfdFlags::empty()).step("create", "file in memory")?;
    let file = File::from(file);
    file.set_len(size).step("create", "file in memory")?;
    let mut complaint = File::from(
        memfd_create("complaint", MemfdFlags::CLOEXEC).step("create", "file in memory")?,
    );
    let mut command = Command::new(&program);
    command
        .args(arguments(fs))
        .arg(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(complaint.try_clone().step("create", "file in memory")?);
    let status = run(&mut command).step("run", &program)?;
    if status.success() {
        if fs == CacheFs::Xfs {
            empty_log(&file).step("examine what was made by", &program)?;
        }
        return Ok(file);
    }
    let mut text = String::new();
    // Without a complaint the status alone must do.
    let _ = complaint.rewind();
    let _ = complaint.take(COMPLAINT_LIMIT).read_to_string(&mut text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    let reason = format!("{status}: {}", line.unwrap_or("no reason given"));
    Err(io::Error::other(reason)).step("make a file system with", &program)
}

/// Takes the record out of a new XFS's log. In an empty log ("totally zeroed", as the kernel says)
/// there is nothing to be found: on mounting, the kernel neither reads it nor clears its next
/// 2 MB, which would be most of what a mount writes and takes.
fn empty_log(file: &File) -> io::Result<()> {
    // The superblock, see xfs_dsb in the kernel's fs/xfs/libxfs/xfs_format.h.
    let mut block = [0; 512];
    file.read_exact_at(&mut block, 0)?;
    let log = log_of(&block).filter(|log| log.end <= file.metadata().map_or(0, |m| m.len()));
    let log = log.ok_or(io::ErrorKind::InvalidData)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, log.start, log.end - log.start)?)
}

/// Returns where the log is that a superblock describes.
fn log_of(superblock: &[u8; 512]) -> Option<Range<u64>> {
    let number = |at: usize, length: usize| {
        let bytes = &superblock[at..at + length];
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    if !superblock.starts_with(b"XFSB") {
        return None;
    }
    let (block_size, start, group_blocks) = (number(4, 4), number(48, 8), number(84, 4));
    let (blocks, group_bits) = (number(96, 4), number(124, 1));
    // A block's number is its group and, in the lower bits, its place in the group.
    let group = start.checked_shr(u32::try_from(group_bits).ok()?)?;
    let place = start & (1_u64.checked_shl(u32::try_from(group_bits).ok()?)? - 1);
    let first = group.checked_mul(group_blocks)?.checked_add(place)?;
    let start = first.checked_mul(block_size)?;
    Some(start..start.checked_add(blocks.checked_mul(block_size)?)?)
}

/// Finds a program of the system.
fn find(name: &str) -> Result<PathBuf> {
    for dir in DIRS {
        let path = Path::new(dir).join(name);
        match trusted::audit(&path, &[0]) {
            Ok(_) => return Ok(path),
            Err(TrustError::Unreadable { source, .. })
                if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::Untrusted(error)),
        }
    }
    Err(Errno::NOENT).step("find", name)
}

/// Runs a program to its end, or ends it when its time is over.
fn run(command: &mut Command) -> io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    let wait = || -> io::Result<bool> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let handle = pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        let timeout = Timespec::try_from(DEADLINE).map_err(io::Error::other)?;
        // Signals are blocked (see crate::process), so nothing interrupts it.
        Ok(poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout))? > 0)
    };
    let has_ended = wait();
    if !matches!(has_ended, Ok(true)) {
        // It may have ended just now.
        let _ = child.kill();
    }
    let status = child.wait()?;
    match has_ended? {
        true => Ok(status),
        false => Err(Errno::TIMEDOUT.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_cache::seed::Seed;

    #[test]
    fn every_size_that_is_offered_can_be_made() {
        for fs in [CacheFs::Xfs, CacheFs::Ext4] {
            let (smallest, largest) = sizes(fs);
            // The largest ext4 needs a quarter of a gigabyte.
            let large = if fs == CacheFs::Xfs {
                largest.0
            } else {
                1 << 40
            };
            for size in [smallest.0, 1 << 30, large] {
                let seed = Seed::read(&make(fs, size).unwrap()).unwrap();
                let bytes = seed.bytes();
                assert!((20_000..20_000_000).contains(&bytes), "{size}: {bytes}");
            }
            assert!(make(fs, 65536).is_err());
        }
    }

    #[test]
    fn a_program_that_fails_is_named_with_its_complaint() {
        let error = make(CacheFs::Ext4, 4096).unwrap_err().chain();
        assert!(error.contains("mkfs.ext4': exit status: 1: "), "{error}");
        let error = find("mkfs.nosuch").unwrap_err().chain();
        assert_eq!(
            error,
            "cannot find 'mkfs.nosuch': No such file or directory"
        );
    }
}
