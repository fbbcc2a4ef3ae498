//! The life of a job's root: set up, pinned, removed. How it is joined is in [`crate::prepared`].

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout::{FAILURE_LIMIT, JOB_ROOT};
use shifter_core::manifest::JobManifest;
use shifter_core::sanitize;

use crate::error::{Context, Error, Result};
use crate::host_view::{self, HostView};
use crate::prepared::TICKET;
use crate::root::{self, RootRequest};
use crate::state::{self, JobDir, RunDir};
use crate::strays::{self, Marks, Wanted};
use crate::watch::{Awaited, Watch};
use crate::{image, kmod, loopdev, mnt, modules, namespace, prepared};

/// How long set-up and teardown of one job wait for each other.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// In a job's directory: why its root cannot be made.
const FAILURE: &str = "failure";

/// What a root acquired, written before the pin makes it outlive the process.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    uid: u32,
    namespace: u64,
    device: (u32, u32),
    /// Where it is seen in the host's namespace, if it is.
    #[serde(default)]
    place: Option<PathBuf>,
}

/// Builds the root of a job and pins it. Returns what was asked for and not done.
///
/// # Errors
/// Every failure leaves nothing behind; [`Error::exit_code`] tells the user's mistakes from the
/// node's failures.
pub fn set_up(config: &Config, manifest: &JobManifest) -> Result<Vec<String>> {
    kmod::preload(&config.kernel)?;
    let run = RunDir::open()?;
    let job = JobDir::lock(&run, &manifest.job, LOCK_PATIENCE)?;
    let host = namespace::own()?;
    // From here on no name of a module means the default ones.
    let mut manifest = manifest.clone();
    manifest.modules = modules::requested(config, &manifest.modules);
    make(config, &manifest, &run, &job, &host).inspect_err(|_| {
        // What cannot be removed now is found by the teardown; the first error is the one to tell.
        // A failed build may have left us in its namespace, where the host's paths mean nothing.
        let _ = namespace::enter(&host)
            .and_then(|()| demolish(&job, None))
            .and_then(|_| job.remove())
            .and_then(|()| loopdev::sweep(&run.subdir("images")?))
            .and_then(|()| run.release_if_idle());
    })
}

fn make(
    config: &Config,
    manifest: &JobManifest,
    run: &RunDir,
    job: &JobDir,
    host: &OwnedFd,
) -> Result<Vec<String>> {
    // A job that was requeued without an epilogue, or a set-up that died: start anew.
    demolish(job, None)?;
    state::remove_file(job.dir(), FAILURE)?;
    let volumes = manifest.volume_map()?;
    modules::check(config, &manifest.modules)?;
    let (uid, gids) = (manifest.user.uid, manifest.user.gids());
    let image = image::open_for_job(config, &manifest.image, uid, &gids)?;
    let request = RootRequest {
        config,
        image: &image,
        user: &manifest.user,
        volumes: &volumes,
        modules: &manifest.modules,
        hosts: &manifest.hosts,
        writable: None,
        is_pinned: true,
        watch: &Blame {
            job,
            is_noted: Cell::new(false),
        },
    };
    let place = host_view::place(config)?;
    let root = root::build(&request, Some(run))?;
    let own = namespace::own()?;
    let view = HostView::copy(place)?;
    namespace::enter(host)?;
    state::write_file(job.dir(), "manifest", &manifest.to_bytes()?)?;
    let dir = job.root(JOB_ROOT)?;
    pin(&dir, &own, &root, uid, view.as_ref())?;
    if let Some(view) = &view {
        view.attach(run)?;
    }
    // Last: it is what lets tasks in.
    state::write_file(&dir, TICKET, &image.meta_bytes)?;
    if job.is_buried()? {
        Err(Error::Removed(manifest.job.to_string()))
    } else {
        Ok(root.warnings)
    }
}

/// Notes why a job's root cannot be made for its user; reported when the job's tasks start.
pub fn record_failure(job: &JobId, message: &str) -> Result<()> {
    let run = RunDir::open()?;
    let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
    note_failure(&dir, message.to_owned())
}

fn note_failure(job: &JobDir, mut message: String) -> Result<()> {
    while message.len() as u64 > FAILURE_LIMIT {
        message.pop();
    }
    state::write_file(job.dir(), FAILURE, message.as_bytes())
}

/// Blames a volume of the user's, and not the node, while it is waited for: whoever has to end this
/// process finds the note.
struct Blame<'a> {
    job: &'a JobDir,
    is_noted: Cell<bool>,
}

impl Watch for Blame<'_> {
    fn on(&self, awaited: Awaited<'_>) -> Result<()> {
        match awaited {
            Awaited::Volume(volume) => {
                let source = sanitize::text(&volume.from);
                let message = format!("no answer from the source of a volume: '{source}'");
                self.is_noted.set(true);
                note_failure(self.job, message)
            }
            Awaited::Site if self.is_noted.replace(false) => {
                state::remove_file(self.job.dir(), FAILURE)
            }
            Awaited::Site => Ok(()),
        }
    }
}

