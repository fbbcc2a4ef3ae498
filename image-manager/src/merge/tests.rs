//! Every known trap by hand, and random layers against the model.

use super::model::Model;
use super::*;
use crate::layer::samples::{Sample, archive};
use crate::layer::{Budget, LayerReader, Limits};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Cursor;

fn entries(samples: &[Sample]) -> Vec<Entry> {
    let budget = Budget::new(&Limits::default());
    let blob = archive(samples);
    let mut reader = LayerReader::open(Cursor::new(blob), "", false, &budget).unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        entries.push(entry);
    }
    entries
}

fn merge(layers: &[&[Sample]]) -> Result<BTreeMap<String, String>, MergeError> {
    let mut merger = Merger::new(MergeOptions::default());
    for layer in layers {
        merger.add_layer(entries(layer))?;
    }
    Ok(merger.finish().listing())
}

/// The paths below the root, each with what it is.
fn paths(layers: &[&[Sample]]) -> Vec<String> {
    let listing = merge(layers).unwrap();
    let line = |(path, line): (&String, &String)| {
        format!("{} {}", &path[1..], line.split(" =").next().unwrap())
    };
    listing.iter().skip(1).map(line).collect()
}

fn file(name: &str) -> Sample {
    Sample::file(name, "x")
}

fn dir(name: &str) -> Sample {
    Sample::dir(name)
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let lower = [dir("d"), file("d/old"), file("foo"), file("foobar")];
    for (what, upper, want) in [
        (
            "a file, not its namesakes",
            vec![file(".wh.foo")],
            vec![
                "d dir 755 0",
                "d/old file 0:1 644 0",
                "foobar file 0:3 644 0",
            ],
        ),
        (
            "a directory",
            vec![file(".wh.d")],
            vec!["foo file 0:2 644 0", "foobar file 0:3 644 0"],
        ),
        (
            "nothing",
            vec![file(".wh.none"), file("none/.wh.x"), file("foo/.wh.x")],
            vec![
                "d dir 755 0",
                "d/old file 0:1 644 0",
                "foo file 0:2 644 0",
                "foobar file 0:3 644 0",
            ],
        ),
        (
            "whiteout, then made again",
            vec![file(".wh.d"), dir("d").mode(0o700), file("d/new")],
            vec![
                "d dir 700 0",
                "d/new file 1:2 644 0",
                "foo file 0:2 644 0",
                "foobar file 0:3 644 0",
            ],
        ),
        (
            "made again, then whiteout",
            vec![dir("d").mode(0o700), file("d/new"), file(".wh.d")],
            vec![
                "d dir 700 0",
                "d/new file 1:1 644 0",
                "foo file 0:2 644 0",
                "foobar file 0:3 644 0",
            ],
        ),
        (
            "a file that the layer replaces",
            vec![file("foo"), file(".wh.foo")],
            vec![
                "d dir 755 0",
                "d/old file 0:1 644 0",
                "foo file 1:0 644 0",
                "foobar file 0:3 644 0",
            ],
        ),
        (
            "opaque first",
            vec![file("d/.wh..wh..opq"), file("d/new")],
            vec![
                "d dir 755 0",
                "d/new file 1:1 644 0",
                "foo file 0:2 644 0",
                "foobar file 0:3 644 0",
            ],
        ),
        (
            "opaque last",
            vec![file("d/new"), file("d/.wh..wh..opq")],
            vec![
                "d dir 755 0",
                "d/new file 1:0 644 0",
                "foo file 0:2 644 0",
                "foobar file 0:3 644 0",
            ],
        ),
        (
            "opaque root",
            vec![file("new"), file(".wh..wh..opq")],
            vec!["new file 1:0 644 0"],
        ),
        (
            "aufs's own files",
            vec![
                file(".wh..wh.aufs"),
                dir(".wh..wh.plnk"),
                file(".wh..wh.plnk/1.2"),
                dir(".wh..wh.orph"),
                file(".wh.d"),
                file(".wh.foobar"),
            ],
            vec!["foo file 0:2 644 0"],
        ),
    ] {
        assert_eq!(paths(&[&lower, &upper]), want, "{what}");
    }
}

