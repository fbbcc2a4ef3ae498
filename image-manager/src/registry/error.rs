//! What can go wrong between this program and a registry, in terms someone can act on.
//!
//! Addresses appear without their query, which may carry a signature; text from the other side is
//! escaped before it is stored here.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use shifter_core::exit::ExitCode;
use thiserror::Error;

use super::manifest::ManifestError;

/// Says which request failed and why.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// No connection, or one that broke before the answer began.
    #[error("cannot reach '{address}'")]
    Unreachable {
        /// Where the request went.
        address: String,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Nothing, or next to nothing, arrived for a whole minute.
    #[error("'{address}' did not answer in time: {waited}")]
    Stalled {
        /// Where the request went.
        address: String,
        /// What was waited for and how long.
        waited: String,
    },
    /// The connection broke in the middle of an answer.
    #[error("the answer of '{address}' broke off")]
    BrokeOff {
        /// Where the request went.
        address: String,
        /// The reason.
        source: io::Error,
    },
    /// The registry answered with an error that has no better name here.
    #[error("'{address}' answered {status}{message}")]
    Refused {
        /// Where the request went.
        address: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, with a leading `: `, or nothing.
        message: String,
        /// How long it asks to be left alone.
        asked: Option<Duration>,
    },
    /// The registry does not let this user have the image.
    #[error("the registry '{registry}' denied access ({status}){message}")]
    Denied {
        /// The registry.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, with a leading `: `, or nothing.
        message: String,
        /// Whether a login was sent.
        with_login: bool,
    },
    /// The registry has no such image.
    #[error("not found in the registry '{registry}'{message}")]
    NotFound {
        /// The registry.
        registry: String,
        /// The registry's own words, with a leading `: `, or nothing.
        message: String,
    },
    /// A redirect that is not followed.
    #[error("'{address}' redirects to '{target}': {rule}")]
    Redirect {
        /// Where the request went.
        address: String,
        /// Where the answer points.
        target: String,
        /// The rule that forbids to go there.
        rule: &'static str,
    },
    /// An answer leads to an address that only the configuration may name.
    #[error("'{address}' leads to '{target}', which is not followed: {reason}")]
    Forbidden {
        /// Whose answer it was.
        address: String,
        /// Where it leads.
        target: String,
        /// What is there.
        reason: String,
    },
    /// The site's or the user's lists forbid the image.
    #[error("the site or you forbid '{image}': {rule}")]
    Blocked {
        /// The image.
        image: String,
        /// The rule.
        rule: String,
    },
    /// Two files say how one registry is reached.
    #[error("'{registry}' stands in both shifter.toml and registries.toml")]
    Twice {
        /// The registry.
        registry: String,
    },
    /// The work was asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A credential helper failed.
    #[error("cannot get the login for '{registry}' from 'docker-credential-{name}': {reason}")]
    Helper {
        /// The helper's name.
        name: String,
        /// The registry.
        registry: String,
        /// The reason, never a secret.
        reason: String,
    },
    /// The registry asks to log in at a place that cannot be trusted, or in a way not known here.
    #[error("the registry '{registry}' asks for a login that is not possible: {reason}")]
    Login {
        /// The registry.
        registry: String,
        /// Why not.
        reason: String,
    },
    /// The registry wants to see the login at a host that nobody named.
    #[error("the registry '{registry}' sends logins to '{server}', in another domain")]
    TokenServer {
        /// The registry.
        registry: String,
        /// Where it sends them.
        server: String,
    },
    /// What arrived is not what was asked for: wrong digest or wrong length.
    #[error("{what} from '{address}' is not what was asked for: {reason}")]
    Forged {
        /// The document.
        what: &'static str,
        /// Where it came from.
        address: String,
        /// What differs.
        reason: String,
    },
    /// A document is larger than any of its kind.
    #[error("{what} from '{address}' is larger than {limit} bytes")]
    TooLarge {
        /// The document.
        what: &'static str,
        /// Where it came from.
        address: String,
        /// The limit.
        limit: u64,
    },
    /// A manifest or index cannot be used.
    #[error("cannot use the manifest from '{address}'")]
    Manifest {
        /// Where it came from.
        address: String,
        /// The reason.
        source: ManifestError,
    },
    /// The name of the registry is not one.
    #[error("'{0}' is not the address of a registry")]
    Address(String),
    /// A variable that should name a proxy does not.
    #[error("{variable} does not name a proxy: '{value}'")]
    Proxy {
        /// The environment variable.
        variable: &'static str,
        /// Its value without a password.
        value: String,
    },
    /// A file of the configuration cannot be used.
    #[error("cannot use '{}': {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The blob could not be stored.
    #[error("cannot store a layer")]
    Write(#[source] io::Error),
}

impl RegistryError {
    /// Returns the code the program ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotFound { .. } => ExitCode::Image,
            Self::Manifest { source, .. } if source.is_about_the_image() => ExitCode::Image,
            Self::TokenServer { .. } | Self::Denied { .. } | Self::Blocked { .. } => {
                ExitCode::Denied
            }
            Self::Address(_) => ExitCode::Usage,
            // What the site or the user has set up.
            Self::Twice { .. } | Self::File { .. } | Self::Proxy { .. } | Self::Helper { .. } => {
                ExitCode::Internal
            }
            Self::Write(_) => ExitCode::Internal,
            _ => ExitCode::Registry,
        }
    }

    /// True if no other mirror can help.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Interrupted)
    }

    /// True if the same request may succeed a little later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Stalled { .. } | Self::BrokeOff { .. } => true,
            Self::Unreachable { source, .. } => source
                .downcast_ref::<Fault>()
                .is_some_and(|Fault(error)| is_passing_fault(error)),
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// Returns how long the server asked to be left alone.
    pub(super) fn asked_pause(&self) -> Option<Duration> {
        match self {
            Self::Refused { asked, .. } => *asked,
            _ => None,
        }
    }

    /// Returns a known way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { .. } => Some("check the spelling of the name and the tag".into()),
            Self::Denied {
                with_login: false,
                registry,
                ..
            } => Some(format!(
                "the image may not exist or be private; log in with 'shifter login {registry}'"
            )),
            Self::Denied {
                with_login: true, ..
            } => Some("your login for this registry does not give access".into()),
            Self::TokenServer { registry, server } => Some(format!(
                "if that is meant, write token_server = \"{server}\" in [registry.\"{registry}\"] of registries.toml"
            )),
            Self::Forbidden { target, .. } => Some(format!(
                "if that is meant, name the host of '{target}' in registries.toml"
            )),
            Self::Manifest { source, .. } => source.hint().map(str::to_owned),
            Self::Refused { status: 429, .. } => Some(
                "the registry limits anonymous pulls; wait, or log in with 'shifter login'".into(),
            ),
            Self::Unreachable { source, .. } => tls_hint(&source.to_string()),
            _ => None,
        }
    }
}

