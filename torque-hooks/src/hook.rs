//! The hooks themselves: who calls, is the job ours, what the exit code is.
//!
//! ```text
//! prologue          0 ready, or not ours   1 ends the job   2 puts it back, up to requeue_limit times
//! epilogue          0 nothing left         1 something is
//! all others        0 always: anything else takes the node out of service
//! ```

use std::io::Read;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shifter_core::chain;
use shifter_core::config::{BatchSystem, Config, ConfigError, DEFAULT_PATH, Torque};
use shifter_core::layout;

use crate::call::{self, Call, Opened, Role};
use crate::facts::Facts;
use crate::guard::{self, Ending, Start};
use crate::say::{self, Weight};
use crate::state::{Moment, StateDir};
use crate::{epilogue, gres, prologue};

/// Ends the job.
pub const PERMANENT: u8 = 1;

/// Puts the job back into the queue.
pub const TRANSIENT: u8 = 2;

/// Seconds for which a hook waits for its worker beyond the worker's own limit.
const SLACK: Duration = Duration::from_secs(4);

/// Seconds before the mom's limit at which nothing may be waited for any more.
const ALARM_MARGIN_SECS: u32 = 14;

/// Bytes of the facts on standard input.
const FACTS_LIMIT: u64 = 4 << 20;

/// Everything that a worker needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Work {
    /// The words of the call.
    pub call: Call,
    /// What the mom's environment says.
    pub mom: Mom,
    /// What a hook of OpenPBS says.
    pub facts: Option<Facts>,
    /// When the hook was started.
    pub start: Moment,
    /// Whether it is known already that the job is ours.
    pub is_ours: bool,
    /// Seconds that are left.
    pub seconds: u32,
}

/// The mom's environment: nothing in it can be a user's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mom {
    /// PBS_RESOURCE_GRES.
    pub gres: Option<String>,
    /// PBS_NODEFILE.
    pub nodefile: Option<PathBuf>,
    /// PBS_MSHOST.
    pub host: Option<String>,
    /// BASIL_RESERVATION_ID.
    pub reservation: Option<String>,
    /// True if it is a mom's environment at all.
    pub is_moms: bool,
}

impl Mom {
    /// Reads the variables through `get`.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Self {
        let names = ["PBS_NODEFILE", "PBS_MSHOST", "PBS_NUM_NODES", "PBS_NODENUM"];
        Self {
            gres: get("PBS_RESOURCE_GRES"),
            nodefile: get("PBS_NODEFILE").map(PathBuf::from),
            host: get("PBS_MSHOST"),
            reservation: get("BASIL_RESERVATION_ID"),
            is_moms: names.iter().any(|name| get(name).is_some()),
        }
    }
}

/// Whose job it is, as far as the call says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Ours,
    NotOurs,
    Unknown,
}

/// Runs a hook; `fallback` is what a name means that is none of the hooks'.
pub fn main(fallback: Role) -> ExitCode {
    let result = catch_unwind(|| {
        if let Err(error) = guard::take_hold() {
            say::tell(&error.chain());
            return PERMANENT;
        }
        match guard::start() {
            Start::Worker(work) => worker(&work),
            Start::Hook(words) => hook(&words, fallback),
            Start::Failed(why) => {
                say::tell(&why);
                PERMANENT
            }
        }
    });
    // A panic says so itself; its own code would put the job back for ever.
    ExitCode::from(result.unwrap_or(PERMANENT))
}

fn worker(work: &Work) -> u8 {
    match work.call.role {
        Role::Prologue => prologue::run(work),
        Role::Epilogue => epilogue::run(work),
        Role::ParallelPrologue | Role::ParallelEpilogue => epilogue::run_parallel(work),
        Role::Nothing => 0,
    }
}

