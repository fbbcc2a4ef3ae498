//! What a configuration names: is it there, and may it be trusted?

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use shifter_core::config::{Config, Module, NodeCache, Registry, UserImages, Visibility};
use shifter_core::volmap::VolumeMap;

use crate::finding::Finding;
use crate::look;

/// Bytes of a file of certificates that are looked at.
const CA_LIMIT: u64 = 16 << 20;

/// Judges everything that the configuration names.
pub(super) fn judge(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    store(config, &mut findings);
    registries(&config.registry, &mut findings);
    mounts("root.site_mounts", &config.site_mounts(), &mut findings);
    if let Some(dir) = &config.root.udi_image {
        findings.push(directory("root.udi_image", dir));
    }
    for (key, words) in [
        ("hooks.pre_mount", &config.hooks.pre_mount),
        ("hooks.post_mount", &config.hooks.post_mount),
    ] {
        findings.extend(program(key, words));
    }
    // What belongs to a module that nobody can use may as well be missing.
    for (name, module) in config.module.iter().filter(|(_, module)| module.enabled) {
        self::module(name, module, &mut findings);
    }
    if config.module.values().any(|module| !module.cdi.is_empty()) {
        findings.push(cdi(&config.root.cdi_dirs));
    }
    for (name, NodeCache { dir, owner, .. }) in &config.per_node_cache {
        let check = format!("per_node_cache.{name}.dir");
        findings.push(private_directory(&check, dir, *owner));
    }
    if config.root.visibility == Visibility::Host {
        findings.push(directory("root.udi_mount", &config.root.udi_mount));
    }
    findings.extend(program(
        "torque.fanout_command",
        &config.torque.fanout_command,
    ));
    // Jobs run without these two.
    if let Some(dir) = &config.shared_state.path {
        let owner = config.shared_state.owner;
        findings.push(private_directory("shared_state.path", dir, owner).at_most_warning());
    }
    if let Some(dir) = &config.metrics.textfile {
        findings.push(directory("metrics.textfile", dir).at_most_warning());
    }
    findings
}

fn store(config: &Config, findings: &mut Vec<Finding>) {
    const CHECK: &str = "store.path";
    let path = &config.store.path;
    findings.push(match look::trust(path, &[config.store.image_owner]) {
        Err((message, hint)) => {
            let owner = path.metadata().map_or(0, |meta| meta.uid());
            let hint = if owner == config.store.image_owner || owner == 0 {
                hint
            } else {
                format!("if uid {owner} pulls the site's images, set 'store.image_owner = {owner}'")
            };
            unless_denied(CHECK, path, message, hint)
        }
        Ok(_) if !path.is_dir() => not(CHECK, path, "a directory"),
        Ok(real) => store_content(config, &real),
    });
    findings.extend(program(
        "store.site_pull_command",
        &config.store.site_pull_command,
    ));
    if config.store.user_images == UserImages::Kernel {
        findings.push(Finding::warning(
            "store.user_images",
            "the kernel mounts file systems that users made",
            "set it to \"fuse\", unless you trust every user with the kernel",
        ));
    }
    for dir in &config.store.local_dirs {
        findings.push(present("store.local_dirs", dir));
    }
    for (name, dir) in &config.store.trees {
        findings.push(present(&format!("store.trees.{name}"), dir));
    }
}

/// Judges a store that is there and trusted.
fn store_content(config: &Config, store: &Path) -> Finding {
    const CHECK: &str = "store.path";
    let shown = config.store.path.display();
    let owner = config.store.image_owner;
    let index = store.join("index");
    match index.symlink_metadata() {
        Err(_) if look::is_denied(&index) => return denied(CHECK, &config.store.path),
        Err(_) => {
            return Finding::error(
                CHECK,
                format!("'{shown}' has no index: it is not mounted, or no image was ever pulled"),
                "mount it, or pull a first image as the store's owner: shifterimg pull --store site \
                 IMAGE",
            );
        }
        Ok(_) => {}
    }
    if let Err((message, hint)) = look::trust(&index, &[owner]) {
        return unless_denied(CHECK, &index, message, hint);
    }
    let found = store.metadata().map_or(owner, |meta| meta.uid());
    if found != owner {
        return Finding::warning(
            CHECK,
            format!("'{shown}' belongs to uid {found}: uid {owner} cannot pull into it"),
            format!("chown -R {owner} '{shown}', or set 'store.image_owner = {found}'"),
        );
    }
    Finding::ok(CHECK, format!("'{shown}' is there, with {}", tags(store)))
}

