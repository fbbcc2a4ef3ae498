//! The life of a job's root: set up, pinned, joined, removed.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, FAILURE_LIMIT, JOB_ROOT};
use shifter_core::manifest::JobManifest;

use crate::error::{Context, Error, Result};
use crate::image::Store;
use crate::root::{self, RootRequest};
use crate::state::{self, JobDir, RunDir};
use crate::strays::{self, Marks};
use crate::{loopdev, mnt, modules, namespace};

/// How long set-up and teardown of one job wait for each other.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// What a root acquired, written before the pin makes it outlive the process.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    uid: u32,
    namespace: u64,
    device: (u32, u32),
}

/// Builds the root of a job and pins it.
///
/// # Errors
/// Every failure leaves nothing behind; [`Error::exit_code`] tells the user's mistakes from the
/// node's failures.
pub fn set_up(config: &Config, manifest: &JobManifest) -> Result<()> {
    let volumes = manifest.volume_map()?;
    modules::check(config, &manifest.modules)?;
    let store = Store::site(config)?;
    let (uid, gids) = (manifest.user.uid, manifest.user.gids());
    let image = store.image(&manifest.image.id, &manifest.image.reference, uid, &gids)?;

    let run = RunDir::open()?;
    let job = JobDir::lock(&run, &manifest.job, LOCK_PATIENCE)?;
    // A job that was requeued without an epilogue, or a set-up that died: start anew.
    clear(&job)?;
    job.remove_file("failure")?;
    let host = namespace::own()?;
    let request = RootRequest {
        config,
        image: &image,
        user: &manifest.user,
        volumes: &volumes,
        modules: &manifest.modules,
        hosts: &manifest.hosts,
        is_pinned: true,
    };
    let built = root::build(&request, &run).and_then(|root| {
        namespace::enter(&host)?;
        state::write_file(job.dir(), "manifest", &manifest.to_bytes()?)?;
        let dir = job.root(JOB_ROOT)?;
        state::write_file(&dir, "meta", &image.meta_bytes)?;
        pin(&dir, &root, uid)?;
        if job.is_buried()? {
            Err(Error::Removed(manifest.job.to_string()))
        } else {
            Ok(())
        }
    });
    built.or_else(|error| {
        // A failed build may have left us in its namespace, where the host's paths mean nothing.
        namespace::enter(&host)?;
        clear(&job)?;
        job.remove()?;
        loopdev::sweep(&run.subdir("images")?)?;
        run.release_if_idle()?;
        Err(error)
    })
}

/// Notes why a job's root cannot be made for its user; reported when the job's tasks start.
pub fn record_failure(job: &JobId, message: &str) -> Result<()> {
    let run = RunDir::open()?;
    let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
    let mut message = message.to_owned();
    while message.len() as u64 > FAILURE_LIMIT {
        message.pop();
    }
    state::write_file(dir.dir(), "failure", message.as_bytes())
}

/// Removes everything of a job, from whatever state it is in; a job that has nothing is fine.
///
/// # Errors
/// [`Error::Leftover`] names every step that failed, after all others were done.
pub fn tear_down(job: &JobId) -> Result<()> {
    let Some(run) = RunDir::open_existing()? else {
        return Ok(());
    };
    let mut failures = Vec::new();
    if JobDir::exists(&run, job)? {
        let _tombstone = JobDir::bury(&run, job)?;
        let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
        failures.extend(end_processes(&dir)?);
        failures.extend(
            clear(&dir)
                .and_then(|()| dir.remove())
                .err()
                .map(|e| e.chain()),
        );
    }
    failures.extend(
        loopdev::sweep(&run.subdir("images")?)
            .err()
            .map(|e| e.chain()),
    );
    failures.extend(run.release_if_idle().err().map(|e| e.chain()));
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Leftover {
            job: job.to_string(),
            failures,
        })
    }
}

/// A job's prepared root, as a process that is about to join it sees it.
pub struct Prepared {
    /// What it was built from.
    pub manifest: JobManifest,
    /// The image's metadata.
    pub meta: Vec<u8>,
    dir: OwnedFd,
}

