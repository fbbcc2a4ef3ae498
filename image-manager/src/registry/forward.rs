//! Requests of plain http through a proxy: sent to it whole, as curl and Go do.
//!
//! ureq asks every proxy for a tunnel (`CONNECT`), which many allow to port 443 alone. Here the
//! connection leads to the proxy, because the [`super::guard::Guard`] resolves its name instead of the
//! registry's, and the first line of each request is rewritten on its way out:
//!
//! ```text
//! GET /v2/ HTTP/1.1      GET http://registry.example:5000/v2/ HTTP/1.1
//! Host: …                Proxy-Authorization: Basic …
//!                        Host: …
//! ```

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::{Error, Proxy};

/// What is put into requests. Without `Debug` of its own: it may have a password.
#[derive(Clone)]
pub(super) struct Forward {
    /// `http://registry.example:5000`.
    origin: String,
    /// A header with its line's end; empty if the proxy wants no login.
    login: String,
}

/// A connection to the proxy.
struct Forwarded<T> {
    inner: T,
    forward: Forward,
}

impl Forward {
    /// For requests to `origin`, which has no path.
    pub fn new(origin: &str, proxy: &Proxy) -> Self {
        let login = match (proxy.username(), proxy.password()) {
            (None, None) => String::new(),
            (user, password) => {
                let (user, password) = (user.unwrap_or_default(), password.unwrap_or_default());
                let login = BASE64_STANDARD.encode(format!("{user}:{password}"));
                format!("Proxy-Authorization: Basic {login}\r\n")
            }
        };
        Self {
            origin: origin.trim_end_matches('/').to_owned(),
            login,
        }
    }

    /// Rewrites the head of a request; none if this is not one: the body of one, a form.
    fn rewrite(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let space = ["GET /", "POST /"]
            .iter()
            .find(|start| bytes.starts_with(start.as_bytes()))
            .map(|start| start.len() - 1)?;
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
        let parts = [
            &bytes[..space],
            self.origin.as_bytes(),
            &bytes[space..end],
            self.login.as_bytes(),
            &bytes[end..],
        ];
        Some(parts.concat())
    }
}

impl std::fmt::Debug for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Forward({})", self.origin)
    }
}

impl<T: Transport> Connector<T> for Forward {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<T>,
    ) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| {
            let forward = self.clone();
            Box::new(Forwarded { inner, forward }) as Box<dyn Transport>
        }))
    }
}

impl<T> std::fmt::Debug for Forwarded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.forward.fmt(f)
    }
}

impl<T: Transport> Transport for Forwarded<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = self.inner.buffers().output();
        let Some(whole) = self.forward.rewrite(&output[..amount]) else {
            return self.inner.transmit_output(amount, timeout);
        };
        let Some(room) = output.get_mut(..whole.len()) else {
            // A token that leaves no room for the name of a registry is none.
            let source = std::io::Error::other("the request is too large for a proxy");
            return Err(Error::Io(source));
        };
        room.copy_from_slice(&whole);
        self.inner.transmit_output(whole.len(), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_their_whole_address_and_bodies_nothing() {
        let table = [
            (
                "http://proxy:3128",
                "GET /v2/?a=b HTTP/1.1\r\nHost: r:5000\r\n\r\n",
                Some("GET http://r:5000/v2/?a=b HTTP/1.1\r\nHost: r:5000\r\n\r\n"),
            ),
            (
                "http://me:p%40w@proxy:3128",
                "POST /token HTTP/1.1\r\nHost: r:5000\r\n\r\na=GET /",
                Some(
                    "POST http://r:5000/token HTTP/1.1\r\nProxy-Authorization: Basic bWU6cEB3\r\n\
                     Host: r:5000\r\n\r\na=GET /",
                ),
            ),
            ("http://proxy:3128", "a=%2F&b=GET", None),
            ("http://proxy:3128", "GET /", None),
        ];
        for (proxy, sent, expect) in table {
            let forward = Forward::new("http://r:5000/", &Proxy::new(proxy).unwrap());
            let found = forward.rewrite(sent.as_bytes());
            assert_eq!(found.as_deref(), expect.map(str::as_bytes), "{sent}");
            assert!(!format!("{forward:?}").contains("Basic"));
        }
    }
}
