//! Addresses of requests: parsing, resolving redirects, comparing origins.
//!
//! Only http and https without user information exist here. Display omits the query, which may
//! carry a signature.

use std::fmt;

use ureq::http::Uri;

/// Length an address may have.
const LIMIT: usize = 8192;

/// An absolute http or https address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// True for https.
    pub tls: bool,
    /// Host name in lower case, or an IP address, IPv6 in brackets.
    pub host: String,
    /// The port, default filled in.
    pub port: u16,
    /// Path and query, starting with `/`.
    pub path: String,
}

impl Address {
    /// Parses an absolute address.
    pub fn parse(text: &str) -> Option<Self> {
        // RFC 3986 allows no space or control character; http's parser lets some bytes pass.
        if text.len() > LIMIT || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = text.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        let host = authority.host().to_ascii_lowercase();
        if authority.as_str().contains('@') || host.is_empty() {
            return None;
        }
        let explicit = authority.as_str().len() > authority.host().len();
        let port = match authority.port_u16() {
            Some(port) => port,
            None if explicit => return None,
            None => default_port(tls),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        Some(Self {
            tls,
            host,
            port,
            path,
        })
    }

    /// Resolves what a `Location` header says, seen from this address.
    pub fn join(&self, location: &str) -> Option<Self> {
        let scheme = if self.tls { "https" } else { "http" };
        let base = self.path.split(['?', '#']).next().unwrap_or_default();
        let path = if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        } else if location.contains("://") && !location.starts_with(['/', '?']) {
            return Self::parse(location);
        } else if location.starts_with('/') {
            location.to_owned()
        } else if location.starts_with('?') {
            format!("{base}{location}")
        } else {
            let folder = base.rfind('/').map_or("/", |at| &base[..=at]);
            format!("{folder}{location}")
        };
        Self::parse(&format!("{scheme}://{}{path}", self.authority()))
    }

    /// Returns the address with another path on the same server.
    pub fn with_path(&self, path: String) -> Self {
        Self {
            path,
            ..self.clone()
        }
    }

    /// True if scheme, host and port agree: only then may one see the other's credentials.
    pub fn same_origin(&self, other: &Self) -> bool {
        (self.tls, self.port, &self.host) == (other.tls, other.port, &other.host)
    }

    /// Returns `host`, or `host:port` if the port is not the default.
    pub fn authority(&self) -> String {
        if self.port == default_port(self.tls) {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Returns the whole address, query included, as it is requested.
    pub fn full(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.full();
        f.write_str(full.split('?').next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_a_registry_may_be() {
        let table = [
            ("https://Example.ORG", "https://example.org/"),
            ("https://example.org:443/a?b=c", "https://example.org/a?b=c"),
            ("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5000/v2/"),
            ("https://[::1]:5000/x#frag", "https://[::1]:5000/x"),
            ("http://h:80?x", "http://h/?x"),
        ];
        for (text, full) in table {
            assert_eq!(
                Address::parse(text).map(|a| a.full()).as_deref(),
                Some(full),
                "{text}"
            );
        }
        for bad in [
            "",
            "example.org",
            "/v2/",
            "ftp://h/",
            "file:///etc/passwd",
            "gopher://h:1/",
            "https://user@h/",
            "https://user:pw@h/",
            "https://h\r\nX: y/",
            "https://h /",
            "https:///x",
            "https://h:99999/",
            "https://h:/",
        ] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn resolves_redirects() {
        let base = Address::parse("https://h:5000/v2/a/blobs/x?q=1").unwrap();
        let table = [
            ("https://cdn.example/b?sig=1", "https://cdn.example/b?sig=1"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/b?u=http://x", "https://h:5000/b?u=http://x"),
            ("?y", "https://h:5000/v2/a/blobs/x?y"),
            ("y", "https://h:5000/v2/a/blobs/y"),
            ("?u=http://x", "https://h:5000/v2/a/blobs/x?u=http://x"),
        ];
        for (location, full) in table {
            assert_eq!(
                base.join(location).map(|a| a.full()).as_deref(),
                Some(full),
                "{location}"
            );
        }
        assert_eq!(base.join("file:///etc/passwd"), None);
        assert_eq!(base.join("https://a@b/"), None);
    }

    #[test]
    fn origins_and_display() {
        let parse = |text| Address::parse(text).unwrap();
        assert!(parse("https://h/a").same_origin(&parse("https://H:443/b")));
        for other in [
            "http://h:443/",
            "https://h:444/",
            "https://h.evil/",
            "https://g/",
        ] {
            assert!(!parse("https://h/").same_origin(&parse(other)), "{other}");
        }
        assert_eq!(
            parse("https://h/a?X-Signature=secret").to_string(),
            "https://h/a"
        );
    }
}
