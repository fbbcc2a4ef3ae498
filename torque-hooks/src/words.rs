//! The words with which a launch node tells the others what to do: `shifter-node setup --job=...`.
//!
//! They pass through the site's tool and whatever shell that has, so they are of letters, digits
//! and `._-/:=+,` alone. A job's id is written with `+` for `[` and `=` for `]`.

use std::path::PathBuf;

use shifter_core::ids::JobId;
use shifter_core::manifest::Start;
use thiserror::Error;

use crate::fanout::template::Report;

/// What a node is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Build the job's root, and start the services.
    Setup,
    /// Start the services alone.
    Services,
    /// Remove whatever there is of the job.
    Teardown,
    /// Remove what is left of a start of the job that is long over.
    Sweep,
}

const VERBS: [(Verb, &str); 4] = [
    (Verb::Setup, "setup"),
    (Verb::Services, "services"),
    (Verb::Teardown, "teardown"),
    (Verb::Sweep, "sweep"),
];

/// An order to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What to do.
    pub verb: Verb,
    /// For which job.
    pub job: JobId,
    /// How often it was started before.
    pub restart: u32,
    /// Its user.
    pub uid: u32,
    /// The group it runs with.
    pub gid: u32,
    /// When this start of the job was prepared, in seconds since 1970, if that was noted.
    pub created: Option<u64>,
    /// Seconds that it may take.
    pub timeout_secs: u32,
    /// How to answer.
    pub report: Report,
    /// What the answer is marked with.
    pub nonce: String,
    /// The job's manifest, on the launch node; elsewhere it is in the shared state.
    pub manifest: Option<PathBuf>,
    /// The site's configuration, if it is not where it usually is.
    pub config: Option<PathBuf>,
}

/// Says what is wrong with an order.
#[derive(Debug, Error)]
pub enum OrderError {
    /// The first word.
    #[error("the first word is 'setup', 'services', 'teardown' or 'sweep'")]
    Verb,
    /// An option is unknown, or has a value that cannot be meant.
    #[error("cannot understand '{}'", shifter_core::sanitize::text(.0))]
    Option(String),
    /// An option is missing.
    #[error("option '{0}' is needed")]
    Missing(&'static str),
}

impl Order {
    /// Returns which start of the job this is about, if that is known.
    pub fn start(&self) -> Option<Start> {
        let (uid, restart) = (self.uid, self.restart);
        self.created.map(|created| Start {
            uid,
            restart,
            created,
        })
    }

    /// Writes the order as words, the program's name excluded.
    pub fn words(&self) -> Vec<String> {
        let verb = VERBS.iter().find(|(verb, _)| *verb == self.verb);
        let how = match self.report {
            Report::Lines => "lines",
            Report::Files => "files",
        };
        let mut words = vec![
            verb.map_or("", |(_, word)| *word).to_owned(),
            format!("--job={}", token(&self.job)),
            format!("--restart={}", self.restart),
            format!("--uid={}", self.uid),
            format!("--gid={}", self.gid),
            format!("--timeout={}", self.timeout_secs),
            format!("--report={how}:{}", self.nonce),
        ];
        words.extend(self.created.map(|created| format!("--created={created}")));
        let paths = [("--manifest", &self.manifest), ("--config", &self.config)];
        for (name, path) in paths {
            words.extend(path.iter().map(|path| format!("{name}={}", path.display())));
        }
        words
    }

