//! What the nodes have kept of a soak: their counters and their logs, beside the jobs there were.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use shifter_tests::cluster::{Cluster, Node};
use shifter_tests::syslog::Syslog;

use super::plan::{Deed, Plan};
use super::run::Story;

/// One event of the product's, as its line in a log tells it.
#[derive(Clone, Debug)]
struct Event {
    /// `setup` or `teardown`.
    kind: String,
    job: String,
    /// Which of its roots.
    root: String,
    outcome: String,
}

/// The root of a job as a whole.
const JOB_ROOT: &str = "job";

/// Fails unless counters, logs and jobs tell the same story; says what they tell.
pub fn balance(cluster: &Cluster, logs: &[Syslog], story: &Story, metrics: &str) -> Result<String> {
    let mut all: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut events = Vec::new();
    for (node, log) in cluster.nodes().iter().zip(logs) {
        let mut counted = BTreeMap::new();
        for event in told_by(log)? {
            let key = (event.kind.clone(), event.outcome.clone());
            *counted.entry(key).or_default() += 1;
            events.push((node.name(), event));
        }
        let counters = counters(node, metrics)?;
        ensure!(
            counters == counted,
            "{} has counted {counters:?} and told of {counted:?}",
            node.name()
        );
        for (key, count) in counters {
            *all.entry(key).or_default() += count;
        }
    }
    ensure_pairs(&events)?;
    for job in &story.jobs {
        let own = |(_, event): &&(&str, Event)| Some(&event.job) == job.id.as_ref();
        let own: Vec<_> = events.iter().filter(own).collect();
        // What is interrupted may have come to nothing, or to everything.
        if !job.is_excused && job.plan.cancelled.is_none() {
            ensure_told(&job.plan, &own)?;
        }
    }
    let told = all
        .iter()
        .map(|((kind, outcome), count)| format!("{count} {kind} {outcome}"));
    Ok(told.collect::<Vec<_>>().join(", "))
}

/// Fails unless whatever was set up on a node was torn down there, well.
fn ensure_pairs(events: &[(&str, Event)]) -> Result<()> {
    let of = |kind: &str, outcomes: &[&str]| {
        let wanted = |(_, event): &&(&str, Event)| {
            event.kind == kind && outcomes.contains(&event.outcome.as_str())
        };
        let place = |(node, event): &(&str, Event)| {
            format!("{} of job {} on {node}", event.root, event.job)
        };
        events
            .iter()
            .filter(wanted)
            .map(place)
            .collect::<BTreeSet<String>>()
    };
    // A mistake of the user's is kept until the end of the job, too.
    let (made, ended) = (of("setup", &["done", "mistake"]), of("teardown", &["done"]));
    let left: Vec<_> = made.difference(&ended).collect();
    ensure!(left.is_empty(), "set up and not torn down: {left:?}");
    let failed = of("teardown", &["mistake", "failure"]);
    ensure!(failed.is_empty(), "not torn down well: {failed:?}");
    Ok(())
}

/// Fails unless a job that nobody disturbed was set up once on each of its nodes, and its step.
fn ensure_told(plan: &Plan, events: &[&(&str, Event)]) -> Result<()> {
    let count = |kind: &str, outcome: &str, is_jobs: bool| {
        let wanted = |(_, event): &&&(&str, Event)| {
            event.kind == kind && event.outcome == outcome && (event.root == JOB_ROOT) == is_jobs
        };
        let nodes: Vec<&str> = events
            .iter()
            .filter(wanted)
            .map(|(node, _)| *node)
            .collect();
        let different: BTreeSet<_> = nodes.iter().collect();
        (nodes.len(), different.len())
    };
    let of_job = if plan.image.is_some() { plan.nodes } else { 0 };
    let of_step = if plan.deed == Deed::OwnImage {
        plan.nodes
    } else {
        0
    };
    let is_mistake = plan.deed == Deed::Mistake;
    for (kind, outcome, is_jobs, expected) in [
        ("setup", "done", true, if is_mistake { 0 } else { of_job }),
        (
            "setup",
            "mistake",
            true,
            if is_mistake { of_job } else { 0 },
        ),
        ("setup", "failure", true, 0),
        ("teardown", "done", true, of_job),
        ("setup", "done", false, of_step),
        ("teardown", "done", false, of_step),
    ] {
        let found = count(kind, outcome, is_jobs);
        ensure!(
            found == (expected, expected),
            "{kind} {outcome}, of the job: {is_jobs}: {found:?} lines and nodes, and not {expected}, \
             for {plan:?}: {events:?}"
        );
    }
    Ok(())
}

/// Reads all events from a log, in order.
fn told_by(log: &Syslog) -> Result<Vec<Event>> {
    let text = log.text()?;
    let lines = text.lines().filter(|line| line.contains(": event="));
    lines
        .map(|line| Event::parse(line).with_context(|| line.to_owned()))
        .collect()
}

impl Event {
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

/// Reads a node's counters, by event and outcome.
fn counters(node: &Node, dir: &str) -> Result<BTreeMap<(String, String), u64>> {
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
