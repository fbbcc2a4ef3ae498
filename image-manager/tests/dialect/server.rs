//! The server: a thread per connection, and a record of every request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::reply::Reply;

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// `http://host:port` before the path, as a proxy is told.
    pub origin: Option<String>,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// Which connection it came by.
    pub connection: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    /// The path without the query.
    pub fn bare(&self) -> &str {
        self.path.split('?').next().unwrap()
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server; its threads end with the process.
#[derive(Clone)]
pub struct Server {
    /// `127.0.0.1:PORT`.
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server that asks `handler` for every answer.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", handler)
    }

    /// Starts one at this address.
    pub fn start_at(
        address: &str,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (handler, record): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&requests));
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().flatten().enumerate() {
                let (handler, record) = (Arc::clone(&handler), Arc::clone(&record));
                std::thread::spawn(move || serve(plain(stream), connection, &*handler, &record));
            }
        });
        Self { address, requests }
    }

    /// Starts one that speaks TLS with `cert.pem` and `key.pem` of a directory.
    pub fn tls(dir: &Path, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let chain = CertificateDer::pem_file_iter(dir.join("cert.pem")).unwrap();
        let chain = chain.map(|certificate| certificate.unwrap()).collect();
        let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (handler, record): (Arc<Handler>, _) = (Arc::new(handler), Arc::clone(&requests));
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().flatten().enumerate() {
                let (handler, record) = (Arc::clone(&handler), Arc::clone(&record));
                let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
                let stream = StreamOwned::new(tls, plain(stream));
                std::thread::spawn(move || serve(stream, connection, &*handler, &record));
            }
        });
        Self { address, requests }
    }

    /// Starts a server whose handler knows its own address, to name it in an answer.
    pub fn with_address(handler: impl Fn(&str, &Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(move |request| {
            let address = request.header("host").unwrap_or_default().to_owned();
            handler(&address, request)
        })
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The paths that were asked for, in order.
    pub fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|r| r.path).collect()
    }

    /// How many requests had a path with this in it.
    pub fn count(&self, part: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.path.contains(part))
            .count()
    }
}

pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn plain(stream: TcpStream) -> TcpStream {
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn serve(stream: impl Stream, connection: usize, handler: &Handler, record: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream);
    while let Some(mut request) = read_request(&mut reader) {
        request.connection = connection;
        record.lock().unwrap().push(request.clone());
        let reply = handler(&request);
        // A client that has heard enough closes the connection: that is for the test to judge.
        if !reply.write(reader.get_mut()).unwrap_or(false) {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.by_ref().take(16 << 10).read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let mut request = Request {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        ..Request::default()
    };
    if let Some(rest) = request.path.strip_prefix("http://") {
        let (authority, path) = rest.split_once('/')?;
        request.origin = Some(format!("http://{authority}"));
        request.path = format!("/{path}");
    }
    loop {
        let mut header = String::new();
        if reader.by_ref().take(16 << 10).read_line(&mut header).ok()? == 0 {
            return None;
        }
        let Some((name, value)) = header.trim().split_once(':') else {
            break;
        };
        request.headers.push((name.into(), value.trim().into()));
    }
    let length = request
        .header("content-length")
        .and_then(|t| t.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    request.body = String::from_utf8(body).ok()?;
    Some(request)
}
