//! `login` and `logout`: logins that are tried before they are kept, and logins for one pull.

use std::io;

use shifter_core::exit::ExitCode;
use shifter_core::reference::ImageRef;
use shifter_core::sanitize;

use super::failure::Failure;
use super::{Session, output, signals, terminal};
use crate::registry::{Checked, Client, Kept, Login, LoginFile, RegistryError, registry_name};

/// The registry of images that name none.
const DEFAULT_REGISTRY: &str = "docker.io";

impl Session {
    /// Asks for a login, tries it at the registry, and keeps it.
    pub(super) fn login(&self) -> Result<ExitCode, Failure> {
        let registry = self.registry()?;
        let context = format!("cannot log in at '{registry}'");
        let fail = |error: RegistryError| of_registry(&context, &error);
        // Before anything is typed: there must be a place to keep it.
        let file = self.login_file().ok_or_else(|| no_home(&context))?;
        signals::watch(&self.cancel);
        let (user, secret) = self.ask_login(&registry)?;
        let client = self.client(&context)?;
        match client
            .check_login(&registry, &user, &secret)
            .map_err(fail)?
        {
            Checked::Accepted => {}
            Checked::NotAsked => {
                let message = format!("{context}: it asks nobody for a login, and takes any");
                return Err(Failure::new(ExitCode::Usage, message)
                    .with_hint("its images can be pulled without one".to_owned()));
            }
        }
        self.check_going()?;
        let kept = file
            .store(&registry, &Login::new(user, secret))
            .map_err(fail)?;
        if !self.options.quiet {
            let place = match kept {
                Kept::File(path) => {
                    let path = sanitize::text(&path.display().to_string());
                    format!("kept in '{path}', readable by you alone")
                }
                Kept::Helper(name) => {
                    format!("kept by the credential helper '{}'", sanitize::text(&name))
                }
            };
            output::result(&format!("login succeeded at '{registry}': {place}"));
        }
        Ok(ExitCode::Success)
    }

    /// Forgets the login for a registry.
    pub(super) fn logout(&self) -> Result<ExitCode, Failure> {
        let registry = self.registry()?;
        let context = format!("cannot log out of '{registry}'");
        let file = self.login_file().ok_or_else(|| no_home(&context))?;
        let found = file
            .erase(&registry)
            .map_err(|error| of_registry(&context, &error))?;
        if !self.options.quiet {
            let path = sanitize::text(&file.path().display().to_string());
            output::result(&match found {
                true => format!("the login for '{registry}' is forgotten"),
                // Pulls look into others' files, too.
                false => format!("there is no login for '{registry}' in '{path}'"),
            });
        }
        Ok(ExitCode::Success)
    }

    /// Makes a client for a pull: with a login for it alone, if the user wants that.
    pub(super) fn pull_client(&self, references: &[ImageRef]) -> Result<Client, Failure> {
        let context = "cannot pull";
        if !self.options.wants_login() {
            return self.client(context);
        }
        let mut registries = references.iter().filter_map(ImageRef::registry);
        let registry = registries.next().unwrap_or(DEFAULT_REGISTRY);
        if registries.any(|other| other != registry) {
            let message = "a login is for one registry, and these images are of several";
            return Err(Failure::new(ExitCode::Usage, message.into())
                .with_hint("pull them one by one, or keep logins: shifter login".to_owned()));
        }
        let (user, secret) = self.ask_login(registry)?;
        let logins = self.logins().with_login(registry, Login::new(user, secret));
        self.client_with(context, logins)
    }

    /// Finds out user and password: from the options, standard input, and the terminal.
    fn ask_login(&self, registry: &str) -> Result<(String, String), Failure> {
        let fail = |error: io::Error| {
            let reason = output::chain(&error);
            let message = format!("cannot ask for the login at '{registry}': {reason}");
            Failure::new(ExitCode::Usage, message)
                .with_hint("--username NAME --password-stdin".to_owned())
        };
        let user = match &self.options.username {
            Some(user) => user.clone(),
            None => terminal::ask(&format!("user name at '{registry}': ")).map_err(fail)?,
        };
        let secret = match self.options.password_stdin {
            true => terminal::password_from_stdin(),
            false => {
                let user = sanitize::text(&user);
                terminal::ask_hidden(&format!("password of '{user}' at '{registry}': "))
            }
        };
        let secret = secret.map_err(fail)?;
        self.check_going()?;
        if user.is_empty() || secret.is_empty() {
            let message = format!("the login at '{registry}' has no user name or no password");
            return Err(Failure::new(ExitCode::Usage, message));
        }
        Ok((user, secret))
    }

    /// Returns the file that the user's logins are kept in.
    fn login_file(&self) -> Option<LoginFile> {
        LoginFile::of_user(&self.user(&|name| self.variable(name)))
    }

    fn check_going(&self) -> Result<(), Failure> {
        let check = self.cancel.check();
        check.map_err(|error| Failure::internal(error.to_string()))
    }

    /// Returns the registry of the command line, as image references have it.
    fn registry(&self) -> Result<String, Failure> {
        let text = self.options.words.first().map(String::as_str);
        registry_name(text.unwrap_or(DEFAULT_REGISTRY))
            .map_err(|error| Failure::new(ExitCode::Usage, output::chain(&error)))
    }
}

/// Describes what a registry said.
pub(super) fn of_registry(context: &str, error: &RegistryError) -> Failure {
    let message = format!("{context}: {}", output::chain(error));
    Failure::new(error.exit_code(), message).with_hint(error.hint())
}

fn no_home(context: &str) -> Failure {
    let message = format!("{context}: HOME does not name a directory that belongs to you");
    Failure::new(ExitCode::Privilege, message)
}