/// Counts the tags of a store's index, for people.
fn tags(store: &Path) -> String {
    let types = store.join("index").read_dir().into_iter().flatten();
    let count = types
        .filter_map(|kind| kind.ok()?.path().read_dir().ok())
        .map(Iterator::count)
        .sum::<usize>();
    format!("{count} {}", if count == 1 { "tag" } else { "tags" })
}

/// Judges how registries are reached.
pub(super) fn registries(tables: &BTreeMap<String, Registry>, findings: &mut Vec<Finding>) {
    for (host, registry) in tables {
        if registry.plain_http {
            findings.push(Finding::warning(
                format!("registry.{host}.plain_http"),
                "nothing proves that images come from this registry",
                "give the registry a certificate, and name its authority in 'ca_file'",
            ));
        }
        let Some(file) = &registry.ca_file else {
            continue;
        };
        let check = format!("registry.{host}.ca_file");
        let shown = file.display();
        findings.push(match look::trust(file, &[]) {
            Err((message, hint)) => unless_denied(&check, file, message, hint),
            // A directory is read when it is used, each file of it.
            Ok(_) if file.is_dir() => Finding::ok(check, format!("'{shown}' is there and trusted")),
            Ok(_) => match look::read(file, CA_LIMIT) {
                Err(error) => Finding::error(
                    check,
                    format!("cannot read '{shown}': {error}"),
                    "every user's programs read it: chmod a+r",
                ),
                Ok(bytes) if String::from_utf8_lossy(&bytes).contains("-----BEGIN CERTIFICATE") => {
                    Finding::ok(check, format!("'{shown}' is there and trusted"))
                }
                Ok(_) => Finding::error(
                    check,
                    format!("'{shown}' has no certificate in PEM form"),
                    "convert it: openssl x509 -in FILE -out FILE.pem",
                ),
            },
        });
    }
}

fn mounts(check: &str, map: &VolumeMap, findings: &mut Vec<Finding>) {
    for volume in map.entries() {
        let from = Path::new(&volume.from);
        let parent = from.parent().unwrap_or(from);
        look::at(from);
        findings.push(match from.metadata() {
            Err(_) if look::is_denied(from) => denied(check, from),
            Err(error) => Finding::error(
                check,
                format!("'{}': {error}; no container starts here", volume.from),
                "make or mount it on every node, or remove the entry",
            ),
            Ok(_) => match look::trust(parent, &[]) {
                // What lies in the directory is its users' business; which directory it is, is not.
                Err((message, hint)) => Finding::warning(
                    check,
                    format!(
                        "'{}' could be replaced for all containers: {message}",
                        volume.from
                    ),
                    hint,
                ),
                Ok(_) => Finding::ok(check, format!("'{}' is there", volume.from)),
            },
        });
    }
}

fn module(name: &str, module: &Module, findings: &mut Vec<Finding>) {
    let check = |key: &str| format!("module.{name}.{key}");
    mounts(&check("site_mounts"), &module.site_mounts(), findings);
    if let Some(dir) = &module.copy_path {
        findings.push(directory(&check("copy_path"), dir));
    }
    findings.extend(program(&check("root_hook"), &module.root_hook));
    for library in &module.libraries {
        findings.push(libraries(&check("libraries"), Path::new(library)));
    }
}

fn libraries(check: &str, pattern: &Path) -> Finding {
    let dir = pattern.parent().unwrap_or(pattern);
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    let found = look::expand(dir, &name).unwrap_or_default();
    if found.is_empty() {
        return Finding::error(
            check,
            format!("nothing matches '{}'", pattern.display()),
            "install the libraries on every node, or correct the path",
        );
    }
    let untrusted = found.iter().find_map(|path| look::trust(path, &[]).err());
    match untrusted {
        Some((message, hint)) => Finding::error(check, message, hint),
        None => Finding::ok(
            check,
            format!("'{}' names {} files", pattern.display(), found.len()),
        ),
    }
}

