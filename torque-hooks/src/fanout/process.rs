//! Programs that run side by side, and the lines they write.
//!
//! Each has a process group of its own, an empty standard input, and one pipe for all that it
//! writes. Nothing is kept of the output but a line that has not ended yet.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// Bytes of a line that are looked at.
const LINE_LIMIT: usize = 8 << 10;

/// How long a program that was killed is waited for.
const GRACE: Duration = Duration::from_secs(2);

/// Levels of processes below a tool that are ended with it, beside its own children.
const DEPTH: u32 = 4;

/// Something that happened.
pub enum Event {
    /// A program wrote a line; of which node it is, where that is known.
    Line(Vec<u8>, Option<usize>),
    /// A program ended; how, in words.
    End(String, Option<usize>),
}

/// The programs that run.
pub struct Processes(Vec<Process>);

struct Process {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    /// Until it is closed on the other side.
    output: Option<File>,
    line: Vec<u8>,
    of: Option<usize>,
    is_tool: bool,
}

impl Processes {
    /// Begins with none.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Returns how many run.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Starts a program; `of` is the node it is for, and `is_tool` says that whatever it starts ends
    /// with it: of this node's own part daemons stay.
    pub fn start(&mut self, words: &[String], of: Option<usize>, is_tool: bool) -> io::Result<()> {
        let (program, arguments) = words
            .split_first()
            .ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        let (output, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0);
        let mut child = crate::outside::fixed_environment(command).spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let opened = pid
            .ok_or(io::ErrorKind::InvalidData.into())
            .and_then(|pid| {
                let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
                Ok((pid, pidfd))
            });
        let (pid, pidfd) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        self.0.push(Process {
            child,
            pid,
            pidfd,
            output: Some(File::from(output)),
            line: Vec::new(),
            of,
            is_tool,
        });
        Ok(())
    }

    /// Waits for something to happen, at most so long.
    pub fn wait(&mut self, time: Duration) -> Vec<Event> {
        let mut fds = Vec::with_capacity(2 * self.0.len());
        for process in &self.0 {
            let pidfd = process.pidfd.as_fd();
            let output = process.output.as_ref().map_or(pidfd, File::as_fd);
            fds.push(PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
            fds.push(PollFd::from_borrowed_fd(output, PollFlags::IN));
        }
        let timeout = Timespec::try_from(time).ok();
        let (mut ended, mut readable) = (Vec::new(), Vec::new());
        // A failure of poll itself: look at all of them, after a moment.
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {
                let is_set = |fd: &PollFd<'_>| !fd.revents().is_empty();
                ended.extend(fds.iter().step_by(2).map(is_set));
                readable.extend(fds.iter().skip(1).step_by(2).map(is_set));
            }
            Err(_) => {
                std::thread::sleep(Duration::from_millis(10));
                ended.resize(self.0.len(), true);
                readable.resize(self.0.len(), true);
            }
        }
        let mut events = Vec::new();
        for index in (0..self.0.len()).rev() {
            let process = &mut self.0[index];
            if readable[index] || ended[index] {
                process.read(&mut events);
            }
            if ended[index]
                && let Ok(Some(status)) = process.child.try_wait()
            {
                let mut process = self.0.swap_remove(index);
                process.flush(&mut events);
                let ending = match (status.code(), status.signal()) {
                    (Some(0), _) => "it said nothing".to_owned(),
                    (Some(code), _) => format!("exit code {code}"),
                    (None, signal) => format!("signal {}", signal.unwrap_or_default()),
                };
                events.push(Event::End(ending, process.of));
            }
        }
        events
    }

    /// Ends all that still run, with everything in their groups, and what tools have started in groups
    /// of its own: a connection that is left would give its order to a node that has hung, whenever
    /// that goes on.
    pub fn end_all(mut self) {
        for process in &self.0 {
            if process.is_tool {
                // It starts nothing more meanwhile.
                let _ = kill_process_group(process.pid, Signal::STOP);
                end_below(process.pid, DEPTH);
            }
            // Not yet waited for, so the number is still theirs.
            let _ = kill_process_group(process.pid, Signal::KILL);
        }
        let deadline = Instant::now() + GRACE;
        for process in &mut self.0 {
            // One that hangs in the kernel is left behind.
            let left = deadline.saturating_duration_since(Instant::now());
            let _ = node_setup::child::wait(&mut process.child, left);
        }
    }
}

/// Ends what a process has started, and what that has, as deep as tools go. A kernel that does not
/// tell children lets them be.
fn end_below(parent: Pid, depth: u32) {
    for pid in children(parent) {
        // The descriptor names one process for good; whose child it is, is looked at after that.
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && children(parent).contains(&pid)
        {
            let _ = pidfd_send_signal(&pidfd, Signal::STOP);
            if depth > 0 {
                end_below(pid, depth - 1);
            }
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
}

/// Returns the children of all of a process's threads.
fn children(parent: Pid) -> Vec<Pid> {
    let tasks = format!("/proc/{}/task", parent.as_raw_nonzero());
    let mut found = Vec::new();
    for task in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let pids = text.split_ascii_whitespace();
        found.extend(pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
    }
    found
}

impl Process {
    /// Reads what there is.
    fn read(&mut self, events: &mut Vec<Event>) {
        let mut chunk = [0; 16 << 10];
        while let Some(output) = &mut self.output {
            match output.read(&mut chunk) {
                Ok(count @ 1..) => self.lines(&chunk[..count], events),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It may go on, but it says nothing any more.
                Ok(0) | Err(_) => self.output = None,
            }
        }
    }

    fn lines(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_LIMIT.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.flush(events);
            }
        }
    }

    fn flush(&mut self, events: &mut Vec<Event>) {
        if !self.line.is_empty() {
            events.push(Event::Line(std::mem::take(&mut self.line), self.of));
        }
    }
}
