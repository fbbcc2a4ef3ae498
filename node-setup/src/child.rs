//! Runs a program of the suite with a deadline, from within a batch system's processes.
//!
//! Input and output are files in memory rather than pipes: nothing blocks, no SIGPIPE can end
//! the caller, and a grandchild that keeps its stderr open keeps nobody waiting. Only the child's
//! own pid is ever waited for, because Slurm waits for children of its own.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use shifter_core::sanitize;
use shifter_core::trusted::{self, TrustError};
use thiserror::Error;

/// Bytes of a child's output that are looked at: qstat says of a job its whole environment, and each
/// of its nodes.
const OUTPUT_LIMIT: u64 = 16 << 20;

/// How long a child that is told to end is waited for.
const GRACE: Duration = Duration::from_secs(2);

/// Says why a program gave no answer.
#[derive(Debug, Error)]
pub enum ChildError {
    /// The program could not be started, fed or waited for.
    #[error("cannot run '{program}'")]
    Run {
        /// Its path.
        program: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// It was still running when its time was over.
    #[error("'{program}' did not finish within {seconds} s")]
    Deadline {
        /// Its path.
        program: String,
        /// The time it had.
        seconds: u64,
        /// What it had printed to stdout.
        printed: String,
    },
}

/// How a program is run.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Seconds that the program may take.
    pub seconds: u32,
    /// Put it into a process group of its own, which is killed as a whole. Without, Ctrl-C on a
    /// terminal reaches it together with us, and only the program itself is ended.
    pub own_group: bool,
    /// Let it write to our own stderr: progress is for people.
    pub shows_stderr: bool,
}

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// What it printed to stdout, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// What it printed to stderr, unless that was ours.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Returns the lines of stderr that may be shown or logged: at most `limit`, made printable.
    pub fn messages(&self, limit: usize) -> Vec<String> {
        let lines = self
            .stderr
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines.take(limit).map(sanitize::bytes).collect()
    }

    /// Says how the program ended, for a message.
    pub fn ending(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        }
    }
}

/// Prepares to run a program as root: one that only root can have put where it is, in an environment
/// in which nothing is anybody's but ours.
pub fn privileged(program: &Path) -> Result<Command, TrustError> {
    let mut command = Command::new(trusted::audit(program, &[0])?);
    fix_environment(&mut command);
    Ok(command)
}

/// Gives a program that environment.
pub fn fix_environment(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/");
}

/// Runs the program to its end, or ends it when its time is over.
pub fn run(mut command: Command, input: &[u8], terms: Terms) -> Result<Finished, ChildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ChildError::Run {
        program: program.clone(),
        source,
    };
    let _stdio = occupied_stdio().map_err(failed)?;
    let (mut stdout, mut stderr) = (memory().map_err(failed)?, memory().map_err(failed)?);
    command
        .stdin(Stdio::null())
        .stdout(shared(&stdout).map_err(failed)?);
    if !input.is_empty() {
        command.stdin(filled(input).map_err(failed)?);
    }
    if !terms.shows_stderr {
        command.stderr(shared(&stderr).map_err(failed)?);
    }
    if terms.own_group {
        command.process_group(0);
    }
    let mut child = command.spawn().map_err(failed)?;
    let time = Duration::from_secs(terms.seconds.into());
    let Some(status) = wait(&mut child, time).map_err(failed)? else {
        end(&mut child, terms.own_group);
        let printed = written(&mut stdout).unwrap_or_default();
        return Err(ChildError::Deadline {
            program,
            seconds: time.as_secs(),
            printed: String::from_utf8_lossy(&printed).into_owned(),
        });
    };
    Ok(Finished {
        status,
        stdout: written(&mut stdout).map_err(failed)?,
        stderr: written(&mut stderr).map_err(failed)?,
    })
}

/// Keeps descriptors 0 to 2 occupied while others are opened: Slurm runs the prolog with stdin
/// closed, and a file of ours in its place would be lost in the child.
fn occupied_stdio() -> io::Result<Vec<File>> {
    let mut held = Vec::new();
    loop {
        let file = File::open("/dev/null")?;
        if file.as_raw_fd() > 2 {
            return Ok(held);
        }
        held.push(file);
    }
}

