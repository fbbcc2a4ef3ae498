//! Torque's hooks on several nodes: driven as a mom drives them, fanned out by the tools that sites
//! use, and looked at afterwards.

use anyhow::Result;
use shifter_tests::mom::{self, Hook, HookEnd, Manner};
use shifter_tests::sandbox::{Sandbox, Sandboxes};
use shifter_tests::torque::TorqueJob;

mod alps;
mod driver;
mod ldap;

/// Runs a hook on a node without anything out of the ordinary.
fn run(node: &Sandbox, hook: Hook, job: &TorqueJob) -> Result<HookEnd> {
    mom::run(node, hook, job, Manner::default())
}

/// Starts nodes t1, t2, … with a mom each that has these hooks.
fn nodes(count: usize, hooks: &[(&str, &str)]) -> Result<Sandboxes> {
    let names: Vec<String> = (1..=count).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let nodes = Sandboxes::start(&names)?;
    for node in nodes.nodes() {
        mom::install(node, hooks)?;
    }
    Ok(nodes)
}
