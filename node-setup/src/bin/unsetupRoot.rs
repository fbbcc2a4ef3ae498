//! `unsetupRoot`: removes everything of a job from this node, from whatever state it is in.
#![allow(non_snake_case, reason = "the program's name, as sites know it")]

use std::path::Path;
use std::process::ExitCode;

use node_setup::error::{Error, Result};
use node_setup::record::{Event, Phases, Record};
use node_setup::{job, metrics, out, program};
use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::ids::JobId;
use shifter_core::layout::{self, JOB_ROOT, is_step_root};
use shifter_core::manifest::{JobManifest, SIZE_LIMIT, Start};
use shifter_core::trusted;

const NAME: &str = "unsetupRoot";

const HELP: &str = "\
Usage: unsetupRoot [--config=FILE] [--uid=UID] JOB
       unsetupRoot [--config=FILE] --start=UID:RESTART:CREATED JOB
       unsetupRoot [--config=FILE] JOB STEPROOT

Remove the container roots of a job from this node and end the processes that are
still in them; STEPROOT, 'step-NUMBER', removes that of a step alone. It is no error
if there are none; calling it again is harmless.

  --uid=UID  the job's user: also ends what runs in containers that this user made
             in the job, where the batch system puts jobs into no cgroup
  --start=UID:RESTART:CREATED
             the start of the job that is over, as its manifest says: leaves alone
             what was set up for a later one
";

fn main() -> ExitCode {
    program::main(NAME, HELP, |words, _| run(&words))
}

fn run(words: &[String]) -> Result<String> {
    let Call {
        config,
        uid,
        start,
        job,
        root,
    } = Call::parse(words)?;
    let had_something = layout::job_dir(&job).exists();
    let manifest = trusted::read(&layout::manifest_file(&job), SIZE_LIMIT).ok();
    let manifest = manifest.and_then(|bytes| JobManifest::parse(&bytes).ok());
    let mut phases = Phases::begin();
    let result = match start {
        Some(start) => job::tear_down_start(&job, start, &mut phases),
        None if root == JOB_ROOT => job::tear_down(&job, uid, &mut phases).map(|()| true),
        None => job::tear_down_step(&job, root).map(|()| true),
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

/// What is asked for.
struct Call<'a> {
    config: &'a Path,
    uid: Option<u32>,
    start: Option<Start>,
    job: JobId,
    root: &'a str,
}

impl<'a> Call<'a> {
    fn parse(mut words: &'a [String]) -> Result<Self> {
        let usage = || program::usage(NAME, "one job id is needed");
        let (mut config, mut uid, mut start) = (Path::new(DEFAULT_PATH), None, None);
        while let [first, rest @ ..] = words
            && let Some((option, value)) = first.split_once('=')
        {
            match option {
                "--config" => config = Path::new(value),
                "--uid" => uid = Some(value.parse().map_err(|_| usage())?),
                "--start" => start = Some(Start::parse(value).ok_or_else(usage)?),
                _ => return Err(usage()),
            }
            words = rest;
        }
        let (job, root) = match words {
            [job] if uid.is_none() || start.is_none() => (job, JOB_ROOT),
            [job, root] if is_step_root(root) && uid.is_none() && start.is_none() => {
                (job, root.as_str())
            }
            _ => return Err(usage()),
        };
        let job = JobId::parse(job).map_err(|error| Error::Usage(error.to_string()))?;
        Ok(Self {
            config,
            uid,
            start,
            job,
            root,
        })
    }
}

/// Keeps what came of the teardown for those who look after the node; a configuration that broke
/// while the job ran is no reason to fail.
fn keep(record: &Record, config: &Path) {
    record.log(NAME);
    let config = Config::open_trusted(config).ok();
    let dir = config.and_then(|config| config.metrics.textfile);
    if let Some(Err(error)) = dir.map(|dir| metrics::count(&dir, record)) {
        out::complain(NAME, &error.chain());
    }
}
