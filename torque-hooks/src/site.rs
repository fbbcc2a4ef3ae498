//! The nodes of a job as a launch node sees them: what they are told, and how.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shifter_core::config::Config;
use shifter_core::ids::JobId;
use shifter_core::layout::Program;
use shifter_core::sanitize;
use thiserror::Error;

use crate::fanout::template::{Report as How, Template};
use crate::fanout::{self, FanoutError, Outcome, Plan};
use crate::left;
use crate::report::Report;
use crate::shared::{self, Reports};
use crate::state::{Job, Record, StateDir};
use crate::words::{self, Verb};

pub use crate::shared::ShareError;

/// Seconds by which a node ends its work before the launch node stops waiting.
const NODE_MARGIN_SECS: u64 = 3;

/// Seconds that a node has at least.
const NODE_SECS: u64 = 5;

/// A job at a site.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// The site's configuration.
    pub config: &'a Config,
    /// Where it was read from, if that is not where it usually is.
    pub config_path: Option<&'a Path>,
    /// The job.
    pub job: &'a JobId,
    /// What this launch node knows.
    pub dir: &'a StateDir,
}

/// Says why the nodes could not be asked.
#[derive(Debug, Error)]
pub enum RunError {
    /// Nothing could be run.
    #[error(transparent)]
    Fanout(#[from] FanoutError),
    /// Their answers could not be had.
    #[error("cannot have the nodes' answers")]
    Share(#[from] ShareError),
}

/// What the nodes of a record are to do.
pub struct Order<'a> {
    /// What.
    pub verb: Verb,
    /// For which job and where.
    pub record: &'a Record,
    /// This node among those of the record.
    pub own: Option<usize>,
    /// Its manifest.
    pub own_manifest: Option<&'a Path>,
    /// A file for the names of those that the tool is to reach.
    pub nodefile: &'a Path,
    /// When it must be over.
    pub deadline: Instant,
}

/// True if nodes have something to do for a job without an image.
pub fn has_services(config: &Config) -> bool {
    !config.torque.services.is_empty() || !config.kernel.preload.is_empty()
}

/// True if other nodes can be reached.
pub fn has_tool(config: &Config) -> bool {
    Template::of(&config.torque).is_some()
}

/// Has all nodes of a record do something.
pub fn run(
    site: &Site<'_>,
    order: &Order<'_>,
    is_wanted: &mut dyn FnMut() -> bool,
) -> Result<Outcome, RunError> {
    let (config, record) = (site.config, order.record);
    let template = Template::of(&config.torque);
    let how = template
        .as_ref()
        .map_or(How::Lines, |template| template.report);
    let left = order.deadline.saturating_duration_since(Instant::now());
    let seconds = left
        .as_secs()
        .saturating_sub(NODE_MARGIN_SECS)
        .max(NODE_SECS);
    let nonce = nonce();
    let common = words::Order {
        verb: order.verb,
        job: site.job.clone(),
        restart: record.restart,
        uid: record.uid,
        gid: record.gid,
        created: (record.created > 0).then_some(record.created),
        timeout_secs: u32::try_from(seconds).unwrap_or(u32::MAX),
        report: how,
        nonce: nonce.clone(),
        manifest: None,
        config: site.config_path.map(PathBuf::from),
    };
    let program = Program::Node.path(&config.prefix);
    let program = program.to_string_lossy().into_owned();
    let mut command = Vec::new();
    let prefix = &config.torque.node_context_prefix;
    if !prefix.as_os_str().is_empty() {
        command.extend(["chroot".to_owned(), prefix.to_string_lossy().into_owned()]);
    }
    command.push(program.clone());
    command.extend(common.words());
    let own = words::Order {
        report: How::Lines,
        manifest: order.own_manifest.map(PathBuf::from),
        ..common
    };
    let mut own_command = vec![program];
    own_command.extend(own.words());
    let names: Vec<String> = record.hosts.iter().map(|host| host.name.clone()).collect();
    let is_alone = names.len() == usize::from(order.own.is_some());
    let how = if is_alone { How::Lines } else { how };
    let reports = Reports::make(config, record, site.job, how, &nonce)?;
    let plan = Plan {
        template: template.as_ref(),
        names: &names,
        command: &command,
        own: order.own.map(|index| (index, &own_command[..])),
        nonce: &nonce,
        nodefile: order.nodefile,
        width: config.torque.fanout_width,
        deadline: order.deadline,
    };
    let mut trouble = None;
    let outcome = fanout::run(&plan, is_wanted, &mut |gathering| {
        trouble = reports.as_ref().and_then(|r| r.collect(gathering).err());
    });
    if let Some(reports) = reports {
        reports.remove();
    }
    match trouble {
        Some(error) => Err(error.into()),
        None => Ok(outcome?),
    }
}

/// Puts where all nodes read it what they need for the job.
pub use crate::shared::share;

/// Removes on all nodes of a record what there is of the job, and what they shared. Nodes that
/// answer too late or not at all are noted, and tried again later ([`crate::left`]).
///
/// # Errors
/// [`Remains`] says what was not removed.
pub fn tear_down(
    site: &Site<'_>,
    job: &Job,
    record: &Record,
    deadline: Instant,
) -> Result<String, Remains> {
    let mut failures = Vec::new();
    // First: whoever has not begun yet finds nothing to begin with.
    if record.is_shared
        && let Err(error) = shared::unshare(site.config, record, site.job)
    {
        failures.push(shifter_core::chain::line(&error));
    }
    let deadline = deadline.max(Instant::now() + Duration::from_secs(NODE_SECS));
    let nodefile = job.nodefile();
    let removal = match record.hosts.is_empty() {
        true => Removal {
            line: "nothing to remove".into(),
            left: None,
        },
        false => remove(site, record, Verb::Teardown, &nodefile, deadline),
    };
    let mut is_noted = true;
    if let Some(left) = removal.left {
        failures.push(removal.line.clone());
        if let Err(error) = left::note(site.dir, site.job, left) {
            failures.push(error.chain());
            is_noted = false;
        }
    }
    if failures.is_empty() {
        return Ok(removal.line);
    }
    let line = sanitize::text(&failures.join("; "));
    Err(Remains { line, is_noted })
}

/// What was not removed.
pub struct Remains {
    /// A line for the log.
    pub line: String,
    /// Whether its nodes are noted; if not, the job's record is needed still.
    pub is_noted: bool,
}

/// What came of a removal.
pub struct Removal {
    /// In a line.
    pub line: String,
    /// The record, of the nodes on which something may be left, if there are any.
    pub left: Option<Record>,
}

/// Removes what there is of the job on the nodes of a record.
pub fn remove(
    site: &Site<'_>,
    record: &Record,
    verb: Verb,
    nodefile: &Path,
    deadline: Instant,
) -> Removal {
    let names: Vec<String> = record.hosts.iter().map(|host| host.name.clone()).collect();
    let order = Order {
        verb,
        record,
        own: names
            .iter()
            .position(|name| Some(name) == record.own.as_ref()),
        own_manifest: None,
        nodefile,
        deadline,
    };
    let (line, left) = match run(site, &order, &mut || true) {
        Ok(Outcome { states, words, .. }) => {
            let report = Report::new(&names, &states, "clean", words.as_deref());
            let hosts = report.failed.iter().map(|at| record.hosts[*at].clone());
            (report.line, hosts.collect())
        }
        Err(error) => (shifter_core::chain::line(&error), record.hosts.clone()),
    };
    let left = (!left.is_empty()).then(|| Record {
        hosts: left,
        ..record.clone()
    });
    Removal { line, left }
}

/// Returns what tells this fan-out from all others.
fn nonce() -> String {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let digits: String = uuid.chars().filter(char::is_ascii_alphanumeric).collect();
    match digits.is_empty() {
        true => std::process::id().to_string(),
        false => digits,
    }
}
