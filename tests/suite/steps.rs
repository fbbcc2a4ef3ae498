//! Steps with an image of their own, and Slurm's other ways of starting work.

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::job::{Job, of_tasks};
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

/// Names of the roots that a job has on a node.
fn roots(bench: &Bench, node: &str, job: &str) -> Result<Vec<String>> {
    let list = format!("ls /run/shifter/jobs/{job}/roots 2>/dev/null || true");
    let text = bench.cluster.node(node)?.shell(&list).ok()?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Cancels a job, after which nothing of it is left.
fn end(bench: &Bench, job: &Job) -> Result<()> {
    job.cancel()?;
    job.wait()?;
    bench.cluster.wait_until_idle()?;
    bench.ensure_clean()
}

#[test]
fn cluster_steps_have_images_of_their_own_side_by_side() -> Result<()> {
    let bench = Bench::start()?;
    let b = bench.b.option();
    let script = format!(
        "srun {b} shifter cat /etc/marker
         srun -N1 -n1 {b} --autoshift sh -c 'sleep 2; cat /etc/marker' >one &
         srun -N1 -n1 shifter cat /etc/marker >two &
         srun -N1 -n1 {b} --volume=/scratch/alice:/mnt --overlap shifter ls -d /mnt >three &
         wait; cat one two three; srun -N1 -n1 {} shifter cat /etc/marker
         srun {b} sh -c 'echo $SHIFTER_IMAGEREQUEST' | sort -u; env | grep -c ^SLURM_STEP_SHIFTER
         echo done; sleep 60",
        bench.a.option()
    );
    let options = ["-N2", "--ntasks-per-node=2", "-n4", &bench.a.option()];
    let job = bench.cluster.submit(Alice, &options, &script)?;
    job.wait_for_output("done")?;
    let output = of_tasks(&job.output()?);
    let expected = format!(
        "{}b\na\n/mnt\na\n{}\n0\ndone\n",
        "b\n".repeat(4),
        bench.b.reference
    );
    ensure!(output == expected, "{output}");
    for node in ["n1", "n2"] {
        wait_for("the end of the steps' roots", 5, || {
            Ok((roots(&bench, node, job.id())? == ["job"]).then_some(()))
        })?;
    }
    end(&bench, &job)
}

#[test]
fn cluster_steps_from_outside_of_their_job_have_what_they_ask_for() -> Result<()> {
    let bench = Bench::start()?;
    let (a, b) = (bench.a.option(), bench.b.option());
    let start = |options: &[&str]| -> Result<Job> {
        let options = [&["-wn1", "-n1"], options].concat();
        let job = bench
            .cluster
            .submit(Alice, &options, "echo up; sleep 300")?;
        job.wait_for_output("up")?;
        Ok(job)
    };
    let (with, without) = (start(&[&a])?, start(&[])?);
    let marker = |job: &Job, words: &[&str]| {
        let call = Call::new(["srun", "--overlap", "-n1", &format!("--jobid={}", job.id())]);
        let call = call
            .args(words.iter().copied())
            .args(["cat", "/etc/marker"]);
        call.by(Alice).output()
    };
    for (job, words, expected) in [
        (&with, &["shifter"][..], "a\n"),
        (&with, &[&a, "shifter"], "a\n"),
        (&with, &[&b, "shifter"], "b\n"),
        (&with, &[&b, "--autoshift"], "b\n"),
        (&with, &[&a, "--autoshift"], "a\n"),
        (&without, &[&b, "shifter"], "b\n"),
    ] {
        let output = marker(job, words)?;
        ensure!(
            output.code == 0 && output.stdout == expected,
            "{words:?}: {output}"
        );
    }
    // srun cannot tell which image the job has.
    let output = marker(&with, &["--autoshift"])?;
    ensure!(
        output.code != 0 && output.stderr.contains("hint: add --image=REF"),
        "{output}"
    );
    wait_for("the end of the steps' roots", 5, || {
        let left = (
            roots(&bench, "n1", with.id())?,
            roots(&bench, "n1", without.id())?,
        );
        Ok((left == (vec!["job".to_owned()], vec![])).then_some(()))
    })?;
    without.cancel()?;
    end(&bench, &with)
}

#[test]
fn cluster_steps_in_jobs_without_an_image_have_their_own() -> Result<()> {
    let bench = Bench::start()?;
    let b = bench.b.option();
    let script = format!(
        "srun {b} shifter cat /etc/marker; srun {b} --autoshift cat /etc/marker; srun hostname
         srun {b} --volume=/scratch/alice/none:/x true 2>&1 | grep -v srun: | head -n1; echo done; sleep 60"
    );
    let job = bench.cluster.submit(Alice, &["-N1"], &script)?;
    job.wait_for_output("done")?;
    let output = of_tasks(&job.output()?);
    let lines: Vec<&str> = output.lines().collect();
    ensure!(
        lines.len() == 5 && lines[..3] == ["b", "b", "n1"],
        "{output}"
    );
    ensure!(
        lines[3].starts_with("shifter: ") && lines[3].contains("'/scratch/alice/none'"),
        "{output}"
    );
    wait_for("the end of the job's state", 5, || {
        Ok(roots(&bench, "n1", job.id())?.is_empty().then_some(()))
    })?;
    end(&bench, &job)
}

#[test]
fn cluster_steps_that_die_leave_no_root() -> Result<()> {
    let bench = Bench::start()?;
    let (a, b) = (bench.a.option(), bench.b.option());
    let script = format!(
        "srun {b} --autoshift sh -c 'echo in >cancelled; sleep 90' &
         until [ -e cancelled ]; do sleep 0.1; done; scancel $SLURM_JOB_ID.0; wait
         echo mark-1; until [ -e go ]; do sleep 0.1; done
         srun --overlap {b} --autoshift sh -c 'echo in >killed; sleep 90' &
         until [ -e killed ]; do sleep 0.1; done; echo mark-2; until [ -e on ]; do sleep 0.1; done
         srun --overlap {b} --autoshift cat /etc/marker; echo mark-3; sleep 90"
    );
    let job = bench.cluster.submit(Alice, &["-N1", &a], &script)?;
    job.wait_for_output("mark-1")?;
    let has = |names: &[&str]| {
        wait_for(&format!("roots {names:?}"), 10, || {
            Ok((roots(&bench, "n1", job.id())? == names).then_some(()))
        })
    };
    has(&["job"])?;
    Call::new(["touch", "go"]).by(Alice).ok()?;
    // A word of its own: srun itself speaks of seconds.
    job.wait_for_output("mark-2")?;
    has(&["job", "step-1"])?;
    // Nobody is left who would remove it, until the next one comes.
    let kill = format!("pkill -KILL -f 'slurmstepd: \\[{}.1\\]'", job.id());
    Call::shell(&kill).ok()?;
    Call::new(["touch", "on"]).by(Alice).ok()?;
    job.wait_for_output("mark-3")
        .with_context(|| job.output().unwrap_or_default())?;
    ensure!(job.output()?.contains("\nb\nmark-3"), "{}", job.output()?);
    has(&["job"])?;
    job.cancel()?;
    job.wait()?;
    bench.cluster.wait_until_idle()?;
    // What Slurm itself leaves of a step whose daemon was killed.
    let cgroups = format!(
        "find /sys/fs/cgroup/freezer/slurm_n1 -depth -path '*/job_{}*' -type d -delete",
        job.id()
    );
    Call::shell(&cgroups).ok()?;
    bench.ensure_clean()
}

#[test]
fn cluster_every_way_of_starting_steps_finds_the_container() -> Result<()> {
    let bench = Bench::start_with(|_, options| {
        options.slurm_conf = "LaunchParameters=use_interactive_step".into();
        Ok(())
    })?;
    let image = bench.a.option();
    // Several at once, sharing CPUs, with files sent ahead, and while slurmd reads its configuration.
    let script = "for i in 1 2 3; do srun -N1 -n1 --overlap --autoshift cat /etc/marker & done; wait
        srun -N1 -n1 --overlap shifter sleep 30 & sleeper=$!
        srun -N1 -n1 --overlap --autoshift cat /etc/marker; kill $sleeper; wait
        cp $(which busybox) busybox; srun --bcast=/tmp/busybox -N2 -n2 --autoshift ./busybox cat /etc/marker
        sbcast --force busybox /tmp/busybox; srun -N2 -n2 --autoshift /tmp/busybox cat /etc/marker
        scontrol show job $SLURM_JOB_ID | grep -c JobState=RUNNING; echo ready; until [ -e go ]; do sleep 0.1; done
        srun --exact -n2 --autoshift cat /etc/marker; echo done";
    let options = ["-N2", "-n2", "--ntasks-per-node=1", &image];
    let job = bench.cluster.submit(Alice, &options, script)?;
    job.wait_for_output("ready")
        .with_context(|| job.output().unwrap_or_default())?;
    Call::new(["scontrol", "reconfigure"]).ok()?;
    Call::new(["touch", "go"]).by(Alice).ok()?;
    let info = job.wait()?;
    let output = job.output()?;
    let markers = output.lines().filter(|line| *line == "a").count();
    ensure!(
        markers == 10 && output.ends_with("a\na\ndone\n"),
        "{output}"
    );
    info.expect("COMPLETED", "0:0")?;

    // An interactive step: salloc's shell is a task on the job's first node.
    let typed = "cat /etc/marker; hostname; shifter cat /etc/marker; exit 3\n";
    let shell = format!("salloc --quiet --autoshift {image}");
    let shell = format!("SHELL=/bin/sh script -qec '{shell}' /dev/null");
    let output = Call::shell(&shell).by(Alice).input(typed).output()?;
    let lines: Vec<&str> = output.stdout.lines().map(str::trim_end).collect();
    ensure!(
        lines.iter().filter(|line| **line == "a").count() == 2 && lines.contains(&"n1"),
        "{output}"
    );
    bench.cluster.wait_until_idle()?;
    bench.ensure_clean()
}
