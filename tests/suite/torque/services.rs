//! Services that nodes run while they have a job of ours.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::ldap::Ldap;
use shifter_tests::snapshot::Snapshot;
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::Alice;

use super::{PDSH, Site, configure};

#[test]
fn privileged_torque_nscd_answers_from_the_launch_nodes_caches() -> Result<()> {
    let mut site = Site::start(2)?;
    configure(
        site.product,
        &format!("fanout_command = {PDSH}\nservices = ['nscd']\n"),
    )?;
    let ldap = Ldap::start(3)?;
    let (first, second) = (site.nodes.node("t1")?, site.nodes.node("t2")?);
    ldap.serve(first, true)?;
    ldap.serve(second, false)?;
    ensure!(second.call(["id", "alice"]).output()?.code != 0);
    // The launch node has an nscd of its own, which knows its users.
    let nscd =
        "mkdir -p /run/nscd /var/cache/nscd && nscd -f /opt/shifter/share/shifter/torque/nscd.conf";
    first.shell(nscd).ok()?;
    first
        .shell("id alice; getent passwd 2001; getent group crowd0")
        .ok()?;
    site.clean = Snapshot::take_at(&site.nodes.places())?;
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]);
    site.begin(&job)?.expect(0)?;
    let before = ldap.searches()?;
    let seen = second
        .shell("id alice; getent passwd 2001; getent group crowd0")
        .output()?;
    ensure!(
        seen.stdout.contains("uid=2001(alice)") && seen.stdout.contains("5002(crowd2)"),
        "{seen}"
    );
    ensure!(ldap.searches()? == before, "a node without LDAP asked");
    site.end(&job)?.expect(0)?;
    ensure!(
        second.call(["id", "alice"]).output()?.code != 0,
        "served after the job"
    );
    ensure!(!fs::exists(second.path("/var/run/nscd/socket"))?);
    site.ensure_clean()
}
