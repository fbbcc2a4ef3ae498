//! The merge as umoci does it: the reference, and where it is wrong.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use image_manager::build::BuildOptions;
use support::blobs::{Blobs, TAR, digest};
use support::facts::{self, Tree};
use support::run;
use support::tar::{Sample, archive};

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

fn umoci(layers: &[Vec<u8>]) -> Tree {
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

#[test]
fn privileged_umoci_agrees() {
    for Case {
        what,
        layers,
        differs,
    } in cases()
    {
        let tars: Vec<_> = layers.iter().map(|layer| archive(layer)).collect();
        let mut blobs = Blobs::new();
        for tar in &tars {
            blobs.add(tar, TAR, None);
        }
        let (image, _) = blobs.build(&BuildOptions::default()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        run(
            "unsquashfs",
            &[
                "-q",
                "-n",
                "-d",
                root.to_str().unwrap(),
                image.path().to_str().unwrap(),
            ],
        );
        let (mut got, mut want) = (facts::of_directory(&root), umoci(&tars));
        for tree in [&mut got, &mut want] {
            // With umoci directories that no archive lists, and those below which a whiteout
            // removed something, have the time of the day.
            let directories = tree.values_mut().filter(|facts| facts.what == "dir");
            directories.for_each(|facts| facts.mtime = 0);
        }
        for path in differs {
            assert_ne!(
                got.remove(*path),
                want.remove(*path),
                "{what}: '{path}' agrees by now"
            );
        }
        facts::assert_same(&got, &want, what);
    }
}
