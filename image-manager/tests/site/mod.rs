//! A site to pull into: images made by hand, a real registry, a hostile one, and the program under
//! test with a store, a home and a configuration of its own.
#![allow(dead_code, reason = "each test program uses a part of this")]

pub mod image;
pub mod mock;
pub mod proxy;
pub mod registry;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_shifterimg");

/// A site: its directories and its configuration.
pub struct Site {
    temp: tempfile::TempDir,
}

/// What a run of the program gave.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Site {
    /// Makes a site that speaks plain http to these registries.
    pub fn new(plain: &[&str]) -> Self {
        let entries = plain
            .iter()
            .map(|name| format!("[registry.\"{name}\"]\nplain_http = true\n"));
        Self::with_config("", &entries.collect::<String>())
    }

    /// Makes a site with more lines in the section of the store, and more sections.
    pub fn with_config(store_lines: &str, sections: &str) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().display();
        let owner = rustix::process::geteuid().as_raw();
        fs::create_dir(temp.path().join("home")).unwrap();
        let text = format!(
            "[store]\npath = \"{root}/store\"\nimage_owner = {owner}\n{store_lines}\n{sections}"
        );
        let config = temp.path().join("shifter.toml");
        fs::write(&config, text).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
        let site = Self { temp };
        // What fails here fails for good.
        site.registries("retries = 0\n");
        site
    }

    /// Writes the site's file of registries.
    pub fn registries(&self, text: &str) {
        let path = self.root().join("registries.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    pub fn root(&self) -> &Path {
        self.temp.path()
    }

    pub fn home(&self) -> PathBuf {
        self.root().join("home")
    }

    pub fn store(&self) -> PathBuf {
        self.root().join("store")
    }

    pub fn config(&self) -> PathBuf {
        self.root().join("shifter.toml")
    }

    /// The program with its configuration and an environment of its own.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .env_clear()
            .env("HOME", self.home())
            .env("PATH", "/usr/bin:/bin");
        command
            .arg("--config")
            .arg(self.config())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        run(&mut self.command(args))
    }

    /// Runs the program and insists on success.
    pub fn ok(&self, args: &[&str]) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, 0, "{args:?}: {run:?}");
        run
    }

    /// Runs the program and insists on an exit code, one line of reason that contains `reason`, at
    /// most a hint besides, nothing on stdout, and nothing unfinished in the store.
    pub fn fails(&self, args: &[&str], code: i32, reason: &str) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, code, "{args:?}: {run:?}");
        assert!(
            run.stderr.contains(reason),
            "{args:?}: '{reason}' is not in {run:?}"
        );
        assert!(run.stdout.is_empty(), "{run:?}");
        let lines: Vec<&str> = run.stderr.lines().collect();
        assert!(lines[0].starts_with("shifterimg: "), "{run:?}");
        assert!(
            lines.len() == 1 || lines.len() == 2 && lines[1].starts_with("hint: "),
            "{run:?}"
        );
        self.assert_tidy();
        run
    }

    /// Returns the id that a reference has.
    pub fn id(&self, reference: &str) -> String {
        self.ok(&["lookup", reference]).stdout.trim().to_owned()
    }

    /// Reads a file of an image.
    pub fn read(&self, reference: &str, path: &str) -> String {
        let image = self
            .store()
            .join(format!("{}.squashfs", self.id(reference)));
        let output = Command::new("unsquashfs")
            .arg("-cat")
            .arg(&image)
            .arg(path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Insists that the store has no lock and no temporary file, and that its cache has nothing but
    /// blobs and beginnings of blobs.
    pub fn assert_tidy(&self) {
        let store = self.store();
        let is_blob = |name: &str| {
            let digits = name.strip_suffix(".part").unwrap_or(name);
            digits.len() >= 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        };
        let is_unfinished = |path: &PathBuf| {
            let path = path.strip_prefix(&store).unwrap();
            let name = path.file_name().unwrap().to_string_lossy();
            match path.starts_with(".cache") {
                true => !is_blob(&name),
                false => name.starts_with('.'),
            }
        };
        let left = walk(&store).into_iter().filter(|path| path.is_file());
        let left: Vec<PathBuf> = left.filter(is_unfinished).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// Counts the images of the store.
    pub fn image_count(&self) -> usize {
        let is_image = |path: &PathBuf| path.extension().is_some_and(|e| e == "squashfs");
        walk(&self.store())
            .iter()
            .filter(|path| is_image(path))
            .count()
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let code = output.status.code().unwrap_or(-1);
    assert!(
        !String::from_utf8_lossy(&output.stderr).contains("panicked at"),
        "{output:?}"
    );
    Run {
        code,
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Lists everything below a directory; nothing if it does not exist.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    let below = paths
        .iter()
        .filter(|p| p.is_dir() && !p.is_symlink())
        .flat_map(|p| walk(p));
    let below: Vec<PathBuf> = below.collect();
    paths.into_iter().chain(below).collect()
}

/// The last of the events that `pull --json` prints, which says what came of it.
pub fn done(stdout: &str) -> serde_json::Value {
    let last = stdout.lines().next_back().unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["event"], "done", "{stdout}");
    last
}

/// Runs the program with a file as standard input.
pub fn with_input(site: &Site, args: &[&str], input: &Path) -> Run {
    run(site.command(args).stdin(fs::File::open(input).unwrap()))
}

/// Runs the program with a text as standard input.
pub fn with_text(site: &Site, args: &[&str], text: &str) -> Run {
    let path = site.root().join("input");
    fs::write(&path, text).unwrap();
    with_input(site, args, &path)
}

/// The events that a command prints.
pub fn events(stdout: &str) -> Vec<serde_json::Value> {
    let lines = stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
