//! The site's configuration, `/etc/shifter/shifter.toml`.
//!
//! The structs here are the single source of keys, types, defaults and documentation; the
//! sample in `conf/` and the manual page are tested against them. Unknown keys are errors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::env::EnvChanges;
use crate::reference::TypeRules;
use crate::trusted::{self, TrustError};
use crate::volmap::{Origin, VolumeMap};

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

/// The whole configuration.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of this system, used where the batch system gives no cluster name.
    pub system: String,
    /// Prefix under which Shifter is installed (`bin/shifterimg`, `sbin/setupRoot`).
    pub prefix: PathBuf,
    /// Image type of a reference that names none.
    pub default_image_type: String,
    /// Image types that this site defines beside docker, id, local and custom.
    pub image_types: Vec<String>,
    /// The image store.
    pub store: Store,
    /// How registries are reached; the key is `host` or `host:port`.
    pub registry: BTreeMap<String, Registry>,
    /// What every root contains.
    pub root: Root,
    /// Changes to the environment of every container.
    pub env: EnvChanges,
    /// Modules that users select with `--module`.
    pub module: BTreeMap<String, Module>,
    /// The Slurm plugin.
    pub slurm: Slurm,
}

/// The image store.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Directory of the site store.
    pub path: PathBuf,
    /// Numeric uid that owns the site store and pulls into it.
    pub image_owner: u32,
    /// Command through which users pull into the site store; the arguments are appended.
    /// Empty: users pull into their own store.
    pub site_pull_command: Vec<String>,
    /// Whether images that users own may be run.
    pub user_images: UserImages,
}

/// What may be done with images that users own.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum UserImages {
    /// They are refused.
    #[default]
    No,
    /// The kernel mounts them: the site trusts its users not to attack squashfs.
    Kernel,
}

/// How one registry is reached.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Speak http instead of https.
    pub plain_http: bool,
    /// File with the certificate authorities (PEM) that vouch for this registry.
    pub ca_file: Option<PathBuf>,
}

/// What every root contains.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Root {
    /// Size limit of the in-memory root, in MiB.
    pub tmpfs_size_mib: u32,
    /// Directories of the host that every container sees, in the volume grammar
    /// `FROM[:TO[:flags]]`. Users' volumes must lie within them.
    pub site_mounts: Vec<String>,
    /// Directory of the host placed read-only at /opt/udiImage.
    pub udi_image: Option<PathBuf>,
}

/// A module.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Module {
    /// False hides the module.
    pub enabled: bool,
    /// Changes to the environment.
    pub env: EnvChanges,
    /// Modules that cannot be used together with this one.
    pub conflicts: Vec<String>,
}

/// The Slurm plugin.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Slurm {
    /// Seconds within which an image must be resolved at submission.
    pub lookup_timeout_secs: u32,
    /// Seconds for which sbatch, salloc and srun wait while they pull a missing image; 0: they
    /// refuse the job and name the pull command.
    pub submit_pull_timeout_secs: u32,
    /// Seconds within which a node's root must be ready.
    pub setup_timeout_secs: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            system: "cluster".into(),
            prefix: "/usr".into(),
            default_image_type: "docker".into(),
            image_types: Vec::new(),
            store: Store::default(),
            registry: BTreeMap::new(),
            root: Root::default(),
            env: EnvChanges::default(),
            module: BTreeMap::new(),
            slurm: Slurm::default(),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            path: "/var/lib/shifter/images".into(),
            image_owner: 0,
            site_pull_command: Vec::new(),
            user_images: UserImages::No,
        }
    }
}

impl Default for Root {
    fn default() -> Self {
        Self {
            tmpfs_size_mib: 64,
            site_mounts: Vec::new(),
            udi_image: None,
        }
    }
}

impl Default for Module {
    fn default() -> Self {
        Self {
            enabled: true,
            env: EnvChanges::default(),
            conflicts: Vec::new(),
        }
    }
}

