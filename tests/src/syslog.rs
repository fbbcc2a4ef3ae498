//! A system log of a node, and the product's counters there.

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;

use anyhow::{Context, Result, ensure};

use crate::call::wait_for;
use crate::cluster::Node;

/// Listens where system logs do.
const LISTEN: &str = "
import socket, sys
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind('/dev/log')
while True:
    sys.stdout.write(log.recv(65536).decode() + '\\n')
    sys.stdout.flush()
";

/// The machine's own /dev is left alone: the node gets an overlay.
const HIDE: &str = "
    mkdir /run/dev; mount -t tmpfs tmpfs /run/dev; mkdir /run/dev/upper /run/dev/work
    mount -t overlay -o lowerdir=/dev,upperdir=/run/dev/upper,workdir=/run/dev/work overlay /dev
    rm -f /dev/log";

/// A system log of a node, which ends when this is dropped.
#[derive(Debug)]
pub struct Syslog {
    file: String,
    daemon: Child,
}

/// One event of the product's, as its line in a log tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// `setup` or `teardown`.
    pub kind: String,
    /// The job.
    pub job: String,
    /// Which of its roots.
    pub root: String,
    /// How it went.
    pub outcome: String,
}

impl Syslog {
    /// Begins to listen on a node.
    pub fn start(node: &Node) -> Result<Self> {
        node.shell(HIDE).ok()?;
        let file = format!("/var/log/slurm/syslog.{}.out", node.name());
        let listen = node.call(["/usr/bin/python3", "-c", LISTEN]).timeout(0);
        let daemon = listen.start(&file)?;
        wait_for("a system log", 10, || {
            Ok(fs::exists(node.path("/dev/log"))?.then_some(()))
        })?;
        Ok(Self { file, daemon })
    }

    /// Waits for the one line about an event of a job and returns it.
    pub fn line(&self, event: &str, job: &str) -> Result<String> {
        let begin = format!("event={event} job={job} ");
        wait_for(&begin, 10, || {
            let text = self.text()?;
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(&begin)).collect();
            ensure!(lines.len() < 2, "{lines:?}");
            Ok(lines.first().map(|line| (*line).to_owned()))
        })
        .with_context(|| self.text().unwrap_or_default())
    }

    /// Returns all events so far, in order.
    pub fn events(&self) -> Result<Vec<Event>> {
        let text = self.text()?;
        let lines = text.lines().filter(|line| line.contains(": event="));
        lines
            .map(|line| Event::parse(line).context(line.to_owned()))
            .collect()
    }

    fn text(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.file)?)
    }

    /// Ends it, and takes away what hid the node's own /dev.
    pub fn end(self, node: &Node) -> Result<()> {
        drop(self);
        node.shell("umount -R /dev; umount /run/dev; rmdir /run/dev")
            .ok()
            .map(drop)
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Event {
    /// Reads a line of the log.
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut words = line.split(' ');
            let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
            Some(value.to_owned())
        };
        Some(Self {
            kind: field("event")?,
            job: field("job")?,
            root: field("root")?,
            outcome: field("outcome")?,
        })
    }
}

/// Reads the node's counters, by event and outcome, from the product's file in a directory.
pub fn counters(node: &Node, dir: &str) -> Result<BTreeMap<(String, String), u64>> {
    let path = node.path(&format!("{dir}/shifter.prom"));
    let text = fs::read_to_string(&path).with_context(|| path)?;
    let series = text.lines().filter_map(|line| {
        let (name, rest) = line
            .strip_prefix("shifter_")?
            .split_once("s_total{outcome=\"")?;
        let (outcome, count) = rest.split_once("\"} ")?;
        Some(((name.to_owned(), outcome.to_owned()), count))
    });
    series
        .map(|(key, count)| Ok((key, count.parse()?)))
        .collect()
}
