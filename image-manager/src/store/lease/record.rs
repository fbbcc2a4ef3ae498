//! Who holds a lease, as its file says, and what this machine knows of such a process.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use shifter_core::sanitize;

/// Characters of a nonce.
pub(super) const NONCE_LENGTH: usize = 36;
const LIMIT: u64 = 1 << 20;

/// The holder of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// Its machine, for people.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// When the process started, in the kernel's ticks since boot.
    pub(super) start: u64,
    /// The boot of its machine, unique in the world.
    boot: String,
    /// The namespace that the pid belongs to.
    pids: String,
    /// True if it holds a flock of the record for as long as it lives.
    pub(super) is_flocked: bool,
    /// Unique in the world.
    pub(super) nonce: String,
    /// What the holder uses, or from where it downloads, where the record is for that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) uses: Vec<String>,
}

impl Owner {
    /// True if the holder says something, and other than this.
    pub(crate) fn says_other(&self, word: &str) -> bool {
        self.uses.first().is_some_and(|said| said != word)
    }

    /// Names the holder for a message: `process 7 on host 'n1'`.
    pub fn describe(&self) -> String {
        match self.host.as_str() {
            "" => "another process".into(),
            host => format!("process {} on '{}'", self.pid, sanitize::text(host)),
        }
    }
}

/// This process, as far as it is the same for all its leases.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(super) host: String,
    pub(super) boot: String,
    pids: String,
    start: u64,
}

impl Identity {
    /// Reads it from the kernel.
    pub fn current() -> io::Result<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let host = rustix::system::uname();
        Ok(Self {
            host: host.nodename().to_string_lossy().into_owned(),
            boot: boot.trim().to_owned(),
            pids: std::fs::read_link("/proc/self/ns/pid")?
                .to_string_lossy()
                .into_owned(),
            start: start_time("self").unwrap_or_default(),
        })
    }

    /// Makes a record with a nonce of its own.
    pub(super) fn owner(&self) -> io::Result<Owner> {
        let nonce = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        Ok(Owner {
            host: self.host.clone(),
            pid: std::process::id(),
            start: self.start,
            boot: self.boot.clone(),
            pids: self.pids.clone(),
            is_flocked: false,
            nonce: nonce.trim().to_owned(),
            uses: Vec::new(),
        })
    }

    /// True if the two are on one machine, and see the same pages of a file.
    pub(super) fn shares_memory_with(&self, owner: &Owner) -> bool {
        self.boot == owner.boot
    }

    /// Says whether a holder lives, if it is one of this machine.
    pub(super) fn is_dead(&self, owner: &Owner, record: &File) -> io::Result<Option<bool>> {
        if !self.shares_memory_with(owner) {
            return Ok(None);
        }
        if owner.is_flocked {
            // Shared, so that two who ask do not take each other for the holder.
            return super::flock(record, FlockOperation::NonBlockingLockShared).map(Some);
        }
        if owner.pids == self.pids {
            return Ok(Some(
                start_time(&owner.pid.to_string()) != Some(owner.start),
            ));
        }
        Ok(None)
    }
}

/// Returns when a process started; none if there is no such process.
pub(super) fn start_time(pid: &str) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Writes a record into a new file.
pub(super) fn write(file: &File, owner: &Owner) -> io::Result<()> {
    file.write_all_at(&serde_json::to_vec(owner)?, 0)
}

/// Reads a record; what is none names nobody, and its nonce is its inode's number.
pub(super) fn read(file: &File) -> io::Result<Owner> {
    let length = file.metadata()?.len().min(LIMIT);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    // One that is shorter by now is none, and names nobody.
    let _ = file.read_exact_at(&mut bytes, 0);
    let owner: Owner = serde_json::from_slice(&bytes).unwrap_or_default();
    let is_nonce = owner.nonce.len() == NONCE_LENGTH
        && owner
            .nonce
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if is_nonce {
        return Ok(owner);
    }
    // The nonce becomes a part of a file name, and that of each record is another.
    let nonce = format!("{:0>NONCE_LENGTH$}", file.metadata()?.ino());
    Ok(Owner {
        nonce,
        ..Owner::default()
    })
}
