//! The site that is measured: the installed product and its images, as a squashfs file in the
//! store, as a directory, and as bare mounts.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shifter_tests::call::{Call, wait_for};
use shifter_tests::product::{PREFIX, Product, STORE};
use shifter_tests::world;

use crate::walk::widen;

/// Alice.
pub const UID: u32 = 2001;

/// Where everything is made that is not the product's.
pub const WORK: &str = "/tmp/bench";

/// What the file `/bench-marker` of each image says.
pub const MARKER: &str = "in the image";

/// The directory from which the sample image is made; peers run it as it is.
pub const TREE: &str = "/tmp/bench/tree";

/// Where bare mounts go.
pub const MOUNTED: &str = "/tmp/bench/mounted";

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Scale {
    /// Starts at once.
    pub crowd: usize,
    /// Entries of the larger /etc.
    pub entries: usize,
    /// Files below /usr.
    pub files: usize,
    /// Containers that share the page cache.
    pub sharers: usize,
    /// The size of a per-node cache.
    pub cache: &'static str,
    /// Small writes to a file.
    pub writes: usize,
    /// Nodes of a wide job.
    pub nodes: usize,
    /// Programs that pull.
    pub pullers: usize,
    /// The image is a small Debian, not just busybox.
    pub is_debian: bool,
}

impl Scale {
    /// For figures.
    pub const FULL: Scale = Scale {
        crowd: 64,
        entries: 2000,
        files: 37_000,
        sharers: 16,
        cache: "100g",
        writes: 100_000,
        nodes: 64,
        pullers: usize::MAX,
        is_debian: true,
    };

    /// To try the bench.
    pub const TINY: Scale = Scale {
        crowd: 3,
        entries: 20,
        files: 100,
        sharers: 3,
        cache: "320m",
        writes: 1000,
        nodes: 2,
        pullers: 2,
        is_debian: false,
    };
}

/// An image in the store, removed when this is dropped.
pub struct Stored {
    name: String,
    /// Its id.
    pub id: String,
    /// The option that asks for it.
    pub option: String,
    /// Its squashfs file.
    pub file: String,
}

/// The site.
pub struct Site {
    /// How much is measured.
    pub scale: Scale,
    /// The product.
    pub product: Product,
    /// The sample image.
    pub image: Stored,
    /// The floor program.
    pub floor: String,
}

impl Site {
    /// Installs the product and makes the sample image, in a world.
    pub fn prepare(scale: Scale) -> Result<Self> {
        world::require()?;
        let product = Product::install()?;
        let own = std::env::current_exe()?;
        let floor = own.with_file_name("floor").to_string_lossy().into_owned();
        ensure!(
            Path::new(&floor).exists(),
            "{floor} is missing: make benches"
        );
        Call::shell(&format!("rm -rf {WORK}; mkdir -p {TREE} {MOUNTED}")).ok()?;
        if scale.is_debian {
            let base = world::target().join("testbed/debian.tar.gz");
            let base = base.to_string_lossy();
            Call::new(["tar", "-C", TREE, "-xf", &*base])
                .ok()
                .context("tests/sample-image.sh makes it")?;
            dress(TREE, &floor)?;
        } else {
            busybox_tree(TREE, &floor)?;
            widen(TREE, scale.files)?;
        }
        let image = store(TREE, "base")?;
        Ok(Self {
            scale,
            product,
            image,
            floor,
        })
    }

    /// Removes what it made, and what the product keeps on a node between containers.
    pub fn remove(self) -> Result<()> {
        self.image.wait_until_detached()?;
        drop(self.image);
        let sweep = format!("rm -rf {WORK} && {PREFIX}/sbin/unsetupRoot 0");
        Call::shell(&sweep).ok().map(drop)
    }

    /// Returns the command `shifter --image=… ` without a command.
    pub fn private<'a>(&'a self, image: &'a Stored) -> [&'a str; 2] {
        [SHIFTER, &image.option]
    }
}

/// The product's program for users.
pub const SHIFTER: &str = "/opt/shifter/bin/shifter";

const _: () = assert!(PREFIX.len() == "/opt/shifter".len());

