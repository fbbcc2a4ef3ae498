//! The sample configuration and the manual pages, compared with what the code knows.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use shifter_core::config::{Config, ConfigError, Registries};
use shifter_core::exit::ExitCode;
use shifter_core::manifest::JobManifest;

/// Keys whose value in the sample is an example: they have no default.
const EXAMPLES: [&str; 8] = [
    "store.cache_dir",
    "registry.ca_file",
    "registry.credentials_file",
    "registry.token_server",
    "root.udi_image",
    "module.copy_path",
    "shared_state.path",
    "metrics.textfile",
];

/// Names that the sample gives to tables of which there may be any number.
const TABLES: [&str; 3] = ["registry.", "module.", "per_node_cache."];

fn read(path: &str) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (path, text)
}

/// Returns the header or the setting that a line is, if it is one.
fn live(line: &str) -> Option<&str> {
    let is_header = line.starts_with('[') && line.ends_with(']');
    let is_setting = line.split_once(" = ").is_some_and(|(key, _)| {
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    });
    (is_header || is_setting).then_some(line)
}

/// Uncomments the whole sample.
fn sample(name: &str) -> (PathBuf, String) {
    let (path, text) = read(&format!("conf/{name}"));
    let lines = text
        .lines()
        .filter_map(|line| live(line.strip_prefix("# ").unwrap_or(line)));
    let lines: Vec<&str> = lines.collect();
    (path, lines.join("\n"))
}

/// Gathers the headings and terms of the manual page.
fn manual(name: &str) -> (PathBuf, String) {
    let (path, text) = read(&format!("docs/man/{name}.5.md"));
    let lines = text.lines().filter_map(|line| {
        let term = line
            .strip_prefix('`')
            .and_then(|rest| rest.strip_suffix('`'));
        live(line.strip_prefix("## ").or(term)?)
    });
    let lines: Vec<&str> = lines.collect();
    (path, lines.join("\n"))
}

/// Returns the code in a section of a page.
fn code(page: &str, section: &str) -> (PathBuf, String) {
    let (path, text) = read(page);
    let lines = text.lines().skip_while(|line| *line != section).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("# "));
    let lines: Vec<&str> = lines.filter_map(|line| line.strip_prefix("    ")).collect();
    (path, lines.join("\n"))
}

/// Writes a header without the name that stands for any: `module.mpich.env` is `module.env`.
fn table(header: &str) -> String {
    let name = header.trim_matches(['[', ']']);
    let Some(kind) = TABLES.into_iter().find(|kind| name.starts_with(kind)) else {
        return name.to_owned();
    };
    let suffix = name.strip_suffix(".env").map_or("", |_| ".env");
    format!("{}{suffix}", kind.trim_end_matches('.'))
}

/// Lists `table.key` of every setting, those of the whole file without a table. A module's changes
/// to the environment have the keys of the site's, and need not name them all again.
fn keys(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut prefix = String::new();
    for line in text.lines() {
        match line.split_once(" = ") {
            Some(_) if prefix == "module.env." => {}
            Some((key, _)) => {
                assert!(
                    found.insert(format!("{prefix}{key}")),
                    "{prefix}{key} stands twice"
                );
            }
            None => prefix = table(line) + ".",
        }
    }
    found
}

/// Asks the parser itself which keys there are: it lists them when it meets one it does not know.
fn known_keys() -> BTreeSet<String> {
    let tables = [
        "[store]",
        "[registry.x]",
        "[root]",
        "[env]",
        "[module.x]",
        "[hooks]",
        "[per_node_cache.x]",
        "[kernel]",
        "[shared_state]",
        "[metrics]",
        "[slurm]",
        "[torque]",
        "[ssh]",
    ];
    keys_in(&tables, |text| {
        Config::parse(text, Path::new("/x")).map(|_| ())
    })
}

fn keys_in(tables: &[&str], parse: impl Fn(&str) -> Result<(), ConfigError>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for header in [""].into_iter().chain(tables.iter().copied()) {
        let prefix = if header.is_empty() {
            String::new()
        } else {
            table(header) + "."
        };
        let text = format!("{header}\nno_such_key = 1\n");
        let error = parse(&text).map_err(|error| error.to_string());
        let Some((_, expected)) = error.as_ref().err().and_then(|e| e.split_once("expected "))
        else {
            panic!("{header}: {error:?}");
        };
        let names = expected.split('`').skip(1).step_by(2);
        found.extend(names.map(|name| format!("{prefix}{name}")));
    }
    for header in tables {
        found.remove(&table(header));
    }
    found.remove("module.env");
    found
}

