//! Jobs whose epilog never comes: slurmd dies after it was told of their end.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::job::Job;
use shifter_tests::product::Product;
use shifter_tests::shared;
use shifter_tests::world::User::{Alice, Bob};

use crate::bench::Bench;
use crate::sharing::sleeper;

/// While it is there, a teardown on n1 does nothing, and says here who it is.
const STALL: &str = "/var/lib/shifter/stall";
const STALLED: &str = "/var/lib/shifter/stalled";

/// While it is there, a set-up on n1 lasts until it is gone.
const SLOW: &str = "/var/lib/shifter/slow";

/// Puts a script in a program's place, in which `$real` is the program.
fn replace(product: &Product, program: &str, script: &str) -> Result<()> {
    let path = product.path(program);
    let real = format!("{path}.real");
    fs::rename(&path, &real)?;
    fs::write(&path, format!("#!/bin/sh\nreal={real}\n{script}\n"))?;
    Ok(fs::set_permissions(
        &path,
        fs::Permissions::from_mode(0o755),
    )?)
}

fn start() -> Result<Bench> {
    Bench::start_with(|product, _| {
        for file in [STALL, STALLED, SLOW] {
            let _ = fs::remove_file(file);
        }
        shared::share(product, "")?;
        let unset = format!(
            "if [ -e {STALL} ] && [ $(hostname) = n1 ]; then \
             echo $PPID $$ >{STALLED}.new; mv {STALLED}.new {STALLED}; exec sleep 300; fi\n\
             exec $real \"$@\""
        );
        replace(product, "sbin/unsetupRoot", &unset)?;
        let set_up = format!(
            "$real \"$@\"; status=$?\n\
             while [ -e {SLOW} ] && [ $(hostname) = n1 ]; do sleep 0.1; done\nexit $status"
        );
        replace(product, "sbin/setupRoot", &set_up)
    })
}

/// True if the job has a root on n1.
fn has_root(bench: &Bench, job: &Job) -> Result<bool> {
    let dir = format!("/run/shifter/jobs/{}/roots/job", job.id());
    Ok(Path::new(&bench.cluster.node("n1")?.path(&dir)).exists())
}

/// Ends a job, and kills slurmd of n1 before the job's epilog has done anything.
fn lose(bench: &mut Bench, job: &Job) -> Result<()> {
    fs::write(STALL, "")?;
    job.cancel()?;
    let stalled = wait_for("the epilog", 30, || Ok(fs::read_to_string(STALLED).ok()))?;
    bench.cluster.node_mut("n1")?.kill_slurmd()?;
    // The epilog's own process first: it would end with what it waits for.
    let pids = stalled.split_whitespace();
    Call::new(["kill", "-KILL"]).args(pids).output()?;
    fs::remove_file(STALL)?;
    fs::remove_file(STALLED)?;
    ensure!(has_root(bench, job)?, "the job has been torn down");
    Ok(())
}

/// Has n1 tell Slurm what runs there.
fn settle(bench: &Bench) -> Result<()> {
    let port = bench.cluster.node("n1")?.port();
    wait_for("slurmd to listen", 30, || {
        Ok(TcpStream::connect(("127.0.0.1", port)).ok())
    })?;
    Call::new(["scontrol", "reconfigure"]).ok().map(drop)
}

#[test]
fn cluster_jobs_without_an_epilog_leave_nothing() -> Result<()> {
    let mut bench = start()?;
    let image = bench.a.option();
    let script = "srun -n1 -wn1 shifter sh -c 'echo up; exec sleep 300'";
    let submit = |bench: &Bench| -> Result<Job> {
        let options = ["-N2", "--ntasks-per-node=1", &image];
        let job = bench.cluster.submit(Alice, &options, script)?;
        job.wait_for_output("up")?;
        Ok(job)
    };

    // Slurm counts a job as over of which a slurmd that starts knows nothing. What keeps ours from
    // looking after it does not keep slurmd from starting.
    let job = submit(&bench)?;
    ensure!(!shared::left()?.is_empty());
    lose(&mut bench, &job)?;
    let unset = bench.product.path("sbin/unsetupRoot");
    let hidden = format!("{unset}.hidden");
    fs::rename(&unset, &hidden)?;
    bench.cluster.node_mut("n1")?.restart_slurmd()?;
    settle(&bench)?;
    bench.cluster.wait_until_idle()?;
    // Another job's prolog does it, and a job that is in its own meanwhile is nobody's business.
    fs::write(SLOW, "")?;
    let options = ["-wn1", &bench.b.option()];
    let starting = bench
        .cluster
        .submit(Bob, &options, "shifter cat /etc/marker")?;
    wait_for("a root", 30, || {
        Ok(has_root(&bench, &starting)?.then_some(()))
    })?;
    fs::rename(&hidden, &unset)?;
    ensure!(has_root(&bench, &job)?);
    let plain = bench.cluster.srun(Alice, ["-wn1", "true"]);
    plain.output()?.success()?;
    ensure!(!has_root(&bench, &job)? && has_root(&bench, &starting)?);
    let log = bench.cluster.node("n1")?.log();
    let told = format!("job {} was over without an epilog", job.id());
    ensure!(log.contains(&told), "{log}");
    fs::remove_file(SLOW)?;
    starting.wait()?.expect("COMPLETED", "0:0")?;
    ensure!(starting.output()? == "b\n", "{}", starting.output()?);
    job.wait()?;
    ensure!(shared::left()?.is_empty(), "{:?}", shared::left()?);

    // The next slurmd does it when it starts, and leaves a job alone that runs.
    let running = sleeper(&bench, Bob, &bench.b)?;
    let job = submit(&bench)?;
    lose(&mut bench, &job)?;
    bench.cluster.node_mut("n1")?.restart_slurmd()?;
    wait_for("the root to be gone", 30, || {
        Ok((!has_root(&bench, &job)?).then_some(()))
    })?;
    let overlap = ["srun", "--overlap", "--jobid", running.id()];
    let seen = Call::new(overlap)
        .args(["shifter", "cat", "/etc/marker"])
        .by(Bob);
    ensure!(seen.ok()? == "b\n");
    running.cancel()?;
    running.wait()?;
    // With others on the node Slurm asks again, but only after minutes; or when the node registers.
    settle(&bench)?;
    job.wait()?;
    ensure!(shared::left()?.is_empty(), "{:?}", shared::left()?);
    bench.ensure_clean()
}

#[test]
fn cluster_who_writes_in_anothers_place_removes_it() -> Result<()> {
    let bench = start()?;
    // The first node keeps what it knows to itself, and its epilog is over before the second has
    // waited long enough.
    let script = "case $(hostname):$* in n1:*--rank*) exit 1;; esac\nexec $real \"$@\"";
    replace(&bench.product, "lib/shifter/shifter-identity", script)?;
    let options = ["-N2", &bench.a.option()];
    let job = bench.cluster.submit(Alice, &options, "true")?;
    let node = bench.cluster.node("n1")?;
    wait_for("the first node", 30, || {
        let is_ready = node.log().contains(&format!("job {} ready", job.id()));
        Ok(is_ready.then_some(()))
    })?;
    job.cancel()?;
    job.wait()?;
    ensure!(shared::left()?.is_empty(), "{:?}", shared::left()?);
    bench.ensure_clean()
}
