//! Loading the kernel modules that the site wants present before a job's root is made.
//!
//! Whether a module is there is asked of the kernel (`/sys/module`, `/proc/filesystems`), and only
//! what is missing is looked up in `kmod_base_path/RELEASE`, whose files count only if nobody but
//! root can have written them. Files are opened once and loaded as descriptors. No modprobe runs,
//! so its configuration counts nothing.

use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use shifter_core::config::Kernel;
use shifter_core::trusted::{self, TrustError};

use crate::error::{Error, Result, plain};
use crate::sys;

pub mod index;

use index::{Fault, Index, Step};

/// Bytes that one of depmod's lists may have; those of a kernel with 4000 modules have 1.3 million.
const LIST_LIMIT: u64 = 10 << 20;

/// Bytes of a refused module's file in which its version is looked for.
const MODULE_LIMIT: u64 = 64 << 20;

/// Loads the configured modules that the kernel does not have yet, each after those it needs.
///
/// # Errors
/// [`Error::KernelModule`] or [`Error::Untrusted`]: the node's failure.
pub fn preload(config: &Kernel) -> Result<()> {
    let absent: Vec<&str> = config
        .preload
        .iter()
        .map(String::as_str)
        .filter(|name| !is_loaded(name))
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    // Drivers that are built in and have no parameters do not appear in /sys/module.
    let known = read_own("/proc/filesystems");
    let absent: Vec<&str> = absent
        .into_iter()
        .filter(|name| !index::is_filesystem(&known, name))
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    Directory::of_this_kernel(config).load(&absent)
}

