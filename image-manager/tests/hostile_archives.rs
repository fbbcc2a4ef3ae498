//! Layers that attack whoever reads them, pulled from a registry: each becomes exactly what it says
//! or is refused in one line that names the layer, with bounded time, memory and disk, and nothing
//! of it stays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure here fails the test"
)]

mod site;
mod support;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use site::image::{self, Blob, Image, Layer};
use site::mock::{Mock, honest};
use site::{PROGRAM, Run, Site};
use support::blobs::{TAR, digest};
use support::facts::{self, Tree};
use support::run;
use support::tar::{self, Sample, archive, archive_of, gzip, pax, record, zstd};

/// A layer's suffix of the media type, its bytes, and the digest of its archive.
type Packed = (&'static str, Vec<u8>, String);

fn packed(tar: &[u8]) -> Packed {
    ("+gzip", gzip(tar), digest(tar))
}

/// One whose archive nobody will have read to the end.
fn unread(suffix: &'static str, blob: Vec<u8>) -> Packed {
    (suffix, blob, digest(b"whatever"))
}

/// What a pull came to.
struct Attack {
    site: Site,
    reference: String,
    run: Run,
    took: Duration,
    megabytes: u64,
}

impl Attack {
    fn start(layers: &[Packed]) -> Self {
        let layer = |(suffix, blob, diff_id): &Packed| Layer {
            blob: Blob::new(&format!("{TAR}{suffix}"), blob.clone()),
            diff_id: diff_id.clone(),
        };
        let layers: Vec<Layer> = layers.iter().map(layer).collect();
        let image = image::image("amd64", json!({}), &layers);
        Self::pull(&image)
    }

    fn pull(image: &Image) -> Self {
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
    fn is_refused(self, what: &str, reason: &str) {
        self.is_refused_with(4, what, reason);
    }

    fn is_refused_with(self, code: i32, what: &str, reason: &str) {
        let run = &self.run;
        eprintln!(
            "{what}: {:?}, {} MB, {}",
            self.took,
            self.megabytes,
            run.stderr.trim()
        );
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
    fn is_built(self, what: &str) -> Tree {
        eprintln!("{what}: {:?}, {} MB", self.took, self.megabytes);
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

/// Zeros that gzip makes a thousandth of.
fn zeros(members: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 16 << 20]).unwrap();
    encoder.finish().unwrap().repeat(members)
}

/// The header of a file that says it has so many bytes.
fn header_of(size: u64) -> Vec<u8> {
    let mut header = Sample::file("bomb", "").header();
    header[124..136].copy_from_slice(&[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
    tar::checksum(&mut header);
    header.to_vec()
}

#[test]
fn s66_gzip_bomb_of_10_mb() {
    let blob = [gzip(&header_of(50 << 30)), zeros(600)].concat();
    assert!((9 << 20..11 << 20).contains(&blob.len()), "{}", blob.len());
    let attack = Attack::start(&[unread("+gzip", blob)]);
    attack.is_refused("gzip bomb", "layer 1");
}

#[test]
fn s66_zstd_bomb() {
    let zeros = zstd(&vec![0; 64 << 20]).repeat(800);
    let blob = [zstd(&header_of(50 << 30)), zeros].concat();
    assert!(blob.len() < 10 << 20, "{}", blob.len());
    let attack = Attack::start(&[unread("+zstd", blob)]);
    attack.is_refused("zstd bomb", "layer 1");
}

#[test]
fn s66_bomb_in_the_upper_one_of_two_layers() {
    let good = packed(&archive(&[Sample::file("good", "x")]));
    let zeros = zstd(&vec![0; 64 << 20]).repeat(100);
    let blob = [zstd(&header_of(50 << 30)), zeros].concat();
    let attack = Attack::start(&[good, unread("+zstd", blob)]);
    attack.is_refused("upper bomb", "layer 2");
}

#[test]
fn s66_zstd_window_of_2_gib() {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (31 - 10) << 3];
    frame.extend([1, 0, 0]);
    let attack = Attack::start(&[unread("+zstd", frame)]);
    attack.is_refused("window", "layer 1");
}

#[test]
#[ignore = "half a minute where the program is not optimised"]
fn s66_a_million_files() {
    let name = |number: usize| format!("directory/another/file-{number}");
    let chunk = (0..1000).map(|n| Sample::file(name(n), "").bytes());
    let chunk = zstd(&chunk.collect::<Vec<_>>().concat());
    let attack = Attack::start(&[unread("+zstd", chunk.repeat(1001))]);
    attack.is_refused("a million files", "layer 1");
}

#[test]
fn s66_10000_layers() {
    let one = packed(&archive(&[Sample::file("x", "")]));
    let attack = Attack::start(&vec![one; 10_000]);
    attack.is_refused_with(7, "10,000 layers", "it has 10000 layers, more than");
}

#[test]
fn s66_holes_cost_nothing() {
    let sparse = |size: &str| {
        let records = [
            record(b"GNU.sparse.map", b"0,0"),
            record(b"GNU.sparse.size", size.as_bytes()),
        ];
        packed(&archive_of(&[
            pax(&records.concat()),
            Sample::file("holes", "").bytes(),
        ]))
    };
    let attack = Attack::start(&[sparse("100000000000")]);
    let file = attack.site.store();
    assert!(attack.took < Duration::from_secs(20), "{:?}", attack.took);
    assert_eq!(attack.run.code, 0, "{:?}", attack.run);
    let image = site::walk(&file)
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "squashfs"));
    assert!(image.unwrap().metadata().unwrap().len() < 16 << 20);
    let attack = Attack::start(&[sparse("1000000000000000000")]);
    attack.is_refused("an exabyte of holes", "layer 1");
}

#[test]
fn s66_names_and_attributes_of_any_size() {
    let long = "n".repeat(2 << 20);
    for (what, tar) in [
        (
            "GNU name of 2 MB",
            archive_of(&[tar::extension(b'L', long.as_bytes())]),
        ),
        (
            "GNU link of 2 MB",
            archive_of(&[tar::extension(b'K', long.as_bytes())]),
        ),
        (
            "pax name of 2 MB",
            archive_of(&[
                pax(&record(b"path", long.as_bytes())),
                Sample::file("f", "").bytes(),
            ]),
        ),
        ("pax header that says 8 GB", {
            let mut header = Sample {
                kind: b'x',
                ..Sample::file("pax", "")
            }
            .header();
            header[124..136].copy_from_slice(b"77777777777\0");
            tar::checksum(&mut header);
            archive_of(&[header.to_vec()])
        }),
        (
            "attribute of 1 MB",
            archive(&[Sample::file("f", "").xattr("user.a", &vec![1; 1 << 20])]),
        ),
        (
            "component of 256 bytes",
            archive(&[Sample::file("n".repeat(256), "")]),
        ),
        (
            "path of 5,000 bytes",
            archive(&[Sample::file("d/".repeat(2500) + "f", "")]),
        ),
        (
            "link target of 5,000 bytes",
            archive(&[Sample::symlink("l", "t".repeat(5000))]),
        ),
    ] {
        Attack::start(&[packed(&tar)]).is_refused(what, "layer 1");
    }
}

#[test]
fn s66_deep_directories() {
    let layer = archive(&[Sample::file("d/".repeat(1000) + "f", "x")]);
    let layers: Vec<Packed> = (0..50).map(|_| packed(&layer)).collect();
    let attack = Attack::start(&layers);
    let deep = std::thread::Builder::new().stack_size(256 << 20);
    let tree = deep
        .spawn(move || attack.is_built("deep"))
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(tree.len(), 1002);
}

/// What an archive comes to.
enum Fate {
    /// A reason.
    Refused(&'static str),
    /// Names and what they are, the root left out.
    Built(&'static [(&'static str, &'static str)]),
}
use Fate::{Built, Refused};

fn patched(sample: Sample, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut header = sample.header();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    tar::checksum(&mut header);
    let mut all = header.to_vec();
    all.extend_from_slice(&sample.body);
    tar::pad(&mut all);
    all
}

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
                attack.is_refused(what, reason);
            }
            Built(want) => {
                let tree = attack.is_built(what);
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
        ("climbs", named("../../etc/shadow"), Refused("")),
        ("climbs from inside", named("d/../../x"), Refused("")),
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
            Refused(""),
        ),
        ("link to the root", archive(&[hard("l", "/")]), Refused("")),
        (
            "link to a directory",
            archive(&[hard("l", "d")]),
            Refused(""),
        ),
        (
            "link to nothing",
            archive(&[hard("l", "nothing")]),
            Refused(""),
        ),
        ("link to itself", archive(&[hard("l", "l")]), Refused("")),
        (
            "links in a circle",
            archive(&[hard("a", "b"), hard("b", "a")]),
            Refused(""),
        ),
        (
            "link to what comes later",
            archive(&[hard("a", "b"), Sample::file("b", "x")]),
            Refused(""),
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
            Refused(""),
        ),
        (
            "through a link to itself",
            archive(&[Sample::symlink("a", "a"), Sample::file("a/x", "x")]),
            Refused(""),
        ),
        (
            "below a file",
            archive(&[Sample::file("low/x", "x")]),
            Refused(""),
        ),
        (
            "below a device",
            archive(&[Sample::new(b'6', "p"), Sample::file("p/x", "x")]),
            Refused(""),
        ),
        ("file as root", named("./"), Refused("")),
        (
            "link as root",
            archive(&[Sample::symlink(".", "/etc")]),
            Refused(""),
        ),
        (
            "device as root",
            archive(&[Sample::new(b'3', "/")]),
            Refused(""),
        ),
        ("no name", named(""), Refused("")),
        (
            "NUL in a name",
            archive_of(&[
                pax(&record(b"path", b"a\0b")),
                Sample::file("f", "").bytes(),
            ]),
            Refused(""),
        ),
    ]);
}

