//! What a per-node cache costs at the start, and what small writes gain by it: on the machine's own
//! disk, and on a FUSE pass-through that stands in for a parallel file system.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::product::Product;
use shifter_tests::world;

use crate::job::{JOB, Manifest, OTHER_JOB, end_job, in_job};
use crate::program::{Program, time};
use crate::site::{SHIFTER, Site, loop_devices};
use crate::table::{Case, Goal, Heading, Row, compare};

const DISK: &str = "/scratch/disk";
const FUSE: &str = "/scratch/fuse";
const TEMPLATES: &str = "/run/shifter/templates";

/// Each file system, and its case without a cache.
const VOLUMES: [(&str, &str, &str); 2] = [
    ("disk", DISK, "disk: a volume"),
    ("FUSE", FUSE, "FUSE: a volume"),
];

const ON_DISK: &str = "disk";
const ON_FUSE: &str = "FUSE";
/// Where a container has each, and what that is.
const TARGETS: [(&str, &str, &str, &str); 6] = [
    (ON_DISK, DISK, "/disk", ""),
    ("cache on disk, XFS", DISK, "/disk-xfs", "xfs"),
    ("cache on disk, ext4", DISK, "/disk-ext4", "ext4"),
    (ON_FUSE, FUSE, "/fuse", ""),
    ("cache on FUSE, XFS", FUSE, "/fuse-xfs", "xfs"),
    ("cache on FUSE, ext4", FUSE, "/fuse-ext4", "ext4"),
];

/// Measures both.
pub fn measure(site: &Site, rounds: usize) -> Result<Vec<Row>> {
    let places = Places::make(site)?;
    let mut rows = starts(site, &places, rounds)?;
    rows.extend(writes(site, &places, rounds)?);
    Ok(rows)
}

/// The two file systems and a site that has caches on them, until this is dropped.
struct Places {
    product: Product,
    low: PathBuf,
    /// Where the pass-through and those who write run: on two processors each call would take as
    /// long as it takes to wake one, five times as long on some machines, and caches would shine.
    cpu: String,
    /// The directory for caches, named so that their loop devices are known among others'.
    caches: String,
}

impl Places {
    fn make(site: &Site) -> Result<Self> {
        let places = Self {
            product: site.product,
            // Not in the world's memory: the disk below the build directory.
            low: world::target().join("testbed/caches"),
            cpu: first_cpu()?,
            caches: format!(".caches-{}", &site.image.id[..16]),
        };
        let (low, caches, cpu) = (places.low.display(), &places.caches, &places.cpu);
        Call::shell(&format!(
            "set -e; rm -rf {low}; mkdir -p {low}/disk {low}/fuse {DISK} {FUSE}
            mount --bind {low}/disk {DISK}; taskset -c {cpu} bindfs {low}/fuse {FUSE}
            for dir in {DISK} {FUSE}; do chmod 0755 $dir; mkdir -m 0700 $dir/{caches}
                install -d -o alice $dir/alice; done"
        ))
        .ok()?;
        let tables =
            [DISK, FUSE].map(|at| format!("[per_node_cache.'{at}']\ndir = '{at}/{caches}'\n"));
        places.product.configure(&tables.concat())?;
        Ok(places)
    }

    /// Waits until the kernel has freed all caches: what it still does for one would slow the next.
    fn wait_until_freed(&self) -> Result<()> {
        wait_for("the caches' loop devices to go", 60, || {
            Ok((loop_devices(&self.caches)? == 0).then_some(()))
        })
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // The world would take all of it away otherwise, but for the directory.
        let _ = self.product.configure("");
        let low = self.low.display();
        let script = format!("umount -l {FUSE} {DISK}; rmdir {FUSE} {DISK}; rm -rf {low}");
        let _ = Call::shell(&script).output();
    }
}

/// Returns the number of the first processor that may be used.
fn first_cpu() -> Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = list.and_then(|list| list.trim().split([',', '-']).next());
    Ok(first.context("no Cpus_allowed_list")?.to_owned())
}

/// Returns a volume, or if `fs` names a file system a cache.
fn volume(site: &Site, from: &str, to: &str, fs: &str) -> String {
    let size = site.scale.cache;
    match fs {
        "" => format!("{from}/alice:{to}"),
        _ => format!("{from}/alice:{to}:perNodeCache=size={size},fs={fs}"),
    }
}

/// Fails unless a job's container has this kind of file system there.
fn ensure_mounted(manifest: &Manifest, at: &str, kind: &str) -> Result<()> {
    let text = manifest.inside(&["/bin/cat", "/proc/self/mountinfo"])?;
    let line = text.lines().find(|line| line.contains(&format!(" {at} ")));
    let line = line.with_context(|| format!("nothing is mounted at {at}"))?;
    ensure!(line.contains(&format!(" - {kind}")), "no {kind}: {line}");
    Ok(())
}

