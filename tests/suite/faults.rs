//! The plugin broken on purpose, by a build that does what SHIFTER_FAULT says: whatever happens in
//! it, slurmd, slurmstepd and srun live on.

use std::fs;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::world::{self, User::Alice};

use crate::bench::Bench;

/// Every callback in every process that calls it, and whether a failure in it takes the node out
/// of service, as Slurm documents it of prolog and epilog.
const FAULTS: [(&str, bool); 8] = [
    ("Local:Init", false),
    ("Local:InitPostOpt", false),
    ("Allocator:Init", false),
    ("Allocator:InitPostOpt", false),
    ("Remote:Init", false),
    ("Remote:InitPostOpt", false),
    ("Remote:TaskInit", false),
    ("JobScript:JobProlog", true),
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
    for (place, may_drain) in FAULTS {
        for kind in ["panic", "fail"] {
            let fault = format!("{place}={kind}");
            for program in ["srun", "sbatch", "salloc"] {
                for options in [&[][..], &[image.as_str()]] {
                    // An salloc takes 3 s: where its own callbacks are not meant, srun will do.
                    if program == "salloc" && !place.starts_with("Allocator") {
                        continue;
                    }
                    let call = Call::new([program, "-wn1"])
                        .args(options.iter().copied())
                        .by(Alice);
                    let call = match program {
                        "sbatch" => call.args(["--wait", "--wrap", "true"]),
                        _ => call.arg("true"),
                    };
                    let output = call.env("SHIFTER_FAULT", &fault).timeout(30).output()?;
                    // 128 and more is death by a signal.
                    ensure!(output.code < 128, "{fault}: {output}");
                    ensure!(output.stdout.len() < 64, "{fault}: {output}");
                    bench.cluster.node_mut("n1")?.ensure_slurmd_lives()?;
                    if may_drain {
                        let resume = ["scontrol", "update", "NodeName=n1", "State=RESUME"];
                        Call::new(resume).output()?;
                        bench
                            .cluster
                            .wait_until_idle()
                            .with_context(|| fault.clone())?;
                    }
                    bench
                        .cluster
                        .ensure_in_service()
                        .with_context(|| fault.clone())?;
                }
            }
        }
    }
    // After all that the next job is served as ever, and nothing is left of those before it.
    let output = bench.srun(Alice, &bench.a, &["-wn1", "shifter", "cat", "/etc/marker"])?;
    ensure!(output.success()?.stdout == "a\n");
    bench.ensure_clean()
}

#[test]
fn cluster_faults_when_slurmd_starts() -> Result<()> {
    for kind in ["panic", "fail"] {
        let mut bench = start()?;
        let node = bench.cluster.node_mut("n1")?;
        node.restart_slurmd_with(&[("SHIFTER_FAULT", &format!("Slurmd:Init={kind}"))])?;
        bench.cluster.wait_until_idle()?;
        bench.cluster.node_mut("n1")?.ensure_slurmd_lives()?;
        let output = bench.srun(Alice, &bench.a, &["-wn1", "shifter", "cat", "/etc/marker"])?;
        ensure!(output.success()?.stdout == "a\n", "{kind}");
        bench.ensure_clean()?;
    }
    Ok(())
}
