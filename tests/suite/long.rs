//! What takes minutes: soaks and races. `make test-long` runs it all, CI a slice each time.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::User::{Alice, Bob};

use crate::bench::Bench;

#[test]
#[ignore = "takes minutes: make test-long"]
fn long_cluster_jobs_cancelled_at_any_moment() -> Result<()> {
    let bench = Bench::start()?;
    let image = bench.a.option();
    // From submission to well after the tasks have started, twice.
    for round in 0..2 {
        for delay in (0..900).step_by(9) {
            let options = ["-N2", "--ntasks-per-node=1", &image, "--output=/dev/null"];
            let job = bench
                .cluster
                .submit(Alice, &options, "srun shifter sleep 60")?;
            sleep(Duration::from_millis(delay));
            job.cancel()?;
            let info = job.wait()?;
            let context = || format!("round {round}, cancelled after {delay} ms: {info:?}");
            ensure!(info.state() == "CANCELLED", "{}", context());
            if delay % 90 == 0 {
                bench.ensure_clean().with_context(context)?;
            }
        }
    }
    bench.ensure_clean()
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn long_cluster_thousand_jobs_of_two_users_at_once() -> Result<()> {
    let bench = Bench::start()?;
    let submit = |count: usize| -> Result<()> {
        let script = "for n in 1 2 3; do [ $(shifter cat /etc/marker) = $WANTED ] || exit 1; done";
        let mut jobs = Vec::new();
        for number in 0..count {
            let (user, image, name) = match number % 4 {
                0 => (Alice, &bench.a, "a"),
                1 => (Bob, &bench.b, "b"),
                2 => (Alice, &bench.b, "b"),
                _ => (Bob, &bench.a, "a"),
            };
            let wanted = format!("--export=ALL,WANTED={name}");
            let options = [&image.option(), &wanted, "--output=/dev/null"];
            jobs.push(bench.cluster.submit(user, &options, script)?);
        }
        jobs.iter()
            .try_for_each(|job| job.wait()?.expect("COMPLETED", "0:0"))
    };
    let mut sizes = Vec::new();
    for _ in 0..11 {
        submit(100)?;
        bench.ensure_clean()?;
        let nodes = bench.cluster.nodes().iter();
        let all: Vec<u64> = nodes
            .map(|node| node.slurmd_rss_kib())
            .collect::<Result<_>>()?;
        sizes.push(all.into_iter().max().unwrap_or_default());
    }
    // slurmd remembers users and credentials, so it grows at first, with or without the plugin.
    ensure!(
        sizes[10] <= sizes[5] + 512,
        "slurmd's KiB per 100 jobs: {sizes:?}"
    );
    Ok(())
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn long_cluster_private_containers_in_parallel() -> Result<()> {
    let bench = Bench::start()?;
    let node = bench.cluster.node("n1")?;
    let before = Snapshot::take(Some(&bench.cluster))?;
    for _ in 0..20 {
        let script = format!(
            "for n in $(seq 64); do shifter --image={} cat /etc/marker & done; wait",
            bench.a.reference
        );
        let output = node.call(["bash", "-c", &script]).by(Alice).output()?;
        ensure!(output.stdout == "a\n".repeat(64), "{output}");
        before.ensure_restored(Some(&bench.cluster))?;
    }
    Ok(())
}
