//! One file with logins, in the form that docker and podman share.
//!
//! Only read. The file may be a link but must belong to the user it serves, or to root. Errors give
//! the place and never the content.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use rustix::fs::OFlags;
use serde::Deserialize;

use super::super::{HUB_HOST, HUB_NAME};
use super::{Kind, Login, RegistryError};

/// Bytes that such a file may have.
pub(super) const LIMIT: u64 = 1 << 20;

/// A file's content.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct AuthFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What a file says of a registry.
pub(super) enum Found {
    Login(Login),
    /// The name of the helper to ask.
    Helper(String),
    Nothing,
}

impl AuthFile {
    /// Reads a file if it exists and belongs to `owner` or root.
    pub(super) fn read(path: &Path, owner: u32) -> Result<Option<Self>, RegistryError> {
        let fail = |reason: String| RegistryError::File {
            path: path.to_owned(),
            reason,
        };
        let Some(bytes) = read(path, owner).map_err(|error| fail(error.to_string()))? else {
            return Ok(None);
        };
        Self::parse(&bytes).map(Some).map_err(fail)
    }

    /// Parses a file.
    ///
    /// # Errors
    /// Gives the place and never the content.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("it is not valid at line {line}, column {column}")
        })
    }

    /// Finds what is said of a repository of a registry, named as in image references.
    pub(super) fn find(&self, registry: &str, repository: &str) -> Found {
        let helper = self
            .cred_helpers
            .iter()
            .find(|(key, name)| normalise(key) == registry && !name.is_empty());
        if let Some((_, name)) = helper {
            return Found::Helper(name.clone());
        }
        // Of `host/a/b`, `host/a` and `host` the longest that there is.
        let mut path = format!("{registry}/{repository}");
        loop {
            let entries = self.auths.iter().filter(|(key, _)| normalise(key) == path);
            if let Some(login) = entries.filter_map(|(_, entry)| entry.login()).next() {
                return Found::Login(login);
            }
            match path.rfind('/') {
                Some(at) => path.truncate(at),
                None => break,
            }
        }
        match self.creds_store.is_empty() {
            true => Found::Nothing,
            false => Found::Helper(self.creds_store.clone()),
        }
    }
}

impl Entry {
    fn login(&self) -> Option<Login> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.registrytoken) {
            return Some(Login::of_kind(Kind::Bearer, token));
        }
        if let Some(token) = filled(&self.identitytoken) {
            return Some(Login::of_kind(Kind::Identity, token));
        }
        let (user, secret) = match filled(&self.auth) {
            Some(text) => decode(text.trim())?,
            None => (filled(&self.username)?, filled(&self.password)?),
        };
        (!user.is_empty()).then(|| Login::new(user, secret))
    }
}

fn decode(text: &str) -> Option<(String, String)> {
    let decoded = BASE64_STANDARD.decode(text);
    let bytes = decoded
        .or_else(|_| BASE64_STANDARD_NO_PAD.decode(text))
        .ok()?;
    let pair = String::from_utf8(bytes).ok()?;
    let (user, secret) = pair.split_once(':')?;
    // Docker once padded the password with NUL bytes.
    Some((user.to_owned(), secret.trim_end_matches('\0').to_owned()))
}