impl Prepared {
    /// Finds the prepared root of a job on this node.
    pub fn find(job: &JobId) -> Result<Option<Self>> {
        let path = layout::job_dir(job);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let job_dir = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).step("open", &path),
        };
        let Some(bytes) = state::read_file(&job_dir, "manifest")? else {
            return Ok(None);
        };
        let manifest = JobManifest::parse(&bytes)?;
        let Some(dir) = state::open_root(job, JOB_ROOT)? else {
            return Ok(None);
        };
        let Some(meta) = state::read_file(&dir, "meta")? else {
            return Ok(None);
        };
        Ok(Some(Self {
            manifest,
            meta,
            dir,
        }))
    }

    /// Moves the process into the root, to "/".
    pub fn join(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let pin = rustix::fs::openat(&self.dir, "mnt", flags, Mode::empty())
            .step("open", "the job's namespace")?;
        namespace::enter(&pin)?;
        rustix::process::chdir("/").step("change to", "/")
    }
}

/// Makes a namespace outlive the process: first the journal, then the mount.
fn pin(dir: &OwnedFd, root: &root::Root, uid: u32) -> Result<()> {
    let namespace = rustix::fs::fstat(&root.namespace)
        .step("examine", "namespace")?
        .st_ino;
    let journal = Journal {
        uid,
        namespace,
        device: root.device,
    };
    let bytes = serde_json::to_vec(&journal).map_err(std::io::Error::from);
    state::write_file(dir, "journal", &bytes.step("write", "journal")?)?;
    state::create_file(dir.as_fd(), "mnt")?;
    let mount = mnt::clone(&root.namespace, false)?;
    mnt::attach_at(&mount, dir, b"mnt")
}

/// Undoes what the journals of a job's roots say, and forgets the roots.
fn clear(job: &JobDir) -> Result<()> {
    for name in job.roots()? {
        let dir = job.root(&name)?;
        unpin(&dir)?;
        for file in state::list(&dir)? {
            rustix::fs::unlinkat(&dir, &file, AtFlags::empty()).step("remove", &*file)?;
        }
    }
    Ok(())
}

/// Opens a root's pin if there is one.
fn find_pin(dir: &OwnedFd) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let pin = match rustix::fs::openat(dir, "mnt", flags, Mode::empty()) {
        Ok(pin) => pin,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).step("open", "mnt"),
    };
    // Only a file: set-up died before it was pinned.
    let kind = rustix::fs::fstatfs(&pin).step("examine", "mnt")?.f_type;
    Ok((kind == libc::NSFS_MAGIC).then_some(pin))
}

/// Takes the pin away if there is one.
fn unpin(dir: &OwnedFd) -> Result<()> {
    let Some(pin) = find_pin(dir)? else {
        return Ok(());
    };
    let path = mnt::path_of(pin.as_fd());
    unmount(&*path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).step("unmount", &*path)
}

/// Ends what is left in the job's roots; returns a complaint about processes that live on.
fn end_processes(job: &JobDir) -> Result<Option<String>> {
    let mut marks = Vec::new();
    for name in job.roots()? {
        let dir = job.root(&name)?;
        // The kernel gives the numbers of a namespace that is gone to the next one, which is
        // somebody else's: without a pin they mark nobody, and nobody could have joined.
        let Some(pin) = find_pin(&dir)? else { continue };
        let pinned = rustix::fs::fstat(&pin).step("examine", "mnt")?.st_ino;
        let journal = state::read_file(&dir, "journal")?;
        if let Some(journal) = journal.and_then(|b| serde_json::from_slice::<Journal>(&b).ok()) {
            let Journal {
                uid,
                namespace,
                device,
            } = journal;
            if namespace == pinned {
                marks.push(Marks {
                    uid,
                    namespace,
                    device,
                });
            }
        }
    }
    if marks.is_empty() {
        return Ok(None);
    }
    let alive = strays::end_all(&marks)?;
    Ok((!alive.is_empty()).then(|| format!("processes {alive:?} do not end")))
}
