//! Token servers: how each dialect is asked, what it answers, and how long that is good for.
//!
//! Docker's specification and OAuth 2 as registries speak them: GET with the login as Basic
//! (Docker Hub, GHCR, Quay, GitLab, nvcr, Harbor, ACR), POST with a refresh token where the login is
//! one (ACR, and whatever `docker login` got an `identitytoken` from). A token is kept for its
//! scope and identity until shortly before its end.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use shifter_core::sanitize;

use super::address::Address;
use super::challenge::Challenge;
use super::credentials::{Kind, Login};
use super::error::RegistryError;
use super::http::{Answer, Http, Trust, Want};

const TOKEN_LIMIT: u64 = 1 << 20;

/// What a token without an end is good for; so docker has it.
const LEAST_SECONDS: u64 = 60;

/// The longest that one is believed to last.
const MOST_SECONDS: u64 = 24 * 3600;

/// Who we are to a token server.
const CLIENT: &str = "shifter";

/// A token, and when to stop using it.
#[derive(Clone)]
pub(super) struct Token {
    pub value: String,
    pub until: Instant,
}

/// What a token is for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
    /// The registry whose login was used, if one was.
    identity: Option<String>,
}

/// Tokens that are still good.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<Key, Token>>);

impl Tokens {
    pub fn get(&self, key: &Key) -> Option<Token> {
        let found = self.lock().get(key).cloned();
        found.filter(|token| Instant::now() < token.until)
    }

    fn put(&self, key: Key, token: Token) {
        self.lock().insert(key, token);
    }

