//! The life of a job's root: set up, pinned, removed. How it is joined is in [`crate::prepared`].

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, FAILURE_LIMIT, JOB_ROOT};
use shifter_core::manifest::{JobManifest, Start};

use crate::error::{Context, Error, Result};
use crate::host_view::{self, HostView};
use crate::namespace::Home;
use crate::prepared::{MANIFEST, TICKET};
use crate::record::Phases;
use crate::root::{self, RootRequest};
use crate::state::{self, JobDir, RunDir};
use crate::strays::{self, Marks, Wanted};
use crate::watch::{Awaited, Nobody, Watch};
use crate::{
    abandoned, host_image, image, kmod, loopdev, mnt, modules, namespace, prepared, process,
};

/// How long set-up and teardown of one job wait for each other.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// In a job's directory: why its root cannot be made.
const FAILURE: &str = "failure";

/// In the root of a step: the process that removes it.
const HOLDER: &str = "holder";

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

/// Which of a job's roots is set up, and what only the batch system knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The root's name: [`JOB_ROOT`], or that of a step.
    pub name: &'a str,
    /// The batch system's own directory on this node, which containers show at the same place.
    pub spool: Option<&'a str>,
}

/// Builds a root of a job and pins it. Returns what was asked for and not done.
///
/// # Errors
/// Every failure leaves nothing behind; [`Error::exit_code`] tells the user's mistakes from the
/// node's failures.
pub fn set_up(
    config: &Config,
    manifest: &JobManifest,
    plan: Plan<'_>,
    phases: &mut Phases,
) -> Result<Vec<String>> {
    kmod::preload(&config.kernel)?;
    let run = RunDir::open()?;
    let job = JobDir::lock(&run, &manifest.job, LOCK_PATIENCE)?;
    phases.end("lock_ms");
    let host = Home::own()?;
    // From here on no name of a module means the default ones.
    let mut manifest = manifest.clone();
    manifest.modules = modules::requested(config, &manifest.modules);
    make(config, &manifest, plan, phases, &run, &job, &host).inspect_err(|_| {
        // What cannot be removed now is found by the teardown; the first error is the one to tell.
        // A failed build may have left us in its namespace, where the host's paths mean nothing.
        let _ = host
            .enter()
            .and_then(|()| undo(job, plan.name))
            .and_then(|_| loopdev::sweep(&run.subdir("images")?))
            .and_then(|()| run.release_if_idle());
    })
}

fn make(
    config: &Config,
    manifest: &JobManifest,
    plan: Plan<'_>,
    phases: &mut Phases,
    run: &RunDir,
    job: &JobDir,
    host: &Home,
) -> Result<Vec<String>> {
    let is_jobs = plan.name == JOB_ROOT;
    if is_jobs {
        // A job that was requeued without an epilogue, or a set-up that died: start anew.
        demolish(job, &job.roots()?, None)?;
        state::remove_file(job.dir(), FAILURE)?;
        abandoned::note_daemon(job)?;
    } else {
        for gone in abandoned(job, plan.name)? {
            forget(job, &gone)?;
        }
    }
    // Now: who loses its parent meanwhile gets another one, which lives for ever.
    let holder = (!is_jobs).then(process::parent).transpose()?;
    let volumes = manifest.volume_map()?;
    modules::check(config, &manifest.modules)?;
    let (uid, gids) = (manifest.user.uid, manifest.user.gids());
    let image = match manifest.modes.ccm {
        true => host_image::host(config)?,
        false => image::open_for_job(config, &manifest.image, uid, &gids)?,
    };
    phases.end("image_ms");
    let blame = Blame {
        job,
        is_noted: Cell::new(false),
    };
    let request = RootRequest {
        config,
        image: &image,
        user: &manifest.user,
        volumes: &volumes,
        modules: &manifest.modules,
        job: Some(&manifest.job),
        within: None,
        hosts: &manifest.hosts,
        ssh: manifest.ssh.as_ref(),
        writable: None,
        is_pinned: true,
        spool: plan.spool,
        // A step's own set-up reports to the step itself.
        watch: if is_jobs { &blame } else { &Nobody },
    };
    // One place is for one root: a step's own is joined, and no launcher changes root to it.
    let place = if is_jobs {
        host_view::place(config)?
    } else {
        None
    };
    let root = root::build(&request, Some(run))?;
    phases.end("root_ms");
    let own = namespace::own()?;
    let view = HostView::copy(place)?;
    host.enter()?;
    let dir = job.root(plan.name)?;
    let bytes = manifest.to_bytes()?;
    match holder {
        None => state::write_file(job.dir(), MANIFEST, &bytes)?,
        Some(holder) => {
            state::write_file(&dir, MANIFEST, &bytes)?;
            state::write_file(&dir, HOLDER, holder.as_bytes())?;
        }
    }
    pin(&dir, &own, &root, uid, view.as_ref())?;
    if let Some(view) = &view {
        view.attach(run)?;
    }
    // Last: it is what lets tasks in.
    state::write_file(&dir, TICKET, &image.meta_bytes)?;
    phases.end("pin_ms");
    if job.is_buried()? {
        Err(Error::Removed(manifest.job.to_string()))
    } else {
        Ok(root.warnings)
    }
}

