//! What depmod(8) says of one kernel's modules, taken as text; reads nothing and loads nothing.
//!
//! ```text
//! modules.dep      kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko
//! modules.builtin  kernel/fs/fuse/fuse.ko
//! modules.softdep  softdep libcrc32c pre: crc32c
//! modules.alias    alias crc32c crc32c_generic
//! ```
//!
//! Names have `_` for `-`, as the kernel has them.

use std::collections::BTreeMap;

use thiserror::Error;

/// Endings of a module's file, the compressed ones last.
const ENDINGS: [&str; 4] = [".ko", ".ko.xz", ".ko.gz", ".ko.zst"];

/// Modules that one module may need, counted all the way down, and how far down that is: in real
/// kernels some twenty and six.
const NEEDS_LIMIT: usize = 256;
const DEPTH_LIMIT: usize = 32;

/// The modules of one kernel.
#[derive(Debug)]
pub struct Index<'a> {
    modules: BTreeMap<String, Entry<'a>>,
    soft: BTreeMap<String, Vec<&'a str>>,
    aliases: &'a str,
}

#[derive(Debug)]
struct Entry<'a> {
    path: &'a str,
    needs: &'a str,
}

/// A module to load.
#[derive(Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Its name.
    pub name: String,
    /// Its file, relative to the kernel's directory of modules.
    pub path: &'a str,
    /// True if the others can do without it, as with one of several implementations.
    pub is_optional: bool,
}

/// Why there is no order in which a module could be loaded.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// The module is not listed.
    #[error("it is neither built in nor listed in modules.dep")]
    Unknown,
    /// A module that it needs is not listed.
    #[error("modules.dep lists '{0}' as needed and does not say where it is")]
    Dangling(String),
    /// It needs itself.
    #[error("'{0}' depends on itself in modules.dep")]
    Cycle(String),
    /// It needs more than any module does.
    #[error("it depends on too many others in modules.dep")]
    TooMany,
    /// Its file is outside of the kernel's directory.
    #[error("modules.dep has the path '{0}', which leads elsewhere")]
    Outside(String),
}

/// Returns a name as the kernel has it.
pub fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

/// True if `modules.builtin` lists the module.
pub fn is_builtin(builtin: &str, name: &str) -> bool {
    let name = normalise(name);
    let mut paths = builtin.lines();
    paths.any(|path| name_of(path.trim()).as_ref() == Some(&name))
}

/// True if `/proc/modules` lists the module, in whatever state.
pub fn is_listed(modules: &str, name: &str) -> bool {
    let name = normalise(name);
    let mut lines = modules.lines();
    lines.any(|line| line.split(' ').next() == Some(&name))
}

/// True if `/proc/filesystems` lists a file system of this name.
pub fn is_filesystem(filesystems: &str, name: &str) -> bool {
    let mut types = filesystems
        .lines()
        .filter_map(|line| line.split('\t').next_back());
    types.any(|kind| kind == name)
}

/// True if the file must be decompressed before it is a module.
pub fn is_compressed(path: &str) -> bool {
    !path.ends_with(ENDINGS[0])
}

/// Finds the kernel release that a module's file was built for.
pub fn built_for(file: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\0vermagic=";
    let at = file.windows(KEY.len()).position(|part| part == KEY)?;
    let value = file[at + KEY.len()..].split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(value).ok()?;
    text.split_ascii_whitespace().next().map(str::to_owned)
}

