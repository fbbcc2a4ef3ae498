//! What goes wrong around a job, and what stays behind: nothing. Exit codes are those of the table in
//! docs/torque.md.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use shifter_tests::call::Call;
use shifter_tests::mom::{Hook, Manner, Verdict};
use shifter_tests::product::CONFIG;
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::Alice;

use super::{PDSH, SHARED, Site, configure, torque_lines};

fn job(id: &str, nodes: &[&str]) -> TorqueJob {
    TorqueJob::new(id, Alice, nodes).variable("UDI", "tiny")
}

/// Makes setupRoot do something else first, on every node.
pub(super) fn before_setup(script: &str) -> Result<()> {
    before("setupRoot", script)
}

/// Makes a program of root's do something else first, on every node.
pub(super) fn before(program: &str, script: &str) -> Result<()> {
    let path = format!("/opt/shifter/sbin/{program}");
    let real = format!("{path}.real");
    if !fs::exists(&real)? {
        fs::rename(&path, &real)?;
    }
    fs::write(&path, format!("#!/bin/sh\n{script}\nexec {real} \"$@\"\n"))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o700),
    )?)
}

#[test]
fn privileged_torque_job_deleted_during_its_prologue() -> Result<()> {
    let site = Site::start(3)?;
    before_setup("sleep 2")?;
    for (number, after_ms) in [0, 300, 1200, 2100].into_iter().enumerate() {
        let job = job(&format!("{}.server", number + 3), &["t1", "t2", "t3"]);
        site.server.knows(&job)?;
        let (prologue, epilogue) = scope(|scope| {
            let prologue = scope.spawn(|| site.hook(Hook::Prologue, &job, Manner::default()));
            sleep(Duration::from_millis(after_ms));
            let epilogue = site.end(&job);
            (prologue.join(), epilogue)
        });
        let prologue = prologue.map_err(|_| anyhow!("panic"))??;
        epilogue?.expect(0)?;
        if after_ms > 0 {
            // The job is gone: nothing of it must start, and it must not come back by itself.
            ensure!(
                prologue.exit == Some(1),
                "after {after_ms} ms: {prologue:?}"
            );
        } else if prologue.exit == Some(0) {
            // The epilogue was there first; a mom runs it again after such a job.
            site.end(&job)?.expect(0)?;
        }
        site.ensure_clean()?;
    }
    Ok(())
}

/// Kills the session of a prologue at many moments, and runs the epilogue as a mom does then.
fn kill_at(moments: impl Iterator<Item = f64>) -> Result<()> {
    let site = Site::start(2)?;
    let mut killed = 0;
    for (number, at) in moments.enumerate() {
        let job = job(&format!("{}.server", number + 3), &["t1", "t2"]);
        site.server.knows(&job)?;
        let manner = Manner {
            kill_at: Some(at),
            ..Manner::default()
        };
        let end = site.hook(Hook::Prologue, &job, manner)?;
        killed += usize::from(end.signal.is_some());
        site.end(&job)?.expect(0)?;
        site.ensure_clean()
            .map_err(|error| anyhow!("killed after {at} s: {error}"))?;
    }
    ensure!(killed > 2, "only {killed} were killed in time");
    Ok(())
}

#[test]
fn privileged_torque_prologue_killed_with_its_session() -> Result<()> {
    kill_at([0.001, 0.02, 0.06, 0.12, 0.2, 0.3, 0.45].into_iter())
}

#[test]
#[ignore = "takes minutes; tests/long.sh torque"]
fn long_torque_prologue_killed_at_any_moment() -> Result<()> {
    kill_at((0..200).map(|number| f64::from(number) * 0.003))
}

