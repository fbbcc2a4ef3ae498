//! What is put into a root below /opt/udiImage: the product's own programs and what modules bring.
//!
//! ```text
//! /opt/udiImage                            the site's directory, the product's and ours over it
//!   bin/shifter                            for scripts that say `shifter COMMAND` inside
//!   modules/environment.json               changes to the environment that no configuration says
//!   modules/NAME                           copy_path, with ours over it
//!   modules/NAME/lib/libmpi.so.12          a library of the host, as a mount
//!   modules/NAME/lib/libmpi.so.12.2.2      further names of it, as links
//! ```
//!
//! "Ours" is a directory on the root's tmpfs, as an overlay where there is something of the
//! site's below it. A module's site mounts are the site's: see [`crate::volumes`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use shifter_core::config::Module;
use shifter_core::elf::Elf;
use shifter_core::env::EnvChanges;
use shifter_core::layout;
use shifter_core::pattern;
use shifter_core::trusted::{self, TrustError};

use super::{devices, selected};
use crate::error::{Context, Error, Result};
use crate::mnt::open_host;
use crate::root::RootRequest;
use crate::state;
use crate::volumes::Planned;

/// Where the site's directory appears in every container.
pub const UDI_IMAGE: &str = "/opt/udiImage";

const ENVIRONMENT: &str = "environment.json";

/// Files that one module may bring.
const LIBRARY_LIMIT: usize = 512;

/// The C library and its parts: two of them in one process cannot work.
const C_LIBRARY: [&str; 8] = [
    "ld-linux",
    "ld64",
    "libc.so",
    "libdl.so",
    "libm.so",
    "libpthread.so",
    "libresolv.so",
    "librt.so",
];

/// Names of the same interface: Debian gives its MPICH others than everybody else.
const MPICH_NAMES: [[&str; 2]; 3] = [
    ["libmpi.so.12", "libmpich.so.12"],
    ["libmpifort.so.12", "libmpichfort.so.12"],
    ["libmpicxx.so.12", "libmpichcxx.so.12"],
];

/// What modules bring, ready to be mounted.
#[derive(Default)]
pub struct Brought {
    /// The mounts, in no order.
    pub mounts: Vec<Planned>,
    /// What is asked for and not done.
    pub warnings: Vec<String>,
}

/// A module's part while it is put together.
pub struct Part<'a> {
    /// Its name.
    pub name: &'a str,
    /// Names below its `lib`, and where each leads; those of files brought as mounts to nothing.
    names: BTreeMap<String, Option<String>>,
    /// Directories that are searched for libraries after `lib`.
    pub library_dirs: Vec<String>,
    /// Changes to the environment.
    pub env: EnvChanges,
    /// The mounts.
    pub mounts: Vec<Planned>,
}

/// Opens what the modules and `udi_image` bring; `make_dir` makes an empty directory for it, in
/// the root's namespace and out of the root.
///
/// # Errors
/// [`Error::Module`] and [`Error::Untrusted`] where the node lacks something or it is not root's.
pub fn plan(
    request: &RootRequest<'_>,
    make_dir: impl FnOnce() -> Result<OwnedFd>,
) -> Result<Brought> {
    let mut brought = Brought::default();
    let mut below: Vec<OwnedFd> = products_own(request)?.into_iter().collect();
    if let Some(path) = &request.config.root.udi_image {
        below.push(open_trusted(path)?);
    }
    if request.modules.is_empty() {
        brought.mounts.extend(stacked(&below, request)?);
        return Ok(brought);
    }
    let dir = make_dir()?;
    let modules_dir = make_dir_in(&dir, "modules")?;
    let specs = devices::read_specs(request)?;
    let mut changes: BTreeMap<&str, EnvChanges> = BTreeMap::new();
    let modules = selected(request.config, request.modules)?;
    for (name, module) in request.modules.iter().zip(modules) {
        let mut part = Part {
            name,
            names: BTreeMap::new(),
            library_dirs: Vec::new(),
            env: EnvChanges::default(),
            mounts: Vec::new(),
        };
        part.bring_libraries(module)?;
        if let Some(warning) = devices::bring(&mut part, module, &specs)? {
            brought.warnings.push(warning);
        }
        let own = make_dir_in(&modules_dir, name)?;
        changes.insert(name, part.finish(module, own, &mut brought.mounts)?);
    }
    let bytes = serde_json::to_vec(&changes).map_err(io::Error::from);
    write_file(
        &modules_dir,
        ENVIRONMENT,
        &bytes.step("write", ENVIRONMENT)?,
    )?;
    below.insert(0, dir);
    brought.mounts.extend(stacked(&below, request)?);
    Ok(brought)
}

