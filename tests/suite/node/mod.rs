//! The node programs by themselves: `setupRoot`, `unsetupRoot` and `shifter` without a batch
//! system, on an image that was put into the store by hand.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::MutexGuard;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shifter_tests::call::{Call, Output};
use shifter_tests::image::Recipe;
use shifter_tests::product::{CONFIG, Product, STORE};
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::User;

use crate::bench::turn;

mod attack;
mod changed_root;
mod host_view;
mod join;
mod kill;
mod kinds;
mod libraries;
mod modules;
mod node_cache;
mod preload;
mod refuse;
mod rootless;
pub mod roots;
pub mod secure;
mod secure_accounts;
mod secure_config;
mod secure_image;
mod secure_loops;
mod secure_process;
mod secure_signals;
mod secure_strays;
mod secure_trace;
mod secure_volume;
mod stalled_jobs;
mod stalls;
mod tools;
mod top;
mod twin;
mod writable;

/// A site whose store holds one image, `tiny:latest`, and no batch system.
pub struct Site {
    pub product: Product,
    pub clean: Snapshot,
    _turn: MutexGuard<'static, ()>,
}

/// The id under which the image is stored; nothing on a node computes it from the content.
pub fn image_id() -> String {
    "5".repeat(64)
}

impl Site {
    pub fn prepare() -> Result<Self> {
        let turn = turn()?;
        let product = Product::install()?;
        let recipe = Recipe::tiny("tiny")
            .link("data", "etc")
            .link("dangling", "nowhere/at/all");
        let tree = recipe.build()?.layout().join("tree");
        fs::create_dir_all(tree.join("usr/share/doc"))?;
        store_image(&tree, &image_id(), "tiny")?;
        let site = Self {
            product,
            clean: Snapshot::take(None)?,
            _turn: turn,
        };
        // Private containers of an earlier test in this world left their hints.
        site.tear_down("0")?.success()?;
        Ok(Self {
            clean: Snapshot::take(None)?,
            ..site
        })
    }

    /// Runs setupRoot on a manifest, with what the batch system would say beside it.
    pub fn set_up(&self, manifest: &Value) -> Result<Output> {
        let text = |value: &Value| value.to_string().trim_matches('"').to_owned();
        let uid = format!("--expect-uid={}", text(&manifest["user"]["uid"]));
        let job = format!("--expect-job={}", text(&manifest["job"]));
        let program = self.product.path("sbin/setupRoot");
        Call::new([&*program, "--manifest=-", &*uid, &*job])
            .input(manifest.to_string())
            .output()
    }

    /// Runs unsetupRoot for a job.
    pub fn tear_down(&self, job: &str) -> Result<Output> {
        Call::new([&*self.product.path("sbin/unsetupRoot"), job]).output()
    }

    /// Runs `shifter` as alice and returns what came of it.
    pub fn shifter(&self, args: &[&str]) -> Result<Output> {
        self.product
            .shifter(args.iter().copied())
            .by(User::Alice)
            .output()
    }

    /// Runs a shell script in a private container of alice's and returns its output.
    pub fn script(&self, options: &[&str], script: &str) -> Result<String> {
        let args = [&["--image=tiny"], options, &["sh", "-c", script]].concat();
        Ok(self.shifter(&args)?.success()?.stdout)
    }
}

/// A manifest of alice's job.
pub fn manifest(job: &str) -> Value {
    json!({
        "schema": 2, "cluster": "mini", "job": job, "restart": 0,
        "user": {
            "name": "alice", "uid": 2001, "gid": 2001, "home": "/home/alice", "shell": "/bin/sh",
            "groups": [{"gid": 2001, "name": "alice"}, {"gid": 2100, "name": "proj"}],
        },
        "image": {"id": image_id(), "reference": "docker:tiny:latest"},
        "volumes": [], "modules": [], "created": 1,
        "hosts": [{"name": "n1", "slots": 2}, {"name": "n2", "slots": 1}],
    })
}

