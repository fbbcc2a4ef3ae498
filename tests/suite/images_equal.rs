//! Real images: what is pulled and mounted is what umoci unpacks, name by name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::product::{Product, STORE};
use shifter_tests::registry::Registry;
use shifter_tests::tree::{self, Tree};
use shifter_tests::world::{self, User::Shifter};

use crate::bench::turn;

/// Where umoci unpacks: in the world's memory, since a disk takes far longer.
const UNPACKED: &str = "/tmp/unpacked";

/// An image mounted until this is dropped.
struct Mounted(&'static str);

impl Mounted {
    fn make(file: &str) -> Result<Self> {
        const AT: &str = "/tmp/equal";
        fs::create_dir_all(AT)?;
        Call::new(["mount", "-t", "squashfs", "-o", "loop,ro", file, AT]).ok()?;
        Ok(Self(AT))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The world would unmount it otherwise.
        let _ = Call::new(["umount", self.0]).output();
    }
}

/// Pulls an image from a registry, and compares.
fn ensure_equal(image: &str, least_names: usize, pardon: impl Fn(&mut Tree)) -> Result<()> {
    let _turn = turn()?;
    let product = Product::install()?;
    let registry = Registry::start(5000)?;
    let layout = world::target().join("testbed/real/oci");
    let layout = layout.to_str().context("the build directory's name")?;
    fs::metadata(format!("{layout}/index.json")).context("tests/real-images.sh makes it")?;
    let to = format!("docker://{}/{image}:latest", registry.address());
    Call::new([
        "skopeo",
        "--insecure-policy",
        "copy",
        "-q",
        "--dest-tls-verify=false",
    ])
    .args([format!("oci:{layout}:{image}"), to])
    .ok()?;
    let reference = registry.reference(image);
    product
        .shifterimg(["pull", "--quiet", &reference])
        .by(Shifter)
        .timeout(300)
        .ok()?;
    let id = product
        .shifterimg(["lookup", &reference])
        .by(Shifter)
        .ok()?;

    let began = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let from = format!("{layout}:{image}");
    Call::new(["rm", "-rf", UNPACKED]).ok()?;
    Call::new(["umoci", "unpack", "--image", &from, UNPACKED]).ok()?;
    let want_at = Path::new(UNPACKED).join("rootfs");
    let mounted = Mounted::make(&format!("{STORE}/{}.squashfs", id.trim()))?;
    let (mut got, mut want) = (tree::read(Path::new(mounted.0))?, tree::read(&want_at)?);
    ensure!(want.len() > least_names, "only {} names", want.len());
    pardon(&mut want);
    // umoci gives directories below which it removed something, or which no layer lists, the time
    // of the day; whatever they have in the image is right or nobody's.
    let began = began.as_secs() as i64;
    let mut touched = BTreeSet::new();
    for (name, facts) in &mut want {
        if facts.what == "directory" && facts.mtime >= began {
            facts.mtime = 0;
            touched.insert(name.clone());
        }
    }
    for name in &touched {
        if let Some(facts) = got.get_mut(name) {
            facts.mtime = 0;
        }
    }
    ensure!(touched.len() < 100, "{touched:?}");
    let differences = tree::differences(&got, &want);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    let bytes = tree::ensure_same_contents(&got, Path::new(mounted.0), &want_at)?;
    ensure!(bytes > 50 << 20, "only {bytes} bytes were compared");
    Call::new(["rm", "-rf", UNPACKED]).ok().map(drop)
}

#[test]
fn privileged_pulled_debian_is_what_umoci_unpacks() -> Result<()> {
    ensure_equal("minbase", 5000, |_| {})
}

#[test]
fn privileged_pulled_python_image_is_what_umoci_unpacks() -> Result<()> {
    ensure_equal("python", 15_000, |want| {
        // By policy: nothing in a container gains a capability by a file.
        let mut dropped = 0;
        for facts in want.values_mut() {
            dropped += usize::from(facts.xattrs.remove(&b"security.capability"[..]).is_some());
        }
        assert_eq!(dropped, 1, "sha1sum has one in the image");
    })
}
