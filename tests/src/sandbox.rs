//! Nodes without a batch system, each a machine of its own as far as hooks can tell.
//!
//! A sandbox has mount, UTS and PID namespaces, a host name, `/run`, `/var`, `/tmp` and `/root` of its own;
//! it shares the image store, `/scratch` and what is installed. It is entered as nodes of a site
//! are: through an sshd, at an address of its own on loopback, so that pdsh, clush and ssh reach it
//! from any other sandbox by its name, as root. As on a machine booted by systemd, its mounts are
//! shared.
//!
//! ```text
//! /etc/ssh/testbed_key          the key of every host and of root everywhere
//! 127.0.1.N                     the N-th sandbox
//! ```

use std::fs;
use std::net::TcpStream;
use std::process::Child;

use anyhow::{Context, Result};

use crate::call::{Call, wait_for};
use crate::product::STORE;

const KEY: &str = "/etc/ssh/testbed_key";

const SERVER: &str = "/etc/ssh/testbed_sshd_config";

const CLIENT: &str = "/etc/ssh/ssh_config.d/testbed.conf";

/// Arguments: name, address, image store. It stays process 1, so that orphans are reaped.
const KEEPER: &str = r#"
set -e
hostname "$1"
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/lock /run/sshd
mount -t tmpfs -o mode=0755 tmpfs /mnt
mkdir -p -m 0755 "/mnt${3#/var}" /mnt/cache /mnt/log /mnt/spool
mkdir -m 1777 /mnt/tmp
ln -s /run /mnt/run
mount --bind "$3" "/mnt${3#/var}"
mount --rbind /mnt /var
umount -R /mnt
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=0700 tmpfs /root
mount -t proc -o nosuid,nodev,noexec proc /proc
mount --make-rshared /
/usr/sbin/sshd -D -e -f /etc/ssh/testbed_sshd_config -o "ListenAddress=$2" &
wait
while sleep infinity; do :; done
"#;

/// Several sandboxes, up until they are dropped.
#[derive(Debug)]
pub struct Sandboxes {
    nodes: Vec<Sandbox>,
}

/// One node.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    keeper: Child,
    init: u32,
}

impl Sandboxes {
    /// Starts a node of each name and waits until all can be reached.
    pub fn start(names: &[&str]) -> Result<Self> {
        crate::world::require()?;
        configure(names)?;
        fs::create_dir_all(STORE)?;
        let mut sandboxes = Self { nodes: Vec::new() };
        for (at, name) in names.iter().enumerate() {
            sandboxes.nodes.push(Sandbox::start(name, &address(at))?);
        }
        for (at, node) in sandboxes.nodes.iter_mut().enumerate() {
            let log = log(&node.name);
            let keeper = node.keeper.id();
            // The sshd that answers may still be the one of an earlier sandbox with this address.
            let up = || {
                let init = only_child(keeper).ok();
                Ok(init.filter(|_| TcpStream::connect((address(at), 22)).is_ok()))
            };
            node.init = wait_for(&format!("sshd of {}", node.name), 20, up)
                .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        }
        Ok(sandboxes)
    }

    /// Returns the nodes in the order of their names when they were started.
    pub fn nodes(&self) -> &[Sandbox] {
        &self.nodes
    }

    /// Returns the node of a name.
    pub fn node(&self, name: &str) -> Result<&Sandbox> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.with_context(|| format!("no node {name}"))
    }

    /// Switches a node off, as when its power fails.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.nodes.iter().position(|node| node.name == name);
        drop(
            self.nodes
                .remove(at.with_context(|| format!("no node {name}"))?),
        );
        Ok(())
    }

    /// Returns name and process of each node, for [`crate::snapshot::Snapshot`].
    pub fn places(&self) -> Vec<(String, u32)> {
        let place = |node: &Sandbox| (node.name.clone(), node.init);
        self.nodes.iter().map(place).collect()
    }
}

impl Sandbox {
    fn start(name: &str, address: &str) -> Result<Self> {
        let namespaces = ["-m", "-u", "-p", "--fork", "--kill-child"];
        let keeper = Call::new(["unshare"])
            .args(namespaces)
            .args(["--propagation", "private", "bash", "-c", KEEPER, "keeper"])
            .args([name, address, STORE])
            .cwd("/")
            .timeout(0)
            .start(&log(name))?;
        Ok(Self {
            name: name.into(),
            keeper,
            init: 0,
        })
    }

    /// Returns the node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the node's process 1, by the id it has outside.
    pub fn pid(&self) -> u32 {
        self.init
    }

    /// Returns a path of the node as it is reached from outside.
    pub fn path(&self, path: &str) -> String {
        format!("/proc/{}/root{path}", self.init)
    }

    /// Prepares to run a program on the node, as root.
    pub fn call<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Call {
        Call::new(argv).in_machine_of(self.init).cwd("/")
    }

    /// Prepares to run a shell script on the node, as root.
    pub fn shell(&self, script: &str) -> Call {
        Call::shell(script).in_machine_of(self.init).cwd("/")
    }

    /// Stops or continues every program on the node: it is reached and answers nothing.
    pub fn freeze(&self, is_frozen: bool) -> Result<()> {
        let signal = if is_frozen { "-STOP" } else { "-CONT" };
        // Process 1 cannot be stopped from within; its children are the daemons.
        let script = format!("kill {signal} $(pgrep -P 1)");
        self.shell(&script).ok().map(drop)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // With its process 1 the kernel ends all others; 0 would be our own group.
        if self.init > 0 {
            let _ = Call::new(["kill", "-KILL", &self.init.to_string()]).output();
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn address(at: usize) -> String {
    format!("127.0.1.{}", at + 1)
}

fn log(name: &str) -> String {
    format!("/tmp/sandbox.{name}.log")
}

fn only_child(pid: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let child = children.split_whitespace().next();
    Ok(child.context("a sandbox has ended")?.parse()?)
}

fn configure(names: &[&str]) -> Result<()> {
    if fs::metadata(KEY).is_err() {
        Call::new(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", KEY]).ok()?;
    }
    let server = format!(
        "HostKey {KEY}\nAuthorizedKeysFile {KEY}.pub\nPermitRootLogin yes\nStrictModes no\n\
         UsePAM no\nUseDNS no\nPidFile none\nLogLevel ERROR\nMaxStartups 200\n"
    );
    fs::write(SERVER, server)?;
    let client = format!(
        "Host {}\nIdentityFile {KEY}\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n\
         LogLevel ERROR\nBatchMode yes\n",
        names.join(" ")
    );
    fs::write(CLIENT, client)?;
    let mut hosts = String::new();
    for line in fs::read_to_string("/etc/hosts")?.lines() {
        if !line.starts_with("127.0.1.") {
            hosts += &format!("{line}\n");
        }
    }
    for (at, name) in names.iter().enumerate() {
        hosts += &format!("{} {name}\n", address(at));
    }
    Ok(fs::write("/etc/hosts", hosts)?)
}
