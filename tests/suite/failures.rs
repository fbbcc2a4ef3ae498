//! What is the site's fault: nodes that cannot serve, and configurations that are broken.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::product::{CONFIG, STORE};
use shifter_tests::syslog::Syslog;
use shifter_tests::world::User::Alice;

use crate::bench::Bench;
use crate::seen::line_of;

/// Fails unless jobs of every kind that ask for no image run as if there were no plugin.
fn ensure_plain_jobs_run(bench: &Bench) -> Result<()> {
    let output = bench.cluster.srun(Alice, ["-N2", "hostname"]).output()?;
    ensure!(output.code == 0 && output.stderr.is_empty(), "{output}");
    let (job, info) = bench.cluster.run(Alice, &["-N2"], "srun hostname | sort")?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(job.output()? == "n1\nn2\n", "{}", job.output()?);
    bench.cluster.ensure_in_service()
}

#[test]
fn cluster_broken_configuration_spares_jobs_without_image() -> Result<()> {
    let bench = Bench::start()?;
    let good = fs::read_to_string(CONFIG)?;
    let breakages = [
        ("missing", "rm CONFIG"),
        ("unknown key", "echo 'nonsense = 1' >>CONFIG"),
        ("not TOML", "echo '[' >CONFIG"),
        ("empty directory in its place", "rm CONFIG; mkdir CONFIG"),
        ("somebody else's", "chown alice CONFIG"),
        ("writable by all", "chmod 0666 CONFIG"),
        ("a FIFO", "rm CONFIG; mkfifo CONFIG"),
    ];
    for (what, breakage) in breakages {
        Call::shell(&breakage.replace("CONFIG", CONFIG)).ok()?;
        // /etc is the same on the login host and the nodes, so both have it broken.
        ensure_plain_jobs_run(&bench)?;
        let output = bench.srun(Alice, &bench.a, &["shifter", "true"])?;
        ensure!(
            output.code != 0 && output.stderr.contains(CONFIG),
            "{what}: {output}"
        );
        bench.cluster.ensure_in_service()?;
        Call::shell(&format!("rm -rf {CONFIG}")).ok()?;
        bench.product.configure_with(&good)?;
    }
    Call::new(["salloc", "-N1", "true"]).by(Alice).ok()?;
    bench.ensure_clean()
}

#[test]
fn cluster_broken_configuration_on_the_node_alone() -> Result<()> {
    let bench = Bench::start()?;
    let node = bench.cluster.node("n1")?;
    node.shell(&format!(
        "echo 'nonsense = 1' >/tmp/broken; mount --bind /tmp/broken {CONFIG}"
    ))
    .ok()?;
    ensure_plain_jobs_run(&bench)?;
    let output = bench.srun(
        Alice,
        &bench.a,
        &["-w", "n2", "shifter", "cat", "/etc/marker"],
    )?;
    ensure!(output.success()?.stdout == "a\n");
    // It is the node's failure, so the node goes out of service and says why.
    let output = bench.srun(Alice, &bench.a, &["-w", "n1", "shifter", "echo", "ran"])?;
    ensure!(
        output.code != 0 && !output.stdout.contains("ran"),
        "{output}"
    );
    ensure_drained(&bench, "n1")
}

#[test]
fn cluster_configuration_lost_while_a_job_runs() -> Result<()> {
    let bench = Bench::start()?;
    let script = "srun shifter sh -c 'echo up; sleep 2'";
    let job = bench.cluster.submit(Alice, &[&bench.a.option()], script)?;
    job.wait_for_output("up")?;
    fs::remove_file(CONFIG)?;
    job.wait()?.expect("COMPLETED", "0:0")?;
    bench.ensure_clean()
}

