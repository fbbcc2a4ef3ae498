//! Whether the libraries that modules bring can work in an image, judged in the container as the
//! user before the command starts.
//!
//! A library of the host runs with the image's C library, which must be a GNU one, for the same
//! architecture, and have every version of its symbols that the library was linked with. And it
//! must be what the image's programs were built for: the families of MPI are not interchangeable.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use shifter_core::config::Config;
use shifter_core::elf::{Elf, machine_name};
use shifter_core::env::Pair;
use shifter_core::sanitize;

use super::devices::LIBRARY_DIRS;
use super::place::{UDI_IMAGE, library_dir};
use super::selected;
use crate::error::{Error, Result};

/// Where software that does not come with the image's system is, mostly.
const LOCAL_DIRS: [&str; 2] = ["/usr/local/lib", "/usr/local/lib64"];

const NEWER: &str = "use an image of a newer system, or run without the module: --module=none";
const OTHER: &str = "use another image, or run without the module: --module=none";
const SAME_MPI: &str =
    "use an image whose MPI is of the module's family, or run without the module: --module=none";

/// Judges the libraries of every module.
///
/// # Errors
/// [`Error::Denied`] names the library and what the image has instead.
pub fn check(config: &Config, names: &[String], environment: &[Pair]) -> Result<()> {
    let modules = selected(config, names)?;
    let mut image = None;
    for (name, module) in names.iter().zip(modules) {
        if module.libraries.is_empty() {
            continue;
        }
        let image = image.get_or_insert_with(|| Image::examine(Path::new("/"), environment));
        let brought = libraries(Path::new(&library_dir(name)));
        if let Err((what, hint)) = image.judge(&brought) {
            let what = format!("module '{name}' does not fit this image: {what}");
            return Err(Error::Denied {
                what,
                hint: Some(hint),
            });
        }
    }
    Ok(())
}

type Refusal = (String, &'static str);

/// What an image has.
struct Image {
    /// Its C libraries: one for each architecture.
    c_libraries: Vec<Elf>,
    has_musl: bool,
    mpi: Vec<(PathBuf, Mpi)>,
}

/// An implementation of MPI, as far as programs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mpi {
    is_open_mpi: bool,
    major: u32,
}

impl Image {
    fn examine(root: &Path, environment: &[Pair]) -> Self {
        let below = |dir: &str| root.join(dir.trim_start_matches('/'));
        let mut image = Self {
            c_libraries: Vec::new(),
            has_musl: false,
            mpi: Vec::new(),
        };
        let mut seen = Seen::default();
        for dir in LIBRARY_DIRS {
            let path = below(dir).join("libc.so.6");
            if seen.is_new(&path) {
                image.c_libraries.extend(read(&path));
            }
        }
        image.has_musl = names(&below("/lib")).any(|name| name.starts_with("ld-musl-"));
        let path = environment
            .iter()
            .find(|(name, _)| name == b"LD_LIBRARY_PATH");
        let path = path.map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        let own = path.iter().flat_map(|path| path.split(':'));
        let own = own.filter(|dir| dir.starts_with('/') && !dir.starts_with(UDI_IMAGE));
        for dir in own.chain(LOCAL_DIRS).chain(LIBRARY_DIRS) {
            let dir = below(dir);
            if !seen.is_new(&dir) {
                continue; // /lib is a link to /usr/lib, mostly.
            }
            for name in names(&dir).filter(|name| is_mpi(name)) {
                let path = dir.join(name);
                if let Some(mpi) = read(&path).and_then(|elf| Mpi::of(&elf)) {
                    image.mpi.push((path, mpi));
                }
            }
        }
        image
    }

