//! ssh between the nodes of a job: whose keys it gets, and when its servers start.

use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use node_setup::abandoned;
use node_setup::error::Error;
use node_setup::ssh::keys;
use shifter_core::config::{Config, SshJobs};
use shifter_core::identity::Identity;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, FAILURE_LIMIT, Program};
use shifter_core::manifest::{self, JobManifest, Modes};
use shifter_core::ssh::JobKeys;
use shifter_core::{sanitize, trusted};

use crate::child::{self, Finished, Terms};
use crate::pins::{PinError, Pins};
use crate::prolog::{Mistake, NodeError, Slurm};
use crate::settings::Settings;

/// Number of the step in which Slurm keeps what belongs to a job and to none of its steps.
pub const EXTERN_STEP: u32 = 0xffff_fffc;

/// Seconds for starting a server.
const SECONDS: u32 = 10;

/// How long a step waits for what comes of the server, which is longer than that may take, and how
/// often it looks.
const PATIENCE: Duration = Duration::from_secs(2 + SECONDS as u64);
const INTERVAL: Duration = Duration::from_millis(10);

/// How long it waits for the extern step itself: Slurm starts no other step before that has begun.
const HEADSTART: Duration = Duration::from_millis(500);

/// What the user is told where Slurm makes none.
const NO_EXTERN_STEP: &[u8] =
    b"no ssh on this node: Slurm makes no extern step (PrologFlags=Contain)";

/// Whether a job's nodes are to reach one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ssh {
    /// They are not.
    No,
    /// The job asks for it, and the site has it not.
    Refused,
    /// There is one: nobody else must know its keys.
    OneNode,
    /// There are several, which need the same keys.
    BetweenNodes,
    /// The same; and the job asks for it and is not to start without.
    Demanded,
}

impl Ssh {
    /// Decides it.
    pub fn wanted(config: &Config, slurm: &Slurm, pins: &Result<Pins, PinError>) -> Self {
        let modes = pins.as_ref().map(|pins| pins.modes).unwrap_or_default();
        let has_several = slurm.count() != 1;
        match modes.ssh {
            Some(true) if config.ssh.enable == SshJobs::Off => Self::Refused,
            Some(true) if has_several => Self::Demanded,
            Some(true) => Self::OneNode,
            None if !comes_unasked(config, modes) => Self::No,
            None if has_several => Self::BetweenNodes,
            None => Self::OneNode,
            Some(false) => Self::No,
        }
    }

    /// True if the nodes must tell each other their keys.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::BetweenNodes | Self::Demanded)
    }

    /// Returns the keys; `shared` are those that all nodes have.
    pub fn keys(
        self,
        config: &Config,
        user: &Identity,
        shared: Option<JobKeys>,
        ready: fn(Command) -> Command,
    ) -> Result<Result<Option<JobKeys>, Mistake>, NodeError> {
        Ok(match (self, shared) {
            (Self::No, _) | (Self::BetweenNodes, None) => Ok(None),
            (Self::Refused, _) => Err(Mistake::NoSsh),
            (Self::OneNode, _) => own(keys::make(config, user.uid, user.gid, ready))?,
            (Self::BetweenNodes | Self::Demanded, Some(keys)) => Ok(Some(keys)),
            (Self::Demanded, None) => Err(Mistake::NoSharedKeys),
        })
    }
}

/// True of jobs that have ssh although they do not ask for it: a cluster of hosts has it, and so has
/// what is taken for one.
pub fn comes_unasked(config: &Config, modes: Modes) -> bool {
    match config.ssh.enable {
        SshJobs::Off => false,
        SshJobs::Ask => modes.ccm,
        SshJobs::Always => true,
    }
}

/// Blames the job for keys that the program of its user's did not make: nobody takes a node out of
/// service by stopping it.
fn own(made: Result<JobKeys, Error>) -> Result<Result<Option<JobKeys>, Mistake>, NodeError> {
    match made {
        Ok(keys) => Ok(Ok(Some(keys))),
        Err(error @ Error::Ssh(_)) => Ok(Err(Mistake::Keys(error))),
        Err(error) => Err(error.into()),
    }
}

/// Starts the server of a job whose manifest has keys, from its extern step; returns what the
/// program says of it.
pub fn start(
    job: &JobId,
    uid: u32,
    settings: &Settings,
    ready: fn(Command) -> Command,
) -> Result<Option<String>, NodeError> {
    if manifest_with_keys(job).is_none() {
        return Ok(None);
    }
    let config = Config::open_trusted(settings.config())?;
    let mut command = child::privileged(&Program::StartSshd.path(&config.prefix))?;
    command.args(settings.config_arg());
    command.arg(format!("--expect-uid={uid}")).arg(job.as_str());
    let terms = Terms {
        seconds: SECONDS,
        own_group: true,
        shows_stderr: false,
    };
    let finished: Finished = child::run(ready(command), b"", terms)?;
    if finished.status.success() {
        Ok(finished.messages(1).pop())
    } else {
        Err(NodeError::program("startSshd", &finished))
    }
}

