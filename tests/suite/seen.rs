//! What those who look after a site see of jobs: the log, the counters, Slurm's own lists.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::product::CONFIG;
use shifter_tests::syslog::Syslog;
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

const METRICS: &str = "/var/lib/metrics";

/// Waits for the line of an event and returns it; there is one.
pub fn line_of(log: &Syslog, event: &str, job: &str) -> Result<String> {
    let begin = format!("event={event} job={job} ");
    let line = log.line(&begin)?;
    let text = log.text()?;
    ensure!(text.matches(&begin).count() == 1, "{text}");
    Ok(line)
}

#[test]
fn cluster_each_setup_and_teardown_is_a_line_and_counted() -> Result<()> {
    let bench = Bench::start()?;
    fs::create_dir_all(METRICS)?;
    let _ = fs::remove_file(format!("{METRICS}/shifter.prom"));
    bench
        .product
        .configure(&format!("[metrics]\ntextfile = '{METRICS}'\n"))?;
    let node = bench.cluster.node("n1")?;
    let log = Syslog::start(|script| node.shell(script), "/var/log/slurm/syslog.n1.out")?;

    let show = "echo $SLURM_JOB_ID";
    let args = ["-wn1", "shifter", "sh", "-c", show];
    let job = bench.srun(Alice, &bench.a, &args)?.success()?.stdout;
    let job = job.trim();
    let line = line_of(&log, "setup", job)?;
    ensure!(line.starts_with("<30>setupRoot["), "{line}");
    let id = bench.a.image.id();
    for field in [
        " root=job cluster=testbed uid=2001 node=n1 ",
        &format!(" image={id} request={} ", bench.a.reference),
        " lock_ms=",
        " image_ms=",
        " root_ms=",
        " pin_ms=",
        " total_ms=",
    ] {
        ensure!(line.contains(field), "{field}: {line}");
    }
    ensure!(line.ends_with(" outcome=done"), "{line}");
    let line = line_of(&log, "teardown", job)?;
    ensure!(
        line.starts_with("<30>unsetupRoot[") && line.ends_with(" outcome=done"),
        "{line}"
    );
    ensure!(
        line.contains(&format!(" image={id} ")) && line.contains(" strays_ms="),
        "{line}"
    );

    // A mistake of the user's, whose words are quoted.
    let volume = "--volume=/scratch/no outcome=done:/mnt";
    let args = ["-wn1", volume, "shifter", "true"];
    ensure!(bench.srun(Alice, &bench.a, &args)?.code != 0);
    let job = (job.parse::<u32>()? + 1).to_string();
    let line = line_of(&log, "setup", &job)?;
    ensure!(
        line.contains(" outcome=mistake code=") && line.ends_with('"'),
        "{line}"
    );
    line_of(&log, "teardown", &job)?;

    let text = fs::read_to_string(format!("{METRICS}/shifter.prom"))?;
    for line in [
        "shifter_setups_total{outcome=\"done\"} 1\n",
        "shifter_setups_total{outcome=\"mistake\"} 1\n",
        "shifter_teardowns_total{outcome=\"done\"} 2\n",
    ] {
        ensure!(text.contains(line), "{line}: {text}");
    }
    // Whoever may not be believed is not written to, and the job runs.
    Call::new(["chmod", "0777", METRICS]).ok()?;
    bench
        .srun(Alice, &bench.a, &["-wn1", "shifter", "true"])?
        .success()?;
    ensure!(fs::read_to_string(format!("{METRICS}/shifter.prom"))? == text);
    drop(log);
    bench
        .cluster
        .node("n1")?
        .shell("umount -R /dev; umount /run/dev; rmdir /run/dev")
        .ok()?;
    bench.ensure_clean()
}

/// What the log of n1 says of Shifter, without the time.
fn said(bench: &Bench) -> Result<Vec<String>> {
    let text = bench.cluster.node("n1")?.log();
    let ours = text.lines().filter(|line| line.contains("shifter: "));
    let without_time = ours.map(|line| {
        line.split_once("] ")
            .map_or(line, |(_, rest)| rest)
            .to_owned()
    });
    Ok(without_time.collect())
}

