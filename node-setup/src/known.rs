//! Who a job's user is, asked of the name service by one node of the job alone: what it says goes to
//! the others through the shared state, where the site has one.

use shared_state::{Contents, Key, SharedState, Source};
use shifter_core::config::Config;
use shifter_core::identity::Identity;

use crate::error::Result;
use crate::lookup;

/// A job's user, as far as the name service is concerned.
#[derive(Debug)]
pub struct Known {
    /// The user.
    pub user: Identity,
    /// Who asked the name service.
    pub source: Source,
    /// What is wrong with the shared state, for the log: the job does not need it.
    pub complaints: Vec<shared_state::Error>,
}

/// Returns the user of the run `key` of a job, whose `rank`-th node this is, from 0.
///
/// # Errors
/// [`Error::Account`](crate::error::Error::Account) if nobody knows the user. Nothing about the
/// shared state is an error.
pub fn identity(config: &Config, key: &Key, rank: usize) -> Result<Known> {
    let mut complaints = Vec::new();
    let state = SharedState::open(&config.shared_state).unwrap_or_else(|error| {
        complaints.push(error);
        None
    });
    let Some(state) = state else {
        return alone(key, complaints);
    };
    let (mut own, mut unshared) = (None, None);
    let look_up = || {
        let user = own.insert(lookup::identity(key.uid).map_err(Some)?);
        Contents::of_user(user).map_err(|error| {
            unshared = Some(error);
            None
        })
    };
    let (read, source) = match state.get_or_write(key, rank, look_up) {
        Ok(answer) => {
            complaints.extend(answer.complaint);
            (answer.contents.identity(key.uid).map(Some), answer.source)
        }
        Err(Some(error)) => return Err(error),
        Err(None) => (Ok(None), Source::Alone),
    };
    complaints.extend(unshared);
    if source != Source::Shared && complaints.is_empty() {
        complaints.extend(state.sweep().err());
    }
    match (read.map_err(|error| complaints.push(error)), own) {
        (_, Some(user)) | (Ok(Some(user)), None) => Ok(Known {
            user,
            source,
            complaints,
        }),
        _ => alone(key, complaints),
    }
}

fn alone(key: &Key, complaints: Vec<shared_state::Error>) -> Result<Known> {
    Ok(Known {
        user: lookup::identity(key.uid)?,
        source: Source::Alone,
        complaints,
    })
}

/// Removes what the run `key` of a job, and the run before it, left in the shared state.
///
/// The run before it because Slurm counts a requeue before the epilogs of the run that it ends.
pub fn forget(config: &Config, key: &Key) -> std::result::Result<(), shared_state::Error> {
    // Where it cannot be opened the job's start has said so.
    let Ok(Some(state)) = SharedState::open(&config.shared_state) else {
        return Ok(());
    };
    let before = key.restart.checked_sub(1).map(|restart| Key {
        restart,
        ..key.clone()
    });
    let removed = before.iter().try_for_each(|before| state.remove(before));
    state.remove(key).and(removed)
}