/// Removes everything of a job, from whatever state it is in; a job that has nothing is fine. `uid`
/// is its user, where the caller knows: batch systems without cgroups leave processes that only so
/// can be told.
///
/// # Errors
/// [`Error::Leftover`] names every step that failed, after all others were done.
pub fn tear_down(job: &JobId, uid: Option<u32>) -> Result<()> {
    let Some(run) = RunDir::open_existing()? else {
        return Ok(());
    };
    let mut failures = Vec::new();
    if JobDir::exists(&run, job)? {
        let _tombstone = JobDir::bury(&run, job)?;
        let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
        match demolish(&dir, Some(Ended { job, uid })) {
            Ok(complaint) => {
                failures.extend(complaint);
                failures.extend(dir.remove().err().map(|error| error.chain()));
            }
            // The journal stays for the next attempt.
            Err(error) => failures.push(error.chain()),
        }
    } else {
        // A job without an image may have had private containers.
        match end_strays(&[], Some(Ended { job, uid })) {
            Ok(complaint) => failures.extend(complaint),
            Err(error) => failures.push(error.chain()),
        }
    }
    let swept = run
        .subdir("images")
        .and_then(|hints| loopdev::sweep(&hints));
    failures.extend(swept.err().map(|error| error.chain()));
    failures.extend(run.release_if_idle().err().map(|error| error.chain()));
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Leftover {
            job: job.to_string(),
            failures,
        })
    }
}

/// Makes a namespace outlive the process: first the journal, then the mount.
fn pin(
    dir: &OwnedFd,
    own: &OwnedFd,
    root: &root::Root,
    uid: u32,
    view: Option<&HostView>,
) -> Result<()> {
    let namespace = rustix::fs::fstat(own).step("examine", "namespace")?.st_ino;
    let journal = Journal {
        uid,
        namespace,
        device: mnt::device_of(&root.mount)?,
        place: view.map(|view| view.place().to_owned()),
    };
    let bytes = serde_json::to_vec(&journal).map_err(std::io::Error::from);
    state::write_file(dir, "journal", &bytes.step("write", "journal")?)?;
    state::create_file(dir.as_fd(), "mnt")?;
    let mount = mnt::clone(own, false)?;
    mnt::attach_at(&mount, dir, b"mnt")
}

/// A job that is over.
#[derive(Clone, Copy)]
struct Ended<'a> {
    job: &'a JobId,
    uid: Option<u32>,
}

/// Ends what is left in the job's roots and forgets them, and in the private containers of `ended`
/// as well; returns a complaint about processes that live on. In an order in which death at any
/// point leaves the rest to be found again.
fn demolish(job: &JobDir, ended: Option<Ended<'_>>) -> Result<Option<String>> {
    let mut marks = Vec::new();
    let mut pins = Vec::new();
    for name in job.roots()? {
        let dir = job.root(&name)?;
        // From here on nobody is let in; who was before has been the user since (`joins`).
        state::remove_file(&dir, TICKET)?;
        // Without a pin nobody could join, and the kernel has given the namespace's numbers to
        // somebody else's by now. The open pin keeps them ours.
        let Some(pin) = prepared::open_pin(&dir)? else {
            continue;
        };
        let pinned = rustix::fs::fstat(&pin).step("examine", "mnt")?.st_ino;
        pins.push(pin);
        let journal = state::read_file(&dir, "journal")?;
        if let Some(journal) = journal.and_then(|b| serde_json::from_slice::<Journal>(&b).ok())
            && journal.namespace == pinned
        {
            let Journal {
                uid,
                namespace,
                device,
                place,
            } = journal;
            marks.push(Marks {
                uid,
                namespace,
                device,
                place,
            });
        }
    }
    let complaint = end_strays(&marks, ended)?;
    for mark in &marks {
        // While the pin is there the device is nobody else's.
        if let Some(place) = &mark.place {
            host_view::detach(place, mark.device)?;
        }
    }
    for name in job.roots()? {
        let dir = job.root(&name)?;
        unpin(&dir)?;
        for file in state::list(&dir)? {
            state::remove_file(&dir, &file)?;
        }
    }
    Ok(complaint)
}

/// Ends processes; returns a complaint about those that live on.
fn end_strays(marks: &[Marks], ended: Option<Ended<'_>>) -> Result<Option<String>> {
    if marks.is_empty() && ended.is_none() {
        return Ok(None);
    }
    let job = ended.map(|ended| ended.job);
    // Who had a root is known by it.
    let known = marks.first().map(|mark| mark.uid);
    let uid = ended.and_then(|ended| ended.uid.or(known));
    let alive = strays::end_all(&Wanted { marks, job, uid })?;
    Ok((!alive.is_empty()).then(|| format!("processes {alive:?} do not end")))
}

/// Takes the pin away if there is one.
fn unpin(dir: &OwnedFd) -> Result<()> {
    if prepared::open_pin(dir)?.is_none() {
        return Ok(());
    }
    let path = format!("{}/mnt", mnt::path_of(dir.as_fd()));
    unmount(&*path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).step("unmount", &*path)
}