impl Default for Slurm {
    fn default() -> Self {
        Self {
            lookup_timeout_secs: 10,
            submit_pull_timeout_secs: 0,
            setup_timeout_secs: 60,
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
        config.check(text, path)?;
        Ok(config)
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
        let texts = self.root.site_mounts.iter().map(String::as_str);
        VolumeMap::parse_many(texts, Origin::Site).unwrap_or_default()
    }

    /// Checks what the types alone cannot say.
    fn check(&self, text: &str, path: &Path) -> Result<(), ConfigError> {
        let fail = |key: &str, message: String| {
            let at = key_offset(text, key);
            Err(invalid(text, path, at, format!("{key}: {message}")))
        };
        for (key, dir) in [("prefix", &self.prefix), ("path", &self.store.path)] {
            if !dir.is_absolute() {
                return fail(key, format!("'{}' is not an absolute path", dir.display()));
            }
        }
        if self
            .root
            .udi_image
            .as_ref()
            .is_some_and(|dir| !dir.is_absolute())
        {
            return fail("udi_image", "the path is not absolute".into());
        }
        if !(1..=65536).contains(&self.root.tmpfs_size_mib) {
            return fail("tmpfs_size_mib", "the size must be from 1 to 65536".into());
        }
        let mounts = self.root.site_mounts.iter().map(String::as_str);
        if let Err(error) = VolumeMap::parse_many(mounts, Origin::Site) {
            return fail("site_mounts", error.to_string());
        }
        let site = self.site_mounts();
        if let Some(volume) = site
            .entries()
            .iter()
            .find(|v| v.flags.per_node_cache.is_some())
        {
            return fail(
                "site_mounts",
                format!("'{}': a perNodeCache belongs to a user's volume", volume.to),
            );
        }
        if let Some(command) = self.store.site_pull_command.first()
            && !command.starts_with('/')
        {
            return fail(
                "site_pull_command",
                format!("'{command}' is not an absolute path"),
            );
        }
        let known = ["docker", "id", "local", "custom"];
        let default = self.default_image_type.as_str();
        if !known.contains(&default) && !self.image_types.iter().any(|t| t == default) {
            return fail(
                "default_image_type",
                format!("'{default}' is not in image_types"),
            );
        }
        for name in &self.image_types {
            let well_formed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            if name.is_empty() || !name.chars().all(well_formed) || known.contains(&name.as_str()) {
                let rule = "a type is lower-case letters and digits and not a built-in one";
                return fail("image_types", format!("'{name}': {rule}"));
            }
        }
        for (name, module) in &self.module {
            if let Some(other) = module
                .conflicts
                .iter()
                .find(|c| !self.module.contains_key(*c))
            {
                return fail(
                    "conflicts",
                    format!("module '{name}' names unknown '{other}'"),
                );
            }
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/shifter/shifter.toml"))
            .map_err(|e| format!("{e} {}", e.hint().unwrap_or_default()))
    }

    #[test]
    fn empty_file_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn errors_name_line_key_and_text() {
        let table = [
            (
                "system = 'x'\nsistem = 'y'\n",
                ":2: unknown field `sistem`",
                "sistem = 'y'",
            ),
            (
                "[store]\npath = 'images'",
                ":2: path: 'images' is not an absolute path",
                "path =",
            ),
            (
                "[root]\n\ntmpfs_size_mib = 0",
                ":3: tmpfs_size_mib: ",
                "tmpfs_size_mib = 0",
            ),
            (
                "[root]\nsite_mounts = ['/a:/etc']",
                ":2: site_mounts: ",
                "site_mounts",
            ),
            (
                "default_image_type = 'rkt'",
                ":1: default_image_type: 'rkt'",
                "",
            ),
            ("image_types = ['docker']", ":1: image_types: 'docker'", ""),
            (
                "[store]\nsite_pull_command = ['sudo']",
                ":2: site_pull_command: 'sudo'",
                "",
            ),
            (
                "[store]\nuser_images = 'yes'",
                ":2: unknown variant `yes`",
                "user_images",
            ),
            ("x = \n", ":1: ", "x ="),
            (
                "[root]\nsite_mounts = ['/a:/b:perNodeCache=size=1G']",
                ":2: site_mounts: '/b': a perNodeCache",
                "",
            ),
            (
                "[module.a]\nconflicts = ['b']",
                ":2: conflicts: module 'a'",
                "",
            ),
        ];
        for (text, expect, line) in table {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains(expect) && error.contains(line),
                "{text}: {error}"
            );
        }
    }
}