fn hook(words: &[String], fallback: Role) -> u8 {
    let started = Instant::now();
    let start = Moment::of_start();
    let (call, facts) = match call::parse(words, fallback) {
        Ok(Opened::Nothing) => return 0,
        Ok(Opened::Words(call)) => (*call, None),
        Ok(Opened::Facts(role, config)) => match read_facts(role, config) {
            Ok((call, facts)) => (call, Some(facts)),
            Err(why) => {
                say::log(Weight::Error, &why);
                say::tell(&why);
                return PERMANENT;
            }
        },
        Err(error) => {
            let why = chain::line(&error);
            say::log(Weight::Error, &why);
            say::tell(&why);
            // Nobody's node goes out of service because of how it was called.
            let is_parallel = |word: &String| word.ends_with(".parallel");
            let mut roles = words.iter().take(1);
            let mut options = words.iter().filter(|word| word.starts_with("--as="));
            let is_parallel = roles.any(is_parallel) || options.any(is_parallel);
            return if is_parallel { 0 } else { PERMANENT };
        }
    };
    let mom = Mom::from_env(|name| std::env::var_os(name)?.into_string().ok());
    let config = config(call.config.as_deref());
    let torque = match &config {
        Ok(config) => config.torque.clone(),
        // Jobs of others must not suffer; ours are told apart by the usual name.
        Err(_) => Torque::default(),
    };
    let whose = whose(&call, &mom, facts.as_ref(), &torque);
    if whose == Whose::NotOurs && !is_known(&call, &torque) {
        return 0;
    }
    let mut work = Work {
        call,
        mom,
        facts,
        start,
        is_ours: whose == Whose::Ours,
        seconds: torque.deadline_secs,
    };
    let time = Duration::from_secs(torque.deadline_secs.into());
    work.seconds = u32::try_from(time.saturating_sub(started.elapsed()).as_secs()).unwrap_or(0);
    let ending = guard::work(name_of(work.call.role), &work, time + SLACK);
    finish(&work.call, &torque, ending, started)
}

/// Reads the configuration, from where it usually is if no path is given.
pub fn config(path: Option<&Path>) -> Result<Config, ConfigError> {
    Config::open_trusted(path.unwrap_or(Path::new(DEFAULT_PATH)))
}

fn read_facts(role: Role, config: Option<PathBuf>) -> Result<(Call, Facts), String> {
    let mut bytes = Vec::new();
    let stdin = std::io::stdin();
    stdin
        .lock()
        .take(FACTS_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot read the job's facts: {error}"))?;
    Facts::parse(&bytes, role, config).map_err(|error| chain::line(&error))
}

fn whose(call: &Call, mom: &Mom, facts: Option<&Facts>, torque: &Torque) -> Whose {
    let by = |value: &str| match gres::names_one_of(value, &torque.gres) {
        true => Whose::Ours,
        false => Whose::NotOurs,
    };
    if call.direct.is_some() {
        return Whose::Ours;
    }
    if let Some(facts) = facts {
        return facts.gres.as_deref().map_or(Whose::NotOurs, by);
    }
    match (&mom.gres, &call.resources) {
        (Some(value), _) => by(value),
        // Torque's says all; OpenPBS's environment is whatever its mom was started with.
        (None, _) if mom.is_moms && torque.batch_system == BatchSystem::Torque => Whose::NotOurs,
        (None, Some(list)) => gres::in_resource_list(list).map_or(Whose::NotOurs, by),
        (None, None) => Whose::Unknown,
    }
}

/// True if there is something of a job on this machine, whoever's it is now.
fn is_known(call: &Call, torque: &Torque) -> bool {
    layout::job_dir(&call.job).exists()
        || torque
            .state_dir
            .join("jobs")
            .join(call.job.as_str())
            .exists()
}

fn name_of(role: Role) -> &'static str {
    match role {
        Role::Prologue => "shifter-prologue",
        _ => "shifter-epilogue",
    }
}

/// Makes an exit code of how the worker ended.
fn finish(call: &Call, torque: &Torque, ending: Ending, started: Instant) -> u8 {
    let subject = call.subject();
    let code = match ending {
        Ending::Code(code) => u8::try_from(code).unwrap_or(TRANSIENT),
        Ending::Lost(why) => {
            let line = format!("{subject}: {why}");
            say::log(Weight::Error, &line);
            say::tell(&line);
            TRANSIENT
        }
    };
    match (call.role, code) {
        (_, 0) => 0,
        (Role::ParallelPrologue | Role::ParallelEpilogue, _) => {
            let line = format!("{subject}: {} failed", name_of(call.role));
            let noted = StateDir::open(&torque.state_dir).and_then(|dir| dir.note_failure(&line));
            if noted.is_err() {
                say::log(Weight::Error, &line);
            }
            0
        }
        (Role::Prologue, PERMANENT) => {
            forget_retries(call, torque);
            PERMANENT
        }
        (Role::Prologue, _) => put_back(call, torque, started),
        (_, _) => PERMANENT,
    }
}

