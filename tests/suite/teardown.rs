//! The end of jobs, expected and not: nothing stays on a node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use shifter_tests::call::wait_for;
use shifter_tests::product::Product;
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

/// Makes a program of the product take its time, before or after it does its work.
fn delay(product: &Product, program: &str, before: u32, after: u32) -> Result<()> {
    let path = product.path(program);
    let real = format!("{path}.real");
    fs::rename(&path, &real)?;
    let wrapper = format!(
        "#!/bin/sh\nsleep {before}\n{real} \"$@\"\nstatus=$?\nsleep {after}\nexit $status\n"
    );
    fs::write(&path, wrapper)?;
    Ok(fs::set_permissions(
        &path,
        fs::Permissions::from_mode(0o700),
    )?)
}

#[test]
fn cluster_job_cancelled_while_it_runs() -> Result<()> {
    let bench = Bench::start()?;
    let script = "srun shifter sh -c 'echo up; trap \"\" TERM; sleep 300; sleep 300'";
    let options = ["-N2", "--ntasks-per-node=1", &bench.a.option()];
    let job = bench.cluster.submit(Alice, &options, script)?;
    wait_for("both tasks", 20, || {
        Ok((job.output()?.matches("up").count() == 2).then_some(()))
    })?;
    let during = Snapshot::take(Some(&bench.cluster))?;
    ensure!(bench.clean.left(&during, "loop") >= 1 && bench.clean.left(&during, "process") > 2);
    job.cancel()?;
    job.wait()?.expect("CANCELLED", "0:15")?;
    bench.ensure_clean()
}

#[test]
fn cluster_job_cancelled_during_the_prolog() -> Result<()> {
    for (before, after) in [(3, 0), (0, 3)] {
        let bench =
            Bench::start_with(|product, _| delay(product, "sbin/setupRoot", before, after))?;
        let job = bench
            .cluster
            .submit(Alice, &["-N2", &bench.a.option()], "echo ran")?;
        sleep(Duration::from_millis(1500));
        job.cancel()?;
        let info = job.wait()?;
        ensure!(info.state() == "CANCELLED", "{info:?}");
        ensure!(job.output()?.is_empty(), "{}", job.output()?);
        // The set-up that was under way must not leave a root after the teardown.
        sleep(Duration::from_secs(4));
        bench.ensure_clean()?;
    }
    Ok(())
}

#[test]
fn cluster_slurmd_restarted_during_the_job() -> Result<()> {
    let mut bench = Bench::start()?;
    let script =
        "srun shifter sh -c 'echo up; sleep 4; cat /etc/marker'; srun shifter cat /etc/marker";
    let job = bench
        .cluster
        .submit(Alice, &["-w", "n1", &bench.a.option()], script)?;
    job.wait_for_output("up")?;
    bench.cluster.node_mut("n1")?.restart_slurmd()?;
    job.wait()?.expect("COMPLETED", "0:0")?;
    ensure!(job.output()? == "up\na\na\n", "{}", job.output()?);
    bench.ensure_clean()
}

#[test]
fn cluster_teardown_twice_and_without_setup() -> Result<()> {
    let bench = Bench::start()?;
    let output = bench.srun(
        Alice,
        &bench.a,
        &["-w", "n1", "bash", "-c", "echo $SLURM_JOB_ID; shifter true"],
    )?;
    let job = output.success()?.stdout.trim().to_owned();
    bench.ensure_clean()?;
    let node = bench.cluster.node("n1")?;
    let unset = bench.product.path("sbin/unsetupRoot");
    for id in [job.as_str(), job.as_str(), "4711", "1_2", "1[2].server"] {
        let output = node.call([&unset, id]).output()?;
        ensure!(output.code == 0 && output.stderr.is_empty(), "{output}");
    }
    for id in ["", "..", "../../etc", "a/b"] {
        let output = node.call([&unset, id]).output()?;
        ensure!(output.code == 2 && output.stdout.is_empty(), "{output}");
    }
    bench.ensure_clean()
}

#[test]
fn cluster_teardown_under_a_running_job_and_again_by_the_epilog() -> Result<()> {
    let bench = Bench::start()?;
    let script = "srun shifter sh -c 'echo up; sleep 300'; true";
    let job = bench
        .cluster
        .submit(Alice, &["-w", "n1", &bench.a.option()], script)?;
    job.wait_for_output("up")?;
    let node = bench.cluster.node("n1")?;
    node.call([&bench.product.path("sbin/unsetupRoot"), job.id()])
        .ok()?;
    job.wait()?;
    bench.ensure_clean()
}

#[test]
fn cluster_processes_that_leave_their_session_end_with_the_job() -> Result<()> {
    let bench = Bench::start()?;
    let script = "shifter sh -c 'setsid sh -c \"trap : TERM; sleep 301 & sleep 302\" >/dev/null 2>&1 &'; sleep 1";
    let (_, info) = bench.cluster.run(Alice, &[&bench.a.option()], script)?;
    info.expect("COMPLETED", "0:0")?;
    bench.ensure_clean()
}
