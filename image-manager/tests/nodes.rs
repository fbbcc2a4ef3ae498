//! Several nodes and one store: who waits for whom, and who takes over from the dead.
//!
//! A node is a mount and UTS namespace with a boot id of its own. It shares the kernel, of course,
//! but nothing that the program believes two nodes to share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod site;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use site::image::{Image, Layer, Packing, image, layer, noise};
use site::proxy::Proxy;
use site::registry::Registry;
use site::{Run, Site, run, walk};

/// What the registry says besides blobs: heads, the manifest, the configuration.
const TALK: u64 = 32 << 10;

fn is_skipped() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: needs root\n");
    }
    !is_root
}

fn layers() -> Vec<Layer> {
    (1..=4u64)
        .map(|seed| {
            let name = format!("data/{seed}");
            layer(
                Packing::Gzip,
                &[
                    (name.as_str(), &noise(seed, 600_000)),
                    ("etc/motd", b"whole"),
                ],
            )
        })
        .collect()
}

fn size(image: &Image) -> u64 {
    let sizes = image
        .layers
        .iter()
        .map(|layer| layer.blob.bytes.len() as u64);
    sizes.sum()
}

/// The program on a node of that name.
fn on(node: &str, site: &Site, args: &[&str]) -> Command {
    let boot = site.root().join(format!("boot-{node}"));
    fs::write(&boot, format!("{node:0>36}\n")).unwrap();
    let plain = site.command(args);
    let script = "hostname \"$1\" && mount --bind \"$2\" /proc/sys/kernel/random/boot_id && \
                  shift 2 && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "-u", "sh", "-c", script, "sh", node])
        .arg(boot);
    command.arg(plain.get_program()).args(plain.get_args());
    command
        .env_clear()
        .env("HOME", site.home())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits until a part of some layer is in the cache.
fn until_it_downloads(site: &Site) {
    let begin = Instant::now();
    let is_part = |path: &PathBuf| {
        path.extension().is_some_and(|e| e == "part")
            && fs::metadata(path).is_ok_and(|meta| meta.len() > 0)
    };
    while !walk_alive(&site.store().join(".cache")).iter().any(is_part) {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing arrives");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lists a directory that changes meanwhile.
fn walk_alive(dir: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let below: Vec<PathBuf> = paths.iter().flat_map(|path| walk_alive(path)).collect();
    paths.into_iter().chain(below).collect()
}

fn finish(child: Child) -> Run {
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn privileged_two_nodes_download_a_layer_once() {
    if is_skipped() {
        return;
    }
    let registry = Registry::start();
    let layers = layers();
    let (one, two) = (
        image("amd64", json!({}), &layers[..3]),
        image("amd64", json!({}), &layers),
    );
    registry.push("x:1", &one);
    registry.push("y:1", &two);
    let proxy = Proxy::start(&registry.address, Duration::from_millis(30));
    let site = Site::new(&[&proxy.address]);
    let [x, y] = ["x", "y"].map(|name| format!("{}/{name}:1", proxy.address));
    // Two images that share three layers, and the same image twice.
    let first = on("n1", &site, &["pull", &x]).spawn().unwrap();
    until_it_downloads(&site);
    let others = [
        on("n2", &site, &["pull", &y]).spawn().unwrap(),
        on("n3", &site, &["pull", &x]).spawn().unwrap(),
    ];
    assert_eq!(finish(first).code, 0);
    for other in others {
        let run = finish(other);
        assert_eq!(run.code, 0, "{run:?}");
    }
    let (received, all) = (proxy.received(), size(&two));
    assert!(
        received >= all && received < all + 3 * TALK,
        "{received} for {all}"
    );
    for reference in [&x, &y] {
        assert_eq!(site.read(reference, "etc/motd"), "whole");
    }
    site.assert_tidy();
    let left = walk(&site.store());
    let is_lease = |path: &PathBuf| path.to_string_lossy().contains(".use-");
    assert!(!left.iter().any(is_lease), "{left:?}");
}

/// A file system that has no nameless files.
#[test]
fn privileged_a_store_on_a_file_system_of_less() {
    if is_skipped() {
        return;
    }
    let registry = Registry::start();
    let image = image("amd64", json!({}), &layers());
    registry.push("x:1", &image);
    let proxy = Proxy::start(&registry.address, Duration::from_millis(60));
    let site = Site::new(&[&proxy.address]);
    let reference = format!("{}/x:1", proxy.address);
    let backing = site.root().join("backing");
    for dir in [&backing, &site.store()] {
        fs::create_dir(dir).unwrap();
    }
    let plain = site.command(&[]);
    let words: Vec<String> = std::iter::once(plain.get_program())
        .chain(plain.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let script = format!(
        "bindfs {backing} {store} || exit 99; P='{program}'; R={reference}; \
         $P pull --quiet $R & until ls {backing}/.cache/sha256/*.part >/dev/null 2>&1; do sleep 0.01; done; kill -9 $!; wait $! 2>/dev/null; ls {backing}/.cache/sha256; \
         $P pull --quiet $R & $P pull --quiet $R && wait $! && $P rmi $R && $P pull --quiet $R; \
         code=$?; umount {store}; exit $code",
        backing = backing.display(),
        store = site.store().display(),
        program = words.join(" "),
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]);
    command.env_clear().env("HOME", site.home());
    let run = run(command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.stdout.contains(".part"),
        "it was killed in the middle: {run:?}"
    );
    let names = walk(&backing).into_iter().filter(|path| path.is_file());
    let names: Vec<String> = names
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    // Four layers, image, record, metadata, tag.
    assert_eq!(names.len(), 8, "{names:?}");
    assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
}

/// A node that dies without a word, and one that wakes up when another has taken over.
#[test]
fn privileged_long_a_silent_node_is_taken_over_from() {
    if is_skipped() || std::env::var_os("SHIFTER_LONG_TESTS").is_none() {
        return;
    }
    for wakes_up in [false, true] {
        let registry = Registry::start();
        let image = image("amd64", json!({}), &layers());
        registry.push("x:1", &image);
        let proxy = Proxy::start(&registry.address, Duration::from_millis(30));
        let site = Site::new(&[&proxy.address]);
        let reference = format!("{}/x:1", proxy.address);
        let silent = on("n1", &site, &["pull", &reference]).spawn().unwrap();
        until_it_downloads(&site);
        let pid = silent.id().to_string();
        let signal = |name: &str| {
            run(Command::new("kill").args([name, &pid]));
        };
        signal(if wakes_up { "-STOP" } else { "-KILL" });
        let have: u64 = walk(&site.store().join(".cache/sha256"))
            .iter()
            .filter(|path| path.extension().is_none_or(|e| e == "part"))
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        if wakes_up {
            std::thread::sleep(Duration::from_millis(200));
            proxy.received();
        } else {
            proxy.settle();
        }
        let begin = Instant::now();
        let taken = on("n2", &site, &["pull", &reference]).spawn().unwrap();
        let run = finish(taken);
        assert_eq!(run.code, 0, "{run:?}");
        assert!(
            begin.elapsed() >= Duration::from_secs(8),
            "{:?}",
            begin.elapsed()
        );
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "{:?}",
            begin.elapsed()
        );
        let missing = size(&image) - have;
        assert!(
            proxy.received() <= missing + 2 * TALK,
            "what was there is used"
        );
        assert_eq!(site.read(&reference, "etc/motd"), "whole");
        if wakes_up {
            signal("-CONT");
        }
        let run = finish(silent);
        assert!(
            !wakes_up || run.code == 0 || run.stderr.contains("took over"),
            "{run:?}"
        );
        assert_eq!(site.read(&reference, "etc/motd"), "whole");
        // Nothing is left that a pull does not remove, the silent one's claim to its layers after an
        // hour.
        for path in walk(&site.store().join(".cache")) {
            if path.to_string_lossy().contains(".use-") {
                let long_ago = std::time::SystemTime::now() - Duration::from_secs(3700);
                let file = fs::File::open(path).unwrap();
                file.set_modified(long_ago).unwrap();
            }
        }
        site.ok(&["pull", &reference]);
        site.assert_tidy();
    }
}
