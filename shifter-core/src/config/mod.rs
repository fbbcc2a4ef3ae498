//! The site's configuration, `/etc/shifter/shifter.toml`.
//!
//! The structs here are the single source of keys, types, defaults and documentation; the
//! sample in `conf/` and the manual page are tested against them. Unknown keys are errors.

mod check;
mod registries;
mod tables;
#[cfg(test)]
mod tests;
mod torque;

use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::registries::{REGISTRIES_PATH, Registries, USER_REGISTRIES};
pub use self::tables::{
    AutoshiftImages, Config, CpuUnit, Hooks, ImageFormat, Kernel, Metrics, Module, NodeCache,
    Registry, Root, SharedState, Slurm, Ssh, SshJobs, Store, UserImages, Visibility,
};
pub use self::torque::{BatchSystem, Fanout, FanoutReport, Service, Torque};
use crate::reference::TypeRules;
use crate::trusted::{self, TrustError};
use crate::volmap::{self, Origin, VolumeError, VolumeMap};

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

impl Store {
    /// The size of an image's blocks in bytes; none if squashfs has no blocks of that size.
    pub fn block_bytes(&self) -> Option<u32> {
        let bytes = u32::try_from(volmap::parse_size(&self.block_size).ok()?).ok()?;
        let is_size = bytes.is_power_of_two() && (4 << 10..=1 << 20).contains(&bytes);
        is_size.then_some(bytes)
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
                let at = key_offset(text, &key);
                let key = key.join(".");
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

/// Finds the byte offset of the line that sets `key`, or else of the one that begins the innermost
/// table around it; 0 if there is neither.
fn key_offset(text: &str, key: &[String]) -> usize {
    let (mut table, mut at, mut best) = (Vec::new(), 0, (0, 0));
    for line in text.split_inclusive('\n') {
        let bare = line.trim();
        let names = match bare
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
        {
            Some(header) => {
                table = names_of(header.trim_start_matches('['));
                table.clone()
            }
            None => match bare.split_once('=') {
                Some((name, _)) => [table.clone(), names_of(name)].concat(),
                None => Vec::new(),
            },
        };
        if key.starts_with(&names) && names.len() > best.0 {
            best = (names.len(), at);
        }
        at += line.len();
    }
    best.1
}

/// Takes a dotted key apart: `module."a.b".libraries`.
fn names_of(key: &str) -> Vec<String> {
    let (mut names, mut quote) = (vec![String::new()], None);
    for c in key.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '.') => names.push(String::new()),
            (None, _) if c.is_whitespace() => {}
            _ => names.last_mut().into_iter().for_each(|name| name.push(c)),
        }
    }
    names
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
