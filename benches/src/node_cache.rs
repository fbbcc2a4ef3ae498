//! What a per-node cache costs at the start, and what small writes gain by it: on the machine's own
//! disk, and on a FUSE pass-through that stands in for a parallel file system.

use std::fs;

use anyhow::Result;
use shifter_tests::call::Call;
use shifter_tests::product::{PREFIX, Product};
use shifter_tests::{report, world};

use crate::{Case, UID, compare, store};

const JOB: &str = "17";

/// Where the two file systems are mounted.
const PLACES: [&str; 2] = ["/disk", "/fuse"];

/// A set-up with a volume in the grammar of `--volume`.
fn set_up(name: &'static str, id: &str, job: &str, volumes: &[String]) -> Result<Case> {
    let manifest = serde_json::json!({
        "schema": 1, "cluster": "bench", "job": job, "restart": 0,
        "user": {"name": "alice", "uid": UID, "gid": UID, "home": "/home/alice",
                 "shell": "/bin/sh", "groups": []},
        "image": {"id": id, "reference": "docker:base:latest"},
        "volumes": volumes, "modules": [], "created": 1,
        "hosts": [{"name": "n1", "slots": 1}],
    });
    let path = format!("/tmp/manifest.{name}").replace(' ', "-");
    fs::write(&path, manifest.to_string())?;
    let program = format!("{PREFIX}/sbin/setupRoot");
    let (uid, job_option) = (format!("--expect-uid={UID}"), format!("--expect-job={job}"));
    Ok(Case {
        input: Some(path),
        after: Some(format!("{PREFIX}/sbin/unsetupRoot {job}")),
        ..Case::new(name, &[&program, "--manifest=-", &uid, &job_option])
    })
}

/// Measures both, `rounds` times.
pub fn run(rounds: usize) -> Result<()> {
    world::require()?;
    let product = Product::install()?;
    let low = world::target().join("testbed/caches");
    // Not in the world's memory: the disk below the build directory.
    Call::shell(&format!(
        "set -e; rm -rf {low}; mkdir -p {low}/disk {low}/fuse /disk /fuse /var/lib/below
        mount --bind {low}/disk /disk; mount --bind {low}/fuse /var/lib/below
        bindfs /var/lib/below /fuse
        for dir in /disk /fuse; do chmod 0755 $dir; mkdir -m 0700 $dir/.caches
            install -d -o alice $dir/alice; done",
        low = low.display()
    ))
    .ok()?;
    let tables = PLACES.map(|at| format!("[per_node_cache.'{at}']\ndir = '{at}/.caches'\n"));
    product.configure(&tables.concat())?;
    let text = fs::read_to_string("/etc/shifter/shifter.toml")?;
    let text = text.replace("['/scratch',", "['/disk', '/fuse', '/scratch',");
    product.configure_with(&text)?;
    let id = store()?;
    let measured = starts(&id, rounds).and_then(|()| writes(&id, rounds));
    Call::shell(&format!("umount /fuse /disk; rm -rf {}", low.display())).output()?;
    measured
}

fn starts(id: &str, rounds: usize) -> Result<()> {
    report::line("\nA job's start with a cache of 100 GB\n");
    // Another job keeps image and templates on the node.
    let keeper = Case {
        after: None,
        ..set_up("keeper", id, "1", &[])?
    };
    keeper.run()?;
    let volume = |at: &str, flags: &str| [format!("{at}/alice:/mnt{flags}")];
    let xfs = ":perNodeCache=size=100g";
    let ext4 = ":perNodeCache=size=100g,fs=ext4";
    let mut cases = vec![set_up("a volume", id, JOB, &volume("/disk", ""))?];
    for (name, at, flags) in [
        ("disk, XFS", "/disk", xfs),
        ("disk, ext4", "/disk", ext4),
        ("FUSE, XFS", "/fuse", xfs),
        ("FUSE, ext4", "/fuse", ext4),
    ] {
        let cold: &'static str = format!("{name}, the first of its size").leak();
        cases.push(Case {
            before: Some("rm -rf /run/shifter/templates".to_owned()),
            ..set_up(cold, id, JOB, &volume(at, flags))?
        });
        // The one before has left a template.
        cases.push(set_up(name, id, JOB, &volume(at, flags))?);
    }
    compare(&cases, rounds)?;
    Call::new([&*format!("{PREFIX}/sbin/unsetupRoot"), "1"])
        .ok()
        .map(drop)
}

fn writes(id: &str, rounds: usize) -> Result<()> {
    report::line("\n100,000 writes of 512 bytes (51.2 MB)\n");
    let cache =
        |at: &str, to: &str, fs: &str| format!("{at}/alice:{to}:perNodeCache=size=100g,fs={fs}");
    let volumes = [
        cache("/disk", "/mnt", "xfs"),
        cache("/disk", "/srv", "ext4"),
        cache("/fuse", "/media", "xfs"),
        cache("/fuse", "/home", "ext4"),
    ];
    // The site's /home would be hidden.
    let volumes = volumes.map(|volume| volume.replace(":/home:", ":/opt/cache:"));
    let keeper = Case {
        after: None,
        ..set_up("writer", id, JOB, &volumes)?
    };
    keeper.run()?;
    let pin = format!("--mount=/run/shifter/jobs/{JOB}/roots/job/mnt");
    let uid = UID.to_string();
    let mut cases = Vec::new();
    for (name, dir) in [
        ("disk", "/disk/alice"),
        ("cache on disk, XFS", "/mnt"),
        ("cache on disk, ext4", "/srv"),
        ("FUSE", "/fuse/alice"),
        ("cache on FUSE, XFS", "/media"),
        ("cache on FUSE, ext4", "/opt/cache"),
    ] {
        let file = format!("of={dir}/file");
        let remove = format!("nsenter {pin} rm -f {dir}/file; sync");
        for (suffix, end) in [("", "status=none"), (", fsync", "conv=fsync")] {
            let name: &'static str = format!("{name}{suffix}").leak();
            let argv = ["nsenter", &pin, "-S", &uid, "-G", &uid, "/bin/dd"];
            let dd = ["if=/dev/zero", &file, "bs=512", "count=100000", end];
            let dd = [&dd[..], &["status=none"]].concat();
            cases.push(Case {
                before: Some(remove.clone()),
                ..Case::new(name, &[&argv[..], &dd].concat())
            });
        }
    }
    compare(&cases, rounds)?;
    Call::new([&*format!("{PREFIX}/sbin/unsetupRoot"), JOB])
        .ok()
        .map(drop)
}