fn starts(site: &Site, places: &Places, rounds: usize) -> Result<Vec<Row>> {
    // Another job keeps image and templates on the node.
    let keeper = Manifest::write(site, JOB)?;
    keeper.set_up()?;
    let start = |from: &str, fs: &str| -> Result<Duration> {
        let volumes = [volume(site, from, "/mnt", fs)];
        let other = Manifest::with_volumes(site, OTHER_JOB, &volumes)?;
        let took = other.set_up()?;
        ensure_mounted(&other, "/mnt", fs)?;
        other.tear_down()?;
        places.wait_until_freed()?;
        Ok(took)
    };
    let mut cases = Vec::new();
    for (place, from, base) in VOLUMES {
        cases.push(Case::timed(base, move || start(from, "")));
        for (name, fs) in [("XFS", "xfs"), ("ext4", "ext4")] {
            let without = format!("{place}: a cache, {name}, without a template");
            let cold = move || {
                if let Some(template) = template(fs)? {
                    fs::remove_file(template)?;
                }
                let took = start(from, fs)?;
                ensure!(template(fs)?.is_some(), "no template was kept");
                Ok(took)
            };
            cases.push(Case::timed(without, cold).goal(Goal::More(55.0, base)));
            let with = format!("{place}: a cache, {name}, with a template");
            let warm = move || {
                if template(fs)?.is_none() {
                    start(from, fs)?;
                }
                ensure!(template(fs)?.is_some(), "no template was kept");
                start(from, fs)
            };
            cases.push(Case::timed(with, warm).goal(Goal::More(6.0, base)));
        }
    }
    let title = format!(
        "setupRoot with a cache of {}, image mounted already",
        site.scale.cache
    );
    let heading = Heading {
        title: &title,
        unit: "ms",
        base: VOLUMES[0].2,
    };
    let rows = compare(heading, cases, rounds)?;
    keeper.tear_down()?;
    Ok(rows)
}

/// Returns the template for caches of this kind: all here have one size.
fn template(kind: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{kind}-");
    if !fs::exists(TEMPLATES)? {
        return Ok(None);
    }
    for entry in fs::read_dir(TEMPLATES)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn writes(site: &Site, places: &Places, rounds: usize) -> Result<Vec<Row>> {
    let volumes = TARGETS.map(|(_, from, to, fs)| volume(site, from, to, fs));
    let job = Manifest::with_volumes(site, JOB, &volumes)?;
    job.set_up()?;
    for (_, from, to, fs) in TARGETS {
        let kind = if fs.is_empty() && from == FUSE {
            "fuse"
        } else {
            fs
        };
        ensure_mounted(&job, to, kind)?;
    }
    let join = ["/usr/bin/taskset", "-c", &places.cpu, SHIFTER];
    let join = Program::of_user(&join);
    let mut cases = Vec::new();
    for (name, from, to, fs) in TARGETS {
        let (job, join) = (&job, &join);
        let case = Case::timed(name, move || write(site, job, join, to, &[]));
        // Ten times as fast as the file system below, and as fast as the local one.
        cases.push(match (fs, from) {
            ("", _) => case,
            (_, FUSE) => case
                .goal(Goal::Times(0.1, ON_FUSE))
                .goal(Goal::Times(1.1, ON_DISK)),
            _ => case.goal(Goal::Times(1.1, ON_DISK)),
        });
        let name = format!("{name}, and fsync");
        cases.push(Case::timed(name, move || {
            write(site, job, join, to, &["conv=fsync"])
        }));
    }
    let title = format!("dd: {} writes of 512 bytes", site.scale.writes);
    let heading = Heading {
        title: &title,
        unit: "ms",
        base: ON_FUSE,
    };
    let rows = compare(heading, cases, rounds)?;
    job.tear_down()?;
    places.wait_until_freed()?;
    end_job()?;
    Ok(rows)
}

/// Writes a new file as alice in the job's container, and removes it.
fn write(
    site: &Site,
    job: &Manifest,
    join: &Program<'_>,
    to: &str,
    more: &[&str],
) -> Result<Duration> {
    let (file, count) = (format!("{to}/file"), site.scale.writes);
    let (output, blocks) = (format!("of={file}"), format!("count={count}"));
    let dd = ["/bin/dd", "if=/dev/zero", &output, "bs=512", &blocks];
    let dd = [&dd[..], &["status=none"], more].concat();
    let took = in_job(|| time(&mut join.command(&dd)?))?;
    // What has not reached the disk yet never will: it does not disturb the next.
    let script = format!("wc -c <{file} && rm {file}");
    let written = job.inside(&["/bin/sh", "-c", &script])?;
    ensure!(
        written.trim().parse() == Ok(count * 512),
        "{written} bytes in {file}"
    );
    Ok(took)
}
