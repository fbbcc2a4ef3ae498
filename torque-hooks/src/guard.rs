//! The first and the last line of every hook: a process in order, a worker apart, an exit code.
//!
//! Torque takes a prologue that dies by a signal for one that succeeded, and kills the whole
//! session of one that is late. So what is called does nothing but wait: the work is done by a
//! worker in a session of its own. However that ends, the hook ends with a number; and a worker
//! that is late goes on, to undo what it has begun.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use node_setup::caller::Caller;
use node_setup::error::{Context, Result};
use node_setup::{child, drop, process, sys};
use rustix::process::{chdir, geteuid, setsid};
use rustix::thread::{Gid, set_thread_groups, set_thread_res_gid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shifter_core::exit::ExitCode;

use crate::outside::fixed_environment;
use crate::resolve::AS_USER;
use crate::say;

/// The word with which a hook starts itself as its own worker.
const WORKER: &str = "--worker";

/// Bytes of a job's description.
const WORK_LIMIT: u64 = 8 << 20;

/// Bytes that a worker may say.
const WORDS_LIMIT: usize = 16 << 10;

/// Puts the process in order, whatever it was given: standard descriptors, other descriptors,
/// mode mask, limits, signal mask, groups, working directory, what it hears of children.
pub fn take_hold() -> Result<()> {
    process::fill_standard_descriptors()?;
    sys::close_on_exec().step("mark", "descriptors")?;
    // Never given back: what is started from here has a mask and limits of its own.
    let _callers = process::take_over()?;
    std::mem::forget(sys::Waiting::begin());
    if geteuid().is_root() {
        set_thread_groups(&[]).step("set", "groups")?;
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step("set", "group")?;
    }
    chdir("/").step("change to", "/")
}

/// What the first word of a call means, before anything else is looked at.
pub enum Start<W> {
    /// A hook as it is called.
    Hook(Vec<String>),
    /// A worker and its work.
    Worker(W),
    /// It could not even be told.
    Failed(String),
}

/// Tells the hook from the worker. With [`AS_USER`] the process becomes that user and another
/// program, and nothing returns.
pub fn start<W: DeserializeOwned>() -> Start<W> {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if let Some(why) = become_other(words.get(1..).unwrap_or_default()) {
        return Start::Failed(why);
    }
    if words.get(1).is_none_or(|word| word != WORKER) {
        return Start::Hook(words);
    }
    // The mom kills sessions. Failing means that it is a leader already, started by hand.
    let _ = setsid();
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(WORK_LIMIT).read_to_end(&mut bytes);
    match read.and_then(|_| serde_json::from_slice(&bytes).map_err(io::Error::from)) {
        Ok(work) => Start::Worker(work),
        Err(error) => Start::Failed(format!("cannot read what is to be done: {error}")),
    }
}

/// Returns the words of a program that is no hook; with [`AS_USER`] it becomes another, and only a
/// failure of that returns, told.
pub fn words() -> std::result::Result<Vec<String>, ExitCode> {
    let words = std::env::args_os().skip(1);
    let words: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match become_other(&words) {
        None => Ok(words),
        Some(why) => {
            say::tell(&why);
            Err(ExitCode::Internal)
        }
    }
}

/// With [`AS_USER`] as the first word, becomes that user and another program; returns only why it
/// could not.
fn become_other(words: &[String]) -> Option<String> {
    let (first, rest) = words.split_first()?;
    let ids = first.strip_prefix(AS_USER)?;
    Some(become_user(ids, rest))
}

/// Becomes the user for good and then the program; returns why it could not.
fn become_user(ids: &str, words: &[String]) -> String {
    let parsed = || {
        let mut parts = ids.split(':');
        let uid = parts.next()?.parse().ok()?;
        let gid = parts.next()?.parse().ok()?;
        let groups = parts.next()?.split(',').map(str::parse).collect();
        let groups: std::result::Result<Vec<u32>, _> = groups;
        Some(Caller {
            uid,
            gid,
            groups: groups.ok()?,
        })
    };
    let (Some(caller), Some((program, arguments))) = (parsed(), words.split_first()) else {
        return "a user's numbers and a program are needed".into();
    };
    if let Err(error) = drop::become_user(&caller) {
        return error.chain();
    }
    let error = Command::new(program).args(arguments).exec();
    format!("cannot run '{program}': {error}")
}

/// How a worker ended.
pub enum Ending {
    /// With this code.
    Code(i32),
    /// By a signal, or not at all until the time was over, or it was never started.
    Lost(String),
}

/// Has a worker do the work and waits for it, at most so long; what it said is passed on to
/// standard error.
pub fn work<W: Serialize>(name: &str, work: &W, time: Duration) -> Ending {
    match try_work(name, work, time) {
        Ok(ending) => ending,
        Err(error) => Ending::Lost(format!("cannot start a worker: {error}")),
    }
}

fn try_work<W: Serialize>(name: &str, work: &W, time: Duration) -> io::Result<Ending> {
    let started = Instant::now();
    let input = serde_json::to_vec(work)?;
    let words = child::memory()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(name)
        .arg(WORKER)
        .stdin(child::filled(&input)?)
        .stdout(Stdio::null())
        .stderr(child::shared(&words)?);
    let mut worker = fixed_environment(command).spawn()?;
    let left = time.saturating_sub(started.elapsed());
    let ending = child::wait(&mut worker, left)?;
    pass_on(&words);
    Ok(match ending {
        Some(status) => ending_of(status),
        None => Ending::Lost(format!("not ready after {} s", time.as_secs())),
    })
}

fn ending_of(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Code(code),
        (None, signal) => Ending::Lost(format!(
            "the worker was ended by signal {}",
            signal.unwrap_or_default()
        )),
    }
}

/// Copies what the worker said so far; it may go on, at its own place in the file.
fn pass_on(words: &File) {
    let mut bytes = vec![0; WORDS_LIMIT];
    let mut length = 0;
    while let Ok(count @ 1..) = words.read_at(&mut bytes[length..], length as u64) {
        length += count;
    }
    // A closed or full output stops nothing.
    let stderr = io::stderr();
    let _ = rustix::io::write(stderr.as_fd(), &bytes[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_is_a_number_or_lost() {
        assert!(matches!(
            ending_of(ExitStatus::from_raw(0)),
            Ending::Code(0)
        ));
        assert!(matches!(
            ending_of(ExitStatus::from_raw(2 << 8)),
            Ending::Code(2)
        ));
        assert!(matches!(
            ending_of(ExitStatus::from_raw(9)),
            Ending::Lost(_)
        ));
    }

    #[test]
    fn nobody_becomes_a_user_that_is_not_well_formed() {
        for ids in ["", "1", "1:2", "x:1:1", "1:1:x", "1:1:"] {
            let said = become_user(ids, &["/bin/true".into()]);
            assert!(said.contains("numbers"), "{ids}: {said}");
        }
        assert!(become_user("1:1:1", &[]).contains("numbers"));
    }
}
