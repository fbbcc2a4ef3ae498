//! The small files that every container is given, as text.

use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use shifter_core::hostlist::HostSlots;
use shifter_core::identity::Identity;
use shifter_core::ids::JobId;

use crate::process::{leave_to_exec, read_at_once};

/// A file to be written: path in the container, content, mode.
pub struct GivenFile {
    /// The path, in `/etc` or `/var`.
    pub path: &'static str,
    /// The content.
    pub bytes: Vec<u8>,
    /// The mode.
    pub mode: u32,
}

const HOST_FILE_LIMIT: usize = 1 << 20;

const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n\
                        networks: files\nservices: files\nprotocols: files\nrpc: files\n\
                        ethers: files\nnetgroup: files\n";

/// Returns the files of /etc: accounts of the user alone, never a password hash, and the
/// host's view of the network.
pub fn etc_files(user: &Identity) -> Vec<GivenFile> {
    let file = |path, bytes: Vec<u8>, mode| GivenFile { path, bytes, mode };
    let mut files = vec![
        file("/etc/passwd", user.passwd_file().into_bytes(), 0o644),
        file("/etc/group", user.group_file().into_bytes(), 0o644),
        file("/etc/shadow", Vec::new(), 0o600),
        file("/etc/nsswitch.conf", NSSWITCH.into(), 0o644),
        file(
            "/etc/host.conf",
            "order bind,hosts\nmulti on\n".into(),
            0o644,
        ),
    ];
    for path in ["/etc/hosts", "/etc/resolv.conf"] {
        files.push(file(path, host_file(path), 0o644));
    }
    files
}

/// Directories that programs expect to find, made where the image has nothing there.
pub const DIRS: [(&str, u32); 4] = [
    ("/etc/udiImage", 0o755),
    ("/var/empty", 0o700),
    ("/var/run", 0o755),
    ("/var/spool", 0o755),
];

/// Returns the files of /var. Those of a job say which one it is, and that it is ready: scripts for
/// the C Shifter, whose set-up goes on while they run, wait for the second.
pub fn var_files(
    hosts: &[HostSlots],
    config: &ShifterConfig<'_>,
    job: Option<&JobId>,
) -> Vec<GivenFile> {
    let file = |path, bytes: Vec<u8>| GivenFile {
        path,
        bytes,
        mode: 0o644,
    };
    let json = serde_json::to_vec(config).unwrap_or_default();
    let mut files = vec![
        file("/var/hostsfile", hostsfile(hosts).into_bytes()),
        file("/var/shifterConfig.json", json),
    ];
    if let Some(job) = job {
        files.push(file("/var/shifterSlurm.jobid", job.as_str().into()));
        files.push(file("/var/shifterExtern.complete", Vec::new()));
    }
    files
}

/// `/var/shifterConfig.json`, as tools written for the C Shifter read it.
#[derive(Serialize)]
pub struct ShifterConfig<'a> {
    /// The image's id.
    pub identifier: &'a str,
    /// The user's name.
    pub user: &'a str,
    /// The volumes' canonical signature.
    #[serde(rename = "volMap")]
    pub vol_map: &'a str,
    /// The modules, joined by commas.
    pub modules: &'a str,
}

/// One line per task slot, as PBS_NODEFILE has it.
fn hostsfile(hosts: &[HostSlots]) -> String {
    let mut text = String::new();
    for host in hosts {
        for _ in 0..host.slots {
            text.push_str(&host.name);
            text.push('\n');
        }
    }
    text
}

/// Reads a file of the host; a missing one is an empty one, as for the C library.
fn host_file(path: &str) -> Vec<u8> {
    // Not waited for, whatever lies there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else {
        return Vec::new();
    };
    let bytes = read_at_once(&file, HOST_FILE_LIMIT);
    leave_to_exec(file);
    bytes.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostsfile_has_a_line_per_slot() {
        let hosts = [
            HostSlots {
                name: "n1".into(),
                slots: 2,
            },
            HostSlots {
                name: "n2".into(),
                slots: 1,
            },
        ];
        assert_eq!(hostsfile(&hosts), "n1\nn1\nn2\n");
    }

    #[test]
    fn shadow_is_empty_and_private() {
        let user = Identity::from_passwd_line("a:$6$hash:5:5:g:/h:/s", 5).unwrap();
        let files = etc_files(&user);
        let shadow = files.iter().find(|f| f.path == "/etc/shadow").unwrap();
        assert_eq!((shadow.bytes.len(), shadow.mode), (0, 0o600));
        assert!(
            files
                .iter()
                .all(|f| !String::from_utf8_lossy(&f.bytes).contains("$6$"))
        );
    }
}
