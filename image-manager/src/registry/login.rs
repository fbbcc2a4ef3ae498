//! Trying a login at a registry, before anybody saves it.

use shifter_core::reference;
use shifter_core::sanitize;

use super::credentials::Login;
use super::error::RegistryError;
use super::http::Want;
use super::repository::Repository;
use super::source::Source;
use super::{Client, HUB_NAME};

/// What a registry thinks of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It let the login in, and asks for one.
    Accepted,
    /// It asks nobody for a login, so that nothing is known of this one.
    NotAsked,
}

impl Client {
    /// Tries a login at a registry, `host[:port]` as in references. The registry itself is asked, no
    /// mirror of it.
    ///
    /// # Errors
    /// [`RegistryError::Denied`] if the registry does not take it; the secret is in no message.
    pub fn check_login(
        &self,
        registry: &str,
        user: &str,
        secret: &str,
    ) -> Result<Checked, RegistryError> {
        let registry = registry_name(registry)?;
        let place = self.parts.http.rules().place(&registry, String::new())?;
        let anonymous = Source::new(&self.parts, 0, place.clone());
        let known = Source::with_login(&self.parts, place.clone(), Login::new(user, secret));
        let anonymous = Repository::new(&self.parts, place.clone(), vec![anonymous]);
        let asks = anonymous.with_each(|source, _| Ok(source.probe()?.status() == 401))?;
        let known = Repository::new(&self.parts, place, vec![known]);
        known.with_each(|source, _| source.get("", &Want::Json))?;
        Ok(match asks {
            true => Checked::Accepted,
            false => Checked::NotAsked,
        })
    }
}

/// Returns the name that a registry has in references: `docker.io` for all of Docker Hub's.
pub fn registry_name(text: &str) -> Result<String, RegistryError> {
    let bare = text
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let bare = bare.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").unwrap_or(bare);
    let bare = bare.strip_suffix("/v2").unwrap_or(bare);
    match reference::canonical_host(bare) {
        Ok(name) if name == super::HUB_HOST => Ok(HUB_NAME.to_owned()),
        Ok(name) => Ok(name),
        Err(_) => Err(RegistryError::Address(sanitize::text(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let table = [
            ("docker.io", Some("docker.io")),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("registry-1.docker.io", Some("docker.io")),
            ("Quay.IO", Some("quay.io")),
            ("https://h:5000/", Some("h:5000")),
            ("h/x", None),
            ("", None),
            ("user@h", None),
        ];
        for (text, expect) in table {
            assert_eq!(registry_name(text).ok().as_deref(), expect, "{text}");
        }
    }
}
