//! A user's mistakes: one clear line, a failed job at worst, never a node out of service.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, Output};
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

/// Calls sbatch, srun and salloc with the same options.
fn submit_all_ways(bench: &Bench, options: &[&str]) -> Result<Vec<Output>> {
    Ok(vec![
        bench.cluster.sbatch(Alice, options, "shifter true")?,
        bench
            .cluster
            .srun(Alice, options.iter().copied())
            .args(["shifter", "true"])
            .output()?,
        Call::new(["salloc"])
            .args(options.iter().copied())
            .arg("true")
            .by(Alice)
            .output()?,
    ])
}

/// Fails unless the submission was refused with a line that contains `text` and no job was made.
fn ensure_refused(bench: &Bench, options: &[&str], text: &str) -> Result<()> {
    for output in submit_all_ways(bench, options)? {
        ensure!(
            output.code != 0 && output.stdout.is_empty(),
            "{options:?}: {output}"
        );
        let ours = output
            .stderr
            .lines()
            .filter(|line| line.contains("shifter: ") || line.contains("hint: "))
            .count();
        ensure!(
            output.stderr.contains(text) && (1..=2).contains(&ours),
            "{options:?}: {output}"
        );
    }
    let queue = Call::new(["squeue", "-h"]).ok()?;
    ensure!(queue.is_empty(), "{options:?}: {queue}");
    Ok(())
}

#[test]
fn cluster_mistakes_are_refused_at_submission() -> Result<()> {
    let bench = Bench::start()?;
    let image = bench.a.option();
    let missing = format!("--image={}", bench.registry.reference("missing:1"));
    ensure_refused(&bench, &[&missing], "shifter pull")?;
    ensure_refused(
        &bench,
        &["--image=docker:UPPER/case"],
        "'docker:UPPER/case'",
    )?;
    ensure_refused(&bench, &["--image="], "image")?;
    ensure_refused(&bench, &["--image=id:0123"], "0123")?;
    for image in ["./image.sqsh", "local:/scratch/alice"] {
        let option = format!("--image={image}");
        ensure_refused(&bench, &[&option], "it is in no image store")?;
    }
    ensure_refused(&bench, &["--image=local:sl6"], "no tree of this name")?;
    for volume in [
        "/scratch/alice",
        "scratch:/mnt",
        "/scratch:/etc",
        "/scratch:/mnt:rec",
        "/scratch:/mnt:x",
    ] {
        ensure_refused(&bench, &[&image, &format!("--volume={volume}")], "volume")?;
    }
    ensure_refused(&bench, &["--volume=/scratch/alice:/mnt"], "image")?;
    ensure_refused(&bench, &[&image, "--module=nosuch"], "'nosuch'")?;
    bench.ensure_clean()
}

#[test]
fn cluster_mistakes_found_on_the_node_fail_the_job_alone() -> Result<()> {
    let bench = Bench::start()?;
    let image = bench.a.option();
    // Only the node sees whether a directory is there and the user may enter it.
    for volume in ["--volume=/scratch/nowhere:/mnt", "--volume=/etc:/mnt"] {
        let options = ["-N2", "--ntasks-per-node=1", &image, volume];
        let found = bench
            .cluster
            .sbatch(Alice, &options, "echo ran; srun shifter true")?;
        if found.code == 0 {
            let job = found.stdout.trim().to_owned();
            ensure_failed_with(&bench, &job, "volume")?;
        } else {
            ensure!(found.stderr.contains("volume"), "{found}");
        }
        let output = bench.srun(Alice, &bench.a, &["-N2", volume, "shifter", "echo", "ran"])?;
        ensure!(output.code != 0 && output.stdout.is_empty(), "{output}");
        ensure!(output.stderr.contains("cannot"), "{output}");
        bench.ensure_clean()?;
    }
    Ok(())
}

/// Waits for a batch job and fails unless it failed with a line that contains `text` in its output
/// and its script did not run.
fn ensure_failed_with(bench: &Bench, id: &str, text: &str) -> Result<()> {
    let ended = || {
        let info = Call::new(["scontrol", "show", "job", "-o", id]).ok()?;
        Ok(info.contains("JobState=FAILED ").then_some(info))
    };
    let info = shifter_tests::call::wait_for("the job to fail", 30, ended)?;
    ensure!(info.contains("ExitCode=1:0"), "{info}");
    let output = fs::read_to_string(format!("/scratch/alice/slurm-{id}.out"))?;
    // One line, and the way out where there is one; the rest is Slurm's.
    let mut ours = output
        .lines()
        .filter(|line| !line.starts_with("slurmstepd"));
    let line = ours.next().unwrap_or_default();
    ensure!(
        line.starts_with("shifter: cannot") && line.contains(text),
        "{output}"
    );
    ensure!(ours.all(|line| line.starts_with("hint: ")), "{output}");
    bench.cluster.wait_until_idle()
}

