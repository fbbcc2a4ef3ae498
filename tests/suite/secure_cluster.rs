//! S16, S17 under Slurm: what others could have written is not used, and slurmd goes on.

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::product::CONFIG;
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

#[test]
fn cluster_s16_s17_untrusted_files_stop_jobs_and_not_slurmd() -> Result<()> {
    let mut bench = Bench::start()?;
    let works = |bench: &Bench| -> Result<()> {
        let output = bench.srun(Alice, &bench.a, &["-wn1", "shifter", "cat", "/etc/marker"])?;
        ensure!(output.success()?.stdout == "a\n");
        Ok(())
    };
    works(&bench)?;
    for spoil in [
        format!("chown alice {CONFIG}"),
        format!("chmod g+w {CONFIG}"),
        "chmod o+w /etc/shifter".to_owned(),
    ] {
        Call::shell(&spoil).ok()?;
        let output = bench.srun(Alice, &bench.a, &["-wn1", "true"])?;
        Call::shell(&format!(
            "chown root {CONFIG}; chmod 0644 {CONFIG}; chmod 0755 /etc/shifter"
        ))
        .ok()?;
        ensure!(
            output.code != 0 && output.stderr.contains("not trusted"),
            "{spoil}: {output}"
        );
        bench.cluster.node_mut("n1")?.ensure_slurmd_lives()?;
    }
    // A program that others could have replaced: the node says so and is put out of service.
    Call::shell("chmod o+w /opt/shifter/sbin").ok()?;
    let job = bench.srun(Alice, &bench.a, &["-wn1", "true"]);
    let drained = wait_for("the node's complaint", 10, || {
        Ok(bench
            .cluster
            .node("n1")?
            .log()
            .contains("'/opt/shifter/sbin' is not trusted")
            .then_some(()))
    });
    Call::shell("chmod o-w /opt/shifter/sbin").ok()?;
    ensure!(job?.code != 0, "the job ran");
    drained?;
    bench.cluster.node_mut("n1")?.ensure_slurmd_lives()?;
    Call::new(["scontrol", "update", "NodeName=n1", "State=RESUME"]).output()?;
    bench.cluster.wait_until_idle()?;
    works(&bench)?;
    bench.ensure_clean()
}