    fn judge(&self, brought: &[(String, Elf)]) -> std::result::Result<(), Refusal> {
        for (name, library) in brought {
            self.judge_c_library(&sanitize::text(name), library)?;
        }
        let ours = brought.iter().filter(|(name, _)| is_mpi(name));
        let mut ours = ours.filter_map(|(name, elf)| Some((name, Mpi::of(elf)?)));
        let fits = |ours: &Mpi| self.mpi.iter().any(|(_, theirs)| theirs == ours);
        match (ours.next(), self.mpi.first()) {
            (Some((name, ours)), Some((path, theirs))) if !fits(&ours) => {
                let what = format!(
                    "its MPI is {} ('{}'), which is not ABI-compatible with the module's {} \
                     ('{}')",
                    theirs.family(),
                    sanitize::text(&path.to_string_lossy()),
                    ours.family(),
                    sanitize::text(name)
                );
                Err((what, SAME_MPI))
            }
            _ => Ok(()),
        }
    }

    fn judge_c_library(&self, name: &str, library: &Elf) -> std::result::Result<(), Refusal> {
        let mut c_libraries = self.c_libraries.iter();
        let Some(c_library) = c_libraries.find(|c| c.target == library.target) else {
            let what = match self.c_libraries.first() {
                Some(other) => {
                    let (theirs, ours) = (bits(other), bits(library));
                    format!("'{name}' is for {ours} and the image for {theirs}")
                }
                None if self.has_musl => {
                    format!("'{name}' needs the GNU C library and the image has musl")
                }
                None => format!("'{name}' needs the GNU C library and the image has none"),
            };
            return Err((what, OTHER));
        };
        match (library.glibc_needed(), c_library.glibc_defined()) {
            (Some(needed), Some(has)) if needed > has => {
                let what = format!("'{name}' needs GLIBC_{needed} and the image has {has}");
                Err((what, NEWER))
            }
            (Some(_), None) => Err((format!("'{name}' needs another C library"), OTHER)),
            _ => Ok(()),
        }
    }
}

/// Files and directories that have been looked at, by whatever name.
#[derive(Default)]
struct Seen(Vec<(u64, u64)>);

impl Seen {
    fn is_new(&mut self, path: &Path) -> bool {
        let Ok(meta) = fs::metadata(path) else {
            return false;
        };
        let identity = (meta.dev(), meta.ino());
        let is_new = !self.0.contains(&identity);
        self.0.push(identity);
        is_new
    }
}

fn bits(elf: &Elf) -> String {
    let machine = machine_name(elf.target.machine);
    let bits = if elf.target.is_wide { 64 } else { 32 };
    format!("{machine} ({bits} bits)")
}

impl Mpi {
    /// Tells which MPI a library is by its name and what it needs.
    fn of(elf: &Elf) -> Option<Self> {
        let soname = elf.soname.as_deref()?;
        let (_, version) = soname.split_once(".so.")?;
        let major = version.split('.').next()?.parse().ok()?;
        is_mpi(soname).then(|| Self {
            // Both had a libmpi.so.12.
            is_open_mpi: elf.needed.iter().any(|name| name.starts_with("libopen-")),
            major,
        })
    }

    fn family(self) -> &'static str {
        match (self.is_open_mpi, self.major) {
            (true, _) => "Open MPI",
            // That of MPICH, MVAPICH, Intel MPI and Cray MPICH.
            (false, 12) => "MPICH",
            (false, _) => "another one",
        }
    }
}

fn is_mpi(name: &str) -> bool {
    name.starts_with("libmpi.so.") || name.starts_with("libmpich.so.")
}

/// Reads the libraries in a directory.
fn libraries(dir: &Path) -> Vec<(String, Elf)> {
    let names = names(dir);
    names
        .filter_map(|name| Some((name.clone(), read(&dir.join(name))?)))
        .collect()
}

/// Lists a directory; one that is not there is empty.
fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.into_iter()
}

/// Reads a library; nothing if it is none.
fn read(path: &Path) -> Option<Elf> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let is_file = file.metadata().is_ok_and(|meta| meta.is_file());
    is_file.then(|| Elf::read(&file).ok())?
}
