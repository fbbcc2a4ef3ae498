//! Several jobs on one node at once: nobody reaches another's container.

use anyhow::{Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::job::Job;
use shifter_tests::snapshot::loop_devices;
use shifter_tests::world::User::{self, Alice, Bob};

use crate::bench::{Bench, Stored};

/// Starts a job on n1 whose container stays until the job is cancelled.
pub fn sleeper(bench: &Bench, user: User, image: &Stored) -> Result<Job> {
    let script = "srun shifter sh -c 'cat /etc/marker; echo up; sleep 300'";
    let options = ["-w", "n1", "-n1", &image.option()];
    let job = bench.cluster.submit(user, &options, script)?;
    job.wait_for_output("up")?;
    Ok(job)
}

#[test]
fn cluster_two_users_on_one_node() -> Result<()> {
    let bench = Bench::start()?;
    let a = sleeper(&bench, Alice, &bench.a)?;
    let b = sleeper(&bench, Bob, &bench.b)?;
    ensure!(a.output()?.starts_with("a\n") && b.output()?.starts_with("b\n"));

    // Bob looks at whatever of Alice's container he can name, from outside and from inside.
    let look = "for pid in $(pgrep -u alice sleep); do \
                cat /proc/$pid/root/etc/marker; ls /proc/$pid/root; ls /proc/$pid/cwd/; done; \
                ls -R /run/shifter; cat /run/shifter/jobs/*/manifest; \
                nsenter -m -t $(pgrep -u alice -n sleep) cat /etc/marker; true";
    for inside in [&["bash", "-c", look][..], &["shifter", "sh", "-c", look]] {
        let output = bench.srun(Bob, &bench.b, &[&["-w", "n1"], inside].concat())?;
        ensure!(output.code == 0, "{output}");
        ensure!(
            !output.stdout.contains("a\n") && !output.stdout.contains("marker"),
            "{output}"
        );
        ensure!(!output.stdout.contains(bench.a.image.id()), "{output}");
    }
    // Nor does the mount table of his container name anything of hers.
    let output = bench.srun(
        Bob,
        &bench.b,
        &["-w", "n1", "shifter", "cat", "/proc/self/mountinfo"],
    )?;
    ensure!(!output.stdout.contains(bench.a.image.id()), "{output}");

    // The end of her job leaves his alone.
    a.cancel()?;
    a.wait()?;
    let steps = bench
        .cluster
        .node("n1")?
        .call(["pgrep", "-u", "bob", "-x", "sleep"])
        .output()?;
    ensure!(steps.code == 0, "bob's task died with alice's job");
    let overlap = [
        "srun",
        "--overlap",
        "--jobid",
        b.id(),
        "shifter",
        "cat",
        "/etc/marker",
    ];
    ensure!(Call::new(overlap).by(Bob).ok()? == "b\n");
    b.cancel()?;
    b.wait()?;
    bench.ensure_clean()
}

#[test]
fn cluster_another_users_job_in_the_environment() -> Result<()> {
    let bench = Bench::start()?;
    let a = sleeper(&bench, Alice, &bench.a)?;
    let forged = format!(
        "export SLURM_JOB_ID={0} SLURM_JOBID={0} SLURM_JOB_UID=2001 SLURM_JOB_USER=alice; \
         shifter cat /etc/marker; shifter --image={1} cat /etc/marker",
        a.id(),
        bench.a.reference
    );
    // In a job of his own he stays in his own container, or gets one of his own for her image.
    let args = [
        "-w",
        "n1",
        "bash",
        "-c",
        &format!("{forged}; readlink /proc/self/ns/mnt"),
    ];
    let output = bench.srun(Bob, &bench.b, &args)?;
    ensure!(output.stdout.starts_with("b\n"), "{output}");
    // Without a job at all there is nothing to join.
    let login = bench
        .cluster
        .node("n1")?
        .call(["bash", "-c", &forged])
        .by(Bob)
        .output()?;
    ensure!(!login.stdout.starts_with("a\na"), "{login}");
    let seen = "shifter sh -c 'ps; pgrep -x sleep >/dev/null; ls /proc/1/root' 2>&1; true";
    let joined = format!("export SLURM_JOB_ID={}; {seen}", a.id());
    let output = bench
        .cluster
        .node("n1")?
        .call(["bash", "-c", &joined])
        .by(Bob)
        .output()?;
    ensure!(!output.stdout.contains("marker"), "{output}");
    a.cancel()?;
    a.wait()?;
    bench.ensure_clean()
}

#[test]
fn cluster_another_job_of_ones_own() -> Result<()> {
    let bench = Bench::start()?;
    let other = sleeper(&bench, Alice, &bench.a)?;
    let script = format!(
        "SLURM_JOB_ID={0} SLURM_JOBID={0} shifter cat /etc/marker",
        other.id()
    );
    // The job that the process is in decides, not the one it names.
    let output = bench.srun(Alice, &bench.b, &["-w", "n1", "bash", "-c", &script])?;
    ensure!(output.stdout == "b\n", "{output}");
    other.cancel()?;
    other.wait()?;
    bench.ensure_clean()
}

#[test]
fn cluster_jobs_of_one_image_share_one_loop_device() -> Result<()> {
    let bench = Bench::start()?;
    let first = sleeper(&bench, Alice, &bench.a)?;
    let second = sleeper(&bench, Bob, &bench.a)?;
    let loops = loop_devices()?;
    ensure!(loops.len() == 1, "{loops:?}");
    first.cancel()?;
    first.wait()?;
    let overlap = [
        "srun",
        "--overlap",
        "--jobid",
        second.id(),
        "shifter",
        "cat",
        "/etc/marker",
    ];
    ensure!(Call::new(overlap).by(Bob).ok()? == "a\n");
    second.cancel()?;
    second.wait()?;
    bench.ensure_clean()
}
