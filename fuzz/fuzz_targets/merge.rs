//! Merging layers: the merger against the slow and obvious model.

#![no_main]

use image_manager::layer::{Entry, EntryKind, Metadata};
use image_manager::merge::model::Model;
use image_manager::merge::{MergeOptions, Merger};
use libfuzzer_sys::fuzz_target;

/// Few names, so that they meet.
const NAMES: [&str; 6] = ["a", "b", "ab", "c", "..", ".wh.a"];

/// A path of one to four names; each takes a byte.
fn path(bytes: &mut impl Iterator<Item = u8>, names: usize) -> Option<Vec<u8>> {
    let count = bytes.next()? % 4 + 1;
    let mut path = Vec::new();
    for _ in 0..count {
        path.push(NAMES[usize::from(bytes.next()?) % names]);
    }
    Some(path.join("/").into_bytes())
}

fn entry(bytes: &mut impl Iterator<Item = u8>) -> Option<Entry> {
    let what = bytes.next()?;
    let mut path_of = |names| path(bytes, names);
    let mut at = path_of(4)?;
    let kind = match what % 16 {
        0..4 => EntryKind::Directory,
        4..7 => EntryKind::File { size: 1 },
        7..9 => {
            let target = path_of(5)?;
            let slash = if what & 0x40 == 0 { "" } else { "/" };
            EntryKind::Symlink([slash.as_bytes(), &target].concat())
        }
        9..11 => EntryKind::HardLink(path_of(4)?),
        11..13 => {
            let name = at
                .iter()
                .rposition(|byte| *byte == b'/')
                .map_or(0, |slash| slash + 1);
            at.splice(name..name, *b".wh.");
            EntryKind::File { size: 0 }
        }
        13 => {
            at.extend_from_slice(b"/.wh..wh..opq");
            EntryKind::File { size: 0 }
        }
        // Overlayfs's whiteout, which is ignored.
        14 => EntryKind::CharDevice { major: 0, minor: 0 },
        _ => {
            at = path_of(6).filter(|path| !path.windows(2).any(|pair| pair == b".."))?;
            EntryKind::File { size: 1 }
        }
    };
    let metadata = Metadata {
        mode: u16::from(what) * 2,
        ..Metadata::default()
    };
    Some(Entry {
        path: at,
        kind,
        metadata,
    })
}

fuzz_target!(|bytes: &[u8]| {
    let mut merger = Merger::new(MergeOptions::default());
    let mut model = Model::new();
    // More than the model is quick enough for would find nothing else.
    for (number, layer) in bytes.split(|byte| *byte == 0xff).take(5).enumerate() {
        let mut bytes = layer.iter().copied().take(200);
        let entries: Vec<Entry> = std::iter::from_fn(|| entry(&mut bytes)).collect();
        let expected = model.add_layer(number, &entries);
        let got = merger.add_layer(entries);
        // After an error both have stopped at the same entry: go on from there.
        assert_eq!(got.is_ok(), expected.is_ok(), "{got:?}");
    }
    assert_eq!(merger.finish().listing(), model.listing());
});
