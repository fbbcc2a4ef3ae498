//! Who the job's user is, as one node of the job found out for all: through a program of its own.
//!
//! The shared state may be on storage that never answers, and it saves look-ups, no more: whatever is
//! wrong with it, the prolog looks the user up itself.

use std::process::Command;

use node_setup::abandoned;
use serde::Deserialize;
use shifter_core::config::Config;
use shifter_core::hostlist::HostSlots;
use shifter_core::identity::Identity;
use shifter_core::layout::{self, Program};
use shifter_core::manifest::{self, JobManifest};
use shifter_core::ssh::JobKeys;
use shifter_core::trusted;

use crate::child::{self, Terms};
use crate::prolog::{Facts, NodeError, Slurm, Tools};
use crate::report;
use crate::settings::Settings;

/// At most so many seconds for removing what is shared: nobody is looked up, and what stays is swept.
const FORGET_SECONDS: u32 = 5;

/// What the program prints.
#[derive(Deserialize)]
pub struct Answer {
    /// The job's user.
    pub user: Identity,
    /// The keys that all nodes of the job have.
    pub ssh: Option<JobKeys>,
    /// `written` if this node wrote it for the others.
    source: String,
}

impl Answer {
    /// True if this node wrote it for the others, and removes it when the job is over.
    pub fn is_written_here(&self) -> bool {
        self.source == "written"
    }
}

/// Asks for the job's user, and for its keys if `wants_keys`; nothing if the site shares no state or
/// it cannot be used.
pub fn ask(
    facts: &Facts,
    config: &Config,
    settings: &Settings,
    tools: Tools,
    wants_keys: bool,
) -> Option<Answer> {
    config
        .shared_state
        .path
        .as_ref()
        .filter(|_| facts.is_shared)?;
    // A node that does not know its place is never the first.
    let rank = facts.slurm.rank().unwrap_or(usize::MAX);
    let rank = format!("--rank={rank}");
    let words = [&*rank, "--ssh"];
    let words = if wants_keys { &words[..] } else { &words[..1] };
    let state = &config.shared_state;
    let seconds = 2 * state.wait_secs + state.answer_timeout_secs;
    let restart = facts.slurm.restart_count();
    let output = run(facts, config, settings, tools, (restart, (words, seconds)))?;
    let is_fit = |answer: &Answer| {
        let has_keys = answer.ssh.as_ref().is_none_or(JobKeys::is_well_formed);
        answer.user.uid == facts.uid && answer.user.is_well_formed() && has_keys
    };
    match serde_json::from_slice::<Answer>(&output) {
        Ok(answer) if is_fit(&answer) => Some(answer),
        _ => {
            (tools.complain)("shifter: shifter-identity gives a strange answer");
            None
        }
    }
}

/// Removes what the job left in the shared state: the task of its first node, of which there is one, and
/// of whoever wrote it in its place, perhaps after the first node's epilog.
pub fn forget(facts: &Facts, config: &Config, settings: &Settings, tools: Tools) {
    let manifest = manifest(facts);
    let hosts = manifest
        .as_ref()
        .map_or(&[][..], |manifest| &manifest.hosts);
    let is_ours = || is_first(hosts, &facts.slurm) || abandoned::wrote_shared(&facts.job);
    if config.shared_state.path.is_some() && is_ours() {
        // Where Slurm does not say it, as to a slurmd that is told again, the manifest does.
        let restart = manifest.map_or(0, |manifest| manifest.restart);
        let restart = restart.max(facts.slurm.restart_count());
        let seconds = config.shared_state.answer_timeout_secs.min(FORGET_SECONDS);
        let request = (&["--forget"][..], seconds);
        let _ = run(facts, config, settings, tools, (restart, request));
    }
}

/// True on the first of a job's nodes, by those of its manifest where there is one: a slurmd that did not hear
/// of the job's end is told again, and then Slurm's list has only the nodes that have not ended it.
fn is_first(hosts: &[HostSlots], slurm: &Slurm) -> bool {
    match hosts.first() {
        Some(host) => Some(&host.name) == slurm.node.as_ref(),
        None => slurm.rank() == Some(0),
    }
}

/// Returns the manifest with which this node was set up for the job.
fn manifest(facts: &Facts) -> Option<JobManifest> {
    let bytes = trusted::read(&layout::manifest_file(&facts.job), manifest::SIZE_LIMIT).ok()?;
    let manifest = JobManifest::parse(&bytes).ok()?;
    manifest.expect(facts.uid, &facts.job).ok()?;
    Some(manifest)
}

/// Runs the program and returns what it prints; what it complains of goes to the log.
fn run(
    facts: &Facts,
    config: &Config,
    settings: &Settings,
    tools: Tools,
    (restart, (words, seconds)): (u32, (&[&str], u32)),
) -> Option<Vec<u8>> {
    let complain = |text: &str| {
        (tools.complain)(&format!("shifter: job {}: {text}", facts.job));
    };
    let finished = command(facts, config, settings, (restart, words)).and_then(|command| {
        let terms = Terms {
            seconds,
            own_group: true,
            shows_stderr: false,
        };
        Ok(child::run(command, b"", terms)?)
    });
    match finished {
        Ok(finished) => {
            finished.messages(4).iter().for_each(|line| complain(line));
            finished.status.success().then_some(finished.stdout)
        }
        Err(error) => {
            complain(&report::chain(&error));
            None
        }
    }
}

fn command(
    facts: &Facts,
    config: &Config,
    settings: &Settings,
    (restart, words): (u32, &[&str]),
) -> Result<Command, NodeError> {
    let mut command = child::privileged(&Program::Identity.path(&config.prefix))?;
    command.args(settings.config_arg());
    command.args([
        format!("--cluster={}", facts.slurm.cluster_or(config)),
        format!("--job={}", facts.job),
        format!("--restart={restart}"),
        format!("--uid={}", facts.uid),
        format!("--gid={}", facts.gid),
    ]);
    command.args(words);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_is_the_first_also_when_it_is_told_again() {
        let slurm = |nodes: &str, node: &str| Slurm {
            nodes: nodes.into(),
            cpus: "1(x2)".into(),
            node: Some(node.into()),
            ..Slurm::default()
        };
        let host = |name: &str| HostSlots {
            name: name.into(),
            slots: 1,
        };
        let hosts = [host("n1"), host("n2")];
        for (nodes, node, expected, alone) in [
            ("n[1-2]", "n1", true, true),
            ("n[1-2]", "n2", false, false),
            ("n1", "n1", true, false),
            ("n2", "n2", false, false),
        ] {
            let slurm = slurm(nodes, node);
            assert_eq!(is_first(&hosts, &slurm), expected, "{nodes} {node}");
            assert_eq!(is_first(&[], &slurm), alone, "{nodes} {node}");
        }
    }
}
