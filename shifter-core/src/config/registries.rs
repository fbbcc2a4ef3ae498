//! How registries are reached: `/etc/shifter/registries.toml`, the table of the same form in
//! `shifter.toml`, and users' own `~/.config/shifter/registries.toml`.
//!
//! Only the form is known here. Who may say what is decided where the parts are put together, in
//! the image manager; what a reference means never depends on any of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::check::{Fault, key};
use super::{ConfigError, Registry, invalid, key_offset};
use crate::reference;
use crate::trusted;

/// Where the site's file is.
pub const REGISTRIES_PATH: &str = "/etc/shifter/registries.toml";

/// Where a user's file is, below the home directory.
pub const USER_REGISTRIES: &str = ".config/shifter/registries.toml";

const SIZE_LIMIT: u64 = 1 << 20;

/// The largest number of retries, and of seconds.
const LIMIT: u32 = 86_400;

/// A whole file.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// Registries, and paths in them, that images may come from; empty: all.
    pub allow: Vec<String>,
    /// Registries, and paths in them, that no image comes from.
    pub block: Vec<String>,
    /// Whether users' own files count.
    pub user_registries: bool,
    /// How often a request is made again that failed for a passing reason.
    pub retries: Option<u32>,
    /// Seconds in which a connection must be made.
    pub connect_timeout_secs: Option<u32>,
    /// Seconds in which something must arrive.
    pub idle_timeout_secs: Option<u32>,
    /// How each registry is reached; the key is `host` or `host:port`.
    pub registry: BTreeMap<String, Registry>,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            block: Vec::new(),
            user_registries: true,
            retries: None,
            connect_timeout_secs: None,
            idle_timeout_secs: None,
            registry: BTreeMap::new(),
        }
    }
}

impl Registries {
    /// Reads the site's file, which only root can have written; a missing one is an empty one.
    pub fn open_trusted(path: &Path) -> Result<Self, ConfigError> {
        if !path.try_exists().unwrap_or(true) {
            return Ok(Self::default());
        }
        let bytes = trusted::read(path, SIZE_LIMIT)?;
        let text = String::from_utf8(bytes).map_err(|_| ConfigError::NotText(path.to_owned()))?;
        Self::parse(&text, path)
    }

    /// Parses the text of a file; `path` only appears in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let parsed: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            invalid(text, path, at, error.message().to_owned())
        })?;
        match parsed.first_fault() {
            None => Ok(parsed),
            Some((key, fault)) => {
                let at = key_offset(text, &key);
                let key = key.join(".");
                Err(invalid(text, path, at, format!("{key}: {fault}")))
            }
        }
    }

    fn first_fault(&self) -> Fault {
        let patterns = [("allow", &self.allow), ("block", &self.block)];
        let wrong = patterns.into_iter().find_map(|(name, list)| {
            let pattern = list.iter().find(|text| !is_pattern(text))?;
            let rule = "must be host[:port][/path] or *.domain";
            Some((key(&[name]), format!("'{pattern}' {rule}")))
        });
        let numbers = [
            ("retries", self.retries, 0),
            ("connect_timeout_secs", self.connect_timeout_secs, 1),
            ("idle_timeout_secs", self.idle_timeout_secs, 1),
        ];
        let out_of_range = numbers.into_iter().find_map(|(name, number, least)| {
            let is_wrong = number.is_some_and(|number| !(least..=LIMIT).contains(&number));
            is_wrong.then(|| (key(&[name]), format!("it must be from {least} to {LIMIT}")))
        });
        wrong
            .or(out_of_range)
            .or_else(|| first_fault(&self.registry))
    }
}

