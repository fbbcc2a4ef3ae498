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

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use node_setup::child::ChildError;
use node_setup::error::{Context, Error};
use node_setup::{kmod, lookup, state};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use shifter_core::config::{Config, Service};
use shifter_core::ids::JobId;
use shifter_core::manifest::Start;
use shifter_core::trusted::{self, TrustError};
use thiserror::Error;

use crate::cache::{self, CACHES};
use crate::outside;
use crate::resolve::AS_USER;
use crate::say::{self, Weight};
use crate::shared::Cache;

const DIR: &str = "/run/shifter-services";

/// Seconds for a service to start, to answer, to end.
const SECS: u32 = 10;

/// How long one that is busy is asked again.
const MOMENT: Duration = Duration::from_secs(2);

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
    caches: &mut [Cache],
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
    let lock = state::create_file(dir.as_fd(), "lock")?;
    let deadline = Instant::now() + Duration::from_secs((4 * SECS).into());
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result.step("lock", DIR).map(|()| lock),
        }
    }
}

/// True if somebody listens. One that hangs and has as many callers waiting as it lets wait is asked
/// again for a moment, and then taken for one that does not answer: connect(2) would wait for ever.
fn answers(known: &Known) -> bool {
    let deadline = Instant::now() + MOMENT;
    loop {
        match is_connected(known.socket) {
            Err(Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result.is_ok(),
        }
    }
}

fn is_connected(path: &str) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
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

fn start_nscd(config: &Config, caches: &mut [Cache]) -> Result<(), ServiceError> {
    let program = trusted::audit(Path::new(NSCD.program), &[0])?;
    for (name, path) in CACHES {
        let path = Path::new(path);
        let dir = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(dir).step("create directory", dir)?;
        if let Some((_, copy)) = caches.iter_mut().find(|(known, _)| known == name) {
            let dir = trusted::audit(dir, &[0])?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::open(&dir, flags, Mode::empty()).step("open", &dir)?;
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            if let Err(error) = write(&dir, &file, copy) {
                // It starts with what it has, and asks for the rest.
                say::log(Weight::Warning, &error.chain());
            }
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

/// Writes a database from its copy: it is there at once or not.
fn write(dir: &OwnedFd, name: &str, copy: &mut impl Read) -> Result<(), Error> {
    let new = format!("{name}.new");
    let file = File::from(state::create_file(dir.as_fd(), &new)?);
    if let Err(error) = cache::unpack(&mut BufReader::new(copy), &file) {
        state::remove_file(dir, &new)?;
        return Err(error).step("write", name);
    }
    rustix::fs::renameat(dir, &*new, dir, name).step("write", name)
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

/// Reads a file of the service's: its user may have put anything in its place, and a pipe would be
/// waited for.
fn read_pid_file(path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let mut text = String::new();
    file.take(32).read_to_string(&mut text)?;
    Ok(text)
}

/// Ends a service by its process, if it is the program.
fn end(known: &Known) -> Result<(), ServiceError> {
    let text = read_pid_file(known.pid_file).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::FileType;

    use super::*;

    fn known(path: &Path) -> Known {
        let path = path.to_str().unwrap().to_owned().leak();
        Known {
            socket: path,
            pid_file: path,
            ..MUNGE
        }
    }

    #[test]
    fn a_service_that_hangs_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(!answers(&known(&path)), "nothing there");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(answers(&known(&path)));
        // Nobody is let in, and nobody waits any more: the next connect(2) would.
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(socket) = connected(&path) {
            waiting.push(socket);
            assert!(waiting.len() < 9, "as many as may wait");
        }
        let began = Instant::now();
        assert!(!answers(&known(&path)));
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    fn connected(path: &Path) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    }

    #[test]
    fn what_is_no_pid_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        end(&known(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/proc/self/stat", &path).unwrap();
        end(&known(&path)).unwrap();
    }
}
