//! Services that nodes run while they have a job of ours.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::ldap::Ldap;
use shifter_tests::sandbox::Sandbox;
use shifter_tests::snapshot::Snapshot;
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::Alice;

use super::failures::before_setup;
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

#[test]
fn privileged_torque_nscd_answers_from_a_database_of_several_megabytes() -> Result<()> {
    let mut site = Site::start(2)?;
    configure(
        site.product,
        &format!("fanout_command = {PDSH}\nservices = ['nscd']\n"),
    )?;
    let (first, second) = (site.nodes.node("t1")?, site.nodes.node("t2")?);
    // Accounts that the launch node alone knows.
    let accounts = "cp /etc/passwd /run/passwd
        awk 'BEGIN { more = sprintf(\"%0400d\", 0); for (n = 0; n < 4000; n++)
            printf \"crowd%d:x:%d:100:%s:/home/crowd:/bin/sh\\n\", n, 100000 + n, more }' >>/run/passwd
        mount --bind /run/passwd /etc/passwd
        mkdir -p /run/nscd /var/cache/nscd
        nscd -f /opt/shifter/share/shifter/torque/nscd.conf";
    first.shell(accounts).ok()?;
    let all = "seq -f crowd%.0f 0 3999 | xargs -n 1000 getent passwd | wc -l";
    ensure!(first.shell(all).ok()?.trim() == "4000");
    let database = fs::metadata(first.path("/var/cache/nscd/passwd"))?;
    ensure!(database.len() > 2 << 20, "{}", database.len());
    site.clean = Snapshot::take_at(&site.nodes.places())?;
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    ensure!(second.call(["id", "crowd1"]).output()?.code != 0);
    site.begin(&job)?.expect(0)?;
    let found = second.shell("getent passwd crowd0 102000 crowd3999 | cut -d: -f3");
    let found = found.output()?;
    ensure!(found.stdout == "100000\n102000\n103999\n", "{found}");
    site.end(&job)?.expect(0)?;
    ensure!(
        second.call(["id", "crowd1"]).output()?.code != 0,
        "served after the job"
    );
    site.ensure_clean()
}

/// Makes what Debian's package has for its daemon on a node.
pub(super) const MUNGE: &str = "install -d -o munge -g munge -m 0700 /var/lib/munge /var/log/munge";

/// Makes the key that all nodes have.
pub(super) const KEY: &str = "head -c 128 /dev/urandom >/etc/munge/munge.key
    chown munge: /etc/munge/munge.key; chmod 0400 /etc/munge/munge.key";

/// What a node of the cluster says of a credential that alice made on another.
fn unmunged(from: &Sandbox, by: &Sandbox) -> Result<String> {
    let credential = from.call(["munge", "--no-input"]).by(Alice).ok()?;
    by.call(["unmunge"]).by(Alice).input(credential).ok()
}

fn has_munged(node: &Sandbox) -> Result<bool> {
    let found = node.shell("pgrep -xc munged; true").ok()?;
    Ok(found.trim() != "0" || fs::exists(node.path("/run/munge/munge.socket.2"))?)
}

#[test]
fn privileged_torque_munge_runs_on_nodes_while_they_have_a_job() -> Result<()> {
    let lines = format!("fanout_command = {PDSH}\nservices = ['munge']\n");
    let mut site = Site::start_with(2, &lines)?;
    let (first, second) = (site.nodes.node("t1")?, site.nodes.node("t2")?);
    first.shell(KEY).ok()?;
    for node in [first, second] {
        node.shell(MUNGE).ok()?;
    }
    let one = TorqueJob::new("3.server", Alice, &["t1", "t2"]);
    let two = TorqueJob::new("4.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    site.begin(&one)?.expect(0)?;
    let said = unmunged(first, second)?;
    ensure!(
        said.contains("Success") && said.contains("alice (2001)"),
        "{said}"
    );
    let owner = second.shell("ps -o user= -C munged").ok()?;
    ensure!(owner.trim() == "munge", "{owner}");
    // With the last job that needs it, it ends.
    site.begin(&two)?.expect(0)?;
    site.end(&one)?.expect(0)?;
    unmunged(second, first)?;
    site.end(&two)?.expect(0)?;
    ensure!(!has_munged(first)? && !has_munged(second)?);
    site.ensure_clean()?;

    // A site's own scripts do the same by hand; whoever did not start it does not stop it.
    let service = |node: &Sandbox, words: &[&str]| {
        let program = ["/opt/shifter/sbin/shifter-node-service"];
        node.call([&program, words].concat()).output()
    };
    first
        .shell("install -d -o munge -g munge /run/munge; setpriv --reuid munge --regid munge --clear-groups munged")
        .ok()?;
    site.clean = Snapshot::take_at(&site.nodes.places())?;
    for node in [first, second] {
        for verb in ["start", "start", "stop", "stop"] {
            let ran = service(node, &[verb, "5.server"])?;
            ensure!(ran.code == 0 && ran.stderr.is_empty(), "{ran}");
            ensure!(
                has_munged(node)? == (verb == "start" || node.name() == "t1"),
                "{ran}"
            );
        }
    }
    for words in [
        &["start"][..],
        &["start", "$(id)"],
        &["other", "5.server"],
        &[],
    ] {
        let refused = service(second, words)?;
        ensure!(
            refused.code == 2 && refused.stderr.contains("--help"),
            "{refused}"
        );
    }
    let as_user = second.call([
        "/opt/shifter/sbin/shifter-node-service",
        "start",
        "5.server",
    ]);
    ensure!(as_user.by(Alice).output()?.code != 0);
    ensure!(!has_munged(second)?);

    // A node that fails keeps nothing of what it began with.
    before_setup("[ $(hostname) != t2 ] || exit 5")?;
    let end = site.begin(&two)?.expect(2)?;
    ensure!(end.said.contains("1 of 2 nodes ready; t2: "), "{end:?}");
    ensure!(!has_munged(second)?);
    site.end(&two)?.expect(0)?;
    before_setup("")?;

    // One that cannot start is the node's failure, and told.
    fs::remove_file("/etc/munge/munge.key")?;
    let end = site.begin(&one)?.expect(2)?;
    ensure!(
        end.said.contains("1 of 2 nodes ready; t2: ") && end.said.contains("munged"),
        "{end:?}"
    );
    site.end(&one)?.expect(0)?;
    let kept = second.shell("ls /run/shifter-services/*/jobs").ok()?;
    ensure!(!kept.contains("server"), "{kept}");
    site.ensure_clean()
}
