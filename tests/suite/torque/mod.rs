//! Torque's hooks on several nodes: driven as a mom drives them, fanned out by the tools that sites
//! use, and looked at afterwards.

use std::fs;
use std::sync::MutexGuard;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::image::Recipe;
use shifter_tests::mom::{self, Hook, HookEnd, Manner};
use shifter_tests::product::Product;
use shifter_tests::sandbox::{Sandbox, Sandboxes};
use shifter_tests::snapshot::Snapshot;
use shifter_tests::torque::{Server, TorqueJob};

use crate::bench::turn;
use crate::node::{image_id, store_image};

mod alps;
mod conventions;
mod driver;
mod failures;
mod filter;
mod hygiene;
mod jobs;
mod late;
mod ldap;
mod openpbs;
mod secure;
mod services;

/// What most tests fan out with: real pdsh over real ssh.
const PDSH: &str = "['/usr/bin/pdsh', '-R', 'exec', '-f', '{width}', '-w', '^{nodefile}', \
                    '/usr/bin/ssh', '%h', '{command}']";

/// The directory that all nodes share for what they tell each other.
const SHARED: &str = "/scratch/.state";

/// Where a launch node keeps what it knows of its jobs.
const STATE: &str = "/var/lib/shifter/torque";

/// The hooks that a mom has of ours.
const HOOKS: [(&str, &str); 2] = [
    ("prologue", "/opt/shifter/sbin/shifter-prologue"),
    ("epilogue", "/opt/shifter/sbin/shifter-epilogue"),
];

/// A Torque site whose store holds the image `tiny:latest`.
struct Site {
    nodes: Sandboxes,
    server: Server,
    product: Product,
    clean: Snapshot,
    _turn: MutexGuard<'static, ()>,
}

impl Site {
    /// Starts a site with nodes t1, t2, …, and pdsh.
    fn start(count: usize) -> Result<Self> {
        Self::start_with(count, &format!("fanout_command = {PDSH}"))
    }

    /// Starts one with these lines below `[torque]`.
    fn start_with(count: usize, lines: &str) -> Result<Self> {
        let names = numbered(count);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Self::start_named(&names, lines)
    }

    /// Starts one with nodes of these names.
    fn start_named(names: &[&str], lines: &str) -> Result<Self> {
        let turn = turn()?;
        let product = prepare()?;
        configure(product, lines)?;
        let server = Server::install()?;
        let nodes = named_nodes(names, &HOOKS)?;
        let clean = Snapshot::take_at(&nodes.places())?;
        Ok(Self {
            nodes,
            server,
            product,
            clean,
            _turn: turn,
        })
    }

    /// Runs the prologue of a job on its first node.
    fn begin(&self, job: &TorqueJob) -> Result<HookEnd> {
        self.server.knows(job)?;
        self.hook(Hook::Prologue, job, Manner::default())
    }

    /// Runs its epilogue.
    fn end(&self, job: &TorqueJob) -> Result<HookEnd> {
        self.hook(Hook::Epilogue, job, Manner::default())
    }

    /// Runs a hook on its first node.
    fn hook(&self, hook: Hook, job: &TorqueJob, manner: Manner) -> Result<HookEnd> {
        mom::run(self.nodes.node(&job.nodes[0].0)?, hook, job, manner)
    }

    /// Returns what a script says that runs as root in a job's container on a node.
    fn look(&self, node: &str, job: &TorqueJob, script: &str) -> Result<String> {
        let pin = format!("--mount=/run/shifter/jobs/{}/roots/job/mnt", job.id);
        let argv = ["nsenter", &*pin, "/bin/sh", "-c", script];
        self.nodes.node(node)?.call(argv).ok()
    }

    /// Returns the command that runs another one in a job's container, as alice: what an ssh session
    /// leaves, no child of the batch system's.
    fn within(&self, job: &TorqueJob, command: &str) -> String {
        let pin = format!("/run/shifter/jobs/{}/roots/job/mnt", job.id);
        format!("nsenter --mount={pin} --setgid 2001 --setuid 2001 {command}")
    }

