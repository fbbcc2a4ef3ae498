//! Programs of the site that run while a root is built, as root, and in a container, as the user.
//!
//! A hook is an argument list, never a shell's line. Root's hooks get a fixed environment, nothing
//! of the caller's (no variable, descriptor, terminal, signal setting or group), and are the first
//! process of a process namespace: whatever they start ends with them, and they with us.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use shifter_core::config::Config;
use shifter_core::env::Pair;
use shifter_core::{sanitize, trusted};

use crate::error::{Error, Result};
use crate::root::RootRequest;
use crate::{mnt, sys};

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes of a hook's output that are kept: the last ones.
const OUTPUT_LIMIT: usize = 4096;

/// When a hook of root's runs.
#[derive(Clone, Copy, Debug)]
pub enum Stage<'a> {
    /// Before the site's mounts are made.
    PreMount,
    /// When all is in place.
    PostMount,
    /// After that, for a module.
    Module(&'a str),
}

/// Runs the site's or a module's program for this stage, if there is one, as root in the mount
/// namespace of the container being built, with the container's root as working directory.
///
/// # Errors
/// [`Error::Untrusted`] where somebody else than root could change the program, [`Error::Hook`]
/// where it does not succeed in time.
pub fn run(
    stage: Stage<'_>,
    words: &[String],
    request: &RootRequest<'_>,
    root: BorrowedFd<'_>,
) -> Result<()> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(());
    };
    let (name, module) = match stage {
        Stage::PreMount => ("pre_mount", None),
        Stage::PostMount => ("post_mount", None),
        Stage::Module(module) => ("root_hook", Some(module)),
    };
    let real = trusted::audit(Path::new(program), &[0]).map_err(Error::Untrusted)?;
    let root = mnt::path_of(root);
    let user = request.user;
    let mut command = Command::new(real);
    command
        .arg0(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("SHIFTER_HOOK", name)
        .env("SHIFTER_ROOT", &root)
        .env("SHIFTER_IMAGE", request.image.id.as_str())
        .env("SHIFTER_USER", &user.name)
        .env("SHIFTER_UID", user.uid.to_string())
        .env("SHIFTER_GID", user.gid.to_string())
        .envs(module.map(|module| ("SHIFTER_MODULE", module)))
        .current_dir(&root)
        // The second one has std drop the caller's groups.
        .gid(0)
        .uid(0);
    // A batch system hands it on from the user, who can write anything there.
    let reference = &request.image.reference;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+:/@".contains(c);
    if reference.chars().all(is_plain) {
        command.env("SHIFTER_IMAGEREQUEST", reference);
    }
    let failed = |reason: String| Error::Hook {
        hook: match module {
            Some(module) => format!("hook '{program}' of module '{module}'"),
            None => format!("hook '{program}' ({name})"),
        },
        reason,
    };
    supervise(command, deadline(request.config), spawn_alone)
        .map_err(|error| failed(error.to_string()))?
        .judge()
        .map_err(failed)
}

/// Runs a module's program as the user in the container, with the container's environment.
///
/// # Errors
/// [`Error::Denied`] where it does not succeed in time: the site does not let the command run.
pub fn run_as_user(
    module: &str,
    words: &[String],
    environment: &[Pair],
    config: &Config,
) -> Result<()> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(());
    };
    let variables = environment
        .iter()
        .map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value)));
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(variables);
    let failed = |reason| Error::Denied {
        what: format!("hook '{program}' of module '{module}' failed: {reason}"),
        hint: None,
    };
    supervise(command, deadline(config), Command::spawn)
        .map_err(|error| failed(error.to_string()))?
        .judge()
        .map_err(failed)
}

fn deadline(config: &Config) -> Duration {
    Duration::from_secs(config.hooks.timeout_secs.into())
}

/// How a hook ended.
struct Ending {
    /// None: it was ended after so many seconds.
    status: std::result::Result<ExitStatus, u64>,
    output: Vec<u8>,
}

impl Ending {
    /// Returns what to say where it did not succeed.
    fn judge(self) -> std::result::Result<(), String> {
        let how = match self.status {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("it ended with exit code {code}"),
                (None, signal) => format!("signal {} ended it", signal.unwrap_or(0)),
            },
            Err(seconds) => format!("it did not end within {seconds} s"),
        };
        let lines = self.output.split(|byte| *byte == b'\n');
        match lines.rev().find(|line| !line.trim_ascii().is_empty()) {
            Some(line) => Err(format!("{how}: {}", sanitize::bytes(line.trim_ascii()))),
            None => Err(how),
        }
    }
}

/// Starts the command as the first process of a process namespace.
fn spawn_alone(command: &mut Command) -> io::Result<Child> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open("/proc/self/ns/pid", flags, Mode::empty())?;
    sys::unshare_children()?;
    let spawned = command.spawn();
    // Else no later child could be made: its namespace would have lost its first process.
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    spawned
}

