//! What a prologue does, in the order in which it does it.
//!
//! Read the job, judge it, look the user and the image up once, write down what is about to be
//! done, do it on all nodes, and undo it where that has to be. Failures are of two kinds: those
//! that only the user or the site can mend end the job; those of a node or a moment put it back.

use std::path::Path;
use std::time::{Duration, Instant};

use node_setup::error::Error;
use node_setup::lookup;
use shifter_core::chain;
use shifter_core::config::{BatchSystem, Config};
use shifter_core::hostlist::HostError;
use shifter_core::identity::Identity;
use shifter_core::ids::JobId;
use shifter_core::manifest::{JobManifest, ManifestError, Modes, SCHEMA};
use shifter_core::sanitize;
use thiserror::Error;

use crate::call::Call;
use crate::fanout::FanoutError;
use crate::fanout::gather::NodeState;
use crate::hook::{self, PERMANENT, TRANSIENT, Work};
use crate::nodes::{Nodes, Sources};
use crate::outside::{self, OutsideError};
use crate::qstat::{self, AnswerError, Listed};
use crate::report::Report;
use crate::request::{Image, Mistake, Request};
use crate::resolve::{self, ResolveError};
use crate::say::{self, Weight};
use crate::site::{RunError, Site};
use crate::state::{self, Job, Record, StateDir};
use crate::words::Verb;
use crate::{apstat, gres, host, site};

/// Seconds that qstat and apstat may take.
const ASK_SECS: u32 = 20;

/// How long to wait for an epilogue of the same job that is still at work.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// The part of the time that is kept for undoing.
const UNDO_SHARE: u32 = 4;

