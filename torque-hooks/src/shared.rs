//! What the nodes of a job share: who its user is, and its manifest.
//!
//! The launch node writes it once and removes it; nodes read it, and ask nobody.

use shared_state::{Contents, Error, Key, MANIFEST, SharedState};
use shifter_core::config::Config;
use shifter_core::identity::Identity;
use shifter_core::ids::{IdError, JobId};
use thiserror::Error;

use crate::state::Record;
use crate::words::Order;

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
    state.write(&key_of(record, job)?, &contents)?;
    // What cannot be swept now is swept by the next.
    let _ = state.sweep();
    Ok(())
}

/// Removes what the nodes share for the job.
pub fn unshare(config: &Config, record: &Record, job: &JobId) -> Result<(), ShareError> {
    Ok(open(config)?.remove(&key_of(record, job)?)?)
}

/// Reads a job's manifest on a node.
pub fn manifest(config: &Config, order: &Order) -> Result<Vec<u8>, ShareError> {
    let contents = open(config)?.read(&key_of_order(config, order)?)?;
    let manifest = contents
        .as_ref()
        .and_then(|contents| contents.get(MANIFEST));
    let manifest = manifest.ok_or_else(|| ShareError::Nothing(order.job.clone()))?;
    Ok(manifest.to_vec())
}

/// True if the job's files are still there: its launch node removes them before it has its nodes
/// undo anything.
pub fn is_wanted(config: &Config, order: &Order) -> bool {
    manifest(config, order).is_ok()
}
