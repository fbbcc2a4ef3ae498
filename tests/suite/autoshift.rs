//! `--autoshift`: scripts and tasks run inside the image as they are.

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::world::User::Alice;

use crate::bench::{Bench, stored_as};

/// What shows who a process is and what it may do.
const STATUS: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status";

fn ensure_only_alice(status: &str) -> Result<()> {
    for line in status.lines() {
        let (key, values) = line.split_once(':').unwrap_or_default();
        let values: Vec<&str> = values.split_whitespace().collect();
        let expected: &[&str] = match key {
            "Uid" | "Gid" => &["2001"; 4],
            "Groups" => &["2001", "2100"],
            "NoNewPrivs" => &["1"],
            _ => &["0000000000000000"],
        };
        ensure!(values == expected, "{line}");
    }
    ensure!(status.lines().count() == 9, "{status}");
    Ok(())
}

#[test]
fn cluster_s14_autoshift_tasks_are_their_user_and_nothing_more() -> Result<()> {
    let bench = Bench::start()?;
    let image = bench.a.option();
    let shift = [image.as_str(), "--autoshift"];
    let look = format!("cat /etc/marker; {STATUS}; ls /run/shifter /proc/1/root 2>/dev/null; true");
    // The image has no bash, which is what a script is for elsewhere in these tests.
    let wrapped = [shift[0], shift[1], "--wrap", &look];
    let (job, info) = bench.cluster.run(Alice, &wrapped, "")?;
    info.expect("COMPLETED", "0:0")?;
    let tasks = bench.srun(Alice, &bench.a, &["--autoshift", "sh", "-c", &look])?;
    let allocated = Call::new([
        "salloc",
        "--quiet",
        "--autoshift",
        &image,
        "srun",
        "sh",
        "-c",
        &look,
    ])
    .by(Alice)
    .output()?;
    for (kind, output) in [
        ("sbatch", job.output()?),
        ("srun", tasks.success()?.stdout),
        ("salloc", allocated.success()?.stdout),
    ] {
        let parts: Vec<&str> = output.split("a\n").collect();
        ensure!(parts.len() == 2, "{kind}: {output}");
        ensure_only_alice(parts[1]).with_context(|| kind)?;
    }
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_runs_the_whole_script_inside() -> Result<()> {
    let bench = Bench::start()?;
    let script = "cat /etc/marker; pwd; echo $MINE ${LD_PRELOAD-unset} $SHIFTER_IMAGEREQUEST $SLURM_JOB_NUM_NODES
        test -r \"$0\" && which cat; ls -d /mnt
        shifter echo prefixed; shifter --image=other true; echo $?
        shifter --env=A=b sh -c 'echo $A'; shifter images; echo $?";
    let shift = [
        "-N2",
        &bench.a.option(),
        "--autoshift",
        "--volume=/scratch/alice:/mnt",
        "--export=ALL,MINE=yes,LD_PRELOAD=/nowhere",
        "--wrap",
        script,
    ];
    let (job, info) = bench.cluster.run(Alice, &shift, "")?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    let reference = &bench.a.reference;
    let expected = [
        "a",
        "/scratch/alice",
        &format!("yes unset {reference} 2"),
        "/bin/cat",
        "/mnt",
        "prefixed",
        &format!(
            "shifter: this is the container of '{reference}', and 'docker:other:latest' is another image"
        ),
        "hint: outside of it, or with the module for Slurm: srun --image=IMAGE COMMAND",
        "3",
        "b",
        "shifter: only commands can be run inside a container",
        "hint: run this shifter command outside of it",
        "3",
    ];
    ensure!(
        output.lines().eq(expected),
        "{output}\ninstead of\n{expected:#?}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_of_single_steps_and_directories_that_are_not_inside() -> Result<()> {
    let bench = Bench::start()?;
    let script = "cat /etc/marker 2>/dev/null; srun --autoshift cat /etc/marker
        srun --autoshift shifter cat /etc/marker; srun cat /etc/marker 2>/dev/null
        cd /var/log && srun --autoshift pwd 2>/dev/null; cd / && srun --autoshift pwd
        srun --autoshift sh -c 'exit 7' 2>/dev/null; echo $?; srun --autoshift /no/such 2>&1 | grep -c 'No such file'";
    let (job, info) = bench.cluster.run(Alice, &[&bench.a.option()], script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(output == "a\na\n/tmp\n/\n7\n1\n", "{output}");
    // Nowhere to go.
    let (job, info) = bench.cluster.run(Alice, &[], "srun --autoshift true")?;
    ensure!(info.state() == "FAILED", "{info:?}");
    ensure!(
        job.output()?.contains("without --image"),
        "{}",
        job.output()?
    );
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_as_the_sites_default_and_for_listed_images() -> Result<()> {
    let bench = Bench::start_with(|product, _| {
        product.configure(
            "[slurm]\nautoshift = true\nautoshift_images = 'listed'\n\
             autoshift_list = ['docker:127.0.0.1:5000/a:*']",
        )
    })?;
    let marker = ["cat", "/etc/marker"];
    let inside = bench.srun(Alice, &bench.a, &marker)?;
    ensure!(inside.code == 0 && inside.stdout == "a\n", "{inside}");
    let opted_out = bench.srun(Alice, &bench.a, &["--autoshift=no", "cat", "/etc/marker"])?;
    ensure!(
        opted_out.code != 0 && opted_out.stdout.is_empty(),
        "{opted_out}"
    );
    let unlisted = bench.srun(Alice, &bench.b, &["shifter", "cat", "/etc/marker"])?;
    ensure!(unlisted.success()?.stdout == "b\n");
    let refused = bench.srun(Alice, &bench.b, &["--autoshift", "true"])?;
    ensure!(
        refused.code != 0
            && refused.stderr.contains("this site does not allow it")
            && refused
                .stderr
                .contains("hint: without it: srun shifter COMMAND"),
        "{refused}"
    );
    // Forged: the node says no, and stays in service.
    let forged = Call::new([
        "sbatch",
        "--parsable",
        "--wait",
        &bench.b.option(),
        "--output=forged",
    ])
    .env("SHIFTER_AUTOSHIFT", "1")
    .input("#!/bin/sh\nsrun --export=ALL true\n")
    .by(Alice)
    .output()?;
    ensure!(forged.code == 0, "{forged}");
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_submits_from_inside_with_slurms_module() -> Result<()> {
    let mut bench = Bench::start_with(|product, _| {
        let module = std::fs::read_to_string(product.path("share/shifter/modules/slurm.toml"))?;
        product.configure(&module)
    })?;
    let image = stored_as(
        &bench.product,
        &bench.registry,
        "deb",
        Recipe::debian("deb"),
    )?;
    let option = format!("--image={}", image.reference);
    let shift = ["-N2", option.as_str(), "--autoshift", "--module=slurm"];
    let b = &bench.b.reference;
    let script = format!(
        "srun --ntasks-per-node=1 cat /etc/debian_version | sort -u
         srun -N1 -n1 --image={b} --module=none cat /etc/marker
         id=$(sbatch --parsable --output=child --wrap 'hostname') && echo submitted
         squeue -h -j $SLURM_JOB_ID -o %T"
    );
    let (job, info) = bench.cluster.run(Alice, &shift, &script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    let lines: Vec<&str> = output.lines().collect();
    ensure!(
        lines.len() == 4
            && lines[0].starts_with("12")
            && lines[1..] == ["b", "submitted", "RUNNING"],
        "{output}"
    );
    bench.cluster.node_mut("n1")?.ensure_slurmd_lives()?;
    bench.cluster.wait_until_idle()?;
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_sees_the_private_tmp_of_the_job() -> Result<()> {
    let bench = Bench::start_with(|_, options| {
        options.slurm_conf =
            "JobContainerType=job_container/tmpfs\nPrologFlags=Alloc,Contain".into();
        std::fs::write(
            "/etc/slurm/job_container.conf",
            "AutoBasePath=true\nBasePath=/var/spool/private\n",
        )?;
        Ok(())
    })?;
    let script = "echo mine >/tmp/mine; srun -n1 cat /tmp/mine; srun -n1 shifter cat /tmp/mine
        srun -n2 --autoshift cat /tmp/mine; srun -n1 --autoshift touch /tmp/theirs; ls /tmp/theirs";
    let (job, info) = bench
        .cluster
        .run(Alice, &["-n2", &bench.a.option()], script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(
        output == "mine\nmine\nmine\nmine\n/tmp/theirs\n",
        "{output}"
    );
    let host = bench.cluster.node("n1")?.call(["ls", "/tmp"]).ok()?;
    ensure!(!host.contains("mine"), "{host}");
    bench.ensure_clean()
}