/// Why a server cannot be reached: what the system says of it, as it says it.
#[derive(Debug)]
pub(super) struct Fault(pub ureq::Error);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ureq::Error::Io(error) => error.fmt(f),
            other => other.fmt(f),
        }
    }
}

impl Error for Fault {}

/// True for a fault of the network rather than of what was asked for: not for a certificate that
/// does not fit, a name that does not exist, or an answer that is not HTTP.
fn is_passing_fault(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => true,
        ureq::Error::Io(error) => match error.kind() {
            // rustls's verdicts come wrapped in one of these two.
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => false,
            // What getaddrinfo says has no kind of its own.
            _ => {
                let text = error.to_string();
                !text.contains("failed to lookup address") || text.contains("Temporary failure")
            }
        },
        _ => false,
    }
}

/// Finds the way out of a failed TLS handshake in rustls's words for it.
fn tls_hint(reason: &str) -> Option<String> {
    let hints = [
        (
            "InvalidContentType",
            "a registry without TLS needs 'plain_http = true' in the configuration",
        ),
        (
            "UnknownIssuer",
            "name the authority of its certificate as 'ca_file' in the configuration",
        ),
    ];
    hints
        .into_iter()
        .find(|(word, _)| reason.contains(word))
        .map(|(_, hint)| hint.to_owned())
}
