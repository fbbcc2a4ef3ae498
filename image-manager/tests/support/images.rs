//! Images of the writer in files, and what both of its formats are tried with.

use squashfs_writer::{Attributes, Kind, Options, Summary, Tree, Writer};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::trees::{Piece, Plan, What, write};

/// Puts an image into a file.
pub fn save(image: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    file
}

pub fn mode(mode: u16) -> Attributes {
    Attributes {
        mode,
        ..Attributes::default()
    }
}

/// Builds an image in a file.
pub fn image_file(
    options: &Options,
    build: impl FnOnce(&mut Writer<&mut File>, &mut Tree),
) -> (tempfile::NamedTempFile, Summary) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = Writer::new(file.as_file_mut(), options).unwrap();
    let mut tree = Tree::new(mode(0o755)).unwrap();
    build(&mut writer, &mut tree);
    let (_, summary) = writer.finish(&tree).unwrap();
    (file, summary)
}

/// Adds a file of bytes, each followed by a hole.
pub fn add(writer: &mut Writer<&mut File>, tree: &mut Tree, name: &str, parts: &[(&[u8], u64)]) {
    let mut file = writer.start_file();
    for (bytes, hole) in parts {
        file.append(bytes).unwrap();
        file.append_hole(*hole).unwrap();
    }
    let data = file.finish().unwrap();
    let inode = tree.add_inode(Kind::File(data), mode(0o644)).unwrap();
    tree.link(Tree::ROOT, name.as_bytes(), inode).unwrap();
}

/// Directories and files of all lengths; the newest is of the time 199.
pub fn mixed() -> Vec<Plan> {
    let plan = |n: usize| Plan {
        parent: n,
        name: format!("n{n}").into_bytes(),
        what: match n % 5 {
            0 => What::Dir,
            n => What::File(vec![Piece::Noise(n as u8, 1000 * n), Piece::Text(65, 5000)]),
        },
        attributes: Attributes {
            uid: n as u32,
            mtime: n as u32,
            ..Attributes::default()
        },
    };
    (0..200).map(plan).collect()
}

/// Insists that the number of threads makes no difference; returns the image.
pub fn same_with_any_threads(plans: &[Plan], options: &Options) -> Vec<u8> {
    let make = |threads| {
        let options = Options {
            threads,
            ..options.clone()
        };
        write(plans, &options).0
    };
    let image = make(0);
    for threads in [1, 2, 7] {
        assert!(make(threads) == image, "{threads}");
    }
    image
}

/// Adds a directory of 60,000 files, some of which have a second name.
pub fn large_directory(writer: &mut Writer<&mut File>, tree: &mut Tree) {
    let parent = tree
        .add_directory(Tree::ROOT, b"large", mode(0o755))
        .unwrap();
    for n in 0..60_000u32 {
        let mut file = writer.start_file();
        file.append(n.to_string().as_bytes()).unwrap();
        let data = file.finish().unwrap();
        let inode = tree.add_inode(Kind::File(data), mode(0o644)).unwrap();
        tree.link(parent, format!("file-{n}").as_bytes(), inode)
            .unwrap();
        if n % 1000 == 0 {
            // Inode numbers far away from their neighbours in this directory.
            tree.link(Tree::ROOT, format!("far-{n}").as_bytes(), inode)
                .unwrap();
        }
    }
}

/// Insists that the directory is there, in an image that is mounted.
pub fn assert_large_directory(at: &Path) {
    assert_eq!(std::fs::read_dir(at.join("large")).unwrap().count(), 60_000);
    for n in (0..60_000).step_by(7) {
        let path = at.join(format!("large/file-{n}"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), n.to_string());
    }
    assert!(!at.join("large/file-60000").exists());
    let links = |path: &str| std::fs::metadata(at.join(path)).unwrap().nlink();
    assert_eq!((links(""), links("large"), links("far-1000")), (3, 2, 2));
    let far = std::fs::read_to_string(at.join("far-59000")).unwrap();
    assert_eq!(far, "59000");
}
