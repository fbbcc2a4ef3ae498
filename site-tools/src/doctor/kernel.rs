//! The kernel: its release, file systems, modules, devices, and what users may do.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use shifter_core::config::{Config, UserImages};
use shifter_core::volmap::CacheFs;

use crate::finding::Finding;
use crate::look;

/// The first release with every call that a root is built with.
const OLDEST: (u32, u32) = (5, 14);

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let release = look::text("/proc/sys/kernel/osrelease").trim().to_owned();
    let modules = Modules::read(&config.kernel.kmod_base_path.join(&release));
    let mut findings = vec![judge_release(&release)];
    findings.extend(file_systems(
        config,
        &look::text("/proc/filesystems"),
        &modules,
    ));
    findings.push(loop_control(
        Path::new("/dev/loop-control").metadata().ok().as_ref(),
        config,
        &modules,
    ));
    for name in &config.kernel.preload {
        findings.push(preload(name, &modules));
    }
    if config.store.user_images == UserImages::Fuse {
        findings.push(fuse_device(Path::new("/dev/fuse").metadata().ok().as_ref()));
    }
    findings.push(user_namespaces(config, &Settings::read()));
    findings
}

fn judge_release(release: &str) -> Finding {
    let (major, minor) = OLDEST;
    match parse_release(release) {
        Some(found) if found >= OLDEST => Finding::ok("kernel", format!("Linux {release}")),
        Some(_) => Finding::error(
            "kernel",
            format!("Linux {release} is older than {major}.{minor}"),
            "update the kernel",
        ),
        None => Finding::warning(
            "kernel",
            format!("cannot tell the age of Linux '{release}'"),
            format!("make sure that it is {major}.{minor} or newer"),
        ),
    }
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The modules that a kernel has.
#[derive(Debug, Default)]
struct Modules {
    dir: PathBuf,
    built_in: BTreeSet<String>,
    loadable: BTreeSet<String>,
    loaded: BTreeSet<String>,
}

impl Modules {
    fn read(dir: &Path) -> Self {
        let loaded = look::text("/proc/modules");
        let loaded = loaded.lines().filter_map(|line| line.split(' ').next());
        Self {
            dir: dir.to_owned(),
            built_in: names(&look::text(dir.join("modules.builtin"))),
            loadable: names(&look::text(dir.join("modules.dep"))),
            loaded: loaded.map(str::to_owned).collect(),
        }
    }

    fn is_there(&self, name: &str) -> bool {
        let name = name.replace('-', "_");
        // A module that is built in and has a parameter is seen here and maybe nowhere else.
        let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        self.loaded.contains(&name)
            || self.built_in.contains(&name)
            || (is_plain && Path::new("/sys/module").join(&name).exists())
    }

    fn is_loadable(&self, name: &str) -> bool {
        self.loadable.contains(&name.replace('-', "_"))
    }
}

/// Finds the names in `kernel/fs/xfs/xfs.ko.zst: kernel/lib/libcrc32c.ko` and the like.
fn names(text: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let path = line.split(':').next()?;
        let file = path.rsplit('/').next()?;
        let (name, _) = file.split_once(".ko")?;
        Some(name.replace('-', "_"))
    };
    text.lines().filter_map(name).collect()
}

fn preload(name: &str, modules: &Modules) -> Finding {
    let check = format!("kernel.preload.{name}");
    if modules.is_there(name) {
        Finding::ok(check, "it is there")
    } else if modules.is_loadable(name) {
        Finding::ok(check, "a job's set-up loads it")
    } else {
        Finding::error(
            check,
            format!("it is not in '{}'", modules.dir.display()),
            "install it and run depmod, correct kernel.kmod_base_path, or remove it from the list",
        )
    }
}

