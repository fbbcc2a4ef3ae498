//! GET requests over http and https: connections, redirects, proxies, limits on time and size.
//!
//! ureq with rustls is used rather than reqwest: it brings 28 crates where reqwest's blocking
//! client brings 97 and an async runtime, and a pull needs nothing but blocking GETs. Redirects
//! are followed here and not in ureq, because the rules are ours: credentials never reach another
//! origin, and plain http is spoken only where the site configured it.
//! Certificates are checked against the registry's `ca_file`, else the system's bundle.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shifter_core::config::Registry;
use shifter_core::sanitize;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Timeout};

use super::address::Address;
use super::error::RegistryError;
use super::manifest;
use super::proxy::Proxies;
use super::retry::{self, Patience};

const REDIRECTS: usize = 5;
/// Bytes read of a body that explains an error.
const MESSAGE_LIMIT: u64 = 64 << 10;
const CA_LIMIT: u64 = 4 << 20;
/// Where distributions keep their bundle: Debian, Red Hat, SUSE, Alpine.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

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

/// Makes requests under the site's rules.
pub(super) struct Http {
    registries: BTreeMap<String, Registry>,
    proxies: Proxies,
    /// One agent per origin: its certificates and its proxy are its own.
    agents: Mutex<HashMap<String, Agent>>,
    system_roots: OnceLock<RootCerts>,
    patience: Patience,
}

/// An answer whose body has not been read yet.
pub(super) struct Answer {
    /// Where it came from, after redirects.
    pub address: Address,
    response: Response<Body>,
    patience: Patience,
}

impl Http {
    /// Takes the site's registries and the proxies of the environment.
    pub fn new(registries: BTreeMap<String, Registry>, proxies: Proxies) -> Self {
        let (agents, system_roots) = (Mutex::default(), OnceLock::new());
        Self {
            registries,
            proxies,
            agents,
            system_roots,
            patience: Patience::default(),
        }
    }

