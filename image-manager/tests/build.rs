//! Whole builds: layers in, image out, and the errors in between.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use image_manager::build::{BuildError, BuildOptions};
use image_manager::layer::{LayerError, Limits};
use squashfs_writer as squashfs;
use std::fs::File;
use std::path::Path;
use support::blobs::{Blobs, TAR, digest};
use support::facts::{self, Tree};
use support::tar::{Sample, archive, gzip, zstd};
use support::{in_private_mounts, run};

const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn look(image: &Path) -> Tree {
    facts::of_tar(run("sqfs2tar", &[image.to_str().unwrap()]).stdout)
}

fn sample_layers() -> Vec<Vec<u8>> {
    vec![
        archive(&[
            Sample::dir("etc").mode(0o755),
            Sample::file("etc/secret", "s")
                .mode(0o600)
                .owner(1000, 4_000_000_000),
            Sample::file("etc/gone", vec![7; 300_000]),
            Sample::hard_link("etc/kept", "etc/gone"),
            Sample::symlink("lib", "usr/lib"),
            Sample::dir("usr/lib"),
        ]),
        archive(&[
            Sample::file("etc/.wh.gone", ""),
            Sample::file("lib/x", "x").xattr("user.note", b"\0\xff"),
            Sample::file("empty", ""),
        ]),
        archive(&[
            Sample::file("etc/secret", "t").mode(0o400),
            Sample::new(b'6', "fifo"),
        ]),
    ]
}

