//! What a launch node knows of its jobs, on a disk of its own.
//!
//! ```text
//! STATE_DIR/                  0700, root's
//!   jobs/<job>/lock           held by the prologue or epilogue that works on the job
//!   jobs/<job>/tombstone      held by an epilogue that waits or works
//!   jobs/<job>/record         what the prologue is about to do (JSON), written before it does it
//!   jobs/<job>/manifest       for this node's own set-up
//!   jobs/<job>/nodes          names for the fan-out tool
//!   retries/<job>             how often the job was put back, in decimal
//!   ended/<job>               when the job's last epilogue began: boot id and nanoseconds since boot
//!   left/                     nodes on which something is left of jobs that are over
//!   failed                    what went wrong where nobody could be told, a line each
//! ```
//!
//! Torque runs a prologue and the epilogue of the same job at once after qdel. The lock keeps them
//! apart while both live; `ended` tells a prologue that was started before an epilogue which is
//! already over.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use node_setup::error::{Context, Error, Result};
use node_setup::state::{self, JobDir};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use shifter_core::hostlist::{self, HostSlots};
use shifter_core::ids::JobId;
use shifter_core::trusted;

/// Bytes that the list of failures may have before it begins anew.
const FAILED_LIMIT: u64 = 1 << 20;

/// How long notes of ended jobs and of retries are kept, in seconds.
const KEEP_SECS: u64 = 7 * 24 * 3600;

/// What a prologue is about to do, for whoever undoes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The user's name, as the batch system gave it.
    pub user: String,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The cluster's name.
    pub cluster: String,
    /// How often the job was started before.
    pub restart: u32,
    /// The nodes; runs of names are written as ranges.
    #[serde(with = "hostlist::packed")]
    pub hosts: Vec<HostSlots>,
    /// Which of them this machine is, whatever it is called.
    pub own: Option<String>,
    /// Whether there is a root, or only services.
    pub has_root: bool,
    /// Whether the job's files are in the shared state.
    pub is_shared: bool,
    /// When it was written, in seconds since 1970; 0 if an earlier version did.
    #[serde(default)]
    pub created: u64,
    /// Whether nodes that prepared something can tell for which start of the job it was.
    #[serde(default)]
    pub is_marked: bool,
    /// The machine's boot during which this was written.
    pub boot: String,
}

/// The directory of all that.
pub struct StateDir {
    dir: OwnedFd,
    path: PathBuf,
}

/// A moment of this boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    boot: String,
    nanoseconds: u64,
}

impl Moment {
    /// Returns this moment.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
        Self {
            boot: boot_id(),
            nanoseconds: seconds * 1_000_000_000 + nanoseconds,
        }
    }

    /// Returns when this process was started, at the latest: the kernel counts hundredths.
    pub fn of_start() -> Self {
        let now = Self::now();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let ticks = started(&stat).unwrap_or(u64::MAX / 10_000_001 - 1);
        let nanoseconds = now.nanoseconds.min((ticks + 1) * 10_000_000);
        Self { nanoseconds, ..now }
    }

    fn parse(text: &str) -> Option<Self> {
        let (boot, nanoseconds) = text.trim_end().split_once(' ')?;
        Some(Self {
            boot: boot.to_owned(),
            nanoseconds: nanoseconds.parse().ok()?,
        })
    }

    fn text(&self) -> String {
        format!("{} {}\n", self.boot, self.nanoseconds)
    }

    fn is_before(&self, other: &Self) -> bool {
        self.boot == other.boot && self.nanoseconds < other.nanoseconds
    }
}

/// Finds the time of a process's start in the text of /proc/PID/stat, in ticks since boot.
fn started(stat: &str) -> Option<u64> {
    // The name, in brackets, may have anything in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

/// Returns what tells one boot of the machine from another.
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim_end().to_owned()
}

