//! What a node holds at one moment, and what has been left there since.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Error, Result, bail};

use crate::call::{Call, wait_for};
use crate::cluster::{Cluster, Node};
use crate::product::PREFIX;
use crate::world::User;

/// Programs that belong to a job and must be gone with it, whoever runs them.
const TRANSIENT: [&str; 5] = [
    "setupRoot",
    "unsetupRoot",
    "shifter",
    "shifterimg",
    "slurmstepd",
];

/// The state of every node and of the login host: one line of text per thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the login host and all nodes.
    pub fn take(cluster: Option<&Cluster>) -> Result<Self> {
        Self::take_at(&places(cluster))
    }

    /// Looks at the login host and at other places, each a name and a process there.
    pub fn take_at(places: &[(String, u32)]) -> Result<Self> {
        let mut snapshot = Self::take_without_loops(places)?;
        let loops = loop_devices()?;
        let shown = loops.iter().map(|device| format!("machine loop {device}"));
        snapshot.things.extend(shown);
        Ok(snapshot)
    }

    fn take_without_loops(places: &[(String, u32)]) -> Result<Self> {
        let mut things = BTreeSet::new();
        let login = [("login".to_owned(), std::process::id())];
        for (name, pid) in login.iter().chain(places) {
            mounts(name, *pid, &mut things)?;
            run_files(
                name,
                Path::new(&format!("/proc/{pid}/root/run/shifter")),
                &mut things,
            );
        }
        processes(&mut things)?;
        job_cgroups(Path::new("/sys/fs/cgroup/freezer"), &mut things);
        Ok(Self { things })
    }

    /// Returns what one has and the other has not: `+` for new things, `-` for missing ones.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let new = later
            .things
            .difference(&self.things)
            .map(|thing| format!("+ {thing}"));
        let gone = self
            .things
            .difference(&later.things)
            .map(|thing| format!("- {thing}"));
        new.chain(gone).collect()
    }

    /// Waits until everything is as it was, and fails naming what is not.
    pub fn ensure_restored(&self, cluster: Option<&Cluster>) -> Result<()> {
        self.ensure_restored_at(&places(cluster))
    }

    /// Does the same at other places.
    pub fn ensure_restored_at(&self, places: &[(String, u32)]) -> Result<()> {
        let others = |thing: &&String| !thing.starts_with("machine loop ");
        let same = || {
            let seen = Snapshot::take_without_loops(places)?;
            // To ask about a loop device is to open it, which keeps it from being freed: only when
            // everything else is in order is it time.
            let is_time = self.things.iter().filter(others).eq(&seen.things);
            Ok((is_time && Snapshot::take_at(places)? == *self).then_some(()))
        };
        let rest = || Ok::<_, Error>(self.differences(&Snapshot::take_at(places)?));
        let is_hint = |thing: &String| thing.contains(" file /run/shifter/images/");
        for seconds in [1, 10, 10] {
            if wait_for("a clean node", seconds, same).is_ok() {
                return Ok(());
            }
            // While the kernel ends what a killed set-up had, or a test in another world looks at the
            // machine's loop devices, one is not free: its hint stays, and goes with the next teardown.
            let rest = rest()?;
            if !rest.is_empty() && rest.iter().all(is_hint) {
                tear_down_nothing(places)?;
            }
        }
        bail!(
            "something was left behind or taken away:\n{}",
            rest()?.join("\n")
        )
    }

    /// Counts the things of a kind (`mount`, `loop`, `process`, `file`, `cgroup`) that `later` has
    /// and this has not.
    pub fn left(&self, later: &Self, kind: &str) -> usize {
        let is_kind = |thing: &&String| thing.split(' ').nth(1) == Some(kind);
        later
            .things
            .difference(&self.things)
            .filter(is_kind)
            .count()
    }
}

