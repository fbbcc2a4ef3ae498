//! `--ccm` is for jobs with whole nodes: whether a job has this node for itself.
//!
//! Slurm does not say that in a prolog. It says how many CPUs the job has on each node, and a job that
//! has as many as the node, as Slurm counts them, shares it with nobody.

use std::collections::BTreeSet;
use std::fs;

use shifter_core::config::{Config, CpuUnit};
use shifter_core::hostlist::HostSlots;

use crate::prolog::Mistake;

/// CPUs that the kernel can have (NR_CPUS).
const MOST_CPUS: usize = 8192;

/// Insists that the site gives out the host's own environment, and that the job has the node for itself.
pub fn check(config: &Config, hosts: &[HostSlots], node: Option<&str>) -> Result<(), Mistake> {
    judge(config, hosts, node, cpus(config.slurm.cpus))
}

fn judge(
    config: &Config,
    hosts: &[HostSlots],
    node: Option<&str>,
    cpus: usize,
) -> Result<(), Mistake> {
    if !config.slurm.ccm {
        return Err(Mistake::Ccm("this site does not allow it"));
    }
    let own = hosts.iter().find(|host| Some(host.name.as_str()) == node);
    match own {
        Some(host) if host.slots as usize >= cpus => Ok(()),
        _ => Err(Mistake::Ccm("the job has not the whole node (--exclusive)")),
    }
}

/// Counts this node's CPUs.
fn cpus(unit: CpuUnit) -> usize {
    let read = |name: &str| fs::read_to_string(format!("/sys/devices/system/cpu/{name}")).ok();
    count(unit, &read("online").unwrap_or_default(), |cpu| {
        read(&format!("cpu{cpu}/topology/core_cpus_list"))
    })
}

/// Counts the CPUs that are listed as online, or the cores they are on. Machines that do not tell are
/// taken for larger ones.
fn count(unit: CpuUnit, online: &str, core_of: impl Fn(usize) -> Option<String>) -> usize {
    let Some(threads) = listed(online) else {
        return MOST_CPUS;
    };
    match unit {
        CpuUnit::Threads => threads.len(),
        CpuUnit::Cores => {
            let cores: Option<BTreeSet<String>> = threads.into_iter().map(core_of).collect();
            cores.map_or(MOST_CPUS, |cores| cores.len())
        }
    }
}

/// Reads a list of the kernel's such as `0-3,8`; nothing if it is empty or malformed.
fn listed(text: &str) -> Option<BTreeSet<usize>> {
    let mut cpus = BTreeSet::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shifter_core::hostlist;

    use super::*;

    #[test]
    fn the_hosts_environment_is_for_whole_nodes() {
        let judge = |site: &str, node: &str, cpus: usize| {
            let config = Config::parse(site, Path::new("/x")).unwrap();
            let hosts = hostlist::with_slots("n[1-2]", "8,2", 9).unwrap();
            judge(&config, &hosts, Some(node), cpus).is_ok()
        };
        let on = "[slurm]\nccm = true";
        assert!(judge(on, "n1", 8) && judge(on, "n1", 4) && judge(on, "n2", 2));
        assert!(!judge(on, "n1", 9) && !judge(on, "n2", 8) && !judge(on, "n3", 1));
        assert!(!judge("", "n1", 8));
    }

    #[test]
    fn half_of_a_node_with_hyperthreads_is_not_all_of_it() {
        // Two cores of two threads each, the second numbered after all first ones.
        let core_of = |cpu: usize| Some(format!("{},{}", cpu % 2, cpu % 2 + 2));
        let table = [
            (CpuUnit::Threads, "0-3\n", 4),
            (CpuUnit::Cores, "0-3\n", 2),
            // Its hyperthreads are off.
            (CpuUnit::Threads, "0-1\n", 2),
            (CpuUnit::Cores, "0-1\n", 2),
            (CpuUnit::Threads, "0,2-3\n", 3),
            (CpuUnit::Threads, "", MOST_CPUS),
            (CpuUnit::Threads, "0-x", MOST_CPUS),
            (CpuUnit::Threads, "3-0", MOST_CPUS),
            (CpuUnit::Cores, "0-99999999", MOST_CPUS),
        ];
        for (unit, online, expected) in table {
            assert_eq!(count(unit, online, core_of), expected, "{unit:?} {online}");
        }
        assert_eq!(count(CpuUnit::Cores, "0-3", |_| None), MOST_CPUS);
        let own = [CpuUnit::Threads, CpuUnit::Cores].map(cpus);
        assert!(own[0] >= own[1] && own[1] > 0, "{own:?}");
    }
}
