//! The bench itself: what it says of a node must be true, or no other test means anything.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::cluster::{Cluster, Options};
use shifter_tests::image::Recipe;
use shifter_tests::registry::Registry;
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::User::Alice;

use crate::bench::turn;

#[test]
fn bench_snapshot_notices_everything_that_is_left() -> Result<()> {
    let _turn = turn()?;
    let cluster = Cluster::start(&Options {
        nodes: 1,
        ..Options::default()
    })?;
    let before = Snapshot::take(Some(&cluster))?;
    let leaks = [
        ("mount", "mount -t tmpfs leak /mnt", "umount /mnt"),
        (
            "mount",
            "mkdir -p /tmp/a; mount --bind /tmp/a /opt",
            "umount /opt",
        ),
        (
            "loop",
            "truncate -s 1M /var/lib/shifter/x; losetup -f /var/lib/shifter/x",
            "losetup -d $(losetup -n -O NAME -j /var/lib/shifter/x)",
        ),
        (
            "process",
            "setsid setpriv --reuid 2001 sleep 100 >/dev/null 2>&1 & sleep 0.2",
            "pkill -u alice",
        ),
        (
            "file",
            "mkdir -p /run/shifter/jobs/17 && touch /run/shifter/jobs/17/lock",
            "rm -r /run/shifter/jobs/17",
        ),
        (
            "cgroup",
            "mkdir -p /sys/fs/cgroup/freezer/slurm_n1/uid_1/job_9",
            "rmdir /sys/fs/cgroup/freezer/slurm_n1/uid_1/job_9",
        ),
    ];
    for (kind, leak, repair) in leaks {
        cluster.nodes()[0].shell(leak).ok()?;
        let after = Snapshot::take(Some(&cluster))?;
        let found = before.differences(&after);
        ensure!(before.left(&after, kind) > 0, "{leak}: {found:?}");
        cluster.nodes()[0].shell(repair).ok()?;
        before.ensure_restored(Some(&cluster))?;
    }
    Ok(())
}

#[test]
fn bench_cluster_runs_plain_jobs_and_stays_clean() -> Result<()> {
    let _turn = turn()?;
    let mut cluster = Cluster::start(&Options::default())?;
    let before = Snapshot::take(Some(&cluster))?;
    ensure!(cluster.srun(Alice, ["-N2", "hostname"]).ok()?.len() == 6);
    let (job, info) = cluster.run(Alice, &["-N2"], "srun hostname | sort; id -u; exit 3")?;
    info.expect("FAILED", "3:0")?;
    ensure!(job.output()? == "n1\nn2\n2001\n", "{}", job.output()?);
    cluster.node_mut("n1")?.restart_slurmd()?;
    cluster.node_mut("n1")?.ensure_slurmd_lives()?;
    ensure!(cluster.srun(Alice, ["-w", "n1", "hostname"]).ok()? == "n1\n");
    before.ensure_restored(Some(&cluster))
}

#[test]
fn bench_registry_serves_what_was_pushed() -> Result<()> {
    let _turn = turn()?;
    let registry = Registry::start(5000)?;
    let image = Recipe::tiny("a").env("X", "y").build()?;
    registry.push(&image, "a/b:1")?;
    let from = format!("docker://{}/a/b:1", registry.address());
    Call::new([
        "skopeo",
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        "--quiet",
    ])
    .args([from.as_str(), "oci:/tmp/copy:1"])
    .ok()?;
    Call::new(["umoci", "unpack", "--image", "/tmp/copy:1", "/tmp/bundle"]).ok()?;
    ensure!(fs::read_to_string("/tmp/bundle/rootfs/etc/marker")? == "a\n");
    ensure!(fs::exists(format!(
        "/tmp/copy/blobs/sha256/{}",
        image.id()
    ))?);
    Ok(())
}