/// Puts a tree into the site's store as an image with this id and name.
pub fn store_image(tree: &Path, id: &str, name: &str) -> Result<()> {
    let file = format!("{STORE}/{id}.squashfs");
    let make = ["mksquashfs", &*tree.to_string_lossy(), &*file];
    Call::new(make)
        .args([
            "-noappend",
            "-no-progress",
            "-all-root",
            "-quiet",
            "-noD",
            "-noF",
        ])
        .ok()?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    let meta = "FORMAT: squashfs\nENV: PATH=/bin\nENV: COLOUR=green\nWORKDIR: /usr\n\
                ENTRY: [\"/bin/echo\", \"entry\"]\nCMD: [\"cmd\"]\n";
    fs::write(format!("{STORE}/{id}.meta"), meta)?;
    fs::create_dir_all(format!("{STORE}/index/docker"))?;
    let entry = json!({"reference": format!("docker:{name}:latest"), "id": id, "digest": null,
                       "pulled": 1, "size": 1});
    fs::write(
        format!("{STORE}/index/docker/{name}%3Alatest"),
        entry.to_string(),
    )?;
    Call::new(["chown", "-R", "shifter:shifter", STORE])
        .ok()
        .map(drop)
}

/// Programs that say why they refuse something.
const SPEAKERS: [&str; 4] = ["shifter: ", "setupRoot: ", "unsetupRoot: ", "shifterimg: "];

/// Fails unless the program was refused as documented: the code, one line that contains `words`
/// (and at most a hint), nothing on standard output.
pub fn ensure_refused(output: &Output, code: i32, words: &str) -> Result<()> {
    ensure!(output.code == code, "code {code} expected: {output}");
    ensure!(
        output.stdout.is_empty(),
        "nothing on stdout expected: {output}"
    );
    let lines: Vec<&str> = output.stderr.lines().collect();
    let message = lines.first().copied().unwrap_or_default();
    ensure!(
        SPEAKERS.iter().any(|name| message.starts_with(name)),
        "a program's message expected: {output}"
    );
    ensure!(message.contains(words), "'{words}' expected: {output}");
    ensure!(
        lines.len() == 1 || lines.len() == 2 && lines[1].starts_with("hint: "),
        "one line and a hint expected: {output}"
    );
    let is_control = |c: char| c.is_control() && c != '\n';
    ensure!(
        !output.stderr.contains("panicked at") && !output.stderr.contains(is_control),
        "harmless text expected: {:?}",
        output.stderr
    );
    Ok(())
}

/// A FUSE device that users may open, in the place of this machine's while this lives.
pub struct FuseDevice;

impl FuseDevice {
    /// Puts a device of this mode into place; `site` takes it for part of a clean node.
    pub fn with_mode(site: &mut Site, mode: &str) -> Result<Self> {
        let make = format!(
            "rm -f /run/fuse; mknod /run/fuse c 10 229 && chmod {mode} /run/fuse &&
            mount --bind /run/fuse /dev/fuse"
        );
        Call::shell(&make).ok()?;
        site.clean = Snapshot::take(None)?;
        Ok(Self)
    }
}

impl Drop for FuseDevice {
    fn drop(&mut self) {
        let _ = Call::new(["umount", "-l", "/dev/fuse"]).output();
    }
}

/// Where a copy of `shifter` lies that is not setuid.
pub const COPY: &str = "/opt/shifter/bin/shifter-copy";

impl Site {
    /// Configures the store with these lines beside the usual ones.
    pub fn configure_store(&self, lines: &str) -> Result<()> {
        self.product.configure("")?;
        let text = fs::read_to_string(CONFIG)?;
        self.product
            .configure_with(&text.replace("[store]", &format!("[store]\n{lines}")))
    }

    /// Configures the root with this line for its site mounts.
    pub fn configure_root(&self, line: &str) -> Result<()> {
        self.product.configure("")?;
        let text = fs::read_to_string(CONFIG)?;
        self.product
            .configure_with(&text.replace("site_mounts = ['/scratch', '/home']", line))
    }

    /// Installs the copy that is not setuid.
    pub fn copy(&self) -> Result<()> {
        let program = self.product.path("bin/shifter");
        Call::new(["install", "-m", "0755", &*program, COPY])
            .ok()
            .map(drop)
    }
}

/// Makes a squashfs file of alice's from the image's tree, with `marker` in its /etc/marker.
pub fn squashfs_file(path: &str, marker: &str) -> Result<()> {
    let make = format!(
        "rm -rf /tmp/kind {path}; cp -a /var/lib/shifter/layouts/tiny/tree /tmp/kind
        echo {marker} >/tmp/kind/etc/marker
        mksquashfs /tmp/kind {path} -noappend -no-progress -all-root -quiet && chown alice: {path}"
    );
    Call::shell(&make).ok().map(drop)
}
