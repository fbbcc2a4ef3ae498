//! What Shifter knows on a node: the tree below /run/shifter (see [`shifter_core::layout`]).
//!
//! The tree is a private tmpfs of mode 0700, mounted by whoever needs it first and unmounted by
//! the teardown that leaves it empty. Locks are flock(2) on files that users cannot open, so
//! nobody can hold one against us and the kernel drops them with their holder.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use shifter_core::ids::JobId;
use shifter_core::layout::{self, RUN_DIR};

use crate::error::{Context, Error, Result};
use crate::process::read_at_once;
use crate::sys::{Propagation, mount_setattr};

const BASE_LOCK: &str = "/run/shifter.lock";

/// How long to wait for the base lock.
const BASE_PATIENCE: Duration = Duration::from_secs(5);

const PRIVATE: Mode = Mode::from_raw_mode(0o600);
const PRIVATE_DIR: Mode = Mode::from_raw_mode(0o700);

/// Bytes that one file of the tree may have.
const FILE_LIMIT: usize = 2 << 20;

/// The mounted /run/shifter. While a process holds it, nobody unmounts it.
pub struct RunDir {
    dir: OwnedFd,
    lock: Cell<Option<OwnedFd>>,
}

impl RunDir {
    fn new(dir: OwnedFd, lock: OwnedFd) -> Self {
        let lock = Cell::new(Some(lock));
        Self { dir, lock }
    }

    /// Opens the tree and mounts it first where that is needed.
    ///
    /// # Errors
    /// [`Error::Privilege`] if the tree belongs to another mount namespace, so that what is done
    /// here would not be seen there.
    pub fn open() -> Result<Self> {
        let lock = create_file(CWD, BASE_LOCK)?;
        loop {
            lock_base(&lock, FlockOperation::NonBlockingLockShared)?;
            if let Some(dir) = mounted()? {
                return Self::new(dir, lock).checked();
            }
            // Not atomic: somebody else may mount in between, so look again.
            lock_base(&lock, FlockOperation::NonBlockingLockExclusive)?;
            if mounted()?.is_none() {
                mount_tree()?;
            }
        }
    }

    /// Opens the tree if it is mounted.
    pub fn open_existing() -> Result<Option<Self>> {
        Ok(match Self::open_unchecked()? {
            Some(run) => Some(run.checked()?),
            None => None,
        })
    }

    /// Opens the tree for a start that leaves nothing in it but a hint: any copy of the host's
    /// namespace will do, and only the host's own may mount it. Without the tree such a start
    /// shares no loop device, and that is all.
    pub fn open_for_hints() -> Option<Self> {
        let host = rustix::fs::stat("/proc/1/ns/mnt").map(|stat| stat.st_ino);
        match own_namespace() {
            Ok(own) if host == Ok(own) => Self::open().ok(),
            _ => Self::open_unchecked().ok().flatten(),
        }
    }

    /// Opens the tree if it is mounted, whichever namespace it belongs to.
    pub fn open_unchecked() -> Result<Option<Self>> {
        if mounted()?.is_none() {
            return Ok(None);
        }
        let lock = create_file(CWD, BASE_LOCK)?;
        lock_base(&lock, FlockOperation::NonBlockingLockShared)?;
        Ok(mounted()?.map(|dir| Self::new(dir, lock)))
    }

    /// Returns the inode of the mount namespace that the tree belongs to.
    pub fn namespace(&self) -> Result<u64> {
        namespace_in(&self.dir, "namespace")
    }

    /// The tree itself.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens a directory directly below the tree and makes it where it is missing.
    pub fn subdir(&self, name: &str) -> Result<OwnedFd> {
        make_dir(&self.dir, name)
    }

    /// Lets go of the lock in a copy of the process: it is held as long as anybody has it open.
    pub fn leave_lock(&self) {
        drop(self.lock.take());
    }

