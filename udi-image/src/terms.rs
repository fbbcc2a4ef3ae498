//! The terms under which the server lets anybody in, as its command line states them.

use std::ffi::OsString;
use std::path::PathBuf;

use russh::keys::{PrivateKey, PublicKey};
use thiserror::Error;

use crate::keys::{self, KeyError};

/// Connections that may be open at once unless the command line says otherwise.
const CONNECTIONS: usize = 128;

/// Says why the server does not start.
#[derive(Debug, Error)]
pub enum TermsError {
    /// The command line cannot be understood.
    #[error("{0}")]
    Usage(String),
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The terms.
pub struct Terms {
    /// The only user, by name.
    pub user: String,
    /// The only key that opens the door.
    pub key: PublicKey,
    /// The key by which clients know the server.
    pub host_key: PrivateKey,
    /// The user's login shell.
    pub shell: PathBuf,
    /// Variables that clients may set; a `*` at the end stands for any text.
    pub accept_env: Vec<String>,
    /// Whether clients may be connected further through the server.
    pub is_forwarding: bool,
    /// Connections that may be open at once.
    pub connections: usize,
}

impl Terms {
    /// Reads `--name=value` words.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, TermsError> {
        let (mut user, mut key, mut host_key) = (None, None, None);
        let (mut shell, mut connections) = (PathBuf::from("/bin/sh"), CONNECTIONS);
        let (mut accept_env, mut is_forwarding) = (Vec::new(), false);
        for word in words {
            let word = word.to_string_lossy().into_owned();
            let (name, value) = word.split_once('=').unwrap_or((&word, ""));
            match name {
                "--user" => user = Some(value.to_owned()),
                "--key" => key = Some(keys::read_public(value.as_ref())?),
                "--host-key" => host_key = Some(keys::read_private(value.as_ref())?),
                "--shell" => shell = value.into(),
                "--accept-env" => accept_env.push(value.to_owned()),
                "--tcp-forwarding" => is_forwarding = true,
                "--connections" => {
                    connections = value
                        .parse()
                        .map_err(|_| TermsError::Usage(format!("'{value}' is not a number")))?;
                }
                _ => return Err(TermsError::Usage(format!("unknown option '{name}'"))),
            }
        }
        let missing = |name: &str| TermsError::Usage(format!("option '{name}' is needed"));
        Ok(Self {
            user: user.ok_or_else(|| missing("--user"))?,
            key: key.ok_or_else(|| missing("--key"))?,
            host_key: host_key.ok_or_else(|| missing("--host-key"))?,
            shell,
            accept_env,
            is_forwarding,
            connections,
        })
    }

    /// True if a client may set the variable.
    pub fn accepts(&self, name: &str) -> bool {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern,
        };
        !name.is_empty()
            && name.bytes().all(is_name)
            // What steers the dynamic linker stays at home, whatever the list says.
            && !name.starts_with("LD_")
            && self.accept_env.iter().any(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(dir: &std::path::Path, more: &[&str]) -> Vec<OsString> {
        let key = keys::generate("x").unwrap();
        std::fs::write(dir.join("id.pub"), key.public).unwrap();
        std::fs::write(dir.join("host"), key.private).unwrap();
        let mut words = vec![
            "--user=alice".to_owned(),
            format!("--key={}", dir.join("id.pub").display()),
            format!("--host-key={}", dir.join("host").display()),
        ];
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words.into_iter().map(Into::into).collect()
    }

    #[test]
    fn only_listed_variables_are_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let more = ["--accept-env=LANG", "--accept-env=LC_*", "--accept-env=L*"];
        let terms = Terms::parse(words(dir.path(), &more)).unwrap();
        let table = [
            ("LANG", true),
            ("LC_ALL", true),
            ("LANGUAGE", true),
            ("LD_PRELOAD", false),
            ("PATH", false),
            ("", false),
            ("L=x", false),
        ];
        for (name, expected) in table {
            assert_eq!(terms.accepts(name), expected, "{name}");
        }
    }

    #[test]
    fn nothing_is_guessed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Terms::parse(words(dir.path(), &[])).is_ok());
        assert!(Terms::parse(words(dir.path(), &["--password"])).is_err());
        assert!(Terms::parse(words(dir.path(), &["--connections=x"])).is_err());
        assert!(Terms::parse(words(dir.path(), &["--key=/no/such"])).is_err());
        assert!(Terms::parse(["--user=alice".into()]).is_err());
    }
}