/// Puts the job back into the queue, or ends it if that was done often enough.
fn put_back(call: &Call, torque: &Torque, started: Instant) -> u8 {
    let subject = call.subject();
    // What cannot be counted is not tried again: nothing else would stop Torque.
    let before = StateDir::open(&torque.state_dir).and_then(|dir| dir.count_retry(&call.job));
    let limit = torque.requeue_limit;
    match before {
        Ok(before) if before < limit => {
            let line = format!(
                "{subject}: put back into the queue ({} of {limit})",
                before + 1
            );
            say::log(Weight::Warning, &line);
            say::tell(&line);
            let alarm = torque.prologalarm_secs.saturating_sub(ALARM_MARGIN_SECS);
            let left = Duration::from_secs(alarm.into()).saturating_sub(started.elapsed());
            let pause = Duration::from_secs(torque.requeue_pause_secs.into());
            std::thread::sleep(pause.min(left));
            TRANSIENT
        }
        Ok(before) => {
            let line = format!("{subject}: ended, after it was put back {before} times");
            say::log(Weight::Error, &line);
            say::tell(&line);
            forget_retries(call, torque);
            PERMANENT
        }
        Err(error) => {
            let line = format!(
                "{subject}: ended, attempts cannot be counted: {}",
                error.chain()
            );
            say::log(Weight::Error, &line);
            say::tell(&line);
            PERMANENT
        }
    }
}

fn forget_retries(call: &Call, torque: &Torque) {
    let forgotten = StateDir::open(&torque.state_dir).and_then(|dir| dir.forget_retries(&call.job));
    if let Err(error) = forgotten {
        say::log(
            Weight::Warning,
            &format!("{}: {}", call.subject(), error.chain()),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole environment of a prologue of Torque 6.1.3.
    const ENVIRONMENT: [(&str, &str); 10] = [
        ("PATH", "/bin:/usr/bin"),
        ("PBS_MSHOST", "n2"),
        ("PBS_NODEFILE", "/var/spool/torque/aux/3.server"),
        ("PBS_NODENUM", "0"),
        ("PBS_NP", "6"),
        ("PBS_NUM_NODES", "2"),
        ("PBS_NUM_PPN", "3"),
        ("PBS_O_WORKDIR", "/home/alice"),
        ("PBS_RESOURCE_GRES", "shifter16"),
        ("PBS_RESOURCE_NODES", "2:ppn=3"),
    ];

    fn mom(without: &[&str]) -> Mom {
        Mom::from_env(|name| {
            let found = ENVIRONMENT.iter().find(|(known, _)| *known == name)?;
            (!without.contains(&name)).then(|| found.1.to_owned())
        })
    }

    fn called(words: &[&str]) -> Call {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        match call::parse(&words, Role::Prologue) {
            Ok(Opened::Words(call)) => *call,
            _ => panic!("{words:?}"),
        }
    }

    #[test]
    fn whose_job_it_is() {
        let torque = Torque {
            gres: vec!["shifter16".into()],
            ..Torque::default()
        };
        let list = "nodes=2:ppn=3,gres=shifter16,walltime=00:10:00";
        let full = called(&["prologue", "3.s", "alice", "g", "j", list]);
        let short = called(&["prologue", "3.s", "alice", "g"]);
        let old = called(&["udiRoot-prologue", "3", "alice", "docker", "x"]);
        let none = Mom::default();
        let bare = mom(&["PBS_RESOURCE_GRES"]);
        let table = [
            (&full, mom(&[]), Whose::Ours),
            (&short, mom(&[]), Whose::Ours),
            // The mom's word counts, not the list.
            (&full, bare.clone(), Whose::NotOurs),
            (&full, none.clone(), Whose::Ours),
            (&short, none.clone(), Whose::Unknown),
            (&old, none, Whose::Ours),
            (&old, bare, Whose::Ours),
        ];
        for (call, mom, expected) in table {
            assert_eq!(
                whose(call, &mom, None, &torque),
                expected,
                "{call:?} {mom:?}"
            );
        }
        assert_eq!(
            whose(&full, &mom(&[]), None, &Torque::default()),
            Whose::NotOurs
        );
        let openpbs = Torque {
            batch_system: BatchSystem::OpenPbs,
            ..torque
        };
        let bare = mom(&["PBS_RESOURCE_GRES"]);
        assert_eq!(whose(&short, &bare, None, &openpbs), Whose::Unknown);
    }
}
