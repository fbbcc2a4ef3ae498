//! Full disks and exhausted quotas: what is said, and what is left.
//!
//! Each case has a small file system of its own, in a mount namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod site;

use std::fs;
use std::process::Command;

use serde_json::json;
use site::image::{Image, Packing, image, layer, noise, small};
use site::registry::Registry;
use site::{Run, Site, run};

fn is_skipped() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: needs root\n");
    }
    !is_root
}

/// Three layers of noise of that length each.
fn large(seed: u64, length: usize) -> Image {
    let layers = [1, 2, 3].map(|n| {
        let name = format!("data/{n}");
        layer(
            Packing::Gzip,
            &[
                (name.as_str(), &noise(seed * 10 + n, length)),
                ("etc/motd", b"large"),
            ],
        )
    });
    image("amd64", json!({}), &layers)
}

/// Runs a script of commands after mounting something at the store (`$S`); `$P` is the program with
/// its configuration, and `left` lists what is in the store.
fn script(site: &Site, mount: &str, commands: &str) -> Run {
    if !site.store().exists() {
        fs::create_dir(site.store()).unwrap();
    }
    let plain = site.command(&[]);
    let words: Vec<String> = std::iter::once(plain.get_program())
        .chain(plain.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let text = format!(
        "S={store}; I={root}/disk; P='{program}'; \
         left() {{ (cd $S && find . -type f ! -path './lost+found*' | sort | sed 's/^/left /'); }}; \
         {mount} || exit 99\n{commands}",
        store = site.store().display(),
        root = site.root().display(),
        program = words.join(" "),
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &text]);
    command
        .env_clear()
        .env("HOME", site.home())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let run = run(&mut command);
    assert_ne!(run.code, 99, "{run:?}");
    run
}

const DISKS: [(&str, &str); 3] = [
    ("tmpfs", "mount -t tmpfs -o size=4m,mode=755 tmpfs $S"),
    (
        "ext4",
        "truncate -s 5M $I && mkfs.ext4 -q -O ^has_journal -m 0 $I && mount -o loop $I $S && \
         chmod 755 $S",
    ),
    (
        "btrfs with a quota",
        "truncate -s 120M $I && mkfs.btrfs -f -q $I >/dev/null && mount -o loop $I $S && \
         btrfs quota enable $S && btrfs qgroup limit 4500k $S && chmod 755 $S",
    ),
];

#[test]
fn privileged_a_full_disk_is_named_and_given_back() {
    if is_skipped() {
        return;
    }
    let registry = Registry::start();
    let fits = registry.push("fits:1", &small("x"));
    // One does not fit as layers, the other only not as layers and image together.
    let layers = registry.push("layers:1", &large(1, 2_000_000));
    let both = registry.push("both:1", &large(2, 900_000));
    for (name, mount) in DISKS {
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        if name.starts_with("btrfs") && !known.contains("btrfs") {
            let text = b"skipped: no quota without btrfs\n";
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text);
            continue;
        }
        let site = Site::new(&[&registry.address]);
        for reference in [&layers, &both] {
            let commands = format!(
                "$P pull {reference}; echo code $?; left; $P pull --quiet {fits} && $P lookup {fits}"
            );
            let run = script(&site, mount, &commands);
            assert_eq!(run.code, 0, "{name}: {run:?}");
            assert!(run.stdout.starts_with("code 1\n"), "{name}: {run:?}");
            assert!(!run.stdout.contains("left"), "{name}: {run:?}");
            let dir = site.store().display().to_string();
            let line = run
                .stderr
                .lines()
                .find(|line| line.contains("no space left in '"));
            let line = line.unwrap_or_else(|| panic!("{name}: {run:?}"));
            assert!(
                line.contains(&dir) && line.contains("needed"),
                "{name}: {line}"
            );
        }
    }
}

/// Layers that are only kept for later make room, and those that fit stay.
#[test]
fn privileged_the_cache_gives_way() {
    if is_skipped() {
        return;
    }
    let registry = Registry::start();
    let one = registry.push("one:1", &large(1, 500_000));
    let two = registry.push("two:1", &large(2, 500_000));
    let site = Site::new(&[&registry.address]);
    let (_, mount) = DISKS[0];
    let commands =
        format!("$P pull --quiet {one} && $P rmi {one} && left && $P pull --quiet {two} && left");
    let run = script(&site, mount, &commands);
    assert_eq!(run.code, 0, "{run:?}");
    let left: Vec<&str> = run
        .stdout
        .lines()
        .filter(|line| line.contains(".cache"))
        .collect();
    // Three after the first; after the second its own, and what else has room: nothing.
    assert!(left.len() >= 6 && left.len() < 9, "{left:?}");
}

/// On a disk without a free block, images can be removed.
#[test]
fn privileged_images_are_removed_from_a_full_disk() {
    if is_skipped() {
        return;
    }
    let registry = Registry::start();
    let one = registry.push("one:1", &large(1, 500_000));
    for (name, mount) in &DISKS[..2] {
        let site = Site::new(&[&registry.address]);
        let commands = format!(
            "$P pull --quiet {one}; cat /dev/zero > $S/ballast 2>/dev/null; \
             $P rmi {one} && rm $S/ballast && left"
        );
        let run = script(&site, mount, &commands);
        assert_eq!(run.code, 0, "{name}: {run:?}");
        let rest: Vec<&str> = run.stdout.lines().collect();
        assert!(
            rest.iter().all(|line| line.contains("/.cache/sha256/")),
            "{name}: {rest:?}"
        );
    }
}

/// A store that is mounted read-only on the node: what is there already needs nothing to be written.
#[test]
fn privileged_a_read_only_store_is_enough_for_what_it_has() {
    if is_skipped() {
        return;
    }
    let registry = Registry::start();
    let (old, new) = (
        registry.push("old:1", &small("old")),
        registry.push("new:1", &small("new")),
    );
    let site = Site::new(&[&registry.address]);
    site.ok(&["pull", &old]);
    let mount = "mount --bind $S $S && mount -o remount,bind,ro $S";
    let pull = |reference: &str| {
        let commands = format!("$P pull {reference}; echo status $?; left");
        script(&site, mount, &commands)
    };
    let run = pull(&old);
    assert!(run.stdout.starts_with("status 0\n"), "{run:?}");
    assert!(run.stderr.contains("already there: "), "{run:?}");
    let run = pull(&new);
    assert!(run.stdout.starts_with("status 1\n"), "{run:?}");
    assert!(run.stderr.contains("is read-only here\nhint: "), "{run:?}");
}
