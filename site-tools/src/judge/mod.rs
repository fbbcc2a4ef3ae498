//! Judging a configuration: is it one, may it be trusted, and is what it names there?
//!
//! Looks as whoever runs it. What only root can see is said to be so, and is no error.

mod parts;

use std::io;
use std::path::Path;

use shifter_core::config::{Config, ConfigError, Registries};
use shifter_core::reference::canonical_host;

use crate::finding::Finding;
use crate::look;

/// Bytes that a configuration may have, as for the programs that read it.
const SIZE_LIMIT: u64 = 1 << 20;

/// Judges a configuration file and what it names.
pub fn file(path: &Path) -> Vec<Finding> {
    let (mut findings, config) = text(path);
    if let Some(config) = config {
        findings.extend(named(path, &config));
    }
    findings
}

/// Judges what a configuration names, and the file of registries beside it.
pub fn named(path: &Path, config: &Config) -> Vec<Finding> {
    let mut findings = parts::judge(config);
    let beside = path.with_file_name("registries.toml");
    findings.extend(registries(&beside, config));
    findings
}

/// Judges the text of a configuration file; returns the configuration too, if it is one.
pub fn text(path: &Path) -> (Vec<Finding>, Option<Config>) {
    const CHECK: &str = "configuration";
    let shown = path.display();
    let mut findings = Vec::new();
    let bytes = match look::read(path, SIZE_LIMIT) {
        Ok(bytes) => bytes,
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "copy share/shifter/shifter.toml there and adapt it; the sample's defaults work"
                }
                io::ErrorKind::PermissionDenied => {
                    "every user's programs read it: chmod a+r, and a+x on the directories above"
                }
                _ => "see shifter.toml(5)",
            };
            let message = format!("cannot read '{shown}': {error}");
            return (vec![Finding::error(CHECK, message, hint)], None);
        }
    };
    if let Err((message, hint)) = look::trust(path, &[]) {
        findings.push(Finding::error(CHECK, message, hint));
    }
    let Ok(text) = String::from_utf8(bytes) else {
        let message = format!("'{shown}' is not UTF-8 text");
        findings.push(Finding::error(CHECK, message, "see shifter.toml(5)"));
        return (findings, None);
    };
    match Config::parse(&text, path) {
        Ok(config) => {
            if findings.is_empty() {
                findings.push(Finding::ok(CHECK, format!("'{shown}' is well-formed")));
            }
            (findings, Some(config))
        }
        Err(error) => {
            findings.push(Finding::error(CHECK, error.to_string(), hint(&error)));
            (findings, None)
        }
    }
}

/// Judges the file of registries beside the configuration, if there is one.
fn registries(path: &Path, config: &Config) -> Vec<Finding> {
    const CHECK: &str = "registries";
    const HINT: &str = "see registries.toml(5)";
    let shown = path.display();
    let bytes = match look::read(path, SIZE_LIMIT) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            let message = format!("cannot read '{shown}': {error}");
            return vec![Finding::error(CHECK, message, HINT)];
        }
    };
    let mut findings = Vec::new();
    if let Err((message, hint)) = look::trust(path, &[]) {
        findings.push(Finding::error(CHECK, message, hint));
    }
    let Ok(text) = String::from_utf8(bytes) else {
        let message = format!("'{shown}' is not UTF-8 text");
        findings.push(Finding::error(CHECK, message, HINT));
        return findings;
    };
    let parsed = match Registries::parse(&text, path) {
        Ok(parsed) => parsed,
        Err(error) => {
            let hint = error.hint().unwrap_or_else(|| HINT.to_owned());
            findings.push(Finding::error(CHECK, error.to_string(), hint));
            return findings;
        }
    };
    let canonical = |name: &str| canonical_host(name).unwrap_or_else(|_| name.to_owned());
    let configured: Vec<String> = config.registry.keys().map(|name| canonical(name)).collect();
    let mut names = parsed.registry.keys();
    let twice = names.find(|name| configured.contains(&canonical(name)));
    if let Some(name) = twice {
        let message = format!("'{name}' stands in both shifter.toml and registries.toml");
        findings.push(Finding::error(CHECK, message, "leave it in one of them"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("'{shown}' is well-formed")));
    }
    parts::registries(&parsed.registry, &mut findings);
    findings
}