#[test]
fn cluster_messages_have_the_level_of_what_they_tell() -> Result<()> {
    let bench = Bench::start()?;
    let is_error = |line: &String| line.contains("error: ");
    let run = |options: &[&str]| {
        let before = said(&bench)?.len();
        let words = [&["-wn1"], options, &["shifter", "echo", "out"]].concat();
        let output = bench.srun(Alice, &bench.a, &words)?;
        bench.cluster.wait_until_idle()?;
        anyhow::Ok((output, said(&bench)?.split_off(before)))
    };
    // What goes well is told to nobody but the log, and there it is no error.
    let (output, lines) = run(&[])?;
    ensure!(
        output.code == 0 && output.stdout == "out\n" && output.stderr.is_empty(),
        "{output}"
    );
    let [line] = &lines[..] else {
        anyhow::bail!("{lines:?}");
    };
    ensure!(
        line.contains(": setupRoot: job ") && !is_error(line),
        "{line}"
    );
    // A mistake is its user's trouble and not the node's.
    let (output, lines) = run(&["--volume=/scratch/nowhere:/mnt"])?;
    ensure!(output.code != 0 && output.stdout.is_empty(), "{output}");
    let told = output.stderr.lines();
    let told: Vec<&str> = told.filter(|line| line.contains("shifter: ")).collect();
    ensure!(
        told.len() == 1 && told[0].contains("/scratch/nowhere"),
        "{output}"
    );
    ensure!(
        !lines.is_empty() && !lines.iter().any(is_error),
        "{lines:?}"
    );
    // So is what is refused before there is a job, and Slurm's programs say that it is an error.
    let refused = bench
        .cluster
        .srun(Alice, ["--image=UPPER", "true"])
        .output()?;
    ensure!(
        refused.stderr.starts_with("srun: error: shifter: ") && refused.stdout.is_empty(),
        "{refused}"
    );
    // What is the node's trouble is an error in its log.
    bench
        .cluster
        .node("n1")?
        .call(["umount", "/var/lib/shifter"])
        .ok()?;
    let before = said(&bench)?.len();
    let job = bench.cluster.submit(
        Alice,
        &["-wn1", "--no-requeue", &bench.a.option()],
        "echo ran",
    )?;
    wait_for("the node's complaint", 20, || {
        Ok((said(&bench)?.len() > before + 1).then_some(()))
    })?;
    let lines = said(&bench)?.split_off(before);
    ensure!(lines.iter().all(is_error), "{lines:?}");
    job.cancel()
}

#[test]
fn cluster_slurm_tells_a_jobs_image() -> Result<()> {
    let bench = Bench::start_with(|product, options| {
        fs::create_dir_all("/etc/slurm")?;
        fs::copy(
            product.path("share/shifter/job_submit.lua"),
            "/etc/slurm/job_submit.lua",
        )?;
        options.slurm_conf = "JobSubmitPlugins=lua".into();
        Ok(())
    })?;
    let told = format!("shifter={}", bench.a.reference);
    let image = bench.a.option();
    let show = "squeue -h -j $SLURM_JOB_ID -O admin_comment:100";
    let (job, info) = bench.cluster.run(Alice, &[&image], show)?;
    ensure!(info.field("AdminComment") == told, "{info:?}");
    ensure!(job.output()?.trim_end() == told, "{}", job.output()?);
    let (_, info) = bench.cluster.run(Alice, &[], "true")?;
    ensure!(info.field("AdminComment").is_empty(), "{info:?}");
    // And those of srun's own.
    let show = "scontrol show job $SLURM_JOB_ID -o";
    let output = bench.cluster.srun(Alice, [&*image, "bash", "-c", show]);
    let output = output.output()?.success()?;
    ensure!(
        output.stdout.contains(&format!(" AdminComment={told} ")),
        "{output}"
    );
    // In the user's own field, unless the user has something to say there.
    Call::shell(
        r#"sed -i 's/^local FIELD = .*/local FIELD = "comment"/' /etc/slurm/job_submit.lua"#,
    )
    .ok()?;
    Call::new(["scontrol", "reconfigure"]).ok()?;
    let (job, info) = bench
        .cluster
        .run(Alice, &[&image], "squeue -h -j $SLURM_JOB_ID -o %k")?;
    ensure!(info.field("Comment") == told, "{info:?}");
    ensure!(job.output()?.trim_end() == told, "{}", job.output()?);
    let (_, info) = bench
        .cluster
        .run(Alice, &[&image, "--comment=mine"], "true")?;
    ensure!(info.field("Comment") == "mine", "{info:?}");
    bench.ensure_clean()
}

#[test]
fn cluster_a_steps_root_is_counted_where_the_plugins_configuration_says() -> Result<()> {
    let other = "/etc/shifter/other.toml";
    let bench = Bench::start_with(|product, options| {
        fs::create_dir_all(METRICS)?;
        let _ = fs::remove_file(format!("{METRICS}/shifter.prom"));
        product.configure(&format!("[metrics]\ntextfile = '{METRICS}'\n"))?;
        fs::rename(CONFIG, other)?;
        product.configure("")?;
        let line = product.plugstack();
        options.plugstack = format!("{} shifter_config={other}\n", line.trim_end());
        Ok(())
    })?;
    let step = format!("srun {} --autoshift cat /etc/marker", bench.b.option());
    let job = bench.cluster.submit(Alice, &["-N1"], &step)?;
    job.wait()?;
    ensure!(job.output()? == "b\n", "{}", job.output()?);
    wait_for("a teardown that is counted", 10, || {
        let text = fs::read_to_string(format!("{METRICS}/shifter.prom"))?;
        let done = "shifter_teardowns_total{outcome=\"done\"} 1\n";
        Ok(text.contains(done).then_some(()))
    })?;
    fs::remove_file(other)?;
    bench.ensure_clean()
}