/// Returns the root of this name, and those of the job's steps whose process is dead.
fn abandoned(job: &JobDir, name: &str) -> Result<Vec<String>> {
    let mut gone = Vec::new();
    for root in job.roots()? {
        let is_held = || -> Result<bool> {
            let holder = state::read_file(job.root(&root)?, HOLDER)?;
            Ok(holder.is_some_and(|text| process::lives(&text)))
        };
        if root == name || (layout::is_step_root(&root) && !is_held()?) {
            gone.push(root);
        }
    }
    Ok(gone)
}

/// Notes why a job's root cannot be made for its user; reported when the job's tasks start.
pub fn record_failure(job: &JobId, message: &str) -> Result<()> {
    let run = RunDir::open()?;
    let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
    abandoned::note_daemon(&dir)?;
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
            Awaited::Volume(_) | Awaited::Source(..) => {
                self.is_noted.set(true);
                note_failure(self.job, format!("no answer from {awaited}"))
            }
            _ if self.is_noted.replace(false) => state::remove_file(self.job.dir(), FAILURE),
            _ => Ok(()),
        }
    }
}

/// Removes everything of a job, from whatever state it is in; a job that has nothing is fine. `uid`
/// is its user, where the caller knows: batch systems without cgroups leave processes that only so
/// can be told.
///
/// # Errors
/// [`Error::Leftover`] names every step that failed, after all others were done.
pub fn tear_down(job: &JobId, uid: Option<u32>, phases: &mut Phases) -> Result<()> {
    let run = RunDir::open_existing()?;
    let had_root = match &run {
        Some(run) => JobDir::exists(run, job)?,
        // Not every private container needs the node's state.
        None if uid.is_some() => false,
        None => return Ok(()),
    };
    let ended = Ended { job, uid };
    let failures = if let Some(run) = run.as_ref().filter(|_| had_root) {
        let _tombstone = JobDir::bury(run, job)?;
        remove(JobDir::lock(run, job, LOCK_PATIENCE)?, ended)
    } else {
        // A job without an image may have had private containers.
        let strays = end_strays(&[], Some(ended));
        strays.map_or_else(|error| vec![error.chain()], Vec::from_iter)
    };
    phases.end("strays_ms");
    finish(run, job, failures)
}

/// Removes what one start of a job has left, long after it; returns false, and touches nothing, where
/// the job was set up again since, for whomever. A set-up that is at work is waited for, and not
/// stopped: it may be of a later start.
///
/// # Errors
/// As for [`tear_down`].
pub fn tear_down_start(job: &JobId, start: Start, phases: &mut Phases) -> Result<bool> {
    let run = RunDir::open()?;
    let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
    let manifest = state::read_file(dir.dir(), MANIFEST)?;
    let manifest = manifest.and_then(|bytes| JobManifest::parse(&bytes).ok());
    if manifest.is_some_and(|manifest| manifest.start().is_after(&start)) {
        return Ok(false);
    }
    let uid = Some(start.uid);
    let failures = remove(dir, Ended { job, uid });
    phases.end("strays_ms");
    finish(Some(run), job, failures).map(|()| true)
}

