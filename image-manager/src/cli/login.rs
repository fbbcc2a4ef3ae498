//! `login` and `logout`.

use shifter_core::exit::ExitCode;
use shifter_core::reference::ImageRef;

use super::failure::Failure;
use super::{Session, output};
use crate::registry::{Client, Logins, Proxies};

impl Session {
    pub(super) fn login(&self) -> Result<ExitCode, Failure> {
        Err(Failure::internal("logins cannot be kept yet".into())
            .with_hint("docker login".to_owned()))
    }

    pub(super) fn logout(&self) -> Result<ExitCode, Failure> {
        self.login()
    }

    /// Makes a client for a pull.
    pub(super) fn pull_client(&self, _references: &[ImageRef]) -> Result<Client, Failure> {
        if self.options.wants_login() {
            self.login()?;
        }
        let home = self.caller.home.as_deref();
        let logins = home.map_or_else(
            || Ok(Logins::default()),
            |home| Logins::of_home(home, self.caller.uid),
        );
        let logins = logins.map_err(|error| {
            let message = format!("cannot pull: {}", output::chain(&error));
            Failure::new(error.exit_code(), message)
        })?;
        let proxies = Proxies::from_env(|name| std::env::var(name).ok());
        Ok(Client::new(self.config.registry.clone(), logins, proxies))
    }
}
