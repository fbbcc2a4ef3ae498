//! Work that may never come to an end, done by a copy of the process.
//!
//! A file system whose server has stopped holds whoever asks it, and not even death ends the wait of
//! one whose request is with a FUSE daemon, or whose loop device waits for its file. So a *deputy*
//! asks: it sends what it made, as descriptors, through a socket. If it does not get on, it is left
//! behind, killed at the latest when the answer comes, and the process goes on without it: it says
//! what does not answer, undoes the rest and lets go of its locks.
//!
//! ```text
//! process ──fork──▶ deputy        awaits WHAT ─▶ awaits WHAT ─▶ done + descriptors
//!    ▲ locks, state   │ no locks                                failed + message
//!    └────socket──────┘
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitpid,
};
use serde::{Deserialize, Serialize};
use shifter_core::exit::ExitCode;

use crate::error::{Context, Error, Result};
use crate::stillness::{Stillness, interval};
use crate::sys;
use crate::watch::{Awaited, Watch};

/// Descriptors that a deputy brings back at most.
const FDS: usize = 5;

/// Bytes of one message through the socket, well below what every socket takes.
const MESSAGE_LIMIT: usize = 64 << 10;

/// Bytes of one text in a message.
const TEXT_LIMIT: usize = 8 << 10;

/// What a deputy that has done its work, or was killed, may take to end.
const MOMENT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What a deputy brings back.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Open files, as many as both sides know.
    pub fds: Vec<OwnedFd>,
    /// What was asked for and not done.
    pub warnings: Vec<String>,
}

/// What a deputy is about to wait for.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Wait {
    /// The thing as it is called in a message; empty: nothing that could stop.
    pub what: String,
    /// True if the user alone is to blame for it.
    pub is_users: bool,
}

/// What a deputy says.
#[derive(Serialize, Deserialize)]
enum Word {
    Awaits(Wait),
    Done {
        warnings: Vec<String>,
    },
    Failed {
        message: String,
        hint: Option<String>,
        code: u8,
    },
}

/// Has a copy of the process do `work`. One wait may take so many seconds, 0: as long as it does;
/// `told` hears of each before it begins.
///
/// The copy has the caller's descriptors, so `work` begins by closing those that are locks.
///
/// # Errors
/// [`Error::NoAnswer`] if it waits longer, [`Error::Reported`] with what `work` failed with.
pub fn send(
    seconds: u32,
    mut told: impl FnMut(&Wait) -> Result<()>,
    work: impl FnOnce(&dyn Watch) -> Result<Delivery>,
) -> Result<Delivery> {
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (socket, its) =
        socketpair(kind.0, kind.1, SocketFlags::CLOEXEC, None).step("make", "socket")?;
    let principal = getpid();
    let Some(child) = sys::fork().step("copy", "process")? else {
        drop(socket);
        let deputy = Deputy {
            principal,
            socket: its,
        };
        // Nothing of what is the process's own shall be undone here as well.
        let ended = catch_unwind(AssertUnwindSafe(|| deputy.serve(work)));
        sys::exit(i32::from(ended.is_err()));
    };
    drop(its);
    let deputy = Sent {
        child,
        pidfd: pidfd_open(child, PidfdFlags::empty()).step("watch", "process")?,
    };
    let mut wait = Wait::default();
    let mut stillness = Stillness::default();
    loop {
        let limit = (seconds > 0 && !wait.what.is_empty()).then(|| interval(seconds));
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], limit.as_ref()) {
            Ok(0) if stillness.is_long(child) => {
                return Err(Error::NoAnswer {
                    from: wait.what,
                    seconds,
                });
            }
            Ok(0) | Err(Errno::INTR) => continue,
            ready => ready.step("watch", "process")?,
        };
        match receive(&socket)? {
            Some((Word::Awaits(next), _)) => {
                told(&next)?;
                wait = next;
                stillness = Stillness::default();
            }
            Some((Word::Done { warnings }, fds)) => return Ok(Delivery { fds, warnings }),
            Some((
                Word::Failed {
                    message,
                    hint,
                    code,
                },
                _,
            )) => {
                let code = ExitCode::from_code(code.into()).unwrap_or(ExitCode::Internal);
                return Err(Error::Reported {
                    message,
                    hint,
                    code,
                });
            }
            None => return Err(deputy.epitaph()),
        }
    }
}

/// A deputy, as the process sees it.
struct Sent {
    child: Pid,
    pidfd: OwnedFd,
}

impl Sent {
    /// Waits a moment for its end.
    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&MOMENT)).is_ok_and(|ready| ready > 0)
    }

    /// Says how one ended that had said nothing.
    fn epitaph(&self) -> Error {
        self.has_ended();
        let status = waitpid(Some(self.child), WaitOptions::NOHANG);
        let signal = status
            .ok()
            .flatten()
            .and_then(|(_, status)| status.terminating_signal());
        Error::Reported {
            message: match signal {
                Some(signal) => format!("the process that made the container got signal {signal}"),
                None => "the process that made the container ended without a word".to_owned(),
            },
            hint: None,
            code: ExitCode::Internal,
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        // One that waits for what does not answer stays behind, and ends with the answer.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.has_ended();
        // Nothing to collect where the caller ignores SIGCHLD.
        let _ = waitpid(Some(self.child), WaitOptions::NOHANG);
    }
}

/// A deputy, as it sees itself.
struct Deputy {
    principal: Pid,
    socket: OwnedFd,
}