/// Removes everything of a job of Slurm's whose epilog will never come; false if that is not sure, or
/// somebody is at work on the job, who is not waited for.
///
/// # Errors
/// As for [`tear_down`].
pub fn tear_down_abandoned(job: &JobId, phases: &mut Phases) -> Result<bool> {
    let Some(run) = RunDir::open_existing()? else {
        return Ok(false);
    };
    let Some(dir) = JobDir::lock_existing(&run, job)? else {
        return Ok(false);
    };
    let mut namespaces = Vec::new();
    for name in dir.roots()? {
        if let Some(pin) = prepared::open_pin(&dir.root(&name)?)? {
            namespaces.push(rustix::fs::fstat(&pin).step("examine", "mnt")?.st_ino);
        }
    }
    if !abandoned::is_over(&dir, &namespaces)? {
        return Ok(false);
    }
    let failures = remove(dir, Ended { job, uid: None });
    phases.end("strays_ms");
    finish(Some(run), job, failures).map(|()| true)
}

/// Removes all roots of a job and then its directory; returns what failed.
fn remove(dir: JobDir, ended: Ended<'_>) -> Vec<String> {
    let demolished = dir
        .roots()
        .and_then(|roots| demolish(&dir, &roots, Some(ended)));
    match demolished {
        Ok(complaint) => {
            let failure = dir.remove().err().map(|error| error.chain());
            complaint.into_iter().chain(failure).collect()
        }
        // The journal stays for the next attempt.
        Err(error) => vec![error.chain()],
    }
}

/// Removes the root of one step of a job; it is no error if there is none.
///
/// # Errors
/// As for [`tear_down`].
pub fn tear_down_step(job: &JobId, name: &str) -> Result<()> {
    let Some(run) = RunDir::open_existing()? else {
        return Ok(());
    };
    if !JobDir::exists(&run, job)? {
        return Ok(());
    }
    let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
    let mut failures = Vec::new();
    match forget(&dir, name) {
        Ok(complaint) => failures.extend(complaint),
        Err(error) => failures.push(error.chain()),
    }
    failures.extend(dir.remove_if_empty().err().map(|error| error.chain()));
    finish(Some(run), job, failures)
}

/// Gives back of the node's state what nobody needs any more, and tells of every step that failed.
fn finish(run: Option<RunDir>, job: &JobId, mut failures: Vec<String>) -> Result<()> {
    if let Some(run) = run {
        let swept = run
            .subdir("images")
            .and_then(|hints| loopdev::sweep(&hints));
        failures.extend(swept.err().map(|error| error.chain()));
        failures.extend(run.release_if_idle().err().map(|error| error.chain()));
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Leftover {
            job: job.to_string(),
            failures,
        })
    }
}

/// Removes what a failed set-up has left.
fn undo(job: JobDir, name: &str) -> Result<()> {
    if name == JOB_ROOT {
        demolish(&job, &job.roots()?, None)?;
        return job.remove();
    }
    forget(&job, name)?;
    job.remove_if_empty()
}

/// Removes one of a job's roots; returns a complaint about processes that live on.
fn forget(job: &JobDir, name: &str) -> Result<Option<String>> {
    let names = job.roots()?;
    if !names.iter().any(|root| root == name) {
        return Ok(None);
    }
    let complaint = demolish(job, &[name.to_owned()], None)?;
    job.remove_root(name)?;
    Ok(complaint)
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

/// Ends what is left in these roots of the job and forgets them, and in the private containers of
/// `ended` as well; returns a complaint about processes that live on. In an order in which death at
/// any point leaves the rest to be found again.
fn demolish(job: &JobDir, roots: &[String], ended: Option<Ended<'_>>) -> Result<Option<String>> {
    let mut marks = Vec::new();
    let mut pins = Vec::new();
    for name in roots {
        let dir = job.root(name)?;
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
    for name in roots {
        let dir = job.root(name)?;
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
