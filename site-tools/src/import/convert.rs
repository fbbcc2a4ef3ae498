//! From settings of the C Shifter to those of this one.

use std::collections::BTreeMap;

use shifter_core::sanitize;

use super::draft::{Draft, Value, try_alone};
use super::keys::{Key, Known, dropped};
use super::values::{is_set, join, propagate, size, without_what_c_drops, words};
use super::{Options, Remark};

/// Keys whose values add up when they are set again; of the others the last one counts.
const ADD_UP: [&str; 5] = [
    "siteFs",
    "siteEnv",
    "siteEnvAppend",
    "siteEnvPrepend",
    "siteEnvUnset",
];

/// Whether a value cannot be carried over.
type Applies = fn(&str) -> bool;

const NOT: &str = "not carried over";

/// Converts settings.
pub(super) fn convert(settings: &[Known], options: &Options) -> (Draft, Vec<Remark>) {
    let mut converter = Converter {
        settings,
        draft: Draft::default(),
        remarks: Vec::new(),
    };
    converter.report_what_does_not_count();
    converter.general(options);
    converter.store();
    converter.root();
    converter.env(&["env"], None);
    converter.modules();
    converter.hooks();
    converter.caches();
    converter.kernel();
    (converter.draft, converter.remarks)
}

struct Converter<'a> {
    settings: &'a [Known],
    draft: Draft,
    remarks: Vec<Remark>,
}

impl<'a> Converter<'a> {
    fn remark(&mut self, setting: &Known, text: impl Into<String>) {
        self.remarks.push(Remark {
            line: setting.line,
            key: setting.name.clone(),
            text: sanitize::text(&text.into()),
        });
    }

    fn not(&mut self, setting: &Known, why: &str) {
        self.remark(setting, format!("{NOT}: {why}"));
    }

    /// Adds a setting, or reports why it cannot be had.
    fn add(&mut self, table: &[&str], key: &'static str, value: Value, from: &Known) {
        if let Err(why) = self.draft.add(table, key, value, origin(from)) {
            self.not(from, &format!("{why}; correct it and set '{key}'"));
        }
    }

