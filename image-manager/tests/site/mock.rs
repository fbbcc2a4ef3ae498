//! A registry that lies: an http server whose answers the test writes, and which records what it
//! was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::image::{Blob, Image};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path and query.
    pub path: String,
    pub authorization: Option<String>,
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Answers with a length.
    Full(u16, Vec<(String, String)>, Vec<u8>),
    /// Answers without a length and closes the connection.
    Unmeasured(u16, Vec<(String, String)>, Vec<u8>),
    /// Announces one length and sends these bytes.
    Announced(u64, Vec<u8>),
    /// Sends zeros as long as somebody listens.
    Endless,
    /// Sends the start of an answer and closes the connection.
    Cut(u64, Vec<u8>),
}

impl Reply {
    pub fn ok(blob: &Blob) -> Self {
        let header = ("Content-Type".to_owned(), blob.media_type.clone());
        Self::Full(200, vec![header], blob.bytes.clone())
    }

    pub fn status(status: u16) -> Self {
        Self::Full(status, Vec::new(), Vec::new())
    }

    pub fn redirect(location: &str) -> Self {
        Self::Full(307, vec![("Location".into(), location.into())], Vec::new())
    }

    pub fn challenge(value: &str) -> Self {
        Self::Full(
            401,
            vec![("WWW-Authenticate".into(), value.into())],
            Vec::new(),
        )
    }

    pub fn json(text: &str) -> Self {
        let header = ("Content-Type".to_owned(), "application/json".to_owned());
        Self::Full(200, vec![header], text.into())
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server; its threads end with the process.
#[derive(Clone)]
pub struct Mock {
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Mock {
    /// Starts a server that asks `handler` for every answer.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (handler, record): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, record) = (Arc::clone(&handler), Arc::clone(&record));
                std::thread::spawn(move || serve(stream, &*handler, &record));
            }
        });
        Self { address, requests }
    }

    /// Starts a server with these answers by path; the rest is 404.
    pub fn paths(replies: BTreeMap<String, Reply>) -> Self {
        Self::start(move |request| {
            replies
                .get(&request.path)
                .cloned()
                .unwrap_or_else(|| Reply::status(404))
        })
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// The answers of an honest registry that has `image` as `x:latest`.
pub fn honest(image: &Image) -> BTreeMap<String, Reply> {
    let mut replies = BTreeMap::new();
    for name in ["latest".to_owned(), image.manifest.digest()] {
        replies.insert(
            format!("/v2/x/manifests/{name}"),
            Reply::ok(&image.manifest),
        );
    }
    for blob in image.blobs() {
        replies.insert(format!("/v2/x/blobs/{}", blob.digest()), Reply::ok(blob));
    }
    replies
}

fn serve(stream: TcpStream, handler: &Handler, record: &Mutex<Vec<Request>>) {
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        record.lock().unwrap().push(request.clone());
        let reply = handler(&request);
        let stream = reader.get_mut();
        // A client that has heard enough closes the connection: that is for the test to judge.
        let keeps = match reply {
            Reply::Full(status, headers, body) => {
                let length = ("Content-Length".to_owned(), body.len().to_string());
                let headers: Vec<_> = headers.into_iter().chain([length]).collect();
                stream
                    .write_all(&head(status, &headers))
                    .and_then(|()| stream.write_all(&body))
            }
            .is_ok(),
            Reply::Unmeasured(status, mut headers, body) => {
                headers.push(("Connection".into(), "close".into()));
                let _ = stream.write_all(&head(status, &headers));
                let _ = stream.write_all(&body);
                false
            }
            Reply::Announced(length, body) => {
                let headers = [("Content-Length".to_owned(), length.to_string())];
                let _ = stream.write_all(&head(200, &headers));
                stream.write_all(&body).is_ok()
            }
            Reply::Endless => {
                let headers = [("Connection".to_owned(), "close".to_owned())];
                let mut alive = stream.write_all(&head(200, &headers));
                while alive.is_ok() {
                    alive = stream.write_all(&[0; 64 << 10]);
                }
                false
            }
            Reply::Cut(length, body) => {
                let headers = [("Content-Length".to_owned(), length.to_string())];
                let _ = stream.write_all(&head(200, &headers));
                let _ = stream.write_all(&body);
                false
            }
        };
        if !keeps {
            return;
        }
    }
}

fn head(status: u16, headers: &[(String, String)]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.by_ref().take(16 << 10).read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut authorization = None;
    loop {
        let mut header = String::new();
        if reader.by_ref().take(16 << 10).read_line(&mut header).ok()? == 0 {
            return None;
        }
        match header.trim().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                authorization = Some(value.trim().to_owned());
            }
            Some(_) => {}
            None => {
                return Some(Request {
                    path,
                    authorization,
                });
            }
        }
    }
}
