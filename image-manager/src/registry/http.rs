//! Requests over http and https: redirects, limits on time and size.
//!
//! ureq with rustls is used rather than reqwest: it brings 28 crates where reqwest's blocking
//! client brings 97 and an async runtime, and a pull needs nothing but blocking requests. Redirects
//! are followed here and not in ureq, because the rules are ours: credentials never reach another
//! origin, https never leads to http, plain http is spoken only where it is configured, and no
//! answer leads to this machine or a private network unless the one who answers is there itself.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use shifter_core::sanitize;
use ureq::http::Response;
use ureq::{Body, Timeout};

use super::address::Address;
use super::connect::Connections;
use super::error::{Fault, RegistryError};
use super::guard::{self, Allowed, Forbidden};
use super::manifest;
use super::proxy::Proxies;
use super::retry::{self, Patience};
use super::rules::Rules;

const REDIRECTS: usize = 5;
/// Bytes read of a body that explains an error.
const MESSAGE_LIMIT: u64 = 64 << 10;
/// Why an address without TLS is not asked.
const NOT_PLAIN: &str = "plain http is not configured for it";

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want {
    /// A manifest or an index.
    Manifest,
    /// A blob, from a byte on.
    Blob(Option<u64>),
    /// An answer in JSON.
    Json,
}

impl Want {
    fn accept(self) -> &'static str {
        match self {
            Self::Manifest => manifest::ACCEPT,
            Self::Blob(_) => "*/*",
            Self::Json => "application/json",
        }
    }
}

/// Why a server is asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trust<'a> {
    /// The user or the site named it.
    Named,
    /// This server's answer named it.
    From(&'a Address),
}

/// Makes requests under the site's rules.
pub(super) struct Http {
    rules: Rules,
    connections: Connections,
}

/// An answer whose body has not been read yet.
pub(super) struct Answer {
    /// Where it came from, after redirects.
    pub address: Address,
    response: Response<Body>,
    patience: Patience,
}

impl Http {
    /// Takes the rules and the proxies of the environment.
    pub fn new(rules: Rules, proxies: Proxies) -> Self {
        Self {
            rules,
            connections: Connections::new(proxies),
        }
    }

    /// Changes how patient to be, before the first request.
    pub fn set_patience(&mut self, patience: Patience) {
        self.rules.set_patience(patience);
    }

    /// Returns how patient to be.
    pub fn patience(&self) -> Patience {
        self.rules.patience()
    }

