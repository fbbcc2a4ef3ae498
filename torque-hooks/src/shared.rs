//! What the nodes of a job share: who its user is, and its manifest.
//!
//! The launch node writes it once and removes it; nodes read it, and ask nobody.

use std::fs::File;
use std::io::Take;

use shared_state::{Contents, Error, Key, MANIFEST, SharedState, Stream};
use shifter_core::config::{Config, Service};
use shifter_core::identity::Identity;
use shifter_core::ids::{IdError, JobId};
use shifter_core::manifest::JobManifest;
use thiserror::Error;

use crate::cache::{self, CACHES, COPY_LIMIT, Database};
use crate::fanout::gather::Gathering;
use crate::fanout::template::Report;
use crate::nodes::NODE_LIMIT;
use crate::state::Record;
use crate::words::Order;

/// How often nscd's databases are copied where it is at work on them itself.
const CACHE_TRIES: u32 = 3;

/// Says why the nodes cannot be told of the job, or do not know of it.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The site has no shared state.
    #[error("jobs of several nodes need a shared state")]
    None,
    /// It does not work, or what is there is not believed.
    #[error(transparent)]
    State(#[from] Error),
    /// The cluster's name cannot be one of a directory.
    #[error("the name of the cluster cannot be used")]
    Cluster(#[from] IdError),
    /// Nothing is there.
    #[error("the launch node has left nothing for job '{0}' in the shared state")]
    Nothing(JobId),
}

impl ShareError {
    /// True if it is of no use to try again.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::None | Self::Cluster(_))
    }

    /// Returns the way out, where one is known.
    pub fn hint(&self) -> Option<String> {
        matches!(self, Self::None).then(|| "the site has to set shared_state.path".to_owned())
    }
}

fn open(config: &Config) -> Result<SharedState, ShareError> {
    SharedState::open(&config.shared_state)?.ok_or(ShareError::None)
}

fn key_of(record: &Record, job: &JobId) -> Result<Key, ShareError> {
    Ok(Key {
        cluster: JobId::parse(&record.cluster)?,
        job: job.clone(),
        restart: record.restart,
        uid: record.uid,
        gid: record.gid,
    })
}

fn key_of_order(config: &Config, order: &Order) -> Result<Key, ShareError> {
    Ok(Key {
        cluster: JobId::parse(&config.system)?,
        job: order.job.clone(),
        restart: order.restart,
        uid: order.uid,
        gid: order.gid,
    })
}

/// Puts where all nodes read it what they need for the job, and removes what is too old.
pub fn share(
    config: &Config,
    record: &Record,
    job: &JobId,
    user: &Identity,
    manifest: Option<&[u8]>,
) -> Result<(), ShareError> {
    let state = open(config)?;
    let mut contents = Contents::of_user(user)?;
    if let Some(manifest) = manifest {
        contents.set(MANIFEST, manifest)?;
    }
    let key = key_of(record, job)?;
    for attempt in 1..=CACHE_TRIES {
        let mut caches = match config.torque.services.contains(&Service::Nscd) {
            true => cache::own(),
            false => Vec::new(),
        };
        let streams = caches.iter_mut().map(|cache| Stream {
            name: cache.name,
            length: cache.length(),
            source: cache,
        });
        state.write_with(&key, &contents, &mut streams.collect::<Vec<_>>())?;
        if attempt == CACHE_TRIES || !caches.iter().any(Database::is_torn) {
            break;
        }
    }
    // What cannot be swept now is swept by the next.
    let _ = state.sweep();
    Ok(())
}

/// Removes what the nodes share for the job.
pub fn unshare(config: &Config, record: &Record, job: &JobId) -> Result<(), ShareError> {
    Ok(open(config)?.remove(&key_of(record, job)?)?)
}

/// The name of a database of nscd's in the shared state, and its copy.
pub type Cache = (String, Take<File>);

fn caches_in(state: &SharedState, key: &Key) -> Result<Vec<Cache>, ShareError> {
    let mut caches = Vec::new();
    for (name, _) in CACHES {
        let copy = state.open_file(key, name)?;
        let copy = copy.filter(|copy| copy.limit() <= COPY_LIMIT);
        caches.extend(copy.map(|copy| (name.to_owned(), copy)));
    }
    Ok(caches)
}

/// Opens the databases of nscd that the launch node shares, on another node of the job.
pub fn caches(config: &Config, order: &Order) -> Result<Vec<Cache>, ShareError> {
    caches_in(&open(config)?, &key_of_order(config, order)?)
}

/// The same for the job of a manifest.
pub fn caches_of(config: &Config, manifest: &JobManifest) -> Result<Vec<Cache>, ShareError> {
    let key = Key {
        cluster: JobId::parse(&manifest.cluster)?,
        job: manifest.job.clone(),
        restart: manifest.restart,
        uid: manifest.user.uid,
        gid: manifest.user.gid,
    };
    caches_in(&open(config)?, &key)
}

/// Reads a job's manifest on a node, and nothing else: all nodes do it at once.
pub fn manifest(config: &Config, order: &Order) -> Result<Vec<u8>, ShareError> {
    let manifest = open(config)?.read_file(&key_of_order(config, order)?, MANIFEST)?;
    manifest.ok_or_else(|| ShareError::Nothing(order.job.clone()))
}

/// True if the job's files are still there: its launch node removes them before it has its nodes
/// undo anything.
pub fn is_wanted(config: &Config, order: &Order) -> bool {
    let has = || Ok::<_, ShareError>(open(config)?.has(&key_of_order(config, order)?)?);
    has().unwrap_or(false)
}

/// Files in which the nodes of one fan-out report.
pub struct Reports {
    state: SharedState,
    key: Key,
    word: String,
}

impl Reports {
    /// Makes a place for them, if nodes report so.
    pub fn make(
        config: &Config,
        record: &Record,
        job: &JobId,
        how: Report,
        word: &str,
    ) -> Result<Option<Self>, ShareError> {
        if how == Report::Lines {
            return Ok(None);
        }
        let (state, key) = (open(config)?, key_of(record, job)?);
        state.make_reports(&key, word)?;
        let word = word.to_owned();
        Ok(Some(Self { state, key, word }))
    }

    /// Takes what there is: one look at the directory, and at the files of those that failed.
    pub fn collect(&self, gathering: &mut Gathering) -> Result<(), ShareError> {
        for name in self.state.reports(&self.key, &self.word, 2 * NODE_LIMIT)? {
            gathering.take_file(&name, || {
                let text = self.state.read_report(&self.key, &self.word, &name);
                text.ok().flatten().unwrap_or_default()
            });
        }
        Ok(())
    }

    /// Removes them; what cannot be removed is swept one day.
    pub fn remove(self) {
        let _ = self.state.remove_reports(&self.key, &self.word);
    }
}

/// Leaves a node's answer where its launch node looks for it.
pub fn leave(
    config: &Config,
    order: &Order,
    names: &[String],
    is_ok: bool,
    line: &str,
) -> Result<(), ShareError> {
    let end = if is_ok { "ok" } else { "fail" };
    let name = format!("{}:{}:{end}", order.nonce, names.join(":"));
    let text = if is_ok { "" } else { line };
    let key = key_of_order(config, order)?;
    Ok(open(config)?.leave_report(&key, &order.nonce, &name, text)?)
}