impl StateDir {
    /// Opens the directory, and makes it first where it is missing.
    ///
    /// # Errors
    /// [`Error::Untrusted`] if others than root could write there.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent()
            && !path.exists()
        {
            std::fs::create_dir_all(parent).step("create directory", parent)?;
            match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error).step("create directory", path),
            }
        }
        let real = trusted::audit(path, &[0]).map_err(Error::Untrusted)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dir = rustix::fs::openat(CWD, &real, flags, Mode::empty()).step("open", &real)?;
        Ok(Self { dir, path: real })
    }

    /// Locks a job, waiting at most `patience`.
    pub fn lock(&self, job: &JobId, patience: Duration) -> Result<Job> {
        let dir = JobDir::lock_in(self.sub("jobs")?, job, patience)?;
        let path = self.path.join("jobs").join(job.as_str());
        Ok(Job { dir, path })
    }

    /// Stops a prologue that works on the job, for as long as what is returned is open, and one
    /// that was started and does not work on it yet.
    pub fn bury(&self, job: &JobId) -> Result<OwnedFd> {
        let ended = self.sub("ended")?;
        state::write_file(&ended, job.as_str(), Moment::now().text().as_bytes())?;
        JobDir::bury_in(&self.sub("jobs")?, job)
    }

    /// True if an epilogue of the job began after this moment.
    pub fn has_ended_since(&self, job: &JobId, start: &Moment) -> Result<bool> {
        let bytes = state::read_file(self.sub("ended")?, job.as_str())?;
        let ended = bytes.and_then(|bytes| Moment::parse(&String::from_utf8_lossy(&bytes)));
        Ok(ended.is_some_and(|ended| start.is_before(&ended)))
    }

    /// True if something is known of the job.
    pub fn knows(&self, job: &JobId) -> Result<bool> {
        Ok(state::open_file(self.sub("jobs")?, job.as_str())?.is_some())
    }

    /// Returns the jobs of which something is known.
    pub fn jobs(&self) -> Result<Vec<JobId>> {
        let names = state::list(self.sub("jobs")?)?;
        Ok(names
            .iter()
            .filter_map(|name| JobId::parse(name).ok())
            .collect())
    }

    /// Counts one more attempt of a job that is about to be put back, and returns how many it
    /// were before; they are on the disk before it says so.
    pub fn count_retry(&self, job: &JobId) -> Result<u32> {
        let retries = self.sub("retries")?;
        let before = self.retries(job)?;
        let text = (before.saturating_add(1)).to_string();
        state::write_file(&retries, job.as_str(), text.as_bytes())?;
        rustix::fs::fsync(&retries).step("write", "retries")?;
        Ok(before)
    }

    /// Returns how often a job was put back.
    pub fn retries(&self, job: &JobId) -> Result<u32> {
        let bytes = state::read_file(self.sub("retries")?, job.as_str())?;
        let text = bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(text.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
    }

    /// Forgets how often a job was put back.
    pub fn forget_retries(&self, job: &JobId) -> Result<()> {
        state::remove_file(self.sub("retries")?, job.as_str())
    }

    /// Notes what went wrong where nobody could be told.
    pub fn note_failure(&self, line: &str) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&self.dir, "failed", flags, mode).step("open", "failed")?;
        let mut file = File::from(file);
        if file.metadata().is_ok_and(|meta| meta.len() > FAILED_LIMIT) {
            file.set_len(0).step("empty", "failed")?;
        }
        file.write_all(format!("{line}\n").as_bytes())
            .step("write", "failed")
    }

    /// Removes notes that nobody has come back for.
    pub fn sweep(&self) -> Result<()> {
        for name in ["ended", "retries"] {
            let dir = self.sub(name)?;
            for file in state::list(&dir)? {
                let stat = rustix::fs::statat(&dir, &*file, AtFlags::SYMLINK_NOFOLLOW);
                let changed = stat.ok().and_then(|stat| u64::try_from(stat.st_mtime).ok());
                if changed.is_some_and(|changed| now_secs().abs_diff(changed) > KEEP_SECS) {
                    state::remove_file(&dir, &file)?;
                }
            }
        }
        Ok(())
    }

    /// Opens a directory in it, and makes it first where it is missing.
    pub fn sub(&self, name: &str) -> Result<OwnedFd> {
        state::make_dir(&self.dir, name)
    }

    /// Returns the path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Returns the seconds since 1970.
pub fn now_secs() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// A job's state, locked.
pub struct Job {
    dir: JobDir,
    path: PathBuf,
}

impl Job {
    /// True if an epilogue waits for the lock.
    pub fn is_buried(&self) -> bool {
        // What cannot be said is taken for a no: the epilogue comes anyway.
        self.dir.is_buried().unwrap_or(false)
    }

