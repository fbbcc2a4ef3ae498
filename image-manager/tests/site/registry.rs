//! Debian's docker-registry, one process per test, on a port of the loopback interface.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::image::{Blob, Image};

const PROGRAM: &str = "/usr/bin/docker-registry";

/// A running registry; it ends with the value.
pub struct Registry {
    process: Child,
    pub address: String,
    temp: tempfile::TempDir,
    authorization: Option<String>,
    scheme: &'static str,
}

impl Registry {
    /// Starts a registry that serves everybody.
    pub fn start() -> Self {
        Self::with("", "", None)
    }

    /// Starts one that demands the login alice with the password secret.
    pub fn with_login() -> Self {
        // alice:secret, bcrypt with cost 4.
        const LINE: &str = "alice:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";
        let basic = "Basic YWxpY2U6c2VjcmV0".to_owned();
        let auth = "auth:\n  htpasswd:\n    realm: test\n    path: DIR/htpasswd\n";
        Self::with_files(auth, "", Some(basic), |dir| {
            fs::write(dir.join("htpasswd"), LINE).unwrap();
        })
    }

    /// Starts one that speaks TLS with this certificate and key.
    pub fn with_tls(certificate: &Path, key: &Path) -> Self {
        let (certificate, key) = (certificate.display(), key.display());
        let tls = format!("  tls:\n    certificate: {certificate}\n    key: {key}\n");
        Self::with("", &tls, None)
    }

    fn with(sections: &str, http: &str, authorization: Option<String>) -> Self {
        Self::with_files(sections, http, authorization, |_| {})
    }

    fn with_files(
        sections: &str,
        http: &str,
        authorization: Option<String>,
        prepare: impl Fn(&Path),
    ) -> Self {
        // The port is free when it is asked for and may be taken when it is used: try again then.
        for _ in 0..5 {
            let temp = tempfile::tempdir().unwrap();
            prepare(temp.path());
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let address = format!("127.0.0.1:{port}");
            let dir = temp.path().display().to_string();
            let config = format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
                 rootdirectory: {dir}/data\n{}http:\n  addr: {address}\n{http}",
                sections.replace("DIR", &dir)
            );
            fs::write(temp.path().join("config.yml"), config).unwrap();
            let log = fs::File::create(temp.path().join("log")).unwrap();
            let process = Command::new(PROGRAM)
                .arg("serve")
                .arg(temp.path().join("config.yml"))
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .expect("docker-registry is installed");
            let scheme = if http.contains("tls:") {
                "https"
            } else {
                "http"
            };
            let authorization = authorization.clone();
            let mut registry = Self {
                process,
                address,
                temp,
                authorization,
                scheme,
            };
            if registry.is_up() {
                return registry;
            }
        }
        panic!("docker-registry does not start");
    }

    fn is_up(&mut self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(10) {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(&self.address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Pushes an image; `name` is `repository:tag`, and the reference is returned.
    pub fn push(&self, name: &str, image: &Image) -> String {
        let (repository, _) = name.split_once(':').unwrap();
        for blob in image.blobs() {
            self.push_blob(repository, blob);
        }
        self.push_manifest(name, &image.manifest)
    }

    /// Pushes an index and the images it names.
    pub fn push_index(&self, name: &str, index: &Blob, images: &[&Image]) -> String {
        let (repository, _) = name.split_once(':').unwrap();
        for (at, image) in images.iter().enumerate() {
            self.push(&format!("{repository}:part{at}"), image);
        }
        self.push_manifest(name, index)
    }

    pub fn push_manifest(&self, name: &str, manifest: &Blob) -> String {
        let (repository, tag) = name.split_once(':').unwrap();
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.url());
        let request = self.agent().put(url).content_type(&manifest.media_type);
        let answer = self.signed(request).send(&manifest.bytes[..]).unwrap();
        assert_eq!(answer.status(), 201);
        format!("{}/{name}", self.address)
    }

    pub fn push_blob(&self, repository: &str, blob: &Blob) {
        let url = format!("{}/v2/{repository}/blobs/uploads/", self.url());
        let answer = self.signed(self.agent().post(url)).send_empty().unwrap();
        let location = answer.headers()["location"].to_str().unwrap();
        let url = format!("{location}&digest={}", blob.digest());
        let request = self
            .agent()
            .put(url)
            .content_type("application/octet-stream");
        assert_eq!(
            self.signed(request).send(&blob.bytes[..]).unwrap().status(),
            201
        );
    }

    fn signed<T>(&self, request: ureq::RequestBuilder<T>) -> ureq::RequestBuilder<T> {
        match &self.authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        }
    }

    fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    fn agent(&self) -> ureq::Agent {
        let tls = ureq::tls::TlsConfig::builder()
            .disable_verification(true)
            .build();
        ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .build()
            .into()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
