//! The life of a job's root: set up, pinned, removed. How it is joined is in [`crate::prepared`].

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, FAILURE_LIMIT, JOB_ROOT};
use shifter_core::manifest::{JobManifest, Start};

use crate::deputy::{self, Delivery, Wait};
use crate::error::{Context, Error, Result};
use crate::host_view::{self, HostView};
use crate::image::{self, Image};
use crate::prepared::{MANIFEST, TICKET};
use crate::record::Phases;
use crate::root::{self, RootRequest};
use crate::state::{self, JobDir, RunDir};
use crate::strays::{self, Marks, Wanted};
use crate::watch::Awaited;
use crate::{
    abandoned, child, host_image, kmod, loopdev, mnt, modules, namespace, prepared, process,
};

/// How long set-up and teardown of one job wait for each other.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// In a job's directory: why its root cannot be made.
const FAILURE: &str = "failure";

/// In the root of a step: the process that removes it.
const HOLDER: &str = "holder";

/// The node's state, and how many seconds one answer of a file system is waited for, 0: for ever.
#[derive(Clone, Copy)]
struct Node<'a> {
    run: &'a RunDir,
    seconds: u32,
}

impl<'a> Node<'a> {
    fn new(run: &'a RunDir, config: &Config) -> Self {
        let seconds = config.root.answer_timeout_secs;
        Self { run, seconds }
    }
}

/// What a root acquired, written before the pin makes it outlive the process.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    uid: u32,
    namespace: u64,
    device: (u32, u32),
    #[serde(default)]
    overlay: Option<(u32, u32)>,
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
    // From here on no name of a module means the default ones.
    let mut manifest = manifest.clone();
    manifest.modules = modules::requested(config, &manifest.modules);
    make(config, &manifest, plan, phases, &run, &job).inspect_err(|_| {
        // What cannot be removed now is found by the teardown; the first error is the one to tell.
        let node = Node::new(&run, config);
        let _ = undo(node, job, plan.name)
            .and_then(|()| sweep(node))
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
) -> Result<Vec<String>> {
    let node = Node::new(run, config);
    let is_jobs = plan.name == JOB_ROOT;
    if is_jobs {
        // A job that was requeued without an epilogue, or a set-up that died: start anew.
        demolish(node, job, &job.roots()?, None)?;
        state::remove_file(job.dir(), FAILURE)?;
        abandoned::note_daemon(job)?;
    } else {
        for gone in abandoned(job, plan.name)? {
            forget(node, job, &gone)?;
        }
    }
    // Now: who loses its parent meanwhile gets another one, which lives for ever.
    let holder = (!is_jobs).then(process::parent).transpose()?;
    let volumes = manifest.volume_map()?;
    modules::check(config, &manifest.modules)?;
    let uid = manifest.user.uid;
    // One place is for one root: a step's own is joined, and no launcher changes root to it.
    let place = if is_jobs {
        host_view::place(config)?
    } else {
        None
    };
    let blame = Blame {
        // A step's own set-up reports to the step itself.
        job: is_jobs.then_some(job),
        is_users: Cell::new(false),
    };
    // The second thing to wait for is the image that was opened.
    let mut waits = 0;
    let told = |wait: &Wait| {
        waits += 1;
        if waits == 2 {
            phases.end("image_ms");
        }
        blame.on(wait)
    };
    let built = deputy::send(node.seconds, told, |watch| {
        job.leave_lock();
        run.leave_lock();
        watch.on(Awaited::Store(&config.store.path))?;
        let image = open_image(config, manifest)?;
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
            watch,
        };
        let root = root::build(&request, Some(run))?;
        let meta = child::filled(&image.meta_bytes).step("copy", "metadata")?;
        let mut fds = vec![namespace::own()?, root.mount, root.overlay, meta.into()];
        if place.is_some() {
            fds.push(host_view::copy()?);
        }
        let warnings = root.warnings;
        Ok(Delivery { fds, warnings })
    });
    let Delivery { fds, warnings } = built.map_err(|error| blame.judge(error))?;
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or(Errno::BADF).step("take over", "root");
    let (own, mounts, meta) = (next()?, [next()?, next()?], File::from(next()?));
    let view = match place {
        Some(place) => Some(HostView::new(next()?, place)),
        None => None,
    };
    phases.end("root_ms");
    let dir = job.root(plan.name)?;
    let bytes = manifest.to_bytes()?;
    match holder {
        None => state::write_file(job.dir(), MANIFEST, &bytes)?,
        Some(holder) => {
            state::write_file(&dir, MANIFEST, &bytes)?;
            state::write_file(&dir, HOLDER, holder.as_bytes())?;
        }
    }
    pin(&dir, &own, &mounts, uid, view.as_ref())?;
    if let Some(view) = &view {
        view.attach(run)?;
    }
    // Last: it is what lets tasks in.
    state::write_file(&dir, TICKET, &state::read_open(&meta, "metadata")?)?;
    phases.end("pin_ms");
    if job.is_buried()? {
        Err(Error::Removed(manifest.job.to_string()))
    } else {
        Ok(warnings)
    }
}

