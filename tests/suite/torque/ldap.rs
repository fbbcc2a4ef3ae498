//! Users whom only a directory server knows: who asks it, and how often.

use anyhow::{Result, ensure};
use shifter_tests::ldap::Ldap;

use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::Alice;

use crate::bench::turn;

use super::{Site, nodes};

#[test]
fn bench_users_come_from_ldap_where_it_is_configured_alone() -> Result<()> {
    let _turn = turn()?;
    let ldap = Ldap::start(3)?;
    let nodes = nodes(2, &[])?;
    let (first, second) = (nodes.node("t1")?, nodes.node("t2")?);
    ldap.serve(first, true)?;
    ldap.serve(second, false)?;
    let before = ldap.searches()?;
    let groups = first.call(["id", "alice"]).ok()?;
    ensure!(
        groups.contains("uid=2001(alice)") && groups.contains("2100(proj),5000(crowd0)"),
        "{groups}"
    );
    ensure!(ldap.searches()? > before);
    let after = ldap.searches()?;
    ensure!(second.call(["id", "alice"]).output()?.code == 1);
    ensure!(ldap.searches()? == after, "a node without LDAP asked");
    Ok(())
}

#[test]
fn privileged_torque_job_of_eight_nodes_asks_ldap_as_often_as_one_of_one() -> Result<()> {
    let site = Site::start(8)?;
    let ldap = Ldap::start(40)?;
    for node in site.nodes.nodes() {
        ldap.serve(node, node.name() == "t1")?;
    }
    let mut searches = Vec::new();
    let names: Vec<String> = (1..=8).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // The first job is not counted: nslcd has a connection to make.
    for (number, nodes) in [&names[..1], &names[..1], &names[..]]
        .into_iter()
        .enumerate()
    {
        let id = format!("{}.server", number + 3);
        let job = TorqueJob::new(&id, Alice, nodes).variable("UDI", "tiny");
        let before = ldap.searches()?;
        site.begin(&job)?.expect(0)?;
        for node in nodes {
            let groups = site.look(node, &job, "grep alice /etc/passwd /etc/group")?;
            ensure!(
                groups.contains("alice:x:2001:2001:") && groups.contains("crowd39:x:5039:alice"),
                "{node}: {groups}"
            );
        }
        site.end(&job)?.expect(0)?;
        searches.push(ldap.searches()? - before);
    }
    ensure!(
        searches[1] > 0 && searches[2] == searches[1],
        "{searches:?}"
    );
    Ok(())
}
