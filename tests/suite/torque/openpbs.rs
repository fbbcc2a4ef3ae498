//! OpenPBS: its classic hooks, and those in Python that it runs for events.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shifter_tests::mom::{self, Hook, Verdict};
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::Alice;
use shifter_tests::world::checkout;

use super::failures::before_setup;
use super::{PDSH, Site, configure};

/// The hook, as an administrator imports it.
const HOOK: &str = "/opt/shifter/share/shifter/torque/execjob.py";

/// What runs it as PBS does.
const DRIVER: &str = "/opt/torque/sbin/pbs-stand-in";

/// What became of an event.
#[derive(Debug)]
struct Outcome(Value);

impl Outcome {
    fn is(&self, what: &str) -> bool {
        self.0[what] == true
    }

    /// What PBS is told: the reason of a refusal, or lines for its log.
    fn said(&self) -> String {
        format!("{}{}", self.0["message"], self.0["log"])
    }

    fn accepted(self) -> Result<()> {
        let is_plain = !self.is("is_rerun") && !self.is("is_deleted");
        ensure!(
            self.is("is_accepted") && is_plain && self.said() == "\"\"[]",
            "{self:?}"
        );
        Ok(())
    }
}

fn start(count: usize) -> Result<Site> {
    let lines = format!("fanout_command = {PDSH}\nbatch_system = 'openpbs'\n");
    let site = Site::start_with(count, &lines)?;
    fs::copy(checkout().join("tests/torque/pbs-stand-in.py"), DRIVER)?;
    Ok(site)
}

fn job(id: &str) -> TorqueJob {
    TorqueJob::new(id, Alice, &["t1", "t2"]).variable("UDI", "tiny")
}

/// Has a job's mom on a node run the hook for an event.
fn event(site: &Site, event: &str, node: &str, job: &TorqueJob, has_gres: bool) -> Result<Outcome> {
    let order = json!({
        "event": event, "is_first": node == job.nodes[0].0, "has_gres": has_gres, "id": job.id,
        "user": job.user.name(), "gres": job.gres, "exec_host": job.exec_host(), "run_count": 1,
        "variables": job.variables,
    });
    let call = site.nodes.node(node)?.call(["python3", DRIVER, HOOK]);
    let ran = call.input(order.to_string()).output()?.success()?;
    let outcome = serde_json::from_str(&ran.stdout).with_context(|| format!("{ran}"))?;
    Ok(Outcome(outcome))
}