fn open_image(config: &Config, manifest: &JobManifest) -> Result<Image> {
    if manifest.modes.ccm {
        return host_image::host(config);
    }
    let user = &manifest.user;
    image::open_for_job(config, &manifest.image, user.uid, &user.gids())
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
    /// Where a note can be left.
    job: Option<&'a JobDir>,
    is_users: Cell<bool>,
}

impl Blame<'_> {
    fn on(&self, wait: &Wait) -> Result<()> {
        let was_users = self.is_users.replace(wait.is_users);
        match self.job {
            Some(job) if wait.is_users => {
                note_failure(job, format!("no answer from {}", wait.what))
            }
            Some(job) if was_users => state::remove_file(job.dir(), FAILURE),
            _ => Ok(()),
        }
    }

    /// Makes an answer that did not come the fault of who named the volume.
    fn judge(&self, error: Error) -> Error {
        match error {
            Error::NoAnswer { .. } if self.is_users.get() => Error::Denied {
                what: error.to_string(),
                hint: None,
            },
            other => other,
        }
    }
}

/// Removes everything of a job, from whatever state it is in; a job that has nothing is fine. `uid`
/// is its user, where the caller knows: batch systems without cgroups leave processes that only so
/// can be told. One answer of a file system that is unmounted is waited for as long as the configuration
/// says.
///
/// # Errors
/// [`Error::Leftover`] names every step that failed, after all others were done.
pub fn tear_down(
    config: &Config,
    job: &JobId,
    uid: Option<u32>,
    phases: &mut Phases,
) -> Result<()> {
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
        remove(
            Node::new(run, config),
            JobDir::lock(run, job, LOCK_PATIENCE)?,
            ended,
        )
    } else {
        // A job without an image may have had private containers.
        let strays = end_strays(&[], Some(ended));
        strays.map_or_else(|error| vec![error.chain()], Vec::from_iter)
    };
    phases.end("strays_ms");
    finish(config, run, job, failures)
}

/// Removes what one start of a job has left, long after it; returns false, and touches nothing, where
/// the job was set up again since, for whomever. A set-up that is at work is waited for, and not
/// stopped: it may be of a later start.
///
/// # Errors
/// As for [`tear_down`].
pub fn tear_down_start(
    config: &Config,
    job: &JobId,
    start: Start,
    phases: &mut Phases,
) -> Result<bool> {
    let run = RunDir::open()?;
    let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
    let manifest = state::read_file(dir.dir(), MANIFEST)?;
    let manifest = manifest.and_then(|bytes| JobManifest::parse(&bytes).ok());
    if manifest.is_some_and(|manifest| manifest.start().is_after(&start)) {
        return Ok(false);
    }
    let uid = Some(start.uid);
    let failures = remove(Node::new(&run, config), dir, Ended { job, uid });
    phases.end("strays_ms");
    finish(config, Some(run), job, failures).map(|()| true)
}

/// Removes everything of a job of Slurm's whose epilog will never come; false if that is not sure, or
/// somebody is at work on the job, who is not waited for.
///
/// # Errors
/// As for [`tear_down`].
pub fn tear_down_abandoned(config: &Config, job: &JobId, phases: &mut Phases) -> Result<bool> {
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
    let ended = Ended { job, uid: None };
    let failures = remove(Node::new(&run, config), dir, ended);
    phases.end("strays_ms");
    finish(config, Some(run), job, failures).map(|()| true)
}

