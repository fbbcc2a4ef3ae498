//! Pulls that are killed at random moments: never a wrong image, nothing left for ever, nothing
//! downloaded twice. With SHIFTER_LONG_TESTS set, 200 of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod site;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use site::image::{Image, Layer, Packing, image, layer, noise};
use site::proxy::Proxy;
use site::registry::Registry;
use site::{Site, walk};

/// What the registry says besides blobs: heads, the manifest, the configuration.
const TALK: u64 = 32 << 10;

/// Five layers of noise and one that is the second image's alone.
fn layers() -> Vec<Layer> {
    (1..=6u64)
        .map(|seed| {
            let length = usize::try_from(seed * 200_000).unwrap();
            let name = format!("data/{seed}");
            layer(
                Packing::Gzip,
                &[
                    (name.as_str(), &noise(seed, length)),
                    ("etc/motd", b"whole"),
                ],
            )
        })
        .collect()
}

fn first(layers: &[Layer]) -> Image {
    image("amd64", json!({}), &layers[..5])
}

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Returns the bytes that the cache has of each layer.
fn cached(site: &Site, image: &Image) -> u64 {
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for path in walk(&site.store().join(".cache")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let hex = name.strip_suffix(".part").unwrap_or(&name);
        let length = fs::metadata(&path).map_or(0, |meta| meta.len());
        let most = found.entry(hex.to_owned()).or_default();
        *most = length.max(*most);
    }
    let hex = |layer: &Layer| layer.blob.digest().trim_start_matches("sha256:").to_owned();
    let sizes = image.layers.iter().map(|layer| found.get(&hex(layer)));
    sizes.flatten().sum()
}

fn size(image: &Image) -> u64 {
    let sizes = image
        .layers
        .iter()
        .map(|layer| layer.blob.bytes.len() as u64);
    sizes.sum()
}

/// Insists that an image has every byte that it should.
fn assert_whole(site: &Site, reference: &str, moment: &str) {
    assert_eq!(site.read(reference, "etc/motd"), "whole", "{moment}");
    let id = site.id(reference);
    let path = site.store().join(format!("{id}.squashfs"));
    for seed in 1..=5u64 {
        let name = format!("data/{seed}");
        let output = Command::new("unsquashfs")
            .arg("-cat")
            .arg(&path)
            .arg(&name)
            .output()
            .unwrap();
        let length = usize::try_from(seed * 200_000).unwrap();
        assert!(output.stdout == noise(seed, length), "{moment}: {name}");
    }
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(site.store().join(format!("{id}.json"))).unwrap())
            .unwrap();
    let found = blake3::hash(&fs::read(path).unwrap()).to_hex();
    assert_eq!(record["blake3"], found.as_str(), "{moment}");
}

/// Lists what a store has besides the image and the blobs that are in it.
fn extra(site: &Site, id: &str) -> Vec<String> {
    let names = walk(&site.store())
        .into_iter()
        .filter(|path| path.is_file());
    let names = names.map(|path| {
        path.strip_prefix(site.store())
            .unwrap()
            .display()
            .to_string()
    });
    let is_known = |name: &String| {
        let is_blob = name.starts_with(".cache/sha256/") && name.len() == 14 + 64;
        name.starts_with(&format!("{id}.")) || name.starts_with("index/docker/") || is_blob
    };
    names.filter(|name| !is_known(name)).collect()
}

#[test]
fn killed_at_random_moments() {
    let rounds = match std::env::var_os("SHIFTER_LONG_TESTS") {
        Some(_) => 200,
        None => 20,
    };
    let registry = Registry::start();
    let image = first(&layers());
    registry.push("x:1", &image);
    let proxy = Proxy::start(&registry.address, Duration::from_millis(15));
    let reference = format!("{}/x:1", proxy.address);
    let usual = Site::new(&[&proxy.address]);
    let begin = Instant::now();
    usual.ok(&["pull", &reference]);
    let whole = begin.elapsed();
    assert!(proxy.received() > size(&image));
    let (mut random, mut killed, mut resumed) = (Random(0x5eed), 0, 0);
    for round in 0..rounds {
        let site = Site::new(&[&proxy.address]);
        let mut moments = Vec::new();
        // Killed once or more often before it may end.
        for _ in 0..=random.below(3) {
            let limit = u64::try_from(whole.as_micros()).unwrap() * 11 / 10;
            let moment = Duration::from_micros(random.below(limit));
            moments.push(moment);
            let before = cached(&site, &image);
            let mut child = site
                .command(&["pull", &reference])
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(moment);
            child.kill().unwrap();
            killed += usize::from(child.wait().unwrap().code().is_none());
            assert!(cached(&site, &image) >= before, "what was there stays");
        }
        let moment = format!("round {round}, killed after {moments:?}");
        // Either it is not there, or it is whole.
        if site.run(&["lookup", &reference]).code == 0 {
            assert_whole(&site, &reference, &moment);
        }
        proxy.settle();
        let have = cached(&site, &image);
        let run = site.run(&["pull", &reference]);
        assert_eq!(run.code, 0, "{moment}: {run:?}");
        let received = proxy.received();
        let missing = size(&image) - have;
        assert!(
            received <= missing + TALK,
            "{moment}: {received} bytes came, {missing} were missing"
        );
        resumed += usize::from(have > 0 && missing > 0);
        assert_whole(&site, &reference, &moment);
        assert_eq!(
            extra(&site, &site.id(&reference)),
            Vec::<String>::new(),
            "{moment}"
        );
        assert_eq!(site.image_count(), 1, "{moment}");
    }
    assert!(killed >= rounds / 2, "only {killed} pulls were killed");
    assert!(resumed >= rounds / 20, "only {resumed} pulls were resumed");
}

