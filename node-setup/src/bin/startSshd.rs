//! `startSshd`: starts the ssh server of a job on this node, from its extern step.
#![allow(non_snake_case, reason = "named as its neighbours, which sites know")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use node_setup::error::Result;
use node_setup::process::CallersProcess;
use node_setup::{out, program, ssh};
use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::ids::JobId;

const NAME: &str = "startSshd";

const HELP: &str = "\
Usage: startSshd [--config=FILE] --expect-uid=UID JOB

Start the ssh server of a job on this node, in the job's container and as its user;
to be called by the daemon of the job's extern step. It is no error if the job has
no container here, or none with ssh.
";

fn main() -> ExitCode {
    program::main(NAME, HELP, run)
}

fn run(words: Vec<String>, callers: &CallersProcess) -> Result<String> {
    let usage = |text: &str| program::usage(NAME, text);
    let (mut path, mut uid, mut job) = (PathBuf::from(DEFAULT_PATH), None, None);
    for word in words {
        match word.split_once('=') {
            Some(("--config", value)) => path = value.into(),
            Some(("--expect-uid", value)) => {
                uid = Some(value.parse().map_err(|_| usage("UID is a number"))?);
            }
            None if job.is_none() && !word.starts_with('-') => {
                job = Some(JobId::parse(&word).map_err(|error| usage(&error.to_string()))?);
            }
            _ => return Err(usage(&format!("unknown option '{word}'"))),
        }
    }
    let (Some(uid), Some(job)) = (uid, job) else {
        return Err(usage("--expect-uid and one job id are needed"));
    };
    let config = Config::open_trusted(Path::new(&path))?;
    let started = ssh::start::start(&config, &job, uid, callers);
    if let Err(error) = ssh::start::note(&job, &started) {
        out::complain(NAME, &error.chain());
    }
    if started? {
        out::complain(
            NAME,
            &format!("job {job}: listening on port {}", config.ssh.port),
        );
    }
    Ok(String::new())
}