    /// Writes what is about to be done.
    pub fn write_record(&self, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record).map_err(std::io::Error::from);
        state::write_file(self.dir.dir(), "record", &bytes.step("write", "record")?)?;
        rustix::fs::fsync(self.dir.dir()).step("write", "record")
    }

    /// Reads what was about to be done; nothing if nothing was, or if nobody can tell.
    pub fn record(&self) -> Result<Option<Record>> {
        let bytes = state::read_file(self.dir.dir(), "record")?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Writes the job's manifest for this node, and returns where it is.
    pub fn write_manifest(&self, bytes: &[u8]) -> Result<PathBuf> {
        state::write_file(self.dir.dir(), "manifest", bytes)?;
        Ok(self.path.join("manifest"))
    }

    /// Returns where the names for the fan-out tool are.
    pub fn nodefile(&self) -> PathBuf {
        self.path.join("nodes")
    }

    /// Forgets the job.
    pub fn remove(self) -> Result<()> {
        self.dir.remove()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobId {
        JobId::parse("1[2].server").unwrap()
    }

    fn state_dir(dir: &tempfile::TempDir) -> StateDir {
        // The temporary directory is everybody's, so the path is not audited here.
        let path = dir.path().to_owned();
        StateDir {
            dir: File::open(&path).unwrap().into(),
            path,
        }
    }

    fn record() -> Record {
        Record {
            user: "alice".into(),
            uid: 2001,
            gid: 2001,
            cluster: "mini".into(),
            restart: 0,
            hosts: Vec::new(),
            own: None,
            has_root: true,
            is_shared: false,
            created: 1,
            is_marked: true,
            boot: boot_id(),
        }
    }

    #[test]
    fn a_record_is_there_until_the_job_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = state_dir(&dir);
        assert!(!state.knows(&job()).unwrap());
        let locked = state.lock(&job(), Duration::ZERO).unwrap();
        assert_eq!(locked.record().unwrap(), None);
        locked.write_record(&record()).unwrap();
        assert!(state.lock(&job(), Duration::ZERO).is_err(), "locked");
        drop(locked);
        let locked = state.lock(&job(), Duration::ZERO).unwrap();
        assert_eq!(locked.record().unwrap(), Some(record()));
        assert_eq!(state.jobs().unwrap(), [job()]);
        locked.remove().unwrap();
        assert!(!state.knows(&job()).unwrap());
    }

    #[test]
    fn an_epilogue_stops_the_prologue_that_works_and_the_one_that_was_started_before() {
        let dir = tempfile::tempdir().unwrap();
        let state = state_dir(&dir);
        let before = Moment::now();
        let locked = state.lock(&job(), Duration::ZERO).unwrap();
        assert!(!locked.is_buried());
        let tombstone = state.bury(&job()).unwrap();
        assert!(locked.is_buried());
        drop(tombstone);
        assert!(!locked.is_buried(), "an epilogue that died stops nobody");
        assert!(state.has_ended_since(&job(), &before).unwrap());
        assert!(!state.has_ended_since(&job(), &Moment::now()).unwrap());
        let other_boot = Moment {
            boot: "x".into(),
            nanoseconds: 0,
        };
        assert!(!state.has_ended_since(&job(), &other_boot).unwrap());
    }

    #[test]
    fn retries_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let state = state_dir(&dir);
        assert_eq!(state.count_retry(&job()).unwrap(), 0);
        assert_eq!(state.count_retry(&job()).unwrap(), 1);
        assert_eq!(state.retries(&job()).unwrap(), 2);
        state.sweep().unwrap();
        assert_eq!(state.retries(&job()).unwrap(), 2);
        state.forget_retries(&job()).unwrap();
        assert_eq!(state.retries(&job()).unwrap(), 0);
        state.note_failure("one").unwrap();
        state.note_failure("two").unwrap();
        let failed = std::fs::read_to_string(dir.path().join("failed")).unwrap();
        assert_eq!(failed, "one\ntwo\n");
    }

    #[test]
    fn the_start_of_a_process() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(started(stat), Some(4711));
        assert_eq!(started(""), None);
        assert!(Moment::of_start().is_before(&Moment::now()));
    }
}
