//! The registry client of a command: the site's rules, the user's, and the user's logins.
//!
//! `pull` and `login` both take it from here, so that they reach registries alike. Through sudo the
//! caller's environment and files mean nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use shifter_core::config::{ConfigError, REGISTRIES_PATH, Registries, USER_REGISTRIES};
use shifter_core::exit::ExitCode;

use super::config::read_text;
use super::failure::Failure;
use super::login::of_registry;
use super::{Session, output};
use crate::registry::{Client, Logins, Proxies, RegistryError, Rules, User};

/// The name of the site's file beside a configuration that the user named.
const FILE_NAME: &str = "registries.toml";

impl Session {
    /// Makes the client; `context` begins its errors.
    pub(super) fn client(&self, context: &str) -> Result<Client, Failure> {
        self.client_with(context, self.logins())
    }

    /// Returns the logins that the user has.
    pub(super) fn logins(&self) -> Logins {
        Logins::of_user(&self.user(&|name| self.variable(name)))
    }

    /// Makes a client with these logins.
    pub(super) fn client_with(&self, context: &str, logins: Logins) -> Result<Client, Failure> {
        let rules = self.rules(context)?;
        let (stop, current) = (self.cancel.clone(), self.current.clone());
        // These name no file and no program, and a proxy that the site's owner has is meant.
        let proxies = Proxies::from_env(|name| std::env::var(name).ok());
        let client = Client::new(rules, logins, proxies);
        let client = client.with_stop(move || stop.is_cancelled());
        Ok(client.with_watch(move |event| current.show(event)))
    }

    /// Returns the user whose logins count.
    pub(super) fn user<'a>(&'a self, variable: &'a dyn Fn(&str) -> Option<OsString>) -> User<'a> {
        User {
            home: self.caller.home.as_deref(),
            uid: self.caller.uid,
            variable,
        }
    }

    /// Reads the environment; through sudo it is somebody else's.
    pub(super) fn variable(&self, name: &str) -> Option<OsString> {
        match self.caller.is_sudo {
            true => None,
            false => std::env::var_os(name),
        }
    }

    fn rules(&self, context: &str) -> Result<Rules, Failure> {
        let file = match &self.options.config {
            Some(config) => {
                let path = config.with_file_name(FILE_NAME);
                self.registries(&path)?.unwrap_or_default()
            }
            None => Registries::open_trusted(Path::new(REGISTRIES_PATH))
                .map_err(|error| of_config(&error, ExitCode::Internal))?,
        };
        let configured = self.config.registry.clone();
        let mut rules = Rules::of_site(configured, file)
            .map_err(|error: RegistryError| of_registry(context, &error))?;
        if let Some(path) = self.user_file()
            && let Some(own) = self.registries(&path)?
        {
            for remark in rules.add_user(&own) {
                if !self.options.quiet {
                    output::note(&remark);
                }
            }
        }
        Ok(rules)
    }

    fn user_file(&self) -> Option<PathBuf> {
        let configured = self.variable("XDG_CONFIG_HOME").map(PathBuf::from);
        match configured.filter(|dir| dir.is_absolute()) {
            Some(dir) => Some(dir.join("shifter").join(FILE_NAME)),
            None => Some(self.caller.home.as_ref()?.join(USER_REGISTRIES)),
        }
    }

    fn registries(&self, path: &Path) -> Result<Option<Registries>, Failure> {
        if !path.try_exists().unwrap_or(true) {
            return Ok(None);
        }
        let text = read_text(path, self.caller.uid)?;
        Registries::parse(&text, path)
            .map(Some)
            .map_err(|error| of_config(&error, ExitCode::Usage))
    }
}

fn of_config(error: &ConfigError, code: ExitCode) -> Failure {
    Failure::new(code, output::chain(error)).with_hint(error.hint())
}