fn cdi(dirs: &[std::path::PathBuf]) -> Finding {
    const CHECK: &str = "root.cdi_dirs";
    let specifications = dirs.iter().flat_map(|dir| {
        let patterns = ["*.json", "*.yaml", "*.yml"];
        patterns.map(|pattern| look::expand(dir, pattern).unwrap_or_default())
    });
    let found: Vec<_> = specifications.flatten().collect();
    if found.is_empty() {
        return Finding::warning(
            CHECK,
            "modules use devices, and there is no specification of any",
            "make one on each node that has devices, for example with 'nvidia-ctk cdi generate'",
        );
    }
    match found.iter().find_map(|path| look::trust(path, &[]).err()) {
        Some((message, hint)) => Finding::error(CHECK, message, hint),
        None => Finding::ok(CHECK, format!("{} specifications are there", found.len())),
    }
}

/// Judges a directory that nobody but its owner may look into.
fn private_directory(check: &str, dir: &Path, owner: u32) -> Finding {
    let shown = dir.display();
    let way_out = format!("install -d -m 0700 -o {owner} '{shown}'");
    if let Err((message, hint)) = look::trust(dir, &[owner]) {
        let hint = if dir.exists() { hint } else { way_out };
        return unless_denied(check, dir, message, hint);
    }
    let Ok(meta) = dir.metadata() else {
        return denied(check, dir);
    };
    let mode = meta.mode() & 0o7777;
    if !meta.is_dir() {
        not(check, dir, "a directory")
    } else if mode != 0o700 || meta.uid() != owner {
        let message = format!(
            "'{shown}' has mode {mode:04o} and owner {}; it must have 0700 and {owner}",
            meta.uid(),
        );
        Finding::error(check, message, way_out)
    } else {
        Finding::ok(check, format!("'{shown}' is there and private"))
    }
}

/// Judges a directory that only the site may change.
fn directory(check: &str, path: &Path) -> Finding {
    match look::trust(path, &[]) {
        Err((message, hint)) => unless_denied(check, path, message, hint),
        Ok(_) if !path.is_dir() => not(check, path, "a directory"),
        Ok(_) => trusted(check, path),
    }
}

/// Judges the program of a command, if there is a command.
fn program(check: &str, words: &[String]) -> Option<Finding> {
    let path = Path::new(words.first()?);
    let is_executable = |meta: &Metadata| meta.mode() & 0o111 != 0;
    Some(match look::trust(path, &[]) {
        Err((message, hint)) => unless_denied(check, path, message, hint),
        Ok(_) => match path.metadata() {
            Ok(meta) if !meta.is_file() => not(check, path, "a file"),
            Ok(meta) if !is_executable(&meta) => Finding::error(
                check,
                format!("'{}' is not executable", path.display()),
                format!("chmod 0755 '{}'", path.display()),
            ),
            _ => trusted(check, path),
        },
    })
}

fn present(check: &str, path: &Path) -> Finding {
    look::at(path);
    match path.metadata() {
        Ok(meta) if meta.is_dir() => Finding::ok(check, format!("'{}' is there", path.display())),
        Err(_) if look::is_denied(path) => denied(check, path),
        _ => Finding::warning(
            check,
            format!("'{}' is not a directory here", path.display()),
            "make or mount it, or remove the entry",
        ),
    }
}

fn trusted(check: &str, path: &Path) -> Finding {
    Finding::ok(check, format!("'{}' is there and trusted", path.display()))
}

fn not(check: &str, path: &Path, what: &str) -> Finding {
    let message = format!("'{}' is not {what}", path.display());
    Finding::error(check, message, "correct the path")
}

fn denied(check: &str, path: &Path) -> Finding {
    Finding::warning(
        check,
        format!("'{}' was not checked: needs root", path.display()),
        "run this as root",
    )
}

/// Says that something is wrong, unless that is only because of who is looking.
fn unless_denied(check: &str, path: &Path, message: String, hint: String) -> Finding {
    if look::is_denied(path) {
        denied(check, path)
    } else {
        Finding::error(check, message, hint)
    }
}
