//! Case S56: what users and forged jobs say is never evaluated, on no node and by no tool.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::mom::{Hook, Manner};
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::Alice;

use super::Site;

/// What would make a file if a shell saw it, in several ways of quoting.
const HOSTILE: [&str; 8] = [
    "$(touch /run/evaluated)",
    "`touch /run/evaluated`",
    "x; touch /run/evaluated;",
    "x' ; touch /run/evaluated; '",
    "x\" ; touch /run/evaluated; \"",
    "x\ntouch /run/evaluated\n",
    "|touch /run/evaluated",
    "-oProxyCommand=touch /run/evaluated",
];

fn ensure_not_evaluated(site: &Site, what: &str) -> Result<()> {
    for node in site.nodes.nodes() {
        ensure!(
            !fs::exists(node.path("/run/evaluated"))?,
            "{what} on {}",
            node.name()
        );
    }
    ensure!(!fs::exists("/run/evaluated")?, "{what}");
    Ok(())
}

#[test]
fn privileged_s56_words_of_users_are_never_evaluated() -> Result<()> {
    let site = Site::start(2)?;
    let new = || TorqueJob::new("3.server", Alice, &["t1", "t2"]);
    for hostile in HOSTILE {
        for job in [
            new().variable("UDI", hostile),
            new().variable("UDI", &format!("tiny -v {hostile}:/x")),
            new()
                .variable("UDI", "tiny")
                .variable("SHIFTER_VOLUME", hostile),
            new()
                .variable("UDI", "tiny")
                .variable("SHIFTER_MODULE", hostile),
        ] {
            let end = site.begin(&job)?;
            ensure!(end.exit == Some(1), "{:?}: {end:?}", job.variables);
        }
        ensure_not_evaluated(&site, hostile)?;
    }
    // What is the user's own business reaches the nodes and means nothing there.
    let mut job = new();
    for hostile in HOSTILE {
        job.name += hostile;
        job = job.variable(hostile, hostile);
    }
    let job = job.variable("UDI", "tiny");
    site.begin(&job)?.expect(0)?;
    ensure_not_evaluated(&site, "a job's name and variables")?;
    site.end(&job)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_s56_words_of_the_call_are_judged() -> Result<()> {
    let site = Site::start(2)?;
    let good = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    for hostile in HOSTILE.iter().chain(&["", "..", "a/b", "-x"]) {
        // The id, as nobody but a broken server would send it.
        let mut job = good.clone();
        job.id = (*hostile).to_owned();
        for hook in [Hook::Prologue, Hook::Epilogue] {
            let end = site.hook(hook, &job, Manner::default())?;
            ensure!(
                end.exit == Some(1) && end.signal.is_none(),
                "{hostile}: {hook:?}: {end:?}"
            );
            ensure!(
                !end.said.contains("\n\n") && !end.said.is_empty(),
                "{hostile}: {end:?}"
            );
        }
        ensure_not_evaluated(&site, hostile)?;
    }
    // A node, as a forged node file has it.
    for hostile in &HOSTILE[..4] {
        let mut job = good.clone();
        job.nodes[1].0 = (*hostile).to_owned();
        site.server.knows(&job)?;
        let end = site.hook(Hook::Prologue, &job, Manner::default())?;
        ensure!(
            end.exit.is_some_and(|status| status > 0),
            "{hostile}: {end:?}"
        );
        site.end(&job)?;
        ensure_not_evaluated(&site, hostile)?;
    }
    site.ensure_clean()
}
