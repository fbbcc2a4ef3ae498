//! From the image that a job asks for to the id that every node uses, asked once, as the user.

use std::path::Path;
use std::process::Command;

use node_setup::child::ChildError;
use node_setup::located::Located;
use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::identity::Identity;
use shifter_core::ids::ImageId;
use shifter_core::layout::Program;
use shifter_core::manifest::ResolvedImage;
use shifter_core::reference::ImageRef;
use shifter_core::sanitize;
use shifter_core::trusted::{self, TrustError};
use thiserror::Error;

use crate::outside;

/// The option with which a hook starts itself to become the user first.
pub const AS_USER: &str = "--as-user=";

/// Says why an image cannot be had.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// The image manager refuses it, in its own words.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
    /// Only the user has it, and nodes do not read users' stores for jobs.
    #[error("cannot use image '{}' for a job: it is in the user's own store only", sanitize::text(.0))]
    UsersOwn(String),
    /// The image manager is not root's.
    #[error(transparent)]
    Untrusted(#[from] TrustError),
    /// It did not answer.
    #[error("cannot look up image '{}'", sanitize::text(.image))]
    Lookup {
        /// The image.
        image: String,
        /// Why.
        source: ChildError,
    },
    /// It said something else than it should.
    #[error("cannot look up image '{}': {reason}", sanitize::text(.image))]
    Answer {
        /// The image.
        image: String,
        /// What was wrong.
        reason: String,
    },
}

impl ResolveError {
    /// True if trying again later is of no use.
    pub fn is_users_mistake(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::UsersOwn(_))
    }
}

/// Resolves an image with the eyes of `user`, or of whoever runs this.
pub fn resolve(
    image: &ImageRef,
    user: Option<&Identity>,
    config: &Config,
    config_path: Option<&Path>,
) -> Result<ResolvedImage, ResolveError> {
    let reference = image.canonical();
    if let Some(id) = image.tree().and_then(ImageId::of_tree) {
        return Ok(ResolvedImage { id, reference });
    }
    let mut command = match user {
        None => Command::new(Program::Shifterimg.path(&config.prefix)),
        Some(user) => {
            let program = trusted::audit(&Program::Shifterimg.path(&config.prefix), &[0])?;
            let gids: Vec<String> = user.gids().iter().map(u32::to_string).collect();
            let mut command = Command::new("/proc/self/exe");
            let ids = format!("{AS_USER}{}:{}:{}", user.uid, user.gid, gids.join(","));
            command.arg(ids).arg(program);
            command
        }
    };
    if let Some(path) = config_path.filter(|path| *path != Path::new(DEFAULT_PATH)) {
        command.arg("--config").arg(path);
    }
    command.args(["lookup", "--json", &reference]);
    let lookup = |source| ResolveError::Lookup {
        image: reference.clone(),
        source,
    };
    let seconds = config.slurm.lookup_timeout_secs;
    let finished = outside::run(command, seconds).map_err(lookup)?;
    let answer = |reason| ResolveError::Answer {
        image: reference.clone(),
        reason,
    };
    match Located::of(&finished) {
        Located::Site(id) => Ok(ResolvedImage { id, reference }),
        Located::UsersOwn => Err(ResolveError::UsersOwn(reference)),
        Located::Refused(Some(code), lines) if code.is_users_mistake() => {
            Err(ResolveError::Refused(lines))
        }
        Located::Refused(_, lines) => Err(answer(lines.join("; "))),
        Located::Unclear(reason) => Err(answer(reason)),
    }
}