    /// Forgets a token that was refused.
    pub fn forget(&self, key: &Key, value: &str) {
        let mut tokens = self.lock();
        if tokens.get(key).is_some_and(|token| token.value == value) {
            tokens.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Token>> {
        // Nothing that holds the lock can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One question to a token server.
pub(super) struct Request<'a> {
    /// The registry, by its name in references.
    pub registry: &'a str,
    /// Where it is.
    pub base: &'a Address,
    /// What it said.
    pub challenge: &'a Challenge,
    /// The scope to ask for where the challenge names none; nothing: no scope at all.
    pub scope: Option<&'a str>,
    pub login: Option<&'a Login>,
}

impl Request<'_> {
    /// Returns what the token is kept under.
    pub fn key(&self) -> Key {
        let text = |name: &str| self.challenge.get(name).map(str::to_owned);
        Key {
            realm: text("realm").unwrap_or_default(),
            service: text("service"),
            scope: self.scope().map(str::to_owned),
            identity: self.login.map(|_| self.registry.to_owned()),
        }
    }

    fn scope(&self) -> Option<&str> {
        self.challenge.get("scope").or(self.scope)
    }

    /// Returns a token; none if the server refuses this identity.
    pub fn token(&self, http: &Http, tokens: &Tokens) -> Result<Option<Token>, RegistryError> {
        let key = self.key();
        if let Some(token) = tokens.get(&key) {
            return Ok(Some(token));
        }
        let server = self.server(http)?;
        let answer = match self.login {
            Some(login) if login.kind() == Kind::Identity => self.refresh(http, &server, login)?,
            _ => self.basic(http, &server)?,
        };
        match answer.status() {
            200..=299 => {
                let shown = server.to_string();
                let body = answer.read("the token", TOKEN_LIMIT)?;
                let token = parse(&body)
                    .ok_or_else(|| self.fail(format!("'{shown}' sent no usable token")))?;
                tokens.put(key, token.clone());
                Ok(Some(token))
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

    /// Judges the place that the registry sends us to.
    fn server(&self, http: &Http) -> Result<Address, RegistryError> {
        let realm = self.challenge.get("realm").unwrap_or_default();
        let shown = sanitize::text(realm.split('?').next().unwrap_or_default());
        let server = Address::parse(realm)
            .ok_or_else(|| self.fail(format!("its token server '{shown}' is not an address")))?;
        // A registry on https must not have the login sent over plain http; one that is itself on
        // plain http may name a token server only where plain http is configured.
        if !server.tls && (self.base.tls || !http.rules().is_allowed(&server)) {
            return Err(self.fail(format!("its token server '{shown}' does not use https")));
        }
        let configured = http.rules().named(self.registry);
        let named = configured.and_then(|registry| registry.token_server.as_deref());
        let is_named = named.is_some_and(|name| {
            let name = name.to_ascii_lowercase();
            name == server.host || name == server.authority()
        });
        if self.login.is_some() && !is_named && !is_neighbour(&self.base.host, &server.host) {
            return Err(RegistryError::TokenServer {
                registry: self.registry.to_owned(),
                server: server.authority(),
            });
        }
        Ok(server)
    }

    fn basic(&self, http: &Http, server: &Address) -> Result<Answer, RegistryError> {
        let service = self.challenge.get("service");
        let path = path(&server.path, service, self.scope());
        let basic = self.login.map(Login::basic);
        let address = server.with_path(path);
        http.get(
            &address,
            Trust::From(self.base),
            &Want::Json,
            basic.as_deref(),
        )
    }

    fn refresh(
        &self,
        http: &Http,
        server: &Address,
        login: &Login,
    ) -> Result<Answer, RegistryError> {
        let mut form = vec![
            ("grant_type", "refresh_token"),
            ("refresh_token", login.secret()),
            ("client_id", CLIENT),
        ];
        form.extend(
            self.challenge
                .get("service")
                .map(|value| ("service", value)),
        );
        form.extend(self.scope().map(|value| ("scope", value)));
        http.post(server, Trust::From(self.base), &form)
    }

    fn fail(&self, reason: String) -> RegistryError {
        RegistryError::Login {
            registry: self.registry.to_owned(),
            reason,
        }
    }
}

/// True if a token server may see the logins of a registry: it is the same host, or in the same
/// domain, as `auth.docker.io` and `registry-1.docker.io` are.
fn is_neighbour(registry: &str, server: &str) -> bool {
    if registry == server {
        return true;
    }
    let domain = domain(registry);
    domain.is_some() && domain == self::domain(server)
}

/// Returns the domain that somebody registered: the last two labels, or three below the likes of
/// `ac.uk`. None for addresses and for names without a dot.
fn domain(host: &str) -> Option<&str> {
    const SECOND: [&str; 12] = [
        "ac", "co", "com", "edu", "gob", "go", "gov", "ne", "net", "or", "org", "res",
    ];
    if host.starts_with('[') || host.ends_with(|last: char| last.is_ascii_digit()) {
        return None;
    }
    let labels: Vec<&str> = host.split('.').collect();
    let is_below =
        matches!(labels[..], [.., second, top] if top.len() == 2 && SECOND.contains(&second));
    let count = if is_below { 3 } else { 2 };
    let skipped = labels.len().checked_sub(count)?;
    let length: usize = labels[..skipped].iter().map(|label| label.len() + 1).sum();
    host.get(length..)
}

#[derive(Deserialize)]
struct Body {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

/// Takes the token out of a token server's answer and insists that it can stand in a header.
fn parse(body: &[u8]) -> Option<Token> {
    let body: Body = serde_json::from_slice(body).ok()?;
    let value = body
        .token
        .filter(|text| !text.is_empty())
        .or(body.access_token)?;
    let is_plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
    let seconds = match body.expires_in {
        Some(seconds) if seconds >= 1.0 => (seconds as u64).min(MOST_SECONDS),
        _ => LEAST_SECONDS,
    };
    // A tenth earlier than it says: the request that carries it takes its time, too.
    let lasts = Duration::from_secs(seconds).mul_f64(0.9);
    is_plain.then(|| Token {
        value,
        until: Instant::now() + lasts,
    })
}

/// True for a token server's answer that has a token; for tests with arbitrary bytes.
pub(super) fn is_token(body: &[u8]) -> bool {
    parse(body).is_some()
}

/// Returns the path and query of a token request. Several scopes are several parameters.
fn path(realm: &str, service: Option<&str>, scope: Option<&str>) -> String {
    let mut path = realm.to_owned();
    let scopes = scope.into_iter().flat_map(|text| text.split(' '));
    let scopes = scopes.filter(|text| !text.is_empty());
    let pairs = service
        .map(|value| ("service", value))
        .into_iter()
        .chain(scopes.map(|value| ("scope", value)));
    for (key, value) in pairs {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(key);
        path.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/:,".contains(&byte) {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let table = [
            (r#"{"token":"a"}"#, Some(("a", 54))),
            (r#"{"access_token":"b","expires_in":300}"#, Some(("b", 270))),
            (
                r#"{"token":"a","access_token":"b","expires_in":0}"#,
                Some(("a", 54)),
            ),
            (
                r#"{"token":"","access_token":"b","expires_in":-5}"#,
                Some(("b", 54)),
            ),
            (r#"{"token":"a","expires_in":1e300}"#, Some(("a", 77_760))),
            (
                r#"{"token":"a","expires_in":2,"issued_at":"x"}"#,
                Some(("a", 2)),
            ),
            (r#"{"token":"a\r\nX: y"}"#, None),
            (r#"{"token":""}"#, None),
            ("{}", None),
            ("<html>", None),
        ];
        for (body, expect) in table {
            let now = Instant::now();
            let found = parse(body.as_bytes());
            let found = found.as_ref().map(|token| {
                let lasts = token.until.duration_since(now).as_secs_f64().round();
                (token.value.as_str(), lasts as u64)
            });
            assert_eq!(found, expect, "{body}");
        }
    }

    #[test]
    fn requests_are_escaped() {
        assert_eq!(
            path("/token?x=1", Some("a b&c"), Some("repository:a/b:pull  s2")),
            "/token?x=1&service=a%20b%26c&scope=repository:a/b:pull&scope=s2"
        );
        assert_eq!(path("/t", None, Some("s#")), "/t?scope=s%23");
        assert_eq!(path("/t", None, None), "/t");
    }

    #[test]
    fn s63_which_token_servers_see_a_login() {
        let table = [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("ghcr.io", "ghcr.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("registry.hpc.example.ac.uk", "sso.example.ac.uk", true),
            ("a.example.ac.uk", "b.other.ac.uk", false),
            ("registry.example.org", "example.com", false),
            ("registry.example.org", "badexample.org", false),
            ("registry.example.org", "example.org.evil.net", false),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("[::1]", "[::2]", false),
            ("localhost", "otherhost", false),
        ];
        for (registry, server, expect) in table {
            assert_eq!(
                is_neighbour(registry, server),
                expect,
                "{registry} {server}"
            );
        }
    }
}
