//! The table of the hooks for Torque, OpenPBS and ALPS.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::check::{Fault, key};

/// Seconds by which Torque kills a prologue before its own limit, and as many for us to end.
const ALARM_MARGIN_SECS: u32 = 20;

/// The hooks that Torque, OpenPBS and ALPS run.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Torque {
    /// Names of generic resources that make a job ours.
    pub gres: Vec<String>,
    /// How the batch system's programs answer.
    pub batch_system: BatchSystem,
    /// The batch system's `qstat`.
    pub qstat: PathBuf,
    /// The batch system's `qalter`.
    pub qalter: PathBuf,
    /// Whether a job's comment says what became of its set-up.
    pub comment: bool,
    /// The site's tool that runs a command on all nodes of a job.
    pub fanout: Fanout,
    /// A tool that is none of those: its words, with placeholders. Empty: the one above.
    pub fanout_command: Vec<String>,
    /// How nodes report.
    pub fanout_report: FanoutReport,
    /// Nodes that are worked on at once.
    pub fanout_width: u32,
    /// Nodes of a job that may fail without failing the job.
    pub tolerated_failures: u32,
    /// The mom's `$prologalarm`.
    pub prologalarm_secs: u32,
    /// Seconds that a prologue or epilogue may take.
    pub deadline_secs: u32,
    /// How often one job is put back into the queue because of its nodes.
    pub requeue_limit: u32,
    /// Seconds that pass before a job is put back.
    pub requeue_pause_secs: u32,
    /// Directory of what a launch node knows of its jobs.
    pub state_dir: PathBuf,
    /// Services that nodes run for a job.
    pub services: Vec<Service>,
    /// Whether jobs run through ALPS.
    pub alps: bool,
    /// The program that lists reservations.
    pub apstat: PathBuf,
    /// Where the node's tree is for what the tool runs there; empty: where it says.
    pub node_context_prefix: PathBuf,
}

/// How the batch system's programs answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum BatchSystem {
    /// XML, from Torque's.
    #[default]
    Torque,
    /// JSON, from OpenPBS's.
    OpenPbs,
}

/// A tool that is known.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Fanout {
    /// None: jobs have one node.
    #[default]
    Local,
    /// pdsh, through ssh.
    Pdsh,
    /// ClusterShell.
    Clush,
    /// One ssh for each node.
    Ssh,
    /// Cray's node health tool.
    Pcmd,
    /// Cray's tool on its boot network.
    Xtxqtcmd,
    /// Torque's own.
    Pbsdsh,
}

/// How nodes report.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FanoutReport {
    /// As fits the tool.
    #[default]
    Auto,
    /// Each prints a line that the tool passes on.
    Lines,
    /// Each leaves a file in the shared state.
    Files,
}

/// A service that nodes run for a job.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Authenticates users between nodes.
    Munge,
    /// Answers for accounts, from the launch node's caches.
    Nscd,
}

impl Default for Torque {
    fn default() -> Self {
        Self {
            gres: vec!["shifter".into()],
            batch_system: BatchSystem::default(),
            qstat: "/usr/bin/qstat".into(),
            qalter: "/usr/bin/qalter".into(),
            comment: true,
            fanout: Fanout::default(),
            fanout_command: Vec::new(),
            fanout_report: FanoutReport::default(),
            fanout_width: 64,
            tolerated_failures: 0,
            prologalarm_secs: 300,
            deadline_secs: 240,
            requeue_limit: 3,
            requeue_pause_secs: 5,
            state_dir: "/var/lib/shifter/torque".into(),
            services: Vec::new(),
            alps: false,
            apstat: "/opt/cray/alps/default/bin/apstat".into(),
            node_context_prefix: PathBuf::new(),
        }
    }
}

/// Returns the first key whose value cannot be meant, and why.
pub(super) fn first_fault(torque: &Torque) -> Fault {
    let of = |name| key(&["torque", name]);
    let paths = [
        ("qstat", &torque.qstat),
        ("qalter", &torque.qalter),
        ("apstat", &torque.apstat),
        ("state_dir", &torque.state_dir),
    ];
    if let Some((name, path)) = paths.into_iter().find(|(_, path)| !path.is_absolute()) {
        return Some((
            of(name),
            format!("'{}' is not an absolute path", path.display()),
        ));
    }
    let prefix = &torque.node_context_prefix;
    if !prefix.as_os_str().is_empty() && !is_plain_path(prefix) {
        let rule = "is not an absolute path of letters, digits and '._-'";
        return Some((
            of("node_context_prefix"),
            format!("'{}' {rule}", prefix.display()),
        ));
    }
    if torque.gres.is_empty() || !torque.gres.iter().all(|name| is_resource(name)) {
        let rule = "a resource is named, by letters, digits and '._-'";
        return Some((of("gres"), rule.into()));
    }
    if let Some(program) = torque.fanout_command.first()
        && !Path::new(program).is_absolute()
    {
        return Some((
            of("fanout_command"),
            format!("'{program}' is not an absolute path"),
        ));
    }
    if !(1..=4096).contains(&torque.fanout_width) {
        return Some((
            of("fanout_width"),
            "the width must be from 1 to 4096".into(),
        ));
    }
    let longest = torque.prologalarm_secs.saturating_sub(ALARM_MARGIN_SECS);
    (!(1..=longest).contains(&torque.deadline_secs)).then(|| {
        let rule = format!("at least 1, and {ALARM_MARGIN_SECS} less than prologalarm_secs");
        (of("deadline_secs"), format!("the deadline must be {rule}"))
    })
}

fn is_resource(name: &str) -> bool {
    let well_formed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && name.bytes().all(well_formed)
}

/// True for a path that no shell on the way changes.
fn is_plain_path(path: &Path) -> bool {
    let well_formed = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
    path.is_absolute() && path.as_os_str().as_encoded_bytes().iter().all(well_formed)
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn refuses_what_cannot_be_meant() {
        let table = [
            ("qstat = 'qstat'", "qstat: 'qstat' is not an absolute"),
            ("gres = []", "gres: a resource"),
            ("gres = ['a b']", "gres: a resource"),
            ("fanout_command = ['pdsh']", "fanout_command: 'pdsh'"),
            ("fanout_width = 0", "fanout_width: the width"),
            ("deadline_secs = 281", "deadline_secs: the deadline"),
            ("prologalarm_secs = 10", "deadline_secs: the deadline"),
            ("node_context_prefix = '/a;b'", "node_context_prefix: "),
            ("fanout = 'rsh'", "unknown variant"),
        ];
        for (line, expected) in table {
            let text = format!("[torque]\n{line}\n");
            let error = Config::parse(&text, Path::new("/x")).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(expected), "{line}: {said}");
        }
        let text = "[torque]\nprologalarm_secs = 60\ndeadline_secs = 40\nservices = ['nscd']\n";
        let config = Config::parse(text, Path::new("/x")).unwrap();
        assert_eq!(config.torque.services, [Service::Nscd]);
    }
}
