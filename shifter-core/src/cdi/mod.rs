//! Specifications of devices in the form of the Container Device Interface (CDI 0.3 to 1.x), as
//! `nvidia-ctk` and `amd-ctk` write them: what they say, and what of it a container gets.
//!
//! Nothing here is executed. Of the hooks that a specification names, two are known by what they
//! achieve: `update-ldcache --folder DIR` makes libraries found, and `create-symlinks --link
//! TARGET::PATH` gives them further names; both become data. Every other hook, and whatever else
//! cannot be given to a container of ours, is listed in [`Edits::ignored`].

pub mod yaml;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use thiserror::Error;

use self::yaml::YamlError;
use crate::sanitize;

/// Bytes that a specification may have.
pub const SIZE_LIMIT: u64 = 4 << 20;

/// Says why a specification or a device of one cannot be used.
#[derive(Debug, Error)]
pub enum CdiError {
    /// It is not UTF-8.
    #[error("it is not UTF-8 text")]
    NotText,
    /// It is not JSON of the expected shape.
    #[error("it is not a specification of devices")]
    Shape(#[from] serde_json::Error),
    /// It is not YAML, or not of the part of YAML that is understood.
    #[error("it cannot be read")]
    Yaml(#[from] YamlError),
    /// Another version of the interface.
    #[error("its version '{}' is none of 0.3 to 1.x", sanitize::text(.0))]
    Version(String),
    /// A value is not what it must be.
    #[error("its {field} '{}' is not well-formed", sanitize::text(.value))]
    Field {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// No specification has the device.
    #[error("there is no specification of device '{0}'")]
    NoDevice(String),
    /// Two specifications of the same rank have the device.
    #[error("device '{device}' is in '{one}' and in '{other}'")]
    Conflict {
        /// The device.
        device: String,
        /// A specification.
        one: String,
        /// The other one.
        other: String,
    },
}

/// A specification, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// `vendor/class`.
    pub kind: String,
    /// The devices, by name, and what each needs.
    devices: Vec<(String, Edits)>,
    /// What every device needs.
    edits: Edits,
}

/// What devices change in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Variables to be set.
    pub env: Vec<(String, String)>,
    /// Device nodes to be there.
    pub nodes: Vec<DeviceNode>,
    /// Files and directories of the host to be shown.
    pub mounts: Vec<Mount>,
    /// Directories of the container in which libraries are to be found.
    pub library_dirs: Vec<String>,
    /// Links to be there.
    pub links: Vec<Link>,
    /// What is asked for and not done, in words.
    pub ignored: Vec<String>,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// Where it is in the container.
    pub path: String,
    /// Where it is on the host.
    pub host_path: String,
    /// The kind of device, where the specification says it: true for a block device.
    pub is_block: Option<bool>,
    /// Its number, where the specification says it.
    pub number: Option<(u32, u32)>,
}

/// A file or directory of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is on the host.
    pub host_path: String,
    /// Where it is in the container.
    pub container_path: String,
    /// With what is mounted below it.
    pub is_recursive: bool,
}

/// A symbolic link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where it is.
    pub path: String,
    /// Where it leads, as an absolute path.
    pub target: String,
}

impl Spec {
    /// Parses a specification, in YAML or, where `is_json`, in JSON.
    ///
    /// # Errors
    /// [`CdiError`] says what of it cannot be used.
    pub fn parse(bytes: &[u8], is_json: bool) -> Result<Self, CdiError> {
        let text = str::from_utf8(bytes).map_err(|_| CdiError::NotText)?;
        let raw: RawSpec = if is_json {
            serde_json::from_str(text)?
        } else {
            serde_json::from_value(yaml::parse(text)?)?
        };
        raw.check()
    }

    fn device(&self, name: &str) -> Option<&Edits> {
        let mut devices = self.devices.iter();
        devices.find(|(own, _)| own == name).map(|(_, edits)| edits)
    }
}

/// The specifications of a machine, with where each comes from and its rank.
#[derive(Debug, Default)]
pub struct Specs {
    found: Vec<(usize, String, Spec)>,
}

impl Specs {
    /// Adds a specification; where two have a device, that of the higher rank counts.
    pub fn add(&mut self, rank: usize, origin: String, spec: Spec) {
        self.found.push((rank, origin, spec));
    }

    /// True if there is a specification of devices of the kind of this one.
    pub fn have_kind_of(&self, device: &str) -> bool {
        let (kind, _) = device.split_once('=').unwrap_or_default();
        self.found.iter().any(|(_, _, spec)| spec.kind == kind)
    }