    /// Unmounts the tree if nothing is in it and nobody else uses it.
    pub fn release_if_idle(self) -> Result<()> {
        let Some(lock) = self.lock.take() else {
            return Ok(());
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(()),
            Err(error) => return Err(error).step("lock", BASE_LOCK),
        }
        for name in ["jobs", "images"] {
            if !list(&self.subdir(name)?)?.is_empty() {
                return Ok(());
            }
        }
        unmount(RUN_DIR, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).step("unmount", RUN_DIR)
    }

    fn checked(self) -> Result<Self> {
        // Every time: who mounted the tree may have died before this step, and the kernel
        // refuses to pin a mount namespace on a shared mount.
        mount_setattr(
            &self.dir,
            MountAttrFlags::empty(),
            Propagation::Private,
            false,
        )
        .step("make private", RUN_DIR)?;
        if self.namespace()? == own_namespace()? {
            Ok(self)
        } else {
            Err(Error::Privilege(
                "this is not the host's mount namespace: /run/shifter is another's",
            ))
        }
    }
}

/// A job's state, locked against every other set-up and teardown of that job.
pub struct JobDir {
    jobs: OwnedFd,
    dir: OwnedFd,
    job: JobId,
    lock: Cell<Option<OwnedFd>>,
}

impl JobDir {
    /// Opens and locks a job's state, made where it is missing, waiting at most `patience`.
    pub fn lock(run: &RunDir, job: &JobId, patience: Duration) -> Result<Self> {
        Self::lock_in(run.subdir("jobs")?, job, patience)
    }

    /// The same for a tree of jobs elsewhere.
    pub fn lock_in(jobs: OwnedFd, job: &JobId, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            let dir = make_dir(&jobs, job.as_str())?;
            // ENOENT: a teardown removed the directory since; make it again.
            let lock = match rustix::fs::openat(&dir, "lock", lock_flags(), PRIVATE) {
                Ok(lock) => lock,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error).step("create", "lock"),
            };
            while let Err(error) =
                rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            {
                if error != Errno::WOULDBLOCK || Instant::now() >= deadline {
                    return Err(error).step("lock", job.as_str());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            // A lock whose file was removed while we waited excludes nobody.
            if rustix::fs::fstat(&lock).step("examine", "lock")?.st_nlink > 0 {
                return Ok(Self {
                    jobs,
                    dir,
                    job: job.clone(),
                    lock: Cell::new(Some(lock)),
                });
            }
        }
    }

