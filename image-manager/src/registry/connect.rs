//! Connections: whose certificates count, which proxy is taken, and where they may lead.
//!
//! One agent with its own pool of connections per origin and set of allowed addresses, so that a
//! connection which one rule permitted is never used under another. Certificates are checked against
//! the registry's `ca_file`, else the system's bundle.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use shifter_core::small;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::{Connector, DefaultConnector};
use ureq::{Agent, Proxy, ProxyProtocol};

use super::address::Address;
use super::error::RegistryError;
use super::forward::Forward;
use super::guard::{Allowed, Guard, Seen};
use super::proxy::Proxies;
use super::retry::Patience;

const CA_LIMIT: u64 = 4 << 20;
/// Files that a directory of authorities may have.
const CA_FILES: usize = 1000;
/// Where distributions keep their bundle: Debian, Red Hat, SUSE, Alpine.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Connections to one origin that wait for the next request: one for each download at once.
const IDLE: usize = 8;

/// Makes and keeps the agents.
#[derive(Default)]
pub(super) struct Connections {
    proxies: Proxies,
    agents: Mutex<HashMap<(String, Allowed), Agent>>,
    system_roots: OnceLock<RootCerts>,
    seen: Seen,
}

impl Connections {
    pub fn new(proxies: Proxies) -> Self {
        Self {
            proxies,
            ..Self::default()
        }
    }

    /// Returns what the servers that were named here turned out to be.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Returns the agent for an origin.
    pub fn agent(
        &self,
        address: &Address,
        ca_file: Option<&Path>,
        allowed: &Allowed,
        patience: &Patience,
    ) -> Result<Agent, RegistryError> {
        let key = (address.with_path(String::new()).full(), allowed.clone());
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let roots = match ca_file {
            _ if !address.tls => RootCerts::WebPki,
            Some(path) => authorities(path)?,
            None => self.system_roots.get_or_init(system_roots).clone(),
        };
        let proxy = self.proxies.choose(address)?;
        let is_plain = |proxy: &Proxy| !address.tls && proxy.protocol() == ProxyProtocol::Http;
        let (tunnel, forwarder) = match proxy {
            Some(proxy) if is_plain(&proxy) => (None, Some(proxy)),
            tunnel => (tunnel, None),
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(tunnel)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("shifter/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(IDLE)
            .max_idle_connections_per_host(IDLE)
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_recv_response(Some(patience.progress))
            .timeout_per_read(Some(patience.progress))
            .timeout_per_write(Some(patience.progress))
            .build();
        let guard = Guard {
            allowed: allowed.clone(),
            seen: self.seen.clone(),
            proxy: forwarder.as_ref().map(|proxy| proxy.uri().clone()),
        };
        let connector = DefaultConnector::default();
        let agent = match forwarder {
            Some(proxy) => {
                let forward = Forward::new(&key.0, &proxy);
                Agent::with_parts(config, connector.chain(forward), guard)
            }
            None => Agent::with_parts(config, connector, guard),
        };
        agents.insert(key, agent.clone());
        Ok(agent)
    }
}

/// Reads the certificate authorities of one registry: a file, or every `.pem`, `.crt` and `.cert`
/// of a directory.
fn authorities(path: &Path) -> Result<RootCerts, RegistryError> {
    let fail = |reason: String| RegistryError::File {
        path: path.to_owned(),
        reason,
    };
    let files = match path.is_dir() {
        true => list(path).map_err(|error| fail(error.to_string()))?,
        false => vec![path.to_owned()],
    };
    let mut found = Vec::new();
    for file in files {
        let bytes = small::read(&file, CA_LIMIT);
        found.extend(parse(&bytes.map_err(|error| RegistryError::File {
            path: file.clone(),
            reason: error.to_string(),
        })?));
    }
    if found.is_empty() {
        return Err(fail("it contains no certificate in PEM format".into()));
    }
    Ok(RootCerts::Specific(Arc::new(found)))
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in dir.read_dir()? {
        let path = entry?.path();
        let suffix = path.extension().and_then(|suffix| suffix.to_str());
        if matches!(suffix, Some("pem" | "crt" | "cert")) && path.is_file() {
            files.push(path);
        }
        // None is left out without a word: it may be the one that is needed.
        if files.len() > CA_FILES {
            let rule = format!("it has more than {CA_FILES} files with certificates");
            return Err(io::Error::other(rule));
        }
    }
    files.sort();
    Ok(files)
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
    fn no_authority_is_left_out_without_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path| authorities(path).unwrap_err().to_string();
        for number in 0..CA_FILES {
            std::fs::write(dir.path().join(format!("{number}.pem")), "").unwrap();
        }
        std::fs::write(dir.path().join("README"), "").unwrap();
        assert!(refused(dir.path()).contains("no certificate"));
        let large = dir.path().join("large.pem");
        let file = std::fs::File::create(&large).unwrap();
        assert!(refused(dir.path()).contains("more than 1000 files"));
        file.set_len(CA_LIMIT + 1).unwrap();
        assert!(refused(&large).contains("larger than"));
    }
}
