//! Archives from the sample writer, read back; hostile ones refused.

use super::samples::{self, Sample, archive, archive_of, extension, gzip, pax, record, zstd};
use super::*;
use sha2::{Digest, Sha256};
use std::io::{self, Cursor, Read};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

pub(super) type Listing = Vec<(Entry, Vec<u8>)>;

pub(super) fn read_with(
    blob: &[u8],
    kind: &str,
    limits: &Limits,
) -> Result<(Listing, String), LayerError> {
    let blob = Cursor::new(blob.to_vec());
    let mut reader = LayerReader::open(blob, kind, true, &Budget::new(limits))?;
    let mut listing = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut body = Vec::new();
        while let Some(chunk) = reader.next_chunk()? {
            match chunk {
                Chunk::Data(bytes) => body.extend_from_slice(bytes),
                Chunk::Hole(length) => body.resize(body.len() + length as usize, 0),
            }
        }
        listing.push((entry, body));
    }
    Ok((listing, reader.finish()?.diff_id.unwrap()))
}

pub(super) fn read(blob: &[u8]) -> Result<Listing, LayerError> {
    read_with(blob, "", &Limits::default()).map(|(listing, _)| listing)
}

pub(super) fn paths(blob: &[u8]) -> Vec<String> {
    let listing = read(blob).unwrap();
    listing
        .iter()
        .map(|(e, _)| String::from_utf8_lossy(&e.path).into_owned())
        .collect()
}

#[test]
fn every_kind_of_entry() {
    let long = [b"d/".repeat(60), vec![0xff; 200]].concat();
    let target = vec![b't'; 303];
    let device = |kind, name| Sample {
        device: (4095, 1_048_575),
        ..Sample::new(kind, name)
    };
    let blob = archive(&[
        Sample::dir("./").mode(0o1777),
        Sample::file("./a", "hello")
            .mode(0o4750)
            .owner(4_000_000_000, 12),
        Sample::file(&long, vec![7; 1000]),
        Sample::symlink("s", &target),
        Sample::hard_link("h", "/a"),
        device(b'3', "c"),
        device(b'4', "b"),
        Sample::new(b'6', "p"),
        Sample::new(0, "old/"),
        Sample::file("x", "")
            .xattr("user.empty", b"")
            .xattr("user.text", b"a=\n\0"),
        Sample::new(b'7', "contiguous"),
    ]);
    let listing = read(&blob).unwrap();
    let kinds: Vec<_> = listing
        .iter()
        .map(|(e, _)| (&e.path[..], e.kind.clone()))
        .collect();
    let (major, minor) = (4095, 1_048_575);
    let want = [
        (&b""[..], EntryKind::Directory),
        (b"a", EntryKind::File { size: 5 }),
        (&long, EntryKind::File { size: 1000 }),
        (b"s", EntryKind::Symlink(target)),
        (b"h", EntryKind::HardLink(b"a".to_vec())),
        (b"c", EntryKind::CharDevice { major, minor }),
        (b"b", EntryKind::BlockDevice { major, minor }),
        (b"p", EntryKind::Fifo),
        (b"old", EntryKind::Directory),
        (b"x", EntryKind::File { size: 0 }),
        (b"contiguous", EntryKind::File { size: 0 }),
    ];
    assert_eq!(kinds, want);
    let (a, body) = &listing[1];
    assert_eq!(body, b"hello");
    let metadata = &a.metadata;
    assert_eq!(
        (metadata.mode, metadata.uid, metadata.gid),
        (0o4750, 4_000_000_000, 12)
    );
    assert_eq!(metadata.mtime, 1_000_000_000);
    assert_eq!(
        listing[9].0.metadata.xattrs[1],
        (b"user.text".to_vec(), b"a=\n\0".to_vec())
    );
    assert_eq!(listing[9].0.metadata.xattrs[0].1, b"");
}

