//! `setupRoot` as the child of a batch system's process, with a deadline: what it cannot say itself
//! any more once it is killed is said here.
//!
//! It prints each of its phases as that ends, `NAME_ms=N.N` a line; the first that is missing is the
//! one in which it was killed. Who ends it writes the line for the system's log, and counts.

use std::process::Command;

use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, FAILURE_LIMIT, JOB_ROOT};
use shifter_core::manifest::JobManifest;
use shifter_core::{sanitize, trusted};
use thiserror::Error;

use crate::child::{self, ChildError, Finished, Terms};
use crate::record::{Event, Outcome, Record};
use crate::{metrics, out};

const NAME: &str = "setupRoot";

/// The option that makes it print its phases.
const OPTION: &str = "--phases";

/// The phases in their order: the name under which one is printed, and what it is about.
const PHASES: [(&str, &str); 4] = [
    ("lock_ms", "its configuration and its turn"),
    ("image_ms", "the image"),
    ("root_ms", "the mounts of site and user"),
    ("pin_ms", "the pinning of the root"),
];

/// Says why a set-up gave no answer.
#[derive(Debug, Error)]
pub enum SetupError {
    /// It was still running when its time was over.
    #[error("the set-up did not finish within {seconds} s: it was still busy with {stage}")]
    Overdue {
        /// The time it had.
        seconds: u64,
        /// What it was about.
        stage: &'static str,
    },
    /// The same, and it had noted that only the user's own choice could be the reason.
    #[error("{0}")]
    Blamed(String),
    /// It could not be run.
    #[error(transparent)]
    Child(ChildError),
}

/// The root that is to be set up.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The job.
    pub job: &'a JobId,
    /// The root's name.
    pub root: &'a str,
    /// The manifest, as the program reads it.
    pub manifest: &'a [u8],
}

/// Runs the command, which is `setupRoot` and reads the manifest, to its end or to its deadline.
///
/// # Errors
/// Only where there is no exit code.
pub fn run(
    mut command: Command,
    subject: Subject<'_>,
    terms: Terms,
    config: &Config,
) -> Result<Finished, SetupError> {
    command.arg(OPTION);
    let error = match child::run(command, subject.manifest, terms) {
        Ok(finished) => return Ok(finished),
        Err(error) => error,
    };
    let ChildError::Deadline {
        seconds, printed, ..
    } = &error
    else {
        return Err(SetupError::Child(error));
    };
    let past = past(printed);
    let stage = PHASES.get(past.len()).map_or("its end", |(_, stage)| stage);
    let (error, outcome) = match noted(subject) {
        Some(mistake) => (SetupError::Blamed(mistake), Outcome::Mistake),
        None => {
            let seconds = *seconds;
            (SetupError::Overdue { seconds, stage }, Outcome::Failure)
        }
    };
    let manifest = JobManifest::parse(subject.manifest).ok();
    let record = Record::cut_short(
        Event::Setup,
        (subject.job.as_str(), subject.root),
        manifest.as_ref(),
        past,
        (*seconds, outcome, &error.to_string()),
    );
    record.log(NAME);
    if let Some(dir) = &config.metrics.textfile
        && let Err(error) = metrics::count(dir, &record)
    {
        out::complain(NAME, &error.chain());
    }
    Err(error)
}

/// Returns what the set-up of a job noted before it did what only the user can be blamed for; that
/// of a step notes nothing.
fn noted(subject: Subject<'_>) -> Option<String> {
    if subject.root != JOB_ROOT {
        return None;
    }
    let bytes = trusted::read(&layout::failure_file(subject.job), FAILURE_LIMIT).ok()?;
    Some(sanitize::bytes(&bytes))
}

/// Reads what was printed: the phases that were over, each with its time.
fn past(printed: &str) -> Vec<(&'static str, String)> {
    let lines = printed.lines().zip(PHASES);
    let parsed = lines.map_while(|(line, (name, _))| {
        let time = line.strip_prefix(name)?.strip_prefix('=')?;
        Some((name, time.to_owned()))
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn cut_short(script: &str) -> String {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let job = JobId::parse("17").unwrap();
        let subject = Subject {
            job: &job,
            root: "job",
            manifest: b"",
        };
        let terms = Terms {
            seconds: 1,
            own_group: true,
            shows_stderr: false,
        };
        let began = Instant::now();
        let error = run(command, subject, terms, &Config::default()).unwrap_err();
        assert!(began.elapsed().as_secs() < 10);
        error.to_string()
    }

    #[test]
    fn the_phase_in_which_it_was_killed_is_told() {
        let said = cut_short("echo lock_ms=0.1; sleep 600");
        let expected = "the set-up did not finish within 1 s: it was still busy with the image";
        assert_eq!(said, expected);
    }

    #[test]
    fn phases_are_read_as_far_as_they_go() {
        let table = [
            ("", 0),
            ("lock_ms=0.1\n", 1),
            ("lock_ms=0.1\nimage_ms=2.0\nroot_ms=3.0\npin_ms=0.1\n", 4),
            ("image_ms=2.0\nlock_ms=0.1\n", 0),
            ("lock_ms=0.1\nbad\nroot_ms=1\n", 1),
        ];
        for (printed, expected) in table {
            assert_eq!(past(printed).len(), expected, "{printed:?}");
        }
    }
}
