//! Images beyond 4 GiB, made with a gap that takes no space.

use super::*;
use std::io::Write;
use std::process::Command;

#[test]
fn images_may_be_larger_than_4_gib() {
    let mut out = tempfile::NamedTempFile::new().unwrap();
    let options = Options {
        block_size: 4096,
        threads: 2,
        share_equal: false,
        ..Options::default()
    };
    let mut writer = Writer::new(out.as_file_mut(), &options).unwrap();
    let text: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
    let mut tree = Tree::new(Attributes {
        mode: 0o755,
        ..Attributes::default()
    })
    .unwrap();
    for (name, gap) in [("low", 0), ("high", 5 << 30), ("higher", 1 << 40)] {
        writer.leave_gap(gap).unwrap();
        let mut file = writer.start_file();
        file.write_all(&text).unwrap();
        let data = file.finish().unwrap();
        let attributes = Attributes {
            mode: 0o644,
            ..Attributes::default()
        };
        let inode = tree.add_inode(Kind::File(data), attributes).unwrap();
        tree.link(Tree::ROOT, name.as_bytes(), inode).unwrap();
    }
    let (_, summary) = writer.finish(&tree).unwrap();
    assert!(summary.bytes > 1 << 40);
    for name in ["low", "high", "higher"] {
        let mut unsquashfs = Command::new("unsquashfs");
        let output = unsquashfs
            .arg("-cat")
            .arg(out.path())
            .arg(name)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.stdout == text, "{name} differs");
    }
}

/// Bytes that no compressor makes smaller, other ones for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// An image with these files, by their numbers.
fn image_of(files: &[Vec<u8>], options: &Options) -> tempfile::NamedTempFile {
    let mut out = tempfile::NamedTempFile::new().unwrap();
    let mut writer = Writer::new(out.as_file_mut(), options).unwrap();
    let mut tree = Tree::new(Attributes::default()).unwrap();
    for (number, content) in files.iter().enumerate() {
        let mut file = writer.start_file();
        file.append(content).unwrap();
        let kind = Kind::File(file.finish().unwrap());
        let inode = tree.add_inode(kind, Attributes::default()).unwrap();
        let name = number.to_string();
        tree.link(Tree::ROOT, name.as_bytes(), inode).unwrap();
    }
    writer.finish(&tree).unwrap();
    out
}

fn read_back(image: &std::path::Path, name: usize) -> Vec<u8> {
    let mut unsquashfs = Command::new("unsquashfs");
    let unsquashfs = unsquashfs.arg("-cat").arg(image).arg(name.to_string());
    let output = unsquashfs.output().unwrap();
    assert!(output.status.success());
    output.stdout
}

const BLOCK: usize = 4096;

fn sharing(share_equal: bool) -> Options {
    Options {
        block_size: BLOCK as u32,
        threads: 3,
        share_equal,
        ..Options::default()
    }
}

#[test]
fn equal_files_share_their_space() {
    let (large, other) = (noise(1, 100 * BLOCK + 700), noise(2, 3 * BLOCK));
    let small = noise(3, 1000);
    let files = [
        large.clone(),
        small.clone(),
        other.clone(),
        large.clone(),
        small.clone(),
        large[..50 * BLOCK].to_vec(), // the start of another is there, too
        large.clone(),
    ];
    let (shared, apart) = (
        image_of(&files, &sharing(true)),
        image_of(&files, &sharing(false)),
    );
    let size = |image: &tempfile::NamedTempFile| image.as_file().metadata().unwrap().len();
    let once = (large.len() + small.len() + other.len()) as u64;
    assert!(
        (once..once + 8192).contains(&size(&shared)),
        "{}",
        size(&shared)
    );
    assert!(size(&apart) > once + (250 * BLOCK) as u64);
    for image in [shared, apart] {
        for (number, content) in files.iter().enumerate() {
            assert!(read_back(image.path(), number) == *content, "{number}");
        }
    }
}

#[test]
fn files_that_part_after_an_equal_start_are_complete() {
    let start = noise(1, 600 * BLOCK);
    let tail = noise(2, 2 * BLOCK + 5);
    let mut files = vec![start.clone()];
    // They part at each kind of place: in the first block, at its end, in the last one, after it,
    // and after more than is copied at once.
    for at in [
        10,
        BLOCK,
        BLOCK + 1,
        599 * BLOCK,
        600 * BLOCK - 1,
        600 * BLOCK,
    ] {
        files.push([&start[..at], &tail].concat());
        files.push([&start[..at], &vec![0; 2 * BLOCK], &tail].concat());
    }
    for pack_tails in [false, true] {
        let options = Options {
            pack_tails,
            ..sharing(true)
        };
        let image = image_of(&files, &options);
        for (number, content) in files.iter().enumerate() {
            assert!(read_back(image.path(), number) == *content, "{number}");
        }
        let again = image_of(
            &files,
            &Options {
                threads: 0,
                ..options
            },
        );
        let bytes = |image: tempfile::NamedTempFile| std::fs::read(image.path()).unwrap();
        assert!(bytes(image) == bytes(again));
    }
}

#[test]
fn the_export_table_leads_to_each_inode_by_its_number() {
    let options = Options {
        compression: Compression::None,
        export: true,
        ..Options::default()
    };
    let files: Vec<_> = (0..2000).map(|n| noise(n, 10)).collect();
    let image = std::fs::read(image_of(&files, &options).path()).unwrap();
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap()) as usize;
    let (inode_table, export_table) = (word(64), word(88));
    let count = u32::from_le_bytes(image[4..8].try_into().unwrap()) as usize;
    assert_eq!(count, 2001);
    for number in 1..=count {
        let (block, offset) = ((number - 1) / 1024, (number - 1) % 1024 * 8);
        let reference = word(word(export_table + block * 8) + 2 + offset);
        // Records cross blocks, but the number is near the start of one.
        let at = inode_table + (reference >> 16) + 2 + (reference & 0xffff) + 12;
        let is_split = (reference & 0xffff) + 16 > 8192;
        let found = u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
        assert!(is_split || found == number, "{number}: {found}");
    }
}