    /// Changes how patient to be; connections made before are not used any more.
    pub fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
        self.agents = Mutex::default();
    }

    /// Returns how patient to be.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Finds the configuration of `host:port`, or of `host` where the port is the default.
    pub fn registry(&self, host: &str, port: u16, tls: bool) -> Option<&Registry> {
        let default = port == if tls { 443 } else { 80 };
        // Docker Hub's programs answer at another name than its images are called by.
        let name = if host == super::HUB_HOST {
            super::HUB_NAME
        } else {
            host
        };
        self.registries
            .get(&format!("{host}:{port}"))
            .or_else(|| default.then(|| self.registries.get(name)).flatten())
            .or_else(|| default.then(|| self.registries.get(host)).flatten())
    }

    /// True if the site lets this address be spoken to as it is written.
    pub fn is_allowed(&self, address: &Address) -> bool {
        address.tls
            || self
                .registry(&address.host, address.port, false)
                .is_some_and(|registry| registry.plain_http)
    }

    /// Sends a GET request and follows redirects; `authorization` goes to the first origin only.
    pub fn get(
        &self,
        first: &Address,
        want: &Want,
        authorization: Option<&str>,
    ) -> Result<Answer, RegistryError> {
        let mut address = first.clone();
        let mut authorization = authorization;
        if !self.is_allowed(&address) {
            return Err(redirect(
                first,
                &address,
                "plain http is not configured for it",
            ));
        }
        for _ in 0..=REDIRECTS {
            let mut request = self
                .agent(&address)?
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
                .map_err(|error| self.failed(&address, error))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer {
                    address,
                    response,
                    patience: self.patience,
                });
            }
            let location = response
                .headers()
                .get("location")
                .and_then(|v| v.to_str().ok());
            let target = address.join(location.unwrap_or_default()).ok_or_else(|| {
                RegistryError::Redirect {
                    address: address.to_string(),
                    target: sanitize::text(location.unwrap_or("nowhere")),
                    rule: "that is not an http or https address",
                }
            })?;
            if !self.is_allowed(&target) {
                return Err(redirect(
                    &address,
                    &target,
                    "plain http is not configured for it",
                ));
            }
            if !target.same_origin(first) {
                // For good: a second redirect back must not bring the credentials with it.
                authorization = None;
            }
            address = target;
        }
        Err(redirect(first, &address, "too many redirects"))
    }

    fn agent(&self, address: &Address) -> Result<Agent, RegistryError> {
        let key = address.with_path(String::new()).full();
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let configured = self.registry(&address.host, address.port, address.tls);
        let roots = match configured.and_then(|registry| registry.ca_file.as_deref()) {
            _ if !address.tls => RootCerts::WebPki,
            Some(file) => certificates(file)?,
            None => self.system_roots.get_or_init(system_roots).clone(),
        };
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(self.proxies.choose(address)?)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("shifter/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(self.patience.connect))
            .timeout_connect(Some(self.patience.connect))
            .timeout_recv_response(Some(self.patience.progress))
            .timeout_per_read(Some(self.patience.progress))
            .timeout_per_write(Some(self.patience.progress))
            .build()
            .into();
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    /// Names a failed request.
    fn failed(&self, address: &Address, error: ureq::Error) -> RegistryError {
        let address = address.to_string();
        let (connect, progress) = (
            self.patience.connect.as_secs(),
            self.patience.progress.as_secs(),
        );
        let waited = match error {
            ureq::Error::Timeout(Timeout::Resolve) => {
                format!("its name was not resolved within {connect} s")
            }
            ureq::Error::Timeout(Timeout::Connect) => format!("no connection within {connect} s"),
            ureq::Error::Timeout(_) => format!("nothing arrived for {progress} s"),
            error => {
                return RegistryError::Unreachable {
                    address,
                    source: Box::new(error),
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
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |time| time.as_secs());
        retry::asked(self.header("retry-after")?, now)
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

fn redirect(from: &Address, to: &Address, rule: &'static str) -> RegistryError {
    RegistryError::Redirect {
        address: from.to_string(),
        target: to.to_string(),
        rule,
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

/// Reads the certificate authorities of one registry.
fn certificates(path: &Path) -> Result<RootCerts, RegistryError> {
    let fail = |reason: String| RegistryError::File {
        path: path.to_owned(),
        reason,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(CA_LIMIT).read_to_end(&mut bytes))
        .map_err(|error| fail(error.to_string()))?;
    let found = parse(&bytes);
    if found.is_empty() {
        return Err(fail("it contains no certificate in PEM format".into()));
    }
    Ok(RootCerts::Specific(Arc::new(found)))
}

/// Reads the system's bundle; on a system without one the Mozilla roots built in count.
fn system_roots() -> RootCerts {
    let bundle = SYSTEM_BUNDLES
        .iter()
        .find_map(|path| std::fs::read(path).ok());
    match bundle.map(|bytes| parse(&bytes)) {
        Some(found) if !found.is_empty() => RootCerts::Specific(Arc::new(found)),
        _ => RootCerts::WebPki,
    }
}

fn parse(pem: &[u8]) -> Vec<Certificate<'static>> {
    parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ca_file: None,
        };
        let mut http = Http::new([(host.clone(), plain)].into(), Proxies::default());
        http.patience.progress = Duration::from_millis(300);
        (http, Address::parse(&format!("http://{host}/")).unwrap())
    }

    #[test]
    fn a_server_that_stalls_is_given_up() {
        use std::io::Write;
        let pause = |ms| std::thread::sleep(Duration::from_millis(ms));
        let silent = move |_stream| pause(3000);
        let (http, address) = server(silent);
        let begin = Instant::now();
        let error = http.get(&address, &Want::Json, None).err().unwrap();
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
            let answer = http.get(&address, &Want::Json, None).unwrap();
            let error = answer.read("it", 1 << 20).unwrap_err();
            assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
        }
        assert!(begin.elapsed() < Duration::from_millis(2500));
    }

    #[test]
    fn plain_http_only_where_configured() {
        let plain = Registry {
            plain_http: true,
            ca_file: None,
        };
        let registries = [
            ("a:5000", &plain),
            ("b", &plain),
            ("c", &Registry::default()),
        ]
        .map(|(key, value)| (key.to_owned(), value.clone()));
        let http = Http::new(registries.into(), Proxies::default());
        for (address, allowed) in [
            ("https://x/", true),
            ("http://a:5000/", true),
            ("http://a/", false),
            ("http://a:5001/", false),
            ("http://b/", true),
            ("http://b:5000/", false),
            ("http://c/", false),
        ] {
            let address = Address::parse(address).unwrap();
            assert_eq!(http.is_allowed(&address), allowed, "{address}");
        }
    }
}
