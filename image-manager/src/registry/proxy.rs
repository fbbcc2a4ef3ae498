//! Proxies of the environment: `https_proxy`, `http_proxy`, `no_proxy`.
//!
//! Each scheme has its own variable, as curl and Go have it. `no_proxy` is a list of host names
//! (which stand for their sub-domains too), addresses, or `*`, each with an optional port, and of
//! networks (`10.0.0.0/8`), which count for hosts that are written as addresses. The
//! machine itself is never reached through a proxy. How one is spoken to: `connect`, `forward`.

use std::net::IpAddr;

use shifter_core::sanitize;
use ureq::Proxy;

use super::address::Address;
use super::error::RegistryError;

/// The proxies to use; without `Debug`, because they may have passwords.
#[derive(Clone, Default)]
pub struct Proxies {
    https: Option<String>,
    http: Option<String>,
    exceptions: Vec<String>,
}

impl Proxies {
    /// Reads the environment through `lookup`; the names in lower case win.
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let find = |lower: &str| {
            let value = lookup(lower).or_else(|| lookup(&lower.to_ascii_uppercase()));
            value.filter(|text| !text.is_empty())
        };
        let all = find("all_proxy");
        let exceptions = find("no_proxy").unwrap_or_default();
        Self {
            https: find("https_proxy").or_else(|| all.clone()),
            http: find("http_proxy").or(all),
            exceptions: exceptions
                .split(',')
                .map(|e| e.trim().to_ascii_lowercase())
                .collect(),
        }
    }

    /// Returns the proxy for an address.
    pub(super) fn choose(&self, address: &Address) -> Result<Option<Proxy>, RegistryError> {
        let (variable, value) = if address.tls {
            ("https_proxy", &self.https)
        } else {
            ("http_proxy", &self.http)
        };
        let Some(value) = value.as_deref().filter(|_| !self.is_direct(address)) else {
            return Ok(None);
        };
        Proxy::new(value).map(Some).map_err(|_| {
            // What stands before the @ may be a password.
            let shown = value.rsplit('@').next().unwrap_or_default();
            RegistryError::Proxy {
                variable,
                value: sanitize::text(shown),
            }
        })
    }

    fn is_direct(&self, address: &Address) -> bool {
        let host = address.host.as_str();
        let is_this_machine = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        is_this_machine
            || self
                .exceptions
                .iter()
                .any(|entry| matches(entry, host, address.port))
    }
}

fn matches(entry: &str, host: &str, port: u16) -> bool {
    if let Some((network, length)) = entry.split_once('/') {
        return contains(network, length, host);
    }
    let (name, wanted_port) = match entry.rsplit_once(':') {
        Some((name, digits))
            if !digits.is_empty() && !name.contains(':') || name.ends_with(']') =>
        {
            match digits.parse::<u16>() {
                Ok(number) => (name, Some(number)),
                Err(_) => return false,
            }
        }
        _ => (entry, None),
    };
    if wanted_port.is_some_and(|wanted| wanted != port) {
        return false;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let domain = name.trim_start_matches("*.").trim_start_matches('.');
    name == "*"
        || name == bare
        || !domain.is_empty()
            && (bare == domain && !name.starts_with(['*', '.'])
                || bare
                    .strip_suffix(domain)
                    .is_some_and(|front| front.ends_with('.')))
}

/// True if a host that is written as an address lies in a network, `10.0.0.0/8`.
fn contains(network: &str, length: &str, host: &str) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let (Ok(network), Ok(host)) = (network.parse::<IpAddr>(), bare.parse::<IpAddr>()) else {
        return false;
    };
    let ((network, most), (host, other)) = (bits(network), bits(host));
    match length.parse::<u32>() {
        Ok(length) if length <= most && most == other => {
            (network ^ host).checked_shr(128 - length).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions() {
        let table = [
            ("*", "h.example", 443, true),
            ("example.org", "example.org", 443, true),
            ("example.org", "a.example.org", 443, true),
            (".example.org", "a.example.org", 443, true),
            ("*.example.org", "a.example.org", 443, true),
            (".example.org", "example.org", 443, false),
            ("example.org", "badexample.org", 443, false),
            ("example.org:5000", "example.org", 5000, true),
            ("example.org:5000", "example.org", 443, false),
            ("10.0.0.1", "10.0.0.1", 443, true),
            ("::1", "[::1]", 443, true),
            ("[::1]:5000", "[::1]", 5000, true),
            ("", "example.org", 443, false),
            (".", "example.org", 443, false),
            ("10.0.0.0/8", "10.9.8.7", 443, true),
            ("10.0.0.0/8", "11.0.0.1", 443, false),
            ("10.0.0.0/33", "10.0.0.0", 443, false),
            ("0.0.0.0/0", "11.0.0.1", 443, true),
            ("0.0.0.0/0", "[::1]", 443, false),
            ("fd00::/8", "[fd01::1]", 443, true),
            ("10.0.0.0/8", "host.example", 443, false),
        ];
        for (entry, host, port, expect) in table {
            assert_eq!(matches(entry, host, port), expect, "{entry} {host}:{port}");
        }
    }

    #[test]
    fn each_scheme_has_its_own() {
        let env = |name: &str| match name {
            "https_proxy" => Some("http://user:pw@proxy:3128".to_owned()),
            "NO_PROXY" => Some("inside.example, other".to_owned()),
            _ => None,
        };
        let proxies = Proxies::from_env(env);
        let choose = |text| {
            let chosen = proxies.choose(&Address::parse(text).unwrap()).unwrap();
            chosen.map(|proxy| proxy.host().to_owned())
        };
        assert_eq!(choose("https://out.example/").as_deref(), Some("proxy"));
        assert_eq!(choose("http://out.example/"), None);
        assert_eq!(choose("https://a.inside.example/"), None);
        assert_eq!(choose("https://127.0.0.1:5000/"), None);

        let bad = Proxies::from_env(|name| (name == "https_proxy").then(|| "u:pw@a b".to_owned()));
        let error = bad
            .choose(&Address::parse("https://x/").unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("'a b'") && !error.contains("pw"), "{error}");
    }
}
