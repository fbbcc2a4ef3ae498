//! A job's prepared root, as a process that is about to join it sees it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, JOB_ROOT};
use shifter_core::manifest::JobManifest;

use crate::error::{Context, Error, Result};
use crate::namespace;
use crate::private_dirs::PrivateDirs;
use crate::state::{self, RunDir};

/// The copy of the image's metadata in a root's directory. It is written last and removed first,
/// and so lets processes in: who still finds it linked after becoming the user is seen by the
/// teardown that removes it.
pub const TICKET: &str = "meta";

/// What a root was built from, in the job's directory or, for a step's, in the root's own.
pub const MANIFEST: &str = "manifest";

/// A prepared root.
pub struct Prepared {
    /// What it was built from.
    pub manifest: JobManifest,
    /// The image's metadata.
    pub meta: Vec<u8>,
    ticket: File,
    dir: OwnedFd,
    job: JobId,
    name: String,
}

impl Prepared {
    /// Finds a prepared root of a job on this node: that of a step where it has one of its own, else
    /// the job's.
    pub fn find(job: &JobId, step: Option<u32>) -> Result<Option<Self>> {
        let own = match step {
            Some(step) => Self::find_root(job, &layout::step_root(step))?,
            None => None,
        };
        match own {
            Some(own) => Ok(Some(own)),
            None => Self::find_root(job, JOB_ROOT),
        }
    }

    /// Finds the prepared root of this name.
    pub fn find_root(job: &JobId, name: &str) -> Result<Option<Self>> {
        let Some(dir) = state::open_root(job, name)? else {
            return Ok(None);
        };
        let bytes = if name == JOB_ROOT {
            let path = layout::job_dir(job);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(job_dir) => state::read_file(&job_dir, MANIFEST)?,
                Err(Errno::NOENT) => None,
                Err(error) => return Err(error).step("open", &path),
            }
        } else {
            state::read_file(&dir, MANIFEST)?
        };
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let manifest = JobManifest::parse(&bytes)?;
        let Some(ticket) = state::open_file(&dir, TICKET)? else {
            return Ok(None);
        };
        let meta = state::read_open(&ticket, TICKET)?;
        Ok(Some(Self {
            manifest,
            meta,
            ticket,
            dir,
            job: job.clone(),
            name: name.to_owned(),
        }))
    }

    /// Moves the process into the root, to "/", together with what the job alone has of the
    /// host's directories.
    pub fn join(&self) -> Result<()> {
        let private = PrivateDirs::collect(&self.dir)?;
        let pin = match open_pin(&self.dir)? {
            Some(pin) => Some(pin),
            None => self.open_pin_from_the_host()?,
        };
        let pin = pin.ok_or_else(|| Error::Removed(self.job.to_string()))?;
        namespace::enter(&pin)?;
        rustix::process::chdir("/").step("change to", "/")?;
        private.map_or(Ok(()), |private| private.attach(&self.dir))
    }

    /// Makes sure that the root is not being removed. To be called as the user, in the root: the
    /// teardown that comes after this finds the process.
    pub fn still_lets_in(&self) -> Result<()> {
        let links = rustix::fs::fstat(&self.ticket)
            .step("examine", TICKET)?
            .st_nlink;
        if links > 0 {
            Ok(())
        } else {
            Err(Error::Removed(self.job.to_string()))
        }
    }

    /// Opens the pin where the process is in a copy of the host's namespace, as with
    /// job_container/tmpfs or pam_namespace: the kernel leaves pins out of copies.
    fn open_pin_from_the_host(&self) -> Result<Option<OwnedFd>> {
        let Some(run) = RunDir::open_unchecked()? else {
            return Ok(None);
        };
        let Some(host) = namespace::find(run.namespace()?)? else {
            return Ok(None);
        };
        namespace::enter(&host)?;
        let Some(dir) = state::open_root(&self.job, &self.name)? else {
            return Ok(None);
        };
        // Not what a stranger's namespace has at that place.
        let identity = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino));
        if identity(&dir) != identity(&self.dir) {
            return Ok(None);
        }
        open_pin(&dir)
    }
}

/// Opens the pin of a root; nothing where there is none, or only the file to pin it on.
pub fn open_pin(dir: &OwnedFd) -> Result<Option<OwnedFd>> {
    let Some(pin) = state::open_file(dir, "mnt")? else {
        return Ok(None);
    };
    let kind = rustix::fs::fstatfs(pin.as_fd())
        .step("examine", "mnt")?
        .f_type;
    Ok((kind == libc::NSFS_MAGIC).then(|| pin.into()))
}