#[test]
fn layers_become_an_image() {
    let tars = sample_layers();
    let mut blobs = Blobs::new();
    blobs
        .add(&gzip(&tars[0]), GZIP, Some(digest(&tars[0])))
        .add(&zstd(&tars[1]), ZSTD, Some(digest(&tars[1])))
        .add(&tars[2], TAR, None);
    let (image, report) = blobs.build(&BuildOptions::default()).unwrap();
    assert_eq!(
        report.diff_ids,
        tars.iter().map(|tar| digest(tar)).collect::<Vec<_>>()
    );
    assert_eq!(report.bytes_out, image.as_file().metadata().unwrap().len());
    assert_eq!(report.entries, 9);
    let sizes = blobs
        .layers
        .iter()
        .map(|layer| std::fs::metadata(&layer.path).unwrap().len());
    assert_eq!(report.bytes_in, sizes.sum::<u64>());

    let tree = look(image.path());
    let line = |path: &str| {
        let facts = &tree[path];
        format!("{} {:o} {:?}", facts.what, facts.mode, facts.owner)
    };
    assert_eq!(tree.len(), 9);
    assert_eq!(
        line("etc/secret"),
        format!("{} 400 (0, 0)", facts::file(b"t"))
    );
    assert_eq!(
        line("etc/kept"),
        format!("{} 644 (0, 0)", facts::file(&[7; 300_000]))
    );
    assert_eq!(
        line("usr/lib/x"),
        format!("{} 644 (0, 0)", facts::file(b"x"))
    );
    assert_eq!(tree["usr/lib/x"].xattrs["user.note"], b"\0\xff");
    assert_eq!(line("usr"), "dir 755 (0, 0)");
    assert_eq!(line("lib"), "-> usr/lib 777 (0, 0)");
    assert_eq!(line("empty"), format!("{} 644 (0, 0)", facts::file(b"")));
    assert_eq!(line("fifo"), "fifo 644 (0, 0)");
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    let mut blobs = Blobs::new();
    for tar in sample_layers() {
        blobs.add(&gzip(&tar), GZIP, None);
    }
    let images: Vec<_> = [0, 1, 3]
        .map(|threads| {
            let squashfs = squashfs::Options {
                threads,
                ..squashfs::Options::default()
            };
            let options = BuildOptions {
                squashfs,
                ..BuildOptions::default()
            };
            std::fs::read(blobs.build(&options).unwrap().0.path()).unwrap()
        })
        .into();
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn each_failure_has_its_own_error() {
    let tars = sample_layers();
    let good = |blobs: &mut Blobs| {
        blobs.add(&gzip(&tars[0]), GZIP, Some(digest(&tars[0])));
    };
    let with = |blob: &[u8], media_type: &str, diff_id: Option<String>| {
        let mut blobs = Blobs::new();
        good(&mut blobs);
        blobs.add(blob, media_type, diff_id).error()
    };
    assert!(matches!(Blobs::new().error(), BuildError::NoLayers));

    let error = with(&tars[1], TAR, Some(digest(b"other")));
    assert!(
        matches!(error, BuildError::DiffId { layer: 2, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains(&digest(b"other")));
    for wrong in [
        "",
        "sha256:",
        "sha512:00",
        "md5:x",
        &digest(&tars[1]).to_uppercase(),
    ] {
        let error = with(&tars[1], TAR, Some(wrong.to_owned()));
        assert!(matches!(error, BuildError::DiffId { .. }), "{error:?}");
    }

    let short = gzip(&tars[0]);
    let error = with(&short[..short.len() / 2], GZIP, None);
    let BuildError::Layer {
        layer: 2,
        source: LayerError::Truncated,
    } = error
    else {
        panic!("{error:?}")
    };
    let error = with(&tars[1], GZIP, None);
    let BuildError::Layer {
        layer: 2,
        source: LayerError::MediaType { .. },
    } = error
    else {
        panic!("{error:?}")
    };
    let error = with(&archive(&[Sample::file("../x", "")]), TAR, None);
    let BuildError::Layer {
        source: LayerError::Refused { .. },
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    let error = with(&archive(&[Sample::hard_link("x", "none")]), TAR, None);
    assert!(
        matches!(error, BuildError::Merge { layer: 2, .. }),
        "{error:?}"
    );

    let mut blobs = Blobs::new();
    good(&mut blobs);
    blobs.layers[0].path.push("missing");
    assert!(matches!(blobs.error(), BuildError::Open { layer: 1, .. }));
    blobs.layers = vec![blobs.layers[0].clone(); 513];
    assert!(matches!(
        blobs.error(),
        BuildError::TooManyLayers { limit: 512 }
    ));
}

#[test]
fn bombs_are_stopped() {
    let bomb = gzip(&archive(&[Sample::file("zero", vec![0; 64 << 20])]));
    let mut blobs = Blobs::new();
    blobs.add(&bomb, GZIP, None);
    for limits in [
        Limits {
            bytes: 10 << 20,
            ..Limits::default()
        },
        Limits {
            free_bytes: 1 << 20,
            ratio: 10,
            ..Limits::default()
        },
    ] {
        let options = BuildOptions {
            limits,
            ..BuildOptions::default()
        };
        let error = blobs.build(&options).unwrap_err();
        let BuildError::Layer {
            source: LayerError::Limit { .. },
            ..
        } = error
        else {
            panic!("{error:?}")
        };
    }
}

/// Layers that were made to break out of a directory on unpacking. Here they can only fail, or
/// say something about the image itself.
#[test]
fn hostile_layers_are_refused_or_confined() {
    let file = |name: &str| Sample::file(name, "evil");
    let link = |name: &str, target: &str| Sample::symlink(name, target);
    let hard = |name: &str, target: &str| Sample::hard_link(name, target);
    let device = |name: &str| Sample {
        device: (8, 0),
        ..Sample::new(b'4', name)
    };
    for (what, layers, want) in [
        (
            "link to the root, file through it",
            vec![vec![link("l", "/"), file("l/etc/passwd")]],
            Some(vec!["etc", "etc/passwd", "l"]),
        ),
        (
            "link upwards, file through it",
            vec![vec![link("l", "../../.."), file("l/x")]],
            Some(vec!["l", "x"]),
        ),
        (
            "link across layers",
            vec![vec![link("l", "/etc")], vec![file("l/x")]],
            Some(vec!["etc", "etc/x", "l"]),
        ),
        (
            "hard link through a link",
            vec![vec![link("l", "/"), hard("h", "l/etc/shadow")]],
            None,
        ),
        (
            "hard link to a link, then through it",
            vec![vec![link("l", "/etc"), hard("h", "l"), file("h/x")]],
            Some(vec!["etc", "etc/x", "h", "l"]),
        ),
        (
            "hard link upwards",
            vec![vec![hard("h", "../../etc/shadow")]],
            None,
        ),
        ("the root as a link", vec![vec![link(".", "/etc")]], None),
        (
            "the root as a link, by a long way",
            vec![vec![link("a/b/../..", "/etc")]],
            None,
        ),
        ("whiteout of the parent", vec![vec![file(".wh...")]], None),
        (
            "whiteout of everything by no name",
            vec![vec![file("d/x")], vec![file("d/.wh.")]],
            None,
        ),
        (
            "opaque through a link",
            vec![
                vec![file("d/x"), link("l", "/d")],
                vec![file("l/.wh..wh..opq")],
            ],
            Some(vec!["d", "l"]),
        ),
        (
            "opaque through a link upwards",
            vec![
                vec![file("d/x"), link("l", "../../..")],
                vec![file("l/.wh..wh..opq")],
            ],
            Some(vec![]),
        ),
        (
            "a loop of links",
            vec![vec![link("a", "b"), link("b", "a"), file("a/x")]],
            None,
        ),
        (
            "a link to itself",
            vec![vec![link("a", "a/a"), file("a/x")]],
            None,
        ),
        (
            "many ways through links",
            vec![{
                let mut layer: Vec<_> = (1..39)
                    .map(|n| link(&format!("l{n}"), &format!("l{0}/../l{0}", n + 1)))
                    .collect();
                layer.push(file("l1/x"));
                layer
            }],
            None,
        ),
        (
            "a device is a name in the image, nothing else",
            vec![vec![device("sda")]],
            Some(vec!["sda"]),
        ),
        (
            "setuid is kept, mounts decide",
            vec![vec![file("su").mode(0o4755)]],
            Some(vec!["su"]),
        ),
        (
            "a file where a directory must be",
            vec![vec![file("f"), file("f/x")]],
            None,
        ),
        (
            "names that are no text",
            vec![vec![Sample::file(b"\x1b[2J\n\xff", "")]],
            Some(vec!["\\x1b[2J\\n\\xff"]),
        ),
    ] {
        let mut blobs = Blobs::new();
        for layer in &layers {
            blobs.add(&archive(layer), TAR, None);
        }
        match (blobs.build(&BuildOptions::default()), want) {
            (Ok((image, _)), Some(want)) => {
                assert_eq!(
                    look(image.path()).into_keys().collect::<Vec<_>>(),
                    want,
                    "{what}"
                );
            }
            (Err(BuildError::Layer { .. } | BuildError::Merge { .. }), None) => {}
            (result, want) => panic!("{what}: {:?}, not {want:?}", result.map(|(_, r)| r)),
        }
    }
}

#[test]
fn privileged_a_full_disk_is_an_error_of_its_own() {
    in_private_mounts(|| {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=1m", "none", at]);
        let noise: Vec<u8> = (0..800_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        let mut blobs = Blobs::new();
        blobs.add(&archive(&[Sample::file("noise", noise)]), TAR, None);
        let mut out = File::create(directory.path().join("image")).unwrap();
        let error = blobs
            .build_into(&mut out, &BuildOptions::default())
            .unwrap_err();
        assert!(matches!(error, BuildError::DiskFull { .. }), "{error:?}");
        drop(out);
        run("umount", &[at]);
    });
}
