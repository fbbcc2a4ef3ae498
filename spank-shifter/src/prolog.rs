//! A node's prolog: from the job's environment to a prepared root.
//!
//! Who the user is and which job it is come from Slurm alone; everything that a user can have
//! written is judged again. A user's mistake is recorded for the job's tasks to report, and the
//! prolog succeeds: its failure would take the node out of service. A node's failure does that.

use std::cell::Cell;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use node_setup::abandoned;
use node_setup::supervised::{self, SetupError, Subject};
use shifter_core::config::{Config, ConfigError};
use shifter_core::exit::ExitCode;
use shifter_core::hostlist::{self, HostError};
use shifter_core::identity::{Group, Identity};
use shifter_core::ids::JobId;
use shifter_core::layout::{JOB_ROOT, Program};
use shifter_core::manifest::{JobManifest, ManifestError, ResolvedImage, SCHEMA};
use shifter_core::sanitize;
use shifter_core::ssh::JobKeys;
use shifter_core::trusted::TrustError;
use thiserror::Error;

use crate::ccm;
use crate::child::{self, ChildError, Finished, Terms};
use crate::identity;
use crate::pins::{PinError, Pins};
use crate::report;
use crate::settings::Settings;
use crate::ssh::Ssh;

/// Nodes that a job may have.
const HOST_LIMIT: usize = 1 << 16;

/// What Slurm itself says about a job.
#[derive(Debug)]
pub struct Facts {
    /// The job.
    pub job: JobId,
    /// Its user.
    pub uid: u32,
    /// The group it runs with.
    pub gid: u32,
    /// `SLURM_*` of the environment: in a prolog set by slurmd, out of the user's reach; in a step
    /// what it is told of itself, and perhaps by its user.
    pub slurm: Slurm,
    /// Whether what the job's nodes tell each other goes by these facts; not by a step's.
    pub is_shared: bool,
}

/// The variables of slurmd that describe a job; empty where Slurm says nothing.
#[derive(Debug, Default)]
pub struct Slurm {
    /// Name of the cluster.
    pub cluster: String,
    /// The nodes, as a host list.
    pub nodes: String,
    /// CPUs on each of them.
    pub cpus: String,
    /// How often the job was started before.
    pub restart: String,
    /// Name of this node.
    pub node: Option<String>,
}

impl Slurm {
    /// Reads the variables through `get`.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Self {
        // 22.05 sets only the first of the two in a prolog.
        let nodes = get("SLURM_NODELIST").or_else(|| get("SLURM_JOB_NODELIST"));
        let jobs = nodes.zip(get("SLURM_JOB_CPUS_PER_NODE"));
        // A step that was started from outside of its job is told of its own nodes alone.
        let steps = || get("SLURM_STEP_NODELIST").zip(get("SLURM_STEP_TASKS_PER_NODE"));
        let (nodes, cpus) = jobs.or_else(steps).unwrap_or_default();
        Self {
            cluster: get("SLURM_CLUSTER_NAME").unwrap_or_default(),
            nodes,
            cpus,
            restart: get("SLURM_JOB_RESTART_COUNT").unwrap_or_default(),
            node: get("SLURMD_NODENAME"),
        }
    }
}

impl Slurm {
    /// Returns the cluster's name, or the site's for it where Slurm has none.
    pub fn cluster_or<'a>(&'a self, config: &'a Config) -> &'a str {
        if self.cluster.is_empty() {
            &config.system
        } else {
            &self.cluster
        }
    }

    /// Returns this node's place among those of the job, from 0; nothing if Slurm does not say.
    pub fn rank(&self) -> Option<usize> {
        let hosts = hostlist::with_slots(&self.nodes, &self.cpus, HOST_LIMIT).ok()?;
        hosts
            .iter()
            .position(|host| Some(&host.name) == self.node.as_ref())
    }
}

impl Slurm {
    /// Returns how often the job was started before; 0 where Slurm says nothing, as it does then.
    pub fn restart_count(&self) -> u32 {
        self.restart.parse().unwrap_or(0)
    }

    /// Returns how many nodes the job has; 0 if Slurm does not say it in a way that is understood.
    pub fn count(&self) -> usize {
        hostlist::with_slots(&self.nodes, &self.cpus, HOST_LIMIT).map_or(0, |hosts| hosts.len())
    }
}

/// How a prolog ended on a node that is in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The root is ready; what setupRoot says of it, with the time it took.
    Ready(String),
    /// It is not, the job's tasks will say why, and here is the same for the log.
    UsersMistake(String),
}

