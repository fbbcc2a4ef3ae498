//! A client of image registries: the OCI distribution protocol, which Docker's v2 is part of.
//!
//! [`Client::repository`] opens one repository, [`Repository::resolve`] finds the image for a
//! platform, [`Repository::blob_from`] streams a blob. Every document is compared with the digest
//! and length it was asked for by, before it is parsed. Nothing is written to disk here but logins,
//! by [`LoginFile`].
//!
//! ```text
//! Client ─ Rules            who may be asked, mirrors, certificates (registries.toml)
//!        ─ Logins           docker's and podman's files, helpers
//!        ─ Repository ─ Source (each mirror, the registry) ─ token ─ Http ─ Connections ─ Guard
//! ```

mod address;
mod blob;
mod challenge;
mod connect;
mod credentials;
mod error;
mod forward;
mod guard;
mod http;
mod login;
mod manifest;
mod platform;
mod proxy;
mod repository;
mod resolve;
mod retry;
mod rules;
mod source;
mod token;

use std::time::Duration;

use shifter_core::reference::ImageRef;

use http::Http;
use source::Source;
use token::Tokens;

pub use credentials::{Kept, Login, LoginFile, Logins, User};
pub use error::RegistryError;
pub use login::{Checked, registry_name};
pub use manifest::{Descriptor, Manifest, ManifestError};
pub(crate) use manifest::{Document, choose, no_platform, parse as parse_document};
pub use platform::{Platform, Wanted, host_architecture};
pub use proxy::Proxies;
pub use repository::Repository;
pub use resolve::{Access, Resolved};
pub use retry::Patience;
pub use rules::Rules;

/// Docker Hub's name in references, and the host that serves it.
const HUB_NAME: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";

/// Talks to registries with one user's logins.
pub struct Client {
    parts: Parts,
}

/// What all repositories of a client share.
struct Parts {
    http: Http,
    logins: Logins,
    tokens: Tokens,
    watch: Box<dyn Fn(&Event<'_>) + Send + Sync>,
    stop: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What a client does besides what it was asked for.
#[derive(Debug)]
pub enum Event<'a> {
    /// A request failed and is made again after a pause.
    Retry {
        /// What failed.
        error: &'a RegistryError,
        /// The pause.
        pause: Duration,
    },
    /// A mirror does not have it, or not now.
    NextSource {
        /// What failed.
        error: &'a RegistryError,
        /// The registry or mirror that is asked next.
        next: &'a str,
    },
}

impl Client {
    /// Takes the rules, one user's logins and the proxies to go through.
    pub fn new(rules: impl Into<Rules>, logins: Logins, proxies: Proxies) -> Self {
        Self {
            parts: Parts {
                http: Http::new(rules.into(), proxies),
                logins,
                tokens: Tokens::default(),
                watch: Box::new(|_| ()),
                stop: Box::new(|| false),
            },
        }
    }

    /// Replaces how long and how often the client tries.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.parts.http.set_patience(patience);
        self
    }

    /// Names who hears of retries and mirrors that fail; several threads call it.
    #[must_use]
    pub fn with_watch(mut self, watch: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.parts.watch = Box::new(watch);
        self
    }

    /// Names who says that the work is to stop.
    #[must_use]
    pub fn with_stop(mut self, stop: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.parts.stop = Box::new(stop);
        self
    }

    /// Opens the repository that a reference names; nothing is sent yet.
    pub fn repository(&self, reference: &ImageRef) -> Result<Repository<'_>, RegistryError> {
        let rules = self.parts.http.rules();
        let own = rules.own_place(reference)?;
        let sources = rules.places(reference)?.into_iter().enumerate();
        let sources = sources.map(|(number, place)| Source::new(&self.parts, number, place));
        Ok(Repository::new(&self.parts, own, sources.collect()))
    }
}

/// Parsers of what the other side writes, for tests with arbitrary bytes. Not an interface.
#[doc(hidden)]
pub mod untrusted {
    /// Parses a `WWW-Authenticate` header and returns how many challenges it has.
    pub fn challenges(header: &str) -> usize {
        super::challenge::parse(header).len()
    }

    /// Parses a manifest or index, and chooses from it; true if there is something.
    pub fn manifest(bytes: &[u8], content_type: &str) -> Result<bool, super::ManifestError> {
        match super::manifest::parse(bytes, content_type)? {
            super::manifest::Document::Index(entries) => {
                let choice = super::manifest::choose(&entries, &super::Wanted::default());
                Ok(!choice.fitting.is_empty())
            }
            super::manifest::Document::Manifest(manifest) => Ok(!manifest.layers.is_empty()),
        }
    }

    /// Parses a token server's answer.
    pub fn token(bytes: &[u8]) -> bool {
        super::token::is_token(bytes)
    }

    /// Parses a file with logins and looks for one; the error is what a user would see.
    pub fn logins(bytes: &[u8], registry: &str) -> Result<(), String> {
        super::credentials::look(bytes, registry)
    }
}