/// Fails unless the node was taken out of service and its log says what of Shifter failed.
fn ensure_drained(bench: &Bench, name: &str) -> Result<()> {
    let drained = || {
        let states = bench.cluster.states()?;
        Ok(states
            .into_iter()
            .find(|s| s.starts_with(&format!("{name} drain"))))
    };
    let state = wait_for(&format!("{name} to be drained"), 20, drained)?;
    let log = bench.cluster.node(name)?.log();
    ensure!(log.contains("shifter: cannot"), "{state}\n{log}");
    Ok(())
}

#[test]
fn cluster_node_without_its_store_is_drained() -> Result<()> {
    let bench = Bench::start()?;
    let node = bench.cluster.node("n1")?;
    node.call(["umount", "/var/lib/shifter"]).ok()?;
    let job = bench
        .cluster
        .submit(Alice, &["-w", "n1", &bench.a.option()], "echo ran")?;
    ensure_drained(&bench, "n1")?;
    ensure!(!job.output()?.contains("ran"), "{}", job.output()?);
    job.cancel()?;
    // The other node still serves, and this one does again once it is repaired.
    let output = bench.srun(Alice, &bench.a, &["shifter", "cat", "/etc/marker"])?;
    ensure!(output.success()?.stdout == "a\n");
    Ok(())
}

#[test]
fn cluster_s55_a_store_that_hangs_ends_the_prolog_at_its_deadline() -> Result<()> {
    let bench =
        Bench::start_with(|product, _| product.configure("[slurm]\nsetup_timeout_secs = 3"))?;
    let node = bench.cluster.node("n1")?;
    let log = Syslog::start(|script| node.shell(script), "/var/log/slurm/syslog.n1.out")?;
    let mount = format!("cp -a {STORE} /tmp/low && bindfs -o nonempty /tmp/low {STORE}");
    node.shell(&mount).ok()?;
    node.shell("pkill -STOP -x bindfs").ok()?;
    let options = ["-w", "n1", &bench.a.option(), "--no-requeue"];
    let job = bench.cluster.submit(Alice, &options, "echo ran")?;
    let drained = ensure_drained(&bench, "n1");
    node.shell(&format!("pkill -CONT -x bindfs; umount {STORE}"))
        .ok()?;
    drained?;
    ensure!(job.output()?.is_empty(), "{}", job.output()?);
    let reason = "the set-up did not finish within 3 s: it was still busy with the image";
    ensure!(node.log().contains(reason), "{}", node.log());
    // What the set-up could not say itself any more.
    let line = line_of(&log, "setup", job.id())?;
    ensure!(
        line.starts_with("<27>setupRoot[")
            && line.contains(&format!(" request={} lock_ms=", bench.a.reference))
            && line.ends_with(&format!(" outcome=failure error=\"{reason}\"")),
        "{line}"
    );
    job.cancel()?;
    wait_for("the end of what hung", 10, || {
        Ok((Call::new(["pgrep", "-x", "setupRoot"]).output()?.code != 0).then_some(()))
    })
}

#[test]
fn cluster_a_volume_that_hangs_ends_the_job_and_not_the_node() -> Result<()> {
    let bench =
        Bench::start_with(|product, _| product.configure("[slurm]\nsetup_timeout_secs = 3"))?;
    let node = bench.cluster.node("n1")?;
    let mount = "mkdir -p /tmp/low /scratch/hung && bindfs /tmp/low /scratch/hung";
    node.shell(mount).ok()?;
    node.shell("pkill -STOP -x bindfs").ok()?;
    let options = ["-w", "n1", &bench.a.option(), "--volume=/scratch/hung:/mnt"];
    let outcome = bench.cluster.run(Alice, &options, "shifter echo ran");
    node.shell("pkill -CONT -x bindfs; umount /scratch/hung; rmdir /scratch/hung")
        .ok()?;
    let (job, info) = outcome?;
    ensure!(info.state() == "FAILED", "{info:?}");
    let said = job.output()?;
    ensure!(
        said.contains("no answer from the source of a volume: '/scratch/hung'")
            && !said.contains("ran"),
        "{said}"
    );
    bench.cluster.ensure_in_service()?;
    bench.ensure_clean()
}