/// Removes all roots of a job and then its directory; returns what failed.
fn remove(node: Node<'_>, dir: JobDir, ended: Ended<'_>) -> Vec<String> {
    let demolished = dir
        .roots()
        .and_then(|roots| demolish(node, &dir, &roots, Some(ended)));
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
pub fn tear_down_step(config: &Config, job: &JobId, name: &str) -> Result<()> {
    let Some(run) = RunDir::open_existing()? else {
        return Ok(());
    };
    if !JobDir::exists(&run, job)? {
        return Ok(());
    }
    let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
    let mut failures = Vec::new();
    match forget(Node::new(&run, config), &dir, name) {
        Ok(complaint) => failures.extend(complaint),
        Err(error) => failures.push(error.chain()),
    }
    failures.extend(dir.remove_if_empty().err().map(|error| error.chain()));
    finish(config, Some(run), job, failures)
}

/// Gives back of the node's state what nobody needs any more, and tells of every step that failed.
fn finish(
    config: &Config,
    run: Option<RunDir>,
    job: &JobId,
    mut failures: Vec<String>,
) -> Result<()> {
    if let Some(run) = run {
        let swept = sweep(Node::new(&run, config));
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

/// Removes the hints of no use. The kernel asks each image's own file system what a device has; where
/// that does not answer the hints stay, and serve or are removed another time.
fn sweep(Node { run, seconds }: Node<'_>) -> Result<()> {
    let hints = run.subdir("images")?;
    if state::list(&hints)?.is_empty() {
        return Ok(());
    }
    let swept = deputy::send(
        seconds,
        |_| Ok(()),
        |watch| {
            run.leave_lock();
            watch.on(Awaited::LoopDevices)?;
            loopdev::sweep(&hints).map(|()| Delivery::default())
        },
    );
    match swept {
        Ok(_) | Err(Error::NoAnswer { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what a failed set-up has left.
fn undo(node: Node<'_>, job: JobDir, name: &str) -> Result<()> {
    if name == JOB_ROOT {
        demolish(node, &job, &job.roots()?, None)?;
        return job.remove();
    }
    forget(node, &job, name)?;
    job.remove_if_empty()
}

/// Removes one of a job's roots; returns a complaint about processes that live on.
fn forget(node: Node<'_>, job: &JobDir, name: &str) -> Result<Option<String>> {
    let names = job.roots()?;
    if !names.iter().any(|root| root == name) {
        return Ok(None);
    }
    let complaint = demolish(node, job, &[name.to_owned()], None)?;
    job.remove_root(name)?;
    Ok(complaint)
}

/// Makes a namespace outlive the process: first the journal, then the mount.
fn pin(
    dir: &OwnedFd,
    own: &OwnedFd,
    [root, overlay]: &[OwnedFd; 2],
    uid: u32,
    view: Option<&HostView>,
) -> Result<()> {
    let namespace = rustix::fs::fstat(own).step("examine", "namespace")?.st_ino;
    let journal = Journal {
        uid,
        namespace,
        device: mnt::device_of(root)?,
        overlay: Some(mnt::device_of(overlay)?),
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
fn demolish(
    node: Node<'_>,
    job: &JobDir,
    roots: &[String],
    ended: Option<Ended<'_>>,
) -> Result<Option<String>> {
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
                overlay,
                place,
            } = journal;
            marks.push(Marks {
                uid,
                namespace,
                device,
                overlay,
                place,
            });
        }
    }
    let mut complaint = end_strays(&marks, ended)?;
    for mark in &marks {
        // While the pin is there the device is nobody else's.
        if let Some(place) = &mark.place {
            host_view::detach(place, mark.device)?;
        }
    }
    // Now the pins alone keep the namespaces.
    drop(pins);
    for name in roots {
        let dir = job.root(name)?;
        match unpin(node, job, name) {
            Err(error @ Error::NoAnswer { .. }) => complaint = complaint.or(Some(error.chain())),
            done => done?,
        }
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
    Ok((!alive.is_empty()).then(|| strays::complaint(&alive)))
}

/// Takes the pin away if there is one, and with the last the kernel unmounts what is in the namespace.
/// That writes to the storage of a cache: where it does not answer, the pin is gone nevertheless.
fn unpin(Node { run, seconds }: Node<'_>, job: &JobDir, name: &str) -> Result<()> {
    let dir = job.root(name)?;
    if prepared::open_pin(&dir)?.is_none() {
        return Ok(());
    }
    let path = format!("{}/mnt", mnt::path_of(dir.as_fd()));
    let taken = deputy::send(
        seconds,
        |_| Ok(()),
        |watch| {
            job.leave_lock();
            run.leave_lock();
            watch.on(Awaited::Mounts(name))?;
            unmount(&*path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .step("unmount", &*path)?;
            Ok(Delivery::default())
        },
    );
    taken.map(drop)
}
