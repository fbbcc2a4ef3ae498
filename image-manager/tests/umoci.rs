//! The merge as umoci does it: the reference, and where it is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure here fails the test"
)]

mod site;
mod support;

use site::Site;
use site::image::{self, Blob, Layer};
use site::registry::Registry;
use std::time::{SystemTime, UNIX_EPOCH};
use support::blobs::{TAR, digest};
use support::facts::{self, Tree};
use support::stack;
use support::tar::{self, Sample, archive};
use support::{run, with_mounted};

/// One set of layers and the paths at which umoci is known to differ.
struct Case {
    what: &'static str,
    layers: Vec<Vec<Sample>>,
    differs: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let file = |name: &str| Sample::file(name, name);
    let dir = |name: &str| Sample::dir(name);
    let link = |name: &str, target: &str| Sample::symlink(name, target);
    let hard = |name: &str, target: &str| Sample::hard_link(name, target);
    let base = || {
        vec![
            dir("d").mode(0o2750).owner(7, 8),
            file("d/old").mode(0o600),
            dir("d/sub"),
            file("d/sub/deep"),
            file("foo"),
            file("foobar"),
            dir("usr"),
            dir("usr/lib"),
            file("usr/lib/libc"),
            link("lib", "usr/lib"),
            file("a"),
            hard("b", "a"),
        ]
    };
    let case = |what, upper: Vec<Sample>| Case {
        what,
        layers: vec![base(), upper],
        differs: &[],
    };
    vec![
        case("whiteouts", vec![file(".wh.foo"), file("d/.wh.sub")]),
        case(
            "whiteout, then again",
            vec![file(".wh.d"), dir("d").mode(0o700), file("d/new")],
        ),
        case(
            "again, then whiteout",
            vec![dir("d").mode(0o700), file("d/new"), file(".wh.d")],
        ),
        case(
            "opaque first",
            vec![dir("d"), file("d/.wh..wh..opq"), file("d/new")],
        ),
        case(
            "opaque last",
            vec![dir("d"), file("d/new"), file("d/.wh..wh..opq")],
        ),
        case(
            "opaque with a subdirectory",
            vec![
                dir("d"),
                dir("d/sub"),
                file("d/sub/new"),
                file("d/.wh..wh..opq"),
            ],
        ),
        case("through a link", vec![file("lib/x"), file("lib/.wh.libc")]),
        case("directory over a link", vec![dir("lib"), file("lib/x")]),
        case("file over a directory", vec![file("d")]),
        case("directory over a file", vec![dir("foo"), file("foo/x")]),
        case(
            "twice",
            vec![
                file("x").mode(0o600),
                Sample::file("x", "second").mode(0o640),
            ],
        ),
        case("missing parents", vec![file("d/sub/more/x"), file("new/x")]),
        case("link's target deleted", vec![file(".wh.a")]),
        case(
            "link across layers",
            vec![hard("c", "b"), hard("lib/c", "lib/libc")],
        ),
        case(
            "absolute link",
            vec![link("out", "/../../../../etc"), file("out/x")],
        ),
        case(
            "file replaced under one of two names",
            vec![Sample::file("a", "other")],
        ),
        case(
            "root's attributes",
            vec![dir("./").mode(0o1777).owner(3, 4)],
        ),
        case(
            "names",
            vec![
                Sample::file([b'n'; 255], "n"),
                Sample::file(b"\xff\xfe\x01", "bytes"),
                link("l", &"t".repeat(303)),
                Sample::file("owner", "").owner(4_000_000_000, 3_000_000_000),
            ],
        ),
        Case {
            what: "three layers",
            layers: vec![
                base(),
                vec![file(".wh.d")],
                vec![file("d/sub/x"), file(".wh.foo")],
            ],
            differs: &[],
        },
        Case {
            what: "attributes",
            layers: vec![vec![
                file("x").xattr("user.a", b"1").xattr("trusted.b", b"\0\n="),
            ]],
            differs: &[],
        },
        // Go drops pax records with an empty value, attributes without content among them.
        Case {
            what: "empty attribute",
            layers: vec![vec![file("x").xattr("user.empty", b"")]],
            differs: &["x"],
        },
        // An overlay whiteout is a device like any other to umoci; on a node it would hide files.
        Case {
            what: "overlay whiteout",
            layers: vec![
                vec![file("x")],
                vec![Sample::new(b'3', "x"), Sample::new(b'3', "y")],
            ],
            differs: &["x", "y"],
        },
        // What the kernel gives a directory that umoci makes in one with the setgid bit is no part
        // of the image: a directory that no layer lists is root's.
        Case {
            what: "missing parent in a setgid directory",
            layers: vec![vec![dir("d").mode(0o2750).owner(7, 8), file("d/new/x")]],
            differs: &["d/new"],
        },
        // To umoci only names that end in a whiteout are special.
        Case {
            what: "aufs's own files",
            layers: vec![
                base(),
                vec![
                    file(".wh..wh.aufs"),
                    dir(".wh..wh.plnk"),
                    file(".wh..wh.plnk/1.2"),
                    file("new"),
                ],
            ],
            differs: &[".wh..wh.plnk", ".wh..wh.plnk/1.2"],
        },
    ]
}

/// What a layer is compressed with.
#[derive(Clone, Copy)]
enum Packing {
    Plain,
    Gzip,
    /// Each half of the archive by itself, as estargz and pigz do.
    GzipMembers,
    Zstd,
    /// The same with zstd, and a frame between them that says nothing.
    ZstdFrames,
}