/// Waits, in a step of a job that asks for ssh, until its server on this node is there or is not to
/// be; returns the line for the user where there is none, to one step alone.
pub fn complaint(job: &JobId) -> Option<String> {
    let manifest = manifest_with_keys(job)?;
    if manifest.modes.ssh != Some(true) {
        return None;
    }
    let file = layout::ssh_file(job);
    let told = file.with_extension("told");
    let start = Instant::now();
    let reason = loop {
        let patience = match abandoned::had_extern(job) {
            true => PATIENCE,
            false => HEADSTART,
        };
        match trusted::read(&file, FAILURE_LIMIT) {
            Ok(reason) => break reason,
            Err(_) if told.exists() => return None,
            Err(_) if start.elapsed() < patience => std::thread::sleep(INTERVAL),
            Err(_) if patience == HEADSTART => break NO_EXTERN_STEP.to_vec(),
            Err(_) => break b"no ssh on this node: its server has not started".to_vec(),
        }
    };
    // Whoever of several steps moves the file, or makes the one that is missing, tells it.
    let is_first = || match file.exists() {
        true => std::fs::rename(&file, &told).is_ok(),
        false => File::create_new(&told).is_ok(),
    };
    let is_ours = !reason.is_empty() && is_first();
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    is_ours.then(|| format!("shifter: {host}: {}", sanitize::bytes(&reason)))
}

fn manifest_with_keys(job: &JobId) -> Option<JobManifest> {
    let bytes = trusted::read(&layout::manifest_file(job), manifest::SIZE_LIMIT).ok()?;
    let manifest = JobManifest::parse(&bytes).ok()?;
    manifest.ssh.is_some().then_some(manifest)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pins::tests::sample;

    #[test]
    fn what_users_can_stop_is_no_fault_of_the_nodes() {
        let stopped = Error::Ssh("cannot make keys: signal 9".into());
        assert!(matches!(own(Err(stopped)), Ok(Err(Mistake::Keys(_)))));
        let missing = Error::Step {
            step: "run",
            object: "/x/shifter-ssh-keys".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        assert!(own(Err(missing)).is_err());
    }

    #[test]
    fn who_asks_is_not_left_without() {
        let of = |enable: &str, asked, nodes: &str, ccm| {
            let text = format!("[ssh]\nenable = '{enable}'");
            let config = Config::parse(&text, Path::new("/x")).unwrap();
            let slurm = Slurm {
                nodes: nodes.into(),
                cpus: "1(x2)".replace("x2", if nodes == "n1" { "x1" } else { "x2" }),
                ..Slurm::default()
            };
            let mut pins = sample();
            pins.modes.ssh = asked;
            pins.modes.ccm = ccm;
            let ssh = Ssh::wanted(&config, &slurm, &Ok(pins));
            let user = Identity::from_passwd_line("a:x:5:5::/:/bin/sh", 5).unwrap();
            let without = match ssh {
                Ssh::OneNode => None,
                _ => Some(
                    ssh.keys(&config, &user, None, |command| command)
                        .unwrap()
                        .is_ok(),
                ),
            };
            (ssh, without)
        };
        let wanted = |enable: &str, asked, nodes: &str| of(enable, asked, nodes, false);
        let table = [
            ("off", None, "n1", Ssh::No, Some(true)),
            ("off", Some(false), "n1", Ssh::No, Some(true)),
            ("off", Some(true), "n1", Ssh::Refused, Some(false)),
            ("ask", None, "n[1-2]", Ssh::No, Some(true)),
            ("ask", Some(true), "n1", Ssh::OneNode, None),
            ("ask", Some(true), "n[1-2]", Ssh::Demanded, Some(false)),
            ("always", None, "n1", Ssh::OneNode, None),
            ("always", None, "n[1-2]", Ssh::BetweenNodes, Some(true)),
            ("always", Some(true), "n[1-2]", Ssh::Demanded, Some(false)),
            ("always", Some(false), "n1", Ssh::No, Some(true)),
            ("always", Some(false), "n[1-2]", Ssh::No, Some(true)),
        ];
        for (enable, asked, nodes, expected, starts) in table {
            let found = wanted(enable, asked, nodes);
            assert_eq!(found, (expected, starts), "{enable} {asked:?} {nodes}");
        }
        // What is taken for a cluster of hosts has it where the site has it at all.
        let table = [
            ("off", None, Ssh::No),
            ("ask", None, Ssh::BetweenNodes),
            ("ask", Some(true), Ssh::Demanded),
            ("ask", Some(false), Ssh::No),
            ("always", None, Ssh::BetweenNodes),
        ];
        for (enable, asked, expected) in table {
            let (found, _) = of(enable, asked, "n[1-2]", true);
            assert_eq!(found, expected, "{enable} {asked:?} with ccm");
        }
    }
}