    /// Returns the rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Sends a GET request and follows redirects; `authorization` goes to the first origin only.
    pub fn get(
        &self,
        first: &Address,
        trust: Trust<'_>,
        want: &Want,
        authorization: Option<&str>,
    ) -> Result<Answer, RegistryError> {
        let mut address = first.clone();
        let mut authorization = authorization;
        let named = match trust {
            Trust::Named => first,
            Trust::From(named) => named,
        };
        if !self.rules.is_allowed(&address) {
            return Err(forbidden(named, &address, &NOT_PLAIN));
        }
        for step in 0..=REDIRECTS {
            let allowed = match trust {
                Trust::Named if step == 0 => None,
                _ => self.allowed(named, &address),
            };
            let agent = self.agent(&address, &allowed, named)?;
            let mut request = agent
                .get(address.full())
                .header("Accept", want.accept())
                .header("Accept-Encoding", "identity");
            if let Want::Blob(Some(offset)) = want {
                request = request.header("Range", format!("bytes={offset}-"));
            }
            if let Some(value) = authorization {
                request = request.header("Authorization", value);
            }
            let response = request
                .call()
                .map_err(|error| self.failed(&address, named, error))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(self.answer(address, response));
            }
            let location = response
                .headers()
                .get("location")
                .and_then(|v| v.to_str().ok());
            let target = self.target(&address, location)?;
            if !target.same_origin(first) {
                // For good: a second redirect back must not bring the credentials with it.
                authorization = None;
            }
            address = target;
        }
        Err(redirect(first, &address, "too many redirects"))
    }

    /// Sends a form. Redirects are not followed: what is in the form is for this server alone.
    pub fn post(
        &self,
        address: &Address,
        trust: Trust<'_>,
        form: &[(&str, &str)],
    ) -> Result<Answer, RegistryError> {
        let (named, allowed) = match trust {
            Trust::Named => (address, None),
            Trust::From(named) => (named, self.allowed(named, address)),
        };
        let request = self
            .agent(address, &allowed, named)?
            .post(address.full())
            .header("Accept", Want::Json.accept());
        let response = request
            .send_form(form.iter().copied())
            .map_err(|error| self.failed(address, named, error))?;
        Ok(self.answer(address.clone(), response))
    }

    fn answer(&self, address: Address, response: Response<Body>) -> Answer {
        Answer {
            address,
            response,
            patience: self.patience(),
        }
    }

    /// Judges where a redirect leads.
    fn target(&self, from: &Address, location: Option<&str>) -> Result<Address, RegistryError> {
        let target = location
            .filter(|location| !location.is_empty())
            .and_then(|location| from.join(location))
            .ok_or_else(|| RegistryError::Redirect {
                address: from.to_string(),
                target: shown(location.unwrap_or("nowhere")),
                rule: "that is not an http or https address",
            })?;
        if from.tls && !target.tls {
            return Err(redirect(from, &target, "https never leads to plain http"));
        }
        if !self.rules.is_allowed(&target) {
            return Err(redirect(from, &target, NOT_PLAIN));
        }
        Ok(target)
    }

    /// Returns what `address` may resolve to if `named` led there.
    fn allowed(&self, named: &Address, address: &Address) -> Allowed {
        let is_configured = self.rules.find(address).is_some();
        (!is_configured && !address.same_origin(named))
            .then(|| self.connections.seen().kinds(&named.authority()))
    }

    fn agent(
        &self,
        address: &Address,
        allowed: &Allowed,
        named: &Address,
    ) -> Result<ureq::Agent, RegistryError> {
        guard::judge_literal(&address.host, allowed)
            .map_err(|reason| forbidden(named, address, &reason))?;
        let rules = self.rules.find(address);
        let ca_file = rules.and_then(|registry| registry.ca_file.as_deref());
        self.connections
            .agent(address, ca_file, allowed, &self.patience())
    }

    /// Names a failed request.
    fn failed(&self, to: &Address, named: &Address, error: ureq::Error) -> RegistryError {
        let address = to.to_string();
        let patience = self.patience();
        let (connect, progress) = (patience.connect.as_secs(), patience.progress.as_secs());
        let waited = match error {
            ureq::Error::Timeout(Timeout::Resolve) => {
                format!("its name was not resolved within {connect} s")
            }
            ureq::Error::Timeout(Timeout::Connect) => format!("no connection within {connect} s"),
            ureq::Error::Timeout(_) => format!("nothing arrived for {progress} s"),
            ureq::Error::Io(error)
                if error.get_ref().is_some_and(|inner| inner.is::<Forbidden>()) =>
            {
                return forbidden(named, to, &error);
            }
            error => {
                return RegistryError::Unreachable {
                    address,
                    source: Box::new(Fault(error)),
                };
            }
        };
        RegistryError::Stalled { address, waited }
    }
}

impl Answer {
    /// Returns the HTTP status.
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Returns a header if it is there once and is plain text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.response.headers().get_all(name).iter();
        let first = values.next().and_then(|value| value.to_str().ok())?;
        values.next().is_none().then_some(first)
    }

    /// Returns every value of a header that is plain text.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        self.response
            .headers()
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .collect()
    }

    /// Returns the length that the server announced.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")
            .and_then(|text| text.parse().ok())
    }

    /// Returns how long the server asks to be left alone.
    pub fn asked_pause(&self) -> Option<Duration> {
        retry::asked(self.header("retry-after")?, crate::store::now())
    }

    /// Reads the whole body if it is not larger than `limit`.
    pub fn read(self, what: &'static str, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let address = self.address.clone();
        let too_large = || RegistryError::TooLarge {
            what,
            address: address.to_string(),
            limit,
        };
        if self.length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let mut body = self.into_body().take(limit + 1);
        body.read_to_end(&mut bytes)
            .map_err(|error| broke_off(&address, error))?;
        if bytes.len() as u64 > limit {
            Err(too_large())
        } else {
            Ok(bytes)
        }
    }

    /// Reads what the server says about an error: its own message, with a leading `: `.
    pub fn message(self) -> String {
        let mut bytes = Vec::new();
        // A message that cannot be read must not hide the error it belongs to.
        let _ = self.into_body().take(MESSAGE_LIMIT).read_to_end(&mut bytes);
        match explanation(&bytes) {
            Some(text) if !text.trim().is_empty() => format!(": {}", sanitize::text(text.trim())),
            _ => String::new(),
        }
    }

    /// Returns the body as a stream that fails when the other side stops sending.
    pub fn into_body(self) -> impl Read {
        let inner = self.response.into_body().into_reader();
        Paced {
            inner,
            since: Instant::now(),
            bytes: 0,
            patience: self.patience,
        }
    }
}