/// Runs a command to its end or the deadline, without input, and keeps the end of its output.
fn supervise(
    mut command: Command,
    limit: Duration,
    spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
) -> io::Result<Ending> {
    let until = Instant::now() + limit;
    let _waiting = sys::Waiting::begin();
    let (output, its_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let (alive, own) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK)?;
    command
        .stdin(Stdio::null())
        .stdout(its_end.try_clone()?)
        .stderr(its_end);
    sys::isolate(&mut command, alive.as_fd(), own.as_fd());
    let mut child = spawn(&mut command)?;
    // It holds the writing end of the pipe.
    drop(command);
    let mut tail = Tail {
        pipe: File::from(output),
        bytes: Vec::new(),
        is_open: true,
    };
    let finished = wait_until(&child, &mut tail, until);
    if !matches!(finished, Ok(true)) {
        end(&child);
    }
    let status = child.wait()?;
    tail.read_on();
    Ok(Ending {
        status: finished?.then_some(status).ok_or(limit.as_secs()),
        output: tail.bytes,
    })
}

/// The end of what a child writes.
struct Tail {
    pipe: File,
    bytes: Vec<u8>,
    is_open: bool,
}

impl Tail {
    /// Takes what is there.
    fn read_on(&mut self) {
        let mut chunk = [0; OUTPUT_LIMIT];
        // A child that is not ended yet could go on for ever.
        for _ in 0..64 {
            match self.pipe.read(&mut chunk) {
                Ok(0) => self.is_open = false,
                Ok(count) => {
                    self.bytes.extend_from_slice(&chunk[..count]);
                    let surplus = self.bytes.len().saturating_sub(OUTPUT_LIMIT);
                    self.bytes.drain(..surplus);
                    continue;
                }
                Err(_) => {}
            }
            return;
        }
    }
}

/// Waits for a child's end while its output is read; false if the deadline came first.
fn wait_until(child: &Child, tail: &mut Tail, until: Instant) -> io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let Some(left) = until.checked_duration_since(Instant::now()) else {
            return Ok(false);
        };
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
        if tail.is_open {
            fds.push(PollFd::new(&tail.pipe, PollFlags::IN));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) | Err(Errno::INTR) => tail.read_on(),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends a child and what belongs to its session's group.
fn end(child: &Child) {
    let pid = Pid::from_child(child);
    // The only failure is that they have ended meanwhile; the child is not waited for yet, so its
    // number is still its own.
    let _ = kill_process_group(pid, Signal::KILL);
    let process = pidfd_open(pid, PidfdFlags::empty());
    let _ = process.and_then(|process| pidfd_send_signal(process, Signal::KILL));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> std::result::Result<(), String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        supervise(command, limit, Command::spawn).unwrap().judge()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn the_last_line_says_why() {
        assert_eq!(shell("echo fine", LONG), Ok(()));
        assert_eq!(
            shell("echo first; printf 'se\\033cond \\n\\n' >&2; exit 3", LONG),
            Err("it ended with exit code 3: se\\u{1b}cond".into())
        );
        assert_eq!(shell("kill -9 $$", LONG), Err("signal 9 ended it".into()));
        let endless = "yes | head -c 1000000; echo; echo end; exit 1";
        assert_eq!(
            shell(endless, LONG),
            Err("it ended with exit code 1: end".into())
        );
        // The end of the output is not the end of the program.
        assert_eq!(
            shell("exec >&- 2>&-; sleep 0.1; exit 4", LONG),
            Err("it ended with exit code 4".into())
        );
    }

    #[test]
    fn nothing_runs_longer_than_the_deadline() {
        let start = Instant::now();
        let late = shell("echo waiting; sleep 60 & sleep 60", Duration::from_secs(1));
        assert_eq!(late, Err("it did not end within 1 s: waiting".into()));
        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
        // What a program leaves running does not keep us.
        assert_eq!(shell("sleep 60 & exit 0", LONG), Ok(()));
        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    }

    #[test]
    fn a_hook_has_signals_and_descriptors_of_a_fresh_process() {
        let mask = sys::block_signals().unwrap();
        let file = File::open("/dev/null").unwrap();
        // As a caller's, inherited: not to be closed by an exec.
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let script = "grep -E '^Sig(Blk|Ign):.*[1-9a-f]' /proc/self/status && exit 1
            ls -l /proc/self/fd; test $(ls /proc/self/fd | wc -l) = 4 || exit 2
            test \"$(cut -d' ' -f5,6 /proc/self/stat)\" != \"$(cut -d' ' -f5,6 /proc/$PPID/stat)\"";
        let judged = shell(script, LONG);
        mask.swap().unwrap();
        assert_eq!(judged, Ok(()));
    }
}
