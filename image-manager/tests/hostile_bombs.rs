//! Layers that are small and want to become large, pulled from a registry: each is refused in one
//! line that names the layer, with bounded time, memory and disk, and nothing of it stays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure here fails the test"
)]

mod attack;
mod site;
mod support;

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use attack::{Attack, Packed, packed, unread};
use site::Site;
use site::image::{self, Blob, Layer};
use site::mock::{Mock, honest};
use support::blobs::{TAR, digest};
use support::tar::{self, Sample, archive, archive_of, gzip, pax, record, zstd};

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
    attack.must_be_refused("gzip bomb", "layer 1");
}

#[test]
fn s66_zstd_bomb() {
    let zeros = zstd(&vec![0; 64 << 20]).repeat(800);
    let blob = [zstd(&header_of(50 << 30)), zeros].concat();
    assert!(blob.len() < 10 << 20, "{}", blob.len());
    let attack = Attack::start(&[unread("+zstd", blob)]);
    attack.must_be_refused("zstd bomb", "layer 1");
}

#[test]
fn s66_bomb_in_the_upper_one_of_two_layers() {
    let good = packed(&archive(&[Sample::file("good", "x")]));
    let zeros = zstd(&vec![0; 64 << 20]).repeat(100);
    let blob = [zstd(&header_of(50 << 30)), zeros].concat();
    let attack = Attack::start(&[good, unread("+zstd", blob)]);
    attack.must_be_refused("upper bomb", "layer 2");
}

#[test]
fn s66_zstd_window_of_2_gib() {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (31 - 10) << 3];
    frame.extend([1, 0, 0]);
    let attack = Attack::start(&[unread("+zstd", frame)]);
    attack.must_be_refused("window", "layer 1");
}

#[test]
fn s66_a_million_files() {
    let name = |number: usize| format!("directory/another/file-{number}");
    let chunk = (0..1000).map(|n| Sample::file(name(n), "").bytes());
    let chunk = zstd(&chunk.collect::<Vec<_>>().concat());
    let attack = Attack::start(&[unread("+zstd", chunk.repeat(1001))]);
    attack.must_be_refused("a million files", "layer 1");
}

#[test]
fn s66_10000_layers() {
    let one = packed(&archive(&[Sample::file("x", "")]));
    let attack = Attack::start(&vec![one; 10_000]);
    attack.must_be_refused_with(7, "10,000 layers", "it has 10000 layers, more than");
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
    attack.must_be_refused("an exabyte of holes", "layer 1");
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
        Attack::start(&[packed(&tar)]).must_be_refused(what, "layer 1");
    }
}

#[test]
fn s66_deep_directories() {
    let layer = archive(&[Sample::file("d/".repeat(1000) + "f", "x")]);
    let layers: Vec<Packed> = (0..50).map(|_| packed(&layer)).collect();
    let attack = Attack::start(&layers);
    let deep = std::thread::Builder::new().stack_size(256 << 20);
    let tree = deep
        .spawn(move || attack.must_be_built("deep"))
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(tree.len(), 1002);
}

/// What a limit of the user's allows no memory for is no fault of the image's, and no crash.
#[test]
fn memory_that_runs_out_is_said() {
    let tar = archive(&[Sample::file("data", image::noise(1, 300_000))]);
    let mut wide = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(&tar).unwrap();
    let layer = Layer {
        blob: Blob::new(&format!("{TAR}+zstd"), wide.finish().unwrap()),
        diff_id: digest(&tar),
    };
    let image = image::image("amd64", serde_json::json!({}), &[layer]);
    let mock = Mock::paths(honest(&image));
    let site = Site::new(&[&mock.address]);
    let pull = |megabytes: u64| {
        let plain = site.command(&["pull", "--quiet", &format!("{}/x", mock.address)]);
        let mut command = Command::new("prlimit");
        command.arg(format!("--data={}", megabytes << 20));
        command.arg(plain.get_program()).args(plain.get_args());
        command.env_clear().env("HOME", site.home());
        site::run(&mut command)
    };
    // Whatever it is that there is no memory for.
    let runs: Vec<site::Run> = (1..20).map(|tenth| pull(6 * tenth)).collect();
    for run in &runs {
        assert_eq!(run.code, 1, "{run:?}");
        assert!((1..=3).contains(&run.stderr.lines().count()), "{run:?}");
        assert_eq!(site.image_count(), 0);
    }
    let reason = "not enough memory to decompress it\nhint: ";
    let told = runs.iter().any(|run| run.stderr.contains(reason));
    assert!(told, "{runs:?}");
    let run = pull(1000);
    assert_eq!(run.code, 0, "{run:?}");
}
