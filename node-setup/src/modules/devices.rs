//! Devices of modules: the specifications (CDI) on this node, and what of them a root gets.
//!
//! No hook of a specification runs. Libraries that it mounts are found through links in the
//! module's own directory, so that neither the image's linker cache nor the order in which the
//! image's directories are searched changes.

use std::fs;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, major, minor};
use shifter_core::cdi::{self, DeviceNode, Edits, Mount, Spec, Specs};
use shifter_core::chain::line as chain;
use shifter_core::config::Module;
use shifter_core::trusted;
use shifter_core::volmap::contains;

use super::place::{Part, UDI_IMAGE, read_library};
use super::selected;
use crate::error::{Error, Result};
use crate::mnt::open_host;
use crate::root::RootRequest;
use crate::volumes::Planned;

/// Where the dynamic linker looks by itself.
pub const LIBRARY_DIRS: [&str; 8] = [
    "/lib64",
    "/usr/lib64",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib",
    "/usr/lib",
];

/// Nothing is mounted on these, nor on what contains them.
const RESERVED: [&str; 8] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/nsswitch.conf",
    "/var",
    "/proc",
    "/sys",
    UDI_IMAGE,
];

/// The specifications of this node.
#[derive(Default)]
pub struct Found {
    specs: Specs,
    /// Files that are none, and why: told only to who misses a device.
    broken: Vec<String>,
}

/// Reads every specification of the node, if a module needs one.
///
/// # Errors
/// [`Error::Untrusted`] where somebody else than root could have written one.
pub fn read_specs(request: &RootRequest<'_>) -> Result<Found> {
    let mut found = Found::default();
    let modules = selected(request.config, request.modules)?;
    if modules.iter().all(|module| module.cdi.is_empty()) {
        return Ok(found);
    }
    for (rank, dir) in request.config.root.cdi_dirs.iter().enumerate() {
        let Ok(entries) = fs::read_dir(dir) else {
            continue; // A directory that nobody needs.
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let is_json = match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => true,
                Some("yaml") => false,
                _ => continue,
            };
            let bytes = trusted::read(&path, cdi::SIZE_LIMIT).map_err(Error::Untrusted)?;
            let origin = path.to_string_lossy().into_owned();
            match Spec::parse(&bytes, is_json) {
                Ok(spec) => found.specs.add(rank, origin, spec),
                Err(error) => found.broken.push(format!("'{origin}': {}", chain(&error))),
            }
        }
    }
    Ok(found)
}

/// Plans what a module's devices need. Returns a warning that names what is not done.
///
/// # Errors
/// [`Error::Denied`] where the node has no such devices; [`Error::Module`] where it does not have
/// what their specification says.
pub fn bring(part: &mut Part<'_>, module: &Module, found: &Found) -> Result<Option<String>> {
    if module.cdi.is_empty() {
        return Ok(None);
    }
    let mut edits = found.specs.select(&module.cdi).map_err(|error| {
        // A node that never had such devices is in order, and not to be taken out of service.
        let is_elsewhere = |device: &String| !found.specs.have_kind_of(device);
        if found.broken.is_empty() && module.cdi.iter().any(is_elsewhere) {
            return Error::Denied {
                what: format!(
                    "module '{}' cannot be used on this node: {error}",
                    part.name
                ),
                hint: Some("use nodes that have the device, or --module=none"),
            };
        }
        let broken = found.broken.iter().map(|why| format!("; {why}"));
        part.fault(format!("{error}{}", broken.collect::<String>()))
    })?;
    for node in &edits.nodes {
        bring_node(part, node)?;
    }
    for mount in &edits.mounts {
        bring_mount(part, mount, &edits)?;
    }
    bring_links(part, &mut edits);
    let own = edits.library_dirs.iter();
    let own = own.filter(|dir| !LIBRARY_DIRS.contains(&dir.as_str()));
    part.library_dirs.extend(own.cloned());
    part.env.set.extend(edits.env);
    Ok((!edits.ignored.is_empty()).then(|| {
        let name = part.name;
        format!("module '{name}': left out: {}", edits.ignored.join(", "))
    }))
}

/// Makes sure that a device is there: mostly it is, as a container has the host's /dev.
fn bring_node(part: &mut Part<'_>, node: &DeviceNode) -> Result<()> {
    let DeviceNode {
        path,
        host_path,
        is_block,
        number,
    } = node;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::open(host_path.as_str(), flags, Mode::empty());
    let stat = opened.and_then(|source| Ok((rustix::fs::fstat(&source)?, source)));
    let (stat, source) = stat.map_err(|error| {
        let reason = std::io::Error::from(error);
        part.fault(format!("device '{host_path}': {reason}"))
    })?;
    let is = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => Some(false),
        FileType::BlockDevice => Some(true),
        _ => None,
    };
    let is_number = (major(stat.st_rdev), minor(stat.st_rdev));
    if is.is_none() || is_block.is_some_and(|block| is != Some(block)) {
        return Err(part.fault(format!("'{host_path}' is not the device it should be")));
    }
    if number.is_some_and(|number| number != is_number) {
        let (major, minor) = is_number;
        let reason = format!("device '{host_path}' has number {major}:{minor}");
        return Err(part.fault(format!("{reason}, not as its specification says")));
    }
    if path == host_path && contains("/dev", path) {
        return Ok(());
    }
    if contains("/dev", path) && !Path::new(path).exists() {
        return Err(part.fault(format!("the host has no '{path}' to show '{host_path}' at")));
    }
    check_target(part, path)?;
    part.mounts.push(Planned::device(path, &source)?);
    Ok(())
}

fn check_target(part: &Part<'_>, path: &str) -> Result<()> {
    let below = ["/proc", "/sys", UDI_IMAGE]
        .iter()
        .any(|dir| contains(dir, path));
    if below || RESERVED.iter().any(|reserved| contains(path, reserved)) {
        return Err(part.fault(format!("nothing can be mounted at '{path}'")));
    }
    Ok(())
}

fn bring_mount(part: &mut Part<'_>, mount: &Mount, edits: &Edits) -> Result<()> {
    let Mount {
        host_path,
        container_path,
        is_recursive,
    } = mount;
    check_target(part, container_path)?;
    let source = open_host(host_path).map_err(|error| {
        let reason = std::io::Error::from(error);
        part.fault(format!("'{host_path}': {reason}"))
    })?;
    part.mounts
        .push(Planned::read_only(container_path, &source, *is_recursive)?);
    let (dir, name) = container_path.rsplit_once('/').unwrap_or_default();
    if is_searched(dir, edits)
        && name.contains(".so")
        && let Ok(elf) = read_library(Path::new(host_path), name)
    {
        // The name that ldconfig would give it, and its own: no linker cache knows either.
        part.link(name, container_path);
        if let Some(soname) = elf.soname {
            part.link(&soname, container_path);
        }
    }
    Ok(())
}

fn is_searched(dir: &str, edits: &Edits) -> bool {
    LIBRARY_DIRS.contains(&dir) || edits.library_dirs.iter().any(|own| own == dir)
}

/// Makes the links that lead to libraries, in the module's own directory; names the others.
fn bring_links(part: &mut Part<'_>, edits: &mut Edits) {
    for link in std::mem::take(&mut edits.links) {
        let (dir, name) = link.path.rsplit_once('/').unwrap_or_default();
        let target = link.target.rsplit('/').next().unwrap_or_default();
        if !name.contains(".so") || !is_searched(dir, edits) {
            edits.ignored.push(format!("link '{}'", link.path));
        } else if part.has(target) {
            part.link(name, target);
        } else {
            part.link(name, &link.target);
        }
    }
}