#[test]
fn compression_is_found_and_must_be_what_was_promised() {
    let plain = archive(&[Sample::file("a", vec![1; 700_000])]);
    let two = [gzip(&plain[..1000]), gzip(&plain[1000..])].concat();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9][..], &zstd(&plain)].concat();
    let hex = Sha256::digest(&plain)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<String>();
    for (blob, good) in [
        (&plain, TAR),
        (&gzip(&plain), GZIP),
        (&two, GZIP),
        (&zstd(&plain), ZSTD),
        (&skippable, ZSTD),
    ] {
        for kind in [TAR, GZIP, ZSTD, ""] {
            let result = read_with(blob, kind, &Limits::default());
            if kind == good || kind.is_empty() {
                let (listing, diff_id) = result.unwrap();
                assert_eq!(listing[0].1.len(), 700_000);
                assert_eq!(diff_id, format!("sha256:{hex}"));
            } else {
                assert!(
                    matches!(result, Err(LayerError::MediaType { .. })),
                    "{kind} for {good}"
                );
            }
        }
        for unknown in [
            "text/plain",
            "application/vnd.oci.image.layer.v1.tar+encrypted",
        ] {
            let result = read_with(blob, unknown, &Limits::default());
            assert!(matches!(result, Err(LayerError::UnknownMediaType { .. })));
        }
    }
    assert_eq!(read(b"").unwrap(), []);
}

#[test]
fn what_follows_the_archive_is_hashed_too() {
    let mut blob = archive(&[Sample::file("a", "x")]);
    blob.extend_from_slice(&[9; 5000]);
    let hex = Sha256::digest(&blob)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<String>();
    let (listing, diff_id) = read_with(&blob, "", &Limits::default()).unwrap();
    assert_eq!((listing.len(), diff_id), (1, format!("sha256:{hex}")));
}

#[test]
fn truncated_blobs_are_known_as_such() {
    let plain = archive(&[
        Sample::file("a", vec![3; 5000]),
        Sample::file("b", vec![4; 5000]),
    ]);
    for (blob, name) in [(gzip(&plain), "gzip"), (zstd(&plain), "zstd")] {
        for cut in [5, 12, blob.len() / 2, blob.len() - 5, blob.len() - 1] {
            let result = read(&blob[..cut]);
            assert!(
                matches!(result, Err(LayerError::Truncated)),
                "{name} {cut}: {result:?}"
            );
        }
    }
    for cut in [100, 512, 600, 5000, 6000, 7000] {
        let result = read(&plain[..cut]);
        assert!(
            matches!(result, Err(LayerError::Truncated)),
            "{cut}: {result:?}"
        );
    }
    let damaged = {
        let mut blob = gzip(&plain);
        let middle = blob.len() / 2;
        blob[middle] ^= 0x55;
        blob
    };
    assert!(read(&damaged).is_err());
    let garbage = [gzip(&plain), b"garbage".to_vec()].concat();
    assert!(read(&garbage).is_err());
}

#[test]
fn the_end_may_be_shorter_than_the_format_says() {
    let whole = archive(&[Sample::file("a", "abc")]);
    // Both end markers, one, none, and the last block not filled up.
    for length in [2048, 1536, 1024, 515] {
        let listing = read(&whole[..length]).unwrap();
        assert_eq!(
            (listing.len(), &listing[0].1[..]),
            (1, &b"abc"[..]),
            "{length}"
        );
    }
}

struct Failing;

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("disk on fire"))
    }
}

#[test]
fn errors_of_the_blob_itself_are_told_apart() {
    let head = gzip(&archive(&[Sample::file("a", "x")]))[..20].to_vec();
    let blob = Cursor::new(head).chain(Failing);
    let budget = Budget::new(&Limits::default());
    let opened = LayerReader::open(blob, "", true, &budget);
    let error = opened
        .and_then(|mut reader| reader.next_entry())
        .unwrap_err();
    assert!(matches!(error, LayerError::Read { .. }), "{error:?}");
}

