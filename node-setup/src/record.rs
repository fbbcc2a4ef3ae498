//! What is kept of each set-up and teardown of a job: one line in the system's log, and numbers for
//! Prometheus where the site wants them.
//!
//! ```text
//! event=setup job=17 root=job cluster=hpc uid=2001 node=n1 image=6f9c… request=docker:ubuntu:24.04
//!     lock_ms=0.1 image_ms=1.2 root_ms=2.0 pin_ms=0.1 total_ms=3.4 outcome=done
//! ```
//!
//! Nothing here stops a job: what cannot be kept is not kept.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use shifter_core::exit::ExitCode;
use shifter_core::manifest::JobManifest;
use shifter_core::sanitize;

use crate::error::{Error, Result};
use crate::out;

/// Where every system log listens.
const LOG: &str = "/dev/log";

/// Priorities of syslog(3) with the facility of daemons.
const INFORMATION: u8 = 3 << 3 | 6;
const FAILURE: u8 = 3 << 3 | 3;

/// What is done to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Its root is built.
    Setup,
    /// It is removed.
    Teardown,
}

impl Event {
    /// Returns the word that stands for it in log and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Event::Setup => "setup",
            Event::Teardown => "teardown",
        }
    }
}

/// How an event went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Done,
    /// The user asked for what cannot be.
    Mistake,
    /// The node cannot do it.
    Failure,
}

impl Outcome {
    /// Returns the word that stands for it in log and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Mistake => "mistake",
            Outcome::Failure => "failure",
        }
    }
}

/// How long each phase of an event took.
#[derive(Debug)]
pub struct Phases {
    start: Instant,
    last: Instant,
    past: Vec<(&'static str, Duration)>,
    is_told: bool,
}

impl Phases {
    /// Begins the first phase.
    pub fn begin() -> Self {
        let start = Instant::now();
        Self {
            start,
            last: start,
            past: Vec::new(),
            is_told: false,
        }
    }

    /// Begins the first phase; each is printed when it ends, for who may have to kill the process.
    pub fn begin_telling() -> Self {
        Self {
            is_told: true,
            ..Self::begin()
        }
    }

    /// Ends the phase that has this name, and begins the next.
    pub fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        let time = now - self.last;
        if self.is_told {
            out::answer(&format!("{name}={}\n", milliseconds(time)));
        }
        self.past.push((name, time));
        self.last = now;
    }
}

/// An event that is over.
#[derive(Debug)]
pub struct Record {
    /// What was done.
    pub event: Event,
    /// How it went.
    pub outcome: Outcome,
    /// How long all of it took.
    pub took: Duration,
    fields: Vec<(&'static str, String)>,
}

impl Record {
    /// Puts together what is known of an event on the root `root` of the job `job`.
    pub fn new(
        event: Event,
        (job, root): (&str, &str),
        manifest: Option<&JobManifest>,
        phases: &Phases,
        result: &Result<()>,
    ) -> Self {
        let took = phases.start.elapsed();
        let mut fields = subject((job, root), manifest);
        for (name, time) in &phases.past {
            fields.push((name, milliseconds(*time)));
        }
        fields.push(("total_ms", milliseconds(took)));
        let code = result
            .as_ref()
            .map_or_else(Error::exit_code, |()| ExitCode::Success);
        let outcome = match code {
            ExitCode::Success => Outcome::Done,
            code if code.is_users_mistake() => Outcome::Mistake,
            _ => Outcome::Failure,
        };
        fields.push(("outcome", outcome.name().to_owned()));
        if let Err(error) = result {
            fields.push(("code", code.code().to_string()));
            fields.push(("error", error.chain()));
        }
        Self {
            event,
            outcome,
            took,
            fields,
        }
    }

