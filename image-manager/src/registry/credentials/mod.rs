//! Logins that the user already has: docker's and podman's files, and credential helpers.
//!
//! Looked up only when a registry asks for one, in this order: the `credentials_file` of the
//! registry's rules, `$REGISTRY_AUTH_FILE`, docker's `config.json` (`$DOCKER_CONFIG`, else
//! `~/.docker`), and podman's `auth.json` in `$XDG_RUNTIME_DIR/containers` and
//! `~/.config/containers`. The first file that knows the registry wins; in a file the longest key
//! that the repository begins with. A login never appears in a message and has no `Debug`.

mod file;
mod helper;
mod save;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::error::RegistryError;
use file::AuthFile;
pub use save::{Kept, LoginFile};

/// What Docker Hub is called in docker's files.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The search path of helpers where the user has none.
const FIXED_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A login; deliberately without `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    user: String,
    secret: String,
    kind: Kind,
}

/// What the secret of a login is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A password, or what stands for one.
    Password,
    /// A refresh token, for the token server alone.
    Identity,
    /// A token that the registry itself takes.
    Bearer,
}

impl Login {
    /// Takes a user name and a password, or what stands for one. As docker has it, the user
    /// `<token>` has a refresh token instead.
    pub fn new(user: impl Into<String>, secret: impl Into<String>) -> Self {
        let user = user.into();
        let kind = match user.as_str() {
            "<token>" => Kind::Identity,
            _ => Kind::Password,
        };
        Self {
            user,
            secret: secret.into(),
            kind,
        }
    }

    pub(super) fn of_kind(kind: Kind, secret: String) -> Self {
        Self {
            user: String::new(),
            secret,
            kind,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    pub(super) fn secret(&self) -> &str {
        &self.secret
    }

    /// Returns the value of an `Authorization` header for the Basic scheme.
    pub(super) fn basic(&self) -> String {
        let pair = format!("{}:{}", self.user, self.secret);
        format!("Basic {}", BASE64_STANDARD.encode(pair))
    }
}

/// Where one user's logins are.
#[derive(Default)]
pub struct Logins {
    /// The login for one registry, before all files.
    given: Option<(String, Login)>,
    files: Vec<PathBuf>,
    owner: u32,
    /// The search path of credential helpers.
    search: OsString,
}

/// What is known of the user whose logins are used.
pub struct User<'a> {
    /// The home directory.
    pub home: Option<&'a Path>,
    /// The uid that the files belong to.
    pub uid: u32,
    /// The environment; nothing where it is somebody else's, as through sudo.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl User<'_> {
    fn path(&self, name: &str) -> Option<PathBuf> {
        let path = (self.variable)(name).map(PathBuf::from)?;
        path.is_absolute().then_some(path)
    }

    fn docker(&self) -> Option<PathBuf> {
        let dir = self.path("DOCKER_CONFIG");
        let dir = dir.or_else(|| Some(self.home?.join(".docker")))?;
        Some(dir.join("config.json"))
    }

    fn search(&self) -> OsString {
        (self.variable)("PATH").unwrap_or_else(|| FIXED_PATH.into())
    }
}

impl Logins {
    /// Names the files of a user; nothing is read yet.
    pub fn of_user(user: &User<'_>) -> Self {
        let configured = user.path("XDG_CONFIG_HOME");
        let configured = configured.or_else(|| Some(user.home?.join(".config")));
        let podman = |dir: PathBuf| dir.join("containers/auth.json");
        let files = [
            user.path("REGISTRY_AUTH_FILE"),
            user.docker(),
            user.path("XDG_RUNTIME_DIR").map(podman),
            configured.map(podman),
        ];
        Self {
            given: None,
            files: files.into_iter().flatten().collect(),
            owner: user.uid,
            search: user.search(),
        }
    }

    /// Adds a login for one registry, named as in image references, that is in no file.
    #[must_use]
    pub fn with_login(mut self, registry: &str, login: Login) -> Self {
        self.given = Some((registry.to_owned(), login));
        self
    }

    /// Names docker's file in `home`.
    pub fn of_home(home: &Path, owner: u32) -> Self {
        Self::of_user(&User {
            home: Some(home),
            uid: owner,
            variable: &|_| None,
        })
    }

    /// Finds the login for a repository of a registry, named as in image references; `first` is the
    /// registry's own file.
    pub(super) fn find(
        &self,
        registry: &str,
        repository: &str,
        first: Option<&Path>,
    ) -> Result<Option<Login>, RegistryError> {
        if let Some((_, login)) = self.given.as_ref().filter(|(name, _)| name == registry) {
            return Ok(Some(login.clone()));
        }
        let files = first
            .into_iter()
            .chain(self.files.iter().map(PathBuf::as_path));
        for path in files {
            // The site's file may be for some of its users only.
            if Some(path) == first && is_denied(path) {
                continue;
            }
            let Some(file) = AuthFile::read(path, self.owner)? else {
                continue;
            };
            let found = match file.find(registry, repository) {
                file::Found::Login(login) => Some(login),
                file::Found::Helper(name) => helper::Helper::new(&name, &self.search)
                    .and_then(|helper| helper.get(&key_of(registry)))
                    .map_err(|reason| helper_failed(&name, registry, reason))?,
                file::Found::Nothing => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

fn is_denied(path: &Path) -> bool {
    let opened = std::fs::File::open(path);
    opened.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Parses a file with logins and looks for one; for tests with arbitrary bytes.
pub(super) fn look(bytes: &[u8], registry: &str) -> Result<(), String> {
    AuthFile::parse(bytes).map(|file| {
        file.find(registry, "library/x");
    })
}

/// Returns what docker's files and helpers call a registry.
fn key_of(registry: &str) -> String {
    match registry {
        super::HUB_NAME => HUB_KEY.to_owned(),
        other => other.to_owned(),
    }
}

fn helper_failed(name: &str, registry: &str, reason: String) -> RegistryError {
    RegistryError::Helper {
        name: shifter_core::sanitize::text(name),
        registry: registry.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fs;

    fn entry(key: &str, password: &str) -> String {
        let auth = BASE64_STANDARD.encode(format!("u:{password}"));
        format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#)
    }

    #[test]
    fn the_first_file_that_knows_the_registry_wins() {
        let temp = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let dir = temp.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            dir
        };
        let (home, run, docker) = (dir("home"), dir("run/containers"), dir("docker"));
        let places = [
            (dir("").join("own.json"), "own"),
            (dir("").join("env.json"), "env"),
            (docker.join("config.json"), "dockerenv"),
            (run.join("auth.json"), "run"),
            (dir("home/.config/containers").join("auth.json"), "config"),
        ];
        dir("home/.docker");
        fs::write(home.join(".docker/config.json"), entry("h", "home")).unwrap();
        for (path, name) in &places {
            fs::write(path, entry("h", name)).unwrap();
        }
        let environment = BTreeMap::from([
            ("REGISTRY_AUTH_FILE", places[1].0.clone()),
            ("DOCKER_CONFIG", docker),
            ("XDG_RUNTIME_DIR", temp.path().join("run")),
        ]);
        let variable = |name: &str| environment.get(name).map(|path| path.clone().into());
        let uid = rustix::process::geteuid().as_raw();
        let user = User {
            home: Some(&home),
            uid,
            variable: &variable,
        };
        let logins = Logins::of_user(&user);
        let find = |first: Option<&Path>| {
            let login = logins.find("h", "x", first).unwrap();
            login.map(|login| login.secret)
        };
        assert_eq!(find(Some(&places[0].0)).as_deref(), Some("own"));
        for (path, name) in &places[1..] {
            assert_eq!(find(None).as_deref(), Some(*name));
            // A file that does not know the registry, and then none at all.
            fs::write(path, entry("other", "x")).unwrap();
            assert_ne!(find(None).as_deref(), Some(*name));
            fs::remove_file(path).unwrap();
        }
        assert_eq!(find(None), None);
        let at_home = Logins::of_home(&home, uid);
        let found = at_home.find("h", "x", None).unwrap();
        assert!(found.is_some_and(|login| login.secret == "home"));
    }
}