#[test]
fn headers_override_each_other_as_in_go() {
    let header = |name: &str| Sample::file(name, "body").bytes();
    let long = |text: &str| extension(b'L', format!("{text}\0").as_bytes());
    let path = |text: &str| pax(&record(b"path", text.as_bytes()));
    let global = extension(b'g', &record(b"path", b"global"));
    for (parts, want) in [
        (vec![path("pax"), header("own")], "pax"),
        (vec![long("gnu"), path("pax"), header("own")], "gnu"),
        (vec![path("one"), path("two"), header("own")], "two"),
        (vec![long("one"), long("two"), header("own")], "two"),
        (vec![global, header("own")], "own"),
        (vec![path(""), header("own")], "own"),
    ] {
        assert_eq!(paths(&archive_of(&parts)), [want]);
    }
    // Only the next entry is meant.
    assert_eq!(
        paths(&archive_of(&[path("pax"), header("a"), header("b")])),
        ["pax", "b"]
    );
    // The size in the pax header counts, for the contents and for finding the next header.
    let bytes = Sample::file("a", vec![b'x'; 600]).bytes();
    let mut small: [u8; 512] = bytes[..512].try_into().unwrap();
    small[124..135].copy_from_slice(b"00000000000");
    samples::checksum(&mut small);
    let smuggled = archive_of(&[
        pax(&record(b"size", b"600")),
        small.to_vec(),
        bytes[512..].to_vec(),
        header("b"),
    ]);
    let listing = read(&smuggled).unwrap();
    assert_eq!((listing[0].1.len(), listing.len()), (600, 2));
    // Links and directories have no contents, whatever they say.
    let mut link = Sample::hard_link("l", "a").header();
    link[124..135].copy_from_slice(b"00000001000");
    samples::checksum(&mut link);
    assert_eq!(
        paths(&archive_of(&[link.to_vec(), header("b")])),
        ["l", "b"]
    );
}

#[test]
fn sparse_files_of_every_kind() {
    let want = {
        let mut want = vec![0; 100_000];
        want[1000..1600].fill(b'x');
        want[99_000..99_100].fill(b'y');
        want
    };
    let data = [vec![b'x'; 600], vec![b'y'; 100]].concat();
    let file = |body: &[u8]| Sample::file("GNUSparseFile.1/f", body).bytes();
    let rec = |pairs: &[(&str, &str)]| -> Vec<u8> {
        pax(&pairs
            .iter()
            .flat_map(|(k, v)| record(k.as_bytes(), v.as_bytes()))
            .collect::<Vec<_>>())
    };
    let v00 = archive_of(&[
        rec(&[
            ("GNU.sparse.size", "100000"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.offset", "1000"),
            ("GNU.sparse.numbytes", "600"),
            ("GNU.sparse.offset", "99000"),
            ("GNU.sparse.numbytes", "100"),
            ("path", "f"),
        ]),
        file(&data),
    ]);
    let v01 = archive_of(&[
        rec(&[
            ("GNU.sparse.size", "100000"),
            ("GNU.sparse.map", "1000,600,99000,100"),
            ("GNU.sparse.name", "f"),
        ]),
        file(&data),
    ]);
    let map = {
        let mut map = b"2\n1000\n600\n99000\n100\n".to_vec();
        samples::pad(&mut map);
        map
    };
    let v10 = archive_of(&[
        rec(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "f"),
            ("GNU.sparse.realsize", "100000"),
        ]),
        file(&[map, data.clone()].concat()),
    ]);
    let old = |pairs: &[(u64, u64)]| {
        let mut header = Sample {
            body: data.clone(),
            ..Sample::new(b'S', "f")
        }
        .header();
        header[257..265].copy_from_slice(b"ustar  \0");
        header[483..494].copy_from_slice(b"00000303240");
        let text = |(offset, length): &(u64, u64)| format!("{offset:011o}\0{length:011o}\0");
        let mut blocks = Vec::new();
        for (slot, pair) in header[386..482].chunks_mut(24).zip(pairs) {
            slot.copy_from_slice(text(pair).as_bytes());
        }
        for more in pairs.get(4..).unwrap_or_default().chunks(21) {
            let mut block = more.iter().map(text).collect::<String>().into_bytes();
            block.resize(512, 0);
            blocks.push(block);
        }
        header[482] = u8::from(!blocks.is_empty());
        let last = blocks.len();
        for (at, block) in blocks.iter_mut().enumerate() {
            block[504] = u8::from(at + 1 < last);
        }
        samples::checksum(&mut header);
        let mut body = data.clone();
        samples::pad(&mut body);
        archive_of(&[header.to_vec(), blocks.concat(), body])
    };
    let few = old(&[(1000, 600), (99_000, 100)]);
    let tiny: Vec<(u64, u64)> = (0..60).map(|n| (1000 + n * 10, 10)).collect();
    let many = old(&[&tiny[..], &[(99_000, 100)]].concat());
    for (blob, name) in [
        (v00, "0.0"),
        (v01, "0.1"),
        (v10, "1.0"),
        (few, "old"),
        (many, "old+"),
    ] {
        let blob = [
            &blob[..blob.len() - 1024],
            &archive(&[Sample::file("next", "n")]),
        ]
        .concat();
        let listing = read(&blob).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(listing[0].0.path, b"f", "{name}");
        assert_eq!(
            listing[0].0.kind,
            EntryKind::File { size: 100_000 },
            "{name}"
        );
        assert!(listing[0].1 == want, "{name}: contents differ");
        assert_eq!(listing[1].0.path, b"next", "{name}");
    }
}

