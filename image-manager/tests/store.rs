//! Pulls that are killed at each step, pulls at once, and who may pull where.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod site;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use site::image::{Image, Packing, image, layer, noise, small};
use site::mock::{Mock, honest};
use site::registry::Registry;
use site::{PROGRAM, Run, Site, run, walk};

/// Three layers of noise, so that a pull takes a while.
fn slow(length: usize) -> Image {
    let layers = [1, 2, 3].map(|seed| {
        let name = format!("data/{seed}");
        layer(
            Packing::Gzip,
            &[(name.as_str(), &noise(seed, length)), ("etc/motd", b"slow")],
        )
    });
    image("amd64", json!({}), &layers)
}

/// Pulls after a kill: the image is whole, and nothing else is there.
fn recovers(site: &Site, reference: &str, moment: &str) {
    let run = site.run(&["pull", reference]);
    assert_eq!(run.code, 0, "{moment}: {run:?}");
    assert_eq!(site.read(reference, "etc/motd"), "slow", "{moment}");
    site.assert_tidy();
    assert_eq!(site.image_count(), 1, "{moment}");
    let names: Vec<_> = fs::read_dir(site.store())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(
        names.len(),
        5,
        "{moment}: {names:?} is more than image, record, metadata, index and cache"
    );
}

/// Killed at exact places: before the K-th call of each kind that changes the store.
#[test]
fn killed_before_each_change() {
    let registry = Registry::start();
    let reference = registry.push("slow:1", &slow(1 << 10));
    let mut killed = 0;
    for call in [
        "renameat",
        "unlinkat",
        "fsync",
        "fchmod",
        "mkdirat",
        "ftruncate",
        "flock",
        "linkat",
        "pwrite64",
    ] {
        for count in 1.. {
            let site = Site::new(&[&registry.address]);
            let plain = site.command(&["pull", &reference]);
            let mut traced = Command::new("strace");
            traced.args(["-f", "-qq", "-o", "/dev/null", "-e"]);
            traced.arg(format!("inject={call}:signal=KILL:when={count}"));
            traced.arg(plain.get_program()).args(plain.get_args());
            traced
                .env_clear()
                .env("HOME", site.home())
                .env("PATH", "/usr/bin:/bin");
            traced
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if traced.status().expect("strace is installed").success() {
                break;
            }
            killed += 1;
            recovers(
                &site,
                &reference,
                &format!("killed before {call} number {count}"),
            );
        }
    }
    assert!(killed >= 30, "only {killed} places were reached");
}

