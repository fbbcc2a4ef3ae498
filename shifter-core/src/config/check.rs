//! What the types of the configuration alone cannot say.

use std::path::Path;

use super::{Config, Module, NodeCache, registries, site_map};
use crate::ids::is_tree_name;
use crate::reference::is_plain_name;
use crate::volmap;

/// Image types that exist everywhere.
const BUILT_IN_TYPES: [&str; 5] = ["docker", "id", "local", "file", "custom"];

/// The largest size of a tmpfs, in MiB.
const TMPFS_LIMIT: u32 = 65536;

/// Returns the first key whose value cannot be meant, and why.
pub(super) fn first_fault(config: &Config) -> Option<(&'static str, String)> {
    let faults = [
        paths(config),
        sizes(config),
        mounts("site_mounts", &config.root.site_mounts),
        types(config),
        trees(config),
        commands(config),
        caches(config),
        modules(config),
        kernel(config),
        registries::first_fault(&config.registry),
        (config.hooks.timeout_secs == 0)
            .then(|| ("timeout_secs", "a hook needs some time".to_owned())),
    ];
    faults.into_iter().flatten().next()
}

pub(super) type Fault = Option<(&'static str, String)>;

fn absolute(key: &'static str, path: &Path) -> Fault {
    let fault = || format!("'{}' is not an absolute path", path.display());
    (!path.is_absolute()).then(|| (key, fault()))
}

fn paths(config: &Config) -> Fault {
    let mut paths = vec![
        ("prefix", &config.prefix),
        ("path", &config.store.path),
        ("kmod_base_path", &config.kernel.kmod_base_path),
    ];
    paths.extend(config.store.cache_dir.iter().map(|dir| ("cache_dir", dir)));
    paths.extend(config.root.udi_image.iter().map(|dir| ("udi_image", dir)));
    paths.extend(config.root.cdi_dirs.iter().map(|dir| ("cdi_dirs", dir)));
    paths.extend(
        config
            .store
            .local_dirs
            .iter()
            .map(|dir| ("local_dirs", dir)),
    );
    paths
        .into_iter()
        .find_map(|(key, path)| absolute(key, path))
}

fn sizes(config: &Config) -> Fault {
    let store = &config.store;
    for (key, text) in [
        ("cache_size_limit", &store.cache_size_limit),
        ("user_cache_size_limit", &store.user_cache_size_limit),
    ] {
        if let Err(rule) = super::tables::cache_size(text) {
            return Some((key, format!("'{text}' is {rule}")));
        }
    }
    let fault = || format!("the size must be from 1 to {TMPFS_LIMIT}");
    if !(1..=TMPFS_LIMIT).contains(&config.root.tmpfs_size_mib) {
        return Some(("tmpfs_size_mib", fault()));
    }
    let too_large = config.root.writable_tmpfs_size_mib > TMPFS_LIMIT;
    too_large.then(|| {
        (
            "writable_tmpfs_size_mib",
            format!("the size must be from 0 to {TMPFS_LIMIT}"),
        )
    })
}

fn mounts(key: &'static str, texts: &[String]) -> Fault {
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
            return Some(("image_types", format!("'{name}': {rule}")));
        }
    }
    let default = &config.default_image_type;
    let is_known =
        BUILT_IN_TYPES.contains(&default.as_str()) || config.image_types.contains(default);
    (!is_known).then(|| {
        (
            "default_image_type",
            format!("'{default}' is not in image_types"),
        )
    })
}

fn trees(config: &Config) -> Fault {
    config.store.trees.iter().find_map(|(name, path)| {
        if is_tree_name(name) {
            absolute("trees", path)
        } else {
            let fault = "a name is at most 31 letters, digits and '._+-'";
            Some(("trees", format!("'{name}': {fault}")))
        }
    })
}

fn commands(config: &Config) -> Fault {
    let mut commands = vec![
        ("site_pull_command", &config.store.site_pull_command),
        ("pre_mount", &config.hooks.pre_mount),
        ("post_mount", &config.hooks.post_mount),
    ];
    for module in config.module.values() {
        commands.push(("root_hook", &module.root_hook));
        commands.push(("user_hook", &module.user_hook));
    }
    commands.into_iter().find_map(|(key, words)| {
        let program = words.first()?;
        absolute(key, Path::new(program))
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
        let size = || match volmap::parse_size(size_limit) {
            Ok(_) => None,
            Err(rule) => Some(("size_limit", format!("'{size_limit}' is {rule}"))),
        };
        let none = || {
            fs_types
                .is_empty()
                .then(|| ("fs_types", "none is allowed".into()))
        };
        absolute("per_node_cache", Path::new(name))
            .or_else(|| absolute("dir", dir))
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
            return Some(("module", format!("'{name}': {fault}")));
        }
        let unknown = conflicts.iter().find(|c| !config.module.contains_key(*c));
        if let Some(other) = unknown {
            let fault = format!("module '{name}' names unknown '{other}'");
            return Some(("conflicts", fault));
        }
        let fault = mounts("site_mounts", site_mounts)
            .or_else(|| absolute("copy_path", copy_path.as_deref()?))
            .or_else(|| {
                let mut paths = libraries.iter();
                paths.find_map(|path| absolute("libraries", Path::new(path)))
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
            return Some(("cdi", fault));
        }
    }
    let unknown = |name: &&String| !config.module.contains_key(*name);
    let name = config.default_modules.iter().find(unknown)?;
    Some(("default_modules", format!("there is no module '{name}'")))
}

fn kernel(config: &Config) -> Fault {
    let is_module = |name: &str| {
        let well_formed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        !name.is_empty() && name.bytes().all(well_formed)
    };
    let wrong = config.kernel.preload.iter().find(|name| !is_module(name))?;
    let fault = format!("'{wrong}': a kernel module's name is letters, digits, '_' and '-'");
    Some(("preload", fault))
}
