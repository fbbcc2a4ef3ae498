//! Nodes on which something is left of a job that is over, and trying them again.
//!
//! ```text
//! STATE_DIR/left/lock             held by whoever tries them
//!   nodes                         names for the fan-out tool
//!   <job>.<restart>.<created>     the job's record, of these nodes alone, and what was tried (JSON)
//! ```
//!
//! A node that hung while its job was removed, and goes on, has the job's container still. The
//! epilogues of whatever jobs come next on this launch node, and `shifter-node-clean`, have it removed
//! then. By that time the job may be running again, or its id be another job's, and the order may
//! have been under way for long: the node decides, by what it was told when it was prepared. Where it
//! was told nothing, the batch system must have forgotten the job.
//!
//! Nobody's job waits for this for longer than [`ROUND`], once in [`PAUSE`], and nobody's fails
//! because of it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use node_setup::error::{Context, Result};
use node_setup::state;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use shifter_core::chain;
use shifter_core::config::{BatchSystem, Config};
use shifter_core::ids::JobId;
use shifter_core::sanitize;

use crate::outside::{self, OutsideError};
use crate::qstat::{self, AnswerError, Listed};
use crate::say::{self, Weight};
use crate::site::{self, Removal, Site};
use crate::state::{Record, StateDir, now_secs};
use crate::words::Verb;

/// How long an epilogue spends on what was left before.
pub const ROUND: Duration = Duration::from_secs(10);

/// Less is not worth beginning.
const LEAST: Duration = Duration::from_secs(2);

/// Seconds after an attempt in vain in which no epilogue makes another, on any node.
pub const PAUSE: u64 = 60;

/// Seconds after which a node is tried again at the latest; each attempt in vain doubles the time.
const PAUSE_LIMIT: u64 = 3600;

/// Seconds after which a node is given up: whoever needs it has started it anew by then.
const KEEP_SECS: u64 = 7 * 24 * 3600;

/// Starts of jobs that are remembered.
const COUNT_LIMIT: usize = 256;

/// Seconds that qstat may take.
const ASK_SECS: u32 = 5;

/// What qstat ends with when the batch system does not know the job (15001 and, of a job that is
/// only remembered, 15139, as far as a process can say it).
const UNKNOWN_JOB: [i32; 2] = [153, 35];

/// States of jobs that never run again: Torque's completed; OpenPBS's finished, expired and moved.
const OVER: [&str; 4] = ["C", "F", "X", "M"];

/// What is left of one start of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Left {
    job: JobId,
    /// Of the nodes on which something may be left.
    record: Record,
    /// When that was noted, in seconds since 1970.
    since: u64,
    /// Attempts in vain, and when the last was.
    tries: u32,
    tried: u64,
}

impl Left {
    fn name(&self) -> String {
        let Record {
            restart, created, ..
        } = self.record;
        format!("{}.{restart}.{created}", self.job)
    }

    fn is_due(&self, now: u64) -> bool {
        let pause = PAUSE.checked_shl(self.tries.saturating_sub(1));
        let pause = pause.unwrap_or(PAUSE_LIMIT).min(PAUSE_LIMIT);
        self.tries == 0 || now.abs_diff(self.tried) >= pause
    }

    fn is_hopeless(&self, now: u64) -> bool {
        now.abs_diff(self.since) > KEEP_SECS
    }

    fn hosts(&self) -> impl Iterator<Item = &String> {
        self.record.hosts.iter().map(|host| &host.name)
    }
}

/// Notes nodes on which something may be left.
pub fn note(dir: &StateDir, job: &JobId, record: Record) -> Result<()> {
    // One of an earlier version's: nodes cannot tell which start of the job it was.
    if record.created == 0 {
        return Ok(());
    }
    let dir = dir.sub("left")?;
    let mut known = read_all(&dir)?;
    known.sort_by_key(|left| left.since);
    let surplus = (known.len() + 1).saturating_sub(COUNT_LIMIT);
    for left in &known[..surplus] {
        give_up(&dir, left, "more is left than can be remembered")?;
    }
    write(
        &dir,
        &Left {
            job: job.clone(),
            record,
            since: now_secs(),
            tries: 0,
            tried: 0,
        },
    )
}

/// Which nodes are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// Of these those that were not tried lately.
    Due(&'a Noted),
    /// All.
    All,
}

/// What was left of jobs at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted(BTreeSet<String>);

