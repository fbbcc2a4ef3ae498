//! What the types of the configuration alone cannot say.

use std::ops::RangeInclusive;
use std::path::Path;

use super::{Config, ImageFormat, Module, NodeCache, SharedState, registries, site_map, torque};
use crate::ids::is_tree_name;
use crate::reference::is_plain_name;
use crate::volmap;

/// Image types that exist everywhere.
const BUILT_IN_TYPES: [&str; 5] = ["docker", "id", "local", "file", "custom"];

/// Compressors of images, and their levels.
const COMPRESSORS: [(&str, RangeInclusive<u8>); 3] =
    [("zstd", 1..=22), ("gzip", 1..=9), ("xz", 0..=9)];

/// The largest size of a tmpfs, in MiB.
const TMPFS_LIMIT: u32 = 65536;

/// Returns the first key whose value cannot be meant, with its tables, and why.
pub(super) fn first_fault(config: &Config) -> Option<(Vec<String>, String)> {
    let faults = [
        paths(config),
        sizes(config),
        mounts(key(&["root", "site_mounts"]), &config.root.site_mounts),
        types(config),
        images(config),
        trees(config),
        commands(config),
        caches(config),
        modules(config),
        kernel(config),
        shared_state(config),
        metrics(config),
        slurm(config),
        ssh(config),
        registries::first_fault(&config.registry),
        torque::first_fault(&config.torque),
        (config.hooks.timeout_secs == 0).then(|| {
            (
                key(&["hooks", "timeout_secs"]),
                "a hook needs some time".into(),
            )
        }),
    ];
    faults.into_iter().flatten().next()
}

pub(super) type Fault = Option<(Vec<String>, String)>;

