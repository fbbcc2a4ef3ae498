//! `make bench` in small: that each measurement still measures what it says, not how long it takes.

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, Output};
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world;

use crate::bench::turn;

fn figures(words: &str) -> Result<Output> {
    let words = format!("BENCH=--noisy --tiny {words}");
    Call::new(["make", "--silent", "figures", &words])
        .cwd(world::checkout())
        .output()
}

/// Runs a bench once and fails unless it prints a figure for each case, and leaves nothing.
fn ensure_measured(name: &str, cases: &[&str]) -> Result<()> {
    let _turn = turn()?;
    let before = Snapshot::take(None)?;
    let output = figures(&format!("{name} 1"))?.success()?;
    for case in cases {
        let line = output.stdout.lines().find(|line| line.starts_with(case));
        let figure = line.and_then(|line| line[case.len()..].split_whitespace().next());
        let figure: Option<f64> = figure.and_then(|text| text.parse().ok());
        ensure!(
            figure.is_some_and(|figure| figure >= 0.0),
            "no figure for '{case}': {output}"
        );
    }
    let counted = output
        .stdout
        .lines()
        .any(|line| line.contains(" goals missed"));
    ensure!(counted, "{output}");
    ensure!(
        before.left(&Snapshot::take(None)?, "mount") == 0,
        "{output}"
    );
    before.ensure_restored(None)
}

#[test]
fn bench_starts_are_measured() -> Result<()> {
    ensure_measured(
        "starts",
        &[
            "bare mount",
            "shifter --image, first on the node",
            "chroot into a mount",
            "shifter, joining the job's root",
            "shifter --image, image mounted already",
            "setupRoot, image mounted already",
            "unsetupRoot",
        ],
    )
}

#[test]
fn bench_starts_at_once_share_one_loop_device() -> Result<()> {
    ensure_measured(
        "many",
        &["shifter --image, first on the node", "loop devices in use"],
    )
}

#[test]
fn bench_growth_of_etc_is_measured() -> Result<()> {
    ensure_measured("etc-growth", &["10 entries in /etc", "20 entries in /etc"])
}

#[test]
fn bench_walk_is_measured() -> Result<()> {
    ensure_measured("walk", &["bare mount", "shifter --image"])
}

#[test]
fn bench_system_calls_are_counted() -> Result<()> {
    ensure_measured(
        "syscalls",
        &[
            "shifter --image, image mounted already",
            "shifter, joining the job's root",
        ],
    )
}

#[test]
fn bench_page_cache_is_measured() -> Result<()> {
    ensure_measured(
        "page-cache",
        &[
            "file systems that the containers have",
            "not in memory for the next, once one has read it: %",
        ],
    )
}

#[test]
fn bench_per_node_caches_are_measured() -> Result<()> {
    ensure_measured(
        "caches",
        &[
            "disk: a volume",
            "disk: a cache, XFS, without a template",
            "FUSE: a cache, XFS, with a template",
            "FUSE: a cache, ext4, with a template",
            "cache on disk, ext4",
            "cache on FUSE, XFS",
            "cache on FUSE, XFS, and fsync",
        ],
    )
}

#[test]
fn bench_steps_of_a_job_are_measured() -> Result<()> {
    ensure_measured(
        "slurm",
        &[
            "a step, without the plugin",
            "a job, with the plugin unused",
            "srun shifter /bin/true",
            "srun --autoshift --image, the job's",
            "srun --autoshift --image, with set-up",
            "srun --autoshift --image, as a job",
        ],
    )
}

#[test]
fn bench_jobs_of_many_nodes_are_measured() -> Result<()> {
    ensure_measured(
        "slurm-wide",
        &["srun, without an image", "srun --autoshift --image"],
    )
}

#[test]
fn bench_that_does_not_exist_is_refused() -> Result<()> {
    let _turn = turn()?;
    let output = figures("nonsense 1")?;
    ensure!(
        output.code != 0 && output.stderr.contains("usage: "),
        "{output}"
    );
    Ok(())
}