#[test]
fn two_pulls_at_once_build_one_image() {
    let image = slow(1 << 20);
    let mock = Mock::paths(honest(&image));
    let site = Site::new(&[&mock.address]);
    let reference = format!("{}/x", mock.address);
    let start = || {
        let mut command = site.command(&["pull", "--json", &reference]);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let outputs = [start(), start(), start()].map(|child| child.wait_with_output().unwrap());
    let mut builders = 0;
    for output in outputs {
        assert!(output.status.success(), "{output:?}");
        let record = site::done(str::from_utf8(&output.stdout).unwrap());
        builders += usize::from(record["new"] == true);
    }
    assert_eq!(builders, 1);
    assert_eq!(site.read(&reference, "etc/motd"), "slow");
    site.assert_tidy();
    for layer in &image.layers {
        let path = format!("/v2/x/blobs/{}", layer.blob.digest());
        let count = mock
            .requests()
            .iter()
            .filter(|request| request.path == path)
            .count();
        assert_eq!(count, 1, "a layer is downloaded once");
    }
}

#[test]
fn tags_of_one_image_and_removal_at_once() {
    let registry = Registry::start();
    let image = small("x");
    let tags: Vec<String> = (0..6)
        .map(|n| registry.push(&format!("x:{n}"), &image))
        .collect();
    let site = Site::new(&[&registry.address]);
    for _ in 0..5 {
        std::thread::scope(|scope| {
            for tag in &tags {
                scope.spawn(|| {
                    site.ok(&["pull", "--quiet", tag]);
                    site.ok(&["rmi", tag]);
                });
            }
        });
        assert_eq!(site.image_count(), 0);
        assert!(walk(&site.store().join("index/docker")).is_empty());
        site.assert_tidy();
    }
}

#[test]
fn users_pull_into_a_store_of_their_own() {
    let registry = Registry::start();
    let reference = registry.push("x:1", &small("own"));
    let sections = format!("[registry.\"{}\"]\nplain_http = true", registry.address);
    let site = Site::with_config("user_images = \"kernel\"", &sections);
    site.ok(&["pull", "--store", "user", &reference]);
    assert_eq!(site.image_count(), 0, "nothing in the site store");
    let run = site.ok(&["lookup", "--json", &reference]);
    let record: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(record["store"], "user");
    for path in walk(&site.home()) {
        let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
        assert_eq!(
            mode,
            if path.is_dir() {
                if path.ends_with("home") { mode } else { 0o700 }
            } else {
                0o600
            },
            "{path:?}"
        );
    }
    site.ok(&["rmi", "--store", "user", &reference]);
    site.fails(
        &["lookup", &reference],
        4,
        "neither in the site store nor in your own",
    );
}

#[test]
fn images_have_the_form_that_the_site_chose() {
    let registry = Registry::start();
    let reference = registry.push("x:1", &small("form"));
    let section = format!("[registry.\"{}\"]\nplain_http = true\n", registry.address);
    for (lines, block_size, compressor) in [
        ("", 65_536, 6),
        ("compression = \"lz4\"\nblock_size = \"32k\"", 32_768, 5),
        ("compression = \"xz:1\"", 65_536, 4),
    ] {
        let site = Site::with_config(lines, &section);
        site.ok(&["pull", &reference]);
        let image = format!("{}.squashfs", site.id(&reference));
        let image = fs::read(site.store().join(image)).unwrap();
        // The superblock's words: block size at 12, compressor at 20.
        assert_eq!(image[12..16], u32::to_le_bytes(block_size), "{lines}");
        assert_eq!(image[20..22], u16::to_le_bytes(compressor), "{lines}");
    }
}

#[test]
fn images_of_users_are_refused_where_the_site_says_so() {
    let registry = Registry::start();
    let reference = registry.push("x:1", &small("own"));
    let section = format!("[registry.\"{}\"]\nplain_http = true\n", registry.address);
    let site = Site::with_config("user_images = \"no\"", &section);
    let run = site.ok(&["pull", "--store", "user", &reference]);
    assert!(
        run.stderr
            .contains("does not run images from users' own stores"),
        "{run:?}"
    );
    site.fails(&["lookup", &reference], 3, "it is only in your own store");
    site.ok(&["pull", &reference]);
    let record: serde_json::Value =
        serde_json::from_str(&site.ok(&["lookup", "--json", &reference]).stdout).unwrap();
    assert_eq!(record["store"], "site");
}

/// A program that shows with what it was called.
fn spy(dir: &Path, code: i32) -> String {
    let path = dir.join("spy");
    let text = format!("#!/bin/sh\nprintf '%s\\n' \"$@\"\n/usr/bin/env\nexit {code}\n");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn the_sites_command_gets_a_clean_environment() {
    let temp = tempfile::tempdir().unwrap();
    let spy = spy(temp.path(), 42);
    let line = format!("site_pull_command = [\"{spy}\", \"-n\", \"$(x)\", \"pull\"]");
    let site = Site::with_config(&line, "");
    // Somebody else owns the site store, so the command is used.
    let text = fs::read_to_string(site.config()).unwrap();
    let me = rustix::process::geteuid().as_raw();
    let other = text.replace(&format!("image_owner = {me}"), "image_owner = 4242");
    fs::write(site.config(), other).unwrap();

    let mut command = site.command(&["pull", "--quiet", "--json", "Debian:12", "x"]);
    command
        .env("LANG", "C.UTF-8")
        .env("LD_LIBRARY_PATH", "/tmp")
        .env("SSH_AUTH_SOCK", "/x");
    assert_eq!(
        run(&mut command).code,
        2,
        "an upper-case name is refused before the command runs"
    );

    let mut command = site.command(&["pull", "--quiet", "--json", "debian:12", "quay.io/x/y"]);
    command
        .env("LANG", "C.UTF-8")
        .env("LD_LIBRARY_PATH", "/tmp")
        .env("SSH_AUTH_SOCK", "/x");
    let Run { code, stdout, .. } = run(&mut command);
    assert_eq!(code, 42, "the exit code is the command's");
    let mut lines: Vec<&str> = stdout
        .lines()
        .filter(|line| !line.starts_with("PWD="))
        .collect();
    lines.retain(|line| !line.starts_with("_=") && !line.starts_with("SHLVL="));
    lines[7..].sort_unstable();
    let home = format!("HOME={}", site.home().display());
    let expect = [
        "-n",
        "$(x)",
        "pull",
        "--quiet",
        "--json",
        "docker:debian:12",
        "docker:quay.io/x/y:latest",
        &home,
        "LANG=C.UTF-8",
        "PATH=/usr/bin:/bin",
    ];
    assert_eq!(lines, expect);

    // Through sudo the command must not lead to itself.
    let mut command = site.command(&["pull", "x"]);
    assert_eq!(
        run(command.env("SUDO_UID", "1000")).code,
        3,
        "--config through sudo"
    );
    let fails = |site: &Site| site.fails(&["pull", "--store", "site", "x"], 1, "cannot run");
    let text = fs::read_to_string(site.config())
        .unwrap()
        .replace(&spy, "/no/such");
    fs::write(site.config(), text).unwrap();
    fails(&site);
}

#[test]
fn sudo_brings_no_paths() {
    for args in [
        &["--config", "/x", "pull", "x"][..],
        &["pull", "--store", "user", "x"],
    ] {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .env_clear()
            .env("SUDO_UID", "1000")
            .stdin(Stdio::null());
        let run = run(&mut command);
        assert_eq!(run.code, 3, "{run:?}");
        assert!(run.stderr.contains("not accepted through sudo"), "{run:?}");
    }
}

#[test]
fn a_configuration_that_others_can_write_is_not_read() {
    let site = Site::new(&[]);
    fs::set_permissions(site.config(), fs::Permissions::from_mode(0o666)).unwrap();
    site.fails(&["images"], 2, "nobody else can write");
}

#[test]
fn only_types_that_have_a_registry_are_pulled() {
    let site = Site::new(&[]);
    site.fails(
        &["pull", "custom:x"],
        2,
        "images of the type 'custom' do not come from a registry",
    );
    site.fails(&["pull", "UPPER"], 2, "cannot use image 'UPPER'");
    site.fails(
        &["lookup", "custom:x"],
        4,
        "cannot find image 'custom:x:latest'",
    );
    let run = site.fails(
        &["lookup", "ubuntu"],
        4,
        "cannot find image 'docker:ubuntu:latest'",
    );
    assert!(
        run.stderr.contains("hint: shifter pull ubuntu:latest"),
        "{run:?}"
    );
    let none = format!("id:{}", "0".repeat(64));
    let places = "neither in the site store nor in your own";
    site.fails(&["lookup", &none], 4, places);
}

/// Every mode in a store, by path below it, with the image's id left out.
fn modes(site: &Site, id: &str) -> Vec<(String, u32)> {
    let mut found: Vec<_> = walk(&site.store())
        .iter()
        .map(|path| {
            let name = path
                .strip_prefix(site.store())
                .unwrap()
                .display()
                .to_string();
            (
                name.replace(id, "ID"),
                fs::metadata(path).unwrap().mode() & 0o7777,
            )
        })
        .collect();
    found.sort();
    found
}

#[test]
fn modes_are_fixed() {
    let registry = Registry::start();
    let image = small("x");
    let digest = image.layers[0].blob.digest();
    let layer = format!(".cache/sha256/{}", digest.trim_start_matches("sha256:"));
    let reference = registry.push("x:1", &image);
    for umask in ["0000", "0777"] {
        let site = Site::new(&[&registry.address]);
        let plain = site.command(&["pull", "--quiet", &reference]);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask} && exec \"$@\""), "sh"]);
        command.arg(plain.get_program()).args(plain.get_args());
        let result = run(command.env("HOME", site.home()));
        assert_eq!((result.code, result.stderr.as_str()), (0, ""), "--quiet");
        assert_eq!(fs::metadata(site.store()).unwrap().mode() & 0o7777, 0o755);
        let tag = format!(
            "index/docker/{}",
            reference.replace(':', "%3A").replace('/', "%2F")
        );
        let expect = [
            (".cache", 0o700),
            (".cache/sha256", 0o700),
            (layer.as_str(), 0o600),
            ("ID.json", 0o644),
            ("ID.meta", 0o644),
            ("ID.squashfs", 0o644),
            ("index", 0o755),
            ("index/docker", 0o755),
            (tag.as_str(), 0o644),
        ]
        .map(|(name, mode)| (name.to_owned(), mode));
        assert_eq!(modes(&site, &site.id(&reference)), expect, "umask {umask}");
    }
}

