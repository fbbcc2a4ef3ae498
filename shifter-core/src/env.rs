//! The environment of a container: which source wins, and what never gets in.
//!
//! From low to high: the caller's, the image's, the file of `--env-file`, `--env`, the modules in
//! the order of the request, the site, and last what Shifter itself says about the container. A
//! module or site sets, appends, prepends and unsets, in this order; appended and prepended values
//! are joined by `:`. `--clearenv` drops the caller's environment and nothing else.
//!
//! Of the caller's environment some variables never enter a container, whether the program ran
//! setuid or not, so that a container is the same on every path into it:
//! - all that begin with `LD_` or `RTLD_`, and those in [`UNSECURE`]: what glibc's dynamic linker
//!   removes before it starts a setuid program;
//! - those in [`HOST_PROGRAMS`], whose value names a program or script of the host, and `ENV` where
//!   it is a path. Programs in the container would run them and fail.
//!
//! A site, a user (`--env`) and an image may set all of these. Names and values are bytes.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::sanitize;

/// Bytes that a file of variables may have.
pub const FILE_LIMIT: usize = 1 << 20;

/// A variable's name and value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Beginnings of names that are dropped from the caller's environment.
pub const UNSECURE_PREFIXES: [&str; 2] = ["LD_", "RTLD_"];

/// Names that are dropped because they change what the C library loads, reads or asks.
pub const UNSECURE: [&str; 21] = [
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "LOCPATH",
    "MALLOC_ARENA_MAX",
    "MALLOC_ARENA_TEST",
    "MALLOC_CHECK_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_PERTURB_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRACE",
    "MALLOC_TRIM_THRESHOLD_",
    "NIS_PATH",
    "NLSPATH",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "TMPDIR",
    "TZDIR",
];

/// Names that are dropped because their value names a program of the host.
pub const HOST_PROGRAMS: [&str; 7] = [
    "BASH_ENV",
    "GIT_ASKPASS",
    "LESSCLOSE",
    "LESSOPEN",
    "PROMPT_COMMAND",
    "SSH_ASKPASS",
    "SUDO_ASKPASS",
];

/// Says which variable was refused, and why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EnvError {
    /// A file of variables is too large.
    #[error("the file of variables is larger than {FILE_LIMIT} bytes")]
    FileTooLarge,
    /// A line of a file of variables is not one. The text is not shown: it may be a secret.
    #[error("line {line} of the file of variables {rule}")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A variable on the command line is not one.
    #[error("variable '{}' {rule}", sanitize::bytes(.name))]
    Option {
        /// The text before the '=', or all of it.
        name: Vec<u8>,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A site's or module's change names no variable, or its value cannot be one.
    #[error("variable '{}' {rule}", sanitize::text(.name))]
    Change {
        /// The name as it came.
        name: String,
        /// What is wrong with it.
        rule: &'static str,
    },
}

impl EnvError {
    /// Returns the way out, where one is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Line { .. } => Some("each line is NAME=value, without quotes or 'export'"),
            Self::Option { .. } => Some("write NAME=value"),
            Self::FileTooLarge | Self::Change { .. } => None,
        }
    }
}

/// What a site or a module changes; only changes that can be made can be deserialised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, try_from = "RawChanges")]
pub struct EnvChanges {
    /// Variables that get a value.
    pub set: BTreeMap<String, String>,
    /// Values put after what is there, with a colon between.
    pub append: BTreeMap<String, String>,
    /// Values put before what is there, with a colon between.
    pub prepend: BTreeMap<String, String>,
    /// Variables that are removed.
    pub unset: Vec<String>,
}

/// The changes as they were written.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawChanges {
    set: BTreeMap<String, String>,
    append: BTreeMap<String, String>,
    prepend: BTreeMap<String, String>,
    unset: Vec<String>,
}

impl TryFrom<RawChanges> for EnvChanges {
    type Error = EnvError;