    /// Puts together what is known of an event whose process was killed after `seconds`: the phases
    /// that were over, with their times, and what it was that took so long.
    pub fn cut_short(
        event: Event,
        name: (&str, &str),
        manifest: Option<&JobManifest>,
        past: Vec<(&'static str, String)>,
        (seconds, outcome, error): (u64, Outcome, &str),
    ) -> Self {
        let took = Duration::from_secs(seconds);
        let mut fields = subject(name, manifest);
        fields.extend(past);
        fields.push(("total_ms", milliseconds(took)));
        fields.push(("outcome", outcome.name().to_owned()));
        fields.push(("error", error.to_owned()));
        Self {
            event,
            outcome,
            took,
            fields,
        }
    }

    /// Writes the record as one line of `key=value`; what has more than plain characters is quoted.
    pub fn line(&self) -> String {
        let mut line = format!("event={}", self.event.name());
        for (key, value) in &self.fields {
            line.push_str(&format!(" {key}={}", quoted(value)));
        }
        line
    }

    /// Sends the line to the system's log, which is not waited for.
    pub fn log(&self, program: &str) {
        let priority = match self.outcome {
            Outcome::Failure => FAILURE,
            Outcome::Done | Outcome::Mistake => INFORMATION,
        };
        let process = std::process::id();
        let text = format!("<{priority}>{program}[{process}]: {}", self.line());
        // A node without a system log, or with one that is stuck, runs jobs as well.
        let _ = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to(text.as_bytes(), LOG)
        });
    }
}

/// Returns the fields that say what an event is about.
fn subject(
    (job, root): (&str, &str),
    manifest: Option<&JobManifest>,
) -> Vec<(&'static str, String)> {
    let node = rustix::system::uname().nodename().to_string_lossy().into();
    let mut fields = vec![("job", job.to_owned()), ("root", root.to_owned())];
    if let Some(manifest) = manifest {
        fields.push(("cluster", manifest.cluster.clone()));
        fields.push(("uid", manifest.user.uid.to_string()));
    }
    fields.push(("node", node));
    if let Some(manifest) = manifest {
        fields.push(("image", manifest.image.id.to_string()));
        fields.push(("request", manifest.image.reference.clone()));
    }
    fields
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

fn quoted(value: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+:/@[],".contains(&byte);
    if !value.is_empty() && value.bytes().all(is_plain) {
        return value.to_owned();
    }
    let text = sanitize::text(value);
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_forge_fields() {
        let table = [
            ("docker:ubuntu:24.04", "docker:ubuntu:24.04"),
            ("1[2].server", "1[2].server"),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("a=b", "\"a=b\""),
            ("x\" outcome=done \"", "\"x\\\" outcome=done \\\"\""),
            ("\\\"", "\"\\\\\\\"\""),
            ("a\nevent=setup", "\"a\\\\u{a}event=setup\""),
        ];
        for (value, expected) in table {
            assert_eq!(quoted(value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_line_says_how_far_it_came() {
        let past = vec![("lock_ms", "0.1".to_owned())];
        let why = (3, Outcome::Failure, "too late");
        let record = Record::cut_short(Event::Setup, ("17", "job"), None, past, why);
        let line = record.line();
        let end = " lock_ms=0.1 total_ms=3000.0 outcome=failure error=\"too late\"";
        assert!(line.ends_with(end), "{line}");
    }

    #[test]
    fn a_line_says_how_it_went() {
        let phases = || {
            let mut phases = Phases::begin();
            phases.end("lock_ms");
            phases
        };
        let of =
            |result: Result<()>| Record::new(Event::Setup, ("17", "job"), None, &phases(), &result);
        let done = of(Ok(())).line();
        assert!(
            done.starts_with("event=setup job=17 root=job node="),
            "{done}"
        );
        assert!(
            done.contains(" lock_ms=0.") && done.ends_with(" outcome=done"),
            "{done}"
        );
        let mistake = of(Err(Error::NoImage("x".into())));
        assert_eq!(mistake.outcome, Outcome::Mistake);
        let told =
            " outcome=mistake code=4 error=\"cannot find image 'x': it is not in the site store\"";
        assert!(mistake.line().ends_with(told), "{}", mistake.line());
        let failure = of(Err(Error::Privilege("no")));
        assert!(failure.line().ends_with(" outcome=failure code=6 error=no"));
    }
}