#[test]
fn s74_whiteouts_hide_only_what_is_below() {
    let white = |name: &str| archive(&[Sample::file(name, "")]);
    judge(vec![
        ("of nothing", white(".wh.nothing"), Built(LOW)),
        ("of the root", white(".wh."), Refused("")),
        ("of the root below it", white("d/.wh."), Refused("")),
        ("of .", white("d/.wh.."), Refused("")),
        ("of ..", white("d/.wh..."), Refused("")),
        (
            "absolute",
            white("/.wh.low"),
            Built(&[("d", "dir"), ("d/low", "file")]),
        ),
        ("of everything", white(".wh..wh..opq"), Built(&[])),
        ("with a slash", white("d/.wh.low/"), Refused("")),
        ("as a parent", white(".wh.d/x"), Refused("")),
        ("of a whiteout", white(".wh..wh.low"), Refused("")),
        (
            "as a link",
            archive(&[Sample::hard_link(".wh.low", "d/low")]),
            Refused(""),
        ),
        (
            "with contents",
            archive(&[Sample::file(".wh.low", "contents")]),
            Built(&[("d", "dir"), ("d/low", "file")]),
        ),
        (
            "as a directory",
            archive(&[Sample::dir(".wh.low")]),
            Refused(""),
        ),
        ("below a file", white("low/.wh.x"), Refused("")),
        (
            "through a link out",
            archive(&[
                Sample::symlink("out", "/../../.."),
                Sample::file("out/.wh.low", ""),
            ]),
            Refused(""),
        ),
    ]);
}

