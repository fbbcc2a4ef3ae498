//! What the plugin costs the users of Slurm: unused, for steps and for jobs in an image, and for
//! jobs of many nodes.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::cluster::{Cluster, Options};
use shifter_tests::job::Job;
use shifter_tests::world::User;

use crate::program::Program;
use crate::site::Site;
use crate::table::{Case, Goal, Heading, Row, compare, finish, row};

const PLUGSTACK: &str = "/etc/slurm/plugstack.conf";

const PLAIN: &str = "srun /bin/true";
const PLAIN_STEP: &str = "a step, without the plugin";
const PLAIN_JOB: &str = "a job, without the plugin";
const EMPTY_JOB: &str = "srun /bin/true, as a job";
const PLAIN_WIDE: &str = "srun, without an image";

/// How many times as many rounds show a difference of a tenth of what the machine adds by itself.
const PAIRS: usize = 4;

/// Rounds of the script before those that count.
const WARM_UP: usize = 2;

/// Measures one node: the first rounds count nothing.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let cluster = Cluster::start(&Options {
        plugstack: site.product.plugstack(),
        ..Options::default()
    })?;
    let mut rows = unused(site, &cluster, rounds)?;
    rows.extend(steps(site, &cluster, rounds)?);
    rows.extend(jobs(site, &cluster, rounds)?);
    Ok(rows)
}

/// Srun in clusters that differ by a line of plugstack.conf, which srun and slurmstepd read anew
/// each time.
fn unused(site: &Site, cluster: &Cluster, rounds: usize) -> Result<Vec<Row>> {
    let holder = hold(cluster, &["-wn1"])?;
    let job = format!("--jobid={}", holder.id());
    let step = ["srun", "--overlap", "-n1", "-N1", &job];
    let (step, whole) = (Program::of_user(&step), Program::of_user(&JOB));
    let loaded = site.product.plugstack();
    // Prologs of plugins are run by slurmd, with the plugins or without, where there is a file.
    let time = |program: &Program<'_>, plugins: &str| {
        settle(1)?;
        fs::write(PLUGSTACK, plugins)?;
        let took = program.time();
        settle(1)?;
        fs::write(PLUGSTACK, &loaded)?;
        took
    };
    let cases = vec![
        Case::timed(PLAIN_STEP, || time(&step, "")),
        Case::timed("a step, with the plugin unused", || time(&step, &loaded))
            .goal(Goal::More(1.0, PLAIN_STEP)),
        Case::timed(PLAIN_JOB, || time(&whole, "")),
        Case::timed("a job, with the plugin unused", || time(&whole, &loaded))
            .goal(Goal::More(1.0, PLAIN_JOB)),
    ];
    let heading = Heading {
        title: "srun of those who use no image",
        unit: "ms",
        base: PLAIN_STEP,
    };
    let rows = compare(heading, cases, PAIRS * rounds)?;
    end(cluster, &holder)?;
    Ok(rows)
}

/// Steps in an allocation with an image: by a script that takes their time itself, as users'
/// scripts start them.
fn steps(site: &Site, cluster: &Cluster, rounds: usize) -> Result<Vec<Row>> {
    let image = &site.image.option;
    let cases = [
        ("plain", PLAIN, Goal::None, String::new()),
        (
            "shifter",
            "srun shifter /bin/true",
            Goal::None,
            "shifter".into(),
        ),
        (
            "autoshift",
            "srun --autoshift --image, the job's",
            Goal::More(10.0, PLAIN),
            format!("--autoshift {image}"),
        ),
        (
            "own",
            "srun --autoshift --image, with set-up",
            Goal::More(20.0, PLAIN),
            format!("--autoshift {image} --volume=/scratch/alice:/mnt"),
        ),
    ];
    let line = |(label, _, _, words): &(&str, &str, Goal, String)| {
        format!("t {label} srun --overlap -n1 -N1 {words} /bin/true\n")
    };
    let forth: String = cases.iter().map(line).collect();
    let back: String = cases.iter().rev().map(line).collect();
    let script = format!(
        "t() {{ local label=$1 a=$EPOCHREALTIME; shift; \"$@\" || exit 1; local b=$EPOCHREALTIME
                echo \"$label $(( ${{b/./}} - ${{a/./}} ))\"; }}
        for i in $(seq {}); do if (( i % 2 )); then\n{forth}else\n{back}fi; done",
        rounds + WARM_UP
    );
    let (job, info) = cluster.run(User::Alice, &["-wn1", "-n4", image], &script)?;
    let output = job.output()?;
    ensure!(info.state() == "COMPLETED", "{output}");
    let mut rows = Vec::new();
    for (label, name, goal, _) in cases {
        let lines = output.lines().filter_map(|line| line.split_once(' '));
        let own = lines.filter(|(found, _)| *found == label);
        let millis: Vec<f64> = own
            .filter_map(|(_, micros)| micros.parse().ok())
            .map(|micros: f64| micros / 1e3)
            .collect();
        ensure!(millis.len() == rounds + WARM_UP, "{output}");
        rows.push(row(name, goal, millis[WARM_UP..].to_vec()));
    }
    let heading = Heading {
        title: "Steps inside an allocation",
        unit: "ms",
        base: PLAIN,
    };
    Ok(finish(heading, rows))
}

