//! Images of the writer as other programs and the kernel see them.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use proptest::prelude::*;
use squashfs_writer::{Attributes, Compression, Error, Kind, Options, Tree, Writer};
use std::fs::File;
use std::io::{Cursor, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use support::facts;
use support::images::{
    add, assert_large_directory, image_file, large_directory, mixed, same_with_any_threads, save,
};
use support::trees::{Piece, content, options, plans, write};
use support::{in_private_mounts, run, with_mounted};

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_trees_read_by_squashfs_tools_ng(plans in plans(false), options in options()) {
        let (image, want) = write(&plans, &options);
        let file = save(&image);
        let archive = run("sqfs2tar", &[file.path().to_str().unwrap()]).stdout;
        let got = facts::of_tar(archive);
        prop_assert_eq!(facts::differences(&got, &want), Vec::<String>::new());
    }
}

fn random_cases<T: std::fmt::Debug>(
    cases: u32,
    strategy: impl Strategy<Value = T>,
    test: impl Fn(T) -> Result<(), TestCaseError>,
) {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    prop::test_runner::TestRunner::new(config)
        .run(&strategy, test)
        .unwrap();
}

#[test]
fn privileged_random_trees_as_the_kernel_sees_them() {
    in_private_mounts(|| {
        random_cases(100, (plans(true), options()), |(plans, options)| {
            let (image, want) = write(&plans, &options);
            let file = save(&image);
            let mut got = with_mounted(file.path(), facts::of_directory);
            got.remove("");
            prop_assert_eq!(facts::differences(&got, &want), Vec::<String>::new());
            Ok(())
        });
    });
}

#[test]
fn privileged_random_trees_unpacked_by_unsquashfs() {
    random_cases(40, (plans(false), options()), |(plans, options)| {
        let (image, want) = write(&plans, &options);
        let file = save(&image);
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let (root, path) = (root.to_str().unwrap(), file.path().to_str().unwrap());
        run("unsquashfs", &["-q", "-n", "-d", root, path]);
        let mut got = facts::of_directory(Path::new(root));
        got.remove("");
        prop_assert_eq!(facts::differences(&got, &want), Vec::<String>::new());
        Ok(())
    });
}

#[test]
fn the_image_is_the_same_however_it_is_made() {
    let plans = mixed();
    let options = Options {
        block_size: 4096,
        ..Options::default()
    };
    let image = same_with_any_threads(&plans, &options);
    // The time of the image is that of its newest file, or what was asked for.
    let time = |image: &[u8]| u32::from_le_bytes(image[8..12].try_into().unwrap());
    assert_eq!(time(&image), 199);
    assert_eq!(
        time(
            &write(
                &plans,
                &Options {
                    mtime: Some(77),
                    ..options
                }
            )
            .0
        ),
        77
    );
}

#[test]
fn large_directories_are_complete() {
    let (file, summary) = image_file(&Options::default(), large_directory);
    assert_eq!(summary.inodes, 60_002);
    let listing = run("unsquashfs", &["-l", file.path().to_str().unwrap()]).stdout;
    let lines = String::from_utf8(listing).unwrap();
    assert_eq!(
        lines
            .lines()
            .filter(|l| l.starts_with("squashfs-root/large/file-"))
            .count(),
        60_000
    );
    let one = ["-cat", file.path().to_str().unwrap(), "large/file-59999"];
    assert_eq!(run("unsquashfs", &one).stdout, b"59999");
}

#[test]
fn privileged_large_directories_through_the_kernel() {
    in_private_mounts(|| {
        let (file, _) = image_file(&Options::default(), large_directory);
        with_mounted(file.path(), assert_large_directory);
    });
}

fn large_files(writer: &mut Writer<&mut File>, tree: &mut Tree) {
    let mut add = |name: &str, parts: &[(&[u8], u64)]| add(writer, tree, name, parts);
    add("five-gib", &[(b"start", (5 << 30) - 10), (b"end", 0)]);
    add("all-hole", &[(b"", 10 << 20)]);
    add("hole-and-tail", &[(b"", (1 << 20) + 5)]);
    add("empty", &[]);
}

#[test]
fn privileged_large_sparse_files_through_the_kernel() {
    in_private_mounts(|| {
        let (file, summary) = image_file(&Options::default(), large_files);
        assert!(summary.bytes < 1 << 20);
        with_mounted(file.path(), |at| {
            let open = |name: &str| File::open(at.join(name)).unwrap();
            let mut buffer = [1; 8];
            let large = open("five-gib");
            assert_eq!(large.metadata().unwrap().len(), (5 << 30) - 2);
            large.read_exact_at(&mut buffer, (5 << 30) - 10).unwrap();
            assert_eq!(&buffer, b"\0\0\0\0\0end");
            large.read_exact_at(&mut buffer, 0).unwrap();
            assert_eq!(&buffer, b"start\0\0\0");
            assert!(
                large.metadata().unwrap().blocks() < 10_000,
                "holes are not counted"
            );
            let hole = open("hole-and-tail");
            hole.read_exact_at(&mut buffer[..5], 1 << 20).unwrap();
            assert_eq!(&buffer[..5], [0; 5]);
            assert_eq!(hole.metadata().unwrap().len(), (1 << 20) + 5);
            assert_eq!(open("all-hole").metadata().unwrap().blocks(), 0);
            assert_eq!(open("empty").metadata().unwrap().len(), 0);
        });
    });
}

