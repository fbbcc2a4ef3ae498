//! What `make bench` runs: what a container costs, beside the floor and Debian's peers, in one run.
//!
//! Cases take turns, round by round, so that what else the machine does hits all alike; medians
//! are compared as ratios (see docs/benchmarks.md).

use anyhow::{Result, bail};

mod caches;
mod crowd;
mod fanout;
mod growth;
mod job;
mod machine;
mod page_cache;
mod peers;
mod program;
mod pull;
mod site;
mod slurm;
mod starts;
mod syscalls;
mod table;
mod walk;

use site::{Scale, Site};
use table::Row;

const USAGE: &str = "usage: shifter-benches [--noisy] [--tiny] BENCH [ROUNDS]
  starts      joining, first and later starts, setupRoot and unsetupRoot, beside floor and peers
  many        starts of many containers at once
  etc-growth  whether a start takes longer with more entries in the image's /etc
  walk        reading the image's /usr in a container
  syscalls    the system calls of a start
  page-cache  what several containers of one image keep in memory
  caches      starts with a per-node cache, and small writes in one
  slurm       srun with the plugin unused, steps and jobs without and with a container
  slurm-wide  a job of 64 nodes, all on this machine, without and with a container
  pull        an image of 6 layers from a registry on loopback to a squashfs file, beside peers
  pull-small, pull-large  the same with 1 and with 32 layers
  pull-second the same with 6 layers of which 5 are there
  fanout      Torque's prologue on 256 to 8192 nodes, beside pdsh with a worker that does nothing
  all         every one of them but pulls, fanout and slurm-wide, and at the end each goal with its verdict
--noisy measures also while the machine is busy: believe only ratios, if anything.
--tiny is for trying the bench itself: a small image, small crowds, of peers that pull the best.";

/// A bench: measures and returns what is compared with goals.
type Bench = fn(&Site, usize) -> Result<Vec<Row>>;

/// In the order of `all`.
const BENCHES: [(&str, Bench); 14] = [
    ("starts", starts::measure),
    ("many", crowd::measure),
    ("etc-growth", growth::measure),
    ("walk", walk::measure),
    ("syscalls", syscalls::measure),
    ("page-cache", page_cache::measure),
    ("caches", caches::measure),
    ("slurm", slurm::measure),
    ("slurm-wide", slurm::measure_wide),
    ("pull-small", pull::measure_small),
    ("pull", pull::measure),
    ("pull-second", pull::measure_second),
    ("pull-large", pull::measure_large),
    ("fanout", fanout::measure),
];

/// False for what takes minutes by itself.
fn is_usual(bench: &str) -> bool {
    !bench.starts_with("pull") && bench != "fanout" && bench != "slurm-wide"
}

/// Runs the bench that the words of a command line ask for.
pub fn run(mut words: Vec<String>) -> Result<()> {
    let mut flag = |name: &str| {
        let before = words.len();
        words.retain(|word| word != name);
        words.len() < before
    };
    let (is_noisy, is_tiny) = (flag("--noisy"), flag("--tiny"));
    let (name, rounds) = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [name] => (name, 25),
        [name, rounds] => (name, rounds.parse()?),
        _ => bail!(USAGE),
    };
    let chosen: Vec<Bench> = BENCHES
        .iter()
        .filter(|(bench, _)| *bench == name || name == "all" && is_usual(bench))
        .map(|(_, measure)| *measure)
        .collect();
    if chosen.is_empty() || rounds == 0 {
        bail!(USAGE);
    }
    machine::wait_until_quiet(is_noisy)?;
    let scale = if is_tiny { Scale::TINY } else { Scale::FULL };
    let site = Site::prepare(scale)?;
    machine::describe()?;
    let mut rows = Vec::new();
    for measure in chosen {
        rows.extend(measure(&site, rounds)?);
    }
    table::verdicts(&rows);
    site.remove()?;
    machine::describe_load()
}