/// The way of a user's pull through the site's command, with setpriv in the place of sudo.
#[test]
fn privileged_the_owner_of_the_store_uses_no_login_of_the_caller() {
    if !rustix::process::geteuid().is_root() {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: needs root\n");
        return;
    }
    let mock = Mock::start({
        let replies = honest(&small("x"));
        move |request| match replies.get(&request.path) {
            Some(reply) if !request.path.contains("private") => reply.clone(),
            _ => site::mock::Reply::challenge("Basic realm=\"x\""),
        }
    });
    let site = Site::new(&[&mock.address]);
    let config = site.config().display().to_string();
    // The owner needs a way to its configuration, its program and its store.
    fs::set_permissions(site.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = site.root().join("shifterimg");
    fs::copy(PROGRAM, &program).unwrap();
    fs::create_dir(site.store()).unwrap();
    std::os::unix::fs::chown(site.store(), Some(4242), Some(4242)).unwrap();
    let command = [
        "/usr/bin/setpriv",
        "--reuid=4242",
        "--regid=4242",
        "--clear-groups",
        &program.display().to_string(),
        "--config",
        &config,
        "pull",
    ]
    .map(|word| format!("\"{word}\""));
    let text = fs::read_to_string(site.config()).unwrap().replace(
        "image_owner = 0\n",
        &format!(
            "image_owner = 4242\nsite_pull_command = [{}]\n",
            command.join(", ")
        ),
    );
    fs::write(site.config(), text).unwrap();
    fs::create_dir(site.home().join(".docker")).unwrap();
    let login = json!({"auths": {&mock.address: {"auth": "YWxpY2U6c2VjcmV0"}}}).to_string();
    fs::write(site.home().join(".docker/config.json"), login).unwrap();

    let reference = format!("{}/x", mock.address);
    site.ok(&["pull", &reference]);
    assert_eq!(site.read(&reference, "etc/motd"), "x");
    let id = site.id(&reference);
    let image = fs::metadata(site.store().join(format!("{id}.squashfs"))).unwrap();
    assert_eq!((image.uid(), image.mode() & 0o7777), (4242, 0o644));
    site.fails(
        &["pull", &format!("{}/private", mock.address)],
        3,
        "denied access",
    );
    assert!(
        mock.requests()
            .iter()
            .all(|request| request.authorization.is_none())
    );
    // Root is not the owner and leaves the store to it.
    site.fails(
        &["rmi", &reference],
        3,
        "the site store belongs to uid 4242",
    );
    // The same store, had somebody else filled it, is refused.
    fs::set_permissions(site.store(), fs::Permissions::from_mode(0o777)).unwrap();
    site.fails(&["pull", &reference], 6, "lets others write");
}

/// The runtime will have nothing of such a store: better said now than by the first job.
#[test]
fn a_store_in_a_place_for_everybody_is_warned_of() {
    let registry = Registry::start();
    let reference = registry.push("x:1", &small("x"));
    let site = Site::new(&[&registry.address]);
    let open = site.root().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), text.replace("/store\"", "/open/store\"")).unwrap();
    let warning = "nodes will refuse images of this store: everybody may write in '";
    let run = site.ok(&["pull", &reference]);
    assert!(run.stderr.contains(warning), "{run:?}");
    let run = site.ok(&["pull", "--quiet", &reference]);
    assert_eq!(run.stderr, "");
}
