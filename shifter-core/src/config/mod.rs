//! The site's configuration, `/etc/shifter/shifter.toml`.
//!
//! The structs here are the single source of keys, types, defaults and documentation; the
//! sample in `conf/` and the manual page are tested against them. Unknown keys are errors.

mod check;
mod registries;
mod tables;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::registries::{REGISTRIES_PATH, Registries, USER_REGISTRIES};
pub use self::tables::{
    Config, Hooks, Kernel, Module, NodeCache, Registry, Root, Slurm, Store, UserImages,
};
use crate::reference::TypeRules;
use crate::trusted::{self, TrustError};
use crate::volmap::{Origin, VolumeError, VolumeMap};

/// Where every program looks; the setuid program looks nowhere else.
pub const DEFAULT_PATH: &str = "/etc/shifter/shifter.toml";

const SIZE_LIMIT: u64 = 1 << 20;

/// Says what is wrong with the configuration and where.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is missing, unreadable, or somebody other than root could have written it.
    #[error("cannot use the configuration")]
    Untrusted(#[from] TrustError),
    /// The file is not UTF-8.
    #[error("{}: the file is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// A key or value cannot be understood.
    #[error("{}:{line}: {message}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and what is expected.
        message: String,
        /// The line itself.
        text: String,
    },
}

impl ConfigError {
    /// Returns the line at fault, for those who may read the file.
    pub fn hint(&self) -> Option<String> {
        match self {
            ConfigError::Invalid { text, .. } if !text.is_empty() => {
                Some(format!("the line reads '{text}'"))
            }
            _ => None,
        }
    }
}

impl Config {
    /// Reads the configuration from a file that only root can have written.
    pub fn open_trusted(path: &Path) -> Result<Self, ConfigError> {
        let bytes = trusted::read(path, SIZE_LIMIT)?;
        let text = String::from_utf8(bytes).map_err(|_| ConfigError::NotText(path.to_owned()))?;
        Self::parse(&text, path)
    }

    /// Parses the text of a configuration; `path` only appears in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            invalid(text, path, at, error.message().to_owned())
        })?;
        match check::first_fault(&config) {
            None => Ok(config),
            Some((key, fault)) => {
                let at = key_offset(text, key);
                Err(invalid(text, path, at, format!("{key}: {fault}")))
            }
        }
    }

    /// Returns the types an image reference may have here.
    pub fn type_rules(&self) -> TypeRules<'_> {
        TypeRules {
            default_type: &self.default_image_type,
            site_types: &self.image_types,
        }
    }

    /// Returns the site's mounts, which [`Config::parse`] has already found well-formed.
    pub fn site_mounts(&self) -> VolumeMap {
        site_map(&self.root.site_mounts).unwrap_or_default()
    }
}

impl Module {
    /// Returns the module's mounts, which [`Config::parse`] has already found well-formed.
    pub fn site_mounts(&self) -> VolumeMap {
        site_map(&self.site_mounts).unwrap_or_default()
    }
}

fn site_map(mounts: &[String]) -> Result<VolumeMap, VolumeError> {
    VolumeMap::parse_many(mounts.iter().map(String::as_str), Origin::Site)
}

/// Finds the byte offset of the line that sets `key`; 0 if the value is a default.
fn key_offset(text: &str, key: &str) -> usize {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start();
        if bare
            .strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with('='))
        {
            return at;
        }
        at += line.len();
    }
    0
}

fn invalid(text: &str, path: &Path, at: usize, message: String) -> ConfigError {
    let before = text.get(..at).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let shown = text.lines().nth(line - 1).unwrap_or_default().trim();
    ConfigError::Invalid {
        path: path.to_owned(),
        line,
        message: crate::sanitize::text(&message.lines().collect::<Vec<_>>().join(", ")),
        text: crate::sanitize::text(shown),
    }
}
