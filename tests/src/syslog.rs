//! A node's system log: whoever listens at `/dev/log`, and what came there.

use std::fs;
use std::process::Child;

use anyhow::{Context, Result};

use crate::call::{Call, wait_for};

const LISTEN: &str = "
import socket, sys
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind('/dev/log')
print('listening', flush=True)
while True:
    print(log.recv(65536).decode(), flush=True)
";

/// The machine's own /dev is left alone: the node gets an overlay.
const HIDE: &str = "
mkdir /run/dev; mount -t tmpfs tmpfs /run/dev; mkdir /run/dev/upper /run/dev/work
mount -t overlay -o lowerdir=/dev,upperdir=/run/dev/upper,workdir=/run/dev/work overlay /dev
rm -f /dev/log";

/// A system log of a node, until it is dropped.
#[derive(Debug)]
pub struct Syslog {
    file: String,
    daemon: Child,
}

impl Syslog {
    /// Starts it on the node where `shell` runs scripts as root; `file` keeps what it hears.
    pub fn start(shell: impl Fn(&str) -> Call, file: &str) -> Result<Self> {
        shell(HIDE).ok()?;
        let listen = shell("exec /usr/bin/python3 -c \"$LISTEN\"");
        let daemon = listen.env("LISTEN", LISTEN).timeout(0).start(file)?;
        let log = Self {
            file: file.to_owned(),
            daemon,
        };
        wait_for("a system log", 10, || {
            Ok((log.text()? == "listening\n").then_some(()))
        })?;
        Ok(log)
    }

    /// Returns all that came, a line each.
    pub fn text(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.file)?)
    }

    /// Waits for a line with these words in it and returns it.
    pub fn line(&self, words: &str) -> Result<String> {
        let found = || {
            let text = self.text()?;
            let line = text.lines().find(|line| line.contains(words));
            Ok(line.map(str::to_owned))
        };
        wait_for(words, 10, found).with_context(|| self.text().unwrap_or_default())
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