#[test]
fn ids_are_counted_across_owners_and_groups() {
    let attempt = |count: u32| {
        let writer = Writer::new(Cursor::new(Vec::new()), &Options::default()).unwrap();
        let mut tree = Tree::new(Attributes::default()).unwrap();
        for n in 0..count {
            // Id 0 is the root directory's.
            let attributes = Attributes {
                uid: n * 2,
                gid: n * 2 + 1,
                ..Attributes::default()
            };
            let inode = tree.add_inode(Kind::Fifo, attributes).unwrap();
            tree.link(Tree::ROOT, n.to_string().as_bytes(), inode)
                .unwrap();
        }
        writer.finish(&tree).map(|_| ())
    };
    attempt(32_767).unwrap();
    let error = attempt(32_768).unwrap_err();
    assert!(
        matches!(error, Error::TooMany { limit: 65_535, .. }),
        "{error:?}"
    );
}

/// A disk that has no room for one moment.
struct FailsOnce(Cursor<Vec<u8>>, bool);

impl Write for FailsOnce {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if std::mem::take(&mut self.1) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl std::io::Read for FailsOnce {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
}

impl std::io::Seek for FailsOnce {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn a_block_that_was_lost_is_not_forgotten() {
    let out = FailsOnce(Cursor::new(Vec::new()), true);
    let options = Options {
        compression: Compression::None,
        threads: 0,
        ..Options::default()
    };
    let mut writer = Writer::new(out, &options).unwrap();
    let mut file = writer.start_file();
    assert!(file.append(&vec![1; 4 << 20]).is_err());
    let tree = Tree::new(Attributes::default()).unwrap();
    assert!(matches!(writer.finish(&tree), Err(Error::Write { .. })));
}

#[test]
fn tail_ends_share_blocks_up_to_the_last_byte() {
    for (second, fragments) in [(2096, 1u32), (2097, 2)] {
        let options = Options {
            block_size: 4096,
            ..Options::default()
        };
        let mut writer = Writer::new(Cursor::new(Vec::new()), &options).unwrap();
        for size in [2000, second] {
            let mut file = writer.start_file();
            file.append(&content(&[Piece::Noise(size as u8, size)]))
                .unwrap();
            file.finish().unwrap();
        }
        let tree = Tree::new(Attributes::default()).unwrap();
        let (image, _) = writer.finish(&tree).unwrap();
        assert_eq!(image.into_inner()[16..20], fragments.to_le_bytes());
    }
}

#[test]
fn options_outside_the_format_are_refused() {
    for options in [
        Options {
            block_size: 2048,
            ..Options::default()
        },
        Options {
            block_size: 2 << 20,
            ..Options::default()
        },
        Options {
            block_size: 100_000,
            ..Options::default()
        },
        Options {
            compression: Compression::Zstd { level: 0 },
            ..Options::default()
        },
        Options {
            compression: Compression::Zstd { level: 23 },
            ..Options::default()
        },
        Options {
            compression: Compression::Gzip { level: 10 },
            ..Options::default()
        },
    ] {
        assert!(
            matches!(
                Writer::new(Cursor::new(Vec::new()), &options),
                Err(Error::Options { .. })
            ),
            "{options:?}"
        );
    }
}

#[test]
fn tools_read_the_superblock() {
    for (compression, want) in [
        (Compression::Zstd { level: 3 }, "compression-level 3"),
        (Compression::Gzip { level: 6 }, "compression-level 6"),
        (Compression::Lz4, "Compression lz4"),
        (Compression::None, "Inodes are uncompressed"),
    ] {
        let options = Options {
            compression,
            block_size: 65536,
            ..Options::default()
        };
        let (file, _) = image_file(&options, large_files);
        let output = run("unsquashfs", &["-s", file.path().to_str().unwrap()]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(want), "{compression:?}: {text}");
        assert!(text.contains("Block size 65536"), "{text}");
    }
}

#[test]
fn a_full_disk_is_known_as_one() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut writer = Writer::new(full, &Options::default()).unwrap();
    let mut file = writer.start_file();
    let noise = content(&[Piece::Noise(1, 3 << 20)]);
    let error = file
        .write_all(&noise)
        .and_then(|()| file.write_all(&noise))
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let tree = Tree::new(Attributes::default()).unwrap();
    assert!(writer.finish(&tree).is_err(), "what was lost stays lost");

    let full = File::options().write(true).open("/dev/full").unwrap();
    let writer = Writer::new(full, &Options::default()).unwrap();
    let tree = Tree::new(Attributes::default()).unwrap();
    let error = writer.finish(&tree).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error:?}");
}