#[test]
fn contents_need_not_be_read() {
    let blob = archive(&[Sample::file("a", vec![1; 10_000]), Sample::file("b", "end")]);
    let budget = Budget::new(&Limits::default());
    let mut reader = LayerReader::open(Cursor::new(blob), "", false, &budget).unwrap();
    reader.next_entry().unwrap();
    reader.next_chunk().unwrap();
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"b");
    assert_eq!(reader.next_chunk().unwrap(), Some(Chunk::Data(b"end")));
    assert_eq!(reader.next_chunk().unwrap(), None);
    assert_eq!(reader.finish().unwrap().diff_id, None);
}

/// Counts what is read.
struct Counted(
    Cursor<Vec<u8>>,
    std::sync::Arc<std::sync::atomic::AtomicUsize>,
);

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(out)?;
        self.1
            .fetch_add(count, std::sync::atomic::Ordering::Relaxed);
        Ok(count)
    }
}

#[test]
fn a_layer_with_a_large_window_waits_for_those_before_it() {
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(1_000_000)
    .collect();
    let plain = archive(&[Sample::file("noise", noise.clone())]);
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(24).unwrap();
    io::Write::write_all(&mut encoder, &plain).unwrap();
    let large = encoder.finish().unwrap();
    assert!(large.len() > 900_000);

    let budget = Budget::new(&Limits::default());
    let count = std::sync::Arc::default();
    let mut first = LayerReader::open(Cursor::new(zstd(&plain)), ZSTD, true, &budget).unwrap();
    let blob = Counted(Cursor::new(large.clone()), std::sync::Arc::clone(&count));
    let mut second = LayerReader::open(blob, ZSTD, true, &budget).unwrap();
    let read = |reader: &mut LayerReader| {
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"noise");
        let mut body = Vec::new();
        while let Some(Chunk::Data(bytes)) = reader.next_chunk().unwrap() {
            body.extend_from_slice(bytes);
        }
        assert!(body == noise);
    };
    read(&mut first);
    // Its header, with what is read at once, and nothing more.
    let so_far = count.load(std::sync::atomic::Ordering::Relaxed);
    assert!(so_far <= 256 * 1024, "{so_far}");
    first.finish().unwrap();
    read(&mut second);
    second.finish().unwrap();
    assert_eq!(
        count.load(std::sync::atomic::Ordering::Relaxed),
        large.len()
    );
}