/// Turns `https://index.docker.io/v1/` and `Host:5000/v2/` into the names references use; a path
/// that is not a version of the protocol stays.
pub(super) fn normalise(key: &str) -> String {
    let bare = key
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let host = host.to_ascii_lowercase();
    let host = match host.as_str() {
        "index.docker.io" | HUB_HOST => HUB_NAME,
        host => host,
    };
    match path {
        "" | "v1" | "v2" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

/// Reads a file that belongs to `owner` or root; nothing if there is none.
pub(super) fn read(path: &Path, owner: u32) -> io::Result<Option<Vec<u8>>> {
    // A FIFO put there by mistake must not hang the caller.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let refused = |rule: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, rule.to_owned()));
    let meta = file.metadata()?;
    if !meta.is_file() || ![owner, 0].contains(&meta.uid()) {
        return refused("it must be a file that belongs to you");
    }
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return refused(&format!("it is larger than {LIMIT} bytes"));
    }
    Ok(Some(bytes))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(file: &AuthFile, registry: &str, repository: &str) -> Option<String> {
        match file.find(registry, repository) {
            Found::Login(login) => Some(login.basic()),
            _ => None,
        }
    }

    #[test]
    fn reads_dockers_entries() {
        let text = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"YWxpY2U6cHc="},
            "Reg.example:5000":{"username":"bob","password":"a:b"},
            "http://plain:80/v2/":{"auth":"YWxpY2U6cHc"},
            "helper.example":{},
            "broken.example":{"auth":"!!"},
            "identity.example":{"auth":"YWxpY2U6","identitytoken":"refresh"},
            "token.example":{"auth":"PHRva2VuPjpyZWZyZXNo"},
            "bearer.example":{"registrytoken":"direct"}
        },"HttpHeaders":{}}"#;
        let file = AuthFile::parse(text.as_bytes()).unwrap();
        let table = [
            ("docker.io", Some("Basic YWxpY2U6cHc=")),
            ("reg.example:5000", Some("Basic Ym9iOmE6Yg==")),
            ("plain:80", Some("Basic YWxpY2U6cHc=")),
            ("helper.example", None),
            ("broken.example", None),
            ("reg.example", None),
            ("", None),
        ];
        for (registry, expect) in table {
            assert_eq!(basic(&file, registry, "x").as_deref(), expect, "{registry}");
        }
        for (registry, kind, secret) in [
            ("identity.example", Kind::Identity, "refresh"),
            ("token.example", Kind::Identity, "refresh"),
            ("bearer.example", Kind::Bearer, "direct"),
        ] {
            let Found::Login(login) = file.find(registry, "x") else {
                panic!("{registry}");
            };
            assert!(
                login.kind() == kind && login.secret() == secret,
                "{registry}"
            );
        }
    }

    #[test]
    fn the_longest_key_counts() {
        let text = r#"{"auths":{
            "h":{"username":"u","password":"1"},
            "h/a":{"username":"u","password":"2"},
            "https://h/a/b/":{"username":"u","password":"3"},
            "docker.io/me":{"username":"u","password":"4"}
        }}"#;
        let file = AuthFile::parse(text.as_bytes()).unwrap();
        let table = [
            ("h", "x", Some("1")),
            ("h", "a", Some("2")),
            ("h", "a/x", Some("2")),
            ("h", "a/b/c", Some("3")),
            ("h", "ab", Some("1")),
            ("docker.io", "me/x", Some("4")),
            ("docker.io", "library/x", None),
        ];
        for (registry, repository, expect) in table {
            let found = match file.find(registry, repository) {
                Found::Login(login) => Some(login.secret().to_owned()),
                _ => None,
            };
            assert_eq!(found.as_deref(), expect, "{registry}/{repository}");
        }
    }

    #[test]
    fn helpers_are_named() {
        let text = r#"{"auths":{"a":{"auth":"YWxpY2U6cHc="},"b":{}},
            "credHelpers":{"c":"ecr-login","index.docker.io":"hub","d":""},"credsStore":"pass"}"#;
        let file = AuthFile::parse(text.as_bytes()).unwrap();
        let named = |registry| match file.find(registry, "x") {
            Found::Helper(name) => name,
            Found::Login(_) => "a login".into(),
            Found::Nothing => "nothing".into(),
        };
        let names = ["a", "b", "c", "d", "docker.io"].map(named);
        assert_eq!(names, ["a login", "pass", "ecr-login", "pass", "hub"]);
    }

    #[test]
    fn errors_do_not_show_the_content() {
        let error = AuthFile::parse(b"{\"auths\":{\"h\":{\"auth\":\"c2VjcmV0\"}")
            .err()
            .unwrap();
        let is_silent = error.contains("line 1") && !error.contains("c2Vj");
        assert!(is_silent, "{error}");
    }

    #[test]
    fn the_file_must_be_the_owners() {
        let home = tempfile::tempdir().unwrap();
        let me = rustix::process::geteuid().as_raw();
        let path = home.path().join("config.json");
        assert!(AuthFile::read(&path, me).unwrap().is_none());
        assert!(AuthFile::read(&path.join("x"), me).unwrap().is_none());
        std::fs::write(&path, r#"{"auths":{"h":{"auth":"YWxpY2U6cHc="}}}"#).unwrap();
        assert!(AuthFile::read(&path, me).unwrap().is_some());
        if me != 0 {
            assert!(AuthFile::read(&path, me + 1).is_err());
        }
        assert!(AuthFile::read(home.path(), me).is_err());
        std::fs::write(&path, vec![b' '; LIMIT as usize + 1]).unwrap();
        assert!(AuthFile::read(&path, me).is_err());
    }
}
