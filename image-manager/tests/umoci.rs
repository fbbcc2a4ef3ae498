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
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};
use support::blobs::{TAR, digest};
use support::facts::{self, Tree};
use support::stack;
use support::tar::{self, Sample, archive, archive_of};
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
    let (mut names, seeds) = (0, 1..=6);
    for seed in seeds.clone() {
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
        names += compare(&pulls, &format!("seed {seed}"), &layers, &[]);
    }
    assert!(names > 50 * seeds.count(), "{names}");
}

/// Everything that the format permits and few archives have, in 12 layers.
fn oddities() -> Vec<(Vec<u8>, Packing)> {
    let file = |name: &str| Sample::file(name, name);
    let dir = |name: &str| Sample::dir(name);
    let renamed = |kind: u8, name: &str, sample: Sample| {
        let long = [name.as_bytes(), b"\0"].concat();
        [tar::extension(kind, &long), sample.bytes()].concat()
    };
    let with_records = |records: &[(&str, &str)], sample: Sample| {
        let records = records.iter();
        let records = records.map(|(key, value)| tar::record(key.as_bytes(), value.as_bytes()));
        [
            tar::pax(&records.collect::<Vec<_>>().concat()),
            sample.bytes(),
        ]
        .concat()
    };
    let deep = ["n".repeat(255), "m".repeat(255), "o".repeat(255)].join("/");
    let base = archive(&[
        dir("./").mode(0o751).owner(1, 2),
        dir("d").mode(0o2750).owner(7, 8),
        file("d/a"),
        Sample::hard_link("d/b", "d/a"),
        Sample::hard_link("d/c", "d/b"),
        Sample::symlink("d/link", "a"),
        Sample::hard_link("d/link-too", "d/link"),
        Sample::new(b'6', "d/fifo"),
        Sample::hard_link("d/fifo-too", "d/fifo"),
        Sample {
            device: (259, 1_048_575),
            ..Sample::new(b'4', "d/block")
        },
        Sample::hard_link("d/block-too", "d/block"),
        Sample::file(b"d/\xff\xfe not utf-8", "bytes"),
        Sample::file("d/line\nbreak\ttab ", "text"),
        file("d/ begins with a space"),
        file("d/-rf"),
        file("d/*"),
        file("d/.wh"),
        file("d/a.wh.b"),
        dir("lower"),
        file("lower/x"),
        Sample::symlink("lib", "lower"),
        Sample::symlink("loop", "loop"),
        Sample::symlink("up", "../../.."),
    ]);
    let spelled = archive(&[
        file("./d/./dotted"),
        file("/d/absolute"),
        file("d//doubled"),
        file("d/../climbs-and-stays"),
        Sample::new(b'0', "d/old-directory/"),
        file("lib/through"),
        file("up/out"),
        dir("lower//").mode(0o700),
    ]);
    let headers = archive_of(&[
        file("v7").patched(156, b"\0"),
        Sample::file("base-256", "12345").patched(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x05"),
        file("owner-256").patched(108, b"\x80\0\0\0\x01\0\0\0"),
        file("padded").patched(100, b" 0640 \0"),
        Sample::hard_link("size-of-link", "v7").patched(124, b"00000000777\0"),
        dir("size-of-directory").patched(124, b"00000000777\0"),
        file("prefixed").patched(345, b"some/where"),
        renamed(b'L', &deep, file("short")),
        renamed(b'K', &"t".repeat(2000), Sample::symlink("long-link", "t")),
        with_records(&[("path", "from/pax")], file("short")),
        with_records(&[("mtime", "1000000000.750000001")], file("fraction")),
        with_records(&[("size", "3")], Sample::file("pax-size", "abc")),
        with_records(
            &[("uid", "4000000000"), ("gid", "3000000000")],
            file("owners"),
        ),
        with_records(
            &[("comment", "nothing"), ("VENDOR.x", "y")],
            file("comments"),
        ),
        with_records(&[("path", "last/one"), ("path", "wins")], file("short")),
    ]);
    let modes = archive(&[
        file("none").mode(0),
        file("all").mode(0o7777),
        dir("all-of-them").mode(0o7777),
        Sample::file("block", [7; 512]),
        Sample::file("one", "1"),
        Sample::file("zeroes", vec![0; 1_000_000]),
        Sample::file("big", image::noise(1, 3_000_001)),
        file("attributes")
            .xattr("user.a", b"1")
            .xattr("user.b", &[0, 255]),
        dir("d").mode(0o700).xattr("user.of-directory", b"x"),
        file("capable").xattr(
            "security.capability",
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
    ]);
    let changes = archive(&[
        file("d/.wh.a"),
        Sample::hard_link("d/e", "d/b"),
        Sample::file(b"d/.wh.\xff\xfe not utf-8", ""),
        file("d/.wh.fifo"),
        Sample::symlink("lower", "d"),
        file("lib/lands-in-d"),
        file(".wh.never-was"),
        dir("v7"),
        file("all-of-them"),
        file("twice"),
        Sample::file("twice", "the last one wins").mode(0o600),
    ]);
    let mut layers = vec![
        (base, Packing::Gzip),
        (spelled, Packing::Zstd),
        (headers, Packing::Plain),
        (modes, Packing::ZstdFrames),
        (changes, Packing::GzipMembers),
        // Nothing at all, and what tar pads with.
        (archive(&[]), Packing::Gzip),
        (
            [archive(&[file("padded-archive")]), vec![0; 8192]].concat(),
            Packing::Plain,
        ),
    ];
    for (number, format) in [
        "gnu",
        "posix --sparse-version=0.0",
        "posix --sparse-version=0.1",
        "posix --sparse-version=1.0",
        "oldgnu",
    ]
    .into_iter()
    .enumerate()
    {
        let packing = [Packing::Gzip, Packing::Zstd][number % 2];
        layers.push((sparse_archive(number, format), packing));
    }
    layers
}

/// GNU tar's archive of sparse files and long names.
fn sparse_archive(number: usize, format: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let below = directory
        .path()
        .join(format!("sparse-{number}/{}", "long".repeat(40)));
    std::fs::create_dir_all(&below).unwrap();
    for (name, parts) in [("some", 3u64), ("many", 40), ("none", 0)] {
        let file = std::fs::File::create(below.join(name)).unwrap();
        for part in 0..parts {
            file.write_all_at(b"data", part * 50_000 + 4096).unwrap();
        }
        file.set_len(parts * 50_000 + 123_456).unwrap();
    }
    let at = directory.path().to_str().unwrap();
    let format: Vec<String> = format.split(' ').map(str::to_owned).collect();
    let first = format!("--format={}", format[0]);
    let mut arguments = vec!["-C", at, "-c", "--mtime=@1000000000", &first];
    // umoci refuses sparse files of GNU's own kind; tests/archives.rs reads them.
    arguments.extend((format[0] == "posix").then_some("--sparse"));
    arguments.extend(format[1..].iter().map(String::as_str));
    arguments.push(".");
    run("tar", &arguments).stdout
}

#[test]
fn privileged_umoci_agrees_on_oddities() {
    let pulls = Pulls::start();
    // Policy: nothing in a container gains a capability by a file.
    let names = compare(&pulls, "oddities", &oddities(), &["capable"]);
    assert!(names > 80, "{names}");
}

/// umoci refuses such archives, or keeps times that squashfs has no room for.
#[test]
fn privileged_what_umoci_cannot_do_is_pulled() {
    let mut contiguous = Sample::file("contiguous", "contiguous").header();
    contiguous[156] = b'7';
    tar::checksum(&mut contiguous);
    let mut contiguous = [&contiguous[..], b"contiguous"].concat();
    tar::pad(&mut contiguous);
    let dated = |name: &str, time: &str| {
        let records = tar::record(b"mtime", time.as_bytes());
        [tar::pax(&records), Sample::file(name, "").bytes()].concat()
    };
    let layer = archive_of(&[
        contiguous,
        dated("old", "-86400"),
        dated("far", "8589934592"),
        Sample::new(b'3', "overlay").bytes(),
        Sample::file("d/x", "")
            .xattr("trusted.overlay.opaque", b"y")
            .bytes(),
    ]);
    let directory = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(directory.path().join("sparse")).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.set_len(3 << 20).unwrap();
    let at = directory.path().to_str().unwrap();
    let sparse = run("tar", &["-C", at, "-cS", "--format=oldgnu", "sparse"]).stdout;
    let layers = [(layer, Packing::Gzip), (sparse, Packing::Gzip)];
    let tree = Pulls::start().tree("refused", &layers);

    let mut content = vec![0; 3 << 20];
    content[1 << 20..][..4].copy_from_slice(b"data");
    assert_eq!(tree["sparse"].what, facts::file(&content));
    assert_eq!(tree["contiguous"].what, facts::file(b"contiguous"));
    assert_eq!(tree["old"].mtime, 0);
    assert_eq!(tree["far"].mtime, i64::from(u32::MAX));
    // On a node either would hide files of the image.
    assert!(!tree.contains_key("overlay"), "{:?}", tree.keys());
    assert!(tree["d/x"].xattrs.is_empty());
}