/// Ends a transfer that makes no sensible progress.
struct Paced<R> {
    inner: R,
    since: Instant,
    bytes: u64,
    patience: Patience,
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        if self.bytes >= self.patience.bytes {
            (self.since, self.bytes) = (Instant::now(), 0);
        } else if count > 0 && self.since.elapsed() > self.patience.progress {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(count)
    }
}

/// Names a body that ended too early.
pub(super) fn broke_off(address: &Address, error: io::Error) -> RegistryError {
    let timed_out = error.kind() == io::ErrorKind::TimedOut
        || error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<ureq::Error>())
            .is_some_and(|inner| matches!(inner, ureq::Error::Timeout(_)));
    let address = address.to_string();
    if timed_out {
        let waited = "the transfer made no progress".into();
        return RegistryError::Stalled { address, waited };
    }
    RegistryError::BrokeOff {
        address,
        source: error,
    }
}

/// Writes what is no address without what may be secret in it: a query, and what stands before an @.
fn shown(location: &str) -> String {
    let bare = location.split(['?', '#']).next().unwrap_or_default();
    sanitize::text(bare.rsplit('@').next().unwrap_or_default())
}

fn redirect(from: &Address, to: &Address, rule: &'static str) -> RegistryError {
    RegistryError::Redirect {
        address: from.to_string(),
        target: to.to_string(),
        rule,
    }
}

fn forbidden(from: &Address, to: &Address, reason: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Forbidden {
        address: from.to_string(),
        target: to.to_string(),
        reason: reason.to_string(),
    }
}

/// Finds the text in the error formats of registries and token servers.
fn explanation(body: &[u8]) -> Option<String> {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else {
        let text = String::from_utf8_lossy(body);
        let line = text.lines().next().unwrap_or_default();
        // A proxy's page of HTML explains nothing.
        return (!line.contains('<')).then(|| line.to_owned());
    };
    let error = value
        .get("errors")
        .and_then(|errors| errors.get(0))
        .unwrap_or(&value);
    ["message", "details", "error_description", "error", "code"]
        .iter()
        .find_map(|key| error.get(key).and_then(|text| text.as_str()))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shifter_core::config::Registry;

    #[test]
    fn explains_errors_in_the_servers_words() {
        let table: [(&str, Option<&str>); 6] = [
            (
                r#"{"errors":[{"code":"DENIED","message":"no","detail":{}}]}"#,
                Some("no"),
            ),
            (r#"{"errors":[{"code":"DENIED"}]}"#, Some("DENIED")),
            (
                r#"{"details":"incorrect username"}"#,
                Some("incorrect username"),
            ),
            ("too many requests\nretry", Some("too many requests")),
            ("<html>", None),
            (r#"{"errors":[]}"#, None),
        ];
        for (body, expect) in table {
            assert_eq!(explanation(body.as_bytes()).as_deref(), expect, "{body}");
        }
    }

    /// Serves one connection with `answer`, which gets the stream after the request.
    fn server(answer: impl FnOnce(std::net::TcpStream) + Send + 'static) -> (Http, Address) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            answer(stream);
        });
        let plain = Registry {
            plain_http: true,
            ..Registry::default()
        };
        let rules = Rules::from(std::collections::BTreeMap::from([(host.clone(), plain)]));
        let mut http = Http::new(rules, Proxies::default());
        http.set_patience(Patience {
            progress: Duration::from_millis(300),
            ..Patience::default()
        });
        (http, Address::parse(&format!("http://{host}/")).unwrap())
    }

    #[test]
    fn a_server_that_stalls_is_given_up() {
        use std::io::Write;
        let pause = |ms| std::thread::sleep(Duration::from_millis(ms));
        let silent = move |_stream| pause(3000);
        let (http, address) = server(silent);
        let begin = Instant::now();
        let error = http
            .get(&address, Trust::Named, &Want::Json, None)
            .err()
            .unwrap();
        assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");

        let stops = move |mut stream: std::net::TcpStream| {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
                .unwrap();
            pause(3000);
        };
        let trickles = move |mut stream: std::net::TcpStream| {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
                .unwrap();
            while stream.write_all(b"x").is_ok() {
                pause(20);
            }
        };
        for answer in [
            Box::new(stops) as Box<dyn FnOnce(_) + Send>,
            Box::new(trickles),
        ] {
            let (http, address) = server(answer);
            let answer = http.get(&address, Trust::Named, &Want::Json, None).unwrap();
            let error = answer.read("it", 1 << 20).unwrap_err();
            assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
        }
        assert!(begin.elapsed() < Duration::from_millis(2500));
    }
}