    /// Finds all settings of a key that are not empty.
    fn all(&self, module: Option<&str>, name: &str) -> Vec<&'a Known> {
        let is_it = |setting: &&Known| {
            let same = match (&setting.key, module) {
                (Key::Site(key), None) => *key == name,
                (Key::Module(of, key), Some(module)) => of == module && *key == name,
                _ => false,
            };
            same && !setting.value.is_empty()
        };
        self.settings.iter().filter(is_it).collect()
    }

    /// Finds the setting of a key that counts.
    fn last(&self, module: Option<&str>, name: &str) -> Option<&'a Known> {
        self.all(module, name).pop()
    }

    fn site(&self, name: &str) -> Option<&'a Known> {
        self.last(None, name)
    }

    /// Reports unknown keys, keys without a counterpart, and settings that a later one replaces.
    fn report_what_does_not_count(&mut self) {
        for (at, setting) in self.settings.iter().enumerate() {
            let (adds_up, why) = match &setting.key {
                Key::Unknown => (true, Some("there is no such key; nothing to do")),
                Key::Site(name) => (ADD_UP.contains(name), dropped(name)),
                Key::Module(_, name) => (*name == "siteFs", None),
            };
            let again = self.settings[at + 1..]
                .iter()
                .find(|later| later.key == setting.key);
            match (why, again) {
                // An empty value says nothing that could be lost.
                _ if setting.value.is_empty() => {}
                (_, Some(later)) if !adds_up => {
                    self.not(setting, &format!("line {} sets it again", later.line));
                }
                (Some(why), _) => self.not(setting, why),
                (None, _) => {}
            }
        }
    }

    fn general(&mut self, options: &Options) {
        if let Some(setting) = self.site("system") {
            self.add(&[], "system", Value::Text(setting.value.clone()), setting);
        }
        if let Some(prefix) = options.prefix.as_deref().and_then(|path| path.to_str()) {
            let from = "where this shifter-config is installed".to_owned();
            // A prefix that cannot be written is the default.
            let _ = self
                .draft
                .add(&[], "prefix", Value::Text(prefix.into()), from);
        }
        if let Some(setting) = self.site("udiRootPath") {
            self.not(
                setting,
                "it is where the C Shifter is installed; 'prefix' says where this one is",
            );
        }
        if let Some(setting) = self.site("defaultImageType") {
            self.default_image_type(setting);
        }
        if let Some(setting) = self.site("defaultModules") {
            self.default_modules(setting);
        }
    }

    fn default_image_type(&mut self, setting: &Known) {
        let name = Value::Text(setting.value.clone());
        if try_alone(&[], "default_image_type", &name).is_err() {
            // A type of the site's own.
            let types = Value::list([setting.value.clone()]);
            if let Err(why) = self.draft.add(&[], "image_types", types, origin(setting)) {
                return self.not(setting, &why);
            }
        }
        self.draft
            .add_tried(&[], "default_image_type", name, origin(setting));
    }

    fn default_modules(&mut self, setting: &Known) {
        let known = self.module_names();
        let mut names: Vec<String> = Vec::new();
        for name in words(&setting.value.replace(',', " ")) {
            if name == "none" {
                continue;
            }
            let conflicts = |one: &str, other: &str| {
                let setting = self.last(Some(one), "conflict");
                setting.is_some_and(|setting| words(&setting.value).iter().any(|w| w == other))
            };
            let is_enemy = |other: &&String| conflicts(&name, other) || conflicts(other, &name);
            let why = if !known.contains(&name) {
                format!("there is no module '{name}'")
            } else if !self.is_enabled(&name) {
                format!("module '{name}' is not enabled")
            } else if let Some(other) = names.iter().chain([&name]).find(is_enemy) {
                format!("module '{name}' cannot be used together with '{other}'")
            } else {
                names.push(name);
                continue;
            };
            self.not(setting, &why);
        }
        if !names.is_empty() {
            self.draft
                .add_tried(&[], "default_modules", Value::list(names), origin(setting));
        }
    }

    fn store(&mut self) {
        if let Some(setting) = self.site("imagePath") {
            self.add(
                &["store"],
                "path",
                Value::Text(setting.value.clone()),
                setting,
            );
            self.remark(
                setting,
                "look at it: set 'store.image_owner' to the uid that owns this directory, unless \
                 that is root",
            );
        }
        if let Some(setting) = self.site("allowLocalChroot")
            && is_set(&setting.value)
        {
            self.not(
                setting,
                "it allowed every directory as an image; name those you want in \
                 'store.local_dirs', or by a name of their own in 'store.trees'",
            );
        }
    }

    fn root(&mut self) {
        self.site_mounts(&["root"], None);
        if let Some(setting) = self.site("optUdiImage") {
            let path = Value::Text(setting.value.clone());
            self.add(&["root"], "udi_image", path, setting);
            self.remark(
                setting,
                "look at it: the directory holds programs of the C Shifter, which every container \
                 sees in /opt/udiImage",
            );
        }
        let remarks: [(&str, Applies, &str); 6] = [
            (
                "etcPath",
                |_| true,
                "a container's /etc is the image's, with accounts of the user's own and the host's \
                 view of the network; mount further files with 'root.site_mounts', as in \
                 '/DIR/FILE:/etc/FILE'",
            ),
            (
                "rootfsType",
                |value| value != "tmpfs",
                "a root is always a tmpfs; 'root.tmpfs_size_mib' limits it",
            ),
            (
                "mountUdiRootWritable",
                is_set,
                "a root is read-only; users who must write call 'shifter --writable-tmpfs'",
            ),
            (
                "allowLibcPwdCalls",
                |value| !is_set(value),
                "outside of jobs a user is looked up with 'getent passwd'; nothing to do",
            ),
            (
                "populateEtcDynamically",
                |value| !is_set(value),
                "passwd and group are always made for the user; nothing to do",
            ),
            (
                "mountPropagationStyle",
                |value| !matches!(value, "slave" | "private"),
                "it is neither 'slave' nor 'private'",
            ),
        ];
        for (name, applies, why) in remarks {
            if let Some(setting) = self.site(name)
                && applies(&setting.value)
            {
                self.not(setting, why);
            }
        }
    }

    /// Carries volume maps over, entry by entry.
    fn site_mounts(&mut self, table: &[&str], module: Option<&str>) {
        let style = self.site("mountPropagationStyle").map(|s| &*s.value);
        let is_slave = style == Some("slave");
        let settings = self.all(module, "siteFs");
        let mut entries = Vec::new();
        for setting in &settings {
            // The C Shifter separates entries by `;`, its documents by spaces; it drops spaces.
            for entry in setting
                .value
                .split(|c: char| c == ';' || c.is_ascii_whitespace())
            {
                let entry = entry.trim_matches('"');
                if entry.is_empty() {
                    continue;
                }
                let entry = propagate(entry, is_slave);
                let value = Value::list([entry.clone()]);
                match try_alone(table, "site_mounts", &value) {
                    Ok(()) => {
                        if let Some(meant) = without_what_c_drops(&entry) {
                            let why = format!(
                                "look at it: the C Shifter took '{entry}' for '{meant}'; write the \
                                 one that is meant"
                            );
                            self.remark(setting, why);
                        }
                        entries.push(entry);
                    }
                    Err(why) => {
                        let why = format!("{why}; correct it and set 'site_mounts'");
                        self.not(setting, &why);
                    }
                }
            }
        }
        if let (Some(first), false) = (settings.first(), entries.is_empty()) {
            let mut origin = origins(&settings);
            if is_slave {
                origin += ", mountPropagationStyle";
            }
            let value = Value::List(entries);
            if let Err(why) = self.draft.add(table, "site_mounts", value, origin) {
                self.not(first, &why);
            }
        }
    }

    fn env(&mut self, table: &[&str], module: Option<&str>) {
        for (name, key) in [
            ("siteEnv", "set"),
            ("siteEnvAppend", "append"),
            ("siteEnvPrepend", "prepend"),
        ] {
            let settings = self.adding_up(module, name);
            let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for setting in &settings {
                for word in words(&setting.value) {
                    let Some((variable, value)) = word.split_once('=') else {
                        let why = format!("'{word}' is not NAME=value; add it to '{key}'");
                        self.not(setting, &why);
                        continue;
                    };
                    let one = Value::Map([(variable.into(), value.into())].into());
                    match try_alone(table, key, &one) {
                        Ok(()) => values
                            .entry(variable.to_owned())
                            .or_default()
                            .push(value.to_owned()),
                        Err(why) => self.not(setting, &why),
                    }
                }
            }
            if !values.is_empty() {
                let one = |(variable, values)| (variable, join(key, values));
                let value = Value::Map(values.into_iter().map(one).collect());
                self.draft.add_tried(table, key, value, origins(&settings));
            }
        }
        let settings = self.adding_up(module, "siteEnvUnset");
        let mut names = Vec::new();
        for setting in &settings {
            for name in words(&setting.value) {
                match try_alone(table, "unset", &Value::list([&*name])) {
                    Ok(()) => names.push(name),
                    Err(why) => self.not(setting, &why),
                }
            }
        }
        if !names.is_empty() {
            self.draft
                .add_tried(table, "unset", Value::List(names), origins(&settings));
        }
    }

    /// Finds the settings of a list: all of the site's, the last of a module's.
    fn adding_up(&self, module: Option<&str>, name: &str) -> Vec<&'a Known> {
        match module {
            None => self.all(None, name),
            Some(_) => self.last(module, name).into_iter().collect(),
        }
    }

    /// Returns the names of the modules that can have a table.
    fn module_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for setting in self.settings {
            if let Key::Module(name, _) = &setting.key
                && !names.contains(name)
                && try_alone(&["module", name], "enabled", &Value::Flag(true)).is_ok()
            {
                names.push(name.clone());
            }
        }
        names
    }

    fn is_enabled(&self, name: &str) -> bool {
        let enabled = self.last(Some(name), "enabled");
        enabled.is_none_or(|setting| is_set(&setting.value))
    }

    fn modules(&mut self) {
        let names = self.module_names();
        for setting in self.settings {
            if let Key::Module(name, _) = &setting.key
                && !names.contains(name)
            {
                self.not(
                    setting,
                    "a module's name is letters, digits and '._+-', and not 'none'; rename it",
                );
            }
        }
        for name in &names {
            self.module(name, &names);
        }
    }

    fn module(&mut self, name: &str, names: &[String]) {
        let table = ["module", name];
        let enabled = self.last(Some(name), "enabled");
        let from = enabled.map_or_else(|| format!("module '{name}'"), origin);
        let is_enabled = Value::Flag(self.is_enabled(name));
        self.draft.add_tried(&table, "enabled", is_enabled, from);
        if let Some(setting) = self.last(Some(name), "conflict") {
            let (mut known, mut unknown) = (Vec::new(), Vec::new());
            for other in words(&setting.value) {
                let list = if names.contains(&other) {
                    &mut known
                } else {
                    &mut unknown
                };
                list.push(other);
            }
            for other in unknown {
                self.not(setting, &format!("there is no module '{other}'"));
            }
            if !known.is_empty() {
                self.draft
                    .add_tried(&table, "conflicts", Value::List(known), origin(setting));
            }
        }
        self.site_mounts(&table, Some(name));
        if let Some(setting) = self.last(Some(name), "copyPath") {
            let path = Value::Text(setting.value.clone());
            self.add(&table, "copy_path", path, setting);
        }
        self.hook(&table, "root_hook", self.last(Some(name), "roothook"));
        self.hook(&table, "user_hook", self.last(Some(name), "userhook"));
        self.env(&["module", name, "env"], Some(name));
    }

    fn hooks(&mut self) {
        self.hook(&["hooks"], "pre_mount", self.site("sitePreMountHook"));
        self.hook(&["hooks"], "post_mount", self.site("sitePostMountHook"));
    }

    /// A hook of the C Shifter's is the path of a script for /bin/sh.
    fn hook(&mut self, table: &[&str], key: &'static str, setting: Option<&Known>) {
        let Some(setting) = setting else { return };
        let words = Value::list([setting.value.clone()]);
        match self.draft.add(table, key, words, origin(setting)) {
            Ok(()) => self.remark(
                setting,
                "look at it: the C Shifter gave the script to /bin/sh; it is now executed, so it \
                 must have mode 0755 and begin with '#!/bin/sh'",
            ),
            Err(why) => self.not(setting, &format!("{why}; correct it and set '{key}'")),
        }
    }

    fn caches(&mut self) {
        let limit = self.site("perNodeCacheSizeLimit");
        let types = self.site("perNodeCacheAllowedFsType");
        let Some(path) = self.site("perNodeCachePath") else {
            for setting in [limit, types].into_iter().flatten() {
                self.not(
                    setting,
                    "there is no perNodeCachePath; users have no caches",
                );
            }
            return;
        };
        // Whatever a user names before the colon: the C Shifter has one directory for all.
        let table = ["per_node_cache", "/"];
        let before = self.remarks.len();
        self.add(&table, "dir", Value::Text(path.value.clone()), path);
        if self.remarks.len() > before {
            return;
        }
        self.remark(
            path,
            "look at it: the directory must have mode 0700 and belong to root or 'owner'; name the \
             table after the file system in which users may have caches",
        );
        if let Some(setting) = limit {
            match size(&setting.value) {
                Some(size) => {
                    let value = Value::Text(size);
                    self.draft
                        .add_tried(&table, "size_limit", value, origin(setting));
                    self.remark(
                        setting,
                        "look at it: the C Shifter did not enforce it; it is enforced now",
                    );
                }
                None => self.not(setting, "it is no size; set 'size_limit'"),
            }
        }
        if let Some(setting) = types {
            let (known, unknown): (Vec<_>, Vec<_>) = words(&setting.value)
                .into_iter()
                .partition(|name| matches!(&**name, "xfs" | "ext4"));
            for name in unknown {
                let why = format!("'{name}': a cache is xfs or ext4; remove it");
                self.not(setting, &why);
            }
            if !known.is_empty() {
                self.draft
                    .add_tried(&table, "fs_types", Value::List(known), origin(setting));
            }
        }
    }

    fn kernel(&mut self) {
        if let Some(setting) = self.site("autoLoadKernelModule")
            && is_set(&setting.value)
        {
            let mut modules = vec!["loop", "squashfs", "overlay"];
            // For per-node caches, unless they are to have other file systems alone.
            let types = self.site("perNodeCacheAllowedFsType");
            let has_xfs = types.is_none_or(|types| words(&types.value).iter().any(|t| t == "xfs"));
            if has_xfs && self.site("perNodeCachePath").is_some() {
                modules.push("xfs");
            }
            self.add(&["kernel"], "preload", Value::list(modules), setting);
        }
        if let Some(setting) = self.site("kmodBasePath") {
            let path = Value::Text(setting.value.clone());
            self.add(&["kernel"], "kmod_base_path", path, setting);
        }
    }
}

/// Says which line something came from.
fn origin(setting: &Known) -> String {
    format!("{}, line {}", setting.name, setting.line)
}

fn origins(settings: &[&Known]) -> String {
    let lines: Vec<String> = settings.iter().map(|s| s.line.to_string()).collect();
    let name = settings.first().map_or("", |setting| &setting.name);
    let noun = if lines.len() == 1 { "line" } else { "lines" };
    format!("{name}, {noun} {}", lines.join(", "))
}
