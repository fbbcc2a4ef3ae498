//! A soak: many short jobs of every kind at once, some cancelled, while slurmd is restarted; and
//! then nothing of them is left, and everything that was done is in the books.
//!
//! What happens is decided by a seed, which is printed. `SHIFTER_SOAK_SEED` sets it, so that a run
//! can be had again; when things happen is up to the machine.

mod books;
mod plan;
mod run;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::product::Product;
use shifter_tests::report;
use shifter_tests::snapshot::Snapshot;
use shifter_tests::syslog::Syslog;
use shifter_tests::world::User;

use crate::bench::Bench;
use plan::{Plan, Restart};
use run::Story;

const NODES: usize = 4;

/// Where all nodes meet.
const STATE: &str = "/var/lib/shifter/state";

/// A directory of each node's own.
const METRICS: &str = "/run/metrics";

/// By how much a slurmd may grow, in KiB, once it has seen some jobs.
const GROWTH: u64 = 1024;

#[test]
fn cluster_soak_leaves_nothing_and_all_of_it_is_in_the_books() -> Result<()> {
    let is_long = std::env::var_os("SHIFTER_LONG_TESTS").is_some();
    let seed = std::env::var("SHIFTER_SOAK_SEED");
    let seed = seed.map_or(Ok(7), |text| text.parse())?;
    let jobs = if is_long { 500 } else { 60 };
    // A slurmd that is killed costs a minute, until slurmctld asks it again for its jobs' ends.
    let plans = plan::plans(seed, jobs, NODES, is_long);
    soak(seed, &plans).with_context(|| format!("SHIFTER_SOAK_SEED={seed}, {jobs} jobs"))
}

fn soak(seed: u64, plans: &[Plan]) -> Result<()> {
    let mut bench = Bench::start_with(|product, options| {
        options.nodes = NODES;
        configure(product)
    })?;
    let mut logs = Vec::new();
    for node in bench.cluster.nodes() {
        node.shell(&format!("install -d -m 0755 {METRICS}")).ok()?;
        let file = format!("/var/log/slurm/syslog.{}.out", node.name());
        logs.push(Syslog::start(|script| node.shell(script), &file)?);
    }
    let clean = Snapshot::take(Some(&bench.cluster))?;
    let spaces = namespaces()?;
    let began = Instant::now();

    let story = run::run(&mut bench, plans)?;

    let took = began.elapsed();
    bench.cluster.wait_until_idle()?;
    let forgotten = forgotten(&bench, &story);
    tear_down(&bench, &forgotten)?;
    clean.ensure_restored(Some(&bench.cluster))?;
    bench.cluster.ensure_in_service()?;
    wait_for("the end of every namespace", 10, || {
        Ok((namespaces()? == spaces).then_some(()))
    })?;
    // What the state of a forgotten job says is removed when it is old.
    let is_forgotten = |path: &String| {
        let mut jobs = forgotten.iter();
        jobs.any(|(_, job)| path.split(['/', '.']).any(|part| part == job))
    };
    let shared: Vec<String> = shared()?
        .into_iter()
        .filter(|path| !is_forgotten(path))
        .collect();
    ensure!(shared.is_empty(), "shared state: {shared:?}");
    let summary = books::balance(&bench.cluster, &logs, &story, METRICS)?;
    let restarts = |kind| {
        let same = |(_, found): &&(usize, Restart)| *found == kind;
        story.restarts.iter().filter(same).count()
    };
    report::line(&format!(
        "soak with seed {seed}: {} jobs in {}; slurmd ended {} times and killed {} times, \
         which {} jobs felt; Slurm lost {} of them and the epilogs of {}; {summary}; \
         KiB of a slurmd: {:?}",
        plans.len(),
        report::seconds(took),
        restarts(Restart::Ended),
        restarts(Restart::Killed),
        story.jobs.iter().filter(|job| job.is_excused).count(),
        story.stuck,
        forgotten.len(),
        story.sizes,
    ));
    ensure!(
        story.complaints.is_empty(),
        "{}",
        story.complaints.join("\n")
    );
    let (middle, last) = (story.sizes[story.sizes.len() / 2], story.sizes.last());
    ensure!(
        last.is_some_and(|last| *last <= middle + GROWTH),
        "slurmd grows: {:?} KiB",
        story.sizes
    );
    Ok(())
}

/// Returns the jobs that Slurm forgot, with their nodes: a slurmd that dies after it was told of a
/// job's end, and before the epilog, runs none when it is started again, and says so.
fn forgotten(bench: &Bench, story: &Story) -> BTreeSet<(usize, String)> {
    let mut found = BTreeSet::new();
    for (number, node) in bench.cluster.nodes().iter().enumerate() {
        if story.restarts.contains(&(number, Restart::Killed)) {
            let log = node.log();
            let told = log.split("revoke on job ").skip(1);
            let told = told.filter_map(|rest| rest.split_once(" has no expiration"));
            found.extend(told.map(|(job, _)| (number, job.to_owned())));
        }
    }
    found
}

/// Tears down as an administrator what is left of jobs that Slurm forgot, and fails if anything of
/// others is.
fn tear_down(bench: &Bench, forgotten: &BTreeSet<(usize, String)>) -> Result<()> {
    for (number, node) in bench.cluster.nodes().iter().enumerate() {
        let list = "ls /run/shifter/jobs 2>/dev/null || true";
        for job in node.shell(list).ok()?.lines() {
            ensure!(
                forgotten.contains(&(number, job.to_owned())),
                "job {job} is left on {}, whose slurmd has not forgotten it",
                node.name()
            );
            let unset = bench.product.path("sbin/unsetupRoot");
            node.call([&*unset, job]).ok()?;
        }
    }
    Ok(())
}

/// Lets nodes tell each other who users are, and count what they do.
fn configure(product: &Product) -> Result<()> {
    let owner = User::Shifter.uid();
    Call::new(["rm", "-rf", STATE]).ok()?;
    fs::create_dir(STATE)?;
    fs::set_permissions(STATE, fs::Permissions::from_mode(0o700))?;
    chown(STATE, Some(owner), Some(owner))?;
    product.configure(&format!(
        "[shared_state]\npath = '{STATE}'\nowner = {owner}\n[metrics]\ntextfile = '{METRICS}'\n"
    ))
}

/// Lists what is left of jobs in the shared state.
fn shared() -> Result<Vec<String>> {
    let find = ["find", STATE, "-mindepth", "2", "-printf", "%P %T+\n"];
    Ok(Call::new(find).ok()?.lines().map(str::to_owned).collect())
}

/// Lists the namespaces in which processes are.
fn namespaces() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        // Not a process, or one that has ended meanwhile.
        let Ok(links) = fs::read_dir(entry.path().join("ns")) else {
            continue;
        };
        for link in links.flatten() {
            let space = fs::read_link(link.path()).unwrap_or_default();
            found.insert(space.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}