impl<'a> Index<'a> {
    /// Reads the texts of `modules.dep`, `modules.softdep` and `modules.alias`; lines that cannot
    /// be understood do not count.
    pub fn parse(dep: &'a str, softdep: &'a str, aliases: &'a str) -> Self {
        let mut modules = BTreeMap::new();
        for (path, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            if let Some(name) = name_of(path) {
                modules.entry(name).or_insert(Entry { path, needs });
            }
        }
        let mut soft: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for line in softdep.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some("softdep"), Some(module)) = (words.next(), words.next()) else {
                continue;
            };
            let before = words.skip_while(|word| *word != "pre:").skip(1);
            let before = before.take_while(|word| !word.ends_with(':'));
            soft.entry(normalise(module)).or_default().extend(before);
        }
        Self {
            modules,
            soft,
            aliases,
        }
    }

    /// Returns everything that must be loaded for a module, in order, itself last.
    pub fn plan(&self, name: &str) -> Result<Vec<Step<'a>>, Fault> {
        let needed = self.closure(&normalise(name))?;
        let mut steps: Vec<Step<'a>> = Vec::new();
        let mut add = |names: &[String], is_optional: bool| {
            for name in names {
                let is_known = steps.iter().any(|step| step.name == *name)
                    || is_optional && needed.contains(name);
                if let Some(entry) = self.modules.get(name).filter(|_| !is_known) {
                    steps.push(Step {
                        name: name.clone(),
                        path: entry.path,
                        is_optional,
                    });
                }
            }
        };
        for module in &needed {
            for wish in self.soft.get(module).into_iter().flatten() {
                for found in self.providers(wish) {
                    // What cannot be had is done without.
                    add(&self.closure(&found).unwrap_or_default(), true);
                }
            }
            add(std::slice::from_ref(module), false);
        }
        Ok(steps)
    }

    /// Names the modules that a soft dependency means: the one of this name, or those that have it
    /// for an alias.
    fn providers(&self, wish: &str) -> Vec<String> {
        let name = normalise(wish);
        if self.modules.contains_key(&name) {
            return vec![name];
        }
        let mut found = Vec::new();
        for line in self.aliases.lines().filter(|line| line.contains(wish)) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            if let ["alias", alias, module] = words[..]
                && normalise(alias) == name
                && found.len() < NEEDS_LIMIT
            {
                found.push(normalise(module));
            }
        }
        found
    }

    /// Returns the module and all that it needs, each after what it needs itself.
    fn closure(&self, name: &str) -> Result<Vec<String>, Fault> {
        if !self.modules.contains_key(name) {
            return Err(Fault::Unknown);
        }
        let mut done = Vec::new();
        self.descend(name, &mut Vec::new(), &mut done)?;
        Ok(done)
    }

    fn descend(
        &self,
        name: &str,
        above: &mut Vec<String>,
        done: &mut Vec<String>,
    ) -> Result<(), Fault> {
        if done.iter().any(|module| module == name) {
            return Ok(());
        }
        if above.iter().any(|module| module == name) {
            return Err(Fault::Cycle(name.to_owned()));
        }
        if above.len() >= DEPTH_LIMIT || done.len() >= NEEDS_LIMIT {
            return Err(Fault::TooMany);
        }
        let entry = self.modules.get(name);
        let entry = entry.ok_or_else(|| Fault::Dangling(name.to_owned()))?;
        if entry.path.starts_with('/') || entry.path.split('/').any(|part| part == "..") {
            return Err(Fault::Outside(entry.path.to_owned()));
        }
        above.push(name.to_owned());
        for path in entry.needs.split_ascii_whitespace() {
            let needed = name_of(path).ok_or_else(|| Fault::Dangling(path.to_owned()))?;
            self.descend(&needed, above, done)?;
        }
        above.pop();
        done.push(name.to_owned());
        Ok(())
    }
}

/// Returns the name of the module in a file, if it is one's file.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let mut stems = ENDINGS.iter().filter_map(|end| file.strip_suffix(end));
    let name = normalise(stems.next()?);
    let well_formed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!name.is_empty() && name.bytes().all(well_formed)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