    /// Reads the words.
    pub fn parse(words: &[String]) -> Result<Self, OrderError> {
        let (first, options) = words.split_first().ok_or(OrderError::Verb)?;
        let verb = VERBS.iter().find(|(_, word)| word == first);
        let (verb, _) = verb.ok_or(OrderError::Verb)?;
        let (mut job, mut restart, mut uid, mut gid, mut timeout) = (None, None, None, None, None);
        let (mut report, mut manifest, mut config, mut created) = (None, None, None, None);
        for option in options {
            let refused = || OrderError::Option(option.clone());
            let (name, value) = option.split_once('=').ok_or_else(refused)?;
            let number = || value.parse::<u32>().map_err(|_| refused());
            match name {
                "--job" => job = Some(job_of(value).ok_or_else(refused)?),
                "--restart" => restart = Some(number()?),
                "--uid" => uid = Some(number()?),
                "--gid" => gid = Some(number()?),
                "--timeout" => timeout = Some(number()?),
                "--report" => report = Some(report_of(value).ok_or_else(refused)?),
                "--created" => created = Some(value.parse().map_err(|_| refused())?),
                "--manifest" => manifest = Some(PathBuf::from(value)),
                "--config" => config = Some(PathBuf::from(value)),
                _ => return Err(refused()),
            }
        }
        let (report, nonce) = report.ok_or(OrderError::Missing("--report"))?;
        Ok(Self {
            verb: *verb,
            job: job.ok_or(OrderError::Missing("--job"))?,
            restart: restart.ok_or(OrderError::Missing("--restart"))?,
            uid: uid.ok_or(OrderError::Missing("--uid"))?,
            gid: gid.ok_or(OrderError::Missing("--gid"))?,
            created,
            timeout_secs: timeout.ok_or(OrderError::Missing("--timeout"))?,
            report,
            nonce,
            manifest,
            config,
        })
    }
}

/// Writes a job's id so that no shell takes it for a pattern.
pub fn token(job: &JobId) -> String {
    job.as_str().replace('[', "+").replace(']', "=")
}

fn job_of(token: &str) -> Option<JobId> {
    JobId::parse(&token.replace('+', "[").replace('=', "]")).ok()
}

fn report_of(value: &str) -> Option<(Report, String)> {
    let (how, nonce) = value.split_once(':')?;
    let report = match how {
        "lines" => Report::Lines,
        "files" => Report::Files,
        _ => return None,
    };
    let well_formed = |byte: u8| byte.is_ascii_alphanumeric();
    let is_nonce = (1..=64).contains(&nonce.len()) && nonce.bytes().all(well_formed);
    is_nonce.then(|| (report, nonce.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::template::is_plain;

    fn order() -> Order {
        Order {
            verb: Verb::Setup,
            job: JobId::parse("1[2].server-a_b").unwrap(),
            restart: 3,
            uid: 2001,
            gid: 2100,
            created: Some(1_700_000_000),
            timeout_secs: 100,
            report: Report::Files,
            nonce: "0123456789abcdef".into(),
            manifest: None,
            config: Some("/etc/shifter/other.toml".into()),
        }
    }

    #[test]
    fn an_order_is_read_as_written_and_no_shell_changes_it() {
        for (verb, created) in [
            (Verb::Setup, Some(1)),
            (Verb::Services, None),
            (Verb::Teardown, Some(u64::MAX)),
            (Verb::Sweep, Some(0)),
        ] {
            let order = Order {
                verb,
                created,
                ..order()
            };
            let words = order.words();
            assert!(words.iter().all(|word| is_plain(word)), "{words:?}");
            assert_eq!(Order::parse(&words).unwrap(), order);
        }
        assert_eq!(order().words()[1], "--job=1+2=.server-a_b");
    }

    #[test]
    fn what_is_no_order_is_refused() {
        let good = order().words();
        for at in 0..7 {
            let mut words = good.clone();
            words.remove(at);
            assert!(Order::parse(&words).is_err(), "without {}", good[at]);
        }
        for (at, bad) in [
            (0, "boot"),
            (1, "--job=../x"),
            (1, "--job="),
            (2, "--restart=-1"),
            (3, "--uid=alice"),
            (6, "--report=lines"),
            (6, "--report=lines:a b"),
            (6, "--report=mail:1"),
            (7, "--created=soon"),
            (7, "--what=1"),
            (7, "x"),
        ] {
            let mut words = good.clone();
            words[at] = bad.to_owned();
            assert!(Order::parse(&words).is_err(), "{bad}");
        }
    }
}