    fn try_from(raw: RawChanges) -> Result<Self, EnvError> {
        let RawChanges {
            set,
            append,
            prepend,
            unset,
        } = raw;
        let valued = [&set, &append, &prepend].into_iter().flatten();
        let bare = unset.iter().map(|name| (name.as_str(), ""));
        for (name, value) in valued
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .chain(bare)
        {
            check_pair(name.as_bytes(), value.as_bytes()).map_err(|rule| EnvError::Change {
                name: name.to_owned(),
                rule,
            })?;
        }
        Ok(EnvChanges {
            set,
            append,
            prepend,
            unset,
        })
    }
}

/// The site's rules for the environment of every container.
///
/// An element of [`SiteEnv::pass`] and [`SiteEnv::drop`] is a name, or the beginning of names
/// with `*` after it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawSiteEnv")]
pub struct SiteEnv {
    /// The caller's variables that enter a container; a name that is written out enters even if
    /// it is one of [`HOST_PROGRAMS`].
    pub pass: Vec<String>,
    /// The caller's variables that do not enter, whatever `pass` says.
    pub drop: Vec<String>,
    /// Changes made last.
    pub changes: EnvChanges,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSiteEnv {
    pass: Vec<String>,
    drop: Vec<String>,
    set: BTreeMap<String, String>,
    append: BTreeMap<String, String>,
    prepend: BTreeMap<String, String>,
    unset: Vec<String>,
}

impl Default for RawSiteEnv {
    fn default() -> Self {
        let SiteEnv {
            pass,
            drop,
            changes,
        } = SiteEnv::default();
        let EnvChanges {
            set,
            append,
            prepend,
            unset,
        } = changes;
        Self {
            pass,
            drop,
            set,
            append,
            prepend,
            unset,
        }
    }
}

impl Default for SiteEnv {
    fn default() -> Self {
        Self {
            pass: vec!["*".into()],
            drop: Vec::new(),
            changes: EnvChanges::default(),
        }
    }
}

impl TryFrom<RawSiteEnv> for SiteEnv {
    type Error = EnvError;

    fn try_from(raw: RawSiteEnv) -> Result<Self, EnvError> {
        let RawSiteEnv {
            pass,
            drop,
            set,
            append,
            prepend,
            unset,
        } = raw;
        for pattern in pass.iter().chain(&drop) {
            let name = pattern.strip_suffix('*').unwrap_or(pattern);
            let is_name = !pattern.is_empty() && !name.contains(['*', '=', '\0']);
            if !is_name {
                return Err(EnvError::Change {
                    name: pattern.clone(),
                    rule: "is neither a name nor the beginning of names and '*'",
                });
            }
        }
        let changes = EnvChanges::try_from(RawChanges {
            set,
            append,
            prepend,
            unset,
        })?;
        Ok(Self {
            pass,
            drop,
            changes,
        })
    }
}

impl SiteEnv {
    /// True if a variable of the caller's may enter a container.
    fn lets_in(&self, name: &[u8], value: &[u8]) -> bool {
        let begins = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning.as_bytes()),
            None => pattern.as_bytes() == name,
        };
        let is_listed = |list: &[&str]| list.iter().any(|listed| listed.as_bytes() == name);
        let is_unsecure = UNSECURE_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix.as_bytes()));
        // Many programs have an ENV=production of their own; only a path is the shell's start-up
        // file.
        let is_start_up_file = name == b"ENV" && value.starts_with(b"/");
        let is_program = is_listed(&HOST_PROGRAMS) || is_start_up_file;
        let is_written_out = || self.pass.iter().any(|pattern| pattern.as_bytes() == name);
        !is_unsecure
            && !is_listed(&UNSECURE)
            && self.pass.iter().any(begins)
            && !self.drop.iter().any(begins)
            && (!is_program || is_written_out())
    }
}

