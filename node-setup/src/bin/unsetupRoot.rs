//! `unsetupRoot`: removes everything of a job from this node, from whatever state it is in.
#![allow(non_snake_case, reason = "the program's name, as sites know it")]

use std::path::Path;
use std::process::ExitCode;

use node_setup::error::{Context, Error, Result};
use node_setup::memory::OnePiece;
use node_setup::record::{Event, Phases, Record};
use node_setup::{abandoned, job, known, metrics, out, program, sys};
use shared_state::Key;
use shifter_core::chain;
use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::ids::JobId;
use shifter_core::layout::{self, JOB_ROOT, is_step_root};
use shifter_core::manifest::{JobManifest, SIZE_LIMIT, Start};
use shifter_core::trusted;

#[global_allocator]
static MEMORY: OnePiece = OnePiece::new();

const NAME: &str = "unsetupRoot";

/// Asks for all jobs that are left, instead of for one.
const ABANDONED: &str = "--abandoned";

const HELP: &str = "\
Usage: unsetupRoot [--config=FILE] [--uid=UID] JOB
       unsetupRoot [--config=FILE] --start=UID:RESTART:CREATED JOB
       unsetupRoot [--config=FILE] JOB STEPROOT
       unsetupRoot [--config=FILE] --abandoned [--background]

Remove the container roots of a job from this node and end the processes that are
still in them; STEPROOT, 'step-NUMBER', removes that of a step alone. It is no error
if there are none; calling it again is harmless.

  --uid=UID    the job's user: also ends what runs in containers that this user made
               in the job, where the batch system puts jobs into no cgroup
  --start=UID:RESTART:CREATED
               the start of the job that is over, as its manifest says: leaves alone
               what was set up for a later one
  --abandoned  remove those of all Slurm jobs whose epilog never comes: the slurmd that
               had to run it and the job's extern step are dead, and nothing runs
  --background return at once
";

fn main() -> ExitCode {
    program::main(NAME, HELP, |words, _| run(&words))
}

fn run(words: &[String]) -> Result<String> {
    let Call { config, uid, what } = Call::parse(words)?;
    // One that broke while the job ran is no reason to fail.
    let config = &Config::open_trusted(config).unwrap_or_default();
    let (job, root, start) = match what {
        What::Root(job, root) => (job, root, None),
        What::Start(job, start) => (job, JOB_ROOT, Some(start)),
        What::Abandoned { is_awaited } => {
            if !is_awaited && sys::fork().step("fork", "background")?.is_some() {
                return Ok(String::new());
            }
            return tear_down_abandoned(config);
        }
    };
    let had_something = layout::job_dir(&job).exists();
    let manifest = manifest(&job);
    let mut phases = Phases::begin();
    let result = match start {
        Some(start) => job::tear_down_start(config, &job, start, &mut phases),
        None if root == JOB_ROOT => job::tear_down(config, &job, uid, &mut phases).map(|()| true),
        None => job::tear_down_step(config, &job, root).map(|()| true),
    };
    let is_left_alone = matches!(result, Ok(false));
    let result = result.map(drop);
    if (had_something && !is_left_alone) || result.is_err() {
        let name = (job.as_str(), root);
        let record = Record::new(Event::Teardown, name, manifest.as_ref(), &phases, &result);
        keep(&record, config);
    }
    result.map(|()| String::new())
}

/// Tears down all jobs that are left, and tells of each; one that cannot be keeps nobody from the
/// others.
fn tear_down_abandoned(config: &Config) -> Result<String> {
    let mut failure = None;
    let mut shared = Vec::new();
    for job in abandoned::jobs()? {
        let (manifest, wrote) = (manifest(&job), abandoned::wrote_shared(&job));
        let mut phases = Phases::begin();
        let result = match job::tear_down_abandoned(config, &job, &mut phases) {
            Ok(false) => continue,
            Ok(true) => Ok(()),
            Err(error) => Err(error),
        };
        let name = (job.as_str(), JOB_ROOT);
        let record = Record::new(Event::Teardown, name, manifest.as_ref(), &phases, &result);
        keep(&record, config);
        match result {
            Ok(()) => out::complain(NAME, &format!("job {job} was over without an epilog")),
            Err(error) => failure = failure.or(Some(error)),
        }
        shared.extend(manifest.filter(|_| wrote));
    }
    // Last: it may be on storage that does not answer.
    for manifest in shared {
        forget(config, manifest);
    }
    failure.map_or(Ok(String::new()), Err)
}

