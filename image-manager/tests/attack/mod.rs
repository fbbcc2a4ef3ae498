//! A pull of an image that attacks, and what it may cost.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::site::image::{self, Blob, Image, Layer};
use super::site::mock::{Mock, honest};
use super::site::{self, PROGRAM, Run, Site};
use super::support::blobs::{TAR, digest};
use super::support::facts::{self, Tree};
use super::support::run;
use super::support::tar::gzip;
use serde_json::json;

/// A layer's suffix of the media type, its bytes, and the digest of its archive.
pub type Packed = (&'static str, Vec<u8>, String);

pub fn packed(tar: &[u8]) -> Packed {
    ("+gzip", gzip(tar), digest(tar))
}

/// One whose archive nobody will have read to the end.
pub fn unread(suffix: &'static str, blob: Vec<u8>) -> Packed {
    (suffix, blob, digest(b"whatever"))
}

/// What a pull came to.
pub struct Attack {
    pub site: Site,
    pub reference: String,
    pub run: Run,
    pub took: Duration,
    megabytes: u64,
}

impl Attack {
    pub fn start(layers: &[Packed]) -> Self {
        let layer = |(suffix, blob, diff_id): &Packed| Layer {
            blob: Blob::new(&format!("{TAR}{suffix}"), blob.clone()),
            diff_id: diff_id.clone(),
        };
        let layers: Vec<Layer> = layers.iter().map(layer).collect();
        let image = image::image("amd64", json!({}), &layers);
        Self::pull(&image)
    }

    pub fn pull(image: &Image) -> Self {
        let mock = Mock::paths(honest(image));
        let site = Site::new(&[&mock.address]);
        let reference = format!("{}/x", mock.address);
        let memory = site.root().join("memory");
        let began = Instant::now();
        // No file above 256 MiB: that would be the signal XFSZ.
        let output = Command::new("/usr/bin/prlimit")
            .arg("--fsize=268435456")
            .args(["/usr/bin/time", "-q", "-f", "%M", "-o"])
            .arg(&memory)
            .arg(PROGRAM)
            .arg("--config")
            .arg(site.config())
            .args(["pull", "--quiet", &reference])
            .env_clear()
            .env("HOME", site.home())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let took = began.elapsed();
        let text = fs::read_to_string(memory).unwrap();
        let run = Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!run.stderr.contains("panicked"), "{run:?}");
        Self {
            site,
            reference,
            run,
            took,
            megabytes: text.trim().parse::<u64>().unwrap() >> 10,
        }
    }

    /// Insists on one line with this in it, and that nothing is left.
    pub fn must_be_refused(self, what: &str, reason: &str) {
        self.must_be_refused_with(4, what, reason);
    }

    pub fn must_be_refused_with(self, code: i32, what: &str, reason: &str) {
        let run = &self.run;
        assert_eq!(run.code, code, "{what}: {run:?}");
        assert!(run.stdout.is_empty(), "{what}: {run:?}");
        assert_eq!(run.stderr.lines().count(), 1, "{what}: {run:?}");
        assert!(
            run.stderr.starts_with("shifterimg: cannot pull image '"),
            "{what}: {run:?}"
        );
        assert!(
            run.stderr.contains(reason),
            "{what}: '{reason}' is not in {run:?}"
        );
        assert!(run.stderr.len() < 1000, "{what}: {run:?}");
        assert!(
            !run.stderr.trim_end().contains(|c: char| c.is_control()),
            "{what}: {run:?}"
        );
        assert!(self.megabytes < 200, "{what}: {} MB", self.megabytes);
        assert_eq!(self.site.image_count(), 0, "{what}");
        let bytes: u64 = site::walk(&self.site.store())
            .iter()
            .filter(|path| path.is_file())
            .map(|path| path.metadata().unwrap().len())
            .sum();
        // What the cache keeps is what was downloaded and is no larger.
        assert!(bytes < 64 << 20, "{what}: {bytes} bytes are left");
    }

    /// Insists on an image and returns it.
    pub fn must_be_built(self, what: &str) -> Tree {
        assert_eq!(self.run.code, 0, "{what}: {:?}", self.run);
        assert!(self.megabytes < 200, "{what}: {} MB", self.megabytes);
        let id = self.site.id(&self.reference);
        let file = self.site.store().join(format!("{id}.squashfs"));
        let root = self.site.root().join("root");
        run(
            "unsquashfs",
            &[
                "-q",
                "-n",
                "-d",
                root.to_str().unwrap(),
                file.to_str().unwrap(),
            ],
        );
        facts::of_directory(&root)
    }
}
