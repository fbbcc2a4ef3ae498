//! ssh between the nodes of a job: what its root holds for that. How the server is started is in
//! [`start`], and what it is in the crate udi-image.
//!
//! ```text
//! /etc/ssh/ssh_config            how to reach the job's nodes, then what the image says there
//! /etc/ssh/shifter/              the user's alone
//!   id_ed25519, id_ed25519.pub   the job's key
//!   host_key                     the key by which its nodes are known
//!   known_hosts                  the same, its public half
//! ```
//!
//! The files lie on the root's tmpfs, and nobody writes there any more once it is built. The
//! server reads them as the user: nothing in them is a secret from the user.

mod cgroup;
pub mod keys;
pub mod start;

use std::fs::File;
use std::io::Read;

use rustix::fs::{Access, OFlags};
use shifter_core::env::Pair;
use shifter_core::ssh::JobKeys;

use crate::error::Result;
use crate::image::ImageTree;
use crate::layer::Layer;
use crate::mnt;
use crate::modules::place::UDI_IMAGE;
use crate::root::RootRequest;

const DIR: &str = "/etc/ssh";
const CONFIG: &str = "/etc/ssh/ssh_config";
const KEYS: &str = "/etc/ssh/shifter";
const KEY: &str = "/etc/ssh/shifter/id_ed25519";
const PUBLIC_KEY: &str = "/etc/ssh/shifter/id_ed25519.pub";
const HOST_KEY: &str = "/etc/ssh/shifter/host_key";
const KNOWN_HOSTS: &str = "/etc/ssh/shifter/known_hosts";

/// The one name by which all nodes of a job are known: they have one key.
const ALIAS: &str = "shifter-job";

/// Bytes of an image's own ssh_config that are kept.
const CONFIG_LIMIT: u64 = 64 << 10;

/// Bytes of node names on one line: some clients read lines of 1024.
const LINE_LIMIT: usize = 800;

/// Writes what a root needs for ssh into the layer.
pub fn give_files(
    keys: &JobKeys,
    request: &RootRequest<'_>,
    image: &ImageTree,
    layer: &mut Layer<'_>,
) -> Result<()> {
    let (uid, gid) = (request.user.uid, request.user.gid);
    // As open as everywhere, whatever the image has there: its programs must find the file.
    layer.own_dir(DIR, 0o755, 0, 0)?;
    layer.own_dir(KEYS, 0o700, uid, gid)?;
    let mut config = client_config(request).into_bytes();
    config.extend(images_config(image));
    layer.file(CONFIG, &config, 0o644)?;
    let known = format!("{ALIAS} {}\n", keys.host.public);
    let public = format!("{}\n", keys.user.public);
    for (path, text) in [
        (KEY, &keys.user.private),
        (PUBLIC_KEY, &public),
        (HOST_KEY, &keys.host.private),
        (KNOWN_HOSTS, &known),
    ] {
        layer.file(path, text.as_bytes(), 0o600)?;
        layer.give(path, uid, gid)?;
    }
    Ok(())
}

/// Writes how the job's nodes are reached, in what every OpenSSH understands; other hosts stay
/// what they are.
fn client_config(request: &RootRequest<'_>) -> String {
    // Without it a client takes the same name from /etc/passwd; what would need quotes stays there.
    let name = &request.user.name;
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let user = match name.bytes().all(is_plain) {
        true => format!("    User {name}\n"),
        false => String::new(),
    };
    let mut text = String::from("# The nodes of this job.\n");
    let mut names = request.hosts.iter().map(|host| host.name.as_str());
    let mut next = names.next();
    while let Some(first) = next {
        let mut line = format!("Host {first}");
        next = names.next();
        while let Some(name) = next.filter(|name| line.len() + name.len() < LINE_LIMIT) {
            line.push(' ');
            line.push_str(name);
            next = names.next();
        }
        let port = request.config.ssh.port;
        text += &format!(
            "{line}\n    Port {port}\n{user}    IdentityFile {KEY}\n    \
             IdentitiesOnly yes\n    UserKnownHostsFile {KNOWN_HOSTS}\n    HostKeyAlias {ALIAS}\n    \
             CheckHostIP no\n    StrictHostKeyChecking yes\n    PreferredAuthentications publickey\n    \
             BatchMode yes\n    ForwardAgent no\n    ForwardX11 no\n"
        );
    }
    // What comes first in an image's file is meant for every host.
    text + "\n# As in the image.\nHost *\n"
}

/// Reads what the image itself says of ssh, as far as it can be read.
fn images_config(image: &ImageTree) -> Vec<u8> {
    let mut bytes = Vec::new();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let Ok(file) = mnt::open_inside(&image.dir, CONFIG, flags).map(File::from) else {
        return bytes;
    };
    let is_file = file.metadata().is_ok_and(|meta| meta.is_file());
    if is_file && file.take(CONFIG_LIMIT).read_to_end(&mut bytes).is_err() {
        bytes.clear();
    }
    bytes
}

/// Completes the environment of a command in a container whose nodes reach one another by ssh:
/// a client for images that have none, and launchers of MPI that use it although they see a job
/// of Slurm's: the srun of an image, if it has one, reaches no munge.
pub fn complete_environment(environment: &mut Vec<Pair>) {
    if rustix::fs::access(KEY, Access::READ_OK).is_err() {
        return;
    }
    let ours = format!("{UDI_IMAGE}/bin").into_bytes();
    let path = environment.iter_mut().find(|(name, _)| name == b"PATH");
    if let Some((_, path)) = path
        && !path.split(|byte| *byte == b':').any(|dir| dir == ours)
    {
        path.push(b':');
        path.extend(ours);
    }
    for (name, value) in [
        ("OMPI_MCA_plm", "rsh"),
        ("PRTE_MCA_plm", "ssh"),
        ("HYDRA_LAUNCHER", "ssh"),
        ("I_MPI_HYDRA_BOOTSTRAP", "ssh"),
    ] {
        if !environment
            .iter()
            .any(|(known, _)| known == name.as_bytes())
        {
            environment.push((name.into(), value.into()));
        }
    }
}
