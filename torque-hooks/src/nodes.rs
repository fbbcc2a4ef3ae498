//! The nodes of a job: from whatever the batch system says of them to names that the fan-out takes.
//!
//! With ALPS the lists mix node numbers with the login host: `login1/16+20/0-15+21/0-15`. The
//! nodes are the numbers, called `nid%05d`; the launch node is none of them.

use std::collections::HashSet;

use shifter_core::hostlist::{self, HostError, HostSlots};

/// Nodes that a job may have.
pub const NODE_LIMIT: usize = hostlist::HOST_LIMIT;

/// The nodes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// Each once, in the batch system's order.
    pub hosts: Vec<HostSlots>,
    /// Which of them this process runs on.
    pub own: Option<usize>,
}

/// What says which nodes a job has; the first that says anything counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// Node numbers, from the call or from ALPS.
    pub nids: Option<&'a str>,
    /// Names with commas or blanks between them, from the call.
    pub names: Option<&'a str>,
    /// The text of PBS_NODEFILE.
    pub nodefile: Option<&'a str>,
    /// `exec_host`.
    pub exec_host: Option<&'a str>,
}

impl Nodes {
    /// Finds the nodes; `own` are the names of this machine.
    pub fn find(sources: Sources<'_>, alps: bool, own: &[String]) -> Result<Self, HostError> {
        let mut hosts = match sources {
            Sources {
                nids: Some(nids), ..
            } => with_one_slot(hostlist::nids(nids, NODE_LIMIT)?.into_iter().map(nid_name)),
            Sources {
                names: Some(names), ..
            } => named(names, alps)?,
            Sources {
                nodefile: Some(text),
                ..
            } => hostlist::from_nodefile(text, NODE_LIMIT)?,
            Sources {
                exec_host: Some(text),
                ..
            } => hostlist::from_exec_host(text, NODE_LIMIT)?,
            _ => return Err(HostError::Empty),
        };
        if alps {
            hosts = numbered(hosts);
        }
        if hosts.is_empty() {
            return Err(HostError::Empty);
        }
        let own = hosts.iter().position(|host| is_one_of(&host.name, own));
        Ok(Self { hosts, own })
    }

    /// Returns the names.
    pub fn names(&self) -> Vec<String> {
        self.hosts.iter().map(|host| host.name.clone()).collect()
    }
}

/// Takes a list of names apart, which may be ranges: of node numbers with ALPS, of hosts without.
fn named(names: &str, alps: bool) -> Result<Vec<HostSlots>, HostError> {
    let list = names.split_ascii_whitespace().collect::<Vec<_>>().join(",");
    if alps && !list.contains(|c: char| c.is_ascii_alphabetic()) {
        let nids = hostlist::nids(&list, NODE_LIMIT)?;
        return Ok(with_one_slot(nids.into_iter().map(nid_name)));
    }
    Ok(with_one_slot(
        hostlist::expand(&list, NODE_LIMIT)?.into_iter(),
    ))
}

fn with_one_slot(names: impl Iterator<Item = String>) -> Vec<HostSlots> {
    let mut seen = HashSet::new();
    names
        .filter(|name| seen.insert(name.clone()))
        .map(|name| HostSlots { name, slots: 1 })
        .collect()
}

/// Keeps the nodes that are numbers, under their hosts' names, each once.
fn numbered(hosts: Vec<HostSlots>) -> Vec<HostSlots> {
    let mut seen = HashSet::new();
    let mut named = Vec::new();
    for HostSlots { name, slots } in hosts {
        if let Some(nid) = nid_of(&name)
            && seen.insert(nid)
        {
            let name = nid_name(nid);
            named.push(HostSlots { name, slots });
        }
    }
    named
}

/// Returns the number of a Cray node: `20` or `nid00020`.
pub fn nid_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("nid").unwrap_or(name);
    let plain = (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Returns the host name of a Cray node.
pub fn nid_name(nid: u32) -> String {
    format!("nid{nid:05}")
}

/// True if the name is one of a machine's, with or without a domain.
pub fn is_one_of(name: &str, own: &[String]) -> bool {
    let label = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    own.iter().any(|own| {
        own == name || ((!own.contains('.') || !name.contains('.')) && label(own) == label(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(nodes: &Nodes) -> String {
        let hosts = nodes.hosts.iter();
        let hosts: Vec<_> = hosts.map(|h| format!("{}:{}", h.name, h.slots)).collect();
        format!("{} own {:?}", hosts.join(" "), nodes.own)
    }

    #[test]
    fn nodes_and_the_own_one() {
        let own = ["n2".to_owned(), "login1".to_owned()];
        let nodefile = Sources {
            nodefile: Some("n1\nn1\nn2\n"),
            exec_host: Some("x/0"),
            ..Sources::default()
        };
        let mixed = Sources {
            exec_host: Some("login1/16+20/0-15+21/0-15"),
            ..Sources::default()
        };
        let numbers = Sources {
            nodefile: Some("login1\n20\n20\n21\n"),
            ..Sources::default()
        };
        let given = Sources {
            nids: Some("20-22,40"),
            nodefile: Some("n1\n"),
            ..Sources::default()
        };
        let names = Sources {
            names: Some("n1 n2.site"),
            ..Sources::default()
        };
        let ranges = Sources {
            names: Some("20-21"),
            ..Sources::default()
        };
        let table = [
            (nodefile, false, "n1:2 n2:1 own Some(1)"),
            (mixed, true, "nid00020:16 nid00021:16 own None"),
            (numbers, true, "nid00020:2 nid00021:1 own None"),
            (
                given,
                true,
                "nid00020:1 nid00021:1 nid00022:1 nid00040:1 own None",
            ),
            (names, false, "n1:1 n2.site:1 own Some(1)"),
            (ranges, true, "nid00020:1 nid00021:1 own None"),
        ];
        for (sources, alps, expected) in table {
            let nodes = Nodes::find(sources, alps, &own).unwrap();
            assert_eq!(shown(&nodes), expected, "{sources:?}");
        }
    }

    #[test]
    fn no_node_is_an_error() {
        let bad = |nodefile| Sources {
            nodefile: Some(nodefile),
            ..Sources::default()
        };
        assert!(Nodes::find(bad("login1\n"), true, &[]).is_err());
        for text in ["", "\n", "a b\n", "-x\n", "$(id)\n"] {
            assert!(Nodes::find(bad(text), false, &[]).is_err(), "{text}");
        }
        assert!(Nodes::find(Sources::default(), false, &[]).is_err());
    }

    #[test]
    fn names_of_one_machine() {
        let own = ["n1.site.org".to_owned(), "m".to_owned()];
        for (name, expected) in [
            ("n1", true),
            ("n1.site.org", true),
            ("n1.other.org", false),
            ("m.site", true),
            ("n10", false),
        ] {
            assert_eq!(is_one_of(name, &own), expected, "{name}");
        }
        assert_eq!(nid_of("nid00020"), Some(20));
        assert_eq!(nid_of("20x"), None);
    }
}
