//! Slurm's plugin stack, as Slurm reads it: `plugstack.conf` and what it includes.
//!
//! ```text
//! line := ("required" | "optional") PATH { ARGUMENT }
//!       | "include" PATTERN                 relative to the file it stands in; sorted
//!       | "#" ...                           a comment may also end a line
//! ```

use std::path::{Path, PathBuf};

use crate::look;

/// Files that include files that include files.
const DEPTH: usize = 16;

/// Bytes that a file may have.
const LIMIT: u64 = 1 << 20;

/// A plugin of the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plugin {
    /// The plugin's file, as it is written.
    pub path: PathBuf,
    /// Whether a job fails where the plugin is missing.
    pub is_required: bool,
    /// Where it is configured, for people.
    pub place: String,
}

/// What a stack holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stack {
    /// The plugins, in the order in which Slurm calls them.
    pub plugins: Vec<Plugin>,
    /// What could not be read or understood.
    pub faults: Vec<String>,
}

impl Stack {
    /// Reads a `plugstack.conf`.
    pub fn read(path: &Path) -> Self {
        let mut stack = Self::default();
        stack.add(path, 0);
        stack
    }

    fn add(&mut self, path: &Path, depth: usize) {
        let shown = path.display();
        if depth == DEPTH {
            return self.faults.push(format!("'{shown}' includes itself"));
        }
        let text = match look::read(path, LIMIT) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => return self.faults.push(format!("cannot read '{shown}': {error}")),
        };
        let dir = path.parent().unwrap_or(Path::new("/"));
        for (at, line) in text.lines().enumerate() {
            let place = format!("{shown}:{}", at + 1);
            match parse(line) {
                Ok(None) => {}
                Ok(Some(Line::Include(pattern))) => self.include(&dir.join(pattern), depth, &place),
                Ok(Some(Line::Plugin { path, is_required })) => self.plugins.push(Plugin {
                    path: path.into(),
                    is_required,
                    place,
                }),
                Err(why) => self.faults.push(format!("{place}: {why}")),
            }
        }
    }

    fn include(&mut self, pattern: &Path, depth: usize, place: &str) {
        let dir = pattern.parent().unwrap_or(Path::new("/"));
        let name = pattern.file_name().unwrap_or_default().to_string_lossy();
        let is_pattern = |text: &str| text.contains(['*', '?', '[']);
        if is_pattern(&dir.to_string_lossy()) || name.contains('[') {
            let pattern = pattern.display();
            let fault =
                format!("{place}: cannot follow '{pattern}', and does not know what it adds");
            return self.faults.push(fault);
        }
        if !is_pattern(&name) {
            return self.add(pattern, depth + 1);
        }
        // A directory that is not there includes nothing, as for glob(3).
        for file in look::expand(dir, &name).unwrap_or_default() {
            self.add(&file, depth + 1);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Include(&'a str),
    Plugin { path: &'a str, is_required: bool },
}

fn parse(line: &str) -> Result<Option<Line<'_>>, &'static str> {
    let line = line.split('#').next().unwrap_or_default();
    let mut words = line.split_ascii_whitespace();
    let Some(kind) = words.next() else {
        return Ok(None);
    };
    let rest = words.next();
    let missing = "a path is missing";
    match kind {
        "include" => Ok(Some(Line::Include(rest.ok_or(missing)?))),
        "required" | "optional" => Ok(Some(Line::Plugin {
            path: rest.ok_or(missing)?,
            is_required: kind == "required",
        })),
        _ => Err("a line begins with 'required', 'optional' or 'include'"),
    }
}

/// Finds the plugin stack that a `slurm.conf` names, or that lies beside it.
pub(super) fn path_of(slurm_conf: &Path) -> PathBuf {
    let dir = slurm_conf.parent().unwrap_or(Path::new("/"));
    let named = value_of(slurm_conf, "PlugStackConfig");
    dir.join(named.as_deref().unwrap_or("plugstack.conf"))
}

/// Returns the value of a key that stands on a line of its own in a `slurm.conf`, or in what it includes.
pub(super) fn value_of(slurm_conf: &Path, key: &str) -> Option<String> {
    let dir = slurm_conf.parent().unwrap_or(Path::new("/"));
    named(&look::text(slurm_conf), &key.to_ascii_lowercase(), dir, 0)
}

fn named(text: &str, key: &str, dir: &Path, depth: usize) -> Option<String> {
    let mut found = None;
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix(key) {
            let value = &line[line.len() - value.len()..];
            if let Some(value) = value.trim_start().strip_prefix('=') {
                found = Some(value.trim().trim_matches('"').to_owned());
            }
        } else if let Some(file) = lower.strip_prefix("include ")
            && depth < DEPTH
        {
            let file = dir.join(line[line.len() - file.len()..].trim());
            found = named(&look::text(file), key, dir, depth + 1).or(found);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn lines() {
        let plugin = |path, is_required| Ok(Some(Line::Plugin { path, is_required }));
        let table = [
            ("", Ok(None)),
            ("  # required x", Ok(None)),
            ("required /a.so b=c", plugin("/a.so", true)),
            ("\toptional  a.so # x", plugin("a.so", false)),
            ("include d/*.conf", Ok(Some(Line::Include("d/*.conf")))),
            ("required", Err("a path is missing")),
            (
                "/a.so",
                Err("a line begins with 'required', 'optional' or 'include'"),
            ),
        ];
        for (line, expect) in table {
            assert_eq!(parse(line), expect, "{line}");
        }
    }

    #[test]
    fn includes_are_followed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        write(
            "plugstack.conf",
            "required /1.so\ninclude d/*.conf\ninclude none/*\ninclude gone\noptional /4.so\n\
             include d[ab]/x\nwat\ninclude plugstack.conf.loop\n",
        );
        write("d/b.conf", "required /3.so");
        write("d/a.conf", "required /2.so x");
        write("d/.hidden.conf", "required /hidden.so");
        write("d/c.conf.old", "required /old.so");
        write("plugstack.conf.loop", "include plugstack.conf.loop");
        let stack = Stack::read(&dir.path().join("plugstack.conf"));
        let paths: Vec<String> = stack
            .plugins
            .iter()
            .map(|plugin| plugin.path.display().to_string())
            .collect();
        assert_eq!(paths, ["/1.so", "/2.so", "/3.so", "/4.so"]);
        assert!(stack.plugins[1].place.ends_with("d/a.conf:1"));
        let faults = stack.faults.join("\n");
        assert_eq!(stack.faults.len(), 4, "{faults}");
        for words in [
            "gone",
            "cannot follow",
            ":7: a line begins",
            "includes itself",
        ] {
            assert!(faults.contains(words), "{words}: {faults}");
        }
    }

    #[test]
    fn slurm_conf_says_where_the_stack_is() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("slurm.conf");
        let more = dir.path().join("more.conf");
        fs::write(&more, "PlugStackConfig=/more\n").unwrap();
        for (text, expect) in [
            ("ClusterName=x\n", dir.path().join("plugstack.conf")),
            ("#PlugStackConfig=/y\n", dir.path().join("plugstack.conf")),
            ("plugstackconfig = /y # z\n", "/y".into()),
            ("PlugStackConfig=y", dir.path().join("y")),
            ("Include more.conf\n", "/more".into()),
            (
                "Include gone\nPlugStackConfigX=1",
                dir.path().join("plugstack.conf"),
            ),
        ] {
            fs::write(&conf, text).unwrap();
            assert_eq!(path_of(&conf), expect, "{text}");
        }
    }
}
