//! The plugin broken on purpose, by a build that does what SHIFTER_FAULT says: whatever happens in
//! it, slurmd, slurmstepd and srun live on.

use std::fs;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::world::{self, User::Alice};

use crate::bench::Bench;

/// Every callback in every process that calls it.
const PLACES: [&str; 10] = [
    "Local:Init",
    "Local:InitPostOpt",
    "Allocator:Init",
    "Allocator:InitPostOpt",
    "Remote:Init",
    "Remote:InitPostOpt",
    "Remote:TaskInitPrivileged",
    "Remote:TaskInit",
    "Remote:Exit",
    "JobScript:JobProlog",
];

fn start() -> Result<Bench> {
    Bench::start_with(|product, _| {
        let built = world::target().join("fault-injection/debug/libshifter_slurm.so");
        let plugin = product.path("lib/shifter/shifter_slurm.so");
        fs::copy(&built, plugin).with_context(|| format!("{}", built.display()))?;
        Ok(())
    })
}

#[test]
fn cluster_faults_in_the_plugin_stay_in_the_plugin() -> Result<()> {
    let mut bench = start()?;
    let image = bench.a.option();
    for place in PLACES {
        for kind in ["panic", "fail"] {
            let fault = format!("{place}={kind}");
            // Slurm takes a node out of service whose prolog fails, and one on which a step's
            // callback says that it failed: the latter is what the plugin never does by itself.
            let may_drain =
                place.contains("Prolog") || (place.starts_with("Remote") && kind == "fail");
            for options in [&[][..], &[image.as_str()]] {
                let options = [&["-wn1"], options].concat();
                strike(&bench, &fault, &options, may_drain)?;
                bench.cluster.node_mut("n1")?.ensure_slurmd_lives()?;
                resume(&bench, may_drain)?;
            }
        }
    }
    // After all that the next job is served as ever, and nothing is left of those before it.
    let output = bench.srun(Alice, &bench.a, &["-wn1", "shifter", "cat", "/etc/marker"])?;
    ensure!(output.success()?.stdout == "a\n");
    bench.ensure_clean()
}

/// Submits a job in every way while the plugin is broken: nothing may die of it or hang.
fn strike(bench: &Bench, fault: &str, options: &[&str], may_drain: bool) -> Result<()> {
    let call = |program: &str| {
        let call = Call::new([program]).args(options.iter().copied()).by(Alice);
        call.env("SHIFTER_FAULT", fault).timeout(30)
    };
    let panics = || -> Result<usize> {
        Ok(bench
            .cluster
            .node("n1")?
            .log()
            .matches("internal error")
            .count())
    };
    let before = panics()?;
    let mut outputs = vec![call("srun").arg("true").output()?];
    // An salloc takes 3 s: where its own callbacks are not meant, srun has done.
    if fault.starts_with("Allocator") {
        outputs.push(call("salloc").arg("true").output()?);
    }
    resume(bench, may_drain)?;
    let batch = call("sbatch")
        .args(["--parsable", "--no-requeue", "--wrap", "true"])
        .output()?;
    if batch.code == 0 {
        let id = batch.stdout.trim();
        let done = || {
            let job = ["scontrol", "show", "job", "-o", id];
            let info = Call::new(job).ok()?;
            let waits = info.contains("=RUNNING ") || info.contains("=PENDING ");
            Ok((!waits || info.contains("launch_failed")).then_some(()))
        };
        let why = || {
            Call::new(["scontrol", "show", "job", "-o", id])
                .ok()
                .unwrap_or_default()
        };
        wait_for(&format!("the job with {fault}"), 30, done).with_context(why)?;
        Call::new(["scancel", id]).output()?;
    }
    outputs.push(batch);
    let told = outputs
        .iter()
        .any(|output| output.stderr.contains("internal error"));
    let struck = told || panics()? > before;
    ensure!(fault.ends_with("fail") || struck, "{fault} did not happen");
    for output in outputs {
        ensure!(
            !output.died() && output.stdout.len() < 64,
            "{fault}: {output}"
        );
    }
    Ok(())
}

/// Waits until n1 serves again; an administrator may have to put it back.
fn resume(bench: &Bench, may_drain: bool) -> Result<()> {
    if may_drain {
        // Refused where the node is in service.
        Call::new(["scontrol", "update", "NodeName=n1", "State=RESUME"]).output()?;
    }
    bench.cluster.wait_until_idle()
}

#[test]
fn cluster_faults_when_slurmd_starts() -> Result<()> {
    let mut bench = start()?;
    let node = bench.cluster.node_mut("n1")?;
    node.restart_slurmd_with(&[("SHIFTER_FAULT", "Slurmd:Init=panic")])?;
    bench.cluster.wait_until_idle()?;
    let output = bench.srun(Alice, &bench.a, &["-wn1", "shifter", "cat", "/etc/marker"])?;
    ensure!(output.success()?.stdout == "a\n");
    bench.cluster.node_mut("n1")?.ensure_slurmd_lives()?;
    ensure!(
        bench
            .cluster
            .node("n1")?
            .log()
            .contains("shifter: internal error")
    );
    bench.ensure_clean()
}
