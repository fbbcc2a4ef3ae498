//! `shifter-identity`: says who a job's user is, for the prologs of batch systems.
//!
//! A program of its own, so that storage that does not answer can be given up: it hangs, and
//! nobody else does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use node_setup::error::{Error, Result};
use node_setup::{known, out, program, ssh};
use serde::Serialize;
use shared_state::{Key, Source};
use shifter_core::chain;
use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::identity::Identity;
use shifter_core::ids::JobId;
use shifter_core::ssh::JobKeys;

const NAME: &str = "shifter-identity";

const HELP: &str = "\
Usage: shifter-identity [--config=FILE] --cluster=NAME --job=JOB --restart=COUNT
                        --uid=UID --gid=GID --rank=RANK [--ssh]
       shifter-identity [--config=FILE] --cluster=NAME --job=JOB --restart=COUNT
                        --uid=UID --gid=GID --forget

Print who the user of a job is, as JSON: the first node of the job asks the name
service, and the others find its answer in the shared state. RANK is this node's
place among those of the job, from 0. All values are those of the batch system.

  --ssh     make keys for ssh between the nodes, and print them, too
  --forget  remove what the job left in the shared state
";

/// What is printed.
#[derive(Serialize)]
struct Answer<'a> {
    user: &'a Identity,
    ssh: Option<&'a JobKeys>,
    source: &'a str,
}

#[derive(Default)]
struct Options {
    config: Option<PathBuf>,
    cluster: Option<JobId>,
    job: Option<JobId>,
    restart: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    rank: Option<usize>,
    wants_keys: bool,
    forgets: bool,
}

fn main() -> ExitCode {
    program::main(NAME, HELP, |words, _| run(&parse(&words)?))
}

fn run(options: &Options) -> Result<String> {
    let config = options.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    let config = Config::open_trusted(config)?;
    let key = key(options).ok_or_else(|| usage("a value is missing"))?;
    if options.forgets {
        // The job is over; what stays is swept.
        if let Err(error) = known::forget(&config, &key) {
            out::complain(NAME, &chain::line(&error));
        }
        return Ok(String::new());
    }
    let rank = options.rank.ok_or_else(|| usage("'--rank' is missing"))?;
    let make_keys = || {
        let made = options
            .wants_keys
            .then(|| ssh::keys::make(&config, key.uid, key.gid, |command| command))?;
        made.inspect_err(|error| out::complain(NAME, &error.chain()))
            .ok()
    };
    let known = known::identity(&config, &key, rank, make_keys)?;
    for complaint in &known.complaints {
        out::complain(NAME, &chain::line(complaint));
    }
    let answer = Answer {
        user: &known.user,
        ssh: known.ssh.as_ref(),
        source: match known.source {
            Source::Shared => "shared",
            Source::Written => "written",
            Source::Alone => "alone",
        },
    };
    serde_json::to_string(&answer).map_err(|error| Error::Manifest(error.into()))
}

fn key(options: &Options) -> Option<Key> {
    Some(Key {
        cluster: options.cluster.clone()?,
        job: options.job.clone()?,
        restart: options.restart?,
        uid: options.uid?,
        gid: options.gid?,
    })
}

/// Parses `--name=value`.
fn parse(words: &[String]) -> Result<Options> {
    let mut options = Options::default();
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let id = || JobId::parse(value).map_err(|error| usage(&error.to_string()));
        match name {
            "--forget" => options.forgets = true,
            "--ssh" => options.wants_keys = true,
            "--config" => options.config = Some(value.into()),
            "--cluster" => options.cluster = Some(id()?),
            "--job" => options.job = Some(id()?),
            "--restart" => options.restart = Some(number(value)?),
            "--uid" => options.uid = Some(number(value)?),
            "--gid" => options.gid = Some(number(value)?),
            "--rank" => options.rank = Some(number(value)?),
            _ => return Err(usage(&format!("unknown option '{name}'"))),
        }
    }
    Ok(options)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse()
        .map_err(|_| usage(&format!("'{text}' is not a number")))
}

fn usage(text: &str) -> Error {
    program::usage(NAME, text)
}