kernel/crypto/crc32c_generic.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko: kernel/lib/simd.ko
kernel/fs/overlayfs/overlay.ko.zst:
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko: kernel/lib/crc16.ko
kernel/fs/mbcache.ko:
kernel/lib/crc16.ko:
updates/xfs.ko:
";
    const SOFTDEP: &str = "\
# Soft dependencies extracted from modules themselves.
softdep libcrc32c pre: crc32c
softdep cifs gcm
softdep ext4 pre: crypto-crc32c mbcache post: nothing
softdep xfs
";
    const ALIAS: &str = "\
alias crc32c crc32c_intel
alias crc32c-generic crc32c_generic
alias crypto-crc32c crc32c_generic
alias crc32c crc32c_generic
alias crc32c not_there
alias broken
";

    /// Writes a plan as names, the optional ones in brackets.
    fn plan(dep: &str, name: &str) -> Result<String, Fault> {
        let index = Index::parse(dep, SOFTDEP, ALIAS);
        let show = |step: Step<'_>| match step.is_optional {
            true => format!("[{}]", step.name),
            false => step.name,
        };
        let steps = index.plan(name)?.into_iter().map(show);
        Ok(steps.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn everything_comes_after_what_it_needs() {
        let table = [
            ("overlay", "overlay"),
            ("libcrc32c", "[crc32c_generic] libcrc32c"),
            ("xfs", "[crc32c_generic] libcrc32c xfs"),
            ("ext4", "crc16 mbcache jbd2 [crc32c_generic] ext4"),
        ];
        for (name, expected) in table {
            assert_eq!(plan(DEP, name).as_deref(), Ok(expected), "{name}");
        }
        let index = Index::parse(DEP, "", "");
        let steps = index.plan("xfs").unwrap();
        assert_eq!(
            steps[1].path, "kernel/fs/xfs/xfs.ko",
            "the first one listed"
        );
    }

    #[test]
    fn a_name_has_either_dash() {
        let dep = "k/a-b_c.ko: k/d-e.ko.gz\nk/d-e.ko.gz:\n";
        for name in ["a-b-c", "a_b_c", "a-b_c"] {
            assert_eq!(plan(dep, name).as_deref(), Ok("d_e a_b_c"), "{name}");
        }
        assert!(is_builtin("kernel/a-b.ko\n", "a_b") && is_builtin("kernel/a_b.ko", "a-b"));
        assert!(!is_builtin("kernel/a-b.ko.old\nkernel/aa_b.ko\nb\n", "a_b"));
    }

    #[test]
    fn hostile_lists_are_refused() {
        let cycle = |name: &str| Fault::Cycle(name.to_owned());
        let table = [
            ("", Fault::Unknown),
            ("k/b.ko:\n\n:::\nk/a.ko\nk/.ko:\nk/a.so:\n", Fault::Unknown),
            ("k/a.ko: k/a.ko\n", cycle("a")),
            (
                "k/a.ko: k/b.ko\nk/b.ko: k/c.ko\nk/c.ko: k/b.ko\n",
                cycle("b"),
            ),
            ("k/a.ko: k/b.ko\n", Fault::Dangling("b".into())),
            ("k/a.ko: k/b\n", Fault::Dangling("k/b".into())),
            ("k/a.ko: k/...ko\n", Fault::Dangling("k/...ko".into())),
            ("/k/a.ko:\n", Fault::Outside("/k/a.ko".into())),
            ("k/../../a.ko:\n", Fault::Outside("k/../../a.ko".into())),
            (
                "k/a.ko: ../b.ko\n../b.ko:\n",
                Fault::Outside("../b.ko".into()),
            ),
        ];
        for (dep, fault) in table {
            assert_eq!(plan(dep, "a"), Err(fault), "{dep}");
        }
    }

    #[test]
    fn endless_lists_come_to_an_end() {
        // A chain, and a fan in which everything needs everything after it.
        let chain: String = (0..100_000)
            .map(|n| format!("k/m{n}.ko: k/m{}.ko\n", n + 1))
            .collect();
        assert_eq!(plan(&chain, "m0"), Err(Fault::TooMany));
        let wide: String = (0..400).map(|n| format!(" k/m{n}.ko")).collect();
        let mut fan: String = (0..400).map(|n| format!("k/m{n}.ko:\n")).collect();
        fan += &format!("k/a.ko:{wide}\n");
        assert_eq!(plan(&fan, "a"), Err(Fault::TooMany));
        let noise = "x".repeat(10 << 20);
        assert_eq!(plan(&noise, "a"), Err(Fault::Unknown));
    }

    #[test]
    fn a_soft_cycle_hurts_nobody() {
        let dep = "k/a.ko:\nk/b.ko: k/a.ko\n";
        let softdep = "softdep a pre: b\nsoftdep b pre: a b a\n";
        let index = Index::parse(dep, softdep, "");
        let names = |name| -> Vec<String> {
            let steps = index.plan(name).unwrap().into_iter();
            steps.map(|step| step.name).collect()
        };
        assert_eq!(names("b"), ["a", "b"]);
        // The wish of 'a' for 'b', which needs 'a', cannot be had before 'a'.
        assert_eq!(names("a").last().map(String::as_str), Some("a"));
    }

    #[test]
    fn what_the_kernel_says_is_understood() {
        let text = "xfs 2019328 0 - Loading 0x0\nlibcrc32c 16384 1 xfs, Live 0x0\n";
        assert!(is_listed(text, "xfs") && is_listed(text, "libcrc32c"));
        assert!(!is_listed(text, "16384") && !is_listed(text, "") && !is_listed("", "xfs"));
        let text = "nodev\tsysfs\n\text3\n\tsquashfs\nnodev\toverlay\n";
        assert!(is_filesystem(text, "squashfs") && is_filesystem(text, "overlay"));
        assert!(!is_filesystem(text, "nodev") && !is_filesystem(text, "squash"));
        let file = b"\x7fELF\0name=xfs\0vermagic=6.1.0-1-amd64 SMP mod_unload \0\0";
        assert_eq!(built_for(file).as_deref(), Some("6.1.0-1-amd64"));
        for file in [
            &b""[..],
            b"vermagic=1",
            b"\0vermagic=",
            b"\0vermagic=\xff\0",
        ] {
            assert_eq!(built_for(file), None);
        }
        assert!(is_compressed("a.ko.xz") && !is_compressed("a.ko"));
    }
}
