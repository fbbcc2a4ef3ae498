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
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::wait_for;
use shifter_tests::report;
use shifter_tests::shared::{self, share};
use shifter_tests::snapshot::Snapshot;
use shifter_tests::syslog::Syslog;

use crate::bench::Bench;
use plan::{Plan, Restart};

const NODES: usize = 4;

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
        share(product, &format!("[metrics]\ntextfile = '{METRICS}'\n"))
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
    let disturbed = story.jobs.iter().filter(|job| job.is_excused);
    let disturbed: BTreeSet<&str> = disturbed.filter_map(|job| job.id.as_deref()).collect();
    let forgotten = tear_down(&bench, &disturbed)?;
    clean.ensure_restored(Some(&bench.cluster))?;
    bench.cluster.ensure_in_service()?;
    wait_for("the end of every namespace", 10, || {
        Ok((namespaces()? == spaces).then_some(()))
    })?;
    // What an epilog did not come to is removed when it is old.
    let is_disturbed = |path: &String| {
        let mut parts = path.split(['/', '.']);
        parts.any(|part| disturbed.contains(part))
    };
    let shared: Vec<String> = shared::left()?
        .into_iter()
        .filter(|path| !is_disturbed(path))
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

/// Tears down as an administrator what is left of jobs whose epilog Slurm has not run to its end,
/// and returns them: a slurmd that ends takes its epilogs with it, and one that dies after it was
/// told of a job's end runs none when it is started again. Fails if anything of other jobs is left.
fn tear_down(bench: &Bench, disturbed: &BTreeSet<&str>) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for node in bench.cluster.nodes() {
        let list = "ls /run/shifter/jobs 2>/dev/null || true";
        for job in node.shell(list).ok()?.lines() {
            ensure!(
                disturbed.contains(job),
                "job {job} is left on {}, and no slurmd was restarted in its time",
                node.name()
            );
            let unset = bench.product.path("sbin/unsetupRoot");
            node.call([&*unset, job]).ok()?;
            found.insert(job.to_owned());
        }
    }
    Ok(found)
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
