//! Jobs of every kind that go well.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::job::of_tasks;
use shifter_tests::shared;
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

#[test]
fn cluster_batch_job_on_four_nodes() -> Result<()> {
    let bench = Bench::start_with(|_, options| {
        options.nodes = 4;
        Ok(())
    })?;
    let image = bench.a.option();
    let script =
        "cat /etc/marker 2>/dev/null; srun --label shifter sh -c 'hostname; cat /etc/marker'";
    let options = ["-N4", "--ntasks-per-node=1", &image];
    let (job, info) = bench.cluster.run(Alice, &options, script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    let expected = (0..4).flat_map(|rank| [format!("{rank}: a"), format!("{rank}: n{}", rank + 1)]);
    ensure!(lines.into_iter().eq(expected), "{output}");
    bench.ensure_clean()
}

#[test]
fn cluster_srun_without_an_allocation() -> Result<()> {
    let bench = Bench::start()?;
    let args = [
        "-N2",
        "--ntasks-per-node=1",
        "shifter",
        "cat",
        "/etc/marker",
    ];
    let output = bench.srun(Alice, &bench.a, &args)?.success()?;
    ensure!(output.stdout == "a\na\n", "{output}");
    let output = bench.srun(Alice, &bench.a, &["shifter", "sh", "-c", "exit 7"])?;
    ensure!(output.code == 7, "{output}");
    bench.ensure_clean()
}

#[test]
fn cluster_salloc_and_steps_in_it() -> Result<()> {
    let bench = Bench::start()?;
    // Last, where salloc's shell is, on the login host: of the job's image, too.
    let steps = "srun -N2 -n2 shifter cat /etc/marker; srun -N1 -n2 shifter cat /etc/marker
        srun -N2 -n2 hostname; shifter sh -c 'cat /etc/marker; hostname'";
    let output = Call::new([
        "salloc",
        "-N2",
        "-n4",
        &bench.a.option(),
        "bash",
        "-c",
        steps,
    ])
    .by(Alice)
    .output()?
    .success()?;
    let count = |text: &str| output.stdout.lines().filter(|line| *line == text).count();
    ensure!(count("login") == 1, "{output}");
    ensure!(
        count("a") == 5 && count("n1") == 1 && count("n2") == 1,
        "{output}"
    );
    // The container there has left the image's hint to the next teardown.
    Call::new([&*bench.product.path("sbin/unsetupRoot"), "0"]).ok()?;
    bench.ensure_clean()
}

#[test]
fn cluster_options_in_the_script() -> Result<()> {
    let bench = Bench::start()?;
    let script = format!(
        "#SBATCH --image={}\n#SBATCH --volume=/scratch/alice:/mnt\nshifter touch /mnt/touched\n\
         shifter cat /etc/marker",
        bench.a.reference
    );
    let (job, info) = bench.cluster.run(Alice, &[], &script)?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(job.output()? == "a\n", "{}", job.output()?);
    ensure!(fs::exists("/scratch/alice/touched")?);

    // One line each, among those of other plugins.
    let help = Call::new(["sbatch", "--help"]).by(Alice).ok()?;
    let ours = help.lines().filter(|line| line.contains(" Shifter: "));
    let options: Vec<&str> = ours
        .filter(|line| line.len() <= 80)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let expected = [
        "--image=REF",
        "--autoshift=[yes|no]",
        "--volume=FROM:TO",
        "--imagevolume=FROM:TO",
        "--module=NAME[,..]",
        "--sshd=[yes|no]",
        "--ccm",
        "--entrypoint=[yes|no]",
    ];
    ensure!(options == expected, "{help}");
    bench.ensure_clean()
}

#[test]
fn cluster_arguments_of_the_c_shifters_plugin_in_plugstack_conf() -> Result<()> {
    let bench = Bench::start_with(|product, options| {
        let line = product.plugstack();
        options.plugstack = format!("{} long_options=1 enable_ccm=1\n", line.trim_end());
        Ok(())
    })?;
    let script = format!(
        "#SBATCH --shifter.image={}\n#SBATCH --shifter.volume=/scratch/alice:/mnt\n\
         shifter touch /mnt/touched; srun --shifter.image={} shifter cat /etc/marker; \
         srun --image={0} --autoshift --shifter.module=none cat /etc/marker",
        bench.a.reference, bench.b.reference,
    );
    let (job, info) = bench.cluster.run(Alice, &[], &script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(of_tasks(&output) == "b\na\n", "{output}");
    ensure!(fs::exists("/scratch/alice/touched")?);
    let log = bench.cluster.node("n1")?.log();
    let line = "shifter: ignoring 'enable_ccm=1' in plugstack.conf: see slurm.ccm in shifter.toml";
    ensure!(log.matches(line).count() == 1, "{log}");
    bench.ensure_clean()
}

#[test]
fn cluster_volumes_given_twice_both_count() -> Result<()> {
    let bench = Bench::start()?;
    let make = "for v in v1 v2 v3; do mkdir $v; echo $v >$v/name; done";
    Call::new(["bash", "-c", make]).by(Alice).ok()?;
    let volumes = [
        "--volume=/scratch/alice/v1:/mnt",
        "--volume=/scratch/alice/v2:/opt/v2;/scratch/alice/v3:/v3:ro",
    ];
    let show = "cat /mnt/name /opt/v2/name /v3/name; touch /mnt/new /opt/v2/new && ! touch /v3/new 2>/dev/null && echo ro";
    let expected = "v1\nv2\nv3\nro\n";

    let output = bench.srun(
        Alice,
        &bench.a,
        &[&volumes[..], &["shifter", "sh", "-c", show]].concat(),
    )?;
    ensure!(
        output.code == 0 && output.stdout == expected,
        "srun: {output}"
    );

    let image = bench.a.option();
    let options = [image.as_str(), volumes[0], volumes[1]];
    let (job, info) =
        bench
            .cluster
            .run(Alice, &options, &format!("srun shifter sh -c '{show}'"))?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(job.output()? == expected, "sbatch: {}", job.output()?);
    bench.ensure_clean()
}

/// How a job gets to its image: its options, and what its commands begin with.
const WAYS: [(&[&str], &str); 2] = [(&[], "shifter "), (&["--autoshift"], "")];

#[test]
fn cluster_arrays_requeues_and_heterogeneous_jobs() -> Result<()> {
    // Slurm holds a requeued job back until its old credential has expired: 2 minutes as a rule.
    let bench = Bench::start_with(|_, options| {
        options.slurm_conf = "AuthInfo=cred_expire=6".into();
        Ok(())
    })?;
    let cluster = &bench.cluster;
    let (a, b) = (bench.a.option(), bench.b.option());
    for (number, (way, start)) in WAYS.into_iter().enumerate() {
        let wrap = format!("--wrap={start}cat /etc/marker; echo $SLURM_ARRAY_TASK_ID");
        let output = format!("--output=array{number}-%a");
        let array = [&a, "--array=1-3", "--wait", &output, &wrap];
        cluster
            .sbatch(Alice, &[&array, way].concat(), "")?
            .success()?;
        for task in 1..=3 {
            let text = fs::read_to_string(format!("/scratch/alice/array{number}-{task}"))?;
            ensure!(text == format!("a\n{task}\n"), "array task {task}: {text}");
        }
    }

    // The first run ends by a requeue, the second by itself.
    let mut jobs = Vec::new();
    for (way, start) in WAYS {
        let wrap = format!(
            "--wrap={start}cat /etc/marker; [ \"$SLURM_RESTART_COUNT\" ] || {{ echo first; sleep 60; }}"
        );
        let options = [&a, "--requeue", "--open-mode=append", &wrap];
        jobs.push(cluster.submit(Alice, &[&options, way].concat(), "")?);
    }
    for job in &jobs {
        job.wait_for_output("first")?;
        Call::new(["scontrol", "requeue", job.id()]).ok()?;
    }
    for job in &jobs {
        job.wait_for_state("COMPLETED")?;
        let output = job.output()?;
        ensure!(output.matches("a\n").count() == 2, "{output}");
    }

    // Each component has its own image, and each node its own component's.
    let parts = ["-N1", &a, ":", "-N1", &b];
    let script =
        "srun --het-group=0 shifter cat /etc/marker; srun --het-group=1 shifter cat /etc/marker";
    let (job, info) = cluster.run(Alice, &parts, script)?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(job.output()? == "a\nb\n", "{}", job.output()?);
    let script = format!(
        "srun --het-group=1 sh -c 'hostname; cat /etc/marker'; srun shifter cat /etc/marker
        srun {b} --het-group=0 true : --het-group=1 true"
    );
    let (job, _) = cluster.run(Alice, &["-wn1", &a, ":", "-wn2"], &script)?;
    let output = job.output()?;
    let refusal = "cannot give the components of one step different containers";
    ensure!(
        output.contains("n2\n") && output.matches("a\n").count() == 1 && output.contains(refusal),
        "{output}"
    );
    // And its own volumes; one that asks for nothing has nothing of the others'.
    fs::write("/scratch/alice/known", "")?;
    let show = [
        "sh",
        "-c",
        "echo $(hostname; cat /etc/marker; ls -d /mnt/known) 2>/dev/null",
    ];
    let volume = "--volume=/scratch/alice:/mnt";
    let of_a = [&["-wn1", &a, volume, "--autoshift"][..], &show].concat();
    for (other, expected) in [
        (&["-wn2", &b, "--autoshift"][..], "n1 a /mnt/known|n2 b"),
        (&["-wn2"], "n1 a /mnt/known|n2"),
    ] {
        let other = [other, &show].concat();
        for parts in [[&of_a, &other], [&other, &of_a]] {
            let parts = parts.map(|part| part.join("\0")).join("\0:\0");
            let call = cluster.srun(Alice, parts.split('\0'));
            let output = call.output()?.success()?;
            let mut lines: Vec<&str> = output.stdout.lines().collect();
            lines.sort_unstable();
            ensure!(lines.join("|") == expected, "{parts}: {output}");
        }
    }
    bench.ensure_clean()
}

/// Slurm starts a requeued job without its prolog where a slurmd has not forgotten its first run yet.
/// Here the node's own prolog script undoes what the plugin's has done: the same for whoever comes next.
#[test]
fn cluster_job_whose_prolog_slurm_leaves_out() -> Result<()> {
    let bench = Bench::start_with(|product, options| {
        shared::share(product, "\n[ssh]\nenable = 'ask'")?;
        let undo = "/usr/local/sbin/undo";
        let unsetup = product.path("sbin/unsetupRoot");
        fs::write(undo, format!("#!/bin/sh\nexec {unsetup} $SLURM_JOB_ID\n"))?;
        fs::set_permissions(undo, Permissions::from_mode(0o755))?;
        options.slurm_conf = format!("Prolog={undo}");
        Ok(())
    })?;
    let show = "sh -c 'echo $(cat /etc/marker 2>/dev/null) $(hostname)'";
    // The batch script's node has the job's root then, and on the other each step has its own.
    let script = format!(
        "{show}; shifter {show}; srun shifter {show}; srun -N1 -n1 --overlap -w n2 --autoshift {show} &
        srun --overlap shifter {show} & wait"
    );
    let image = bench.a.option();
    for (way, script, expected) in [
        (None, &*script, "a n1|a n1|a n1|a n2|a n2|a n2|n1"),
        (Some("--autoshift"), show, "a n1"),
    ] {
        let wrap = format!("--wrap={script}");
        let options = ["-N2", "--ntasks-per-node=1", &image, &wrap];
        let options: Vec<&str> = options.into_iter().chain(way).collect();
        let (job, info) = bench.cluster.run(Alice, &options, "")?;
        let output = job.output()?;
        info.expect("COMPLETED", "0:0")?;
        let lines = of_tasks(&output);
        let mut lines: Vec<&str> = lines.lines().collect();
        lines.sort_unstable();
        ensure!(lines.join("|") == expected, "{output}");
    }
    let log = bench.cluster.node("n1")?.log();
    ensure!(
        log.contains("which had no prolog: setupRoot: job "),
        "{log}"
    );

    // What is left of it without an epilog is found by the daemon of its batch script.
    let options = [&*image, "--wrap=echo up; exec sleep 300"];
    let job = bench.cluster.submit(Alice, &options, "")?;
    job.wait_for_output("up")?;
    let dir = format!("/run/shifter/jobs/{}", job.id());
    let note = |name: &str| -> Result<String> {
        let path = bench.cluster.node("n1")?.path(&format!("{dir}/{name}"));
        Ok(fs::read_to_string(path)?)
    };
    let daemon = note("daemon")?;
    ensure!(daemon == note("extern")? && !daemon.is_empty(), "{daemon}");
    job.cancel()?;
    job.wait()?;

    // ssh between nodes needs what its prologs would have brought.
    let options = ["-N2", &image, "--sshd", "--wrap=shifter true"];
    let (job, info) = bench.cluster.run(Alice, &options, "")?;
    ensure!(info.state() == "FAILED", "{info:?}");
    let output = job.output()?;
    ensure!(
        output.contains("its prolog did not run\n") && output.contains("submit it again\n"),
        "{output}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_exclusive_jobs_and_jobs_without_image() -> Result<()> {
    let bench = Bench::start()?;
    let output = bench.srun(
        Alice,
        &bench.a,
        &["--exclusive", "shifter", "cat", "/etc/marker"],
    )?;
    ensure!(output.success()?.stdout == "a\n");
    let plain = bench.cluster.srun(
        Alice,
        ["-N2", "bash", "-c", "ls -d /run/shifter/jobs/* 2>&1"],
    );
    let plain = plain.output()?;
    ensure!(!plain.stdout.contains("jobs/1"), "{plain}");
    let (job, info) = bench.cluster.run(Alice, &["-N2"], "srun true; echo done")?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(job.output()? == "done\n");
    bench.ensure_clean()
}