/// Removes what this node wrote for the others of a job; what stays is swept when it is old.
fn forget(config: &Config, manifest: JobManifest) {
    let Ok(cluster) = JobId::parse(&manifest.cluster) else {
        return;
    };
    let key = Key {
        cluster,
        job: manifest.job,
        restart: manifest.restart,
        uid: manifest.user.uid,
        gid: manifest.user.gid,
    };
    if let Err(error) = known::forget(config, &key) {
        out::complain(NAME, &chain::line(&error));
    }
}

fn manifest(job: &JobId) -> Option<JobManifest> {
    let bytes = trusted::read(&layout::manifest_file(job), SIZE_LIMIT).ok()?;
    JobManifest::parse(&bytes).ok()
}

/// What is asked for.
struct Call<'a> {
    config: &'a Path,
    uid: Option<u32>,
    what: What<'a>,
}

/// What is to be removed.
enum What<'a> {
    /// This root of the job, and with [`JOB_ROOT`] all of it.
    Root(JobId, &'a str),
    /// All of this start of the job.
    Start(JobId, Start),
    /// What is left of jobs whose epilog never comes.
    Abandoned { is_awaited: bool },
}

impl<'a> Call<'a> {
    fn parse(mut words: &'a [String]) -> Result<Self> {
        let usage = |text: &str| program::usage(NAME, text);
        let (mut config, mut uid, mut start) = (Path::new(DEFAULT_PATH), None, None);
        while let [first, rest @ ..] = words
            && first.starts_with("--")
            && first != ABANDONED
        {
            let (option, value, rest) = match (first.split_once('='), rest) {
                (Some((option, value)), _) => (option, value, rest),
                (None, [value, rest @ ..]) => (first.as_str(), value.as_str(), rest),
                (None, []) => return Err(usage(&format!("option '{first}' needs a value"))),
            };
            match option {
                "--config" => config = Path::new(value),
                "--uid" => {
                    let number = value.parse();
                    uid = Some(number.map_err(|_| usage(&format!("'{value}' is not a uid")))?);
                }
                "--start" => {
                    let malformed = || usage(&format!("'{value}' is not a start of a job"));
                    start = Some(Start::parse(value).ok_or_else(malformed)?);
                }
                _ => return Err(usage(&format!("unknown option '{option}'"))),
            }
            words = rest;
        }
        let job = |word: &str| JobId::parse(word).map_err(|error| Error::Usage(error.to_string()));
        let what = match (words, start) {
            ([word, rest @ ..], None) if word == ABANDONED && uid.is_none() => {
                let is_awaited = match rest {
                    [] => true,
                    [word] if word == "--background" => false,
                    _ => return Err(usage(&format!("'{ABANDONED}' takes '--background' alone"))),
                };
                What::Abandoned { is_awaited }
            }
            ([word], Some(start)) if uid.is_none() => What::Start(job(word)?, start),
            ([word], None) => What::Root(job(word)?, JOB_ROOT),
            ([word, root], None) if is_step_root(root) && uid.is_none() => {
                What::Root(job(word)?, root)
            }
            _ => return Err(usage("one job id is needed")),
        };
        Ok(Self { config, uid, what })
    }
}

/// Keeps what came of the teardown for those who look after the node.
fn keep(record: &Record, config: &Config) {
    record.log(NAME);
    let dir = config.metrics.textfile.as_deref();
    if let Some(Err(error)) = dir.map(|dir| metrics::count(dir, record)) {
        out::complain(NAME, &error.chain());
    }
}