/// Tears down a job that does not exist, on the login host and at other places.
fn tear_down_nothing(places: &[(String, u32)]) -> Result<()> {
    let pids = places.iter().map(|(_, pid)| *pid);
    for pid in pids.chain([std::process::id()]) {
        // Its own /proc shows the processes of its own namespace alone.
        let enter = ["nsenter", "-t", &pid.to_string(), "-m", "-u", "-n", "-p"];
        let teardown = [&*format!("{PREFIX}/sbin/unsetupRoot"), "0"];
        Call::new(enter.into_iter().chain(teardown)).ok()?;
    }
    Ok(())
}

fn places(cluster: Option<&Cluster>) -> Vec<(String, u32)> {
    let nodes = cluster.map_or(&[][..], Cluster::nodes);
    let place = |node: &Node| (node.name().to_owned(), node.pid());
    nodes.iter().map(place).collect()
}

fn mounts(name: &str, pid: u32, things: &mut BTreeSet<String>) -> Result<()> {
    for line in fs::read_to_string(format!("/proc/{pid}/mountinfo"))?.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, _, device, root, at, options, ..] = fields[..] else {
            continue;
        };
        let kind = line.split(" - ").nth(1).unwrap_or_default();
        // The private tmpfs of all state on a node stays once it is made.
        if at == "/run/shifter" && kind.starts_with("tmpfs ") {
            continue;
        }
        things.insert(format!("{name} mount {at} {device}{root} {options} {kind}"));
    }
    Ok(())
}

fn run_files(name: &str, dir: &Path, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let shown = path.to_string_lossy();
        let shown = shown
            .split_once("/root/run/")
            .map_or(&*shown, |(_, rest)| rest)
            .to_owned();
        // The skeleton stays with the tmpfs; what is in its directories belongs to jobs.
        if !["shifter/images", "shifter/jobs", "shifter/namespace"].contains(&&*shown) {
            things.insert(format!("{name} file /run/{shown}"));
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            run_files(name, &path, things);
        }
    }
}

/// Returns this world's loop devices, each with its file: those backed by other file systems belong
/// to other users of this machine.
pub fn loop_devices() -> Result<Vec<String>> {
    let dirs = [
        "/var/lib/shifter",
        "/scratch",
        "/scratch/disk",
        "/scratch/squash",
        "/home",
        "/tmp",
    ];
    let ours: BTreeSet<String> = dirs
        .iter()
        .filter_map(|dir| fs::metadata(dir).ok())
        .map(|meta| meta.dev())
        // makedev(3), the other way round.
        .map(|dev| format!("{}:{}", dev >> 8 & 0xfff, dev & 0xff | dev >> 12 & !0xff))
        .collect();
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")?.flatten() {
        // There is such a file only while the device is in use.
        let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        // The file of a per-node cache was opened in a container's namespace.
        if !dirs.iter().any(|dir| file.starts_with(dir)) && !file.starts_with("/.caches/") {
            continue;
        }
        let device = format!("/dev/{}", entry.file_name().display());
        let ask = Call::new(["losetup", "-n", "-O", "BACK-MAJ:MIN", &device]).output()?;
        if ours.contains(ask.stdout.trim()) {
            found.push(format!("{device} {}", file.trim()));
        }
    }
    Ok(found)
}

fn processes(things: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        // A process that ends meanwhile is not there.
        let (Ok(meta), Ok(name)) = (
            entry.metadata(),
            fs::read_to_string(entry.path().join("comm")),
        ) else {
            continue;
        };
        let name = name.trim();
        if User::ALL.iter().any(|user| user.uid() == meta.uid()) || TRANSIENT.contains(&name) {
            things.insert(format!("machine process {pid} {name} uid={}", meta.uid()));
        }
    }
    Ok(())
}

fn job_cgroups(dir: &Path, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with("job_") {
                things.insert(format!("machine cgroup {}", entry.path().display()));
            }
            job_cgroups(&entry.path(), things);
        }
    }
}