    /// Opens and locks a job's state as it is, now; nothing if there is none, or somebody has the lock.
    pub fn lock_existing(run: &RunDir, job: &JobId) -> Result<Option<Self>> {
        let Some(dir) = open_job(job)? else {
            return Ok(None);
        };
        let flags = lock_flags() - OFlags::CREATE;
        let lock = match rustix::fs::openat(&dir, "lock", flags, Mode::empty()) {
            Ok(lock) => lock,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).step("open", "lock"),
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error).step("lock", job.as_str()),
        }
        // As for others who lock it: whoever had it may have removed the job.
        let is_there = rustix::fs::fstat(&lock).step("examine", "lock")?.st_nlink > 0;
        let jobs = run.subdir("jobs")?;
        Ok(is_there.then(|| Self {
            jobs,
            dir,
            job: job.clone(),
            lock: Cell::new(Some(lock)),
        }))
    }

    /// Lets go of the lock in a copy of the process: it is held as long as anybody has it open.
    pub fn leave_lock(&self) {
        drop(self.lock.take());
    }

    /// True if any set-up of the job has left something.
    pub fn exists(run: &RunDir, job: &JobId) -> Result<bool> {
        Ok(list(&run.subdir("jobs")?)?
            .iter()
            .any(|name| name == job.as_str()))
    }

    /// Says that teardown has begun, for as long as the returned descriptor is open. Needs not
    /// the job's lock, so that it stops a set-up that holds it.
    pub fn bury(run: &RunDir, job: &JobId) -> Result<OwnedFd> {
        Self::bury_in(&run.subdir("jobs")?, job)
    }

    /// The same for a tree of jobs elsewhere.
    pub fn bury_in(jobs: &OwnedFd, job: &JobId) -> Result<OwnedFd> {
        let dir = make_dir(jobs, job.as_str())?;
        let tombstone = create_file(dir.as_fd(), "tombstone")?;
        rustix::fs::flock(&tombstone, FlockOperation::LockShared).step("lock", "tombstone")?;
        Ok(tombstone)
    }

    /// True if a teardown has begun and is alive: the tombstone of one that died counts nothing.
    pub fn is_buried(&self) -> Result<bool> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let tombstone = match rustix::fs::openat(&self.dir, "tombstone", flags, Mode::empty()) {
            Ok(tombstone) => tombstone,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error).step("examine", "tombstone"),
        };
        match rustix::fs::flock(&tombstone, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error).step("lock", "tombstone"),
        }
    }

    /// The job.
    pub fn id(&self) -> &JobId {
        &self.job
    }

    /// The job's directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens the directory of a root and makes it where it is missing.
    pub fn root(&self, name: &str) -> Result<OwnedFd> {
        make_dir(&make_dir(&self.dir, "roots")?, name)
    }

    /// Returns the names of the job's roots.
    pub fn roots(&self) -> Result<Vec<String>> {
        list(&make_dir(&self.dir, "roots")?)
    }

    /// Removes every file of a root; its mount must be gone.
    pub fn remove_root(&self, root: &str) -> Result<()> {
        let dir = self.root(root)?;
        for file in list(&dir)? {
            rustix::fs::unlinkat(&dir, &file, AtFlags::empty()).step("remove", file.as_str())?;
        }
        let roots = make_dir(&self.dir, "roots")?;
        rustix::fs::unlinkat(&roots, root, AtFlags::REMOVEDIR).step("remove", root)
    }

    /// Removes every file of the job if it has neither a root nor a record of why it has none.
    pub fn remove_if_empty(self) -> Result<()> {
        if self.roots()?.is_empty() && read_file(&self.dir, "failure")?.is_none() {
            self.remove()
        } else {
            Ok(())
        }
    }

    /// Removes every file of the job, the lock last; mounts must be gone.
    pub fn remove(self) -> Result<()> {
        for root in self.roots()? {
            self.remove_root(&root)?;
        }
        rustix::fs::unlinkat(&self.dir, "roots", AtFlags::REMOVEDIR).step("remove", "roots")?;
        let mut files = list(&self.dir)?;
        files.sort_by_key(|name| name == "lock");
        for file in files {
            rustix::fs::unlinkat(&self.dir, &file, AtFlags::empty()).step("remove", &*file)?;
        }
        match rustix::fs::unlinkat(&self.jobs, self.job.as_str(), AtFlags::REMOVEDIR) {
            // Whoever came since the lock's file went has removed it, or uses it and will.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
            Err(error) => Err(error).step("remove", self.job.as_str()),
        }
    }
}

/// Opens the directory of a job's root for reading, if the job has one; takes no lock, because
/// joining a root that is being removed merely fails.
pub fn open_root(job: &JobId, name: &str) -> Result<Option<OwnedFd>> {
    open_existing_dir(&layout::job_dir(job).join("roots").join(name))
}

/// Opens the directory of a job's state, if there is one; takes no lock.
pub fn open_job(job: &JobId) -> Result<Option<OwnedFd>> {
    open_existing_dir(&layout::job_dir(job))
}

fn open_existing_dir(path: &Path) -> Result<Option<OwnedFd>> {
    match rustix::fs::open(path, dir_flags(), Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).step("open", path),
    }
}

/// Returns the inode of the mount namespace that the tree belongs to, by the directory of a root.
pub fn host_namespace_of(root: &OwnedFd) -> Result<u64> {
    namespace_in(root, "../../../../namespace")
}

fn namespace_in(dir: &OwnedFd, name: &str) -> Result<u64> {
    let text = read_file(dir, name)?.unwrap_or_default();
    let number = std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.parse().ok());
    let malformed = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    number.ok_or_else(malformed).step("read", "namespace")
}

/// Opens a file of the tree for reading; nothing if it does not exist.
pub fn open_file(dir: impl AsFd, name: &str) -> Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).step("open", name),
    }
}

