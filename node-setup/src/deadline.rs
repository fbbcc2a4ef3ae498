//! An end to waiting for a file system that has stopped to answer.
//!
//! Such a wait ends with death, and not always then: a FUSE file system's daemon that has taken a
//! request and does not answer holds even who was killed. So where something is about to be asked that
//! is not on this machine's own disks or in its memory, two copies of the process help:
//!
//! - One goes first and asks in its place. If it is not answered, the process says so and ends.
//! - One stands by from then on, and is told what is waited for, through a pipe that closes when the
//!   process ends or becomes the command. If the process does not get on, it says so and kills it.
//!
//! What tells a stopped file system from a slow one is in [`crate::stillness`].

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, chdir, geteuid, getpid, getppid, pidfd_open,
    pidfd_send_signal, waitpid,
};

use crate::caller::Caller;
use crate::drop::become_caller;
use crate::error::{Context, Error, Result};
use crate::fsuser::as_user;
use crate::stillness::{Stillness, interval};
use crate::watch::{Awaited, Watch};
use crate::{out, patience, sys};

/// What saying it may take: the caller may have stopped reading.
const MOMENT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Bytes of one message through the pipe, which the kernel keeps together (PIPE_BUF).
const MESSAGE_LIMIT: usize = 4096;

/// The end that is set to each wait.
pub struct Deadline<'a> {
    program: &'static str,
    caller: &'a Caller,
    seconds: u32,
    sentry: RefCell<Option<Sentry>>,
}

impl<'a> Deadline<'a> {
    /// Sets an end after so many seconds, 0: none at all; what users name is looked at as `caller`.
    pub fn after(seconds: u32, program: &'static str, caller: &'a Caller) -> Self {
        Self {
            program,
            caller,
            seconds,
            sentry: RefCell::new(None),
        }
    }

    /// Sends the copy away, before the process becomes another program: that one has children of
    /// its own only.
    pub fn lift(&self) {
        if let Some(Sentry { child, pipe }) = self.sentry.take() {
            drop(pipe);
            // Nothing to collect where the caller ignores SIGCHLD, but its end is waited for.
            let _ = waitpid(Some(child), WaitOptions::empty());
        }
    }

    /// Judges what the site names as the process, and everything else with the caller's eyes.
    fn may_stall(&self, awaited: Awaited<'_>, place: &Path) -> Result<bool> {
        let Caller { uid, gid, groups } = self.caller;
        match awaited {
            Awaited::Store(_) => Ok(patience::may_stall(place)),
            _ => as_user(*uid, *gid, groups, || patience::may_stall(place)),
        }
    }

    /// Has a copy ask the file system at `place` and returns whether it answers.
    fn answers(&self, awaited: Awaited<'_>, place: &Path) -> io::Result<bool> {
        let Some(scout) = sys::fork()? else {
            // It may never come back: nobody shall wait for what it has open, and it is its user's
            // where that is who names the place.
            let is_ready = chdir("/").is_ok() && sys::close_all().is_ok();
            let is_users = !matches!(awaited, Awaited::Store(_)) && geteuid().is_root();
            if is_ready && (!is_users || become_caller(self.caller).is_ok()) {
                ask(place);
            }
            sys::exit(0);
        };
        let pidfd = pidfd_open(scout, PidfdFlags::empty())?;
        let mut stillness = Stillness::default();
        let answered = loop {
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&interval(self.seconds))) {
                Ok(0) if stillness.is_long(scout) => break false,
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) | Err(_) => break true,
            }
        };
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        // Nothing to collect where the caller ignores SIGCHLD, or where not even that ends it.
        let _ = waitpid(Some(scout), WaitOptions::NOHANG);
        Ok(answered)
    }
}

/// Looks up a path and asks its file system something that no cache knows.
fn ask(place: &Path) {
    // Not to open what it is: with a device or a pipe that may do something.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    if let Ok(found) = rustix::fs::open(place, flags, Mode::empty()) {
        let _ = rustix::fs::fstatfs(found);
    }
}

