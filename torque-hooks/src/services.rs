//! Services that a node runs while it has a job of ours: munge, and nscd with the caches of the
//! launch node, so that nodes answer for accounts without a name service of their own.
//!
//! ```text
//! /run/shifter-services/          0700, root's
//!   lock                          held while something is started or stopped
//!   <service>/ours                we have started it
//!   <service>/jobs/<job>          a job that needs it, and which start of it; with the last one it is
//!                                 stopped
//! ```
//!
//! One that answers already is the node's own and is left alone.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use node_setup::child::ChildError;
use node_setup::error::{Context, Error};
use node_setup::{kmod, lookup, state};
use rustix::fs::{CWD, FlockOperation};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use shifter_core::chain;
use shifter_core::config::{Config, Service};
use shifter_core::ids::JobId;
use shifter_core::manifest::Start;
use shifter_core::trusted::{self, TrustError};
use thiserror::Error;

use crate::outside;
use crate::resolve::AS_USER;
use crate::say::{self, Weight};

const DIR: &str = "/run/shifter-services";

/// Seconds for a service to start, to answer, to end.
const SECS: u32 = 10;

/// Databases of nscd that are copied, under these names in the shared state.
pub const CACHES: [(&str, &str); 2] = [
    ("nscd-passwd", "/var/cache/nscd/passwd"),
    ("nscd-group", "/var/cache/nscd/group"),
];

/// Says why a service does not run, or runs on.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// A kernel module cannot be had, or the node's state cannot be changed.
    #[error(transparent)]
    Node(#[from] Error),
    /// The program is not root's.
    #[error(transparent)]
    Untrusted(#[from] TrustError),
    /// The program did not start.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// It started and is not there.
    #[error("{program} does not answer{}", if .words.is_empty() { String::new() } else { format!(": {}", .words) })]
    Silent {
        /// The program.
        program: &'static str,
        /// What it said.
        words: String,
    },
    /// It does not end.
    #[error("{0} does not end")]
    Stays(&'static str),
}

/// What there is to know of a service.
struct Known {
    name: &'static str,
    program: &'static str,
    socket: &'static str,
    pid_file: &'static str,
}

const MUNGE: Known = Known {
    name: "munge",
    program: "/usr/sbin/munged",
    socket: "/run/munge/munge.socket.2",
    pid_file: "/run/munge/munged.pid",
};

const NSCD: Known = Known {
    name: "nscd",
    program: "/usr/sbin/nscd",
    socket: "/run/nscd/socket",
    pid_file: "/run/nscd/nscd.pid",
};

fn known(service: Service) -> &'static Known {
    match service {
        Service::Munge => &MUNGE,
        Service::Nscd => &NSCD,
    }
}

/// Loads the kernel modules and starts what does not run yet. `caches` are nscd's databases, by
/// their names in the shared state.
pub fn start(
    config: &Config,
    job: &JobId,
    start: Option<Start>,
    caches: &[(String, Vec<u8>)],
) -> Result<(), ServiceError> {
    kmod::preload(&config.kernel)?;
    if config.torque.services.is_empty() {
        return Ok(());
    }
    let dir = open()?;
    let _lock = lock(&dir)?;
    for service in &config.torque.services {
        let known = known(*service);
        let own = state::make_dir(&dir, known.name)?;
        // First: whoever dies after this leaves it to be stopped.
        let text = start.map(|start| start.to_string()).unwrap_or_default();
        let jobs = state::make_dir(&own, "jobs")?;
        state::write_file(&jobs, job.as_str(), text.as_bytes())?;
        if answers(known) {
            continue;
        }
        state::write_file(&own, "ours", b"")?;
        match service {
            Service::Munge => start_munge()?,
            Service::Nscd => start_nscd(config, caches)?,
        }
    }
    Ok(())
}

/// Stops what no job needs any more and we have started. A later start of the job than this one
/// keeps what it needs.
pub fn stop(job: &JobId, start: Option<Start>) -> Result<(), ServiceError> {
    if !Path::new(DIR).exists() {
        return Ok(());
    }
    let dir = open()?;
    let _lock = lock(&dir)?;
    for known in [&MUNGE, &NSCD] {
        let own = state::make_dir(&dir, known.name)?;
        let jobs = state::make_dir(&own, "jobs")?;
        let noted = state::read_file(&jobs, job.as_str())?.unwrap_or_default();
        let noted = Start::parse(&String::from_utf8_lossy(&noted));
        if let (Some(noted), Some(start)) = (noted, start)
            && noted.is_after(&start)
        {
            continue;
        }
        state::remove_file(&jobs, job.as_str())?;
        let is_needed = !state::list(&jobs)?.is_empty();
        if !is_needed && state::open_file(&own, "ours")?.is_some() {
            end(known)?;
            state::remove_file(&own, "ours")?;
        }
    }
    Ok(())
}

fn open() -> Result<OwnedFd, Error> {
    state::make_dir(CWD, DIR)
}

fn lock(dir: &OwnedFd) -> Result<OwnedFd, Error> {
    use std::os::fd::AsFd;
    let lock = state::create_file(dir.as_fd(), "lock")?;
    let deadline = Instant::now() + Duration::from_secs((4 * SECS).into());
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result.step("lock", DIR).map(|()| lock),
        }
    }
}