/// Reads a file of the tree; nothing if it does not exist.
pub fn read_file(dir: impl AsFd, name: &str) -> Result<Option<Vec<u8>>> {
    open_file(dir, name)?
        .map(|file| read_open(&file, name))
        .transpose()
}

/// Reads an open file of the tree.
pub fn read_open(file: &File, name: &str) -> Result<Vec<u8>> {
    read_at_once(file, FILE_LIMIT).step("read", name)
}

/// Removes a file of the tree where it exists.
pub fn remove_file(dir: impl AsFd, name: &str) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).step("remove", name),
    }
}

/// Writes a file of the tree: a reader sees all of it or none.
pub fn write_file(dir: impl AsFd, name: &str, bytes: &[u8]) -> Result<()> {
    let dir = dir.as_fd();
    let new = format!("{name}.new");
    let mut file = File::from(create_file(dir, &new)?);
    file.set_len(0).step("write", name)?;
    file.write_all(bytes).step("write", name)?;
    rustix::fs::renameat(dir, &new, dir, name).step("write", name)
}

/// Makes a directory of mode 0700 where it is missing, and opens it.
pub fn make_dir(parent: impl AsFd, name: &str) -> Result<OwnedFd> {
    make_dir_with_mode(parent, name, PRIVATE_DIR)
}

/// The same with another mode, as far as the mask of [`crate::process::take_over`] lets it.
pub fn make_dir_with_mode(parent: impl AsFd, name: &str, mode: Mode) -> Result<OwnedFd> {
    let parent = parent.as_fd();
    match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).step("create directory", name),
    }
    rustix::fs::openat(parent, name, dir_flags(), Mode::empty()).step("open directory", name)
}

/// Returns the names in a directory, without `.` and `..`, sorted.
pub fn list(dir: impl AsFd) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).step("list", RUN_DIR)? {
        let name = entry
            .step("list", RUN_DIR)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Creates a file of mode 0600 where it is missing, and opens it.
pub fn create_file(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, lock_flags(), PRIVATE).step("create", name)
}

/// Returns the inode of the process's own mount namespace.
pub fn own_namespace() -> Result<u64> {
    let path = "/proc/self/ns/mnt";
    Ok(rustix::fs::stat(path).step("examine", path)?.st_ino)
}

/// Takes the base lock. Nobody holds it for long but a program that its user has frozen.
fn lock_base(fd: &OwnedFd, operation: FlockOperation) -> Result<()> {
    let deadline = Instant::now() + BASE_PATIENCE;
    loop {
        match rustix::fs::flock(fd, operation) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result.step("lock", BASE_LOCK),
        }
    }
}

fn lock_flags() -> OFlags {
    OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW
}

fn dir_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW
}

/// Opens /run/shifter if it is the root of a mount.
fn mounted() -> Result<Option<OwnedFd>> {
    let dir = match rustix::fs::open(RUN_DIR, dir_flags(), Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).step("open", RUN_DIR),
    };
    let stat = rustix::fs::statx(&dir, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .step("examine", RUN_DIR)?;
    Ok(stat
        .stx_attributes
        .contains(StatxAttributes::MOUNT_ROOT)
        .then_some(dir))
}

/// Makes the directory that the tree is mounted on, where it is missing.
pub fn make_place() -> Result<()> {
    match rustix::fs::mkdir(RUN_DIR, PRIVATE_DIR) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).step("create directory", RUN_DIR),
    }
}

/// Mounts the tree. The caller holds the base lock alone.
fn mount_tree() -> Result<()> {
    make_place()?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).step("open file system", "tmpfs")?;
    for (key, value) in [("source", "shifter"), ("mode", "0700"), ("size", "512m")] {
        fsconfig_set_string(&context, key, value).step("configure", "tmpfs")?;
    }
    fsconfig_create(&context).step("create", "tmpfs")?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).step("mount", "tmpfs")?;
    write_file(&tree, "namespace", own_namespace()?.to_string().as_bytes())?;
    move_mount(
        &tree,
        "",
        CWD,
        Path::new(RUN_DIR),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .step("mount", RUN_DIR)
}
