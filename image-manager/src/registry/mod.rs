//! A client of image registries: the OCI distribution protocol, which Docker's v2 is part of.
//!
//! [`Client::repository`] opens one repository, [`Repository::resolve`] finds the image for this
//! machine, [`Repository::blob`] streams a blob. Every document is compared with the digest and
//! length it was asked for by, before it is parsed. Nothing is written to disk here.
//!
//! Requests start anonymous; a login is used only if the registry refuses, so that an image is
//! known to be public or private ([`Access`]).

mod address;
mod blob;
mod challenge;
mod credentials;
mod error;
mod http;
mod manifest;
mod proxy;
mod retry;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shifter_core::config;
use shifter_core::reference::{Digest, ImageRef};
use shifter_core::sanitize;

use crate::hash;
use address::Address;
use credentials::Login;
use http::{Answer, Http, Want};
use retry::Tries;

pub use credentials::Logins;
pub use error::RegistryError;
pub use manifest::{Descriptor, Manifest, ManifestError, host_architecture};
pub(crate) use manifest::{Document, choose, parse as parse_document};
pub use proxy::Proxies;
pub use retry::Patience;

/// Docker Hub's name in references, and the host that serves it.
const HUB_NAME: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";

const MANIFEST_LIMIT: u64 = 4 << 20;
const CONFIG_LIMIT: u64 = 8 << 20;
const TOKEN_LIMIT: u64 = 1 << 20;
/// Indexes that may lead to one another.
const DEPTH_LIMIT: usize = 3;

/// Talks to registries with one user's logins.
pub struct Client {
    http: Http,
    logins: Logins,
}

/// Whether everybody may pull an image, or only who has a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The registry gave it without asking who wants it.
    Public,
    /// The registry gave it to the user's login.
    Private,
}

/// What a reference means to the registry at this moment.
#[derive(Debug)]
pub struct Resolved {
    /// The digest of what the tag points to: the index, if there is one.
    pub digest: Digest,
    /// The manifest for this machine.
    pub manifest: Manifest,
    /// The image's configuration as it was sent.
    pub config: Vec<u8>,
    /// Whether a login was needed.
    pub access: Access,
}

/// One repository of one registry.
pub struct Repository<'a> {
    http: &'a Http,
    /// The registry's name in references.
    registry: String,
    base: Address,
    name: String,
    login: Option<Login>,
    auth: Mutex<Auth>,
}

#[derive(Default)]
struct Auth {
    uses_login: bool,
    header: Option<String>,
}

impl Client {
    /// Takes the site's registries, one user's logins and the proxies to go through.
    pub fn new(
        registries: BTreeMap<String, config::Registry>,
        logins: Logins,
        proxies: Proxies,
    ) -> Self {
        Self {
            http: Http::new(registries, proxies),
            logins,
        }
    }

    /// Replaces how long and how often the client tries.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.http.set_patience(patience);
        self
    }

    /// Opens the repository that a reference names; nothing is sent yet.
    pub fn repository(&self, reference: &ImageRef) -> Result<Repository<'_>, RegistryError> {
        let registry = reference
            .registry()
            .unwrap_or(HUB_NAME)
            .to_ascii_lowercase();
        let host = if registry == HUB_NAME {
            HUB_HOST
        } else {
            &registry
        };
        let bad = || RegistryError::Address(sanitize::text(&registry));
        let secure = Address::parse(&format!("https://{host}/v2/")).ok_or_else(bad)?;
        let plain = Address::parse(&format!("http://{host}/v2/")).ok_or_else(bad)?;
        let base = if self.http.is_allowed(&plain) {
            plain
        } else {
            secure
        };
        Ok(Repository {
            http: &self.http,
            login: self.logins.find(&registry),
            registry,
            base,
            name: reference.repository().to_owned(),
            auth: Mutex::default(),
        })
    }
}

