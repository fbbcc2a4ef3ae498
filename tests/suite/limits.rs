//! What Slurm does to jobs that run reaches into their containers: stopping them, limiting them.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::job::Job;
use shifter_tests::skip::skip;
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

/// Says whether the freezer of a job on n1 is `FROZEN` or `THAWED`, for each of its steps.
fn freezers(job: &Job) -> Result<Vec<String>> {
    let dir = format!("/sys/fs/cgroup/freezer/slurm_n1/uid_2001/job_{}", job.id());
    let mut states = Vec::new();
    for step in ["step_batch", "step_0", "step_extern"] {
        let state = fs::read_to_string(format!("{dir}/{step}/freezer.state"))?;
        states.push(state.trim().to_owned());
    }
    Ok(states)
}

/// Waits until all steps of a job are in a state.
fn wait_for_freezers(job: &Job, wanted: &str) -> Result<()> {
    wait_for(wanted, 30, || {
        let states = freezers(job)?;
        Ok(states.iter().all(|state| state == wanted).then_some(()))
    })
    .with_context(|| format!("{:?}", freezers(job)))
}

#[test]
fn cluster_suspended_jobs_stop_in_their_containers_and_go_on() -> Result<()> {
    let bench = Bench::start()?;
    // A container of the job's, a step's own, and a private one; each counts as long as it runs.
    let count = |file: &str| format!("sh -c 'while :; do echo x >>{file}; sleep 0.02; done'");
    let script = format!(
        "srun --overlap {} --autoshift {} & shifter {} & shifter --image={} {} & wait",
        bench.b.option(),
        count("step"),
        count("job"),
        bench.b.reference,
        count("private"),
    );
    let options = ["-wn1", &bench.a.option()];
    let job = bench.cluster.submit(Alice, &options, &script)?;
    let counted = || {
        ["step", "job", "private"].map(|file| {
            let file = Alice.scratch().join(file);
            fs::metadata(file).map_or(0, |meta| meta.len())
        })
    };
    let all_count_on = |what: &str| {
        let before = counted();
        wait_for(what, 30, || {
            let now = counted();
            let has_grown = before.iter().zip(now).all(|(before, now)| now > *before);
            Ok(has_grown.then_some(()))
        })
        .with_context(|| format!("{before:?} {:?} {:?}", counted(), job.output()))
    };
    let suspend = || -> Result<[u64; 3]> {
        Call::new(["scontrol", "suspend", job.id()]).ok()?;
        wait_for_freezers(&job, "FROZEN")?;
        Ok(counted())
    };
    all_count_on("containers that run")?;

    let stopped = suspend()?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(counted() == stopped, "{stopped:?} {:?}", counted());
    ensure!(job.info()?.state() == "SUSPENDED", "{:?}", job.info()?);
    Call::new(["scontrol", "resume", job.id()]).ok()?;
    wait_for_freezers(&job, "THAWED")?;
    all_count_on("containers that go on")?;

    // Whoever is stopped cannot end by itself, and is gone nevertheless.
    suspend()?;
    job.cancel()?;
    ensure!(job.wait()?.state() == "CANCELLED", "{:?}", job.info()?);
    bench.ensure_clean()
}

#[test]
fn cluster_signals_reach_tasks_in_containers() -> Result<()> {
    let bench = Bench::start()?;
    let task = |name: &str| {
        format!(
            "sh -c 'trap \"echo {name} ends; exit 0\" USR1; echo {name} up; while :; do sleep 0.05; done'"
        )
    };
    let script = format!(
        "srun --overlap shifter {} & srun --overlap --autoshift {} & wait",
        task("one"),
        task("two")
    );
    let options = ["-wn1", &bench.a.option()];
    let job = bench.cluster.submit(Alice, &options, &script)?;
    for text in ["one up", "two up"] {
        job.wait_for_output(text)?;
    }
    Call::new(["scancel", "--signal=USR1", job.id()]).ok()?;
    job.wait()?.expect("COMPLETED", "0:0")?;
    let output = job.output()?;
    ensure!(
        output.contains("one ends") && output.contains("two ends"),
        "{output}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_memory_limits_hold_in_containers() -> Result<()> {
    if !fs::exists("/sys/fs/cgroup/memory/cgroup.procs")? {
        let test = "cluster_memory_limits_hold_in_containers";
        return skip(test, "this machine has the memory's cgroups in v2");
    }
    let bench = Bench::start_with(|_, options| {
        options.slurm_conf =
            "TaskPlugin=task/cgroup\nSelectTypeParameters=CR_CPU_Memory".to_owned();
        options.cgroup_conf = "ConstrainRAMSpace=yes\nConstrainSwapSpace=yes".to_owned();
        Ok(())
    })?;
    let eat = |mib: u32| format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null");
    let b = &bench.b.reference;
    let script = format!(
        "for start in 'srun shifter' 'srun --autoshift' 'srun --image={b} --autoshift' \
             shifter 'shifter --image={b}'; do
             $start sh -c '{0}; echo $?; {1}; echo $?; cat /proc/self/cgroup' 2>&1 |
                 grep -E '^[0-9]+$|:memory:|oom-kill'
         done",
        eat(16),
        eat(300),
    );
    let options = ["-wn1", "--mem=100M", &bench.a.option()];
    let (job, info) = bench.cluster.run(Alice, &options, &script)?;
    let output = job.output()?;
    // What was killed inside makes the whole job one that ran out of memory.
    ensure!(info.state() == "OUT_OF_MEMORY", "{info:?} {output}");
    ensure!(output.matches("\n137\n").count() == 5, "{output}");
    ensure!(output.matches("0\n137\n").count() == 5, "{output}");
    let cgroup = format!("/job_{}/", job.id());
    let cgroups = output.lines().filter(|line| line.contains(":memory:"));
    let cgroups: Vec<&str> = cgroups.collect();
    ensure!(
        cgroups.len() == 5 && cgroups.iter().all(|line| line.contains(&cgroup)),
        "{output}"
    );
    bench.ensure_clean()
}
