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
use shifter_core::manifest::{JobManifest, SIZE_LIMIT};
use shifter_core::trusted;

const NAME: &str = "unsetupRoot";

const HELP: &str = "\
Usage: unsetupRoot [--config=FILE] [--uid=UID] JOB
       unsetupRoot [--config=FILE] JOB STEPROOT

Remove the container roots of a job from this node and end the processes that are
still in them; STEPROOT, 'step-NUMBER', removes that of a step alone. It is no error
if there are none; calling it again is harmless.

  --uid=UID  the job's user: also ends what runs in containers that this user made
             in the job, where the batch system puts jobs into no cgroup
";

fn main() -> ExitCode {
    program::main(NAME, HELP, |words, _| run(&words))
}

fn run(words: &[String]) -> Result<String> {
    let Call {
        config,
        uid,
        job,
        root,
    } = Call::parse(words)?;
    let had_something = layout::job_dir(&job).exists();
    let manifest = trusted::read(&layout::manifest_file(&job), SIZE_LIMIT).ok();
    let manifest = manifest.and_then(|bytes| JobManifest::parse(&bytes).ok());
    let mut phases = Phases::begin();
    // One that broke while the job ran is no reason to fail.
    let config = Config::open_trusted(config).unwrap_or_default();
    let result = if root == JOB_ROOT {
        job::tear_down(&config, &job, uid, &mut phases)
    } else {
        job::tear_down_step(&config, &job, root)
    };
    if had_something || result.is_err() {
        let name = (job.as_str(), root);
        let record = Record::new(Event::Teardown, name, manifest.as_ref(), &phases, &result);
        keep(&record, &config);
    }
    result.map(|()| String::new())
}

/// What is asked for.
struct Call<'a> {
    config: &'a Path,
    uid: Option<u32>,
    job: JobId,
    root: &'a str,
}

impl<'a> Call<'a> {
    fn parse(mut words: &'a [String]) -> Result<Self> {
        let usage = |text: &str| program::usage(NAME, text);
        let (mut config, mut uid) = (Path::new(DEFAULT_PATH), None);
        while let [first, rest @ ..] = words
            && first.starts_with("--")
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
                _ => return Err(usage(&format!("unknown option '{option}'"))),
            }
            words = rest;
        }
        let (job, root) = match words {
            [job] => (job, JOB_ROOT),
            [job, root] if is_step_root(root) && uid.is_none() => (job, root.as_str()),
            _ => return Err(usage("one job id is needed")),
        };
        let job = JobId::parse(job).map_err(|error| Error::Usage(error.to_string()))?;
        Ok(Self {
            config,
            uid,
            job,
            root,
        })
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