#[test]
fn cluster_image_removed_or_made_private_between_submission_and_start() -> Result<()> {
    let bench = Bench::start()?;
    let image = bench.a.option();
    let denied = bench.cluster.submit(
        Alice,
        &["--hold", "-N2", &bench.b.option()],
        "echo ran; srun shifter true",
    )?;
    let job = bench.cluster.submit(
        Alice,
        &["--hold", "-N2", &image],
        "echo ran; srun shifter true",
    )?;
    let begin = bench
        .cluster
        .srun(Alice, ["--begin=now+4", &image, "shifter", "echo", "ran"]);
    let waiting = std::thread::spawn(move || begin.output());
    // srun resolves the image before it asks for an allocation.
    std::thread::sleep(std::time::Duration::from_secs(2));
    for file in bench.a.files() {
        fs::remove_file(file)?;
    }
    let [_, meta] = bench.b.files();
    Call::shell(&format!("echo 'USERACL: 2002' >>{meta}")).ok()?;
    for (job, image) in [(&job, &bench.a), (&denied, &bench.b)] {
        Call::new(["scontrol", "release", job.id()]).ok()?;
        ensure_failed_with(&bench, job.id(), &image.reference)?;
    }
    let output = waiting
        .join()
        .unwrap_or_else(|_| anyhow::bail!("srun's thread panicked"))?;
    ensure!(output.code == 1 && output.stdout.is_empty(), "{output}");
    ensure!(output.stderr.contains("shifter: cannot"), "{output}");
    ensure!(output.stderr.contains(&bench.a.reference), "{output}");
    bench.ensure_clean()
}

#[test]
fn cluster_s49_forged_environment_changes_nothing() -> Result<()> {
    let bench = Bench::start()?;
    let id = bench.b.image.id();
    let forged = [
        ("SHIFTER_IMAGE", id),
        ("SHIFTER_IMAGETYPE", "id"),
        ("SHIFTER_IMAGEREQUEST", "id:../../../etc"),
        ("SHIFTER_VOLUME", "/etc:/x"),
        ("SHIFTER_MODULE", "../../x"),
        ("SPANK_SHIFTER_IMAGE", id),
        ("SPANK_SHIFTER_VOLUME", "/root:/mnt"),
        ("SPANK_LD_PRELOAD", "/scratch/alice/evil.so"),
        ("SLURM_SPANK_SHIFTER_IMAGE", id),
        (
            "_SLURM_SPANK_OPTION_shifter_image",
            "id:../../../etc/shadow",
        ),
        ("_SLURM_SPANK_OPTION_shifter_volume", "/root:/mnt"),
        ("SPANK__SLURM_SPANK_OPTION_shifter_image", "id:zzz"),
        ("SLURM_JOB_UID", "0"),
        ("SLURM_JOB_USER", "root"),
    ];
    let show = "cat /etc/marker; id -u; ls /x /mnt 2>&1 | grep -c -e shadow -e '\\.bashrc'";
    for with_image in [true, false] {
        let mut call = Call::new(["srun"]).by(Alice);
        for (name, value) in forged {
            call = call.env(name, value);
        }
        if with_image {
            call = call.arg(bench.a.option());
        }
        let output = call.args(["shifter", "sh", "-c", show]).output()?;
        // With an image asked for it is that one; without one a refusal is as good.
        let own = output.stdout == "a\n2001\n0\n";
        let other = output.stdout == "b\n2001\n0\n";
        ensure!(
            if with_image {
                own
            } else {
                other || output.code != 0
            },
            "{output}"
        );
        bench.cluster.ensure_in_service()?;
        // The prolog of a batch job comes before anything of its user's.
        let mut call = Call::new(["sbatch", "--wait", "--output=forged"]).by(Alice);
        for (name, value) in forged {
            call = call.env(name, value);
        }
        if with_image {
            call = call.arg(bench.a.option());
        }
        let output = call
            .arg(format!("--wrap=shifter sh -c \"{show}; true\""))
            .output()?;
        let said = fs::read_to_string("/scratch/alice/forged")?;
        ensure!(
            if with_image {
                output.code == 0 && said == "a\n2001\n0\n"
            } else {
                said == "b\n2001\n0\n" || output.code != 0
            },
            "{output}{said}"
        );
        bench.cluster.ensure_in_service()?;
    }
    bench.ensure_clean()
}

#[test]
fn cluster_s48_absurd_options_are_survived() -> Result<()> {
    let mut bench = Bench::start()?;
    let image = bench.a.option();
    let long = format!("--volume={}:/mnt", "/scratch".repeat(4000));
    let percent = "--image=%s%n%s%n";
    let newline = "--image=a\nb";
    for options in [
        &[image.as_str(), &long][..],
        &[percent],
        &[newline],
        &["--image=\u{1b}[31m"],
    ] {
        for output in submit_all_ways(&bench, options)? {
            ensure!(
                output.code != 0 && !output.stderr.contains('\u{1b}'),
                "{output}"
            );
        }
    }
    // More than a command line can have stands in a script.
    let many = (0..10_000).map(|n| format!("#SBATCH --volume=/scratch/alice:/v{n}\n"));
    for (options, line) in [
        (
            many.collect::<String>().into_bytes(),
            "longer than 32768 bytes",
        ),
        (
            [&b"#SBATCH --volume="[..], &[b'x'; 1 << 20]].concat(),
            "longer than 32768 bytes",
        ),
        (b"#SBATCH --module=\xff\xfe".to_vec(), "is not UTF-8 text"),
    ] {
        let script = [&b"#!/bin/sh\n"[..], &options, b"\ntrue\n"].concat();
        let call = Call::new(["sbatch", &image]).by(Alice).input(script);
        let output = call.output()?;
        ensure!(
            output.code > 0 && !output.died() && output.stdout.is_empty(),
            "{output}"
        );
        ensure!(output.stderr.contains(line), "{output}");
    }
    for node in ["n1", "n2"] {
        bench.cluster.node_mut(node)?.ensure_slurmd_lives()?;
    }
    bench.ensure_clean()
}
