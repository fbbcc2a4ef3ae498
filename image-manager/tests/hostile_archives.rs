//! Archives that break rules, pulled from a registry: each becomes exactly what it says or is
//! refused in one line that names the layer, and nothing of it stays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure here fails the test"
)]

mod attack;
mod site;
mod support;

use std::time::Duration;

use attack::{Attack, packed, unread};
use support::blobs::digest;
use support::run;
use support::tar::{Sample, archive, archive_of, gzip, pax, record, zstd};

/// What an archive comes to.
enum Fate {
    /// A reason.
    Refused(&'static str),
    /// Names and what they are, the root left out.
    Built(&'static [(&'static str, &'static str)]),
}
use Fate::{Built, Refused};

/// Pulls each, on top of a layer with a file `d/low`.
fn judge(cases: Vec<(&str, Vec<u8>, Fate)>) {
    let base = archive(&[
        Sample::dir("d"),
        Sample::file("d/low", "low"),
        Sample::file("low", "low"),
    ]);
    for (what, archive, fate) in cases {
        let attack = Attack::start(&[packed(&base), packed(&archive)]);
        assert!(
            attack.took < Duration::from_secs(20),
            "{what}: {:?}",
            attack.took
        );
        match fate {
            Refused(reason) => {
                assert!(
                    attack.run.stderr.contains("layer 2"),
                    "{what}: {:?}",
                    attack.run
                );
                attack.must_be_refused(what, reason);
            }
            Built(want) => {
                let tree = attack.must_be_built(what);
                let got: Vec<(&str, &str)> = tree
                    .iter()
                    .filter(|(path, _)| !path.is_empty())
                    .map(|(path, facts)| (path.as_str(), facts.what.split(' ').next().unwrap()))
                    .collect();
                assert_eq!(got, want, "{what}");
            }
        }
    }
}

const LOW: &[(&str, &str)] = &[("d", "dir"), ("d/low", "file"), ("low", "file")];

#[test]
fn s74_paths_stay_inside() {
    let named = |name: &str| archive(&[Sample::file(name, "x")]);
    let hard = |name: &str, target: &str| Sample::hard_link(name, target);
    judge(vec![
        (
            "absolute",
            named("/d/abs"),
            Built(&[
                ("d", "dir"),
                ("d/abs", "file"),
                ("d/low", "file"),
                ("low", "file"),
            ]),
        ),
        (
            "climbs",
            named("../../etc/shadow"),
            Refused("its path leads out of the image"),
        ),
        (
            "climbs from inside",
            named("d/../../x"),
            Refused("its path leads out of the image"),
        ),
        (
            "climbs and stays",
            named("d/../x"),
            Built(&[
                ("d", "dir"),
                ("d/low", "file"),
                ("low", "file"),
                ("x", "file"),
            ]),
        ),
        (
            "link out",
            archive(&[hard("l", "../../etc/shadow")]),
            Refused("its link target leads out of the image"),
        ),
        (
            "link to the root",
            archive(&[hard("l", "/")]),
            Refused("which does not exist"),
        ),
        (
            "link to a directory",
            archive(&[hard("l", "d")]),
            Refused("which is a directory"),
        ),
        (
            "link to nothing",
            archive(&[hard("l", "nothing")]),
            Refused("which does not exist"),
        ),
        (
            "link to itself",
            archive(&[hard("l", "l")]),
            Refused("which does not exist"),
        ),
        (
            "links in a circle",
            archive(&[hard("a", "b"), hard("b", "a")]),
            Refused("which does not exist"),
        ),
        (
            "link to what comes later",
            archive(&[hard("a", "b"), Sample::file("b", "x")]),
            Refused("which does not exist"),
        ),
        (
            "through a link out",
            archive(&[
                Sample::symlink("out", "/../../../etc"),
                Sample::file("out/x", "x"),
            ]),
            Built(&[
                ("d", "dir"),
                ("d/low", "file"),
                ("etc", "dir"),
                ("etc/x", "file"),
                ("low", "file"),
                ("out", "->"),
            ]),
        ),
        (
            "through a loop",
            archive(&[
                Sample::symlink("a", "b"),
                Sample::symlink("b", "a"),
                Sample::file("a/x", "x"),
            ]),
            Refused("too many symbolic links"),
        ),
        (
            "through a link to itself",
            archive(&[Sample::symlink("a", "a"), Sample::file("a/x", "x")]),
            Refused("too many symbolic links"),
        ),
        (
            "below a file",
            archive(&[Sample::file("low/x", "x")]),
            Refused("something that is not a directory"),
        ),
        (
            "below a device",
            archive(&[Sample::new(b'6', "p"), Sample::file("p/x", "x")]),
            Refused("something that is not a directory"),
        ),
        (
            "file as root",
            named("./"),
            Refused("the root of an image must be a directory"),
        ),
        (
            "link as root",
            archive(&[Sample::symlink(".", "/etc")]),
            Refused("the root of an image must be a directory"),
        ),
        (
            "device as root",
            archive(&[Sample::new(b'3', "/")]),
            Refused("the root of an image must be a directory"),
        ),
        (
            "no name",
            named(""),
            Refused("the root of an image must be a directory"),
        ),
        (
            "NUL in a name",
            archive_of(&[
                pax(&record(b"path", b"a\0b")),
                Sample::file("f", "").bytes(),
            ]),
            Refused("its path contains a NUL"),
        ),
    ]);
}

#[test]
fn s74_whiteouts_hide_only_what_is_below() {
    let white = |name: &str| archive(&[Sample::file(name, "")]);
    judge(vec![
        ("of nothing", white(".wh.nothing"), Built(LOW)),
        (
            "of the root",
            white(".wh."),
            Refused("is not a valid whiteout"),
        ),
        (
            "of the root below it",
            white("d/.wh."),
            Refused("is not a valid whiteout"),
        ),
        ("of .", white("d/.wh.."), Refused("is not a valid whiteout")),
        (
            "of ..",
            white("d/.wh..."),
            Refused("is not a valid whiteout"),
        ),
        (
            "absolute",
            white("/.wh.low"),
            Built(&[("d", "dir"), ("d/low", "file")]),
        ),
        ("of everything", white(".wh..wh..opq"), Built(&[])),
        (
            "with a slash",
            white("d/.wh.low/"),
            Built(&[("d", "dir"), ("low", "file")]),
        ),
        (
            "as a parent",
            white(".wh.d/x"),
            Refused("is not a valid whiteout"),
        ),
        ("of a whiteout", white(".wh..wh.low"), Built(LOW)),
        (
            "as a link",
            archive(&[Sample::hard_link(".wh.low", "d/low")]),
            Built(&[("d", "dir"), ("d/low", "file")]),
        ),
        (
            "with contents",
            archive(&[Sample::file(".wh.low", "contents")]),
            Built(&[("d", "dir"), ("d/low", "file")]),
        ),
        (
            "as a directory",
            archive(&[Sample::dir(".wh.low")]),
            Built(&[("d", "dir"), ("d/low", "file")]),
        ),
        ("below a file", white("low/.wh.x"), Built(LOW)),
        (
            "through a link out",
            archive(&[
                Sample::symlink("out", "/../../.."),
                Sample::file("out/.wh.low", ""),
            ]),
            Built(&[("d", "dir"), ("d/low", "file"), ("out", "->")]),
        ),
    ]);
}

#[test]
fn s74_lies_about_sizes_are_refused() {
    let file = |body: &str| Sample::file("f", body);
    let size = |bytes: &[u8]| archive_of(&[Sample::file("f", "").patched(124, bytes)]);
    let records = |list: &[(&str, &str)]| {
        let list = list
            .iter()
            .map(|(key, value)| record(key.as_bytes(), value.as_bytes()));
        archive_of(&[
            pax(&list.collect::<Vec<_>>().concat()),
            Sample::file("f", "").bytes(),
        ])
    };
    judge(vec![
        (
            "negative",
            size(&[0xff; 12]),
            Refused("its size is negative"),
        ),
        (
            "2^63",
            size(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"),
            Refused("a number is too large"),
        ),
        (
            "2^95",
            size(b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            Refused("a number is too large"),
        ),
        (
            "text",
            size(b"a lot       "),
            Refused("a number is not octal"),
        ),
        (
            "more than there is",
            size(b"00000777777\0"),
            Refused("it ends too early"),
        ),
        (
            "pax, negative",
            records(&[("size", "-1")]),
            Refused("a number is not decimal"),
        ),
        (
            "pax, 2^64",
            records(&[("size", "18446744073709551616")]),
            Refused("a number is too large"),
        ),
        (
            "pax, 2^63",
            records(&[("size", "9223372036854775808")]),
            Refused("it ends too early"),
        ),
        (
            "record longer than the header",
            archive_of(&[pax(b"99 path=a\n"), file("").bytes()]),
            Refused("a pax record is malformed"),
        ),
        (
            "record's length overflows",
            archive_of(&[pax(b"99999999999999999999999 path=a\n"), file("").bytes()]),
            Refused("a number is too large"),
        ),
        (
            "record of length 0",
            archive_of(&[pax(b"0 a=b\n"), file("").bytes()]),
            Refused("a pax record is malformed"),
        ),
        (
            "sparse, beyond the end",
            records(&[("GNU.sparse.map", "9,1"), ("GNU.sparse.size", "5")]),
            Refused("its sparse map exceeds the file"),
        ),
        (
            "sparse, overlaps",
            records(&[("GNU.sparse.map", "0,5,3,5"), ("GNU.sparse.size", "8")]),
            Refused("its sparse map is out of order"),
        ),
        (
            "sparse, overflows",
            records(&[
                ("GNU.sparse.map", "18446744073709551615,2"),
                ("GNU.sparse.size", "18446744073709551615"),
            ]),
            Refused("its sparse map overflows"),
        ),
        (
            "sparse, negative",
            records(&[("GNU.sparse.map", "0,-1"), ("GNU.sparse.size", "5")]),
            Refused("a number is not decimal"),
        ),
        (
            "sparse, with more than the entry has",
            records(&[("GNU.sparse.map", "0,100"), ("GNU.sparse.size", "100")]),
            Refused("its sparse map does not match"),
        ),
        (
            "uid -1",
            records(&[("uid", "-1")]),
            Refused("its owner is out of range"),
        ),
        (
            "uid 2^32",
            records(&[("uid", "4294967296")]),
            Refused("its owner is out of range"),
        ),
    ]);
}

#[test]
fn s74_damaged_archives_are_refused() {
    let whole = archive(&[Sample::file("f", "x".repeat(2000)), Sample::file("g", "y")]);
    let blob = gzip(&whole);
    let mut wrong_sum = whole.clone();
    wrong_sum[0] = b'F';
    let mut flipped = blob.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    let mut wrong_crc = blob.clone();
    let at = wrong_crc.len() - 6;
    wrong_crc[at] ^= 1;
    let of = |suffix, blob: Vec<u8>| (suffix, blob, digest(&whole));
    let early = "it ends too early";
    for (what, layer, reason) in [
        ("cut in a header", packed(&whole[..300]), early),
        ("cut in contents", packed(&whole[..1500]), early),
        (
            "wrong checksum",
            packed(&wrong_sum),
            "its checksum is wrong",
        ),
        (
            "gzip cut",
            of("+gzip", blob[..blob.len() - 9].to_vec()),
            early,
        ),
        (
            "gzip without its end",
            of("+gzip", blob[..blob.len() - 4].to_vec()),
            early,
        ),
        ("gzip flipped", of("+gzip", flipped), ""),
        (
            "gzip with garbage after it",
            of("+gzip", [&blob[..], b"garbage"].concat()),
            early,
        ),
        (
            "gzip with zeros after it",
            of("+gzip", [&blob[..], &[0; 512]].concat()),
            "cannot decompress it",
        ),
        ("zstd cut", of("+zstd", zstd(&whole)[..40].to_vec()), early),
        (
            "zstd with garbage after it",
            of("+zstd", [&zstd(&whole)[..], b"garbage"].concat()),
            "cannot decompress it",
        ),
        (
            "zstd said to be gzip",
            of("+gzip", zstd(&whole)),
            "it is compressed with zstd, but",
        ),
        (
            "gzip said to be nothing",
            of("", blob.clone()),
            "it is compressed with gzip, but",
        ),
        (
            "nothing at all",
            unread("+gzip", Vec::new()),
            "it is not compressed, but",
        ),
        (
            "a page of HTML",
            unread("+gzip", b"<html>not found</html>".to_vec()),
            "it is not compressed, but",
        ),
        (
            "another archive than the image says",
            unread("+gzip", blob.clone()),
            "layer 1 has the diff_id",
        ),
    ] {
        let attack = Attack::start(&[layer]);
        assert!(
            attack.run.stderr.contains("layer 1"),
            "{what}: {:?}",
            attack.run
        );
        attack.must_be_refused(what, reason);
    }
    // What is in it is vouched for by the digest in the image's configuration, if not by gzip.
    let attack = Attack::start(&[of("+gzip", wrong_crc)]);
    match attack.run.code {
        0 => assert_eq!(attack.must_be_built("wrong crc").len(), 3),
        _ => attack.must_be_refused("wrong crc", "layer 1"),
    }
    // As every other program that reads archives: what follows the end is nobody's.
    for (what, tar) in [
        ("no end", whole[..whole.len() - 1024].to_vec()),
        ("garbage after the end", [&whole[..], b"garbage"].concat()),
        (
            "another archive after the end",
            [&whole[..], &archive(&[Sample::file("h", "")])[..]].concat(),
        ),
    ] {
        let tree = Attack::start(&[packed(&tar)]).must_be_built(what);
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["", "f", "g"], "{what}");
    }
}

#[test]
fn s74_devices_and_setuid_are_kept_as_data() {
    let device = |name: &str| Sample {
        device: (1, 3),
        mode: 0o666,
        ..Sample::new(b'3', name)
    };
    let tar = archive(&[
        device("null"),
        Sample {
            device: (8, 0),
            ..Sample::new(b'4', "disk")
        },
        Sample::file("su", "x").mode(0o6755).owner(0, 0),
        Sample::file("private", "x").mode(0o600).owner(1234, 5678),
    ]);
    let attack = Attack::start(&[packed(&tar)]);
    assert_eq!(attack.run.code, 0, "{:?}", attack.run);
    let file = attack
        .site
        .store()
        .join(format!("{}.squashfs", attack.site.id(&attack.reference)));
    let list = run("unsquashfs", &["-lln", file.to_str().unwrap()]).stdout;
    let list = String::from_utf8(list).unwrap();
    for line in [
        "crw-rw-rw- 0/0 1,",
        "brw-r--r-- 0/0 8,",
        "-rwsr-sr-x 0/0",
        "-rw------- 1234/5678",
    ] {
        let spaced: Vec<String> = list
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert!(
            spaced.iter().any(|found| found.starts_with(line)),
            "{line}: {list}"
        );
    }
}