/// Opens what every container has of the product; nothing where it is not installed.
fn products_own(request: &RootRequest<'_>) -> Result<Option<OwnedFd>> {
    let path = layout::udi_image(&request.config.prefix);
    match open_trusted(&path) {
        Err(Error::Untrusted(TrustError::Unreadable { source, .. }))
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        // Whoever has installed it for themselves alone runs nothing with privilege.
        Err(Error::Untrusted(_)) if request.image.is_rootless() => Ok(None),
        opened => opened.map(Some),
    }
}

/// Makes one mount of directories that are laid over one another, the first one on top.
fn stacked(dirs: &[OwnedFd], request: &RootRequest<'_>) -> Result<Option<Planned>> {
    let is_whole = request.image.is_rootless();
    match dirs {
        [] => Ok(None),
        [only] => Planned::read_only(UDI_IMAGE, only, is_whole).map(Some),
        several => {
            let several: Vec<&OwnedFd> = several.iter().collect();
            Planned::laid_over(UDI_IMAGE, &several).map(Some)
        }
    }
}

/// Reads, in a container, what its modules change in the environment beside what the
/// configuration says.
pub fn environment() -> BTreeMap<String, EnvChanges> {
    let path = format!("{UDI_IMAGE}/modules/{ENVIRONMENT}");
    let text = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Returns where a module's libraries are in a container.
pub fn library_dir(module: &str) -> String {
    format!("{UDI_IMAGE}/modules/{module}/lib")
}

impl Part<'_> {
    /// The error that something of the module's is missing or unfit on this node.
    pub fn fault(&self, reason: String) -> Error {
        Error::Module {
            module: self.name.to_owned(),
            reason,
        }
    }

    /// Gives a library a name in the module's directory; the first one to have it keeps it.
    pub fn link(&mut self, name: &str, target: &str) {
        let is_name = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        if is_name && !self.names.contains_key(name) && name != target {
            self.names.insert(name.to_owned(), Some(target.to_owned()));
        }
    }

    /// True if the module's directory has the name already.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Plans the mounts of the module's libraries.
    fn bring_libraries(&mut self, module: &Module) -> Result<()> {
        let mut known: BTreeMap<PathBuf, String> = BTreeMap::new();
        let mut aliases = Vec::new();
        for pattern in &module.libraries {
            let is_pattern = pattern.contains('*');
            let paths = expand(pattern).map_err(|reason| self.fault(reason))?;
            let mut count = 0;
            for path in paths {
                let name = file_name(&path);
                let real = trusted::audit(&path, &[0]).map_err(Error::Untrusted)?;
                let elf = read_library(&real, &name);
                let elf = match elf {
                    Ok(elf) => elf,
                    // A pattern may match linker scripts, static libraries and directories too.
                    Err(_) if is_pattern => continue,
                    Err(reason) => {
                        return Err(self.fault(format!("'{}': {reason}", path.display())));
                    }
                };
                count += 1;
                if let Some(first) = known.get(&real) {
                    let first = first.clone();
                    self.link(&name, &first);
                    continue;
                }
                if self.has(&name) {
                    continue;
                }
                let source = open_host(&real.to_string_lossy()).step("open", &real)?;
                let target = format!("{}/{name}", library_dir(self.name));
                self.mounts
                    .push(Planned::read_only(&target, &source, false)?);
                self.names.insert(name.clone(), None);
                if let Some(soname) = &elf.soname {
                    self.link(soname, &name);
                    aliases.extend(other_name(&elf, soname).map(|other| (other, name.clone())));
                }
                known.insert(real, name);
                if self.mounts.len() > LIBRARY_LIMIT {
                    return Err(self.fault(format!("it has more than {LIBRARY_LIMIT} libraries")));
                }
            }
            if count == 0 {
                return Err(self.fault(format!("there is no library '{pattern}'")));
            }
        }
        for (alias, name) in aliases {
            self.link(alias, &name);
        }
        Ok(())
    }

    /// Writes the module's directory and returns the changes to the environment.
    fn finish(
        mut self,
        module: &Module,
        own: OwnedFd,
        mounts: &mut Vec<Planned>,
    ) -> Result<EnvChanges> {
        let mut search = Vec::new();
        if !self.names.is_empty() {
            let lib = make_dir_in(&own, "lib")?;
            for (name, target) in &self.names {
                match target {
                    Some(target) => {
                        rustix::fs::symlinkat(target.as_str(), &lib, name.as_str())
                            .step("link", name.as_str())?;
                    }
                    None => write_file(&lib, name, &[])?,
                }
            }
            search.push(library_dir(self.name));
        }
        search.append(&mut self.library_dirs);
        if !search.is_empty() {
            let name = "LD_LIBRARY_PATH".to_owned();
            self.env.prepend.insert(name, search.join(":"));
        }
        if let Some(path) = &module.copy_path {
            let target = format!("{UDI_IMAGE}/modules/{}", self.name);
            let source = open_trusted(path)?;
            mounts.push(if self.names.is_empty() {
                Planned::read_only(&target, &source, false)?
            } else {
                Planned::laid_over(&target, &[&own, &source])?
            });
        }
        mounts.append(&mut self.mounts);
        Ok(self.env)
    }
}