fn file_systems(config: &Config, known: &str, modules: &Modules) -> Vec<Finding> {
    let mut needed = vec![
        ("squashfs", "images"),
        ("overlay", "roots"),
        ("tmpfs", "roots"),
    ];
    if config.store.mounts_erofs() {
        needed.push(("erofs", "images"));
    }
    let has_cache = |fs: CacheFs| {
        let mut caches = config.per_node_cache.values();
        caches.any(|cache| cache.fs_types.contains(&fs))
    };
    if has_cache(CacheFs::Xfs) {
        needed.push(("xfs", "per-node caches"));
    }
    if has_cache(CacheFs::Ext4) {
        needed.push(("ext4", "per-node caches"));
    }
    let is_known = |name: &str| {
        known
            .lines()
            .any(|line| line.split('\t').nth(1) == Some(name))
    };
    let judge = |(name, what): (&str, &str)| {
        let check = format!("kernel.{name}");
        if is_known(name) || modules.is_there(name) {
            Finding::ok(check, "it is there")
        } else if modules.is_loadable(name) {
            Finding::ok(check, "the kernel loads it when it is needed")
        } else {
            Finding::error(
                check,
                format!("the kernel does not have it; {what} need it"),
                format!("install the kernel's extra modules, or load '{name}' with kernel.preload"),
            )
        }
    };
    let mut findings: Vec<Finding> = needed.into_iter().map(judge).collect();
    if config.store.user_images == UserImages::Fuse {
        let there = is_known("fuse") || modules.is_there("fuse") || modules.is_loadable("fuse");
        findings.push(if there {
            Finding::ok("kernel.fuse", "it is there")
        } else {
            Finding::warning(
                "kernel.fuse",
                "the kernel does not have it; users' own images cannot be run",
                "install the module, or set store.user_images = \"no\"",
            )
        });
    }
    findings
}

fn loop_control(device: Option<&Metadata>, config: &Config, modules: &Modules) -> Finding {
    const CHECK: &str = "kernel.loop";
    match device {
        Some(meta) if meta.file_type().is_char_device() => Finding::ok(CHECK, "it is there"),
        Some(_) => Finding::error(
            CHECK,
            "'/dev/loop-control' is not a device",
            "remove it and load the module 'loop'",
        ),
        None if modules.is_loadable("loop")
            && config.kernel.preload.iter().any(|m| m == "loop") =>
        {
            Finding::ok(CHECK, "a job's set-up loads it")
        }
        None => Finding::error(
            CHECK,
            "there is no '/dev/loop-control'",
            "load the module 'loop' when the node starts, or add it to kernel.preload",
        ),
    }
}

fn fuse_device(device: Option<&Metadata>) -> Finding {
    const CHECK: &str = "kernel./dev/fuse";
    match device {
        Some(meta) if meta.file_type().is_char_device() && meta.mode() & 0o666 == 0o666 => {
            Finding::ok(CHECK, "users may open it")
        }
        Some(meta) => Finding::warning(
            CHECK,
            format!(
                "its mode is {:04o}: users may not open it",
                meta.mode() & 0o7777
            ),
            "chmod 0666 /dev/fuse, or set store.user_images = \"no\"",
        ),
        None => Finding::warning(
            CHECK,
            "it does not exist; users' own images cannot be run",
            "load the module 'fuse', or set store.user_images = \"no\"",
        ),
    }
}

/// What decides whether a user may make a user namespace.
#[derive(Debug, Default)]
struct Settings {
    max_user_namespaces: String,
    unprivileged_userns_clone: String,
    apparmor_restrict: String,
}

impl Settings {
    fn read() -> Self {
        let read = |name: &str| look::text(format!("/proc/sys/{name}")).trim().to_owned();
        Self {
            max_user_namespaces: read("user/max_user_namespaces"),
            unprivileged_userns_clone: read("kernel/unprivileged_userns_clone"),
            apparmor_restrict: read("kernel/apparmor_restrict_unprivileged_userns"),
        }
    }
}