impl Packing {
    fn pack(self, tar: &[u8]) -> (&'static str, Vec<u8>) {
        let (first, second) = tar.split_at(tar.len() / 2);
        let skipped = [
            &0x184d_2a50u32.to_le_bytes()[..],
            &3u32.to_le_bytes(),
            b"pad",
        ]
        .concat();
        match self {
            Self::Plain => ("", tar.to_vec()),
            Self::Gzip => ("+gzip", tar::gzip(tar)),
            Self::GzipMembers => ("+gzip", [tar::gzip(first), tar::gzip(second)].concat()),
            Self::Zstd => ("+zstd", tar::zstd(tar)),
            Self::ZstdFrames => (
                "+zstd",
                [tar::zstd(first), skipped, tar::zstd(second)].concat(),
            ),
        }
    }
}

/// A real registry, and a site that pulls from it.
struct Pulls {
    registry: Registry,
    site: Site,
}

impl Pulls {
    fn start() -> Self {
        let registry = Registry::start();
        let site = Site::new(&[&registry.address]);
        Self { registry, site }
    }

    /// Pushes an image of these layers, pulls it, and returns what can be seen of it when it is
    /// mounted.
    fn tree(&self, name: &str, layers: &[(Vec<u8>, Packing)]) -> Tree {
        let layer = |(tar, packing): &(Vec<u8>, Packing)| {
            let (suffix, bytes) = packing.pack(tar);
            Layer {
                blob: Blob::new(&format!("{TAR}{suffix}"), bytes),
                diff_id: digest(tar),
            }
        };
        let layers: Vec<Layer> = layers.iter().map(layer).collect();
        let image = image::image("amd64", serde_json::json!({}), &layers);
        let reference = self.registry.push(&format!("{name}:latest"), &image);
        self.site.ok(&["pull", "--quiet", &reference]);
        let file = format!("{}.squashfs", self.site.id(&reference));
        with_mounted(&self.site.store().join(file), facts::of_directory)
    }
}

/// Returns what umoci makes of these layers.
fn umoci(layers: &[&Vec<u8>]) -> Tree {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let blobs = image.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let digest = digest(bytes);
        std::fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{}}}"#,
            bytes.len()
        )
    };
    let list: Vec<_> = layers.iter().map(|tar| put("layer.v1.tar", tar)).collect();
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|tar| format!("{:?}", digest(tar)))
        .collect();
    let config = put("config.v1+json", format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    ).as_bytes());
    let manifest = put(
        "manifest.v1+json",
        format!(
            r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#,
            list.join(",")
        )
        .as_bytes(),
    );
    let manifest = manifest.replacen(
        '{',
        r#"{"annotations":{"org.opencontainers.image.ref.name":"t"},"#,
        1,
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#);
    std::fs::write(image.join("index.json"), index).unwrap();
    std::fs::write(
        image.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let bundle = directory.path().join("bundle");
    let image = format!("{}:t", image.to_str().unwrap());
    run(
        "umoci",
        &["unpack", "--image", &image, bundle.to_str().unwrap()],
    );
    facts::of_directory(&bundle.join("rootfs"))
}

/// Compares what is pulled with what umoci unpacks, but for what is said to differ, and returns the
/// number of names.
fn compare(pulls: &Pulls, what: &str, layers: &[(Vec<u8>, Packing)], differs: &[&str]) -> usize {
    let name = what.replace(|c: char| !c.is_ascii_alphanumeric(), "");
    let mut got = pulls.tree(&name.to_lowercase(), layers);
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut want = umoci(&layers.iter().map(|(tar, _)| tar).collect::<Vec<_>>());
    // With umoci directories that no archive lists, and those below which it removed something,
    // have the time of the day.
    for (path, facts) in &mut want {
        if facts.what == "dir" && facts.mtime >= began.as_secs() as i64 {
            facts.mtime = 0;
            if let Some(facts) = got.get_mut(path) {
                facts.mtime = 0;
            }
        }
    }
    for path in differs {
        assert_ne!(
            got.remove(*path),
            want.remove(*path),
            "{what}: '{path}' agrees by now"
        );
    }
    facts::assert_same(&got, &want, what);
    want.len()
}

#[test]
fn privileged_umoci_agrees() {
    let pulls = Pulls::start();
    for case in cases() {
        let layers = case.layers.iter();
        let layers: Vec<_> = layers
            .map(|layer| (archive(layer), Packing::Gzip))
            .collect();
        compare(&pulls, case.what, &layers, case.differs);
    }
}

#[test]
fn privileged_umoci_agrees_on_32_layers() {
    let pulls = Pulls::start();
    for seed in 1..=6 {
        let layers = stack::layers(seed, 32);
        let entries: usize = layers.iter().map(Vec::len).sum();
        assert!(entries > 200, "{seed}: {entries}");
        let packings = [
            Packing::Gzip,
            Packing::Zstd,
            Packing::Plain,
            Packing::GzipMembers,
            Packing::ZstdFrames,
        ];
        let packings = packings.into_iter().cycle();
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| archive(layer))
            .zip(packings)
            .collect();
        let names = compare(&pulls, &format!("seed {seed}"), &layers, &[]);
        assert!(names > 20, "{seed}: {names}");
    }
}