/// Says why a job cannot start.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The site's configuration cannot be used.
    #[error(transparent)]
    Config(#[from] shifter_core::config::ConfigError),
    /// What this node knows of the job cannot be read or written.
    #[error("cannot note what is done for the job")]
    State(#[source] Error),
    /// The batch system does not answer.
    #[error("cannot ask the batch system for the job")]
    Ask(#[source] OutsideError),
    /// Its answer cannot be used.
    #[error("cannot understand the batch system")]
    Answer(#[from] AnswerError),
    /// The batch system keeps the job's variables from this node.
    #[error("the batch system does not tell this node the job's variables")]
    NoVariables,
    /// The id is another job's by now.
    #[error("job {job} belongs to '{}' and not to '{}'", sanitize::text(.found), sanitize::text(.expected))]
    OtherUser {
        /// The job.
        job: JobId,
        /// What the batch system lists.
        found: String,
        /// What it called us with.
        expected: String,
    },
    /// The user asks for something that cannot be.
    #[error(transparent)]
    Mistake(#[from] Mistake),
    /// Nobody knows the user or the group.
    #[error(transparent)]
    Account(Error),
    /// Containers run for users.
    #[error("containers run for users, not for root or group root")]
    Root,
    /// The image cannot be had.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The nodes cannot be told.
    #[error("cannot tell the job's nodes")]
    Nodes(#[from] HostError),
    /// The list of nodes cannot be read.
    #[error("cannot read the list of nodes '{}'", .path.display())]
    NodeFile {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Together it makes no manifest.
    #[error("cannot describe the job")]
    Manifest(#[from] ManifestError),
    /// The job's files cannot be put where the nodes can read them.
    #[error("cannot tell the nodes of the job")]
    Share(#[from] site::ShareError),
    /// The nodes could not be asked.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Some nodes are not ready.
    #[error("{}", .0.line)]
    NotReady(Report),
    /// It was deleted meanwhile.
    #[error("job {0} is being removed")]
    Removed(JobId),
}

impl Refusal {
    /// True if it is of no use to try again.
    fn is_permanent(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::Answer(_)
            | Self::NoVariables
            | Self::OtherUser { .. }
            | Self::Mistake(_)
            | Self::Root
            | Self::Nodes(_)
            | Self::Manifest(_)
            | Self::Removed(_) => true,
            Self::Resolve(error) => error.is_users_mistake(),
            Self::NotReady(report) => report.is_users_mistake,
            Self::Run(RunError::Fanout(error)) => !matches!(error, FanoutError::Run { .. }),
            Self::Share(error) | Self::Run(RunError::Share(error)) => error.is_permanent(),
            Self::State(_) | Self::Ask(_) | Self::Account(_) | Self::NodeFile { .. } => false,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            Self::Mistake(error) => error.hint(),
            Self::NoVariables => Some(format!(
                "the site has to run: qmgr -c 'set server operators += root@{}'",
                host::own_name()
            )),
            Self::Run(RunError::Fanout(FanoutError::NoTool(_))) => {
                Some("the site has to set torque.fanout".to_owned())
            }
            Self::Share(error) | Self::Run(RunError::Share(error)) => error.hint(),
            _ => None,
        }
    }
}

/// Does the work of a prologue and returns its exit code.
pub fn run(work: &Work) -> u8 {
    let call = &work.call;
    let config = match hook::config(call.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return refuse(None, call, &error.into()),
    };
    match prepare(work, &config) {
        Ok(done) => {
            if let Some(line) = done {
                say::log(Weight::Info, &format!("{}: {line}", call.subject()));
            }
            0
        }
        Err(refusal) => refuse(Some(&config), call, &refusal),
    }
}

fn refuse(config: Option<&Config>, call: &Call, refusal: &Refusal) -> u8 {
    let why = chain::line(refusal);
    say::log(Weight::Error, &format!("{}: {why}", call.subject()));
    say::tell(&why);
    let mut comment = why;
    if let Some(hint) = refusal.hint() {
        say::tell(&format!("hint: {hint}"));
        comment = format!("{comment}; hint: {hint}");
    }
    // A job that is being removed has no use for a comment.
    if let Some(config) = config.filter(|_| !matches!(refusal, Refusal::Removed(_))) {
        say::comment(&config.torque, &call.job, &comment);
    }
    if refusal.is_permanent() {
        PERMANENT
    } else {
        TRANSIENT
    }
}

/// Makes everything ready; returns what to say of it, if the job is ours.
fn prepare(work: &Work, config: &Config) -> Result<Option<String>, Refusal> {
    let time = Duration::from_secs(work.seconds.into());
    let deadline = Instant::now() + time;
    let call = &work.call;
    let dir = StateDir::open(&config.torque.state_dir).map_err(Refusal::State)?;
    let site = Site {
        config,
        config_path: call.config.as_deref(),
        job: &call.job,
        dir: &dir,
    };
    let patience = LOCK_PATIENCE.min(time / 2);
    let job = dir.lock(&call.job, patience).map_err(Refusal::State)?;
    let is_wanted =
        || !job.is_buried() && !dir.has_ended_since(&call.job, &work.start).unwrap_or(false);
    let removed = || Refusal::Removed(call.job.clone());
    if !is_wanted() {
        // An epilogue that waits for the lock needs what is known; of nothing, nothing stays.
        if job.record().map_err(Refusal::State)?.is_none() {
            job.remove().map_err(Refusal::State)?;
        }
        return Err(removed());
    }
    // An earlier prologue died, and no epilogue came.
    if let Some(old) = job.record().map_err(Refusal::State)? {
        undo(&site, &job, &old, time);
    }
    let _ = dir.sweep();
    let result = try_prepare(work, &site, &job, &is_wanted, deadline);
    let refusal = match result {
        Ok(Done::Ready(line)) if is_wanted() => {
            dir.forget_retries(&call.job).map_err(Refusal::State)?;
            return Ok(Some(line));
        }
        Ok(Done::Nothing) => {
            job.remove().map_err(Refusal::State)?;
            return Ok(None);
        }
        Ok(Done::Ready(_)) => removed(),
        // The reason is that nobody waited for the nodes any more.
        Err(Refusal::NotReady(_)) if !is_wanted() => removed(),
        Err(refusal) => refusal,
    };
    if let Some(record) = job.record().map_err(Refusal::State)? {
        undo(&site, &job, &record, time);
    }
    if let Err(error) = job.remove() {
        say::log(
            Weight::Warning,
            &format!("{}: {}", call.subject(), error.chain()),
        );
    }
    Err(refusal)
}

/// How a preparation ended well.
enum Done {
    /// There is nothing to do for this job.
    Nothing,
    /// What to say of it.
    Ready(String),
}

fn try_prepare(
    work: &Work,
    site: &Site<'_>,
    job: &Job,
    is_wanted: &dyn Fn() -> bool,
    deadline: Instant,
) -> Result<Done, Refusal> {
    let (call, config) = (&work.call, site.config);
    let listed = listed(work, config)?;
    if !work.is_ours {
        let value = listed.gres.as_deref().unwrap_or_default();
        if !gres::names_one_of(value, &config.torque.gres) {
            return Ok(Done::Nothing);
        }
    }
    if let Some(found) = listed.user.as_ref().filter(|user| **user != call.user) {
        return Err(Refusal::OtherUser {
            job: call.job.clone(),
            found: found.clone(),
            expected: call.user.clone(),
        });
    }
    let request = match &call.direct {
        Some(direct) => Some(Request::from_direct(direct, config)?),
        None => {
            let variables = listed.variables.as_ref().ok_or(Refusal::NoVariables)?;
            Request::from_variables(variables, config)?
        }
    };
    let user =
        lookup::identity_of_name(&call.user, call.group.as_deref()).map_err(Refusal::Account)?;
    if user.uid == 0 || user.gid == 0 {
        return Err(Refusal::Root);
    }
    let alps = call
        .direct
        .as_ref()
        .and_then(|direct| direct.alps)
        .unwrap_or(config.torque.alps);
    let nodes = nodes(work, config, &listed, alps)?;
    let created = state::now_secs();
    let manifest = request
        .map(|request| manifest(work, config, &request, &listed, &user, &nodes, created))
        .transpose()?;
    let has_work = manifest.is_some() || site::has_services(config);
    let is_shared = nodes.hosts.len() > usize::from(nodes.own.is_some());
    if !has_work && is_shared && !site::has_tool(config) {
        return Ok(Done::Nothing);
    }
    let record = Record {
        user: call.user.clone(),
        uid: user.uid,
        gid: user.gid,
        cluster: config.system.clone(),
        restart: listed.start_count.unwrap_or(0),
        hosts: nodes.hosts.clone(),
        own: nodes.own.map(|own| nodes.hosts[own].name.clone()),
        has_root: manifest.is_some(),
        is_shared: is_shared && has_work,
        created,
        is_marked: manifest.is_some() || !config.torque.services.is_empty(),
        boot: state::boot_id(),
    };
    // Before anything is done: whoever comes later finds what to undo.
    job.write_record(&record).map_err(Refusal::State)?;
    if !has_work {
        // The job's commands may start containers of their own, which are the epilogue's to end.
        return Ok(Done::Ready("nothing to prepare".into()));
    }
    let verb = if record.has_root {
        Verb::Setup
    } else {
        Verb::Services
    };
    let manifest = manifest.map(|manifest| manifest.to_bytes()).transpose()?;
    let own_manifest = match &manifest {
        Some(bytes) => Some(job.write_manifest(bytes).map_err(Refusal::State)?),
        None => None,
    };
    // Nodes that were never asked have nothing to remove.
    let nothing_begun = || {
        let hosts = Vec::new();
        let none = Record {
            hosts,
            ..record.clone()
        };
        job.write_record(&none).map_err(Refusal::State)
    };
    if record.is_shared
        && let Err(error) = site::share(config, &record, &call.job, &user, manifest.as_deref())
    {
        nothing_begun()?;
        return Err(error.into());
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let order = site::Order {
        verb,
        record: &record,
        own: nodes.own,
        own_manifest: own_manifest.as_deref(),
        nodefile: &job.nodefile(),
        deadline: deadline - left / UNDO_SHARE,
    };
    let mut wanted = || is_wanted();
    let outcome = match site::run(site, &order, &mut wanted) {
        Err(error @ RunError::Fanout(_)) => {
            nothing_begun()?;
            return Err(error.into());
        }
        result => result?,
    };
    let names = nodes.names();
    let report = Report::new(&names, &outcome.states, "ready", outcome.words.as_deref());
    if report.failed.is_empty() {
        return Ok(Done::Ready(report.line));
    }
    // Those that said no have nothing left; of those that said nothing nobody knows.
    let mut states = outcome.states.iter();
    let mut to_undo = record.clone();
    to_undo
        .hosts
        .retain(|_| !matches!(states.next(), Some(NodeState::Failed { .. })));
    job.write_record(&to_undo).map_err(Refusal::State)?;
    let has_own = nodes.own.is_none_or(|own| !report.failed.contains(&own));
    if has_own && report.failed.len() <= config.torque.tolerated_failures as usize {
        say::tell(&report.line);
        say::comment(&config.torque, &call.job, &report.line);
        return Ok(Done::Ready(report.line));
    }
    Err(Refusal::NotReady(report))
}

/// Returns how long to wait for one answer: a part of the prologue's time, so that an epilogue that
/// comes meanwhile does not wait in vain for its end.
fn ask_secs(work: &Work) -> u32 {
    ASK_SECS.min(work.seconds / 4).max(1)
}

/// Asks the batch system for the job, unless the caller has said all there is.
fn listed(work: &Work, config: &Config) -> Result<Listed, Refusal> {
    let call = &work.call;
    if let Some(facts) = &work.facts {
        return Ok(facts.listed());
    }
    if call.direct.is_some() {
        return Ok(Listed::default());
    }
    let qstat = &config.torque.qstat;
    let id = call.job.as_str();
    match config.torque.batch_system {
        BatchSystem::Torque => {
            let answer =
                outside::ask(qstat, &["-f", "-x", id], ask_secs(work)).map_err(Refusal::Ask)?;
            Ok(qstat::parse_xml(&answer, &call.job)?)
        }
        BatchSystem::OpenPbs => {
            let arguments = ["-f", "-F", "json", id];
            let answer = outside::ask(qstat, &arguments, ask_secs(work)).map_err(Refusal::Ask)?;
            Ok(qstat::parse_json(&answer, &call.job)?)
        }
    }
}

fn nodes(work: &Work, config: &Config, listed: &Listed, alps: bool) -> Result<Nodes, Refusal> {
    let call = &work.call;
    let nodefile = work
        .mom
        .nodefile
        .as_deref()
        .map(read_nodefile)
        .transpose()?;
    let reserved = if alps && call.nids.is_none() {
        reserved(work, config)?
    } else {
        None
    };
    let direct = call
        .direct
        .as_ref()
        .and_then(|direct| direct.nodes.as_deref());
    let sources = Sources {
        nids: call.nids.as_deref().or(reserved.as_deref()),
        names: direct,
        nodefile: nodefile.as_deref(),
        exec_host: listed.exec_host.as_deref(),
    };
    Ok(Nodes::find(
        sources,
        alps,
        &host::own_names(work.mom.host.as_deref()),
    )?)
}

fn read_nodefile(path: &Path) -> Result<String, Refusal> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(64 << 20).read_to_string(&mut text))
        .map_err(|source| Refusal::NodeFile {
            path: path.to_owned(),
            source,
        })?;
    Ok(text)
}

/// Asks ALPS for the nodes of the job's reservation; nothing if it has none of it.
fn reserved(work: &Work, config: &Config) -> Result<Option<String>, Refusal> {
    let apstat = &config.torque.apstat;
    let ask = |arguments: &[&str]| {
        let answer = outside::ask(apstat, arguments, ask_secs(work)).map_err(Refusal::Ask)?;
        Ok::<_, Refusal>(String::from_utf8_lossy(&answer).into_owned())
    };
    let given = [&work.call.reservation, &work.mom.reservation];
    let mut given = given.into_iter().flatten();
    let reservation = match given.find(|text| apstat::is_reservation(text)) {
        Some(given) => Some(given.clone()),
        None => apstat::reservation(&ask(&["-r"])?, &work.call.job),
    };
    let Some(reservation) = reservation else {
        return Ok(None);
    };
    let nids = apstat::nodes(&ask(&["-rvvv", "-R", &reservation])?);
    let text = shifter_core::hostlist::compress_nids(&nids);
    Ok((!nids.is_empty()).then_some(text))
}

fn manifest(
    work: &Work,
    config: &Config,
    request: &Request,
    listed: &Listed,
    user: &Identity,
    nodes: &Nodes,
    created: u64,
) -> Result<JobManifest, Refusal> {
    let call = &work.call;
    let image = match &request.image {
        Image::Pinned(image) => image.clone(),
        Image::Named(image) => resolve::resolve(image, Some(user), config, call.config.as_deref())?,
    };
    let volumes = request.volumes.signature();
    Ok(JobManifest {
        schema: SCHEMA,
        cluster: config.system.clone(),
        job: call.job.clone(),
        restart: listed.start_count.unwrap_or(0),
        user: user.clone(),
        image,
        volumes: if volumes.is_empty() {
            Vec::new()
        } else {
            vec![volumes]
        },
        modules: request.modules.clone(),
        hosts: nodes.hosts.clone(),
        created,
        modes: Modes::default(),
        ssh: None,
    })
}

/// Undoes on all nodes what a record says; what cannot be undone now is noted, for later.
fn undo(site: &Site<'_>, job: &Job, record: &Record, time: Duration) {
    // Not longer, if a node does not answer: an epilogue may wait for it.
    let deadline = Instant::now() + time / UNDO_SHARE;
    let line = site::tear_down(site, job, record, deadline);
    if let Err(remains) = line {
        let line = remains.line;
        say::log(Weight::Warning, &format!("job {}: {line}", site.job));
    }
}
