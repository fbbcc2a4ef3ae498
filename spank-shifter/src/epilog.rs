//! A node's epilog: whatever a job has left is removed.
//!
//! For what is on the node it needs no configuration and asks nothing of the job's environment: what
//! counts is what is there. What the job's nodes shared is removed by the first of them, where that
//! can be.

use std::path::{Path, PathBuf};
use std::process::Command;

use node_setup::abandoned;
use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout::Program;

use crate::child::{self, Finished, Terms};
use crate::identity;
use crate::prolog::{Facts, NodeError, Tools};
use crate::report;
use crate::settings::Settings;

/// Seconds for what other jobs have left.
const SWEEP_SECONDS: u32 = 10;

/// Seconds for the teardown: processes that stay behind are asked to end before they are killed.
const SECONDS: u32 = 120;

/// Where the suite is if the configuration does not say.
const PREFIX: Option<&str> = option_env!("SHIFTER_PREFIX");

/// Removes what the nodes of a job that asked for an image told each other. What cannot be removed
/// now is old before long.
pub fn forget(facts: &Facts, settings: &Settings, tools: Tools) {
    if let Ok(config) = Config::open_trusted(settings.config()) {
        identity::forget(facts, &config, settings, tools);
    }
}

/// Removes a job's state from the node.
pub fn run(job: &JobId, settings: &Settings, tools: Tools) -> Result<(), NodeError> {
    unsetup(&[job.as_str()], SECONDS, settings, tools.ready)
}

/// Removes what jobs have left on the node whose epilog never comes. Nobody depends on it, so
/// whatever is wrong goes to the log.
pub fn sweep(settings: &Settings, tools: Tools) {
    sweep_with(&["--abandoned"], settings, tools);
}

/// Does the same, in the background.
pub fn sweep_in_background(settings: &Settings, tools: Tools) {
    sweep_with(&["--abandoned", "--background"], settings, tools);
}

fn sweep_with(words: &[&str], settings: &Settings, tools: Tools) {
    if !abandoned::is_any() {
        return;
    }
    match run_unsetup(words, SWEEP_SECONDS, settings, tools.ready) {
        Ok(finished) => finished.messages(8).iter().for_each(|line| {
            (tools.complain)(&format!("shifter: {line}"));
        }),
        Err(error) => (tools.complain)(&format!("shifter: {}", report::chain(&error))),
    }
}

/// Runs unsetupRoot with these words, for so many seconds.
pub fn unsetup(
    words: &[&str],
    seconds: u32,
    settings: &Settings,
    ready: fn(Command) -> Command,
) -> Result<(), NodeError> {
    let finished = run_unsetup(words, seconds, settings, ready)?;
    if finished.status.success() {
        Ok(())
    } else {
        Err(NodeError::program("unsetupRoot", &finished))
    }
}

fn run_unsetup(
    words: &[&str],
    seconds: u32,
    settings: &Settings,
    ready: fn(Command) -> Command,
) -> Result<Finished, NodeError> {
    let mut command = child::privileged(&Program::UnsetupRoot.path(&prefix(settings.config())))?;
    command.args(settings.config_arg()).args(words);
    let terms = Terms {
        seconds,
        own_group: true,
        shows_stderr: false,
    };
    Ok(child::run(ready(command), b"", terms)?)
}

/// A configuration that broke while the job ran must not keep its remains on the node.
fn prefix(config: &Path) -> PathBuf {
    match (Config::open_trusted(config), PREFIX) {
        (Ok(config), _) => config.prefix,
        (Err(_), Some(prefix)) => prefix.into(),
        (Err(_), None) => Config::default().prefix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_configuration_leaves_the_default_prefix() {
        let expected = PREFIX.map_or(Config::default().prefix, PathBuf::from);
        assert_eq!(prefix(Path::new("/no/such/shifter.toml")), expected);
    }
}
