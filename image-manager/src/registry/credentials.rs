//! Logins that the user already has, in `~/.docker/config.json`.
//!
//! Only read, and only the `auths` entries; the file may be a link but must belong to the user it
//! serves. A login never appears in a message.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use rustix::fs::OFlags;
use serde::Deserialize;

use super::error::RegistryError;

const LIMIT: u64 = 1 << 20;

/// The logins of one user, by registry.
#[derive(Default)]
pub struct Logins(BTreeMap<String, Login>);

/// A login; deliberately without `Debug`.
#[derive(Clone)]
pub(super) struct Login {
    user: String,
    password: String,
}

impl Login {
    /// Returns the value of an `Authorization` header for the Basic scheme.
    pub fn basic(&self) -> String {
        format!(
            "Basic {}",
            BASE64_STANDARD.encode(format!("{}:{}", self.user, self.password))
        )
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Logins {
    /// Reads `<home>/.docker/config.json` if it exists and belongs to `owner`.
    pub fn of_home(home: &Path, owner: u32) -> Result<Self, RegistryError> {
        let path = home.join(".docker/config.json");
        let fail = |reason: String| RegistryError::File {
            path: path.clone(),
            reason,
        };
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(fail(error.to_string())),
        };
        let meta = file.metadata().map_err(|error| fail(error.to_string()))?;
        if !meta.is_file() || meta.uid() != owner {
            return Err(fail("it must be a file that belongs to you".into()));
        }
        let mut bytes = Vec::new();
        let read = file.take(LIMIT + 1).read_to_end(&mut bytes);
        read.map_err(|error| fail(error.to_string()))?;
        if bytes.len() as u64 > LIMIT {
            return Err(fail(format!("it is larger than {LIMIT} bytes")));
        }
        Self::parse(&bytes).map_err(fail)
    }

    /// Parses the file; errors give the place and never the content.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| {
            format!(
                "it is not valid at line {}, column {}",
                error.line(),
                error.column()
            )
        })?;
        let logins = file
            .auths
            .into_iter()
            .filter_map(|(key, entry)| Some((normalise(&key), entry.login()?)));
        Ok(Self(logins.collect()))
    }

    /// Finds the login for a registry, named as in image references (`docker.io` for the Hub).
    pub(super) fn find(&self, registry: &str) -> Option<Login> {
        self.0.get(registry).cloned()
    }
}

impl Entry {
    fn login(self) -> Option<Login> {
        let pair = match self.auth.filter(|text| !text.is_empty()) {
            Some(text) => {
                let text = text.trim();
                let decoded = BASE64_STANDARD.decode(text);
                let bytes = decoded
                    .or_else(|_| BASE64_STANDARD_NO_PAD.decode(text))
                    .ok()?;
                let pair = String::from_utf8(bytes).ok()?;
                let (user, password) = pair.split_once(':')?;
                // Docker once padded the password with NUL bytes.
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            None => (self.username?, self.password?),
        };
        let (user, password) = pair;
        (!user.is_empty()).then_some(Login { user, password })
    }
}

/// Turns `https://index.docker.io/v1/` and `Host:5000/v2/` into the names references use.
fn normalise(key: &str) -> String {
    let bare = key
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let host = bare
        .split('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | super::HUB_HOST => super::HUB_NAME.to_owned(),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_dockers_entries() {
        let text = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"YWxpY2U6cHc="},
            "Reg.example:5000":{"username":"bob","password":"a:b"},
            "http://plain:80/v2/":{"auth":"YWxpY2U6cHc"},
            "helper.example":{},
            "broken.example":{"auth":"!!"}
        },"credsStore":"pass","HttpHeaders":{}}"#;
        let logins = Logins::parse(text.as_bytes()).unwrap();
        let basic = |name| logins.find(name).map(|login| login.basic());
        assert_eq!(basic("docker.io").as_deref(), Some("Basic YWxpY2U6cHc="));
        assert_eq!(
            basic("reg.example:5000").as_deref(),
            Some("Basic Ym9iOmE6Yg==")
        );
        assert_eq!(basic("plain:80").as_deref(), Some("Basic YWxpY2U6cHc="));
        for none in ["helper.example", "broken.example", "reg.example", ""] {
            assert_eq!(basic(none), None, "{none}");
        }
    }

    #[test]
    fn errors_do_not_show_the_content() {
        let error = Logins::parse(b"{\"auths\":{\"h\":{\"auth\":\"c2VjcmV0\"}")
            .err()
            .unwrap();
        assert!(
            error.contains("line 1") && !error.contains("c2Vj"),
            "{error}"
        );
    }

    #[test]
    fn the_file_must_be_the_owners() {
        let home = tempfile::tempdir().unwrap();
        let me = rustix::process::geteuid().as_raw();
        assert!(
            Logins::of_home(home.path(), me)
                .unwrap()
                .find("h")
                .is_none()
        );
        std::fs::create_dir(home.path().join(".docker")).unwrap();
        let path = home.path().join(".docker/config.json");
        std::fs::write(&path, r#"{"auths":{"h":{"auth":"YWxpY2U6cHc="}}}"#).unwrap();
        assert!(
            Logins::of_home(home.path(), me)
                .unwrap()
                .find("h")
                .is_some()
        );
        assert!(Logins::of_home(home.path(), me + 1).is_err());
        std::fs::write(&path, vec![b' '; LIMIT as usize + 1]).unwrap();
        assert!(Logins::of_home(home.path(), me).is_err());
    }
}