/// Something about the job that is not the node's fault.
#[derive(Debug, Error)]
pub enum Mistake {
    /// What was pinned at submission is not well-formed.
    #[error("cannot understand what the job asks for")]
    Pins(#[from] PinError),
    /// Slurm's list of the job's nodes cannot be understood.
    #[error("cannot understand the job's list of nodes")]
    Hosts(#[from] HostError),
    /// The site does not let jobs run inside this image without saying so.
    #[error("cannot use --autoshift with image '{}': this site does not allow it", sanitize::text(.0))]
    Autoshift(String),
    /// The job asks for ssh at a site without.
    #[error("this site offers no ssh between the nodes of a job")]
    NoSsh,
    /// The job asks for ssh, and its nodes have no way to learn the same keys.
    #[error("no ssh between several nodes: no shared state of this site brings them the keys")]
    NoSharedKeys,
    /// The program that makes the keys, which runs as the user, did not.
    #[error(transparent)]
    Keys(node_setup::error::Error),
    /// The job cannot have the host's own environment.
    #[error("cannot use --ccm: {0}")]
    Ccm(&'static str),
    /// Together it makes no manifest.
    #[error("cannot describe the job")]
    Manifest(#[from] ManifestError),
}

/// A failure of the node: it is drained.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The site's configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Others than root could have changed a program of the suite, or it is not there.
    #[error(transparent)]
    Untrusted(#[from] TrustError),
    /// The user cannot be looked up.
    #[error(transparent)]
    Account(#[from] node_setup::error::Error),
    /// The set-up gave no answer.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A program of the suite gave no answer.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// A program of the suite failed, in its own words.
    #[error("{program} ended with {ending}: {message}")]
    Program {
        /// The program's name.
        program: &'static str,
        /// Its exit code or signal.
        ending: String,
        /// What it said.
        message: String,
    },
}

impl NodeError {
    /// Describes how a program failed.
    pub fn program(program: &'static str, finished: &Finished) -> Self {
        let message = finished.messages(4).join("; ");
        Self::Program {
            program,
            ending: finished.ending(),
            message,
        }
    }
}

/// What the border to Slurm lends.
#[derive(Clone, Copy, Debug)]
pub struct Tools {
    /// Lets a program of the user's inherit nothing of Slurm's; those of root's see to it themselves.
    pub ready: fn(Command) -> Command,
    /// Tells the administrator of trouble that does not stop the job.
    pub complain: fn(&str),
}

/// Prepares the node for a job that asked for an image.
pub fn run(
    facts: Facts,
    pins: Result<Pins, PinError>,
    settings: &Settings,
    tools: Tools,
) -> Result<Outcome, NodeError> {
    let config = Config::open_trusted(settings.config())?;
    let mut command = child::privileged(&Program::SetupRoot.path(&config.prefix))?;
    command.args(settings.config_args());
    command.args([
        "--spool-dir",
        &spool_dir(&config, facts.slurm.node.as_deref()),
    ]);
    command.args([
        "--expect-uid",
        &facts.uid.to_string(),
        "--expect-job",
        facts.job.as_str(),
    ]);
    let ssh = Ssh::wanted(&config, &facts.slurm, &pins);
    let is_writer = Cell::new(false);
    let known = || {
        let answer = identity::ask(&facts, &config, settings, tools, ssh.is_shared())?;
        is_writer.set(answer.is_written_here());
        Some(answer)
    };
    let keys = |user: &Identity, shared| ssh.keys(&config, user, shared, tools.ready);
    let input = match describe_for(&facts, pins, &config, known, keys)? {
        Ok(manifest) => {
            command.args(["--verbose", "--manifest", "-", "--record-failure"]);
            manifest
        }
        Err(mistake) => {
            command.arg("--refuse").arg(report::chain(&mistake));
            Vec::new()
        }
    };
    let terms = Terms {
        seconds: config.slurm.setup_timeout_secs,
        own_group: true,
        shows_stderr: false,
    };
    let subject = Subject {
        job: &facts.job,
        root: JOB_ROOT,
        manifest: &input,
    };
    let ended = supervised::run(command, subject, terms, &config);
    if is_writer.get()
        && let Err(error) = abandoned::note_shared(&facts.job)
    {
        (tools.complain)(&format!("shifter: {}", error.chain()));
    }
    match ended {
        Ok(finished) => outcome(&finished),
        Err(SetupError::Blamed(mistake)) => Ok(Outcome::UsersMistake(mistake)),
        Err(error) => Err(error.into()),
    }
}

/// Returns Slurm's own directory on this node, as slurmd finds it.
pub fn spool_dir(config: &Config, node: Option<&str>) -> String {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    let host = host.split('.').next().unwrap_or_default();
    let dir = config.slurm.spool_dir.to_string_lossy();
    // Part of a path that root opens: nothing but a name.
    let node = node.filter(|name| hostlist::is_host_name(name));
    dir.replace("%n", node.unwrap_or(host)).replace("%h", host)
}

/// Looks the user up on this node and writes the manifest.
pub fn describe(
    facts: &Facts,
    pins: Result<Pins, PinError>,
    config: &Config,
) -> Result<Result<Vec<u8>, Mistake>, NodeError> {
    describe_for(facts, pins, config, || None, |_, _| Ok(Ok(None)))
}

/// Writes the manifest; looks the user up if `known` does not say who it is, and asks `keys` for the
/// job's, which the other nodes may have brought.
fn describe_for(
    facts: &Facts,
    pins: Result<Pins, PinError>,
    config: &Config,
    known: impl FnOnce() -> Option<identity::Answer>,
    keys: impl FnOnce(&Identity, Option<JobKeys>) -> Result<Result<Option<JobKeys>, Mistake>, NodeError>,
) -> Result<Result<Vec<u8>, Mistake>, NodeError> {
    let pins = match pins {
        Ok(pins) => pins,
        Err(error) => return Ok(Err(error.into())),
    };
    let (user, shared) = match known() {
        Some(answer) => (answer.user, answer.ssh),
        None => (node_setup::lookup::identity(facts.uid)?, None),
    };
    let user = with_job_group(user, facts.gid);
    let ssh = match keys(&user, shared)? {
        Ok(ssh) => ssh,
        Err(mistake) => return Ok(Err(mistake)),
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    Ok(manifest(facts, pins, config, user, ssh, now))
}

fn manifest(
    facts: &Facts,
    pins: Pins,
    config: &Config,
    user: Identity,
    ssh: Option<JobKeys>,
    created: u64,
) -> Result<Vec<u8>, Mistake> {
    let Slurm {
        nodes, cpus, node, ..
    } = &facts.slurm;
    if pins.modes.autoshift && !config.slurm.permits_autoshift(&pins.request) {
        return Err(Mistake::Autoshift(pins.request));
    }
    let hosts = hostlist::with_slots(nodes, cpus, HOST_LIMIT)?;
    if pins.modes.ccm {
        ccm::check(config, &hosts, node.as_deref())?;
    }
    let volumes = pins.volumes.signature();
    let manifest = JobManifest {
        schema: SCHEMA,
        cluster: facts.slurm.cluster_or(config).to_owned(),
        job: facts.job.clone(),
        restart: facts.slurm.restart_count(),
        user,
        image: ResolvedImage {
            id: pins.id,
            reference: pins.request,
        },
        volumes: if volumes.is_empty() {
            Vec::new()
        } else {
            vec![volumes]
        },
        modules: pins.modules,
        hosts,
        created,
        modes: pins.modes,
        ssh,
    };
    Ok(manifest.to_bytes()?)
}

/// Makes the job's group the primary one: `newgrp` before `sbatch` changes it for the job.
fn with_job_group(mut user: Identity, gid: u32) -> Identity {
    for gid in [user.gid, gid] {
        if !user.groups.iter().any(|group| group.gid == gid) {
            user.groups.push(Group { gid, name: None });
        }
    }
    user.gid = gid;
    user
}

fn outcome(finished: &Finished) -> Result<Outcome, NodeError> {
    match finished.status.code().and_then(ExitCode::from_code) {
        Some(ExitCode::Success) => Ok(Outcome::Ready(finished.messages(1).join("; "))),
        Some(code) if code.is_users_mistake() => {
            Ok(Outcome::UsersMistake(finished.messages(2).join("; ")))
        }
        _ => Err(NodeError::program("setupRoot", finished)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::ExitStatus;

    use super::*;
    use crate::pins::tests::sample;

    fn alice() -> Identity {
        Identity::from_passwd_line("alice:x:2001:2001::/home/alice:/bin/sh", 2001).unwrap()
    }

    fn facts(vars: &[(&str, &str)]) -> Facts {
        let get = |name: &str| {
            vars.iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        };
        let job = JobId::parse("17").unwrap();
        Facts {
            job,
            uid: 2001,
            gid: 2001,
            slurm: Slurm::from_env(get),
            is_shared: true,
        }
    }

    const VARS: [(&str, &str); 4] = [
        ("SLURM_CLUSTER_NAME", "mini"),
        ("SLURM_NODELIST", "n[1-2]"),
        ("SLURM_JOB_CPUS_PER_NODE", "2,1"),
        ("SLURM_JOB_RESTART_COUNT", "3"),
    ];

    #[test]
    fn manifest_says_what_slurm_says() {
        let bytes = manifest(
            &facts(&VARS),
            sample(),
            &Config::default(),
            alice(),
            None,
            7,
        )
        .unwrap();
        let read = JobManifest::parse(&bytes).unwrap();
        read.expect(2001, &JobId::parse("17").unwrap()).unwrap();
        assert_eq!(
            (read.cluster.as_str(), read.restart, read.created),
            ("mini", 3, 7)
        );
        let hosts: Vec<_> = read
            .hosts
            .iter()
            .map(|h| (h.name.as_str(), h.slots))
            .collect();
        assert_eq!(hosts, [("n1", 2), ("n2", 1)]);
        assert_eq!(
            read.volume_map().unwrap().signature(),
            sample().volumes.signature()
        );
        assert_eq!(read.modules, ["mpi", "gpu"]);
        assert_eq!(read.image.reference, "docker:ubuntu:24.04");
        assert!(read.modes.autoshift);
        let off = Config::parse("[slurm]\nautoshift_images = 'off'", Path::new("/x")).unwrap();
        let error = manifest(&facts(&VARS), sample(), &off, alice(), None, 7).unwrap_err();
        assert!(
            error.to_string().contains("'docker:ubuntu:24.04'"),
            "{error}"
        );
    }

    #[test]
    fn the_spool_directory_is_this_nodes() {
        let config = Config::parse("[slurm]\nspool_dir = '/a/%n/b'", Path::new("/x")).unwrap();
        assert_eq!(spool_dir(&config, Some("n7")), "/a/n7/b");
        assert!(!spool_dir(&config, None).contains('%'));
        for forged in ["..", "../../root", "n1/..", ""] {
            assert_eq!(spool_dir(&config, Some(forged)), spool_dir(&config, None));
        }
    }

    #[test]
    fn newer_names_and_missing_values() {
        let vars = [
            ("SLURM_JOB_NODELIST", "n1"),
            ("SLURM_JOB_CPUS_PER_NODE", "4"),
        ];
        let bytes = manifest(
            &facts(&vars),
            sample(),
            &Config::default(),
            alice(),
            None,
            7,
        )
        .unwrap();
        let read = JobManifest::parse(&bytes).unwrap();
        assert_eq!((read.cluster.as_str(), read.restart), ("cluster", 0));
        assert_eq!(read.hosts.len(), 1);
        let steps = [
            ("SLURM_STEP_NODELIST", "n[3-4]"),
            ("SLURM_STEP_TASKS_PER_NODE", "1(x2)"),
        ];
        assert_eq!(facts(&steps).slurm.count(), 2);
    }

    #[test]
    fn strange_facts_are_the_jobs_mistake() {
        let table = [
            ("SLURM_NODELIST", "n[1-"),
            ("SLURM_NODELIST", "n1\nroot"),
            ("SLURM_JOB_CPUS_PER_NODE", "x"),
            ("SLURM_CLUSTER_NAME", "../mini"),
        ];
        for (name, value) in table {
            let vars: Vec<_> = VARS
                .map(|(n, v)| (n, if n == name { value } else { v }))
                .into_iter()
                .collect();
            let result = manifest(
                &facts(&vars),
                sample(),
                &Config::default(),
                alice(),
                None,
                7,
            );
            assert!(result.is_err(), "{name}={value}");
        }
    }

    #[test]
    fn the_jobs_group_is_the_primary_one() {
        let user = with_job_group(alice(), 2100);
        assert_eq!((user.gid, user.gids()), (2100, vec![2100, 2001]));
        assert_eq!(with_job_group(alice(), 2001).gids(), [2001]);
    }

    #[test]
    fn exit_codes_tell_the_user_from_the_node() {
        let ended = |wait_status, stderr: &str| Finished {
            status: ExitStatus::from_raw(wait_status),
            stdout: Vec::new(),
            stderr: stderr.into(),
        };
        assert_eq!(
            outcome(&ended(0, "setupRoot: job 17 ready\n")).unwrap(),
            Outcome::Ready("setupRoot: job 17 ready".into())
        );
        for code in [2, 3, 4] {
            let said = outcome(&ended(code << 8, "setupRoot: no\nhint: yes\n")).unwrap();
            assert_eq!(
                said,
                Outcome::UsersMistake("setupRoot: no; hint: yes".into())
            );
        }
        for wait_status in [1 << 8, 5 << 8, 6 << 8, 99 << 8, 9] {
            let error = outcome(&ended(wait_status, "cannot mount\n")).unwrap_err();
            assert!(error.to_string().ends_with(": cannot mount"), "{error}");
        }
    }
}