impl Repository<'_> {
    /// Returns its name with that of the registry: `docker.io/library/debian`.
    pub fn source(&self) -> String {
        format!("{}/{}", self.registry, self.name)
    }

    /// Returns whether a login has been needed so far.
    pub fn access(&self) -> Access {
        match self.auth().uses_login {
            true => Access::Private,
            false => Access::Public,
        }
    }

    /// Finds the image that `reference` names for this machine, and fetches its configuration.
    pub fn resolve(&self, reference: &ImageRef) -> Result<Resolved, RegistryError> {
        let wanted = reference.digest().cloned();
        let name = match &wanted {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or("latest").to_owned(),
        };
        let (mut document, digest) = self.document(&name, wanted.as_ref(), None)?;
        for _ in 0..DEPTH_LIMIT {
            let entries = match document {
                Document::Index(entries) => entries,
                Document::Manifest(manifest) => {
                    let config = self.config(&manifest.config)?;
                    let access = if self.auth().uses_login {
                        Access::Private
                    } else {
                        Access::Public
                    };
                    return Ok(Resolved {
                        digest,
                        manifest,
                        config,
                        access,
                    });
                }
            };
            let entry = choose(&entries, host_architecture())
                .map_err(|source| self.unusable(&digest.to_string(), source))?;
            let name = entry.digest.to_string();
            document = self.document(&name, Some(&entry.digest), Some(entry))?.0;
        }
        Err(self.unusable(&digest.to_string(), ManifestError::TooDeep))
    }

    /// Fetches a manifest or index and compares it with everything known of it beforehand.
    fn document(
        &self,
        name: &str,
        wanted: Option<&Digest>,
        descriptor: Option<&Descriptor>,
    ) -> Result<(Document, Digest), RegistryError> {
        let what = "the manifest";
        let answer = self.get(&format!("manifests/{name}"), &Want::Manifest)?;
        let address = answer.address.to_string();
        let forged = |reason: String| RegistryError::Forged {
            what,
            address: address.clone(),
            reason,
        };
        let announced = match answer.header("docker-content-digest") {
            // A registry that names the content by a digest no one may use is not believed.
            Some(text) => Some(Digest::parse(text).map_err(|_| {
                forged(format!(
                    "its digest '{}' is not acceptable",
                    sanitize::text(text)
                ))
            })?),
            None => None,
        };
        let content_type = answer.header("content-type").unwrap_or_default().to_owned();
        let bytes = answer.read(what, MANIFEST_LIMIT)?;
        for digest in [wanted, announced.as_ref()].into_iter().flatten() {
            if !hash::matches(&bytes, digest) {
                return Err(forged(format!("its digest is not {digest}")));
            }
        }
        let document =
            parse_document(&bytes, &content_type).map_err(|source| self.unusable(name, source))?;
        if let Some(descriptor) = descriptor {
            if descriptor.size != bytes.len() as u64 {
                let (promised, found) = (descriptor.size, bytes.len());
                return Err(forged(format!(
                    "the index promises {promised} bytes, not {found}"
                )));
            }
            if !manifest::is_kind(&descriptor.media_type, &document) {
                let promised = sanitize::text(&descriptor.media_type);
                return Err(forged(format!("the index promises a '{promised}'")));
            }
        }
        let digest = match wanted {
            Some(digest) => digest.clone(),
            None => Digest::parse(&format!("sha256:{}", hash::sha256_hex(&bytes)))
                .map_err(|error| forged(error.to_string()))?,
        };
        Ok((document, digest))
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        if descriptor.size > CONFIG_LIMIT {
            return Err(RegistryError::TooLarge {
                what: "the image configuration",
                address: self
                    .url(&format!("blobs/{}", descriptor.digest))
                    .to_string(),
                limit: CONFIG_LIMIT,
            });
        }
        let mut bytes = Vec::new();
        self.blob(descriptor, |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Waits before the next try, or gives up with the error.
    fn pause(&self, tries: &mut Tries, error: RegistryError) -> Result<(), RegistryError> {
        let Some(pause) = tries.pause(&error) else {
            return Err(error);
        };
        std::thread::sleep(pause);
        Ok(())
    }

    fn url(&self, path: &str) -> Address {
        self.base.with_path(format!("/v2/{}/{path}", self.name))
    }

    fn unusable(&self, name: &str, source: ManifestError) -> RegistryError {
        let address = self.url(&format!("manifests/{name}")).to_string();
        RegistryError::Manifest { address, source }
    }

    /// Asks for something of the repository: anonymously, then with a fresh token, then with the
    /// user's login. At most two requests for each of the two identities.
    fn get(&self, path: &str, want: &Want) -> Result<Answer, RegistryError> {
        let url = self.url(path);
        let mut is_fresh = false;
        loop {
            let header = self.auth().header.clone();
            let answer = self.http.get(&url, want, header.as_deref())?;
            match answer.status() {
                200 => return Ok(answer),
                206 | 416 if matches!(want, Want::Blob(Some(_))) => return Ok(answer),
                401 if !is_fresh
                    && answer.address.same_origin(&url)
                    && self.authorize(&answer)? =>
                {
                    is_fresh = true;
                }
                // Some registries hide what is private behind 404.
                401 | 403 | 404 if self.bring_login() => is_fresh = false,
                _ => return Err(self.refusal(answer)),
            }
        }
    }

    /// Obtains what the registry asks for; false if that is not possible with this identity.
    fn authorize(&self, answer: &Answer) -> Result<bool, RegistryError> {
        let challenges: Vec<_> = answer
            .headers("www-authenticate")
            .into_iter()
            .flat_map(challenge::parse)
            .collect();
        let login = self.login.as_ref().filter(|_| self.auth().uses_login);
        let bearer = challenges.iter().find(|c| c.scheme == "bearer");
        let header = match (bearer, login) {
            (Some(challenge), _) => {
                let Some(token) = self.token(challenge, login)? else {
                    return Ok(false);
                };
                format!("Bearer {token}")
            }
            (None, Some(login)) if challenges.iter().any(|c| c.scheme == "basic") => login.basic(),
            _ => return Ok(false),
        };
        self.auth().header = Some(header);
        Ok(true)
    }

    /// Asks the token server; none if it refuses.
    fn token(
        &self,
        challenge: &challenge::Challenge,
        login: Option<&Login>,
    ) -> Result<Option<String>, RegistryError> {
        let fail = |reason: String| RegistryError::Login {
            registry: self.registry.clone(),
            reason,
        };
        let realm = challenge.get("realm").unwrap_or_default();
        let shown = sanitize::text(realm.split('?').next().unwrap_or_default());
        let server = Address::parse(realm)
            .ok_or_else(|| fail(format!("its token server '{shown}' is not an address")))?;
        // A registry on https must not have the login sent over plain http; one that is itself on
        // plain http may name a token server only where the site allows plain http.
        if !server.tls && (self.base.tls || !self.http.is_allowed(&server)) {
            return Err(fail(format!(
                "its token server '{shown}' does not use https"
            )));
        }
        let own_scope = format!("repository:{}:pull", self.name);
        let scope = challenge.get("scope").unwrap_or(&own_scope);
        let path = challenge::token_path(&server.path, challenge.get("service"), scope);
        let basic = login.map(Login::basic);
        let answer = self
            .http
            .get(&server.with_path(path), &Want::Json, basic.as_deref())?;
        match answer.status() {
            200 => {
                let body = answer.read("the token", TOKEN_LIMIT)?;
                let token = challenge::token(&body);
                token
                    .map(Some)
                    .ok_or_else(|| fail(format!("'{shown}' sent no usable token")))
            }
            400..=404 => Ok(None),
            status => Err(RegistryError::Refused {
                address: answer.address.to_string(),
                status,
                asked: answer.asked_pause(),
                message: answer.message(),
            }),
        }
    }

    /// Switches from anonymous to the user's login; false if there is none or it is in use.
    fn bring_login(&self) -> bool {
        let mut auth = self.auth();
        if auth.uses_login || self.login.is_none() {
            return false;
        }
        *auth = Auth {
            uses_login: true,
            header: None,
        };
        true
    }

    fn refusal(&self, answer: Answer) -> RegistryError {
        let (status, address) = (answer.status(), answer.address.to_string());
        let registry = self.registry.clone();
        let is_the_registry = answer.address.same_origin(&self.base);
        let asked = answer.asked_pause();
        let message = answer.message();
        match status {
            401 | 403 if is_the_registry => {
                let with_login = self.auth().uses_login;
                RegistryError::Denied {
                    registry,
                    status,
                    message,
                    with_login,
                }
            }
            404 if is_the_registry => RegistryError::NotFound { registry, message },
            _ => RegistryError::Refused {
                address,
                status,
                message,
                asked,
            },
        }
    }

    fn auth(&self) -> MutexGuard<'_, Auth> {
        // Nothing that holds the lock can panic.
        self.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shifter_core::reference::TypeRules;

    #[test]
    fn where_references_lead() {
        let plain = || config::Registry {
            plain_http: true,
            ca_file: None,
        };
        let open = |registries: &[&str], text: &str| {
            let registries = registries.iter().map(|name| (name.to_string(), plain()));
            let client = Client::new(registries.collect(), Logins::default(), Proxies::default());
            let rules = TypeRules {
                default_type: "docker",
                site_types: &[],
            };
            let reference = ImageRef::parse(text, &rules).unwrap();
            let repository = client.repository(&reference).unwrap();
            repository.url("tags").full()
        };
        let hub = "https://registry-1.docker.io/v2/library/ubuntu/tags";
        assert_eq!(open(&[], "ubuntu"), hub);
        assert_eq!(open(&[], "docker.io/ubuntu:1"), hub);
        assert_eq!(open(&["docker.io"], "ubuntu"), hub.replace("https", "http"));
        assert_eq!(open(&[], "quay.io/a/b"), "https://quay.io/v2/a/b/tags");
        assert_eq!(open(&["h:5000"], "h:5000/a"), "http://h:5000/v2/a/tags");
        assert_eq!(open(&["h"], "h:5000/a"), "https://h:5000/v2/a/tags");
    }
}
