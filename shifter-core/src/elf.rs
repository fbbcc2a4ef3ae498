//! What two shared libraries must agree on, read from their ELF headers: machine, names, versions.
//!
//! Only the program headers and the dynamic section are followed, as the dynamic linker does, and
//! never more than a bounded number of small pieces of the file is read. An image's files are
//! hostile data: every offset in them is checked by the read that uses it, every loop has a limit.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;

/// Program headers that a file may have; real ones have about ten.
const SEGMENT_LIMIT: u16 = 128;

/// Entries of a dynamic section; real ones have about thirty, and one for each library needed.
const DYNAMIC_LIMIT: u64 = 4096;

/// Versions that a file may need, and define.
const VERSION_LIMIT: usize = 4096;

/// Bytes of a name; longer ones are cut off, and match nothing.
const NAME_LIMIT: usize = 256;

/// Says why a file cannot be understood.
#[derive(Debug, Error)]
pub enum ElfError {
    /// It cannot be read at a place that it names itself, or at all.
    #[error("cannot read its {part}")]
    Read {
        /// What should be there.
        part: &'static str,
        /// The operating system's reason; the end of the file, mostly.
        source: io::Error,
    },
    /// It is not an ELF file.
    #[error("it is not an ELF file")]
    Foreign,
    /// It is one, and not as the dynamic linker takes them.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

/// Where bytes of a file come from.
pub trait Source {
    /// Fills `bytes` from the file's `offset` on.
    ///
    /// # Errors
    /// Where the file ends before, or cannot be read.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }
}

impl Source for [u8] {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(bytes.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }
}

/// What kind of processor and program a file is for; libraries of one process have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// 64 or 32 bits.
    pub is_wide: bool,
    /// The most significant byte first.
    pub is_big_endian: bool,
    /// The number of the architecture (`e_machine`).
    pub machine: u16,
}

/// A version of another library's symbols that a file uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The other library, as in `DT_NEEDED`.
    pub library: String,
    /// The version, `GLIBC_2.34`.
    pub version: String,
}

/// A program's or library's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// What it runs on.
    pub target: Target,
    /// The name by which programs ask for it (`DT_SONAME`).
    pub soname: Option<String>,
    /// The libraries that it asks for (`DT_NEEDED`).
    pub needed: Vec<String>,
    /// The versions of their symbols that it uses (`.gnu.version_r`).
    pub requires: Vec<Requirement>,
    /// The versions of its own symbols (`.gnu.version_d`).
    pub defines: Vec<String>,
}

/// A part of the file that is mapped into memory.
struct Segment {
    offset: u64,
    address: u64,
    size: u64,
}

/// What the dynamic section says.
#[derive(Default)]
struct Dynamic {
    soname: Option<u64>,
    needed: Vec<u64>,
    strings: Option<u64>,
    requires: Option<u64>,
    defines: Option<u64>,
}

const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;

impl Elf {
    /// Reads the terms of a file; one that is linked statically has none.
    ///
    /// # Errors
    /// [`ElfError`] if it is no ELF file, or a malformed one.
    pub fn read(source: &(impl Source + ?Sized)) -> Result<Self, ElfError> {
        let mut ident = [0; 20];
        source
            .read_at(0, &mut ident)
            .map_err(|_| ElfError::Foreign)?;
        if !ident.starts_with(b"\x7fELF") {
            return Err(ElfError::Foreign);
        }
        let is_wide = match ident[4] {
            1 => false,
            2 => true,
            _ => return Err(ElfError::Malformed("class")),
        };
        let is_big_endian = match ident[5] {
            1 => false,
            2 => true,
            _ => return Err(ElfError::Malformed("byte order")),
        };
        let mut file = Reader {
            source,
            target: Target {
                is_wide,
                is_big_endian,
                machine: 0,
            },
        };
        file.target.machine = file.half(18, "header")?;
        let (segments, dynamic) = file.segments()?;
        let dynamic = match dynamic {
            Some(dynamic) => file.dynamic(&dynamic)?,
            None => Dynamic::default(),
        };
        let place = |address| locate(&segments, address);
        let strings = match dynamic.strings {
            Some(address) => Some(place(address)?),
            None => None,
        };
        let name = |offset| file.name(strings, offset);
        Ok(Self {
            target: file.target,
            soname: dynamic.soname.map(name).transpose()?,
            needed: dynamic
                .needed
                .iter()
                .map(|at| name(*at))
                .collect::<Result<_, _>>()?,
            requires: match dynamic.requires {
                Some(address) => file.requires(place(address)?, strings)?,
                None => Vec::new(),
            },
            defines: match dynamic.defines {
                Some(address) => file.defines(place(address)?, strings)?,
                None => Vec::new(),
            },
        })
    }

