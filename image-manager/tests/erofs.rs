//! Erofs images of the writer as the kernel and erofs-utils see them.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use proptest::prelude::*;
use squashfs_writer::{Compression, Error, Format, Kind, Options, Tree, Writer};
use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::Path;
use support::facts;
use support::images::{
    add, assert_large_directory, image_file, large_directory, mixed, mode, same_with_any_threads,
    save,
};
use support::trees::{erofs_options, plans, write};
use support::{in_private_mounts, run, with_mounted_as};

fn erofs(compression: Compression) -> Options {
    Options {
        format: Format::Erofs,
        compression,
        threads: 2,
        ..Options::default()
    }
}

#[test]
fn privileged_random_trees_as_the_kernel_sees_them() {
    in_private_mounts(|| {
        let config = ProptestConfig {
            cases: 150,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        prop::test_runner::TestRunner::new(config)
            .run(&(plans(true), erofs_options()), |(plans, options)| {
                let (image, want) = write(&plans, &options);
                let file = save(&image);
                let mut got = with_mounted_as("erofs", file.path(), facts::of_directory);
                got.remove("");
                prop_assert_eq!(facts::differences(&got, &want), Vec::<String>::new());
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn the_image_is_the_same_whatever_the_number_of_threads() {
    let options = Options {
        block_size: 4096,
        ..erofs(Compression::Lz4)
    };
    same_with_any_threads(&mixed(), &options);
}

fn large_directory_and_targets(writer: &mut Writer<&mut File>, tree: &mut Tree) {
    large_directory(writer, tree);
    for length in [1, 2047, 2048, 2049, 4094, 4095] {
        let kind = Kind::Symlink(vec![b'x'; length]);
        let inode = tree.add_inode(kind, mode(0o777)).unwrap();
        tree.link(Tree::ROOT, format!("link-{length}").as_bytes(), inode)
            .unwrap();
    }
}

#[test]
fn privileged_large_directories_and_long_targets_through_the_kernel() {
    in_private_mounts(|| {
        let (file, _) = image_file(&erofs(Compression::default()), large_directory_and_targets);
        with_mounted_as("erofs", file.path(), |at| {
            assert_large_directory(at);
            for length in [1, 2047, 2048, 2049, 4094, 4095] {
                let target = std::fs::read_link(at.join(format!("link-{length}"))).unwrap();
                assert_eq!(target.as_os_str().len(), length);
            }
        });
    });
}

#[test]
fn privileged_large_sparse_files_through_the_kernel() {
    in_private_mounts(|| {
        for compression in [Compression::default(), Compression::None] {
            let (file, _) = image_file(&erofs(compression), |writer, tree| {
                let gib = 1 << 30;
                add(writer, tree, "gib", &[(b"start", gib - 10), (b"end", 0)]);
                add(writer, tree, "all-hole", &[(b"", 10 << 20)]);
                add(writer, tree, "hole-and-tail", &[(b"", (1 << 20) + 5)]);
                add(writer, tree, "empty", &[]);
            });
            with_mounted_as("erofs", file.path(), |at| {
                let open = |name: &str| File::open(at.join(name)).unwrap();
                let mut buffer = [1; 8];
                let large = open("gib");
                assert_eq!(large.metadata().unwrap().len(), (1 << 30) - 2);
                large.read_exact_at(&mut buffer, (1 << 30) - 10).unwrap();
                assert_eq!(&buffer, b"\0\0\0\0\0end");
                large.read_exact_at(&mut buffer, 0).unwrap();
                assert_eq!(&buffer, b"start\0\0\0");
                let zeroes = std::fs::read(at.join("all-hole")).unwrap();
                assert!(zeroes.len() == 10 << 20 && zeroes.iter().all(|&byte| byte == 0));
                let hole = open("hole-and-tail");
                hole.read_exact_at(&mut buffer[..5], 1 << 20).unwrap();
                assert_eq!(&buffer[..5], [0; 5]);
                assert_eq!(hole.metadata().unwrap().len(), (1 << 20) + 5);
                assert_eq!(open("empty").metadata().unwrap().len(), 0);
            });
        }
    });
}

#[test]
fn holes_that_would_fill_the_image_are_refused() {
    let options = erofs(Compression::default());
    let mut writer = Writer::new(Cursor::new(Vec::new()), &options).unwrap();
    let mut file = writer.start_file();
    file.append_hole((64 << 30) + (1 << 20)).unwrap();
    let kind = Kind::File(file.finish().unwrap());
    let mut tree = Tree::new(mode(0o755)).unwrap();
    let inode = tree.add_inode(kind, mode(0o644)).unwrap();
    tree.link(Tree::ROOT, b"hole", inode).unwrap();
    let result = writer.finish(&tree);
    assert!(matches!(result, Err(Error::Inode { .. })));
}

#[test]
fn privileged_equal_files_share_their_blocks() {
    in_private_mounts(|| {
        let text = text();
        let (file, _) = image_file(&erofs(Compression::Lz4), |writer, tree| {
            for name in ["one", "two", "three"] {
                add(writer, tree, name, &[(&text, 0)]);
            }
            // Goes on where the others end.
            add(writer, tree, "longer", &[(&text, 0), (&text, 0)]);
        });
        assert!(file.as_file().metadata().unwrap().len() < 2 * text.len() as u64);
        with_mounted_as("erofs", file.path(), |at| {
            for (name, times) in [("two", 1), ("one", 1), ("three", 1), ("longer", 2)] {
                assert!(
                    std::fs::read(at.join(name)).unwrap() == text.repeat(times),
                    "{name}"
                );
            }
        });
    });
}

/// What is in Debian's release knows no packed inode; all else of the format it checks.
#[test]
fn fsck_of_erofs_utils_finds_nothing_wrong() {
    let options = Options {
        share_equal: false,
        ..erofs(Compression::Lz4)
    };
    let text = text();
    let (file, _) = image_file(&options, |writer, tree| {
        add(writer, tree, "text", &[(&text, 0)]);
        let noise: Vec<u8> = text.iter().scan(1u32, next).collect();
        add(writer, tree, "noise", &[(&noise, 0)]);
        add(writer, tree, "both", &[(&text, 0), (&noise, 0)]);
        let below = tree
            .add_directory(Tree::ROOT, b"below", mode(0o700))
            .unwrap();
        for n in 0..1000 {
            let kind = Kind::Symlink(format!("../{n}").into_bytes());
            let inode = tree.add_inode(kind, mode(0o777)).unwrap();
            tree.link(below, format!("link-{n}").as_bytes(), inode)
                .unwrap();
        }
    });
    check(file.path());
}

fn text() -> Vec<u8> {
    (0..50_000)
        .flat_map(|n| format!("line {n}\n").into_bytes())
        .collect()
}

fn next(state: &mut u32, byte: &u8) -> Option<u8> {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    Some((*state >> 24) as u8 ^ byte)
}

fn check(image: &Path) {
    let image = image.to_str().unwrap();
    run("fsck.erofs", &["--extract", image]);
    let shown = run("dump.erofs", &["-S", image]).stdout;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    let number = |what: &str| {
        let line = shown.lines().find_map(|line| line.strip_prefix(what));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(number("Filesystem total file count:"), "1005", "{shown}");
    assert_eq!(number("Filesystem compressed files:"), "2", "{shown}");
}
