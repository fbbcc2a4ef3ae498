//! A registry on loopback: Debian's docker-registry, with its files in memory.

use std::process::Child;

use anyhow::{Context, Result};

use crate::call::{Call, wait_for};
use crate::image::Image;

const DIR: &str = "/var/lib/shifter/registry";

/// Alice's password where one is needed: a word that nothing else contains.
pub const SECRET: &str = "Kp5-never-in-sight-4711";

/// The same as the registry keeps it.
const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuu0qxEyLzPpMzQTkm.YM7sKDAJ.4ctruq";

/// A registry that runs until it is dropped.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    child: Child,
}

impl Registry {
    /// Starts a registry; in a world of its own every port is free.
    pub fn start(port: u16) -> Result<Self> {
        Self::start_on(port, &format!("{DIR}-{port}"), "")
    }

    /// Starts a registry that answers only alice, who says [`SECRET`].
    pub fn start_with_login(port: u16) -> Result<Self> {
        let files = format!("{DIR}-{port}");
        std::fs::create_dir_all(&files)?;
        let passwords = format!("{files}/htpasswd");
        std::fs::write(&passwords, format!("alice:{BCRYPT}\n"))?;
        let auth = format!("\nauth: {{ htpasswd: {{ realm: test, path: {passwords} }} }}");
        Self::start_with(port, &files, "", &auth)
    }

    /// Starts a registry with its files, or those of another one, below `files`; `http` is more of
    /// that section of its configuration, as TLS.
    pub fn start_on(port: u16, files: &str, http: &str) -> Result<Self> {
        Self::start_with(port, files, http, "")
    }

    fn start_with(port: u16, files: &str, http: &str, more: &str) -> Result<Self> {
        let dir = format!("{DIR}-{port}");
        std::fs::create_dir_all(&dir)?;
        std::fs::create_dir_all(files)?;
        let config = format!("{dir}/config.yml");
        let text = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {files} }}, delete: {{ enabled: true }} }}\n\
             http: {{ addr: '127.0.0.1:{port}' {http} }}{more}\n"
        );
        std::fs::write(&config, text)?;
        let serve = Call::new(["docker-registry", "serve", &config]).timeout(0);
        let registry = Self {
            port,
            child: serve.start(&format!("{dir}/log"))?,
        };
        let address = registry.address();
        wait_for("the registry", 10, || {
            Ok(std::net::TcpStream::connect(&address).ok().map(drop))
        })
        .with_context(|| std::fs::read_to_string(format!("{dir}/log")).unwrap_or_default())?;
        Ok(registry)
    }

    /// Returns `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the reference under which an image pushed as `name:tag` is pulled.
    pub fn reference(&self, name: &str) -> String {
        format!("docker:{}/{name}", self.address())
    }

    /// Uploads an image as `name:tag` and returns its reference.
    pub fn push(&self, image: &Image, name: &str) -> Result<String> {
        let to = format!("docker://{}/{name}", self.address());
        Call::new([
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ])
        .arg(format!("oci:{}", image.layout().display()))
        .arg(to)
        .ok()?;
        Ok(self.reference(name))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
