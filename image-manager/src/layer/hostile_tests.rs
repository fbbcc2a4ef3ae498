//! Archives that break rules or limits.

use super::samples::{self, Sample, archive, archive_of, extension, gzip, pax, record};
use super::tests::{paths, read, read_with};
use super::*;
use proptest::prelude::*;

#[test]
fn limits_are_kept() {
    let limits = Limits::default();
    let is_limit = |blob: &[u8], limits: &Limits| {
        let result = read_with(blob, "", limits);
        matches!(result, Err(LayerError::Limit { .. }))
    };
    let zeroes = gzip(&archive(&[Sample::file("zero", vec![0; 10 << 20])]));
    let small = Limits {
        free_bytes: 1 << 20,
        ratio: 10,
        ..limits.clone()
    };
    assert!(is_limit(&zeroes, &small));
    assert!(!is_limit(
        &zeroes,
        &Limits {
            ratio: 2000,
            ..small
        }
    ));
    assert!(is_limit(
        &zeroes,
        &Limits {
            bytes: 9 << 20,
            ..limits.clone()
        }
    ));

    let many = archive(&vec![Sample::file("a", ""); 11]);
    assert!(is_limit(
        &many,
        &Limits {
            entries: 10,
            ..limits.clone()
        }
    ));
    assert!(!is_limit(
        &many,
        &Limits {
            entries: 11,
            ..limits.clone()
        }
    ));
    assert!(is_limit(
        &many,
        &Limits {
            name_bytes: 10,
            ..limits.clone()
        }
    ));

    let xattr = archive(&[Sample::file("a", "").xattr("user.a", &[0; 100])]);
    assert!(is_limit(
        &xattr,
        &Limits {
            xattr_bytes: 105,
            ..limits.clone()
        }
    ));
    assert!(!is_limit(
        &xattr,
        &Limits {
            xattr_bytes: 106,
            ..limits.clone()
        }
    ));
    assert!(is_limit(
        &xattr,
        &Limits {
            name_bytes: 110,
            ..limits.clone()
        }
    ));

    let huge_name = archive_of(&[extension(b'L', &vec![b'a'; 2 << 20])]);
    assert!(is_limit(&huge_name, &limits));
    // An exabyte of holes in a few bytes.
    let records = [
        record(b"GNU.sparse.map", b"0,0"),
        record(b"GNU.sparse.size", b"1000000000000000000"),
    ];
    let holes = archive_of(&[pax(&records.concat()), Sample::file("f", "").bytes()]);
    assert!(is_limit(&holes, &limits));
    // zstd frames that demand 2 GiB of memory.
    let frame = |window: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, window << 3, 1, 0, 0];
    assert!(read(&frame(27 - 10)).is_ok());
    for log in [28, 31, 41] {
        let result = read(&frame(log - 10));
        assert!(
            matches!(result, Err(LayerError::Compression { .. })),
            "{log}: {result:?}"
        );
    }
}