/// Jobs of one step, on a node where another job has the image.
fn jobs(site: &Site, cluster: &Cluster, rounds: usize) -> Result<Vec<Row>> {
    let image = &site.image.option;
    let holder = hold(cluster, &["-wn1", image])?;
    let shifted = [&JOB[..], &["--autoshift", image]].concat();
    let (plain, shifted) = (Program::of_user(&JOB), Program::of_user(&shifted));
    shifted.prove(crate::site::UID)?;
    let time = |program: &Program<'_>| {
        settle(1)?;
        program.time()
    };
    let cases = vec![
        Case::timed(EMPTY_JOB, || time(&plain)),
        Case::timed("srun --autoshift --image, as a job", || time(&shifted))
            .goal(Goal::More(20.0, EMPTY_JOB)),
    ];
    let heading = Heading {
        title: "Jobs of one step, the image mounted on the node already",
        unit: "ms",
        base: EMPTY_JOB,
    };
    let rows = compare(heading, cases, rounds)?;
    end(cluster, &holder)?;
    Ok(rows)
}

/// Measures a job of many nodes, from its allocation to the moment at which its last task runs.
pub fn measure_wide(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let nodes = site.scale.nodes;
    let cluster = Cluster::start(&Options {
        nodes,
        plugstack: site.product.plugstack(),
        ..Options::default()
    })?;
    let known = Cell::new(0);
    let time = |words: &[&str]| -> Result<Duration> {
        settle(0)?;
        known.set(cluster.controller_log().len());
        let all = [
            "srun".to_owned(),
            format!("-N{nodes}"),
            format!("-n{nodes}"),
        ];
        let words = words.iter().map(|word| (*word).to_owned());
        let call = Call::new(all.into_iter().chain(words)).by(User::Alice);
        let output = call.output()?.success()?;
        let moments = output.stdout.lines().map(str::parse);
        let moments: Vec<u64> = moments.collect::<Result<_, _>>()?;
        ensure!(moments.len() == nodes, "{output}");
        let last = Duration::from_micros(moments.into_iter().max().unwrap_or_default());
        let log = cluster.controller_log();
        last.checked_sub(allocated(&log[known.get()..])?)
            .context("a task ran before its job was allocated")
    };
    let image = &site.image.option;
    const INSIDE: &str = "/usr/local/bin/floor";
    let cases = vec![
        Case::timed(PLAIN_WIDE, || time(&[&site.floor, "now"])),
        Case::timed("srun --image shifter", || {
            time(&[image, "shifter", INSIDE, "now"])
        })
        .goal(Goal::Times(1.3, PLAIN_WIDE)),
        Case::timed("srun --autoshift --image", || {
            time(&[image, "--autoshift", INSIDE, "now"])
        })
        .goal(Goal::Times(1.3, PLAIN_WIDE)),
    ];
    let title = format!("{nodes} nodes on this machine, from allocation to the last task");
    let heading = Heading {
        title: &title,
        unit: "ms",
        base: PLAIN_WIDE,
    };
    let rows = compare(heading, cases, rounds)?;
    // The image stays on a node until its epilog is over.
    settle(0)?;
    Ok(rows)
}

/// A job of one step on the first node.
const JOB: [&str; 5] = ["srun", "--quiet", "-n1", "-N1", "-wn1"];

/// Starts a job that does nothing, and waits until it does.
fn hold(cluster: &Cluster, options: &[&str]) -> Result<Job> {
    let job = cluster.submit(User::Alice, options, "echo here; exec sleep infinity")?;
    job.wait_for_output("here")?;
    Ok(job)
}

fn end(cluster: &Cluster, holder: &Job) -> Result<()> {
    holder.cancel()?;
    holder.wait()?;
    cluster.wait_until_idle()
}

/// Waits until Slurm is done with all jobs but so many.
fn settle(others: usize) -> Result<()> {
    wait_for("the end of jobs", 60, || {
        let listed = Call::new(["squeue", "-h", "-o", "%i"]).ok()?;
        Ok((listed.lines().count() <= others).then_some(()))
    })
}

/// Returns when slurmctld has allocated nodes to a job, as its log says first.
fn allocated(log: &str) -> Result<Duration> {
    let line = log
        .lines()
        .find(|line| line.contains("llocate") && line.contains(" NodeList=n["))
        .with_context(|| format!("no allocation: {log}"))?;
    let moment = line.trim_start_matches('[').split(']').next();
    let millis = Call::new(["date", "+%s%3N", "-d", moment.unwrap_or_default()]).ok()?;
    Ok(Duration::from_millis(millis.trim().parse()?))
}