    /// Returns the newest version of the C library that the file needs.
    pub fn glibc_needed(&self) -> Option<GlibcVersion> {
        let versions = self.requires.iter();
        versions
            .filter_map(|requirement| GlibcVersion::parse(&requirement.version))
            .max()
    }

    /// Returns the version of the C library that the file is.
    pub fn glibc_defined(&self) -> Option<GlibcVersion> {
        let versions = self.defines.iter();
        versions
            .filter_map(|version| GlibcVersion::parse(version))
            .max()
    }
}

/// A version of the GNU C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GlibcVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

impl GlibcVersion {
    /// Reads the name of a version of symbols; `GLIBC_PRIVATE` and other libraries' are none.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("GLIBC_")?.split('.');
        let mut next = || parts.next().map(str::parse);
        let major = next()?.ok()?;
        let minor = next()?.ok()?;
        let patch = next().unwrap_or(Ok(0)).ok()?;
        parts.next().is_none().then_some(Self {
            major,
            minor,
            patch,
        })
    }
}

impl std::fmt::Display for GlibcVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        match self.patch {
            0 => Ok(()),
            patch => write!(f, ".{patch}"),
        }
    }
}

/// Returns where in the file an address of the running program is.
fn locate(segments: &[Segment], address: u64) -> Result<u64, ElfError> {
    let found = segments.iter().find_map(|segment| {
        let within = address.checked_sub(segment.address)?;
        (within < segment.size).then(|| segment.offset.checked_add(within))?
    });
    found.ok_or(ElfError::Malformed("dynamic section"))
}

struct Reader<'a, S: ?Sized> {
    source: &'a S,
    target: Target,
}

