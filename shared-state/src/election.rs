//! Which of a job's nodes asks, and how the others wait for its answer.
//!
//! The first node claims the run at once. The others poll; when nothing was heard for two seconds,
//! neither a state nor a new claim, they try to make the next claim, which one of them can. A claim
//! is thus never renewed or taken away, and two nodes never hold the same. What ends the waiting in
//! any case is a deadline, which each node draws for itself.

use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::contents::Contents;
use crate::dirs;
use crate::error::{Context, Error, Result};
use crate::stamp::Key;
use crate::state::{Published, SharedState, claim};

/// How long a node sleeps before its second look, and at most before any.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// Claims on one run, of which all but the last are dead: more are made by no cluster.
const CLAIM_LIMIT: u32 = 64;

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Another node wrote it.
    Shared,
    /// This node made it and wrote it for the others.
    Written,
    /// This node made it for itself.
    Alone,
}

/// What [`SharedState::get_or_write`] answers.
#[derive(Debug)]
pub struct Answer {
    /// The contents.
    pub contents: Contents,
    /// Who made them.
    pub source: Source,
    /// What did not work on the way, for the log.
    pub complaint: Option<Error>,
}

/// What is left to do when the waiting is over.
enum Turn {
    Read(Contents),
    Write { claim: u32 },
    GiveUp,
}

impl SharedState {
    /// Returns what the run `key` of a job has; this node is its `rank`-th, from 0. If it has
    /// nothing, one node calls `make` and writes the answer for all.
    ///
    /// Takes at most twice the configured time and what `make` takes. Whatever is wrong with the
    /// storage is a complaint in the answer, and this node then calls `make` for itself.
    ///
    /// # Errors
    /// Those of `make` alone.
    pub fn get_or_write<E>(
        &self,
        key: &Key,
        rank: usize,
        make: impl FnOnce() -> Result<Contents, E>,
    ) -> Result<Answer, E> {
        let mut complaint = None;
        let turn = self.await_turn(key, rank, &mut complaint);
        let turn = turn.unwrap_or_else(|error| {
            complaint = Some(error);
            Turn::GiveUp
        });
        let (contents, source) = match turn {
            Turn::Read(contents) => (contents, Source::Shared),
            Turn::GiveUp => (make()?, Source::Alone),
            Turn::Write { claim } => match self.hand_over(key, claim, make()?) {
                (answer, None) => answer,
                (answer, error) => {
                    complaint = error;
                    answer
                }
            },
        };
        Ok(Answer {
            contents,
            source,
            complaint,
        })
    }

    /// Writes the answer for the others; one that is there already is as good, and all must have
    /// the same.
    fn hand_over(
        &self,
        key: &Key,
        own: u32,
        contents: Contents,
    ) -> ((Contents, Source), Option<Error>) {
        let publish = || {
            let published = self.publish(key, &contents, false)?;
            self.release(key, own)?;
            Ok(published)
        };
        match self.as_owner(publish) {
            Ok(Published::Ours) => ((contents, Source::Written), None),
            Ok(Published::Theirs(theirs)) => ((theirs, Source::Shared), None),
            Err(error) => ((contents, Source::Alone), Some(error)),
        }
    }

    /// Waits until there is a state, or it is this node's turn, or too late.
    fn await_turn(&self, key: &Key, rank: usize, complaint: &mut Option<Error>) -> Result<Turn> {
        let start = Instant::now();
        // Not all at once when the time is over, nor in the same order for every job.
        let patience = self.wait + part(self.wait)?;
        let silence = self.silence + part(self.silence / 4)?;
        let mut pause = PAUSES[0];
        let mut next = 0;
        let mut heard = start;
        loop {
            match self.read(key) {
                Ok(Some(contents)) => return Ok(Turn::Read(contents)),
                Ok(None) => {}
                // As good as absent, and whoever writes replaces it.
                Err(error) if error.is_refusal() => *complaint = Some(error),
                Err(error) => return Err(error),
            }
            let before = next;
            next = self.as_owner(|| self.next_claim(key, next))?;
            if next > before {
                heard = Instant::now();
            }
            let is_turn = (rank == 0 && next == 0) || heard.elapsed() >= silence;
            if is_turn && next < CLAIM_LIMIT && self.as_owner(|| self.make_claim(key, next))? {
                // It may have been written, and the claims been removed, since we looked.
                return Ok(match self.read(key) {
                    Ok(Some(contents)) => {
                        self.as_owner(|| self.release(key, next))?;
                        Turn::Read(contents)
                    }
                    _ => Turn::Write { claim: next },
                });
            }
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(Turn::GiveUp);
            }
            sleep(left.min(pause / 2 + part(pause / 2)?));
            pause = PAUSES[1].min(pause * 2);
        }
    }

    /// Returns the number of the first claim from `next` on that nobody has made.
    fn next_claim(&self, key: &Key, mut next: u32) -> Result<u32> {
        let Some(cluster) = self.cluster(key)? else {
            return Ok(next);
        };
        while next < CLAIM_LIMIT && dirs::examine(&cluster, &claim(key, next))?.is_some() {
            next += 1;
        }
        Ok(next)
    }

    /// False if somebody else has just made this claim.
    fn make_claim(&self, key: &Key, number: u32) -> Result<bool> {
        let name = claim(key, number);
        match dirs::create(self.make_cluster(key)?, &name, &[]) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error).step("create", &name),
        }
    }

    /// Removes the claims up to one's own: there is a state now.
    fn release(&self, key: &Key, own: u32) -> Result<()> {
        let cluster = self.make_cluster(key)?;
        (0..=own).try_for_each(|number| dirs::remove(&cluster, &claim(key, number)))
    }
}

/// Returns some part of a time.
fn part(of: Duration) -> Result<Duration> {
    let part = dirs::random()? as f64 / u64::MAX as f64;
    Ok(of.mul_f64(part))
}