#[test]
fn hostile_archives_are_refused_or_confined() {
    let named = |name: &str| archive(&[Sample::file(name, "x")]);
    let linked = |target: &str| archive(&[Sample::hard_link("l", target)]);
    let header = |at: usize, bytes: &[u8]| {
        let mut block = Sample::file("f", "").header();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        samples::checksum(&mut block);
        archive_of(&[block.to_vec()])
    };
    let records = |records: &[u8]| archive_of(&[pax(records), Sample::file("f", "").bytes()]);
    let name_256 = "n".repeat(256);
    for (what, blob) in [
        ("climbs", named("../etc/passwd")),
        ("climbs from inside", named("a/../../etc/passwd")),
        ("climbs from the root", named("/../../etc/passwd")),
        ("link climbs", linked("../../etc/shadow")),
        ("file as root", named("./")),
        ("file as root by name", named("a/..")),
        ("symlink as root", archive(&[Sample::symlink(".", "/etc")])),
        ("device as root", archive(&[Sample::new(b'3', "/")])),
        ("long name", named(&name_256)),
        ("long path", named(&"d/".repeat(2100))),
        ("empty link", archive(&[Sample::symlink("l", "")])),
        (
            "long link",
            archive(&[Sample::symlink("l", "x".repeat(4096))]),
        ),
        ("NUL in a path", records(&record(b"path", b"a\0b"))),
        (
            "NUL in a link",
            archive_of(&[
                pax(&record(b"linkpath", b"a\0b")),
                Sample::symlink("l", "x").bytes(),
            ]),
        ),
        ("unknown kind", archive(&[Sample::new(b'Z', "f")])),
        ("GNU multi volume", archive(&[Sample::new(b'M', "f")])),
        ("wrong checksum", archive_of(&[vec![b'a'; 512]])),
        ("negative size", header(124, &[0xff; 12])),
        ("size of 2^62", header(124, b"\x80\0\0\0\x40\0\0\0\0\0\0\0")),
        ("size is text", header(124, b"hello")),
        ("negative uid", header(108, &[0xff; 8])),
        ("uid 2^32-1", records(&record(b"uid", b"4294967295"))),
        ("uid 2^32", records(&record(b"uid", b"4294967296"))),
        ("uid -1", records(&record(b"uid", b"-1"))),
        ("device too large", {
            let sample = Sample {
                device: (4096, 0),
                ..Sample::new(b'3', "c")
            };
            archive(&[sample])
        }),
        ("pax size negative", records(&record(b"size", b"-5"))),
        (
            "pax size huge",
            records(&record(b"size", b"9223372036854775808")),
        ),
        ("pax without newline", records(b"9 path=ab")),
        ("pax length zero", records(b"0 path=a\n")),
        ("pax longer than itself", records(b"99 path=a\n")),
        (
            "sparse overlap",
            records(&record(b"GNU.sparse.map", b"0,5,3,5")),
        ),
        (
            "sparse beyond the end",
            records(
                &[
                    record(b"GNU.sparse.map", b"9,1"),
                    record(b"GNU.sparse.size", b"5"),
                ]
                .concat(),
            ),
        ),
        (
            "sparse overflow",
            records(
                &[
                    record(b"GNU.sparse.map", b"18446744073709551615,1"),
                    record(b"GNU.sparse.size", b"18446744073709551615"),
                ]
                .concat(),
            ),
        ),
        (
            "sparse version 2",
            records(
                &[
                    record(b"GNU.sparse.major", b"2"),
                    record(b"GNU.sparse.minor", b"0"),
                ]
                .concat(),
            ),
        ),
        (
            "sparse 1.0 without map",
            records(
                &[
                    record(b"GNU.sparse.major", b"1"),
                    record(b"GNU.sparse.minor", b"0"),
                ]
                .concat(),
            ),
        ),
        (
            "too many attributes",
            records(
                &(0..1100)
                    .flat_map(|n| record(format!("SCHILY.xattr.user.{n}").as_bytes(), b""))
                    .collect::<Vec<_>>(),
            ),
        ),
        (
            "ends with an extended header",
            archive_of(&[pax(&record(b"path", b"a"))]),
        ),
        ("data after an end marker", {
            [vec![0; 512], named("f")].concat()
        }),
        ("bzip2", b"BZh91AY&SY".repeat(100)),
    ] {
        let result = read(&blob);
        assert!(result.is_err(), "{what}: {result:?}");
        let text = result.unwrap_err().to_string();
        assert!(!text.contains(['\0', '\n']), "{what}: {text:?}");
    }
    for (name, path) in [
        ("/abs/x", "abs/x"),
        ("./a/./b", "a/b"),
        ("a/../b", "b"),
        ("a//b", "a/b"),
    ] {
        assert_eq!(paths(&named(name)), [path]);
    }
}

proptest! {
    #[test]
    fn damaged_archives_never_panic(
        changes in prop::collection::vec((0usize..5120, any::<u8>()), 0..8),
        fix in any::<bool>(),
        cut in 0usize..6000,
    ) {
        let sparse = [record(b"GNU.sparse.map", b"0,3"), record(b"GNU.sparse.size", b"90")];
        let mut blob = archive_of(&[
            pax(&sparse.concat()),
            Sample::file("f", "abc").bytes(),
            Sample::symlink("s", "x").bytes(),
            Sample::dir("d").xattr("user.a", b"b").bytes(),
        ]);
        for (at, byte) in changes {
            let at = at % blob.len();
            blob[at] = byte;
        }
        if fix {
            for block in blob.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    samples::checksum(block.try_into().unwrap());
                }
            }
        }
        blob.truncate(cut);
        let limits = Limits { bytes: 1 << 24, ..Limits::default() };
        let _ = read_with(&blob, "", &limits);
    }
}
