//! Images made on the spot, as OCI layouts that skopeo can push.
//!
//! ```text
//! <target>/testbed/debian.tar.gz, debian.diffid    the sample's userland (tests/sample-image.sh)
//! /var/lib/shifter/layouts/<name>/                 an OCI layout: oci-layout, index.json, blobs/
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::call::Call;
use crate::world;

const LAYOUTS: &str = "/var/lib/shifter/layouts";

/// What an image is made from.
#[derive(Clone, Debug)]
pub struct Recipe {
    name: String,
    base: Base,
    files: Vec<(String, u32, Vec<u8>)>,
    links: Vec<(String, String)>,
    config: serde_json::Value,
}

#[derive(Clone, Copy, Debug)]
enum Base {
    Busybox,
    Debian,
}

/// An image as an OCI layout on disk.
#[derive(Clone, Debug)]
pub struct Image {
    layout: PathBuf,
    id: String,
}

impl Recipe {
    /// A few megabytes: busybox and its links, `/etc` and the directories a container needs.
    pub fn tiny(name: &str) -> Self {
        Self::new(name, Base::Busybox)
            .file(
                "etc/os-release",
                0o644,
                format!("PRETTY_NAME=\"tiny {name}\"\n"),
            )
            .file("etc/marker", 0o644, format!("{name}\n"))
    }

    /// A Debian userland with python3.
    pub fn debian(name: &str) -> Self {
        Self::new(name, Base::Debian)
    }

    fn new(name: &str, base: Base) -> Self {
        let config = json!({"Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]});
        Self {
            name: name.into(),
            base,
            files: Vec::new(),
            links: Vec::new(),
            config,
        }
    }

    /// Adds a file; its path has no leading slash.
    pub fn file(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), mode, content.into()));
        self
    }

    /// Adds a symbolic link.
    pub fn link(mut self, path: &str, to: &str) -> Self {
        self.links.push((path.into(), to.into()));
        self
    }

    /// Adds a variable to the image's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        if let Some(list) = self.config["Env"].as_array_mut() {
            list.push(format!("{name}={value}").into());
        }
        self
    }

    /// Sets one of the image's defaults: `Entrypoint`, `Cmd`, `WorkingDir`, ….
    pub fn set(mut self, key: &str, value: serde_json::Value) -> Self {
        self.config[key] = value;
        self
    }

    /// Makes the layout.
    pub fn build(self) -> Result<Image> {
        let layout = Path::new(LAYOUTS).join(&self.name);
        let blobs = layout.join("blobs/sha256");
        // Tests that share a world may each make an image of this name.
        if layout.exists() {
            fs::remove_dir_all(&layout)?;
        }
        fs::create_dir_all(&blobs)?;
        let tree = layout.join("tree");
        self.write_tree(&tree)?;
        let tar = layout.join("layer.tar");
        Call::new([
            "tar",
            "--create",
            "--sort=name",
            "--mtime=@0",
            "--numeric-owner",
        ])
        .args(["--owner=0", "--group=0", "-f", &tar.to_string_lossy()])
        .args(["-C", &tree.to_string_lossy(), "."])
        .ok()?;
        let own_diff = sha256(&tar)?;
        Call::new(["gzip", "-1n", &tar.to_string_lossy()]).ok()?;
        let mut layers = Vec::new();
        let mut diffs = Vec::new();
        if matches!(self.base, Base::Debian) {
            let cache = world::target().join("testbed");
            let base = cache.join("debian.tar.gz");
            let diff = fs::read_to_string(cache.join("debian.diffid")).with_context(|| {
                format!(
                    "{} is missing: run tests/sample-image.sh first",
                    base.display()
                )
            })?;
            layers.push(store_blob(&blobs, &base, "layer.v1.tar+gzip", false)?);
            diffs.push(format!("sha256:{}", diff.trim()));
        }
        layers.push(store_blob(
            &blobs,
            &layout.join("layer.tar.gz"),
            "layer.v1.tar+gzip",
            true,
        )?);
        diffs.push(format!("sha256:{own_diff}"));

        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
            "config": self.config, "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        let config = store_json(&blobs, &config, "config.v1+json")?;
        let id = config["digest"]
            .as_str()
            .unwrap_or_default()
            .replace("sha256:", "");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers,
        });
        let manifest = store_json(&blobs, &manifest, "manifest.v1+json")?;
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(layout.join("index.json"), index.to_string())?;
        fs::write(
            layout.join("oci-layout"),
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        )?;
        Ok(Image { layout, id })
    }

    fn write_tree(&self, tree: &Path) -> Result<()> {
        fs::create_dir_all(tree.join("etc"))?;
        if matches!(self.base, Base::Busybox) {
            for dir in [
                "bin", "dev", "mnt", "opt", "proc", "sys", "tmp", "usr/bin", "var/tmp",
            ] {
                fs::create_dir_all(tree.join(dir))?;
            }
            fs::copy("/bin/busybox", tree.join("bin/busybox")).context("busybox-static")?;
            for tool in Call::new(["/bin/busybox", "--list"]).ok()?.lines() {
                if tool != "busybox" {
                    std::os::unix::fs::symlink("busybox", tree.join("bin").join(tool))?;
                }
            }
        }
        for (path, mode, content) in &self.files {
            let at = tree.join(path);
            fs::create_dir_all(at.parent().unwrap_or(tree))?;
            fs::write(&at, content)?;
            fs::set_permissions(&at, fs::Permissions::from_mode(*mode))?;
        }
        for (path, to) in &self.links {
            let at = tree.join(path);
            fs::create_dir_all(at.parent().unwrap_or(tree))?;
            std::os::unix::fs::symlink(to, at)?;
        }
        Ok(())
    }
}

impl Image {
    /// Returns the OCI layout's directory.
    pub fn layout(&self) -> &Path {
        &self.layout
    }

    /// Returns the image's id: the digest of its configuration.
    pub fn id(&self) -> &str {
        &self.id
    }
}

fn store_json(blobs: &Path, value: &serde_json::Value, kind: &str) -> Result<serde_json::Value> {
    let file = blobs.join("new");
    fs::write(&file, value.to_string())?;
    store_blob(blobs, &file, kind, true)
}

/// Puts a file among the blobs and returns its descriptor.
fn store_blob(blobs: &Path, file: &Path, kind: &str, take: bool) -> Result<serde_json::Value> {
    let digest = sha256(file)?;
    let to = blobs.join(&digest);
    if take {
        fs::rename(file, &to)?;
    } else {
        std::os::unix::fs::symlink(file, &to)?;
    }
    let size = fs::metadata(&to)?.len();
    Ok(json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": format!("sha256:{digest}"), "size": size,
    }))
}

fn sha256(file: &Path) -> Result<String> {
    let line = Call::new(["sha256sum", "--", &file.to_string_lossy()]).ok()?;
    Ok(line.chars().take(64).collect())
}
