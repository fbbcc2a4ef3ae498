//! What a server answers: status, headers, and a body that may be cut, slow, endless or a lie.

use std::io::{self, Write};
use std::time::Duration;

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The announced length; none: the connection's end is the body's.
    pub length: Option<u64>,
    /// Bytes of the body after which the connection ends.
    pub cut: Option<usize>,
    /// Pause after each byte.
    pub drip: Option<Duration>,
    /// Whether the body is repeated as long as somebody listens.
    pub endless: bool,
    /// Whether the body comes in chunks.
    pub chunked: bool,
    /// Whether the server waits for another request.
    pub keeps: bool,
    pub version: &'static str,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self {
            status,
            headers: Vec::new(),
            length: Some(body.len() as u64),
            body,
            cut: None,
            drip: None,
            endless: false,
            chunked: false,
            keeps: true,
            version: "1.1",
        }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, body)
    }

    pub fn status(status: u16) -> Self {
        Self::new(status, "")
    }

    pub fn json(text: impl Into<Vec<u8>>) -> Self {
        Self::ok(text).header("Content-Type", "application/json")
    }

    pub fn redirect(location: &str) -> Self {
        Self::status(307).header("Location", location)
    }

    pub fn challenge(value: &str) -> Self {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Self::new(401, body).header("WWW-Authenticate", value)
    }

    /// The part of `blob` that the request's `Range` asks for, or all of it.
    pub fn range(blob: &[u8], range: Option<&str>) -> Self {
        let Some(first) = range.and_then(|text| {
            let text = text.strip_prefix("bytes=")?.strip_suffix('-')?;
            text.parse::<usize>().ok()
        }) else {
            return Self::ok(blob);
        };
        if first >= blob.len() {
            return Self::status(416).header("Content-Range", &format!("bytes */{}", blob.len()));
        }
        let said = format!("bytes {first}-{}/{}", blob.len() - 1, blob.len());
        Self::new(206, &blob[first..]).header("Content-Range", &said)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Ends the connection after so many bytes of the body.
    pub fn cut(mut self, bytes: usize) -> Self {
        (self.cut, self.keeps) = (Some(bytes), false);
        self
    }

    /// Announces another length than the body has.
    pub fn announce(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    /// Announces no length: the body ends with the connection.
    pub fn unmeasured(mut self) -> Self {
        (self.length, self.keeps) = (None, false);
        self
    }

    pub fn chunked(mut self) -> Self {
        (self.length, self.chunked) = (None, true);
        self
    }

    pub fn endless(mut self) -> Self {
        (self.endless, self.keeps) = (true, false);
        self
    }

    /// Pauses after each byte.
    pub fn drip(mut self, pause: Duration) -> Self {
        self.drip = Some(pause);
        self
    }

    /// Closes the connection after the answer, and says so.
    pub fn close(mut self) -> Self {
        self.keeps = false;
        self.header("Connection", "close")
    }

    /// Answers as HTTP/1.0 servers do.
    pub fn old(mut self) -> Self {
        (self.version, self.keeps) = ("1.0", false);
        self
    }

    /// Writes the answer; false if the connection is to be closed.
    pub fn write(&self, stream: &mut dyn Write) -> io::Result<bool> {
        let mut head = format!("HTTP/{} {} Status\r\n", self.version, self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        } else if let Some(length) = self.length {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        let body = &self.body[..self.cut.unwrap_or(self.body.len()).min(self.body.len())];
        if self.endless {
            let block = if body.is_empty() { &[0; 1 << 16] } else { body };
            loop {
                self.send(block, stream)?;
            }
        }
        self.send(body, stream)?;
        if self.chunked && self.cut.is_none() {
            stream.write_all(b"0\r\n\r\n")?;
        }
        stream.flush()?;
        Ok(self.keeps)
    }

    fn send(&self, bytes: &[u8], stream: &mut dyn Write) -> io::Result<()> {
        let size = if self.drip.is_some() { 1 } else { 20_000 };
        for part in bytes.chunks(size) {
            if self.chunked {
                write!(stream, "{:x}\r\n", part.len())?;
            }
            stream.write_all(part)?;
            if self.chunked {
                stream.write_all(b"\r\n")?;
            }
            if let Some(pause) = self.drip {
                stream.flush()?;
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }
}
