//! Who a job's user is, asked of the name service by one node of the job alone: what it says goes to
//! the others through the shared state, where the site has one.

use shared_state::{Contents, Key, SharedState, Source};
use shifter_core::config::Config;
use shifter_core::identity::Identity;
use shifter_core::ssh::JobKeys;

use crate::error::Result;
use crate::lookup;

/// Name of the file with the job's keys.
const SSH: &str = "ssh";

/// A job's user, as far as the name service is concerned.
#[derive(Debug)]
pub struct Known {
    /// The user.
    pub user: Identity,
    /// The keys of the job, if it wants some and all its nodes have these.
    pub ssh: Option<JobKeys>,
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
pub fn identity(
    config: &Config,
    key: &Key,
    rank: usize,
    make_keys: impl FnOnce() -> Option<JobKeys>,
) -> Result<Known> {
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
        let mut contents = Contents::of_user(user);
        if let (Ok(contents), Some(keys)) = (&mut contents, make_keys()) {
            unshared = contents.set(SSH, keys.to_text()).err();
        }
        contents.map_err(|error| {
            unshared = Some(error);
            None
        })
    };
    let mut ssh = None;
    let (read, source) = match state.get_or_write(key, rank, look_up) {
        Ok(answer) => {
            complaints.extend(answer.complaint);
            let text = answer
                .contents
                .get(SSH)
                .filter(|_| answer.source != Source::Alone);
            ssh = text.and_then(|text| JobKeys::parse(str::from_utf8(text).ok()?));
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
            ssh,
            source,
            complaints,
        }),
        _ => alone(key, complaints),
    }
}

fn alone(key: &Key, complaints: Vec<shared_state::Error>) -> Result<Known> {
    Ok(Known {
        user: lookup::identity(key.uid)?,
        ssh: None,
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