/// Makes an empty file in memory.
pub fn memory() -> io::Result<File> {
    Ok(memfd_create(c"shifter", MemfdFlags::CLOEXEC)?.into())
}

/// Returns the file as the input or output of a program.
pub fn shared(file: &File) -> io::Result<Stdio> {
    file.try_clone().map(Stdio::from)
}

/// Makes an input of these bytes.
pub fn filled(bytes: &[u8]) -> io::Result<File> {
    let mut file = memory()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// Returns what was written to a file in memory, at most 16 MiB.
pub fn written(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(OUTPUT_LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits for the child for so long; nothing if the time is over first.
pub fn wait(child: &mut Child, time: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + time;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // A login node's kernel may be older than pidfds: then look often.
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        match &pidfd {
            Some(pidfd) => {
                let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
                match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            None => std::thread::sleep(left.min(Duration::from_millis(10))),
        }
    }
}

/// Ends a child whose time is over. One that hangs in the kernel, or that we may not signal,
/// is left behind: whoever waits for us has waited long enough.
fn end(child: &mut Child, own_group: bool) {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return;
    };
    // Failing means that it is gone, or that it is not ours to end. The group is killed while its
    // leader is not yet waited for, so the number cannot be anybody else's.
    if own_group {
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = wait(child, GRACE);
        return;
    }
    for signal in [Signal::TERM, Signal::KILL] {
        let _ = kill_process(pid, signal);
        if let Ok(Some(_)) = wait(child, GRACE) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Terms = Terms {
        seconds: 20,
        own_group: true,
        shows_stderr: false,
    };

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn carries_input_output_and_exit_code() {
        let finished = run(
            shell("cat; echo oops >&2; echo '\x1b[2J' >&2; exit 4"),
            b"in",
            QUICK,
        );
        let finished = finished.unwrap();
        assert_eq!(finished.stdout, b"in");
        assert_eq!(finished.messages(9), ["oops", "\\u{1b}[2J"]);
        assert_eq!(finished.messages(1), ["oops"]);
        assert_eq!(
            (finished.status.code(), finished.ending()),
            (Some(4), "exit code 4".into())
        );
        let killed = run(shell("kill -9 $$"), b"", QUICK).unwrap();
        assert_eq!(
            (killed.status.code(), killed.ending()),
            (None, "signal 9".into())
        );
    }

    #[test]
    fn a_large_output_is_there_to_its_end() {
        let finished = run(shell("head -c 3000000 /dev/zero; echo end"), b"", QUICK).unwrap();
        assert_eq!(finished.stdout.len(), 3_000_004);
        assert!(finished.stdout.ends_with(b"end\n"));
    }

    #[test]
    fn a_large_input_that_nobody_reads_is_no_signal() {
        let finished = run(shell("exec <&-; exit 0"), &[b'x'; 1 << 20], QUICK).unwrap();
        assert!(finished.status.success());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(Command::new("/no/such/program"), b"", QUICK).unwrap_err();
        assert_eq!(error.to_string(), "cannot run '/no/such/program'");
    }

    #[test]
    fn the_deadline_ends_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!(
            "trap '' TERM; sleep 1000 & echo $! > '{}'; wait",
            file.display()
        );
        let started = Instant::now();
        let terms = Terms {
            seconds: 1,
            ..QUICK
        };
        let error = run(shell(&script), b"", terms).unwrap_err();
        assert!(
            matches!(error, ChildError::Deadline { seconds: 1, .. }),
            "{error}"
        );
        assert!(started.elapsed() < Duration::from_secs(8));
        let pid: i32 = std::fs::read_to_string(file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // A process that was killed dies when it is next scheduled.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z") {
                break;
            }
            assert!(Instant::now() < deadline, "still there: {stat}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_grandchild_that_keeps_stderr_keeps_nobody_waiting() {
        let started = Instant::now();
        let finished = run(shell("sleep 5 & echo done"), b"", QUICK).unwrap();
        assert_eq!(finished.stdout, b"done\n");
        assert!(started.elapsed() < Duration::from_secs(4));
    }
}