#[test]
fn sample_and_manual_have_every_key() {
    let known = known_keys();
    assert!(
        known.contains("store.user_images") && known.contains("module.conflicts"),
        "{known:?}"
    );
    for (path, text) in [sample("shifter.toml"), manual("shifter.toml")] {
        let found = keys(&text);
        let missing: Vec<_> = known.difference(&found).collect();
        let unknown: Vec<_> = found.difference(&known).collect();
        assert!(
            missing.is_empty() && unknown.is_empty(),
            "{}: missing {missing:?}, unknown {unknown:?}",
            path.display()
        );
    }
}

#[test]
fn sample_and_manual_state_the_defaults() {
    for (path, text) in [sample("shifter.toml"), manual("shifter.toml")] {
        Config::parse(&text, &path).unwrap();
        let mut defaults = String::new();
        let mut prefix = String::new();
        for line in text.lines() {
            let key = line.split_once(" = ").map(|(key, _)| key);
            if key.is_none() {
                prefix = table(line) + ".";
            }
            let is_example = key.is_some_and(|k| EXAMPLES.contains(&&*format!("{prefix}{k}")));
            if !is_example {
                defaults += &format!("{line}\n");
            }
        }
        let mut config = Config::parse(&defaults, &path).unwrap();
        for (name, registry) in std::mem::take(&mut config.registry) {
            assert_eq!(registry, Default::default(), "{name}");
        }
        for (name, mut module) in std::mem::take(&mut config.module) {
            module.env = Default::default();
            assert_eq!(module, Default::default(), "{name}");
        }
        for (name, cache) in std::mem::take(&mut config.per_node_cache) {
            let dir = "[per_node_cache.'/x']\ndir = '/scratch/.shifter'";
            let default = Config::parse(dir, &path).unwrap().per_node_cache;
            assert_eq!(cache, default["/x"], "{name}");
        }
        assert_eq!(config, Config::default(), "{}", path.display());
    }
}

#[test]
fn registries_have_every_key_and_its_default() {
    let known = keys_in(&["[registry.x]"], |text| {
        Registries::parse(text, Path::new("/x")).map(|_| ())
    });
    assert!(known.contains("registry.mirrors_only") && known.contains("block"));
    for (path, text) in [sample("registries.toml"), manual("registries.toml")] {
        assert_eq!(keys(&text), known, "{}", path.display());
        let mut parsed = Registries::parse(&text, &path).unwrap();
        for (name, mut registry) in std::mem::take(&mut parsed.registry) {
            registry.ca_file = None;
            registry.credentials_file = None;
            registry.token_server = None;
            assert_eq!(registry, Default::default(), "{name}");
        }
        // These are the image manager's own, which says so where it has them.
        let limits = [
            parsed.retries.take(),
            parsed.connect_timeout_secs.take(),
            parsed.idle_timeout_secs.take(),
        ];
        assert_eq!(limits, [Some(5), Some(10), Some(60)], "{}", path.display());
        assert_eq!(parsed, Registries::default(), "{}", path.display());
    }
    let (path, text) = code("docs/man/registries.toml.5.md", "# EXAMPLE");
    let parsed = Registries::parse(&text, &path).unwrap();
    assert!(parsed.registry["docker.io"].mirrors_only);
}

#[test]
fn examples_of_the_manual_parse() {
    let (path, text) = code("docs/man/shifter.toml.5.md", "# EXAMPLE");
    let config = Config::parse(&text, &path).unwrap();
    assert_eq!((config.system.as_str(), config.module.len()), ("hpc", 1));
    let (_, text) = code("docs/man/setupRoot.8.md", "# MANIFEST");
    let manifest = JobManifest::parse(text.as_bytes()).unwrap();
    assert_eq!(manifest.volume_map().unwrap().entries().len(), 1);
}

#[test]
fn manual_lists_every_exit_code() {
    let (path, text) = read("docs/man/shifter.1.md");
    let listed: Vec<i32> = text
        .lines()
        .filter_map(|line| line.strip_prefix('`')?.strip_suffix('`')?.parse().ok())
        .collect();
    let known: Vec<i32> = ExitCode::ALL.map(|code| code.code().into()).into();
    assert_eq!(listed, known, "{}", path.display());
}

#[test]
fn the_shipped_modules_are_understood() {
    for (file, name) in [("mpich", "mpich"), ("gpu", "gpu")] {
        let (path, text) = read(&format!("conf/modules/{file}.toml"));
        let config = Config::parse(&text, &path).unwrap();
        assert!(config.module.contains_key(name), "{}", path.display());
        // Pasted at the end of the sample they are the same.
        let (path, sample) = read("conf/shifter.toml");
        let pasted = Config::parse(&format!("{sample}\n{text}"), &path).unwrap();
        assert_eq!(pasted.module, config.module);
    }
}
