//! Whole images, read back and compared with the model of the merge.

use super::*;
use crate::layer::samples::{Sample, archive, gzip};
use crate::layer::{Entry, Metadata};
use crate::merge::model::Model;
use crate::merge::tests::random_entry;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Gives a few bytes at a time, and takes its time for some.
struct Slow {
    bytes: Cursor<Vec<u8>>,
    step: usize,
    pause: Duration,
}

impl Read for Slow {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        std::thread::sleep(self.pause);
        let room = out.len().min(self.step);
        self.bytes.read(&mut out[..room])
    }
}

/// Builds an image and says how often each layer was opened.
fn build(
    blobs: &[Vec<u8>],
    threads: usize,
    pause: Duration,
) -> Result<(Vec<u8>, BuildReport, Vec<usize>), BuildError> {
    let opened: Vec<AtomicUsize> = blobs.iter().map(|_| AtomicUsize::new(0)).collect();
    let open = |at: usize| {
        let (blob, opened) = (&blobs[at], &opened[at]);
        move || -> io::Result<Box<dyn Read + Send>> {
            opened.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Slow {
                bytes: Cursor::new(blob.clone()),
                step: if pause.is_zero() {
                    usize::MAX
                } else {
                    1000 * (at + 1)
                },
                pause: pause * at as u32,
            }))
        }
    };
    let opens: Vec<_> = (0..blobs.len()).map(open).collect();
    let source = |open| LayerSource {
        media_type: String::new(),
        diff_id: None,
        open,
    };
    let sources: Vec<_> = opens.iter().map(|open| source(open as &Open<'_>)).collect();
    let mut options = BuildOptions::default();
    options.squashfs.threads = threads;
    options.squashfs.block_size = 4096;
    let mut out = tempfile::tempfile().unwrap();
    let report = build_image(&sources, &mut out, &options)?;
    let mut image = Vec::new();
    io::Seek::rewind(&mut out).unwrap();
    out.read_to_end(&mut image).unwrap();
    let opened = opened.into_iter().map(AtomicUsize::into_inner).collect();
    Ok((image, report, opened))
}

fn entries(tar: Vec<u8>) -> Vec<(Entry, Vec<u8>)> {
    let budget = Budget::new(&Limits::default());
    let mut reader = LayerReader::open(Cursor::new(tar), "", false, &budget).unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut contents = Vec::new();
        while let Some(chunk) = reader.next_chunk().unwrap() {
            match chunk {
                Chunk::Data(bytes) => contents.extend_from_slice(bytes),
                Chunk::Hole(length) => contents.resize(contents.len() + length as usize, 0),
            }
        }
        entries.push((entry, contents));
    }
    entries
}

/// Contents that say which entry they are of, some of them longer than a block, some empty.
fn contents(layer: usize, entry: usize) -> Vec<u8> {
    let name = format!("file {layer}:{entry}").into_bytes();
    let length = [0, name.len(), 4096, 9000][(layer * 3 + entry) % 4];
    name.into_iter()
        .chain(std::iter::repeat(b'.'))
        .take(length)
        .collect()
}

/// What a file's contents are shown as.
fn shown(contents: &[u8]) -> String {
    match contents.split(|&byte| byte == b'.').next() {
        None | Some(b"") => "file".to_owned(),
        Some(name) => String::from_utf8(name.to_vec()).unwrap(),
    }
}

/// An image in the words of the model; the root itself is not shown.
fn listing(image: &[u8]) -> BTreeMap<String, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    io::Write::write_all(&mut file, image).unwrap();
    let tar = std::process::Command::new("sqfs2tar")
        .arg(file.path())
        .output()
        .unwrap();
    assert!(
        tar.status.success(),
        "{}",
        String::from_utf8_lossy(&tar.stderr)
    );
    let path = |path: &[u8]| format!("/{}", String::from_utf8(path.to_vec()).unwrap());
    // For each path the path that stands for its inode, and what that is.
    let mut links = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    for (entry, contents) in entries(tar.stdout) {
        let what = match &entry.kind {
            EntryKind::HardLink(target) => {
                links.insert(path(&entry.path), path(target));
                continue;
            }
            EntryKind::File { .. } => shown(&contents),
            EntryKind::Directory => "dir".to_owned(),
            EntryKind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            other => panic!("{other:?}"),
        };
        let Metadata { mode, uid, .. } = entry.metadata;
        inodes.insert(path(&entry.path), format!("{what} {mode:o} {uid}"));
        links.insert(path(&entry.path), path(&entry.path));
    }
    let mut first = BTreeMap::new();
    for (path, inode) in &links {
        first.entry(inode).or_insert(path);
    }
    let line = |(path, inode)| {
        (
            String::clone(path),
            format!("{} ={}", inodes[inode], first[inode]),
        )
    };
    links.iter().map(line).collect()
}

