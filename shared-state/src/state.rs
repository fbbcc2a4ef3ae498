//! The open shared state: reading, writing, removing, and sweeping what is old.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Take};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags, Stat, Timestamps, UTIME_NOW};
use rustix::io::Errno;
use shifter_core::config;

use crate::contents::{Contents, FILE_COUNT_LIMIT, FILE_LIMIT, is_file_name};
use crate::dirs;
use crate::error::{Context, Error, Result, Rule};
use crate::owner::as_owner;
use crate::stamp::{Key, LINE_LIMIT, Stamp};

/// How long nothing may be heard of whoever wants to write before another node does.
const SILENCE: Duration = Duration::from_secs(2);

/// Touched by whoever sweeps.
const SWEPT: &str = ".swept";

/// How often a state that appears in place of one's own is moved away.
const TRIES: usize = 8;

/// The shared state of a site.
#[derive(Debug)]
pub struct SharedState {
    dir: OwnedFd,
    path: PathBuf,
    pub(crate) owner: u32,
    group: u32,
    max_age: Duration,
    pub(crate) wait: Duration,
    pub(crate) silence: Duration,
}

/// A file of a state that is too large for memory.
pub struct Stream<'a> {
    /// Its name.
    pub name: &'a str,
    /// Bytes that it has.
    pub length: usize,
    /// Where they come from.
    pub source: &'a mut dyn Read,
}

/// What came of an attempt to put a state in its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is there.
    Ours,
    /// Another node was faster, with this.
    Theirs(Contents),
}

impl SharedState {
    /// Opens the shared state; nothing if the site has none.
    ///
    /// # Errors
    /// [`Error::Untrusted`] names the directory that others than the owner could change, or that is
    /// not there.
    pub fn open(config: &config::SharedState) -> Result<Option<Self>> {
        let Some(path) = &config.path else {
            return Ok(None);
        };
        let owner = config.owner;
        as_owner(owner, 0, || {
            let dir = dirs::open_audited(path, owner)?;
            Self::new(config, path, dir).map(Some)
        })
    }

    /// Takes a directory for what is configured.
    pub(crate) fn new(config: &config::SharedState, path: &Path, dir: OwnedFd) -> Result<Self> {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Ok(Self {
            group: rustix::fs::fstat(&dir).step("examine", path)?.st_gid,
            dir,
            path: path.to_owned(),
            owner: config.owner,
            max_age: seconds(config.max_age_secs),
            wait: seconds(config.wait_secs),
            silence: SILENCE,
        })
    }

    /// Returns the directory, as configured.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what the run `key` of a job has; nothing if it has nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] if what is there was not written for this very run, is old, or could have
    /// been written by others; [`Error::Step`] if the storage does not work.
    pub fn read(&self, key: &Key) -> Result<Option<Contents>> {
        self.as_owner(|| self.read_as_owner(key))
    }

    /// Reads one file of what the run `key` of a job has, and no other; nothing if it is not there.
    ///
    /// # Errors
    /// As [`SharedState::read`].
    pub fn read_file(&self, key: &Key, name: &str) -> Result<Option<Vec<u8>>> {
        self.as_owner(|| {
            let Some(dir) = self.run_dir(key)? else {
                return Ok(None);
            };
            let part = self.read_part(&dir, key, name)?;
            Ok(part.map(|(_, body)| body))
        })
    }

    /// Opens one file of what the run `key` of a job has, of any size; nothing if it is not there. Who
    /// reads it decides what is too much.
    ///
    /// # Errors
    /// As [`SharedState::read`].
    pub fn open_file(&self, key: &Key, name: &str) -> Result<Option<Take<File>>> {
        self.as_owner(|| match self.run_dir(key)? {
            Some(dir) => self.open_part(&dir, key, name),
            None => Ok(None),
        })
    }

    /// True if the run `key` of a job has something; whether it is believed, only reading tells.
    pub fn has(&self, key: &Key) -> Result<bool> {
        self.as_owner(|| Ok(self.run_dir(key)?.is_some()))
    }

    /// Writes what the run `key` of a job has, whatever was there before.
    pub fn write(&self, key: &Key, contents: &Contents) -> Result<()> {
        self.write_with(key, contents, &mut [])
    }

