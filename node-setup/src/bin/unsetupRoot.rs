//! `unsetupRoot`: removes everything of a job from this node, from whatever state it is in.
#![allow(non_snake_case, reason = "the program's name, as sites know it")]

use std::process::ExitCode;

use node_setup::error::{Error, Result};
use node_setup::{job, out, process};
use shifter_core::ids::JobId;

const NAME: &str = "unsetupRoot";

const HELP: &str = "\
Usage: unsetupRoot [--uid=UID] JOB

Remove the container roots of a job from this node and end the processes that are
still in them. It is no error if the job has none; calling it again is harmless.

  --uid=UID  the job's user: also ends what runs in containers that this user made
             in the job, where the batch system puts jobs into no cgroup
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        return out::answer(HELP).into();
    }
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => out::report(NAME, &error).into(),
    }
}

fn run(words: &[String]) -> Result<()> {
    process::fill_standard_descriptors()?;
    process::check_is_root()?;
    let _callers = process::take_over()?;
    let (uid, job) = match words {
        [job] => (None, job),
        [option, job] => {
            let uid = match option.split_once('=') {
                Some(("--uid", uid)) => uid.parse().ok(),
                _ => None,
            };
            (Some(uid.ok_or_else(usage)?), job)
        }
        _ => return Err(usage()),
    };
    let job = JobId::parse(job).map_err(|error| Error::Usage(error.to_string()))?;
    job::tear_down(&job, uid)
}

fn usage() -> Error {
    Error::Usage("one job id is needed; try 'unsetupRoot --help'".into())
}