/// Returns the other name under which programs ask for a library of MPICH's.
fn other_name(elf: &Elf, soname: &str) -> Option<&'static str> {
    let is_open_mpi = elf.needed.iter().any(|name| name.starts_with("libopen-"));
    let mut pairs = MPICH_NAMES.into_iter().filter(|_| !is_open_mpi);
    pairs.find_map(|[one, other]| match soname {
        _ if soname == one => Some(other),
        _ if soname == other => Some(one),
        _ => None,
    })
}

/// Makes a directory on our own tmpfs, and opens it.
fn make_dir_in(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    state::make_dir_with_mode(parent, name, Mode::from_raw_mode(0o755))
}

/// Writes a file on our own tmpfs.
fn write_file(dir: &OwnedFd, name: &str, bytes: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644));
    File::from(file.step("create", name)?)
        .write_all(bytes)
        .step("write", name)
}

/// Opens a directory of the host that only root can have filled.
fn open_trusted(path: &Path) -> Result<OwnedFd> {
    let real = trusted::audit(path, &[0]).map_err(Error::Untrusted)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&real, flags, Mode::empty()).step("open", path)
}

/// Returns the files that a pattern means, by name.
fn expand(pattern: &str) -> std::result::Result<Vec<PathBuf>, String> {
    let path = Path::new(pattern);
    let last = file_name(path);
    if !last.contains(['*', '?']) {
        return Ok(vec![path.to_owned()]);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let entries = fs::read_dir(dir).map_err(|error| format!("'{}': {error}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| pattern::fits(last.as_bytes(), entry.file_name().as_bytes()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Reads a library of the host's.
pub fn read_library(path: &Path, name: &str) -> std::result::Result<Elf, String> {
    if C_LIBRARY.iter().any(|part| name.starts_with(part)) {
        return Err("the C library must be the image's".into());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|error| io::Error::from(error).to_string())?;
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err("it is not a file".into());
    }
    Elf::read(&file).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_the_host() {
        let exe = std::env::current_exe().unwrap();
        assert!(read_library(&exe, "x").is_ok());
        assert!(
            read_library(&exe, "libc.so.6")
                .unwrap_err()
                .contains("C library")
        );
        assert!(
            read_library(Path::new("/etc/passwd"), "x")
                .unwrap_err()
                .contains("ELF")
        );
        assert!(
            read_library(Path::new("/etc"), "x")
                .unwrap_err()
                .contains("not a file")
        );
    }
}