#[test]
fn privileged_torque_openpbs_classic_hooks_go_by_what_its_server_says() -> Result<()> {
    let site = start(2)?;
    let ours = job("3.server").variable("SHIFTER_VOLUME", "/scratch/alice:/data");
    site.server.knows(&ours)?;
    let first = site.nodes.node("t1")?;
    mom::run_openpbs(first, Hook::Prologue, &ours)?.expect(0)?;
    for node in ["t1", "t2"] {
        let seen = site.look(
            node,
            &ours,
            "cat /etc/marker /var/hostsfile; stat -c %U /data",
        )?;
        ensure!(seen == "tiny\nt1\nt1\nt2\nt2\nalice\n", "{node}: {seen}");
    }
    mom::run_openpbs(first, Hook::Epilogue, &ours)?.expect(0)?;
    site.ensure_clean()?;

    let other = job("4.server").gres(Some("matlab"));
    site.server.knows(&other)?;
    mom::run_openpbs(first, Hook::Prologue, &other)?.expect(0)?;
    site.ensure_ready(&other, false)?;

    // The same codes as with Torque; what is said is delivered.
    let wrong = TorqueJob::new("5.server", Alice, &["t1", "t2"]).variable("UDI", "nowhere:1");
    site.server.knows(&wrong)?;
    let end = mom::run_openpbs(first, Hook::Prologue, &wrong)?.expect(1)?;
    ensure!(
        end.verdict() == Verdict::Aborted && end.said.contains("nowhere:1"),
        "{end:?}"
    );
    mom::run_openpbs(first, Hook::Epilogue, &wrong)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_openpbs_events_prepare_and_clean_all_nodes_from_the_first() -> Result<()> {
    let site = start(2)?;
    let ours = job("3.server").variable("SHIFTER_VOLUME", "/scratch/alice:/data;/home:/a,b");
    event(&site, "execjob_begin", "t2", &ours, true)?.accepted()?;
    site.ensure_ready(&ours, false)?;
    event(&site, "execjob_begin", "t1", &ours, true)?.accepted()?;
    site.ensure_ready(&ours, true)?;
    let seen = site.look("t2", &ours, "cat /etc/marker; stat -c %U /data; ls -d /a,b")?;
    ensure!(seen == "tiny\nalice\n/a,b\n", "{seen}");
    ensure!(site.server.calls("qstat") == 0, "the event says it all");
    event(&site, "execjob_end", "t2", &ours, true)?.accepted()?;
    site.ensure_ready(&ours, true)?;
    event(&site, "execjob_end", "t1", &ours, true)?.accepted()?;
    event(&site, "execjob_end", "t1", &ours, true)?.accepted()?;
    site.ensure_clean()?;

    // Jobs that do not ask for it, also where the server knows no such resource.
    for (gres, has_gres) in [(None, true), (Some("matlab"), true), (None, false)] {
        let other = ours.clone().gres(gres);
        event(&site, "execjob_begin", "t1", &other, has_gres)?.accepted()?;
        site.ensure_ready(&other, false)?;
        event(&site, "execjob_end", "t1", &other, has_gres)?.accepted()?;
    }
    site.ensure_clean()
}

#[test]
fn privileged_torque_openpbs_event_deletes_or_requeues_the_job_as_the_prologue_would() -> Result<()>
{
    let site = start(2)?;
    let wrong = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "nowhere:1");
    let outcome = event(&site, "execjob_begin", "t1", &wrong, true)?;
    ensure!(
        !outcome.is("is_accepted") && outcome.is("is_deleted") && !outcome.is("is_rerun"),
        "{outcome:?}"
    );
    ensure!(outcome.said().contains("nowhere:1"), "{outcome:?}");
    event(&site, "execjob_end", "t1", &wrong, true)?.accepted()?;

    before_setup("[ $(hostname) != t2 ] || exit 5")?;
    let unlucky = job("4.server");
    let outcome = event(&site, "execjob_begin", "t1", &unlucky, true)?;
    ensure!(
        !outcome.is("is_accepted") && outcome.is("is_rerun") && !outcome.is("is_deleted"),
        "{outcome:?}"
    );
    ensure!(
        outcome.said().contains("1 of 2 nodes ready; t2: "),
        "{outcome:?}"
    );
    site.ensure_ready(&unlucky, false)?;
    event(&site, "execjob_end", "t1", &unlucky, true)?.accepted()?;

    // An end that leaves something is told to PBS, and the job ends all the same.
    before_setup("")?;
    let lines =
        format!("fanout_command = {PDSH}\nbatch_system = 'openpbs'\ntolerated_failures = 1\n");
    configure(site.product, &lines)?;
    event(&site, "execjob_begin", "t1", &unlucky, true)?.accepted()?;
    fs::rename("/usr/bin/pdsh", "/usr/bin/pdsh.away")?;
    let outcome = event(&site, "execjob_end", "t1", &unlucky, true)?;
    fs::rename("/usr/bin/pdsh.away", "/usr/bin/pdsh")?;
    ensure!(
        outcome.is("is_accepted") && outcome.said().contains("pdsh"),
        "{outcome:?}"
    );
    // What the tool did not reach is removed when it works again.
    let first = site.nodes.node("t1")?;
    first.call(["/opt/shifter/sbin/shifter-node-clean"]).ok()?;
    site.ensure_clean()
}