fn answers(known: &Known) -> bool {
    UnixStream::connect(known.socket).is_ok()
}

fn start_munge() -> Result<(), ServiceError> {
    let user = lookup::identity_of_name("munge", None)?;
    let program = trusted::audit(Path::new(MUNGE.program), &[0])?;
    let runs = Path::new(MUNGE.socket)
        .parent()
        .unwrap_or(Path::new("/run"));
    match std::fs::create_dir(runs) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::Step {
                step: "create directory",
                object: runs.display().to_string(),
                source: error,
            }
            .into());
        }
        _ => std::os::unix::fs::chown(runs, Some(user.uid), Some(user.gid)).step("give", runs)?,
    }
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(format!("{AS_USER}{}:{}:{}", user.uid, user.gid, user.gid))
        .arg(program);
    run(&MUNGE, command)
}

fn start_nscd(config: &Config, caches: &[(String, Vec<u8>)]) -> Result<(), ServiceError> {
    let program = trusted::audit(Path::new(NSCD.program), &[0])?;
    for (name, path) in CACHES {
        let path = Path::new(path);
        let dir = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(dir).step("create directory", dir)?;
        if let Some((_, bytes)) = caches.iter().find(|(known, _)| known == name) {
            let dir = trusted::audit(dir, &[0])?;
            let flags = rustix::fs::OFlags::RDONLY
                | rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::CLOEXEC;
            let dir =
                rustix::fs::open(&dir, flags, rustix::fs::Mode::empty()).step("open", &dir)?;
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            state::write_file(&dir, &file, bytes)?;
        }
    }
    let runs = Path::new("/run/nscd");
    std::fs::create_dir_all(runs).step("create directory", runs)?;
    let conf = config.prefix.join("share/shifter/torque/nscd.conf");
    let conf = trusted::audit(&conf, &[0])?;
    let mut command = Command::new(program);
    command.arg("-f").arg(conf);
    run(&NSCD, command)
}

/// Runs a program that puts itself into the background, and waits until it answers.
fn run(known: &'static Known, command: Command) -> Result<(), ServiceError> {
    let finished = outside::run(command, SECS)?;
    let deadline = Instant::now() + Duration::from_secs(SECS.into());
    while !answers(known) {
        if Instant::now() >= deadline || !finished.status.success() {
            return Err(ServiceError::Silent {
                program: known.program,
                words: finished.messages(1).join("; "),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Ends a service by its process, if it is the program.
fn end(known: &'static Known) -> Result<(), ServiceError> {
    let text = std::fs::read_to_string(known.pid_file).unwrap_or_default();
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    // The descriptor names one process for good; what it runs is looked at after that.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    let program = std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
    let expected = Path::new(known.program).canonicalize();
    if !matches!((program, expected), (Ok(program), Ok(expected)) if program == expected) {
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(SECS.into());
    let mut signal = Signal::TERM;
    while pidfd_send_signal(&process, signal).is_ok() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ServiceError::Stays(known.program));
        }
        if left < Duration::from_secs(u64::from(SECS) / 2) {
            signal = Signal::KILL;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Reads nscd's databases on the launch node; those that are not there are left out, and those that
/// cannot be handed on with a word in the log: the nodes then look accounts up for themselves.
pub fn own_caches() -> Vec<(&'static str, Vec<u8>)> {
    let read = |(name, path): (&'static str, &str)| match trusted::read(
        Path::new(path),
        shifter_core::manifest::SIZE_LIMIT,
    ) {
        Ok(bytes) => Some((name, bytes)),
        Err(TrustError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            None
        }
        Err(error) => {
            say::log(Weight::Warning, &chain::line(&error));
            None
        }
    };
    CACHES.into_iter().filter_map(read).collect()
}