#[test]
fn opaque_directories_hide_at_every_depth() {
    let lower = [file("d/a/old"), file("d/b/old"), file("d/c")];
    let upper = [file("d/a/new"), file("d/.wh..wh..opq"), file("d/a/newer")];
    let want = [
        "d dir 755 0",
        "d/a dir 755 0",
        "d/a/new file 1:0 644 0",
        "d/a/newer file 1:2 644 0",
    ];
    assert_eq!(paths(&[&lower, &upper]), want);
    // And only what was there: a third layer starts afresh.
    let top = [file("d/.wh..wh..opq"), file("d/top")];
    assert_eq!(
        paths(&[&lower, &upper, &top]),
        ["d dir 755 0", "d/top file 2:1 644 0"]
    );
}

#[test]
fn links_on_the_way_lead_into_the_image() {
    let lower = [
        dir("usr/lib"),
        Sample::symlink("lib", "usr/lib"),
        file("usr/lib/old"),
    ];
    let through = [file("lib/x"), file("lib/.wh.old")];
    let want = [
        "lib -> usr/lib 777 0",
        "usr dir 755 0",
        "usr/lib dir 755 0",
        "usr/lib/x file 1:0 644 0",
    ];
    assert_eq!(paths(&[&lower, &through]), want);
    // A directory entry replaces the link itself.
    let over = [dir("lib"), file("lib/x")];
    let want = [
        "lib dir 755 0",
        "lib/x file 1:1 644 0",
        "usr dir 755 0",
        "usr/lib dir 755 0",
        "usr/lib/old file 0:2 644 0",
    ];
    assert_eq!(paths(&[&lower, &over]), want);

    // It may replace the very link that leads to it.
    let own = [Sample::symlink("l", "."), dir("l/l"), file("l/x")];
    assert_eq!(paths(&[&own]), ["l dir 755 0", "l/x file 0:2 644 0"]);

    for (target, place) in [
        ("/etc", "etc/x"),
        ("../../../etc", "etc/x"),
        ("/../etc/.", "etc/x"),
        ("missing/../etc", "d/etc/x"),
        ("a/b", "d/a/b/x"),
        ("/", "x"),
        ("..", "x"),
    ] {
        let link = [dir("d"), Sample::symlink("d/l", target)];
        let got = paths(&[&link, &[file("d/l/x")]]);
        let place = format!("{place} file 1:0 644 0");
        assert!(got.contains(&place), "{target}: {got:?}");
    }
}

#[test]
fn entries_that_cannot_be_are_errors() {
    let deep: Vec<Sample> = (0..50)
        .map(|n| {
            let target = if n == 49 {
                "x".into()
            } else {
                format!("l{}", n + 1)
            };
            Sample::symlink(format!("l{n}"), target)
        })
        .collect();
    let long = "n/".repeat(1500);
    let longer = [
        Sample::symlink("l", &long),
        Sample::symlink("m", "l/l2"),
        file("l/x"),
        Sample::symlink(format!("{long}/l2"), &long),
    ];
    let wide = [Sample::symlink("l", "n".repeat(300))];
    for (what, layers, want) in [
        (
            "a loop",
            [
                vec![Sample::symlink("a", "b"), Sample::symlink("b", "a")],
                vec![file("a/x")],
            ],
            MergeError::LinkLoop { path: "a".into() },
        ),
        (
            "41 links",
            [deep, vec![file("l0/x")]],
            MergeError::LinkLoop { path: "l0".into() },
        ),
        (
            "below a file",
            [vec![file("f")], vec![file("f/x")]],
            MergeError::ParentNotDirectory { path: "f".into() },
        ),
        (
            "below a link to a file",
            [
                vec![file("f"), Sample::symlink("l", "f")],
                vec![file("l/x")],
            ],
            MergeError::ParentNotDirectory { path: "l".into() },
        ),
        (
            "link to nothing",
            [vec![], vec![Sample::hard_link("h", "none")]],
            MergeError::LinkTargetMissing {
                path: "h".into(),
                target: "none".into(),
            },
        ),
        (
            "link to nothing below a file",
            [vec![file("f")], vec![Sample::hard_link("h", "f/x")]],
            MergeError::LinkTargetMissing {
                path: "h".into(),
                target: "f/x".into(),
            },
        ),
        (
            "link to a directory",
            [vec![dir("d")], vec![Sample::hard_link("h", "d")]],
            MergeError::LinkTargetDirectory {
                path: "h".into(),
                target: "d".into(),
            },
        ),
        (
            "link to the root",
            [vec![], vec![Sample::hard_link("h", "/")]],
            MergeError::LinkTargetMissing {
                path: "h".into(),
                target: "".into(),
            },
        ),
        (
            "empty whiteout",
            [vec![], vec![file("d/.wh.")]],
            MergeError::Whiteout {
                path: "d/.wh.".into(),
            },
        ),
        (
            "whiteout of the parent",
            [vec![], vec![file("d/.wh...")]],
            MergeError::Whiteout {
                path: "d/.wh...".into(),
            },
        ),
        (
            "name through links is too long",
            [wide.to_vec(), vec![file("l/x")]],
            MergeError::LongPath { path: "l".into() },
        ),
        (
            "path through links is too long",
            [longer.to_vec(), vec![file("m/x")]],
            MergeError::LongPath { path: "m".into() },
        ),
    ] {
        let got = merge(&[&layers[0], &layers[1]]);
        assert_eq!(got.unwrap_err(), want, "{what}");
    }
}