#[test]
fn a_shared_layer_is_downloaded_once() {
    let registry = Registry::start();
    let layers = layers();
    let (one, two) = (first(&layers), image("amd64", json!({}), &layers));
    registry.push("x:1", &one);
    registry.push("y:1", &two);
    let proxy = Proxy::start(&registry.address, Duration::ZERO);
    let site = Site::new(&[&proxy.address]);
    site.ok(&["pull", &format!("{}/x:1", proxy.address)]);
    let received = proxy.received();
    assert!(received >= size(&one) && received < size(&one) + TALK);
    site.ok(&["pull", &format!("{}/y:1", proxy.address)]);
    let (received, new) = (proxy.received(), layers[5].blob.bytes.len() as u64);
    assert!(
        received >= new && received < new + TALK,
        "{received} for {new}"
    );
    // Removed and pulled again: nothing but the manifest comes.
    site.ok(&["rmi", &format!("{}/x:1", proxy.address)]);
    site.ok(&["pull", &format!("{}/x:1", proxy.address)]);
    assert!(proxy.received() < TALK);
    assert_whole(
        &site,
        &format!("{}/x:1", proxy.address),
        "from the cache alone",
    );
}

#[test]
fn a_cache_stays_within_its_limit() {
    let registry = Registry::start();
    let layers = layers();
    let one = registry.push("x:1", &first(&layers));
    let two = registry.push("y:1", &image("amd64", json!({}), &layers[4..]));
    let sections = format!("[registry.\"{}\"]\nplain_http = true", registry.address);
    for (limit, expect) in [("\"0\"", 0), ("\"2300k\"", 2)] {
        let site = Site::with_config(&format!("cache_size_limit = {limit}"), &sections);
        site.ok(&["pull", &one]);
        site.ok(&["pull", &two]);
        let left = walk(&site.store().join(".cache"));
        let left: Vec<_> = left.iter().filter(|path| path.is_file()).collect();
        assert_eq!(left.len(), expect, "{left:?}");
        assert_eq!(site.read(&one, "etc/motd"), "whole");
        let total: u64 = left
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        assert!(total <= 2300 << 10);
    }
}

/// A blob that was damaged on the disk is fetched again, and the others are not.
#[test]
fn a_damaged_layer_is_fetched_again() {
    let registry = Registry::start();
    let image = first(&layers());
    registry.push("x:1", &image);
    let proxy = Proxy::start(&registry.address, Duration::ZERO);
    let (site, reference) = (
        Site::new(&[&proxy.address]),
        format!("{}/x:1", proxy.address),
    );
    site.ok(&["pull", &reference]);
    site.ok(&["rmi", &reference]);
    proxy.received();
    let victim = &image.layers[2].blob;
    let hex = victim.digest();
    let path = site
        .store()
        .join(".cache/sha256")
        .join(hex.trim_start_matches("sha256:"));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    site.ok(&["pull", &reference]);
    let (received, size) = (proxy.received(), victim.bytes.len() as u64);
    assert!(
        received >= size && received < size + TALK,
        "{received} for {size}"
    );
    assert_whole(&site, &reference, "after damage");
}

/// The cache may be elsewhere, and must be nobody else's.
#[test]
fn a_cache_of_its_own() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let registry = Registry::start();
    let reference = registry.push("x:1", &first(&layers()));
    let sections = format!("[registry.\"{}\"]\nplain_http = true", registry.address);
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("cache");
    let line = format!("cache_dir = \"{}\"", dir.display());
    let site = Site::with_config(&line, &sections);
    site.ok(&["pull", &reference]);
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::read_dir(dir.join("sha256")).unwrap().count(), 5);
    assert!(!site.store().join(".cache").exists());
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o770)).unwrap();
    site.fails(&["pull", &reference], 6, "lets others write");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(&dir, scratch.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(scratch.path().join("moved"), &dir).unwrap();
    let run = site.run(&["pull", &reference]);
    assert_eq!(run.code, 1, "a link is not followed: {run:?}");
}