    /// Returns what the devices, each `vendor/class=name`, need together: first what a
    /// specification has for all of its devices, then what it has for each.
    ///
    /// # Errors
    /// [`CdiError::NoDevice`] and [`CdiError::Conflict`].
    pub fn select(&self, devices: &[String]) -> Result<Edits, CdiError> {
        let mut edits = Edits::default();
        let mut used: Vec<&str> = Vec::new();
        for device in devices {
            let (kind, name) = device.split_once('=').unwrap_or_default();
            let having = self.found.iter().filter_map(|(rank, origin, spec)| {
                let edits = (spec.kind == kind).then(|| spec.device(name))??;
                Some((*rank, origin, spec, edits))
            });
            let mut having: Vec<_> = having.collect();
            having.sort_by_key(|(rank, ..)| std::cmp::Reverse(*rank));
            let (origin, spec, own) = match having.as_slice() {
                [] => return Err(CdiError::NoDevice(device.clone())),
                [(rank, one, ..), (next, other, ..), ..] if rank == next => {
                    return Err(CdiError::Conflict {
                        device: device.clone(),
                        one: (*one).clone(),
                        other: (*other).clone(),
                    });
                }
                [(_, origin, spec, own), ..] => (*origin, *spec, *own),
            };
            if !used.contains(&origin.as_str()) {
                used.push(origin);
                edits.add(&spec.edits);
            }
            edits.add(own);
        }
        Ok(edits)
    }
}

impl Edits {
    /// Adds other edits; what is the same stays one.
    fn add(&mut self, other: &Edits) {
        fn extend<T: Clone + PartialEq>(list: &mut Vec<T>, more: &[T]) {
            for element in more {
                if !list.contains(element) {
                    list.push(element.clone());
                }
            }
        }
        extend(&mut self.env, &other.env);
        extend(&mut self.nodes, &other.nodes);
        extend(&mut self.mounts, &other.mounts);
        extend(&mut self.library_dirs, &other.library_dirs);
        extend(&mut self.links, &other.links);
        extend(&mut self.ignored, &other.ignored);
    }
}