    /// The same with files that are too large for [`Contents`]. Such a state is read file by file,
    /// and those by [`SharedState::open_file`].
    pub fn write_with(
        &self,
        key: &Key,
        contents: &Contents,
        streams: &mut [Stream<'_>],
    ) -> Result<()> {
        let names = streams.iter().map(|stream| stream.name);
        let mut strange = names.filter(|name| !is_file_name(name) || contents.get(name).is_some());
        if let Some(name) = strange.next() {
            return Err(Error::File(name.to_owned()));
        }
        self.as_owner(|| self.publish_with(key, contents, streams, true).map(drop))
    }

    /// Removes what the run `key` of a job has; it is fine if that is nothing.
    pub fn remove(&self, key: &Key) -> Result<()> {
        self.as_owner(|| {
            let Some(cluster) = self.cluster(key)? else {
                return Ok(());
            };
            // At once, and then piece by piece: nobody sees half of it.
            if let Some(hidden) = dirs::hide(&cluster, &key.dir())? {
                dirs::remove(&cluster, &hidden)?;
            }
            let mut number = 0;
            while dirs::examine(&cluster, &claim(key, number))?.is_some() {
                dirs::remove(&cluster, &claim(key, number))?;
                number += 1;
            }
            Ok(())
        })
    }

    /// Removes whatever is too old, of all jobs. Done at most once a quarter of that age, however
    /// many nodes call it; what cannot be removed is left to the next.
    pub fn sweep(&self) -> Result<()> {
        self.as_owner(|| {
            let swept = dirs::examine(&self.dir, SWEPT)?;
            if swept.is_some_and(|stat| age_of(&stat) < self.max_age / 4) {
                return Ok(());
            }
            self.mark_swept()?;
            let names = dirs::list(&self.dir, "shared state", usize::MAX)?;
            let clusters = names.iter().filter(|name| !name.starts_with('.'));
            // One that cannot be swept keeps nobody from the others.
            let sweep = |name: &String| self.sweep_cluster(name).err();
            let failures: Vec<Error> = clusters.filter_map(sweep).collect();
            failures.into_iter().next().map_or(Ok(()), Err)
        })
    }

    fn mark_swept(&self) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&self.dir, SWEPT, flags, mode).step("create", SWEPT)?;
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        rustix::fs::futimens(&file, &times).step("touch", SWEPT)
    }

    fn sweep_cluster(&self, name: &str) -> Result<()> {
        let Some(cluster) = dirs::open(&self.dir, name, self.owner)? else {
            return Ok(());
        };
        let mut failure = None;
        for name in dirs::list(&cluster, name, usize::MAX)? {
            failure = failure.or(self.sweep_one(&cluster, &name).err());
        }
        failure.map_or(Ok(()), Err)
    }

    fn sweep_one(&self, cluster: &OwnedFd, name: &str) -> Result<()> {
        let stat = dirs::examine(cluster, name)?;
        if stat.is_none_or(|stat| age_of(&stat) <= self.max_age) {
            return Ok(());
        }
        if name.starts_with('.') {
            return dirs::remove(cluster, name);
        }
        match dirs::hide(cluster, name)? {
            Some(hidden) => dirs::remove(cluster, &hidden),
            None => Ok(()),
        }
    }

    pub(crate) fn as_owner<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        as_owner(self.owner, self.group, work)
    }

    /// Opens the directory of the run's cluster. Each time anew: NFS asks its server about names
    /// that were not there when the directory above them is opened, and not before.
    pub(crate) fn cluster(&self, key: &Key) -> Result<Option<OwnedFd>> {
        dirs::open(&self.dir, key.cluster.as_str(), self.owner)
    }

    pub(crate) fn make_cluster(&self, key: &Key) -> Result<OwnedFd> {
        dirs::open_or_make(&self.dir, key.cluster.as_str(), self.owner)
    }

    pub(crate) fn read_as_owner(&self, key: &Key) -> Result<Option<Contents>> {
        match self.run_dir(key)? {
            Some(dir) => self.read_open(&dir, &key.dir(), key).map(Some),
            None => Ok(None),
        }
    }

    fn run_dir(&self, key: &Key) -> Result<Option<OwnedFd>> {
        match self.cluster(key)? {
            Some(cluster) => dirs::open(&cluster, &key.dir(), self.owner),
            None => Ok(None),
        }
    }

    fn read_open(&self, dir: &OwnedFd, name: &str, key: &Key) -> Result<Contents> {
        let names = dirs::list(dir, name, FILE_COUNT_LIMIT)?;
        let mut contents = Contents::new();
        for file in &names {
            let refused = |rule| Error::refused(&format!("{}/{file}", key.dir()), rule);
            if !is_file_name(file) {
                return Err(refused(Rule::Stamp));
            }
            let part = self.read_part(dir, key, file)?;
            let (stamp, body) = part.ok_or_else(|| refused(Rule::Incomplete))?;
            if stamp.files != names.len() {
                return Err(refused(Rule::Incomplete));
            }
            contents.set(file, body)?;
        }
        if names.is_empty() {
            // Somebody is just removing it.
            return Err(Error::refused(&key.dir(), Rule::Incomplete));
        }
        Ok(contents)
    }

    /// Reads a file of a state, and judges it by its stamp; nothing if it is not there.
    fn read_part(&self, dir: &OwnedFd, key: &Key, file: &str) -> Result<Option<(Stamp, Vec<u8>)>> {
        let refused = |rule| Error::refused(&format!("{}/{file}", key.dir()), rule);
        let limit = LINE_LIMIT + FILE_LIMIT;
        let Some(mut bytes) = dirs::read(dir, file, self.owner, limit)? else {
            return Ok(None);
        };
        let (stamp, body) = Stamp::split(&bytes, key, file).map_err(refused)?;
        self.judge_age(&stamp).map_err(refused)?;
        let begin = bytes.len() - body.len();
        Ok(Some((stamp, bytes.split_off(begin))))
    }

    fn open_part(&self, dir: &OwnedFd, key: &Key, name: &str) -> Result<Option<Take<File>>> {
        let refused = |rule| Error::refused(&format!("{}/{name}", key.dir()), rule);
        let Some(mut file) = dirs::open_file(dir, name, self.owner)? else {
            return Ok(None);
        };
        let mut begin = Vec::new();
        let read = (&file).take(LINE_LIMIT as u64).read_to_end(&mut begin);
        read.step("read", name)?;
        let (stamp, rest) = Stamp::begin(&begin, key, name).map_err(refused)?;
        self.judge_age(&stamp).map_err(refused)?;
        let line = (begin.len() - rest.len()) as u64;
        let length = stamp.length as u64;
        let size = file.metadata().step("examine", name)?.len();
        if Some(size) != line.checked_add(length) {
            return Err(refused(Rule::Incomplete));
        }
        file.seek(SeekFrom::Start(line)).step("read", name)?;
        Ok(Some(file.take(length)))
    }

    fn judge_age(&self, stamp: &Stamp) -> Result<(), Rule> {
        let age_secs = now().abs_diff(stamp.time);
        match age_secs > self.max_age.as_secs() {
            true => Err(Rule::Age { age_secs }),
            false => Ok(()),
        }
    }

    /// Puts a state in its place, in one step. One that is there already and holds for this run
    /// stays, unless it is to be replaced; anything else is moved away.
    pub(crate) fn publish(
        &self,
        key: &Key,
        contents: &Contents,
        replaces: bool,
    ) -> Result<Published> {
        self.publish_with(key, contents, &mut [], replaces)
    }

    fn publish_with(
        &self,
        key: &Key,
        contents: &Contents,
        streams: &mut [Stream<'_>],
        replaces: bool,
    ) -> Result<Published> {
        let cluster = self.make_cluster(key)?;
        let fresh = format!("{}{}", dirs::NEW, dirs::random_word()?);
        dirs::make(&cluster, &fresh).step("create", &fresh)?;
        let result = self
            .fill(&cluster, &fresh, key, contents, streams)
            .and_then(|()| self.place(&cluster, &fresh, key, replaces));
        if !matches!(result, Ok(Published::Ours)) {
            // What stays is swept; the first error is the one to tell.
            let _ = dirs::remove(&cluster, &fresh);
        }
        result
    }

    fn fill(
        &self,
        cluster: &OwnedFd,
        fresh: &str,
        key: &Key,
        contents: &Contents,
        streams: &mut [Stream<'_>],
    ) -> Result<()> {
        let dir = dirs::open(cluster, fresh, self.owner)?;
        let dir = dir.ok_or(Errno::NOENT).step("open", fresh)?;
        let files = contents.files();
        let count = files.len() + streams.len();
        let line = |name: &str, length| {
            let stamp = Stamp {
                files: count,
                time: now(),
                length,
            };
            stamp.line(key, name)
        };
        for (name, bytes) in files {
            let line = line(name, bytes.len());
            dirs::create(&dir, name, &[line.as_bytes(), bytes]).step("write", name)?;
        }
        for Stream {
            name,
            length,
            source,
        } in streams
        {
            let line = line(name, *length);
            dirs::create_from(&dir, name, &line, *source, *length as u64).step("write", &**name)?;
        }
        Ok(())
    }

    fn place(
        &self,
        cluster: &OwnedFd,
        fresh: &str,
        key: &Key,
        replaces: bool,
    ) -> Result<Published> {
        let name = key.dir();
        for _ in 0..TRIES {
            match rustix::fs::renameat(cluster, fresh, cluster, &name) {
                Ok(()) => return Ok(Published::Ours),
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(error) => return Err(error).step("write", &name),
            }
            match dirs::open(cluster, &name, self.owner) {
                Ok(Some(dir)) if !replaces => match self.read_open(&dir, &name, key) {
                    Ok(theirs) => return Ok(Published::Theirs(theirs)),
                    // rename(2) takes an empty directory's place. This very directory is emptied, and
                    // none that came in its place meanwhile: two nodes must never go by two.
                    Err(error) if error.is_refusal() => dirs::empty(&dir, &name)?,
                    Err(error) => return Err(error),
                },
                Ok(None) => {}
                // To be replaced, or nothing of the owner's.
                _ => {
                    if let Some(hidden) = dirs::hide(cluster, &name)? {
                        // What stays is swept.
                        let _ = dirs::remove(cluster, &hidden);
                    }
                }
            }
        }
        Err(Errno::EXIST).step("write", &name)
    }
}

/// Returns the name of the n-th claim on a run.
pub(crate) fn claim(key: &Key, number: u32) -> String {
    format!(".claim-{}-{number}", key.dir())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Returns how long ago something was changed, by this node's clock; as long if it is going to be.
fn age_of(stat: &Stat) -> Duration {
    let changed = u64::try_from(stat.st_mtime).unwrap_or(0);
    Duration::from_secs(now().abs_diff(changed))
}