impl Watch for Deadline<'_> {
    fn on(&self, awaited: Awaited<'_>) -> Result<()> {
        let place = awaited.place().filter(|_| self.seconds > 0);
        if let Some(place) = place
            && self.may_stall(awaited, place)?
        {
            if !self.answers(awaited, place).step("ask for", place)? {
                return Err(Error::NoAnswer {
                    from: awaited.to_string(),
                    seconds: self.seconds,
                });
            }
            if self.sentry.borrow().is_none() {
                let sentry = Sentry::post(self.program, self.seconds).step("watch", place)?;
                self.sentry.replace(Some(sentry));
            }
        }
        match &*self.sentry.borrow() {
            Some(sentry) => sentry.tell(&awaited.to_string()).step("watch", "storage"),
            None => Ok(()),
        }
    }
}

/// The copy that stands by, as the process sees it.
struct Sentry {
    child: Pid,
    pipe: OwnedFd,
}

impl Sentry {
    fn post(program: &str, seconds: u32) -> io::Result<Self> {
        let (orders, pipe) = pipe_with(PipeFlags::CLOEXEC)?;
        let watched = getpid();
        match sys::fork()? {
            Some(child) => Ok(Self { child, pipe }),
            None => {
                // Neither the pipe's other end nor anything else of the process's is kept open.
                let alone = chdir("/").is_ok() && sys::close_all_but_standard_and(&orders).is_ok();
                std::mem::forget(pipe);
                if alone {
                    stand(&orders, watched, program, seconds);
                }
                sys::exit(0);
            }
        }
    }

    /// Says what is waited for from now on; nothing: whatever it is, it ends by itself.
    fn tell(&self, what: &str) -> io::Result<()> {
        let mut message = what.as_bytes();
        message = message.get(..MESSAGE_LIMIT - 1).unwrap_or(message);
        let line = [message, b"\n"].concat();
        rustix::io::write(&self.pipe, &line)?;
        Ok(())
    }
}

/// Stands by until the process has no more need of it, or waits in vain.
fn stand(orders: &OwnedFd, watched: Pid, program: &str, seconds: u32) {
    let mut what = String::new();
    let mut stillness = Stillness::default();
    loop {
        let mut fds = [PollFd::new(orders, PollFlags::IN)];
        match poll(&mut fds, (!what.is_empty()).then_some(&interval(seconds))) {
            Ok(0) => {}
            Ok(_) => {
                let mut text = [0; 2 * MESSAGE_LIMIT];
                match rustix::io::read(orders, &mut text) {
                    Ok(0) | Err(_) => return,
                    Ok(count) => what = last_line(&text[..count]),
                }
                stillness = Stillness::default();
                continue;
            }
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        if stillness.is_long(watched) {
            let message = format!("no answer from {what} in {seconds} s");
            end(watched, program, &message);
            return;
        }
    }
}

/// The last of the lines that the process has written; what was cut off before it is an older one.
fn last_line(text: &[u8]) -> String {
    let lines = text.strip_suffix(b"\n").unwrap_or(text);
    let last = lines.rsplit(|byte| *byte == b'\n').next();
    String::from_utf8_lossy(last.unwrap_or_default()).into_owned()
}

fn end(watched: Pid, program: &str, message: &str) {
    let Ok(pidfd) = pidfd_open(watched, PidfdFlags::empty()) else {
        return;
    };
    // Its number is its own as long as it is the parent.
    if getppid() != Some(watched) {
        return;
    }
    // Standard error may be a full pipe, or on what has stopped.
    let _ = patience::ends_in(MOMENT, || out::complain(program, message));
    let _ = pidfd_send_signal(pidfd.as_fd(), Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_word_counts() {
        assert_eq!(last_line(b"a\nb c\n"), "b c");
        assert_eq!(last_line(b"a\n"), "a");
        assert_eq!(last_line(b"a\n\n"), "");
        assert_eq!(last_line(b"\n"), "");
    }
}
