//! ssh between the nodes of a job: whose keys it gets, and when its servers start.

use std::process::Command;

use node_setup::error::Error;
use node_setup::ssh::keys;
use shifter_core::config::{Config, SshJobs};
use shifter_core::identity::Identity;
use shifter_core::ids::JobId;
use shifter_core::layout::{self, Program};
use shifter_core::manifest::{self, JobManifest};
use shifter_core::ssh::JobKeys;
use shifter_core::trusted;

use crate::child::{self, Finished, Terms};
use crate::pins::{PinError, Pins};
use crate::prolog::{Mistake, NodeError, Slurm, fixed_environment, privileged};
use crate::settings::Settings;

/// Number of the step in which Slurm keeps what belongs to a job and to none of its steps.
pub const EXTERN_STEP: u32 = 0xffff_fffc;

/// Seconds for starting a server.
const SECONDS: u32 = 10;

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
        let is_asked = pins.as_ref().is_ok_and(|pins| pins.modes.ssh);
        let has_several = slurm.count() != 1;
        match (config.ssh.enable, is_asked) {
            (SshJobs::Off, true) => Self::Refused,
            (SshJobs::Off, false) | (SshJobs::Ask, false) => Self::No,
            (_, true) if has_several => Self::Demanded,
            (SshJobs::Always, false) if has_several => Self::BetweenNodes,
            _ => Self::OneNode,
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
    let manifest = trusted::read(&layout::manifest_file(job), manifest::SIZE_LIMIT);
    let has_keys = |bytes: &Vec<u8>| JobManifest::parse(bytes).is_ok_and(|m| m.ssh.is_some());
    if !manifest.as_ref().is_ok_and(has_keys) {
        return Ok(None);
    }
    let config = Config::open_trusted(settings.config())?;
    let mut command = privileged(&Program::StartSshd.path(&config.prefix))?;
    command.args(settings.config_arg());
    command.arg(format!("--expect-uid={uid}")).arg(job.as_str());
    let terms = Terms {
        seconds: SECONDS,
        own_group: true,
        shows_stderr: false,
    };
    let finished: Finished = child::run(ready(fixed_environment(command)), b"", terms)?;
    if finished.status.success() {
        Ok(finished.messages(1).pop())
    } else {
        Err(NodeError::program("startSshd", &finished))
    }
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
        let wanted = |enable: &str, is_asked, nodes: &str| {
            let text = format!("[ssh]\nenable = '{enable}'");
            let config = Config::parse(&text, Path::new("/x")).unwrap();
            let slurm = Slurm {
                nodes: nodes.into(),
                cpus: "1(x2)".replace("x2", if nodes == "n1" { "x1" } else { "x2" }),
                ..Slurm::default()
            };
            let mut pins = sample();
            pins.modes.ssh = is_asked;
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
        let table = [
            ("off", false, "n1", Ssh::No, Some(true)),
            ("off", true, "n1", Ssh::Refused, Some(false)),
            ("ask", false, "n[1-2]", Ssh::No, Some(true)),
            ("ask", true, "n1", Ssh::OneNode, None),
            ("ask", true, "n[1-2]", Ssh::Demanded, Some(false)),
            ("always", false, "n1", Ssh::OneNode, None),
            ("always", false, "n[1-2]", Ssh::BetweenNodes, Some(true)),
            ("always", true, "n[1-2]", Ssh::Demanded, Some(false)),
        ];
        for (enable, is_asked, nodes, expected, starts) in table {
            let found = wanted(enable, is_asked, nodes);
            assert_eq!(found, (expected, starts), "{enable} {is_asked} {nodes}");
        }
    }
}