#[test]
fn s74_lies_about_sizes_are_refused() {
    let file = |body: &str| Sample::file("f", body);
    let size = |bytes: &[u8]| archive_of(&[patched(Sample::file("f", ""), 124, bytes)]);
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
        ("negative", size(&[0xff; 12]), Refused("")),
        ("2^63", size(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), Refused("")),
        (
            "2^95",
            size(b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            Refused(""),
        ),
        ("text", size(b"a lot       "), Refused("")),
        ("more than there is", size(b"00000777777\0"), Refused("")),
        ("pax, negative", records(&[("size", "-1")]), Refused("")),
        (
            "pax, 2^64",
            records(&[("size", "18446744073709551616")]),
            Refused(""),
        ),
        (
            "pax, 2^63",
            records(&[("size", "9223372036854775808")]),
            Refused(""),
        ),
        (
            "record longer than the header",
            archive_of(&[pax(b"99 path=a\n"), file("").bytes()]),
            Refused(""),
        ),
        (
            "record's length overflows",
            archive_of(&[pax(b"99999999999999999999999 path=a\n"), file("").bytes()]),
            Refused(""),
        ),
        (
            "record of length 0",
            archive_of(&[pax(b"0 a=b\n"), file("").bytes()]),
            Refused(""),
        ),
        (
            "sparse, beyond the end",
            records(&[("GNU.sparse.map", "9,1"), ("GNU.sparse.size", "5")]),
            Refused(""),
        ),
        (
            "sparse, overlaps",
            records(&[("GNU.sparse.map", "0,5,3,5"), ("GNU.sparse.size", "8")]),
            Refused(""),
        ),
        (
            "sparse, overflows",
            records(&[
                ("GNU.sparse.map", "18446744073709551615,2"),
                ("GNU.sparse.size", "18446744073709551615"),
            ]),
            Refused(""),
        ),
        (
            "sparse, negative",
            records(&[("GNU.sparse.map", "0,-1"), ("GNU.sparse.size", "5")]),
            Refused(""),
        ),
        (
            "sparse, with more than the entry has",
            records(&[("GNU.sparse.map", "0,100"), ("GNU.sparse.size", "100")]),
            Refused(""),
        ),
        ("uid -1", records(&[("uid", "-1")]), Refused("")),
        ("uid 2^32", records(&[("uid", "4294967296")]), Refused("")),
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
    for (what, layer) in [
        ("cut in a header", packed(&whole[..300])),
        ("cut in contents", packed(&whole[..1500])),
        ("no end", packed(&whole[..whole.len() - 1024])),
        ("wrong checksum", packed(&wrong_sum)),
        (
            "garbage after the end",
            packed(&[&whole[..], b"garbage"].concat()),
        ),
        (
            "another archive after the end",
            packed(&[&whole[..], &whole[..]].concat()),
        ),
        ("gzip cut", of("+gzip", blob[..blob.len() - 9].to_vec())),
        (
            "gzip without its end",
            of("+gzip", blob[..blob.len() - 4].to_vec()),
        ),
        ("gzip flipped", of("+gzip", flipped)),
        ("gzip with another checksum", of("+gzip", wrong_crc)),
        (
            "gzip with garbage after it",
            of("+gzip", [&blob[..], b"garbage"].concat()),
        ),
        (
            "gzip with zeros after it",
            of("+gzip", [&blob[..], &[0; 512]].concat()),
        ),
        ("zstd cut", of("+zstd", zstd(&whole)[..40].to_vec())),
        (
            "zstd with garbage after it",
            of("+zstd", [&zstd(&whole)[..], b"garbage"].concat()),
        ),
        ("zstd said to be gzip", of("+gzip", zstd(&whole))),
        ("gzip said to be nothing", of("", blob.clone())),
        ("nothing at all", unread("+gzip", Vec::new())),
        (
            "a page of HTML",
            unread("+gzip", b"<html>not found</html>".to_vec()),
        ),
        (
            "another archive than the image says",
            unread("+gzip", blob.clone()),
        ),
    ] {
        let attack = Attack::start(&[layer]);
        eprintln!("{what}: {} {}", attack.run.code, attack.run.stderr.trim());
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
