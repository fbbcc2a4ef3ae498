//! What else runs a command in an image, from Debian: bubblewrap, Charliecloud, crun and podman.
//!
//! Each is called by alice, with the options that make it do least, on the directory from which
//! the sample image was made; where it can, also on the squashfs file.

use std::cell::Cell;
use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use shifter_tests::call::Call;
use shifter_tests::report;
use shifter_tests::world::User;

use crate::program::Program;
use crate::site::{MOUNTED, Site, TREE, UID};

/// bubblewrap on the directory.
pub const BWRAP: &str = "bwrap on a directory";

/// Charliecloud on the directory.
pub const CH_RUN: &str = "ch-run on a directory";

/// Where alice's session keeps sockets and process ids.
pub const RUNTIME_DIR: &str = "/run/user-alice";

const BUNDLE: &str = "/tmp/bench/bundle";
const FUSE: &str = "/tmp/bench/fuse";

/// A peer that works here.
pub struct Peer<'a> {
    /// What it is called in tables.
    pub name: &'static str,
    /// How it starts commands.
    pub program: Program<'a>,
}

/// Returns the peers that work here, and says of the others why not. The image must be mounted
/// for those that need it.
pub fn all(site: &Site) -> Result<Vec<Peer<'_>>> {
    let squashfs = site.image.file.clone();
    let ch_run = move |command: &[&str]| Ok(words(&["ch-run", &squashfs, "--"], command));
    let mut peers = light()?;
    peers.extend(proved(vec![
        ("bwrap on a mounted image", bwrap(MOUNTED), UID),
        (
            "ch-run on a squashfs file",
            Program::with(ch_run, true),
            UID,
        ),
        ("crun on a directory, rootless", crun(), 0),
        ("podman on a directory, rootless", podman(), 0),
    ]));
    Ok(peers)
}

/// Returns those on the directory that do least.
pub fn light() -> Result<Vec<Peer<'static>>> {
    prepare()?;
    Ok(proved(vec![
        (BWRAP, bwrap(TREE), UID),
        (CH_RUN, Program::of_user(&["ch-run", TREE, "--"]), UID),
    ]))
}

/// Ends what podman leaves running for the user, a process that holds every mount there was, and
/// gives the FUSE device back.
pub fn settle() -> Result<()> {
    let migrate = "! command -v podman >/dev/null || podman system migrate";
    if fs::exists(FUSE)? {
        Call::shell("umount /dev/fuse").ok()?;
        fs::remove_file(FUSE)?;
    }
    Call::shell(migrate)
        .by(User::Alice)
        .env("XDG_RUNTIME_DIR", RUNTIME_DIR)
        .ok()
        .map(drop)
}

fn proved<'a>(found: Vec<(&'static str, Program<'a>, u32)>) -> Vec<Peer<'a>> {
    let mut peers = Vec::new();
    for (name, program, uid) in found {
        match program.prove(uid) {
            Ok(()) => peers.push(Peer { name, program }),
            Err(reason) => report::line(&format!("{name}: does not work here: {reason:#}")),
        }
    }
    peers
}

/// Makes what they need of the machine: a FUSE device for users, subordinate ids, directories.
fn prepare() -> Result<()> {
    if fs::exists(FUSE)? {
        return Ok(());
    }
    // On a node udev makes /dev/fuse so; here this holds in the world only.
    let script = format!(
        "set -e; mknod -m 0666 {FUSE} c 10 229; mount --bind {FUSE} /dev/fuse
        touch /etc/subuid /etc/subgid; for file in /etc/subuid /etc/subgid; do grep -q alice $file || echo alice:100000:65536 >>$file; done
        install -d -o alice -m 0700 {BUNDLE} {RUNTIME_DIR}"
    );
    Call::shell(&script).ok().map(drop)
}

fn bwrap(tree: &'static str) -> Program<'static> {
    let options = [
        "bwrap",
        "--ro-bind",
        tree,
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
    ];
    Program::with(move |command| Ok(words(&options, command)), true)
}

/// crun reads its command from the bundle, so the bundle is written anew, untimed.
fn crun() -> Program<'static> {
    let count = Cell::new(0);
    Program::with(
        move |command| {
            count.set(count.get() + 1);
            let path = format!("{BUNDLE}/config.json");
            if !fs::exists(&path)? {
                Call::new(["crun", "spec", "--rootless"])
                    .by(User::Alice)
                    .cwd(BUNDLE)
                    .ok()?;
            }
            let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
            config["process"]["terminal"] = false.into();
            config["process"]["args"] = command.into();
            config["root"] = json!({"path": TREE, "readonly": true});
            // As the others: the host's network, processes and names.
            let kinds = ["user", "mount"].map(|kind| json!({"type": kind}));
            config["linux"]["namespaces"] = kinds.as_slice().into();
            let ids = json!([{"containerID": 0, "hostID": UID, "size": 1}]);
            config["linux"]["uidMappings"] = ids.clone();
            config["linux"]["gidMappings"] = ids;
            config["linux"]["resources"] = json!({});
            if let Some(config) = config.as_object_mut() {
                config.remove("hostname");
                config.insert("mounts".into(), host_mounts());
            }
            fs::write(&path, config.to_string())?;
            let name = format!("bench{}", count.get());
            let options = [
                "crun",
                "--cgroup-manager=disabled",
                "run",
                "-b",
                BUNDLE,
                &name,
            ];
            Ok(words(&options, &[]))
        },
        true,
    )
}

fn host_mounts() -> Value {
    let bind = |at: &str| json!({"destination": at, "source": at, "options": ["rbind"]});
    ["/proc", "/sys", "/dev"].map(bind).as_slice().into()
}

fn podman() -> Program<'static> {
    let options = [
        "podman",
        "--storage-driver=vfs",
        "--cgroup-manager=cgroupfs",
        "--runtime=crun",
        "--events-backend=none",
        "run",
        "--rm",
        "--network=host",
        "--uts=host",
        "--cgroups=disabled",
        "--log-driver=none",
        "--read-only",
        "--rootfs",
        TREE,
    ];
    Program::with(move |command| Ok(words(&options, command)), true)
}

fn words(first: &[&str], then: &[&str]) -> Vec<String> {
    let all = first.iter().chain(then);
    all.map(|word| (*word).to_owned()).collect()
}