/// Everything beside the caller that has a say, each already parsed.
#[derive(Clone, Copy, Debug)]
pub struct EnvSources<'a> {
    /// Drop the caller's environment (`--clearenv`).
    pub clear: bool,
    /// The image's variables.
    pub image: &'a [Pair],
    /// Those of `--env-file`.
    pub file: &'a [Pair],
    /// Those of `--env`.
    pub options: &'a [Pair],
    /// The modules' changes, in the order of the request.
    pub modules: &'a [&'a EnvChanges],
    /// The site's rules and changes.
    pub site: &'a SiteEnv,
    /// What Shifter says about the container; nobody can change it.
    pub always: &'a [Pair],
}

/// Makes the environment of a container, sorted by name, each name once.
///
/// Where a source has a name twice the last counts, but of the caller's the first: that is the
/// one that getenv(3) finds.
pub fn compose(caller: Vec<Pair>, sources: &EnvSources<'_>) -> Vec<Pair> {
    let mut env: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    if !sources.clear {
        for (name, value) in caller {
            env.entry(name).or_insert(value);
        }
        env.retain(|name, value| sources.site.lets_in(name, value));
    }
    let given = [sources.image, sources.file, sources.options];
    env.extend(given.into_iter().flatten().cloned());
    let site = &sources.site.changes;
    for changes in sources.modules.iter().copied().chain([site]) {
        apply(&mut env, changes);
    }
    env.extend(sources.always.iter().cloned());
    // What cannot be a variable would be read as another one, or cut short, by execve(2).
    env.retain(|name, value| check_pair(name, value).is_ok());
    env.into_iter().collect()
}

fn apply(env: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: &EnvChanges) {
    for (name, value) in &changes.set {
        env.insert(name.clone().into_bytes(), value.clone().into_bytes());
    }
    for (name, value) in &changes.append {
        let slot = env.entry(name.clone().into_bytes()).or_default();
        *slot = join(slot, value.as_bytes());
    }
    for (name, value) in &changes.prepend {
        let slot = env.entry(name.clone().into_bytes()).or_default();
        *slot = join(value.as_bytes(), slot);
    }
    for name in &changes.unset {
        env.remove(name.as_bytes());
    }
}

/// Joins two lists; an empty one adds no colon, which would mean the current directory in PATH.
pub fn join(first: &[u8], second: &[u8]) -> Vec<u8> {
    let colon: &[u8] = if first.is_empty() || second.is_empty() {
        b""
    } else {
        b":"
    };
    [first, colon, second].concat()
}

/// Parses a file of variables: `NAME=value` on each line, `#` begins a comment line, empty lines
/// are skipped. Quotes are a part of the value. A carriage return at the end of a line is not.
pub fn parse_file(bytes: &[u8]) -> Result<Vec<Pair>, EnvError> {
    if bytes.len() > FILE_LIMIT {
        return Err(EnvError::FileTooLarge);
    }
    let mut pairs = Vec::new();
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let refused = |rule| EnvError::Line {
            line: index + 1,
            rule,
        };
        let (name, value) = parse_pair(line).map_err(refused)?;
        if name.iter().any(u8::is_ascii_whitespace) {
            return Err(refused("has a space in its name"));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// Parses the value of `--env`: `NAME=value`; the value may be empty.
pub fn parse_option(text: &[u8]) -> Result<Pair, EnvError> {
    parse_pair(text).map_err(|rule| {
        let name = text
            .split(|b| *b == b'=')
            .next()
            .unwrap_or_default()
            .to_vec();
        EnvError::Option { name, rule }
    })
}

fn parse_pair(text: &[u8]) -> Result<Pair, &'static str> {
    let at = text.iter().position(|b| *b == b'=').ok_or("has no '='")?;
    let (name, rest) = text.split_at(at);
    let value = rest.split_at(1).1;
    check_pair(name, value)?;
    Ok((name.to_vec(), value.to_vec()))
}

fn check_pair(name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("has no name")
    } else if name.contains(&b'=') {
        Err("has '=' in its name")
    } else if name.contains(&0) || value.contains(&0) {
        Err("contains a NUL byte")
    } else {
        Ok(())
    }
}