#[test]
fn kinds_change_between_layers() {
    let lower = [dir("d"), file("d/x"), file("f"), Sample::symlink("s", "f")];
    for (what, upper, want) in [
        ("file over directory", file("d"), "d file 1:0 644 0"),
        (
            "link over directory",
            Sample::symlink("d", "f"),
            "d -> f 777 0",
        ),
        ("directory over file", dir("f"), "f dir 755 0"),
        ("directory over link", dir("s"), "s dir 755 0"),
        ("file over link", file("s"), "s file 1:0 644 0"),
        (
            "directory over directory",
            dir("d").mode(0o711),
            "d dir 711 0",
        ),
    ] {
        let got = paths(&[&lower, std::slice::from_ref(&upper)]);
        assert!(got.iter().any(|line| line == want), "{what}: {got:?}");
        let is_kept = got.iter().any(|line| line.starts_with("d/x "));
        let is_replaced = upper.name == b"d" && upper.kind != b'5';
        assert_ne!(is_kept, is_replaced, "{what}: {got:?}");
    }
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let layer = [
        dir("a").mode(0o700),
        file("a/x"),
        file("a/x").mode(0o600),
        dir("a").mode(0o750),
    ];
    assert_eq!(paths(&[&layer]), ["a dir 750 0", "a/x file 0:2 600 0"]);
    let layer = [file("a"), dir("a"), file("a/x"), Sample::symlink("a", "b")];
    assert_eq!(paths(&[&layer]), ["a -> b 777 0"]);
}

#[test]
fn directories_without_an_entry_keep_their_attributes() {
    let lower = [dir("d").mode(0o2770).owner(7, 7), dir("./").mode(0o1777)];
    let listing = merge(&[&lower, &[file("d/e/x")]]).unwrap();
    assert_eq!(listing["/d"], "dir 2770 7 =/d");
    assert_eq!(listing["/d/e"], "dir 755 0 =/d/e");
    assert_eq!(listing[""], "dir 1777 0 =");
}

/// A link's way leads through a name that is missing and out of it; then a file takes that name.
/// The same path is walked anew, though its neighbour's result was at hand.
#[test]
fn a_name_that_a_link_passed_may_become_a_file() {
    let list = entries(&[
        Sample::symlink("ab", "/../a/.."),
        file("ab/ab/a"),
        file("ab/ab/ab"),
    ]);
    let mut model = Model::new();
    assert_eq!(model.add_layer(0, &list), Err(()));
    let got = Merger::new(MergeOptions::default()).add_layer(list);
    let path = "ab/ab".to_owned();
    assert_eq!(got, Err(MergeError::ParentNotDirectory { path }));
}

#[test]
fn hard_links_share_their_inode_across_layers() {
    let lower = [
        file("a"),
        Sample::hard_link("b", "a"),
        Sample::symlink("s", "a"),
    ];
    let listing = merge(&[&lower]).unwrap();
    assert_eq!(listing["/b"], "file 0:0 644 0 =/a");

    // Deleted above: the other name keeps the bytes.
    let listing = merge(&[&lower, &[file(".wh.a")]]).unwrap();
    assert_eq!(listing["/b"], "file 0:0 644 0 =/b");
    assert!(!listing.contains_key("/a"));

    // Replaced above: likewise.
    let listing = merge(&[&lower, &[file("a").mode(0o600)]]).unwrap();
    assert_eq!(listing["/a"], "file 1:0 600 0 =/a");
    assert_eq!(listing["/b"], "file 0:0 644 0 =/b");

    // A new name for a lower layer's file, through a directory link; the last name of the target
    // is not followed; a link to itself changes nothing.
    let upper = [
        Sample::symlink("l", "."),
        Sample::hard_link("c", "l/a"),
        Sample::hard_link("t", "s"),
        Sample::hard_link("a", "a"),
    ];
    let listing = merge(&[&lower, &upper]).unwrap();
    assert_eq!(listing["/c"], "file 0:0 644 0 =/a");
    assert_eq!(listing["/a"], "file 0:0 644 0 =/a");
    assert_eq!(listing["/t"], "-> a 777 0 =/s");

    // The target goes with the directory that the link replaces: the bytes stay.
    let nested = [dir("d"), file("d/x")];
    let listing = merge(&[&nested, &[Sample::hard_link("d", "d/x")]]).unwrap();
    assert_eq!(listing["/d"], "file 0:1 644 0 =/d");
}

