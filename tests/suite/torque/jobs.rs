//! Jobs from the prologue to a clean node.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::mom::{Hook, Manner, Verdict};
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::{Alice, Bob};

use super::{PDSH, SHARED, STATE, Site, configure};

#[test]
fn privileged_torque_job_has_its_container_on_every_node_by_every_tool() -> Result<()> {
    let site = Site::start(3)?;
    let clush = "['/usr/bin/clush', '-S', '-f', '{width}', '--hostfile={nodefile}', '{command}']";
    let tools = [
        format!("fanout_command = {PDSH}"),
        "fanout = 'pdsh'".into(),
        "fanout = 'clush'".into(),
        "fanout = 'ssh'".into(),
        format!("fanout_command = {clush}\nfanout_report = 'files'"),
    ];
    for (number, tool) in tools.iter().enumerate() {
        configure(site.product, tool)?;
        let id = format!("{}.server", number + 3);
        let job = TorqueJob::new(&id, Alice, &["t1", "t2", "t3"])
            .variable("UDI", "tiny:latest -v /scratch/alice:/data");
        let began = site.begin(&job)?.expect(0)?;
        ensure!(
            began.verdict() == Verdict::Starts && began.said.is_empty(),
            "{tool}: {began:?}"
        );
        site.ensure_ready(&job, true)?;
        for (node, _) in &job.nodes {
            let seen = site.look(
                node,
                &job,
                "cat /etc/marker /var/hostsfile; stat -c %U /data; \
                                              grep -c alice /etc/passwd",
            )?;
            ensure!(
                seen == "tiny\nt1\nt1\nt2\nt2\nt3\nt3\nalice\n1\n",
                "{tool}: {node}: {seen}"
            );
        }
        site.end(&job)?.expect(0)?;
        site.ensure_clean()?;
    }
    Ok(())
}

#[test]
fn privileged_torque_job_is_ours_by_its_gres_alone() -> Result<()> {
    let site = Site::start(1)?;
    let job = TorqueJob::new("3.server", Alice, &["t1"]).variable("UDI", "tiny");
    for gres in [
        None,
        Some("shifter160"),
        Some("ashifter16:1"),
        Some("matlab:2%shifter"),
    ] {
        let other = job.clone().gres(gres);
        site.begin(&other)?.expect(0)?;
        site.ensure_ready(&other, false)?;
        site.end(&other)?.expect(0)?;
    }
    ensure!(
        site.server.calls("qstat") == 0,
        "for jobs of others the server is not asked"
    );
    for gres in [
        "shifter16",
        "shifter16:1%matlab+foo:2",
        "matlab%shifter16:3",
        "foo+shifter16",
    ] {
        let ours = job.clone().gres(Some(gres));
        site.begin(&ours)?.expect(0)?;
        site.ensure_ready(&ours, true)?;
        site.end(&ours)?.expect(0)?;
        site.ensure_clean()?;
    }
    Ok(())
}

#[test]
fn privileged_torque_job_of_one_node_needs_neither_tool_nor_shared_directory() -> Result<()> {
    let site = Site::start_with(1, "fanout_command = ['/bin/false', '{nodes}', '{command}']")?;
    fs::remove_dir(SHARED)?;
    for id in ["3.server", "1[2].server", "4711[0].server.example.org"] {
        let job = TorqueJob::new(id, Alice, &["t1"]).variable("UDI", "tiny");
        site.begin(&job)?.expect(0)?;
        ensure!(site.look("t1", &job, "cat /etc/marker")? == "tiny\n");
        site.end(&job)?.expect(0)?;
        site.ensure_clean()?;
    }
    Ok(())
}

