//! The programs: those of Shifter with the owner and mode that each must have, and those of the
//! system that the configuration needs.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use shifter_core::config::{Config, UserImages};
use shifter_core::layout::Program;
use shifter_core::volmap::CacheFs;

use crate::finding::Finding;
use crate::look;

/// Every program of a node and the mode it must have.
const MODES: [(Program, u32); 7] = [
    (Program::Shifter, 0o4755),
    (Program::SetupRoot, 0o700),
    (Program::UnsetupRoot, 0o700),
    (Program::StartSshd, 0o700),
    (Program::Identity, 0o700),
    (Program::SshKeys, 0o755),
    (Program::Shifterimg, 0o755),
];

pub(super) fn check(prefix: &Path, config: &Config) -> Vec<Finding> {
    let mounts = look::text("/proc/self/mountinfo");
    let mut findings: Vec<Finding> = MODES
        .into_iter()
        .map(|(program, mode)| own(&program.path(prefix), mode, &mounts))
        .collect();
    findings.extend(of_the_system(config));
    findings
}

fn own(path: &Path, mode: u32, mounts: &str) -> Finding {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let check = format!("program.{name}");
    if let Err((message, hint)) = look::trust(path, &[]) {
        let hint = if path.exists() {
            hint
        } else {
            "install Shifter's packages, or correct 'prefix' in the configuration".into()
        };
        return Finding::error(check, message, hint);
    }
    let Ok(meta) = path.metadata() else {
        return Finding::warning(check, "not checked: needs root", "run this as root");
    };
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    judge(&check, &real, &meta, mode, mounts)
}

fn judge(check: &str, path: &Path, meta: &Metadata, mode: u32, mounts: &str) -> Finding {
    let shown = path.display();
    let found = meta.mode() & 0o7777;
    let way_out = format!("chown root '{shown}' && chmod {mode:04o} '{shown}'");
    if !meta.is_file() {
        return Finding::error(
            check,
            format!("'{shown}' is not a file"),
            "install it again",
        );
    }
    if meta.uid() != 0 || found != mode {
        let message = format!(
            "'{shown}' has mode {found:04o} and owner {}; it must have {mode:04o} and root",
            meta.uid()
        );
        return Finding::error(check, message, way_out);
    }
    if mode & 0o4000 != 0 && is_nosuid(path, mounts) {
        return Finding::error(
            check,
            format!("'{shown}' is on a file system that is mounted nosuid"),
            "install it elsewhere, or mount that file system without nosuid",
        );
    }
    Finding::ok(check, format!("'{shown}' has mode {mode:04o}"))
}

/// True if the mount that a path is on forbids set-user-id programs.
fn is_nosuid(path: &Path, mountinfo: &str) -> bool {
    let mount = |line: &str| -> Option<(usize, bool)> {
        let fields: Vec<&str> = line.split(' ').collect();
        let at = fields.get(4)?.replace("\\040", " ");
        let is_nosuid = fields.get(5)?.split(',').any(|option| option == "nosuid");
        path.starts_with(&at).then_some((at.len(), is_nosuid))
    };
    // The longest one; of several at one place the last covers the others.
    let found = mountinfo.lines().filter_map(mount);
    found
        .max_by_key(|(length, _)| *length)
        .is_some_and(|(_, is_nosuid)| is_nosuid)
}

fn of_the_system(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if config.store.user_images == UserImages::Fuse {
        findings.push(match look::program(&["squashfuse", "squashfuse_ll"]) {
            Some(path) => Finding::ok("program.squashfuse", format!("'{}'", path.display())),
            None => Finding::warning(
                "program.squashfuse",
                "it is not installed; users' own images cannot be run",
                "install the package squashfuse, or set store.user_images = \"no\"",
            ),
        });
    }
    for (fs, name, package) in [
        (CacheFs::Xfs, "mkfs.xfs", "xfsprogs"),
        (CacheFs::Ext4, "mkfs.ext4", "e2fsprogs"),
    ] {
        let mut caches = config.per_node_cache.values();
        if !caches.any(|cache| cache.fs_types.contains(&fs)) {
            continue;
        }
        let check = format!("program.{name}");
        findings.push(match look::program(&[name]) {
            Some(path) => Finding::ok(check, format!("'{}'", path.display())),
            None => Finding::error(
                check,
                "it is not installed; per-node caches cannot be made",
                format!(
                    "install the package {package}, or take {} out of fs_types",
                    fs.as_str()
                ),
            ),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;

    #[test]
    fn the_mount_of_a_path() {
        let mounts = "1 0 8:1 / / rw - ext4 x rw\n\
                      2 1 8:2 / /opt rw,nosuid,nodev - ext4 y rw\n\
                      3 2 8:3 / /opt/my\\040apps rw - ext4 z rw\n";
        for (path, expect) in [
            ("/usr/bin/shifter", false),
            ("/opt/bin/shifter", true),
            ("/optional/shifter", false),
            ("/opt/my apps/shifter", false),
        ] {
            assert_eq!(is_nosuid(Path::new(path), mounts), expect, "{path}");
        }
        let covered = format!("{mounts}4 1 8:4 / /opt rw - ext4 w rw\n");
        assert!(!is_nosuid(Path::new("/opt/bin/shifter"), &covered));
        assert!(!is_nosuid(Path::new("/x"), ""));
    }

    #[test]
    fn modes() {
        let path = Path::new("/usr/bin/env");
        let meta = path.metadata().unwrap();
        let state = |mode, mounts| judge("x", path, &meta, mode, mounts).state;
        assert_eq!(state(0o755, ""), State::Ok);
        assert_eq!(state(0o4755, ""), State::Error);
        let dir = Path::new("/usr").metadata().unwrap();
        assert_eq!(judge("x", path, &dir, 0o755, "").state, State::Error);
        let missing = own(Path::new("/no/such/shifter"), 0o755, "");
        assert!(missing.hint.unwrap().contains("install"));
    }

    #[test]
    fn programs_of_the_system_are_those_that_the_configuration_needs() {
        let mut config = Config::default();
        config.store.user_images = UserImages::No;
        assert_eq!(of_the_system(&config), []);
        let text = "[per_node_cache.'/s']\ndir = '/s/c'\nfs_types = ['ext4']\n";
        let config = Config::parse(text, Path::new("x")).unwrap();
        let checks: Vec<String> = of_the_system(&config)
            .into_iter()
            .map(|f| f.check)
            .collect();
        assert_eq!(checks, ["program.squashfuse", "program.mkfs.ext4"]);
    }
}