impl Deputy {
    fn serve(&self, work: impl FnOnce(&dyn Watch) -> Result<Delivery>) {
        let done = silence()
            .and_then(|()| self.tie())
            .and_then(|()| work(self));
        // Who cannot be told is gone.
        let _ = match done {
            Ok(Delivery { fds, mut warnings }) => {
                warnings.truncate(MESSAGE_LIMIT / TEXT_LIMIT - 1);
                warnings.iter_mut().for_each(shorten);
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                self.say(&Word::Done { warnings }, &borrowed)
            }
            Err(error) => {
                let (mut message, mut hint) = (error.chain(), error.hint());
                shorten(&mut message);
                hint.iter_mut().for_each(shorten);
                let code = error.exit_code().code();
                let word = Word::Failed {
                    message,
                    hint,
                    code,
                };
                self.say(&word, &[])
            }
        };
    }

    /// Has the kernel end this process together with the one that sent it. A change of identity
    /// undoes that (prctl(2)), so it is done again on every occasion.
    fn tie(&self) -> Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL)).step("watch", "process")?;
        if getppid() == Some(self.principal) {
            Ok(())
        } else {
            sys::exit(1)
        }
    }

    fn say(&self, word: &Word, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = serde_json::to_vec(word).map_err(std::io::Error::from);
        let bytes = bytes.step("write to", "socket")?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::TOOBIG).step("write to", "socket");
        }
        let text = [IoSlice::new(&bytes)];
        sendmsg(&self.socket, &text, &mut control, SendFlags::NOSIGNAL)
            .step("write to", "socket")
            .map(drop)
    }
}

impl Watch for Deputy {
    fn on(&self, awaited: Awaited<'_>) -> Result<()> {
        self.tie()?;
        let mut what = awaited.to_string();
        shorten(&mut what);
        let is_users = awaited.is_users();
        self.say(&Word::Awaits(Wait { what, is_users }), &[])
    }
}

/// Lets go of what the caller reads from: nobody shall wait for the end of one that is left behind.
fn silence() -> Result<()> {
    const NULL: &str = "/dev/null";
    let null = rustix::fs::open(NULL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.step("open", NULL)?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .step("replace", "standard descriptors")
}

fn shorten(text: &mut String) {
    while text.len() > TEXT_LIMIT {
        text.pop();
    }
}

/// Takes what a deputy has said last; nothing where it has ended.
fn receive(socket: &OwnedFd) -> Result<Option<(Word, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut text, &mut control, RecvFlags::CMSG_CLOEXEC);
    let count = received.step("read from", "socket")?.bytes;
    if count == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let word = serde_json::from_slice(&bytes[..count]).map_err(std::io::Error::from);
    Ok(Some((word.step("read from", "socket")?, fds)))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Read;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::*;

    fn sent(work: impl FnOnce(&dyn Watch) -> Result<Delivery>) -> (Vec<String>, Result<Delivery>) {
        let heard = RefCell::new(Vec::new());
        let told = |wait: &Wait| {
            heard.borrow_mut().push(wait.what.clone());
            Ok(())
        };
        let result = send(1, told, work);
        (heard.into_inner(), result)
    }

    #[test]
    fn what_is_made_comes_back_open() {
        let (heard, result) = sent(|watch| {
            watch.on(Awaited::Store(Path::new("/s")))?;
            watch.on(Awaited::Nothing)?;
            let file = tempfile::tempfile().step("make", "file")?;
            std::io::Write::write_all(&mut &file, b"made").step("write", "file")?;
            std::io::Seek::rewind(&mut &file).step("write", "file")?;
            Ok(Delivery {
                fds: vec![file.into()],
                warnings: vec!["w".into(); 100],
            })
        });
        assert_eq!(heard, ["image store '/s'", ""]);
        let Delivery { fds, warnings } = result.unwrap();
        assert_eq!(warnings.len(), 7);
        let mut text = String::new();
        let [file] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        std::fs::File::from(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "made");
    }

    #[test]
    fn errors_come_back_with_hint_and_code() {
        let (_, result) = sent(|_| {
            Err(Error::Denied {
                what: "x".repeat(100_000),
                hint: Some("do y"),
            })
        });
        let error = result.unwrap_err();
        assert_eq!(error.chain(), "x".repeat(TEXT_LIMIT));
        assert_eq!(error.hint().as_deref(), Some("do y"));
        assert_eq!(error.exit_code(), ExitCode::Denied);
    }

    #[test]
    fn one_that_dies_or_panics_is_told() {
        for (work, expected) in [
            (
                (|_| {
                    let _ = rustix::process::kill_process(getpid(), Signal::KILL);
                    Ok(Delivery::default())
                }) as fn(&dyn Watch) -> Result<Delivery>,
                "got signal 9",
            ),
            (|_| panic!("on purpose"), "ended without a word"),
        ] {
            let (_, result) = sent(work);
            let said = result.unwrap_err().chain();
            assert!(said.ends_with(expected), "{said}");
        }
    }

    #[test]
    fn one_that_does_not_get_on_is_left_behind() {
        let began = Instant::now();
        let (_, result) = sent(|watch| {
            watch.on(Awaited::Image("docker:x"))?;
            std::thread::sleep(Duration::from_secs(600));
            Ok(Delivery::default())
        });
        let said = result.unwrap_err().chain();
        assert_eq!(said, "no answer from image 'docker:x' in 1 s");
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