    /// Starts a command in the background of a node, waits until it is alice's and in a container,
    /// and returns its directory in /proc.
    fn leave(&self, node: &str, command: &str) -> Result<String> {
        let node = self.nodes.node(node)?;
        let script = format!("setsid {command} >/dev/null 2>&1 </dev/null & echo $!");
        let dir = format!("/proc/{}", node.shell(&script).ok()?.trim());
        let own = fs::read_link(node.path("/proc/1/ns/mnt"))?;
        wait_for(&format!("'{command}' in its container"), 20, || {
            let path = node.path(&dir);
            let namespace = fs::read_link(format!("{path}/ns/mnt"))?;
            let status = fs::read_to_string(format!("{path}/status"))?;
            let is_there = namespace != own && status.contains("\nUid:\t2001\t2001\t");
            Ok(is_there.then(|| dir.clone()))
        })
    }

    /// Fails unless every node of a job has its container, or none has.
    fn ensure_ready(&self, job: &TorqueJob, is_ready: bool) -> Result<()> {
        for (name, _) in &job.nodes {
            let pin = format!("/run/shifter/jobs/{}/roots/job/mnt", job.id);
            let there = fs::exists(self.nodes.node(name)?.path(&pin))?;
            ensure!(there == is_ready, "{name}: {pin}: {there}");
        }
        Ok(())
    }

    /// Fails unless every node holds just what it held at the beginning, and neither launch nodes
    /// nor the shared directory know of any job.
    fn ensure_clean(&self) -> Result<()> {
        self.clean.ensure_restored_at(&self.nodes.places())?;
        let mut places = vec![format!("{SHARED}/testbed")];
        for node in self.nodes.nodes() {
            places.push(node.path(&format!("{STATE}/jobs")));
            places.push(node.path(&format!("{STATE}/left")));
        }
        for place in places {
            let found = Call::new(["find", &*place, "-mindepth", "1"])
                .args(["!", "-path", "*/left/lock", "!", "-path", "*/left/nodes"])
                .output()?
                .stdout;
            ensure!(found.is_empty(), "left behind:\n{found}");
        }
        Ok(())
    }
}

/// Installs the product and puts the image into the store.
fn prepare() -> Result<Product> {
    let product = Product::install()?;
    let tree = Recipe::tiny("tiny").build()?.layout().join("tree");
    store_image(&tree, &image_id(), "tiny")?;
    Call::shell(&format!("rm -rf {SHARED}; install -d -m 0700 {SHARED}")).ok()?;
    Ok(product)
}

/// Configures the site with these lines below `[torque]`.
fn configure(product: Product, lines: &str) -> Result<()> {
    product.configure(&torque_lines(lines))
}

fn torque_lines(lines: &str) -> String {
    format!(
        "[shared_state]\npath = '{SHARED}'\n\
         [torque]\ngres = ['shifter16']\nqstat = '/opt/torque/bin/qstat'\n\
         qalter = '/opt/torque/bin/qalter'\nrequeue_pause_secs = 0\n{lines}"
    )
}

/// Runs a hook on a node without anything out of the ordinary.
fn run(node: &Sandbox, hook: Hook, job: &TorqueJob) -> Result<HookEnd> {
    mom::run(node, hook, job, Manner::default())
}

/// Starts nodes t1, t2, … with a mom each that has these hooks.
fn nodes(count: usize, hooks: &[(&str, &str)]) -> Result<Sandboxes> {
    let names = numbered(count);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    named_nodes(&names, hooks)
}

fn numbered(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("t{number}")).collect()
}

fn named_nodes(names: &[&str], hooks: &[(&str, &str)]) -> Result<Sandboxes> {
    let nodes = Sandboxes::start(names)?;
    for node in nodes.nodes() {
        mom::install(node, hooks)?;
    }
    Ok(nodes)
}