/// The model's answer in the same words; nothing if the layers cannot be merged.
fn expected(layers: &[Vec<Sample>]) -> Option<BTreeMap<String, String>> {
    let mut model = Model::new();
    for (number, layer) in layers.iter().enumerate() {
        let list: Vec<_> = entries(archive(layer))
            .into_iter()
            .map(|(entry, _)| entry)
            .collect();
        model.add_layer(number, &list).ok()?;
    }
    let mut listing = model.listing();
    listing.remove("");
    for line in listing.values_mut() {
        if let Some(rest) = line.strip_prefix("file ") {
            let (source, rest) = rest.split_once(' ').unwrap();
            let (layer, entry) = source.split_once(':').unwrap();
            let contents = contents(layer.parse().unwrap(), entry.parse().unwrap());
            *line = format!("{} {rest}", shown(&contents));
        }
    }
    Some(listing)
}

fn check(mut layers: Vec<Vec<Sample>>) -> Result<(), TestCaseError> {
    for (number, layer) in layers.iter_mut().enumerate() {
        for (at, sample) in layer.iter_mut().enumerate() {
            if sample.kind == b'0' {
                sample.body = contents(number, at);
            }
        }
    }
    let blobs: Vec<_> = layers.iter().map(|layer| archive(layer)).collect();
    match (build(&blobs, 1, Duration::ZERO), expected(&layers)) {
        (Ok((image, report, opened)), Some(expected)) => {
            prop_assert_eq!(listing(&image), expected);
            for (at, count) in opened.into_iter().enumerate() {
                let is_read_again = report.read_again.contains(&(at + 1));
                prop_assert_eq!(count, 1 + usize::from(is_read_again));
            }
            let (other, other_report, _) = build(&blobs, 5, Duration::from_micros(20)).unwrap();
            prop_assert!(other == image, "other bytes");
            prop_assert_eq!(other_report, report);
        }
        (Err(BuildError::Merge { .. }), None) => {}
        (got, expected) => prop_assert!(false, "{:?}, not {:?}", got.map(|_| ()), expected),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_layers_become_what_the_model_says(
        layers in prop::collection::vec(prop::collection::vec(random_entry(), 0..8), 1..5),
    ) {
        check(layers)?;
    }
}

/// Layers in which some names stay as they are and others are hidden, with enough bytes to fill
/// buffers.
fn large_layers() -> Vec<Vec<u8>> {
    let noise = |seed: u32, length: u32| -> Vec<u8> {
        let word = |n: u32| {
            (n ^ seed)
                .wrapping_mul(2_654_435_761)
                .rotate_left(n % 31)
                .to_le_bytes()
        };
        (0..length / 4).flat_map(word).collect()
    };
    let layer = |number: u32| {
        let mut samples: Vec<Sample> = (0..200)
            .map(|n| Sample::file(format!("d/{number}/{n}"), noise(n + number, n * 97)))
            .collect();
        samples.push(Sample::file("shared", noise(number, 600_000)));
        samples.push(Sample::file(
            format!("large/{number}"),
            noise(number, 1_500_000),
        ));
        if number > 1 {
            samples.push(Sample::file(format!("d/.wh.{}", number - 2), ""));
        }
        gzip(&archive(&samples))
    };
    (0..6).map(layer).collect()
}

#[test]
fn bytes_do_not_depend_on_threads_or_on_when_layers_arrive() {
    let blobs = large_layers();
    let (image, report, opened) = build(&blobs, 1, Duration::ZERO).unwrap();
    assert_eq!((report.dead_bytes, opened), (0, vec![1; 6]));
    for (threads, pause) in [(2, 0), (16, 0), (2, 30), (16, 300)] {
        let (other, ..) = build(&blobs, threads, Duration::from_micros(pause)).unwrap();
        assert!(other == image, "{threads} threads, {pause} us");
    }
}

#[test]
fn hidden_bytes_are_not_in_the_image() {
    let blobs = large_layers();
    let (all, ..) = build(&blobs, 1, Duration::ZERO).unwrap();
    let (top, ..) = build(&blobs[5..], 1, Duration::ZERO).unwrap();
    let names = entries_of(&all);
    assert!(names.contains_key("d/5/1") && !names.contains_key("d/3/1"));
    // "shared" is there once, and the large files of all layers.
    let noise = (all.len() - top.len()) / 5;
    assert!(noise < 1_600_000 + 200 * 100 * 97, "{noise}");
}

#[test]
fn only_layers_with_bytes_taken_for_dead_are_read_again() {
    let body = |text: &str| text.repeat(1000);
    let lowest = [
        Sample::file("kept", body("k")),
        Sample::file("gone", body("g")),
        Sample::hard_link("other", "gone"),
    ];
    let middle = [Sample::file("new", body("n"))];
    let top = [Sample::file(".wh.gone", "")];
    let blobs = [archive(&lowest), archive(&middle), archive(&top)];
    let (image, report, opened) = build(&blobs, 1, Duration::ZERO).unwrap();
    assert_eq!(opened, [2, 1, 1]);
    assert_eq!((report.read_again, report.dead_bytes), (vec![1], 0));
    let contents = entries_of(&image);
    assert_eq!(contents["other"], body("g").as_bytes());
    assert!(!contents.contains_key("gone"));

    // A link from above says what it needs in time.
    let middle = [Sample::hard_link("other", "gone")];
    let blobs = [archive(&lowest[..2]), archive(&middle), archive(&top)];
    let (image, report, opened) = build(&blobs, 1, Duration::ZERO).unwrap();
    assert_eq!((opened, report.dead_bytes), (vec![1, 1, 1], 0));
    assert_eq!(entries_of(&image)["other"], body("g").as_bytes());
}

fn entries_of(image: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    io::Write::write_all(&mut file, image).unwrap();
    let tar = std::process::Command::new("sqfs2tar")
        .arg(file.path())
        .output()
        .unwrap();
    let name = |entry: Entry| String::from_utf8(entry.path).unwrap();
    entries(tar.stdout)
        .into_iter()
        .map(|(entry, contents)| (name(entry), contents))
        .collect()
}

#[test]
fn an_image_of_mostly_dead_bytes_is_written_again() {
    let noise = |seed: u32| -> Vec<u8> {
        let word = |n: u32| {
            (n + seed)
                .wrapping_mul(2_654_435_761)
                .rotate_left(n % 29)
                .to_le_bytes()
        };
        (0..300_000).flat_map(word).collect()
    };
    let samples: Vec<_> = (0..12).map(|n| Sample::file("again", noise(n))).collect();
    let blobs = [archive(&samples)];
    let (image, report, opened) = build(&blobs, 2, Duration::ZERO).unwrap();
    assert_eq!((opened, report.dead_bytes), (vec![2], 0));
    assert!(image.len() < 2_000_000, "{}", image.len());
    assert!(entries_of(&image)["again"] == noise(11));

    // A few are not worth it.
    let blobs = [archive(&samples[..3])];
    let (_, report, opened) = build(&blobs, 2, Duration::ZERO).unwrap();
    assert_eq!((opened, report.dead_bytes), (vec![1], 2_400_000));
}

#[test]
fn a_request_to_stop_ends_waiting() {
    struct Never;
    impl Read for Never {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            loop {
                std::thread::park();
            }
        }
    }
    let options = BuildOptions::default();
    let cancel = options.cancel.clone();
    let source = LayerSource {
        media_type: String::new(),
        diff_id: None,
        open: &|| Ok(Box::new(Never)),
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            cancel.cancel();
        });
        let mut out = tempfile::tempfile().unwrap();
        let error = build_image(&[source], &mut out, &options).unwrap_err();
        assert!(matches!(error, BuildError::Cancelled(_)), "{error:?}");
    });
}

/// A source that says something else when it is read again is found out.
#[test]
fn a_layer_that_changes_is_refused() {
    let tars = ["a", "b"].map(|text| {
        let body = text.repeat(100);
        archive(&[
            Sample::file("gone", body),
            Sample::hard_link("kept", "gone"),
        ])
    });
    let turn = AtomicUsize::new(0);
    let changing = || -> io::Result<Box<dyn Read + Send>> {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Cursor::new(tars[turn].clone())))
    };
    let top = archive(&[Sample::file(".wh.gone", "")]);
    let top = || -> io::Result<Box<dyn Read + Send>> { Ok(Box::new(Cursor::new(top.clone()))) };
    let source = |open| LayerSource {
        media_type: String::new(),
        diff_id: None,
        open,
    };
    let sources = [source(&changing as &Open<'_>), source(&top)];
    let mut out = tempfile::tempfile().unwrap();
    let error = build_image(&sources, &mut out, &BuildOptions::default()).unwrap_err();
    assert!(
        matches!(error, BuildError::Changed { layer: 1 }),
        "{error:?}"
    );
}