#[test]
fn privileged_torque_variables_are_read_as_the_server_escapes_them() -> Result<()> {
    let site = Site::start(1)?;
    // The last one counts; what looks like an attribute in another one's value is none.
    let job = TorqueJob::new("3.server", Alice, &["t1"])
        .variable("UDI", "nonsense:1")
        .variable("A", "x\n    Resource_List.gres = other\\,UDI=nonsense:2")
        .variable(
            "B",
            "</Variable_List><gres>x</gres><Variable_List>UDI=nonsense:3,",
        )
        .variable("UDI", "tiny:latest")
        .variable("C", "a,UDI=nonsense:4");
    site.begin(&job)?.expect(0)?;
    site.ensure_ready(&job, true)?;
    // What the user says later is too late.
    site.server
        .knows(&job.clone().variable("UDI", "nonsense:5"))?;
    site.end(&job)?.expect(0)?;
    site.ensure_clean()?;

    // Root is no operator of the server, and sees no variables.
    let mut hidden = TorqueJob::new("4.server", Alice, &["t1"]);
    hidden.variables = None;
    let end = site.begin(&hidden)?.expect(1)?;
    let told = site.server.comment(&hidden.id)?.unwrap_or_default() + &end.said;
    ensure!(
        told.contains("qmgr -c 'set server operators += root@t1'"),
        "{told}"
    );
    site.end(&hidden)?.expect(0)?;

    // Without an image the job has services alone, and no container.
    let plain = TorqueJob::new("5.server", Alice, &["t1"]);
    site.begin(&plain)?.expect(0)?;
    site.ensure_ready(&plain, false)?;
    site.end(&plain)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_jobs_share_a_node_and_leave_each_other_alone() -> Result<()> {
    let site = Site::start(2)?;
    let first = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    let second = TorqueJob::new("4.server", Bob, &["t2", "t1"]).variable("UDI", "tiny");
    site.server.knows(&first)?;
    site.server.knows(&second)?;
    let run = |job| site.hook(Hook::Prologue, job, Manner::default());
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| run(&first));
        let two = run(&second);
        (one.join(), two)
    });
    one.map_err(|_| anyhow::anyhow!("panic"))??.expect(0)?;
    two?.expect(0)?;
    site.ensure_ready(&first, true)?;
    site.ensure_ready(&second, true)?;
    site.end(&first)?.expect(0)?;
    site.ensure_ready(&first, false)?;
    for node in ["t1", "t2"] {
        let accounts = site.look(node, &second, "cat /etc/passwd")?;
        ensure!(
            accounts.contains("bob") && !accounts.contains("alice"),
            "{accounts}"
        );
    }
    site.end(&second)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_job_is_requeued_and_its_id_used_again() -> Result<()> {
    let site = Site::start(2)?;
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    // An epilogue without a prologue; twice.
    site.end(&job)?.expect(0)?;
    site.end(&job)?.expect(0)?;
    // A prologue whose job was requeued without its epilogue, and the same on other nodes.
    site.begin(&job)?.expect(0)?;
    site.begin(&job)?.expect(0)?;
    site.ensure_ready(&job, true)?;
    site.end(&job)?.expect(0)?;
    let turned = TorqueJob::new("3.server", Alice, &["t2", "t1"]).variable("UDI", "tiny");
    site.begin(&turned)?.expect(0)?;
    site.end(&turned)?.expect(0)?;
    site.ensure_clean()?;
    // The server begins to count anew: the id is another user's now, the first epilogue never ran.
    site.begin(&job)?.expect(0)?;
    let other = TorqueJob::new("3.server", Bob, &["t1", "t2"]).variable("UDI", "tiny");
    site.begin(&other)?.expect(0)?;
    for node in ["t1", "t2"] {
        let accounts = site.look(node, &other, "cat /etc/passwd")?;
        ensure!(
            accounts.contains("bob") && !accounts.contains("alice"),
            "{accounts}"
        );
    }
    site.end(&other)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_interactive_job_reads_its_reasons_on_the_terminal() -> Result<()> {
    let site = Site::start(1)?;
    let job = TorqueJob::new("3.server", Alice, &["t1"]).variable("UDI", "nowhere:1");
    site.server.knows(&job)?;
    let manner = Manner {
        is_interactive: true,
        ..Manner::default()
    };
    let end = site.hook(Hook::Prologue, &job, manner)?;
    ensure!(end.verdict() == Verdict::Aborted, "{end:?}");
    ensure!(end.said.contains("nowhere:1"), "{end:?}");
    let told = site.server.comment(&job.id)?.unwrap_or_default();
    ensure!(
        told.contains("nowhere:1") && !told.contains(['\n', '=', '"']),
        "{told}"
    );
    site.end(&job)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_processes_left_on_any_node_end_with_the_job() -> Result<()> {
    let site = Site::start(2)?;
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    site.begin(&job)?.expect(0)?;
    let deaf = "/bin/sh -c \"trap '' TERM; while :; do sleep 1; done\"";
    let mut strays = Vec::new();
    for node in ["t1", "t2"] {
        strays.push((node, site.leave(node, &site.within(&job, deaf))?));
    }
    // Processes of the same name and user outside of any container, and of another user.
    let other = "setpriv --reuid 2002 --regid 2002 --clear-groups setsid sleep 303 >/dev/null 2>&1 & \
                 setpriv --reuid 2001 --regid 2001 --clear-groups setsid sleep 304 >/dev/null 2>&1 & \
                 echo";
    site.nodes.node("t2")?.shell(other).ok()?;
    site.end(&job)?.expect(0)?;
    for (node, dir) in strays {
        let path = site.nodes.node(node)?.path(&dir);
        ensure!(!fs::exists(&path)?, "{node}: {dir}");
    }
    let left = site.nodes.node("t2")?.shell("pgrep -xa sleep").ok()?;
    ensure!(left.contains(" 303") && left.contains(" 304"), "{left}");
    site.nodes.node("t2")?.shell("pkill -x sleep; true").ok()?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_jobs_of_a_launch_node_that_died_are_removed_at_its_boot() -> Result<()> {
    let site = Site::start(2)?;
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    site.begin(&job)?.expect(0)?;
    let clean = || {
        let node = site.nodes.node("t1")?;
        node.call(["/opt/shifter/sbin/shifter-node-clean"]).ok()
    };
    clean()?;
    site.ensure_ready(&job, true)?;
    // What a reboot leaves of the job on this node, and on the others.
    let record = site
        .nodes
        .node("t1")?
        .path(&format!("{STATE}/jobs/{}/record", job.id));
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let text = fs::read_to_string(&record)?;
    let earlier = text.replace(boot.trim(), "11111111-2222-3333-4444-555555555555");
    ensure!(earlier != text, "{text}");
    fs::write(&record, earlier)?;
    clean()?;
    site.ensure_ready(&job, false)?;
    site.ensure_clean()
}
