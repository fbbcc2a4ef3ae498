//! Users whom only a directory server knows: who asks it, and how often.

use anyhow::{Result, ensure};
use shifter_tests::ldap::Ldap;

use crate::bench::turn;

use super::nodes;

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