/// Makes a tree of busybox and little else.
pub fn busybox_tree(tree: &str, floor: &str) -> Result<()> {
    let script = format!(
        "set -e; cd {tree}; mkdir -p bin dev etc opt proc sys tmp usr/local/bin usr/share var/tmp
        cp /bin/busybox bin/; for name in cat dd id ls rm sh true wc; do ln -s busybox bin/$name; done"
    );
    Call::shell(&script).ok()?;
    dress(tree, floor)
}

/// Adds what the bench needs, and mount points that peers cannot make as users.
fn dress(tree: &str, floor: &str) -> Result<()> {
    let script = format!(
        "set -e; cd {tree}; chmod 0755 .; echo '{MARKER}' >bench-marker; cp {floor} usr/local/bin/
        mkdir -p run/secrets etc; ln -sfn /proc/mounts etc/mtab
        touch etc/passwd etc/group etc/hosts etc/resolv.conf etc/hostname run/.containerenv"
    );
    Call::shell(&script).ok().map(drop)
}

/// Puts a tree into the store as an image of this name: zstd in blocks of 64 KiB, as `shifterimg` writes it.
pub fn store(tree: &str, name: &str) -> Result<Stored> {
    // Other worlds on this machine have loop devices too: an id that only this one has.
    let script = format!(
        "set -e; mkdir -p {STORE} {tree}/etc; chown shifter {STORE}
        cat /proc/sys/kernel/random/uuid >{tree}/etc/bench-id
        manager='runuser -u shifter -- {PREFIX}/bin/shifterimg'
        tar -C {tree} --numeric-owner -c . | $manager import --source-format tar - {name} >&2
        $manager lookup {name}"
    );
    let id = Call::shell(&script).timeout(600).ok()?.trim().to_owned();
    let file = format!("{STORE}/{id}.squashfs");
    ensure!(fs::exists(&file)?, "{file} was not made");
    Ok(Stored {
        name: name.to_owned(),
        option: format!("--image={name}"),
        id,
        file,
    })
}

/// Returns how many loop devices have a file with this in its path.
pub fn loop_devices(part: &str) -> Result<usize> {
    let mut found = 0;
    for device in fs::read_dir("/sys/block")? {
        let file = device?.path().join("loop/backing_file");
        // It is gone where the device is no loop device or is being detached.
        let backing = fs::read_to_string(file).unwrap_or_default();
        found += usize::from(backing.contains(part));
    }
    Ok(found)
}

impl Stored {
    /// Returns how many loop devices have the image.
    pub fn devices(&self) -> Result<usize> {
        loop_devices(&self.id)
    }

    /// Waits until no loop device has the image: the kernel takes a moment.
    pub fn wait_until_detached(&self) -> Result<()> {
        wait_for("the image's loop device to go", 10, || {
            Ok((self.devices()? == 0).then_some(()))
        })
    }

    /// Mounts the image with a loop device of its own, as one would by hand.
    pub fn mount(&self, at: &str) -> Result<Mounted> {
        fs::create_dir_all(at)?;
        Call::new(["mount", "-t", "squashfs", "-o", "loop,ro", &self.file, at]).ok()?;
        Ok(Mounted(at.to_owned()))
    }

    /// Returns the manifest of a job of alice's in this image.
    pub fn manifest(&self, job: &str, volumes: &[String]) -> String {
        json!({
            "schema": 1, "cluster": "bench", "job": job, "restart": 0,
            "user": {"name": "alice", "uid": UID, "gid": UID, "home": "/home/alice",
                     "shell": "/bin/sh", "groups": []},
            "image": {"id": self.id, "reference": "docker:base:latest"},
            "volumes": volumes, "modules": [], "created": 1,
            "hosts": [{"name": "n1", "slots": 1}],
        })
        .to_string()
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        let index = format!("{STORE}/index/docker/{}%3Alatest", self.name);
        let [meta, json] = ["meta", "json"].map(|end| format!("{STORE}/{}.{end}", self.id));
        for file in [&index, &meta, &json, &self.file] {
            // The world would take it away otherwise.
            let _ = fs::remove_file(file);
        }
    }
}

/// A bare mount, unmounted when this is dropped.
pub struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        // The world would take it away otherwise.
        let _ = Call::new(["umount", &self.0]).ok();
    }
}
