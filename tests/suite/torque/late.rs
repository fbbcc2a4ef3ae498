//! Nodes that hang while their job ends and go on when it is over: nothing stays on them, and nothing
//! of a later job goes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::{Alice, Bob};

use super::{PDSH, STATE, Site};

/// Runs a job's epilogue while its second node hangs: it says so, in time.
fn end_with_hung_node(site: &Site, job: &TorqueJob) -> Result<()> {
    site.nodes.node("t2")?.freeze(true)?;
    let began = Instant::now();
    let end = site.end(job)?;
    ensure!(
        end.exit == Some(1) && end.said.contains("1 of 2 nodes clean; t2: "),
        "{end:?}"
    );
    ensure!(began.elapsed() < Duration::from_secs(20), "{end:?}");
    Ok(())
}

/// Returns the names of what the launch node remembers of nodes that did not answer.
fn left(site: &Site) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(site.nodes.node("t1")?.path(&format!("{STATE}/left")))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.contains(".server."));
    Ok(names)
}

fn lines() -> String {
    format!("fanout_command = {PDSH}\ndeadline_secs = 5\nprologalarm_secs = 40\n")
}

#[test]
fn privileged_torque_node_that_hung_during_the_epilogue_is_cleaned_by_the_next() -> Result<()> {
    let site = Site::start_with(2, &lines())?;
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    let other = TorqueJob::new("4.server", Bob, &["t1"]).variable("UDI", "tiny");
    site.begin(&job)?.expect(0)?;
    let pin = format!("/run/shifter/jobs/{}/roots/job/mnt", job.id);
    let stray = site.leave("t2", &site.within(&job, "sleep 307"))?;
    site.begin(&other)?.expect(0)?;
    end_with_hung_node(&site, &job)?;
    let node = site.nodes.node("t2")?;
    ensure!(fs::exists(node.path(&pin))?, "{pin}");
    ensure!(fs::exists(node.path(&stray))?, "{stray}");
    ensure!(left(&site)?.len() == 1, "{:?}", left(&site)?);
    node.freeze(false)?;
    site.end(&other)?.expect(0)?;
    ensure!(!fs::exists(node.path(&stray))?, "{stray}");
    ensure!(left(&site)?.is_empty(), "{:?}", left(&site)?);
    site.ensure_clean()
}

#[test]
fn privileged_torque_node_that_hangs_on_harms_no_other_job_and_is_cleaned_by_hand() -> Result<()> {
    let site = Site::start_with(2, &lines())?;
    // It has no image: the node is not told of it, and only the server knows whether it is over.
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]);
    site.begin(&job)?.expect(0)?;
    let command = "env PBS_JOBID=3.server setpriv --reuid 2001 --regid 2001 --clear-groups \
                   /opt/shifter/bin/shifter --image=tiny:latest sleep 308";
    let stray = site.leave("t2", command)?;
    end_with_hung_node(&site, &job)?;
    let other = TorqueJob::new("4.server", Bob, &["t1"]).variable("UDI", "tiny");
    site.server.forgets(&job.id)?;
    site.begin(&other)?.expect(0)?;
    let began = Instant::now();
    let end = site.end(&other)?.expect(0)?;
    ensure!(end.said.is_empty(), "{end:?}");
    ensure!(began.elapsed() < Duration::from_secs(20), "{end:?}");
    let node = site.nodes.node("t2")?;
    node.freeze(false)?;
    // It was tried just now, and is left in peace for a while.
    site.begin(&other)?.expect(0)?;
    site.end(&other)?.expect(0)?;
    ensure!(left(&site)?.len() == 1, "{:?}", left(&site)?);
    let first = site.nodes.node("t1")?;
    let clean = || {
        first
            .call(["/opt/shifter/sbin/shifter-node-clean"])
            .output()
    };
    site.server.knows(&job)?;
    let refused = clean()?;
    ensure!(
        refused.code == 1
            && refused
                .stderr
                .contains("the batch system has the job still"),
        "{refused}"
    );
    ensure!(fs::exists(node.path(&stray))?, "{stray}");
    site.server.forgets(&job.id)?;
    let cleaned = clean()?;
    ensure!(cleaned.code == 0 && cleaned.stderr.is_empty(), "{cleaned}");
    ensure!(!fs::exists(node.path(&stray))?, "{stray}");
    ensure!(left(&site)?.is_empty(), "{:?}", left(&site)?);
    site.ensure_clean()
}

#[test]
fn privileged_torque_job_that_has_the_id_of_one_that_was_left_keeps_its_container() -> Result<()> {
    let site = Site::start_with(2, &lines())?;
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    let other = TorqueJob::new("4.server", Bob, &["t1"]).variable("UDI", "tiny");
    site.begin(&job)?.expect(0)?;
    end_with_hung_node(&site, &job)?;
    site.nodes.node("t2")?.freeze(false)?;
    // Before anybody has tried the node again; launched by another node than the first one was.
    let again = TorqueJob::new("3.server", Bob, &["t2", "t1"]).variable("UDI", "tiny");
    site.begin(&again)?.expect(0)?;
    site.ensure_ready(&again, true)?;
    site.begin(&other)?.expect(0)?;
    site.end(&other)?.expect(0)?;
    ensure!(left(&site)?.is_empty(), "{:?}", left(&site)?);
    site.ensure_ready(&again, true)?;
    let accounts = site.look("t2", &again, "cat /etc/passwd")?;
    ensure!(
        accounts.contains("bob") && !accounts.contains("alice"),
        "{accounts}"
    );
    site.end(&again)?.expect(0)?;
    site.ensure_clean()
}