#[test]
fn what_would_steer_the_kernel_is_left_out() {
    let whiteout = Sample::new(b'3', "f");
    let device = Sample {
        device: (1, 3),
        ..Sample::new(b'3', "null")
    };
    let got = paths(&[&[file("f")], &[whiteout, device]]);
    assert_eq!(got, ["f file 0:0 644 0", "null char 1:3 644 0"]);

    for (keep_capabilities, want) in [
        (false, vec!["user.a"]),
        (true, vec!["user.a", "security.capability"]),
    ] {
        let sample = dir("d")
            .xattr("user.a", b"1")
            .xattr("trusted.overlay.opaque", b"y")
            .xattr("security.capability", b"c");
        let root = Sample {
            name: b"./".to_vec(),
            ..sample.clone()
        };
        let options = MergeOptions {
            keep_capabilities,
            ..MergeOptions::default()
        };
        let mut merger = Merger::new(options);
        merger.add_layer(entries(&[root, sample])).unwrap();
        let nodes = merger.finish().into_nodes();
        for metadata in nodes {
            let names: Vec<_> = metadata.xattrs.iter().map(|(n, _)| n.clone()).collect();
            assert_eq!(
                names,
                want.iter()
                    .map(|n| n.as_bytes().to_vec())
                    .collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn directories_that_archives_do_not_list_are_counted() {
    let mut merger = Merger::new(MergeOptions {
        nodes: 100,
        ..MergeOptions::default()
    });
    let result = merger.add_layer(entries(&[file(&"d/".repeat(101))]));
    assert_eq!(result, Err(MergeError::TooMany { limit: 100 }));
}

/// Hiding a directory's contents again and again must not look at all of them each time.
#[test]
fn repeated_markers_cost_little() {
    let mut many: Vec<Sample> = (0..3000).map(|n| file(&format!("d/{n}"))).collect();
    many.extend((0..3000).flat_map(|_| [file("d/.wh..wh..opq"), file(".wh.d")]));
    let entries = entries(&many);
    let started = std::time::Instant::now();
    let mut merger = Merger::new(MergeOptions::default());
    merger.add_layer(entries).unwrap();
    assert_eq!(merger.finish().sources().len(), 3000);
    assert!(started.elapsed().as_secs() < 5);
}

fn random_path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("ab"), Just("c")];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

pub(crate) fn random_entry() -> impl Strategy<Value = Sample> {
    let target = prop_oneof![
        random_path(),
        random_path().prop_map(|path| format!("/{path}")),
        random_path().prop_map(|path| format!("../{path}")),
        Just("..".to_owned()),
        Just(".".to_owned()),
    ];
    let marked = |path: &str, marker: &str| match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/{marker}{name}"),
        None => format!("{marker}{path}"),
    };
    (0..14, random_path(), target, 0u64..0o1000).prop_map(move |(what, path, target, mode)| {
        match what {
            0..4 => Sample::dir(&path).mode(mode),
            4..7 => Sample::file(&path, "x").mode(mode),
            7..9 => Sample::symlink(&path, &target),
            9..11 => Sample::hard_link(&path, target.replace("..", "c")),
            11..13 => Sample::file(marked(&path, ".wh."), ""),
            _ => Sample::file(format!("{path}/.wh..wh..opq"), ""),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn random_layers_merge_as_in_the_model(
        layers in prop::collection::vec(prop::collection::vec(random_entry(), 0..8), 1..4),
    ) {
        let mut merger = Merger::new(MergeOptions::default());
        let mut model = Model::new();
        for (number, layer) in layers.iter().enumerate() {
            let list = entries(layer);
            let expected = model.add_layer(number, &list);
            let got = merger.add_layer(list);
            // After an error both have stopped at the same entry: go on from there.
            prop_assert_eq!(got.is_ok(), expected.is_ok(), "layer {}: {:?}", number, got);
        }
        prop_assert_eq!(merger.finish().listing(), model.listing());
    }
}