/// Reads what the kernel writes; nothing where it has no such file.
fn read_own(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// True if the module is loaded and ready, or visibly built in.
fn is_loaded(name: &str) -> bool {
    let dir = Path::new("/sys/module").join(index::normalise(name));
    match std::fs::read(dir.join("initstate")) {
        // Another set-up may be loading it: finit_module waits for that.
        Ok(state) => state.trim_ascii() == b"live",
        // Built in, or just appearing: the directory comes before the file, and the list first.
        Err(_) => dir.exists() && !index::is_listed(&read_own("/proc/modules"), name),
    }
}

/// The modules of the running kernel.
struct Directory {
    path: PathBuf,
    release: String,
    max_loop: u32,
}

impl Directory {
    fn of_this_kernel(config: &Kernel) -> Self {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        Self {
            path: config.kmod_base_path.join(&release),
            release,
            max_loop: config.max_loop,
        }
    }

    /// Loads modules and what they need, but for those that are built in.
    fn load(&self, names: &[&str]) -> Result<()> {
        let builtin = self.read("modules.builtin")?.unwrap_or_default();
        let absent = names
            .iter()
            .filter(|name| !index::is_builtin(&builtin, name));
        let absent: Vec<&str> = absent.copied().collect();
        let Some(first) = absent.first() else {
            return Ok(());
        };
        let dep = self.read("modules.dep")?;
        let dep = dep.ok_or_else(|| self.no_list(first))?;
        let softdep = self.read("modules.softdep")?.unwrap_or_default();
        let aliases = self.read("modules.alias")?.unwrap_or_default();
        let index = Index::parse(&dep, &softdep, &aliases);
        for name in absent {
            let plan = index
                .plan(name)
                .map_err(|fault| self.no_plan(name, &fault))?;
            for step in &plan {
                match self.insert(step, name) {
                    Err(_) if step.is_optional => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Loads one module, for the sake of `wanted`.
    fn insert(&self, step: &Step<'_>, wanted: &str) -> Result<()> {
        if is_loaded(&step.name) {
            return Ok(());
        }
        let path = self.path.join(step.path);
        let mut file = trusted::open(&path, &[0]).map_err(|error| match error {
            TrustError::Unreadable { source, .. } if source.kind() == ErrorKind::NotFound => {
                let reason = format!("modules.dep lists '{}', which is missing", path.display());
                refused(wanted, reason, self.way_out(wanted))
            }
            other => Error::Untrusted(other),
        })?;
        let parameters = match (step.name.as_str(), self.max_loop) {
            ("loop", 1..) => format!("max_loop={}", self.max_loop),
            _ => String::new(),
        };
        // A number holds no NUL.
        let parameters = CString::new(parameters).unwrap_or_default();
        let is_compressed = index::is_compressed(step.path);
        match sys::finit_module(&file, &parameters, is_compressed) {
            // Another set-up was faster.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            Err(error) => Err(self.explain(step, wanted, &mut file, &error)),
            Ok(()) => Ok(()),
        }
    }

    /// Says what the kernel's refusal of a module means, and the way out.
    fn explain(
        &self,
        step: &Step<'_>,
        wanted: &str,
        file: &mut File,
        error: &std::io::Error,
    ) -> Error {
        let path = self.path.join(step.path);
        let (path, release) = (path.display(), &self.release);
        let is_compressed = index::is_compressed(step.path);
        let version = read_version(file).filter(|version| version != release);
        let log = "the kernel's log says more (dmesg)".to_owned();
        let (reason, hint) = match (error.raw_os_error(), version) {
            // EINVAL where only the versions of symbols differ.
            (Some(libc::ENOEXEC | libc::EINVAL), Some(version)) => (
                format!(
                    "'{path}' was built for another kernel, '{version}'; this one is '{release}'"
                ),
                format!("put the modules of kernel '{release}' there, and run depmod"),
            ),
            (Some(libc::ENOSYS), _) => return no_support(wanted),
            // Before Linux 5.17 the flag is unknown.
            (Some(libc::EOPNOTSUPP | libc::EINVAL), _) if is_compressed => (
                format!("this kernel does not decompress '{path}'"),
                format!(
                    "load it at boot, or decompress the modules of kernel '{release}' in a \
                     directory for kernel.kmod_base_path and run depmod there"
                ),
            ),
            (Some(libc::EPERM), _) => (
                format!("the kernel takes no more modules, not '{path}' either"),
                "load it at boot, before kernel.modules_disabled is set".into(),
            ),
            (Some(libc::ENOEXEC), _) => (
                format!("'{path}' is no module for this kernel, '{release}'"),
                log,
            ),
            (Some(libc::ENOENT), _) => (
                format!("'{path}' needs something that this kernel does not have"),
                log,
            ),
            _ => (format!("'{path}': {}", plain(error.to_string())), log),
        };
        refused(wanted, reason, hint)
    }

    /// Reads one of depmod's lists; nothing if there is none.
    fn read(&self, list: &str) -> Result<Option<String>> {
        match trusted::read(&self.path.join(list), LIST_LIMIT) {
            // Names that are not text are no names.
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(TrustError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(Error::Untrusted(error)),
        }
    }

    fn no_plan(&self, name: &str, fault: &Fault) -> Error {
        let place = self.path.display();
        let hint = match fault {
            Fault::Unknown => self.way_out(name),
            _ => format!("run 'depmod {}'", self.release),
        };
        refused(name, format!("{fault} (looked in '{place}')"), hint)
    }

    fn no_list(&self, name: &str) -> Error {
        // There is such a file on every kernel that takes modules.
        if !Path::new("/proc/modules").exists() {
            return no_support(name);
        }
        let reason = format!("there is no '{}/modules.dep'", self.path.display());
        refused(name, reason, self.way_out(name))
    }

    fn way_out(&self, name: &str) -> String {
        format!(
            "install the modules of kernel '{}' and run depmod, set kernel.kmod_base_path, or take \
             '{name}' out of kernel.preload",
            self.release
        )
    }
}

fn refused(name: &str, reason: String, hint: String) -> Error {
    Error::KernelModule {
        name: name.to_owned(),
        reason,
        hint,
    }
}

fn no_support(name: &str) -> Error {
    let reason = "it is not built in, and this kernel takes no modules".to_owned();
    let hint = format!("take '{name}' out of kernel.preload, or boot a kernel that has it");
    refused(name, reason, hint)
}

/// Reads for which kernel a module was built, as far as its file tells.
fn read_version(file: &mut File) -> Option<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(MODULE_LIMIT).read_to_end(&mut bytes).ok()?;
    index::built_for(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shifter_core::exit::ExitCode;

    fn kernel(names: &[&str]) -> Kernel {
        Kernel {
            preload: names.iter().map(|name| (*name).to_owned()).collect(),
            kmod_base_path: "/no/such/directory".into(),
            max_loop: 0,
        }
    }

    #[test]
    fn what_every_kernel_has_is_looked_up_nowhere() {
        // Built in everywhere, visible in /sys/module and in /proc/filesystems.
        preload(&kernel(&[])).unwrap();
        preload(&kernel(&["kernel", "tmpfs", "proc"])).unwrap();
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_out() {
        let error = preload(&kernel(&["tmpfs", "no-such_module"])).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Mount);
        assert!(error.to_string().contains("'no-such_module'"), "{error}");
        assert!(error.hint().unwrap().contains("kernel.preload"), "{error}");
    }
}
