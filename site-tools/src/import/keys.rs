//! The settings that a `udiRoot.conf` may have, and those among them that have no counterpart.

use shifter_core::sanitize;

use super::ImportError;
use super::grammar::Setting;

/// A setting whose key is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// What is set.
    pub key: Key,
    /// The key as it was written.
    pub name: String,
    /// The value.
    pub value: String,
    /// The line.
    pub line: usize,
}

/// What a setting sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// One of the site's, by its name.
    Site(&'static str),
    /// One of a module's: the module, and the key by its name.
    Module(String, &'static str),
    /// None that we know of.
    Unknown,
}

/// Keys that are carried over, entirely or where their value allows it.
const CARRIED: [&str; 25] = [
    "imagePath",
    "udiRootPath",
    "system",
    "defaultImageType",
    "siteFs",
    "siteEnv",
    "siteEnvAppend",
    "siteEnvPrepend",
    "siteEnvUnset",
    "sitePreMountHook",
    "sitePostMountHook",
    "optUdiImage",
    "allowLocalChroot",
    "allowLibcPwdCalls",
    "populateEtcDynamically",
    "mountUdiRootWritable",
    "mountPropagationStyle",
    "rootfsType",
    "perNodeCachePath",
    "perNodeCacheSizeLimit",
    "perNodeCacheAllowedFsType",
    "defaultModules",
    "autoLoadKernelModule",
    "kmodBasePath",
    "etcPath",
];

const NO_PROGRAM: &str = "no program of the system is called for this; nothing to do";
const MPI: &str = "write a module with the 'libraries' of the host that replace the image's, or \
                   with 'cdi' devices, and put it into 'default_modules'";

/// Keys that have no counterpart, and why none is needed or what takes their place.
const DROPPED: [(&str, &str); 22] = [
    (
        "udiMount",
        "containers have no mount point on the host; nothing to do",
    ),
    (
        "loopMount",
        "images have no mount point on the host; nothing to do",
    ),
    ("modprobePath", NO_PROGRAM),
    ("insmodPath", NO_PROGRAM),
    ("cpPath", NO_PROGRAM),
    ("mvPath", NO_PROGRAM),
    ("chmodPath", NO_PROGRAM),
    ("ddPath", NO_PROGRAM),
    (
        "mkfsXfsPath",
        "the system's mkfs.xfs is used; nothing to do",
    ),
    (
        "imageGateway",
        "no gateway is asked: users pull by themselves; set 'store.site_pull_command' to let them \
         pull into the site's store",
    ),
    (
        "gatewayTimeout",
        "no gateway is asked; 'slurm.lookup_timeout_secs' limits the look-up of an image",
    ),
    (
        "batchType",
        "each batch system's part knows what it is; nothing to do",
    ),
    (
        "usersToImport",
        "a container's passwd has the user alone; nothing to do",
    ),
    (
        "maxGroupCount",
        "a container's group file has the user's own groups alone; nothing to do",
    ),
    (
        "optionalSshdAsRoot",
        "the C Shifter ignores it too; nothing to do",
    ),
    (
        "kmodCacheFile",
        "the C Shifter ignores it too; nothing to do",
    ),
    (
        "nodeContextPrefix",
        "the C Shifter ignores it too; nothing to do",
    ),
    ("siteResources", MPI),
    ("siteMPISharedLibs", MPI),
    ("siteMPIDependencyLibs", MPI),
    ("siteMPIBinaries", MPI),
    ("siteMPIConfigurationFiles", MPI),
];

/// Keys of a module.
const MODULE: [&str; 10] = [
    "enabled",
    "userhook",
    "roothook",
    "siteEnv",
    "siteEnvPrepend",
    "siteEnvAppend",
    "siteEnvUnset",
    "conflict",
    "siteFs",
    "copyPath",
];

/// Returns why a key of the site's is not carried over whatever its value.
pub(super) fn dropped(name: &str) -> Option<&'static str> {
    let mut dropped = DROPPED.iter();
    dropped
        .find(|(known, _)| *known == name)
        .map(|(_, why)| *why)
}

/// Finds out what each setting sets.
///
/// # Errors
/// Names the first key that there is not, unless those are to be ignored.
pub(super) fn known(
    settings: Vec<Setting<'_>>,
    file: &str,
    ignores_unknown: bool,
) -> Result<Vec<Known>, ImportError> {
    let mut found = Vec::new();
    for Setting { key, value, line } in settings {
        let name = sanitize::text(key);
        let key = find(key);
        if key == Key::Unknown && !ignores_unknown {
            return Err(ImportError::Line {
                file: file.to_owned(),
                line,
                message: format!("unknown key '{name}'"),
                hint: "correct it, or leave such keys out with --ignore-unknown".into(),
            });
        }
        found.push(Known {
            key,
            name,
            value,
            line,
        });
    }
    Ok(found)
}

fn find(name: &str) -> Key {
    let site = CARRIED
        .into_iter()
        .chain(DROPPED.iter().map(|(known, _)| *known));
    if let Some(known) = site.into_iter().find(|known| *known == name) {
        return Key::Site(known);
    }
    // As strtok(3) sees it: several `_` are one.
    let parts: Vec<&str> = name.split('_').filter(|part| !part.is_empty()).collect();
    if !name.starts_with("module_") {
        return Key::Unknown;
    }
    match parts[..] {
        ["module", module, key] => {
            // The C Shifter's own documents write `copypath`, which it then passes over.
            let known = MODULE
                .into_iter()
                .find(|known| *known == key || (key == "copypath" && *known == "copyPath"));
            known.map_or(Key::Unknown, |known| Key::Module(module.to_owned(), known))
        }
        _ => Key::Unknown,
    }
}

#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    CARRIED
        .into_iter()
        .chain(DROPPED.iter().map(|(known, _)| *known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_as_the_c_shifter_finds_them() {
        let module = |name: &str, key| Key::Module(name.into(), key);
        let table = [
            ("system", Key::Site("system")),
            ("System", Key::Unknown),
            ("etcPath", Key::Site("etcPath")),
            ("ddPath", Key::Site("ddPath")),
            ("module_mpich_siteEnv", module("mpich", "siteEnv")),
            ("module_mpich_copypath", module("mpich", "copyPath")),
            ("module__mpich__enabled_", module("mpich", "enabled")),
            ("module_my_mpich_enabled", Key::Unknown),
            ("module_mpich", Key::Unknown),
            ("module_mpich_Enabled", Key::Unknown),
            ("module", Key::Unknown),
            ("_module_a_enabled", Key::Unknown),
            ("", Key::Unknown),
        ];
        for (name, expect) in table {
            assert_eq!(find(name), expect, "{name}");
        }
    }
}