/// A key, after the names of the tables it is in.
pub(super) fn key(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn absolute(names: &[&str], path: &Path) -> Fault {
    let fault = || format!("'{}' is not an absolute path", path.display());
    (!path.is_absolute()).then(|| (key(names), fault()))
}

fn paths(config: &Config) -> Fault {
    let Config {
        store,
        root,
        kernel,
        ..
    } = config;
    let mut paths = vec![
        (&["prefix"][..], &config.prefix),
        (&["store", "path"], &store.path),
        (&["kernel", "kmod_base_path"], &kernel.kmod_base_path),
        (&["root", "udi_mount"], &root.udi_mount),
        (&["slurm", "spool_dir"], &config.slurm.spool_dir),
    ];
    paths.extend(
        store
            .cache_dir
            .iter()
            .map(|dir| (&["store", "cache_dir"][..], dir)),
    );
    paths.extend(
        root.udi_image
            .iter()
            .map(|dir| (&["root", "udi_image"][..], dir)),
    );
    paths.extend(
        root.cdi_dirs
            .iter()
            .map(|dir| (&["root", "cdi_dirs"][..], dir)),
    );
    paths.extend(
        store
            .local_dirs
            .iter()
            .map(|dir| (&["store", "local_dirs"][..], dir)),
    );
    paths
        .into_iter()
        .find_map(|(names, path)| absolute(names, path))
}

fn sizes(config: &Config) -> Fault {
    let Config { store, root, .. } = config;
    for (name, text) in [
        ("cache_size_limit", &store.cache_size_limit),
        ("user_cache_size_limit", &store.user_cache_size_limit),
    ] {
        if let Err(rule) = super::tables::cache_size(text) {
            return Some((key(&["store", name]), format!("'{text}' is {rule}")));
        }
    }
    if !(1..=TMPFS_LIMIT).contains(&root.tmpfs_size_mib) {
        let fault = format!("the size must be from 1 to {TMPFS_LIMIT}");
        return Some((key(&["root", "tmpfs_size_mib"]), fault));
    }
    let fault = || format!("the size must be from 0 to {TMPFS_LIMIT}");
    (root.writable_tmpfs_size_mib > TMPFS_LIMIT)
        .then(|| (key(&["root", "writable_tmpfs_size_mib"]), fault()))
}

fn mounts(key: Vec<String>, texts: &[String]) -> Fault {
    let map = match site_map(texts) {
        Ok(map) => map,
        Err(error) => return Some((key, error.to_string())),
    };
    let mut entries = map.entries().iter();
    let cache = entries.find(|volume| volume.flags.per_node_cache.is_some())?;
    let fault = format!("'{}': a perNodeCache belongs to a user's volume", cache.to);
    Some((key, fault))
}

fn types(config: &Config) -> Fault {
    for name in &config.image_types {
        let well_formed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_known = BUILT_IN_TYPES.contains(&name.as_str());
        if name.is_empty() || !name.chars().all(well_formed) || is_known {
            let rule = "a type is lower-case letters and digits and not a built-in one";
            return Some((key(&["image_types"]), format!("'{name}': {rule}")));
        }
    }
    let default = &config.default_image_type;
    let is_known =
        BUILT_IN_TYPES.contains(&default.as_str()) || config.image_types.contains(default);
    (!is_known).then(|| {
        (
            key(&["default_image_type"]),
            format!("'{default}' is not in image_types"),
        )
    })
}

fn images(config: &Config) -> Fault {
    let text = &config.store.compression;
    let (name, level) = match text.split_once(':') {
        None => (text.as_str(), None),
        Some((name, level)) => (name, Some(level.parse().unwrap_or(u8::MAX))),
    };
    let is_known = (name, level) == ("lz4", None)
        || COMPRESSORS.iter().any(|(known, levels)| {
            *known == name && level.is_none_or(|level| levels.contains(&level))
        });
    if !is_known {
        let fault = format!("'{text}' is not zstd[:1-22], gzip[:1-9], xz[:0-9] or lz4");
        return Some((key(&["store", "compression"]), fault));
    }
    if config.store.format == ImageFormat::Erofs && !matches!(name, "zstd" | "lz4") {
        let fault = format!("'{text}': erofs images have zstd or lz4");
        return Some((key(&["store", "compression"]), fault));
    }
    let text = &config.store.block_size;
    config.store.block_bytes().is_none().then(|| {
        let fault = format!("'{text}' is not a power of two from 4k to 1m");
        (key(&["store", "block_size"]), fault)
    })
}

fn trees(config: &Config) -> Fault {
    config.store.trees.iter().find_map(|(name, path)| {
        if is_tree_name(name) {
            absolute(&["store", "trees", name], path)
        } else {
            let fault = "a name is at most 31 letters, digits and '._+-'";
            Some((key(&["store", "trees", name]), format!("'{name}': {fault}")))
        }
    })
}

fn commands(config: &Config) -> Fault {
    let mut commands = vec![
        (
            vec!["store", "site_pull_command"],
            &config.store.site_pull_command,
        ),
        (vec!["hooks", "pre_mount"], &config.hooks.pre_mount),
        (vec!["hooks", "post_mount"], &config.hooks.post_mount),
    ];
    for (name, module) in &config.module {
        commands.push((vec!["module", name, "root_hook"], &module.root_hook));
        commands.push((vec!["module", name, "user_hook"], &module.user_hook));
    }
    commands.into_iter().find_map(|(names, words)| {
        let program = words.first()?;
        absolute(&names, Path::new(program))
    })
}

fn caches(config: &Config) -> Fault {
    config.per_node_cache.iter().find_map(|(name, cache)| {
        let NodeCache {
            dir,
            size_limit,
            fs_types,
            owner: _,
        } = cache;
        let of_cache = |last| key(&["per_node_cache", name, last]);
        let size = || match volmap::parse_size(size_limit) {
            Ok(_) => None,
            Err(rule) => Some((of_cache("size_limit"), format!("'{size_limit}' is {rule}"))),
        };
        let none = || {
            fs_types
                .is_empty()
                .then(|| (of_cache("fs_types"), "none is allowed".into()))
        };
        absolute(&["per_node_cache", name], Path::new(name))
            .or_else(|| absolute(&["per_node_cache", name, "dir"], dir))
            .or_else(size)
            .or_else(none)
    })
}

fn modules(config: &Config) -> Fault {
    for (name, module) in &config.module {
        let Module {
            conflicts,
            site_mounts,
            copy_path,
            libraries,
            cdi,
            ..
        } = module;
        if !is_plain_name(name) || name == "none" {
            let fault = "a name is letters, digits and '._+-', and not 'none'";
            return Some((key(&["module", name]), format!("'{name}': {fault}")));
        }
        let of_module = |last| key(&["module", name, last]);
        let unknown = conflicts.iter().find(|c| !config.module.contains_key(*c));
        if let Some(other) = unknown {
            let fault = format!("module '{name}' names unknown '{other}'");
            return Some((of_module("conflicts"), fault));
        }
        let fault = mounts(of_module("site_mounts"), site_mounts)
            .or_else(|| absolute(&["module", name, "copy_path"], copy_path.as_deref()?))
            .or_else(|| {
                let mut paths = libraries.iter();
                paths.find_map(|path| absolute(&["module", name, "libraries"], Path::new(path)))
            });
        if fault.is_some() {
            return fault;
        }
        let is_device = |text: &str| {
            let (kind, name) = text.split_once('=').unwrap_or_default();
            kind.contains('/') && !name.is_empty()
        };
        if let Some(device) = cdi.iter().find(|device| !is_device(device)) {
            let fault = format!("'{device}' is not of the form vendor/class=name");
            return Some((of_module("cdi"), fault));
        }
    }
    let fault = default_modules(config)?;
    Some((key(&["default_modules"]), fault))
}

/// What would refuse every container of whoever names no module.
fn default_modules(config: &Config) -> Option<String> {
    let names = &config.default_modules;
    names.iter().find_map(|name| {
        let Some(module) = config.module.get(name) else {
            return Some(format!("there is no module '{name}'"));
        };
        if !module.enabled {
            return Some(format!("module '{name}' is not enabled"));
        }
        let other = module
            .conflicts
            .iter()
            .find(|other| names.contains(other))?;
        Some(format!(
            "module '{name}' cannot be used together with '{other}'"
        ))
    })
}

fn kernel(config: &Config) -> Fault {
    let is_module = |name: &str| {
        let well_formed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        !name.is_empty() && name.bytes().all(well_formed)
    };
    let wrong = config.kernel.preload.iter().find(|name| !is_module(name))?;
    let fault = format!("'{wrong}': a kernel module's name is letters, digits, '_' and '-'");
    Some((key(&["kernel", "preload"]), fault))
}

fn shared_state(config: &Config) -> Fault {
    let SharedState {
        path,
        owner: _,
        max_age_secs,
        wait_secs,
        answer_timeout_secs,
    } = &config.shared_state;
    let of_state = |last| key(&["shared_state", last]);
    path.iter()
        .find_map(|path| absolute(&["shared_state", "path"], path))
        .or_else(|| {
            let fault = "at least a minute must pass, and at most a week".to_owned();
            let is_meant = (60..=7 * 24 * 3600).contains(max_age_secs);
            (!is_meant).then(|| (of_state("max_age_secs"), fault))
        })
        .or_else(|| {
            let times = [
                ("wait_secs", wait_secs),
                ("answer_timeout_secs", answer_timeout_secs),
            ];
            let wrong = |(_, secs): &(&str, &u32)| !(1..=60).contains(*secs);
            let (name, _) = times.into_iter().find(wrong)?;
            Some((of_state(name), "the time must be from 1 to 60 s".to_owned()))
        })
}

fn metrics(config: &Config) -> Fault {
    let textfile = config.metrics.textfile.as_deref()?;
    absolute(&["metrics", "textfile"], textfile)
}

fn slurm(config: &Config) -> Fault {
    let times = [
        ("lookup_timeout_secs", config.slurm.lookup_timeout_secs),
        ("setup_timeout_secs", config.slurm.setup_timeout_secs),
    ];
    let (name, _) = times.into_iter().find(|(_, seconds)| *seconds == 0)?;
    let fault = "without any time no job would start".to_owned();
    Some((key(&["slurm", name]), fault))
}

fn ssh(config: &Config) -> Fault {
    let ssh = &config.ssh;
    let is_pattern = |text: &str| {
        let name = text.strip_suffix('*').unwrap_or(text);
        let well_formed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        !text.is_empty() && name.bytes().all(well_formed)
    };
    if let Some(wrong) = ssh.accept_env.iter().find(|text| !is_pattern(text)) {
        let fault = format!("'{wrong}' is not the name of a variable, or its beginning and '*'");
        return Some((key(&["ssh", "accept_env"]), fault));
    }
    // Ports below 1024 are root's, and the server is not.
    let range =
        |name, is_fit: bool, rule: &str| (!is_fit).then(|| (key(&["ssh", name]), rule.to_owned()));
    range(
        "port",
        ssh.port >= 1024,
        "the port must be from 1024 to 65535",
    )
    .or_else(|| {
        let is_fit = (1..=1000).contains(&ssh.max_connections);
        range(
            "max_connections",
            is_fit,
            "the number must be from 1 to 1000",
        )
    })
}