fn user_namespaces(config: &Config, settings: &Settings) -> Finding {
    const CHECK: &str = "kernel.user_namespaces";
    let refused = if matches!(&*settings.max_user_namespaces, "0" | "") {
        Some("sysctl user.max_user_namespaces=15000")
    } else if settings.unprivileged_userns_clone == "0" {
        Some("sysctl kernel.unprivileged_userns_clone=1")
    } else if settings.apparmor_restrict == "1" {
        Some("sysctl kernel.apparmor_restrict_unprivileged_userns=0")
    } else {
        None
    };
    match refused {
        None => Finding::ok(CHECK, "users may make them"),
        Some(_) if config.store.user_images != UserImages::Fuse => Finding::ok(
            CHECK,
            "users may not make them, and nothing here needs them",
        ),
        Some(sysctl) => Finding::warning(
            CHECK,
            "users may not make them; users' own images cannot be run",
            format!("{sysctl}, or set store.user_images = \"no\""),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;

    #[test]
    fn releases() {
        for (release, expect) in [
            ("5.14.0-503.el9.x86_64", State::Ok),
            ("6.18.5", State::Ok),
            ("5.13.19", State::Error),
            ("4.18.0-553.el8", State::Error),
            ("10.0-rc1", State::Ok),
            ("next", State::Warning),
            ("", State::Warning),
        ] {
            assert_eq!(judge_release(release).state, expect, "{release}");
        }
    }

    fn modules(built_in: &str, loadable: &str) -> Modules {
        Modules {
            dir: "/lib/modules/6.1".into(),
            built_in: names(built_in),
            loadable: names(loadable),
            loaded: BTreeSet::new(),
        }
    }

    #[test]
    fn modules_are_found_whatever_their_file_is_called() {
        let modules = modules(
            "kernel/fs/overlayfs/no-such-overlay.ko\n",
            "kernel/drivers/x/no-such-loop.ko.xz: kernel/y.ko\nkernel/fs/no_such_fs.ko:\n",
        );
        for (name, expect) in [
            ("no_such_overlay", "it is there"),
            ("no-such-loop", "a job's set-up loads it"),
            ("no_such_fs", "a job's set-up loads it"),
            ("y", "it is not in '/lib/modules/6.1'"),
            ("../x", "it is not in '/lib/modules/6.1'"),
        ] {
            assert_eq!(preload(name, &modules).message, expect, "{name}");
        }
    }

    #[test]
    fn file_systems_are_those_that_the_configuration_needs() {
        let text = "[per_node_cache.'/s']\ndir = '/s/c'\nfs_types = ['ext4']\n";
        let config = Config::parse(text, Path::new("x")).unwrap();
        let known = "nodev\ttmpfs\nnodev\toverlay\n\tno-squashfs\n";
        let findings = file_systems(&config, known, &Modules::default());
        let state = |check: &str| findings.iter().find(|f| f.check == check).map(|f| f.state);
        assert_eq!(state("kernel.tmpfs"), Some(State::Ok));
        // On the machine of the test these may be there.
        assert!(state("kernel.squashfs").is_some() && state("kernel.ext4").is_some());
        assert_eq!(state("kernel.xfs"), None);
        let modules = modules("", "kernel/fs/squashfs/squashfs.ko:");
        let findings = file_systems(&Config::default(), "", &modules);
        assert_eq!(findings[0].state, State::Ok, "{findings:?}");
    }

    #[test]
    fn devices() {
        let null = Path::new("/dev/null").metadata().unwrap();
        let file = Path::new("/etc/passwd").metadata().unwrap();
        let config = Config::default();
        let none = Modules::default();
        assert_eq!(loop_control(Some(&null), &config, &none).state, State::Ok);
        assert_eq!(
            loop_control(Some(&file), &config, &none).state,
            State::Error
        );
        assert_eq!(loop_control(None, &config, &none).state, State::Error);
        assert_eq!(fuse_device(Some(&null)).state, State::Ok);
        assert_eq!(fuse_device(Some(&file)).state, State::Warning);
        assert_eq!(fuse_device(None).state, State::Warning);
    }

    #[test]
    fn user_namespaces_matter_where_users_run_their_own_images() {
        let settings = |max: &str, clone: &str, apparmor: &str| Settings {
            max_user_namespaces: max.into(),
            unprivileged_userns_clone: clone.into(),
            apparmor_restrict: apparmor.into(),
        };
        let fuse = Config::default();
        let mut none = Config::default();
        none.store.user_images = UserImages::No;
        for (settings, expect) in [
            (settings("15000", "", ""), State::Ok),
            (settings("15000", "1", "0"), State::Ok),
            (settings("0", "", ""), State::Warning),
            (settings("", "", ""), State::Warning),
            (settings("9", "0", ""), State::Warning),
            (settings("9", "1", "1"), State::Warning),
        ] {
            assert_eq!(
                user_namespaces(&fuse, &settings).state,
                expect,
                "{settings:?}"
            );
            assert_eq!(user_namespaces(&none, &settings).state, State::Ok);
        }
    }
}