fn hint(error: &ConfigError) -> String {
    let line = error.hint();
    line.unwrap_or_else(|| "see shifter.toml(5)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;

    /// Judges a text as if it were in a file, and returns `check: message (hint)` of what is wrong.
    fn wrong(text: &[u8]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shifter.toml");
        std::fs::write(&path, text).unwrap();
        let findings = file(&path);
        let bad = findings.iter().filter(|f| f.state == State::Error);
        bad.map(|f| {
            let hint = f.hint.as_deref().unwrap_or_default();
            format!("{}: {} ({hint})", f.check, f.message)
        })
        // The temporary directory is nobody's alone.
        .filter(|line| !line.contains("shifter.toml' is not trusted") && !line.contains("'/tmp'"))
        .collect()
    }

    #[test]
    fn the_registries_beside_it_are_judged_too() {
        let table: [(&[u8], &str); 7] = [
            (b"mirror = 1", "registries.toml:1: unknown field `mirror`"),
            (b"[registry.h]\nmirrors_only = true", "'h' has no mirrors"),
            (b"[registry.x]", "'x' stands in both"),
            (b"[registry.X]", "'X' stands in both"),
            (
                b"[registry.y]\nca_file = '/etc/passwd'",
                "registry.y.ca_file: '/etc/passwd' has no",
            ),
            (b"[registry.y]\nca_file = '/etc'", ""),
            (b"# \xff", "registries.toml' is not UTF-8 text"),
        ];
        for (text, expect) in table {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("shifter.toml");
            std::fs::write(&path, "[registry.x]").unwrap();
            std::fs::write(dir.path().join("registries.toml"), text).unwrap();
            let found: Vec<String> = file(&path)
                .into_iter()
                .filter(|finding| finding.state == State::Error)
                .map(|finding| format!("{}: {}", finding.check, finding.message))
                .filter(|line| line.starts_with("regist") && !line.contains("not trusted"))
                .collect();
            match expect {
                "" => assert!(found.is_empty(), "{expect}: {found:?}"),
                expect => assert!(
                    found.iter().any(|f| f.contains(expect)),
                    "{expect}: {found:?}"
                ),
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table: [(&[u8], &str); 16] = [
            (b"system = 'x'\nsistem = 'y'", ":2: unknown field `sistem`"),
            (b"sistem = 'y'", "the line reads 'sistem = 'y''"),
            (b"\xff", "is not UTF-8 text"),
            (
                b"[store]\npath = '/no/such'",
                "store.path: cannot read '/no/such'",
            ),
            (
                b"[root]\nudi_image = '/etc/passwd'",
                "root.udi_image: '/etc/passwd' is not a directory",
            ),
            (
                b"[root]\nsite_mounts = ['/no/such']",
                "root.site_mounts: '/no/such'",
            ),
            (
                b"[hooks]\npre_mount = ['/no/such']",
                "hooks.pre_mount: cannot read",
            ),
            (
                b"[hooks]\npost_mount = ['/etc/passwd']",
                "hooks.post_mount: '/etc/passwd' is not executable",
            ),
            (
                b"[store]\nsite_pull_command = ['/etc']",
                "store.site_pull_command: '/etc' is not a file",
            ),
            (
                b"[registry.x]\nca_file = '/etc/passwd'",
                "registry.x.ca_file: '/etc/passwd' has no certificate",
            ),
            (
                b"[module.a]\nlibraries = ['/usr/lib/no-such*']",
                "module.a.libraries: nothing matches",
            ),
            (
                b"[module.a]\ncopy_path = '/no/such'",
                "module.a.copy_path: cannot read",
            ),
            (
                b"[module.a]\nroot_hook = ['/no/such']",
                "module.a.root_hook: cannot read",
            ),
            (
                b"[per_node_cache.'/']\ndir = '/usr'",
                "per_node_cache./.dir: '/usr' has mode 0755",
            ),
            (
                b"[root]\nvisibility = 'host'\nudi_mount = '/etc/passwd'",
                "root.udi_mount: '/etc/passwd' is not a directory",
            ),
            (
                b"[torque]\nfanout_command = ['/no/such', '{command}']",
                "torque.fanout_command: cannot read '/no/such'",
            ),
        ];
        for (text, expect) in table {
            let found = wrong(text);
            assert!(
                found.iter().any(|line| line.contains(expect)),
                "{}: {found:#?}",
                String::from_utf8_lossy(text)
            );
        }
    }

    #[test]
    fn what_jobs_can_do_without_is_no_error() {
        let text = "[shared_state]\npath = '/usr'\n[metrics]\ntextfile = '/no/such'\n";
        let config = Config::parse(text, Path::new("x")).unwrap();
        let findings = parts::judge(&config);
        let of = |check: &str| findings.iter().find(|f| f.check == check).unwrap();
        for (check, words) in [
            ("shared_state.path", "'/usr' has mode 0755"),
            ("metrics.textfile", "cannot read '/no/such'"),
        ] {
            assert_eq!(of(check).state, State::Warning);
            assert!(of(check).message.contains(words), "{:?}", of(check));
        }
    }

    #[test]
    fn a_sound_configuration_has_no_error() {
        let text = "[store]\npath = '/usr'\nsite_pull_command = ['/bin/sh']\n\
                    [root]\nsite_mounts = ['/usr', '/tmp']\nudi_image = '/usr'\n\
                    [module.a]\nlibraries = ['/bin/s*']\n\
                    [module.b]\nroot_hook = ['/no/such']\nenabled = false\n\
                    [hooks]\npost_mount = ['/bin/true']\n";
        let found: Vec<String> = wrong(text.as_bytes());
        // Without an image there is no index.
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].starts_with("store.path: '/usr' has no index"),
            "{found:?}"
        );
    }

    #[test]
    fn a_missing_file_and_a_directory() {
        for (path, words) in [("/no/such", "No such file"), ("/etc", "regular file")] {
            let (findings, config) = text(Path::new(path));
            assert!(
                config.is_none() && findings[0].message.contains(words),
                "{findings:?}"
            );
        }
    }
}