#[test]
fn privileged_torque_node_that_hangs_is_given_up_in_time() -> Result<()> {
    let lines = format!("fanout_command = {PDSH}\ndeadline_secs = 6\nprologalarm_secs = 40\n");
    let site = Site::start_with(3, &lines)?;
    let job = job("3.server", &["t1", "t2", "t3"]);
    site.nodes.node("t3")?.freeze(true)?;
    let began = Instant::now();
    site.server.knows(&job)?;
    let end = site
        .hook(Hook::Prologue, &job, Manner::default())?
        .expect(2)?;
    ensure!(end.verdict() == Verdict::Requeued);
    ensure!(began.elapsed() < Duration::from_secs(14), "{end:?}");
    ensure!(
        end.said.contains("2 of 3 nodes ready") && end.said.contains("t3: "),
        "{end:?}"
    );
    let told = site.server.comment(&job.id)?.unwrap_or_default();
    ensure!(told.contains("t3: "), "{told}");
    // What was ready is taken down again before the job is tried anew.
    for node in ["t1", "t2"] {
        let pin = format!("/run/shifter/jobs/{}/roots/job/mnt", job.id);
        ensure!(!fs::exists(site.nodes.node(node)?.path(&pin))?, "{node}");
    }
    site.nodes.node("t3")?.freeze(false)?;
    site.end(&job)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_dead_node_is_tolerated_where_the_site_says_so() -> Result<()> {
    let mut site = Site::start(3)?;
    site.nodes.kill("t3")?;
    let one = job("3.server", &["t1", "t2", "t3"]);
    let end = site.begin(&one)?.expect(2)?;
    ensure!(end.said.contains("2 of 3 nodes ready; t3: "), "{end:?}");
    ensure!(!fs::exists(
        site.nodes
            .node("t2")?
            .path("/run/shifter/jobs/3.server/manifest")
    )?);
    site.hook(Hook::Epilogue, &one, Manner::default())?;

    configure(
        site.product,
        &format!("fanout_command = {PDSH}\ntolerated_failures = 1\n"),
    )?;
    let two = job("4.server", &["t1", "t2", "t3"]);
    let end = site.begin(&two)?.expect(0)?;
    ensure!(end.said.contains("2 of 3 nodes ready; t3: "), "{end:?}");
    let told = site.server.comment(&two.id)?.unwrap_or_default();
    ensure!(told.contains("2 of 3 nodes ready; t3: "), "{told}");
    ensure!(site.look("t2", &two, "cat /etc/marker")? == "tiny\n");
    // The launch node itself cannot be done without.
    site.hook(Hook::Epilogue, &two, Manner::default())?;
    let alive = |place: &(String, u32)| place.0 != "t3";
    let places: Vec<_> = site.nodes.places().into_iter().filter(alive).collect();
    let left = site
        .clean
        .differences(&shifter_tests::snapshot::Snapshot::take_at(&places)?);
    let left: Vec<&String> = left.iter().filter(|line| line.starts_with('+')).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn privileged_torque_node_that_dies_during_the_job_is_named_by_the_epilogue() -> Result<()> {
    let mut site = Site::start(2)?;
    let job = job("3.server", &["t1", "t2"]);
    site.begin(&job)?.expect(0)?;
    site.nodes.kill("t2")?;
    let end = site.hook(Hook::Epilogue, &job, Manner::default())?;
    ensure!(end.exit == Some(1) && end.said.contains("t2: "), "{end:?}");
    let pin = format!("/run/shifter/jobs/{}", job.id);
    ensure!(!fs::exists(site.nodes.node("t1")?.path(&pin))?);
    Ok(())
}

#[test]
fn privileged_torque_shared_directory_full_or_not_to_be_written() -> Result<()> {
    let site = Site::start(2)?;
    let job = job("3.server", &["t1", "t2"]);
    let spoil = [
        // Full; read-only; open to users.
        format!(
            "mount -t tmpfs -o size=4k,mode=0700 tmpfs {SHARED}; head -c 8k /dev/zero >{SHARED}/x"
        ),
        format!("mount -t tmpfs -o ro,mode=0700 tmpfs {SHARED}"),
        format!("mount -t tmpfs -o mode=0777 tmpfs {SHARED}"),
    ];
    for script in spoil {
        for node in site.nodes.nodes() {
            node.shell(&format!("{script}; true")).ok()?;
        }
        let end = site.begin(&job)?;
        ensure!(
            matches!(end.exit, Some(1 | 2)) && !end.said.is_empty(),
            "{script}: {end:?}"
        );
        for node in site.nodes.nodes() {
            node.shell(&format!("umount {SHARED}")).ok()?;
        }
        site.end(&job)?.expect(0)?;
        site.ensure_clean()?;
    }
    site.begin(&job)?;
    site.end(&job)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_requeues_end() -> Result<()> {
    let lines = format!("fanout_command = {PDSH}\nrequeue_limit = 2\n");
    let site = Site::start_with(2, &lines)?;
    before_setup("[ $(hostname) != t2 ] || exit 5")?;
    let job = job("3.server", &["t1", "t2"]);
    let mut codes = Vec::new();
    for _ in 0..4 {
        codes.push(site.begin(&job)?.exit);
        site.end(&job)?.expect(0)?;
        site.ensure_clean()?;
        if codes.last() == Some(&Some(1)) {
            break;
        }
    }
    ensure!(codes == [Some(2), Some(2), Some(1)], "{codes:?}");
    let told = site.server.comment(&job.id)?.unwrap_or_default();
    ensure!(told.contains("t2: "), "{told}");
    Ok(())
}

#[test]
fn privileged_torque_users_mistakes_abort_the_job_and_are_told_in_its_comment() -> Result<()> {
    let site = Site::start(2)?;
    let new = || TorqueJob::new("3.server", Alice, &["t1", "t2"]);
    for (job, words) in [
        (new().variable("UDI", "nowhere:1"), "nowhere:1"),
        (new().variable("UDI", "tiny -v /etc:/etc2"), "/etc"),
        (
            new()
                .variable("UDI", "tiny")
                .variable("SHIFTER_MODULE", "no"),
            "module",
        ),
        (new().variable("UDI", "tiny -x"), "-x"),
    ] {
        let end = site.begin(&job)?.expect(1)?;
        let told = site.server.comment(&job.id)?.unwrap_or_default();
        ensure!(told.contains(words), "'{words}' in '{told}', {end:?}");
        ensure!(end.said.contains(words), "{end:?}");
        site.end(&job)?.expect(0)?;
        site.ensure_clean()?;
    }
    Ok(())
}

#[test]
fn privileged_torque_sites_mistakes_are_told_with_the_way_out() -> Result<()> {
    let site = Site::start(2)?;
    let two = job("3.server", &["t1", "t2"]);
    let mine = two.xml().replace("<euser>alice<", "<euser>bob<");
    let pdsh = format!("fanout_command = {PDSH}");
    for (configuration, answer, words) in [
        // A node beside this one, and nothing to reach it with, or to tell it with.
        (torque_lines("fanout = 'local'"), two.xml(), "torque.fanout"),
        (
            torque_lines(&pdsh).replace(&format!("path = '{SHARED}'"), ""),
            two.xml(),
            "shared_state.path",
        ),
        // Whose job it is says the mom; a server that says something else is asked for another's.
        (
            torque_lines(&pdsh),
            mine,
            "belongs to 'bob' and not to 'alice'",
        ),
    ] {
        site.product.configure(&configuration)?;
        site.server.answers(&two.id, &answer)?;
        let end = site
            .hook(Hook::Prologue, &two, Manner::default())?
            .expect(1)?;
        ensure!(end.said.contains(words), "{words}: {end:?}");
        site.end(&two)?.expect(0)?;
        site.ensure_clean()?;
    }
    // Where nobody can read what the resource is called, its usual name counts.
    site.product.configure("[torque]\ngres = 5\n")?;
    site.begin(&two)?.expect(0)?;
    let usual = two.gres(Some("shifter"));
    let end = site.begin(&usual)?.expect(1)?;
    ensure!(
        end.said.contains("shifter.toml:") && end.said.contains("gres"),
        "{end:?}"
    );
    site.end(&usual)?.expect(0)?;
    configure(site.product, "")?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_shared_directory_belongs_to_a_service_account() -> Result<()> {
    let site = Site::start(2)?;
    let lines = torque_lines(&format!("fanout_command = {PDSH}"));
    let owned = lines.replace("[torque]", "owner = 2900\n[torque]");
    site.product.configure(&owned)?;
    // Root's own is not the owner's.
    let two = job("3.server", &["t1", "t2"]);
    let end = site.begin(&two)?.expect(2)?;
    ensure!(end.said.contains(SHARED), "{end:?}");
    site.end(&two)?;
    Call::new(["chown", "2900:2900", SHARED]).ok()?;
    site.begin(&two)?.expect(0)?;
    site.ensure_ready(&two, true)?;
    let found = ["find", SHARED, "-mindepth", "1", "-printf", "%u %m %P\\n"];
    let found = Call::new(found).ok()?;
    let state = "3.server.1";
    for line in [
        "600 testbed/ID/passwd",
        "600 testbed/ID/group",
        "600 testbed/ID/manifest",
    ] {
        let line = format!("shifter {}", line.replace("ID", state));
        ensure!(found.lines().any(|found| found == line), "{line}: {found}");
    }
    ensure!(!found.contains("root "), "{found}");
    site.end(&two)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_server_that_is_slow_or_knows_nothing_requeues() -> Result<()> {
    let lines = format!("fanout_command = {PDSH}\ndeadline_secs = 6\nprologalarm_secs = 40\n");
    let site = Site::start_with(1, &lines)?;
    let job = job("3.server", &["t1"]);
    let end = site.hook(Hook::Prologue, &job, Manner::default())?;
    ensure!(
        matches!(end.exit, Some(1 | 2)) && end.said.contains("qstat"),
        "{end:?}"
    );
    site.end(&job)?.expect(0)?;
    site.server.is_slow(60)?;
    let began = Instant::now();
    let end = site.begin(&job)?;
    ensure!(
        end.exit == Some(2) && began.elapsed() < Duration::from_secs(16),
        "{end:?}"
    );
    Call::new(["rm", "/srv/torque/slow"]).ok()?;
    site.end(&job)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_node_whose_configuration_broke_is_cleaned_all_the_same() -> Result<()> {
    let site = Site::start(2)?;
    let job = job("3.server", &["t1", "t2"]);
    site.begin(&job)?.expect(0)?;
    site.ensure_ready(&job, true)?;
    let node = site.nodes.node("t2")?;
    let spoil = format!("echo sistem=1 >/run/broken && mount --bind /run/broken {CONFIG}");
    node.shell(&spoil).ok()?;
    let end = site.end(&job)?;
    let mend = format!("umount {CONFIG} && rm /run/broken");
    node.shell(&mend).ok()?;
    end.expect(0)?;
    site.ensure_ready(&job, false)?;
    site.ensure_clean()
}