/// Finds the first registry whose entry cannot be meant.
pub(super) fn first_fault(registries: &BTreeMap<String, Registry>) -> Fault {
    for (name, registry) in registries {
        let of_registry = |last| key(&["registry", name, last]);
        if reference::canonical_host(name).is_err() {
            let fault = format!("'{name}' is not host or host:port");
            return Some((key(&["registry", name]), fault));
        }
        let wrong = registry.mirrors.iter().find(|text| !is_place(text));
        if let Some(mirror) = wrong {
            return Some((
                of_registry("mirrors"),
                format!("'{mirror}' must be host[:port][/path]"),
            ));
        }
        if registry.mirrors_only && registry.mirrors.is_empty() {
            let fault = format!("'{name}' has no mirrors");
            return Some((of_registry("mirrors_only"), fault));
        }
        let server = registry.token_server.as_deref();
        if let Some(server) = server.filter(|text| reference::canonical_host(text).is_err()) {
            let fault = format!("'{server}' is not host or host:port");
            return Some((of_registry("token_server"), fault));
        }
        let files: [(&str, &Option<PathBuf>); 2] = [
            ("ca_file", &registry.ca_file),
            ("credentials_file", &registry.credentials_file),
        ];
        for (last, file) in files {
            if let Some(file) = file.as_ref().filter(|file| !file.is_absolute()) {
                let fault = format!("'{}' is not an absolute path", file.display());
                return Some((of_registry(last), fault));
            }
        }
    }
    None
}

/// True for `host[:port][/path]`.
fn is_place(text: &str) -> bool {
    let (host, path) = text.split_once('/').unwrap_or((text, "x"));
    reference::canonical_host(host).is_ok() && reference::is_repository(path)
}

/// True for a place or `*.domain`.
fn is_pattern(text: &str) -> bool {
    match text.strip_prefix("*.") {
        Some(domain) => reference::canonical_host(domain).is_ok(),
        None => is_place(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Registries, String> {
        Registries::parse(text, Path::new("/r")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_file() {
        let text = r#"
            allow = ["docker.io/library", "*.example.org", "[::1]:5000"]
            block = ["Bad.example:5000/x/y"]
            user_registries = false
            retries = 0
            [registry."docker.io"]
            mirrors = ["harbor.example.org:8443/hub", "mirror.gcr.io"]
            mirrors_only = true
            [registry."h:5000"]
            plain_http = true
            ca_file = "/etc/pki/x"
            credentials_file = "/etc/shifter/auth.json"
            token_server = "sso.example.org"
        "#;
        let parsed = parse(text).unwrap();
        assert!(parsed.registry["docker.io"].mirrors_only && !parsed.user_registries);
        assert_eq!((parsed.retries, parsed.idle_timeout_secs), (Some(0), None));
        assert_eq!(parse("").unwrap(), Registries::default());
    }

    #[test]
    fn what_cannot_be_meant() {
        let table = [
            ("x = 1", "/r:1: unknown field `x`"),
            ("\nallow = [\"a b\"]", "/r:2: allow: 'a b' must be"),
            ("block = [\"h/\"]", "block: 'h/' must be"),
            ("block = [\"*\"]", "block: '*' must be"),
            ("retries = 100000", "retries: it must be from 0 to 86400"),
            ("idle_timeout_secs = 0", "it must be from 1 to"),
            ("[registry.\"a b\"]", "'a b' is not host or host:port"),
            ("[registry.\"h/x\"]", "'h/x' is not host or host:port"),
            (
                "[registry.h]\nmirrors = [\"https://h\"]",
                "/r:2: registry.h.mirrors: 'https://h' must be",
            ),
            ("[registry.h]\nmirrors = [\"h/A\"]", "'h/A' must be"),
            (
                "[registry.h]\nmirrors_only = true",
                "/r:2: registry.h.mirrors_only: 'h' has no mirrors",
            ),
            (
                "[registry.h]\nca_file = \"x\"",
                "ca_file: 'x' is not an absolute path",
            ),
            (
                "[registry.h]\ncredentials_file = \"x\"",
                "is not an absolute path",
            ),
            (
                "[registry.h]\ntoken_server = \"https://x\"",
                "token_server: 'https://x' is not",
            ),
        ];
        for (text, expect) in table {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