/// A specification as it is written. Keys that we do not know are left to those who do.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    cdi_version: String,
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    devices: Vec<RawDevice>,
    #[serde(default, deserialize_with = "or_default")]
    container_edits: RawEdits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDevice {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    container_edits: RawEdits,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawEdits {
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    device_nodes: Vec<RawNode>,
    #[serde(deserialize_with = "or_default")]
    mounts: Vec<RawMount>,
    #[serde(deserialize_with = "or_default")]
    hooks: Vec<RawHook>,
    #[serde(deserialize_with = "or_default", alias = "additionalGIDs")]
    additional_gids: Vec<Value>,
    intel_rdt: Value,
    net_devices: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawNode {
    path: String,
    #[serde(default)]
    host_path: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    major: Value,
    #[serde(default)]
    minor: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMount {
    host_path: String,
    container_path: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawHook {
    #[serde(default)]
    hook_name: String,
    path: String,
    #[serde(default, deserialize_with = "or_default")]
    args: Vec<String>,
}

/// Takes null for nothing, as Go's programs write it.
fn or_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl RawSpec {
    fn check(self) -> Result<Spec, CdiError> {
        if !is_known_version(&self.cdi_version) {
            return Err(CdiError::Version(self.cdi_version));
        }
        let is_kind = self
            .kind
            .split_once('/')
            .is_some_and(|(vendor, class)| is_name(vendor) && is_name(class));
        if !is_kind {
            return field("kind", self.kind);
        }
        let mut spec = Spec {
            kind: self.kind,
            devices: Vec::new(),
            edits: self.container_edits.check()?,
        };
        for device in self.devices {
            if !is_name(&device.name) || spec.device(&device.name).is_some() {
                return field("device name", device.name);
            }
            spec.devices
                .push((device.name, device.container_edits.check()?));
        }
        Ok(spec)
    }
}

fn field<T>(field: &'static str, value: String) -> Result<T, CdiError> {
    Err(CdiError::Field { field, value })
}

/// 0.3 was the first version in use; within 1 there are only additions.
fn is_known_version(text: &str) -> bool {
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
    let mut next = || parts.next()?.parse::<u32>().ok();
    match (next(), next()) {
        (Some(0), Some(minor)) => minor >= 3,
        (Some(major), Some(_)) => major == 1,
        _ => false,
    }
}

fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    let outer = |c: char| c.is_ascii_alphanumeric();
    (1..=253).contains(&text.len())
        && text.chars().all(inner)
        && text.starts_with(outer)
        && text.ends_with(outer)
}

/// Brings an absolute path into its shortest form; '..' is followed by name alone.
fn normal(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// Insists on an absolute path other than `/`, without `..`.
fn place(what: &'static str, path: String) -> Result<String, CdiError> {
    match normal(&path) {
        Some(normal) if normal != "/" && !path.split('/').any(|part| part == "..") => Ok(normal),
        _ => field(what, path),
    }
}

impl RawEdits {
    fn check(self) -> Result<Edits, CdiError> {
        let mut edits = Edits::default();
        for text in self.env {
            match text.split_once('=') {
                Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
                    edits.env.push((name.to_owned(), value.to_owned()));
                }
                _ => return field("variable", text),
            }
        }
        for node in self.device_nodes {
            edits.nodes.push(node.check()?);
        }
        for mount in self.mounts {
            mount.check(&mut edits)?;
        }
        for hook in self.hooks {
            hook.interpret(&mut edits);
        }
        if self.additional_gids.iter().any(|gid| !is_zero(gid)) {
            edits.ignored.push("additional groups".into());
        }
        let others = [
            (self.intel_rdt, "intelRdt"),
            (self.net_devices, "network devices"),
        ];
        for (value, name) in others {
            if !value.is_null() {
                edits.ignored.push(name.into());
            }
        }
        Ok(edits)
    }
}

/// Zero, as a number or as text.
fn is_zero(value: &Value) -> bool {
    integer(value) == Some(0)
}

fn integer(value: &Value) -> Option<u32> {
    match value {
        Value::Number(number) => number.as_u64()?.try_into().ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

impl RawNode {
    fn check(self) -> Result<DeviceNode, CdiError> {
        let path = place("device node", self.path)?;
        let host_path = match self.host_path.filter(|path| !path.is_empty()) {
            Some(host_path) => place("device node", host_path)?,
            None => path.clone(),
        };
        let is_block = match self.kind.as_deref() {
            None | Some("") => None,
            Some("b") => Some(true),
            Some("c" | "u") => Some(false),
            Some(other) => return field("kind of device", other.to_owned()),
        };
        let number = match (&self.major, &self.minor) {
            (Value::Null, Value::Null) => None,
            (major, minor) => {
                let part = |value: &Value| {
                    if value.is_null() {
                        Some(0)
                    } else {
                        integer(value)
                    }
                };
                match (part(major), part(minor)) {
                    // What Go's programs write where nothing is said.
                    (Some(0), Some(0)) => None,
                    (Some(major), Some(minor)) => Some((major, minor)),
                    _ => return field("device number", format!("{major}:{minor}")),
                }
            }
        };
        Ok(DeviceNode {
            path,
            host_path,
            is_block,
            number,
        })
    }
}

impl RawMount {
    fn check(self, edits: &mut Edits) -> Result<(), CdiError> {
        let container_path = place("container path", self.container_path)?;
        let has = |name| self.options.iter().any(|option| option == name);
        let is_bind = has("bind") || has("rbind");
        match self.kind.as_deref() {
            None | Some("" | "none" | "bind") => {}
            Some(_) if is_bind => {}
            Some(kind) => {
                edits
                    .ignored
                    .push(format!("mount of type '{kind}' at '{container_path}'"));
                return Ok(());
            }
        }
        edits.mounts.push(Mount {
            host_path: place("host path", self.host_path)?,
            container_path,
            is_recursive: has("rbind"),
        });
        Ok(())
    }
}

impl RawHook {
    /// Turns the hooks that are known by what they achieve into data.
    fn interpret(self, edits: &mut Edits) {
        let known = [
            "update-ldcache",
            "create-symlinks",
            "disable-device-node-modification",
        ];
        let command = self.args.iter().find(|arg| known.contains(&arg.as_str()));
        match command.map(String::as_str) {
            Some("update-ldcache") => {
                let folders = self.values("--folder").into_iter();
                edits
                    .library_dirs
                    .extend(folders.filter_map(|dir| normal(&dir)));
            }
            Some("create-symlinks") => {
                for text in self.values("--link") {
                    match link(&text) {
                        Some(link) => edits.links.push(link),
                        None => edits.ignored.push(format!("link '{text}'")),
                    }
                }
            }
            // It hides a setting of the host from containers that could change it: ours cannot.
            Some(_) => {}
            None => {
                let program = self.path.rsplit('/').next().unwrap_or_default();
                let what = match self.args.get(1) {
                    Some(command) if !command.starts_with('-') => format!("{program} {command}"),
                    _ => program.to_owned(),
                };
                let stage = if self.hook_name.is_empty() {
                    String::new()
                } else {
                    format!("{} ", self.hook_name)
                };
                edits.ignored.push(format!("{stage}hook '{what}'"));
            }
        }
    }

    /// Returns the values of an option, `--name value` or `--name=value`.
    fn values(&self, name: &str) -> Vec<String> {
        let mut values = Vec::new();
        let mut args = self.args.iter();
        while let Some(arg) = args.next() {
            if arg == name {
                values.extend(args.next().cloned());
            } else if let Some(value) = arg.strip_prefix(name).and_then(|v| v.strip_prefix('=')) {
                values.push(value.to_owned());
            }
        }
        values
    }
}

/// Reads `target::path`; a relative target starts from the link's directory.
fn link(text: &str) -> Option<Link> {
    let (target, path) = text.split_once("::")?;
    let path = normal(path)?;
    let (dir, name) = path.rsplit_once('/')?;
    let target = if target.starts_with('/') {
        normal(target)?
    } else {
        normal(&format!("{dir}/{target}"))?
    };
    (!name.is_empty() && target != "/" && target != path).then_some(Link { path, target })
}