/// Returns what is noted now and can be tried by the epilogue of a job: one that asks first does not
/// try at once what it then notes itself. Nor what depends on the batch system's having forgotten
/// that very job.
pub fn noted(dir: &StateDir, own: &JobId) -> Result<Noted> {
    let all = read_all(&dir.sub("left")?)?;
    let can_be = |left: &&Left| left.job != *own || left.record.is_marked;
    Ok(Noted(all.iter().filter(can_be).map(Left::name).collect()))
}

/// Tries nodes again until the time is over; returns what is still left where.
pub fn retry(
    dir: &StateDir,
    config: &Config,
    config_path: Option<&Path>,
    which: Which<'_>,
    deadline: Instant,
) -> Vec<String> {
    let round = Round {
        dir,
        config,
        config_path,
        which,
        deadline,
    };
    match round.run() {
        Ok(failures) => failures,
        Err(error) => vec![error.chain()],
    }
}

struct Round<'a> {
    dir: &'a StateDir,
    config: &'a Config,
    config_path: Option<&'a Path>,
    which: Which<'a>,
    deadline: Instant,
}

impl Round<'_> {
    fn run(&self) -> Result<Vec<String>> {
        let dir = self.dir.sub("left")?;
        if read_all(&dir)?.is_empty() {
            return Ok(Vec::new());
        }
        let lock = state::create_file(dir.as_fd(), "lock")?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Vec::new()),
            Err(error) => return Err(error).step("lock", "left"),
        }
        let mut failures = Vec::new();
        let mut silent = BTreeSet::new();
        for mut left in chosen(read_all(&dir)?, self.which, now_secs()) {
            if left.is_hopeless(now_secs()) {
                failures.push(give_up(&dir, &left, "nodes did not answer for 7 days")?);
                continue;
            }
            if self.left() < LEAST {
                break;
            }
            // Whoever is silent now is so for all of its jobs.
            if left.hosts().all(|host| silent.contains(host)) {
                continue;
            }
            let (removal, is_asked) = self.attempt(&left);
            let line = format!("job {}, late: {}", left.job, sanitize::text(&removal.line));
            let Some(record) = removal.left else {
                state::remove_file(&dir, &left.name())?;
                say::log(Weight::Info, &line);
                continue;
            };
            left.record = record;
            if is_asked {
                silent.extend(left.hosts().cloned());
            }
            failures.push(line);
            left.tries += 1;
            left.tried = now_secs();
            write(&dir, &left)?;
        }
        Ok(failures)
    }

    /// Tries the nodes of one start of a job; returns as well whether they were asked at all.
    fn attempt(&self, left: &Left) -> (Removal, bool) {
        if !left.record.is_marked
            && let Err(line) = check_is_over(self.config, &left.job)
        {
            let left = Some(left.record.clone());
            return (Removal { line, left }, false);
        }
        let site = Site {
            config: self.config,
            config_path: self.config_path,
            job: &left.job,
            dir: self.dir,
        };
        let nodefile = self.dir.file("left/nodes");
        let removal = site::remove(&site, &left.record, Verb::Sweep, &nodefile, self.deadline);
        (removal, true)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// Returns what is to be tried now, longest untried first.
fn chosen(mut all: Vec<Left>, which: Which<'_>, now: u64) -> Vec<Left> {
    all.sort_by_key(|left| (left.tried, left.since));
    let is_early = |left: &Left| left.tries > 0 && now.abs_diff(left.tried) < PAUSE;
    match which {
        Which::All => all,
        Which::Due(_) if all.iter().any(is_early) => Vec::new(),
        Which::Due(noted) => {
            let is_due = |left: &Left| noted.0.contains(&left.name()) && left.is_due(now);
            all.into_iter().filter(is_due).collect()
        }
    }
}

/// Fails unless the batch system says that the job never runs again.
fn check_is_over(config: &Config, job: &JobId) -> std::result::Result<(), String> {
    type Parse = fn(&[u8], &JobId) -> std::result::Result<Listed, AnswerError>;
    let (arguments, parse): (&[&str], Parse) = match config.torque.batch_system {
        BatchSystem::Torque => (&["-f", "-x", job.as_str()], qstat::parse_xml),
        BatchSystem::OpenPbs => (&["-f", "-F", "json", job.as_str()], qstat::parse_json),
    };
    let answer = match outside::ask(&config.torque.qstat, arguments, ASK_SECS) {
        Ok(answer) => answer,
        Err(OutsideError::Failed {
            code: Some(code), ..
        }) if UNKNOWN_JOB.contains(&code) => return Ok(()),
        Err(error) => return Err(chain::line(&error)),
    };
    let listed = parse(&answer, job).map_err(|error| chain::line(&error))?;
    match listed.state.as_deref() {
        Some(state) if OVER.contains(&state) => Ok(()),
        _ => Err("the batch system has the job still".to_owned()),
    }
}

/// Forgets nodes, and returns what to say of that.
fn give_up(dir: &OwnedFd, left: &Left, why: &str) -> Result<String> {
    let hosts: Vec<&str> = left.hosts().map(String::as_str).collect();
    let line = format!("job {}, given up, {why}: {}", left.job, hosts.join(" "));
    say::log(Weight::Error, &line);
    state::remove_file(dir, &left.name())?;
    Ok(line)
}

fn write(dir: &OwnedFd, left: &Left) -> Result<()> {
    let name = left.name();
    let bytes = serde_json::to_vec(left).map_err(std::io::Error::from);
    state::write_file(dir, &name, &bytes.step("write", &*name)?)?;
    rustix::fs::fsync(dir).step("write", &*name)
}

fn read_all(dir: &OwnedFd) -> Result<Vec<Left>> {
    let mut all = Vec::new();
    for name in state::list(dir)? {
        let bytes = state::read_file(dir, &name)?.unwrap_or_default();
        // Not the lock, the nodes, and what was never finished.
        let left = serde_json::from_slice::<Left>(&bytes).ok();
        all.extend(left.filter(|left| left.name() == name));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(job: &str, tries: u32, tried: u64) -> Left {
        let record = serde_json::json!({
            "user": "alice", "uid": 2001, "gid": 2001, "cluster": "mini", "restart": 1,
            "hosts": [{"name": "n1", "slots": 1}], "own": null, "has_root": true,
            "is_shared": true, "created": 100, "is_marked": true, "boot": "b",
        });
        Left {
            job: JobId::parse(job).unwrap(),
            record: serde_json::from_value(record).unwrap(),
            since: 1000,
            tries,
            tried,
        }
    }

    #[test]
    fn who_was_tried_lately_is_not_tried_by_an_epilogue() {
        for (tries, after, is_due) in [
            (0, 0, true),
            (1, 59, false),
            (1, 60, true),
            (2, 119, false),
            (2, 120, true),
            (7, 3599, false),
            (7, 3600, true),
            (4_000_000_000, 3599, false),
            (4_000_000_000, 3600, true),
        ] {
            let left = left("1.s", tries, 5000);
            assert_eq!(left.is_due(5000 + after), is_due, "{tries} {after}");
        }
    }

    #[test]
    fn the_longest_untried_comes_first_and_nothing_at_once_after_a_failure() {
        let all = vec![
            left("1.s", 1, 4000),
            left("2.s", 0, 0),
            left("3.s", 3, 3000),
        ];
        let noted = Noted(all.iter().map(Left::name).collect());
        let due = Which::Due(&noted);
        let names = |which, now| {
            let chosen = chosen(all.clone(), which, now);
            let names = chosen.iter().map(|left| left.job.to_string());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(due, 4059), [""; 0]);
        assert_eq!(names(Which::All, 4059), ["2.s", "3.s", "1.s"]);
        assert_eq!(names(due, 4060), ["2.s", "3.s", "1.s"]);
        let once = vec![left("3.s", 3, 3000)];
        assert!(chosen(once, due, 3239).is_empty());
        // What was noted since.
        assert!(chosen(vec![left("4.s", 0, 0)], due, 5000).is_empty());
    }

    #[test]
    fn nodes_are_noted_and_the_oldest_forgotten() {
        let temporary = tempfile::tempdir().unwrap();
        let dir: OwnedFd = std::fs::File::open(temporary.path()).unwrap().into();
        for number in 0..3 {
            write(&dir, &left(&format!("{number}.s"), number, 7)).unwrap();
        }
        std::fs::write(temporary.path().join("lock"), "").unwrap();
        std::fs::write(temporary.path().join("4.s.1.100"), "{").unwrap();
        let all = read_all(&dir).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all[1], left("1.s", 1, 7));
        assert_eq!(all[1].name(), "1.s.1.100");
        let line = give_up(&dir, &all[1], "why").unwrap();
        assert_eq!(line, "job 1.s, given up, why: n1");
        assert_eq!(read_all(&dir).unwrap().len(), 2);
        assert!(left("1.s", 0, 0).is_hopeless(1001 + KEEP_SECS));
    }
}
