//! `--ccm`: the host's own environment as a container, on whole nodes.

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

#[test]
fn cluster_s54_ccm_is_off_by_default_and_refuses_images() -> Result<()> {
    let bench = Bench::start()?;
    let submit = |options: &[&str]| {
        let options = [&["--wrap=true"], options].concat();
        bench.cluster.sbatch(Alice, &options, "")
    };
    let off = submit(&["--ccm", "--exclusive"])?;
    ensure!(
        off.code != 0
            && off
                .stderr
                .contains("cannot use --ccm: this site does not allow it"),
        "{off}"
    );
    // Forged: the node says no, to the job alone.
    let forged = "export SPANK_SHIFTER_CCM=1 SHIFTER_CCM=1 SLURM_STEP_SHIFTER_CCM=1; srun hostname";
    let (job, info) = bench.cluster.run(Alice, &["-wn1"], forged)?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(job.output()? == "n1\n", "{}", job.output()?);

    bench.product.configure("[slurm]\nccm = true")?;
    for other in [&*bench.a.option(), "--autoshift", "--entrypoint"] {
        let both = submit(&["--ccm", "--exclusive", other])?;
        ensure!(
            both.code != 0 && both.stderr.contains("--ccm together with --image"),
            "{both}"
        );
    }
    let (job, info) = bench.cluster.run(Alice, &["--ccm", "-n1"], "echo ran")?;
    ensure!(info.state() == "FAILED", "{info:?}");
    let output = job.output()?;
    ensure!(
        output.contains("cannot use --ccm: the job has not the whole node (--exclusive)")
            && !output.contains("ran"),
        "{output}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_s54_ccm_gives_scripts_and_steps_the_hosts_environment() -> Result<()> {
    let bench = Bench::start_with(|product, _| product.configure("[slurm]\nccm = true"))?;
    // On the host alone: the container has neither privilege nor Shifter's state.
    let look = "findmnt -n -o FSTYPE,SOURCE / | head -n1; hostname; test -e /usr/bin/srun && id -un
        grep -E '^(NoNewPrivs|CapBnd)' /proc/self/status; ls -A /run/shifter 2>/dev/null | wc -l
        touch /scratch/alice/$(hostname) && cat /var/hostsfile | sort -u; grep -c ^bob: /etc/passwd
        shifter echo prefixed";
    let script = format!(
        "{look}\nmkdir -p /tmp/seen\nsrun -N2 --ntasks-per-node=1 --label bash -c 'hostname; ls -d /tmp/seen 2>&1; \
         findmnt -n -o SOURCE / | head -n1' | sort\n\
         srun -N1 -n1 {} shifter cat /etc/marker",
        bench.a.option()
    );
    let options = ["--ccm", "--exclusive", "-N2"];
    let (job, info) = bench.cluster.run(Alice, &options, &script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")
        .with_context(|| output.clone())?;
    let expected = "overlay shifter\nn1\nalice\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n0\n\
        n1\nn2\n1\nprefixed\n0: /tmp/seen\n0: n1\n0: shifter\n\
        1: ls: cannot access '/tmp/seen': No such file or directory\n1: n2\n1: shifter\na\n";
    ensure!(output == expected, "{output}\ninstead of\n{expected}");
    Call::new(["test", "-e", "/scratch/alice/n1"]).ok()?;
    bench.ensure_clean()
}