impl<S: Source + ?Sized> Reader<'_, S> {
    fn bytes<const N: usize>(&self, at: u64, part: &'static str) -> Result<[u8; N], ElfError> {
        let mut bytes = [0; N];
        self.source
            .read_at(at, &mut bytes)
            .map_err(|source| ElfError::Read { part, source })?;
        if self.target.is_big_endian {
            bytes.reverse();
        }
        Ok(bytes)
    }

    fn half(&self, at: u64, part: &'static str) -> Result<u16, ElfError> {
        self.bytes(at, part).map(u16::from_le_bytes)
    }

    fn word(&self, at: u64, part: &'static str) -> Result<u32, ElfError> {
        self.bytes(at, part).map(u32::from_le_bytes)
    }

    /// Reads what has the size of an address.
    fn long(&self, at: u64, part: &'static str) -> Result<u64, ElfError> {
        if self.target.is_wide {
            self.bytes(at, part).map(u64::from_le_bytes)
        } else {
            self.word(at, part).map(u64::from)
        }
    }

    /// Returns the segments that are mapped, and the one with the dynamic section.
    fn segments(&self) -> Result<(Vec<Segment>, Option<Segment>), ElfError> {
        let part = "program headers";
        // Offsets of the fields by class (elf(5)).
        let (table, count, size) = if self.target.is_wide {
            (32, 56, 56)
        } else {
            (28, 44, 32)
        };
        let (offset, address, bytes) = if self.target.is_wide {
            (8, 16, 32)
        } else {
            (4, 8, 16)
        };
        let table = self.long(table, "header")?;
        let count = self.half(count, "header")?;
        if count > SEGMENT_LIMIT {
            return Err(ElfError::Malformed(part));
        }
        let mut loaded = Vec::new();
        let mut dynamic = None;
        for number in 0..u64::from(count) {
            let at = add(table, number * size, part)?;
            let kind = self.word(at, part)?;
            if kind != LOAD && kind != DYNAMIC {
                continue;
            }
            let segment = Segment {
                offset: self.long(add(at, offset, part)?, part)?,
                address: self.long(add(at, address, part)?, part)?,
                size: self.long(add(at, bytes, part)?, part)?,
            };
            if kind == LOAD {
                loaded.push(segment);
            } else {
                dynamic = Some(segment);
            }
        }
        Ok((loaded, dynamic))
    }

    fn dynamic(&self, segment: &Segment) -> Result<Dynamic, ElfError> {
        let part = "dynamic section";
        let size: u64 = if self.target.is_wide { 8 } else { 4 };
        let mut found = Dynamic::default();
        for number in 0..(segment.size / (2 * size)).min(DYNAMIC_LIMIT) {
            let at = add(segment.offset, number * 2 * size, part)?;
            let tag = self.long(at, part)?;
            let value = self.long(add(at, size, part)?, part)?;
            match tag {
                0 => break,
                1 => found.needed.push(value),
                5 => found.strings = Some(value),
                14 => found.soname = Some(value),
                0x6fff_fffc => found.defines = Some(value),
                0x6fff_fffe => found.requires = Some(value),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Follows the lists of needed versions: one for each library.
    fn requires(&self, start: u64, strings: Option<u64>) -> Result<Vec<Requirement>, ElfError> {
        let part = "list of needed versions";
        let mut found = Vec::new();
        let mut at = start;
        for _ in 0..VERSION_LIMIT {
            let library = self.name(strings, self.word(add(at, 4, part)?, part)?.into())?;
            let mut version_at = add(at, self.word(add(at, 8, part)?, part)?.into(), part)?;
            for _ in 0..self.half(add(at, 2, part)?, part)? {
                let name = self.word(add(version_at, 8, part)?, part)?;
                found.push(Requirement {
                    library: library.clone(),
                    version: self.name(strings, name.into())?,
                });
                if found.len() > VERSION_LIMIT {
                    return Err(ElfError::Malformed(part));
                }
                match self.word(add(version_at, 12, part)?, part)? {
                    0 => break,
                    next => version_at = add(version_at, next.into(), part)?,
                }
            }
            match self.word(add(at, 12, part)?, part)? {
                0 => return Ok(found),
                next => at = add(at, next.into(), part)?,
            }
        }
        Err(ElfError::Malformed(part))
    }

    /// Follows the list of defined versions; the first name of each is its own.
    fn defines(&self, start: u64, strings: Option<u64>) -> Result<Vec<String>, ElfError> {
        let part = "list of versions";
        let mut found = Vec::new();
        let mut at = start;
        for _ in 0..VERSION_LIMIT {
            let name_at = add(at, self.word(add(at, 12, part)?, part)?.into(), part)?;
            found.push(self.name(strings, self.word(name_at, part)?.into())?);
            match self.word(add(at, 16, part)?, part)? {
                0 => return Ok(found),
                next => at = add(at, next.into(), part)?,
            }
        }
        Err(ElfError::Malformed(part))
    }

    fn name(&self, strings: Option<u64>, offset: u64) -> Result<String, ElfError> {
        let part = "names";
        let start = add(strings.ok_or(ElfError::Malformed(part))?, offset, part)?;
        let mut name = Vec::new();
        let mut chunk = [0; 32];
        while name.len() < NAME_LIMIT {
            let at = add(start, name.len() as u64, part)?;
            // Near the end of the file, where a whole piece is not there any more.
            let mut size = chunk.len();
            while let Err(source) = self.source.read_at(at, &mut chunk[..size]) {
                if size == 1 {
                    return Err(ElfError::Read { part, source });
                }
                size = 1;
            }
            let end = chunk[..size].iter().position(|byte| *byte == 0);
            name.extend_from_slice(&chunk[..end.unwrap_or(size)]);
            if end.is_some() {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&name).into_owned())
    }
}

fn add(at: u64, offset: u64, part: &'static str) -> Result<u64, ElfError> {
    at.checked_add(offset).ok_or(ElfError::Malformed(part))
}

/// Returns an architecture's usual name.
pub fn machine_name(machine: u16) -> String {
    let known = match machine {
        3 => "i386",
        20 => "ppc",
        21 => "ppc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86-64",
        183 => "aarch64",
        243 => "riscv",
        258 => "loongarch",
        other => return format!("architecture {other}"),
    };
    known.to_owned()
}
