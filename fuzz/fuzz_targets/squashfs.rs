//! Any tree that the writer accepts is read back as it was by a reader that is not ours, and is the
//! same image whatever the number of threads.
#![no_main]

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt;

use backhand::{FilesystemReader, InnerNode};
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use squashfs_writer::{Attributes, Compression, Format, Kind, Options, Tree, Writer};

#[derive(Arbitrary, Debug)]
enum Piece {
    Bytes(Vec<u8>),
    Repeated { byte: u8, length: u16 },
    Counted { seed: u8, length: u16 },
    Hole(u16),
}

#[derive(Arbitrary, Debug)]
enum What {
    Directory,
    File(Vec<Piece>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
    Link(u8),
}

#[derive(Arbitrary, Debug)]
struct Node {
    parent: u8,
    name: Vec<u8>,
    what: What,
    mode: u16,
    owner: (u32, u32),
    mtime: u32,
    xattrs: Vec<(u8, Vec<u8>)>,
}

#[derive(Arbitrary, Debug)]
struct Input {
    compressor: u8,
    block_log: u8,
    flags: u8,
    nodes: Vec<Node>,
}

/// What is known of a path: kind and content, and the attributes.
type Facts = (String, Vec<u8>, (u16, u32, u32, u32));

fuzz_target!(|bytes: &[u8]| {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else {
        return;
    };
    let options = |threads| Options {
        format: Format::Squashfs,
        compression: match input.compressor % 5 {
            0 => Compression::Zstd { level: 1 },
            1 => Compression::Gzip { level: 1 },
            2 => Compression::Lz4,
            3 => Compression::Xz { level: 0 },
            _ => Compression::None,
        },
        block_size: 4096 << (input.block_log % 4),
        threads,
        mtime: None,
        pack_tails: input.flags & 1 != 0,
        share_equal: input.flags & 2 != 0,
        export: input.flags & 4 != 0,
    };
    let (image, want) = write(&input.nodes, &options(0));
    if input.flags & 8 != 0 {
        assert!(image == write(&input.nodes, &options(3)).0, "threads show");
    }
    let got = read(image);
    for (path, facts) in &want {
        assert_eq!(got.get(path), Some(facts), "{}", path.escape_ascii());
    }
    assert_eq!(got.len(), want.len());
});

fn content(pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Bytes(some) => bytes.extend(some),
            &Piece::Repeated { byte, length } => bytes.resize(bytes.len() + length as usize, byte),
            &Piece::Counted { seed, length } => {
                let hash = |n: u16| (u32::from(n) + 1).wrapping_mul(0x9e37_79b9 ^ u32::from(seed));
                bytes.extend((0..length).map(|n| (hash(n) >> 24) as u8));
            }
            &Piece::Hole(length) => bytes.resize(bytes.len() + length as usize, 0),
        }
    }
    bytes
}

fn write(nodes: &[Node], options: &Options) -> (Vec<u8>, BTreeMap<Vec<u8>, Facts>) {
    let mut writer = Writer::new(Cursor::new(Vec::new()), options).expect("good options");
    let mut tree = Tree::new(Attributes::default()).expect("a root");
    let mut directories = vec![(Tree::ROOT, Vec::new())];
    let mut others = Vec::new();
    let mut want = BTreeMap::new();
    for node in nodes {
        let (parent, above) = directories[node.parent as usize % directories.len()].clone();
        let path = [&above[..], b"/", &node.name].concat();
        let attributes = Attributes {
            mode: node.mode & 0o7777,
            uid: node.owner.0,
            gid: node.owner.1,
            mtime: node.mtime,
            xattrs: node
                .xattrs
                .iter()
                .map(|(name, value)| (format!("user.{name}").into_bytes(), value.clone()))
                .collect(),
        };
        let facts = (
            attributes.mode,
            attributes.uid,
            attributes.gid,
            attributes.mtime,
        );
        let (kind, what, bytes) = match &node.what {
            What::Directory => {
                if let Ok(id) = tree.add_directory(parent, &node.name, attributes) {
                    directories.push((id, path.clone()));
                    want.insert(path, ("dir".to_owned(), Vec::new(), facts));
                }
                continue;
            }
            What::Link(which) => {
                if let Some((inode, facts)) = others.get(*which as usize) {
                    if tree.link(parent, &node.name, *inode).is_ok() {
                        want.insert(path, Facts::clone(facts));
                    }
                }
                continue;
            }
            What::File(pieces) => {
                let mut file = writer.start_file();
                for piece in pieces {
                    match piece {
                        Piece::Hole(length) => file.append_hole((*length).into()).expect("a hole"),
                        _ => file
                            .append(&content(std::slice::from_ref(piece)))
                            .expect("bytes"),
                    }
                }
                let data = file.finish().expect("a file");
                (Kind::File(data), "file".to_owned(), content(pieces))
            }
            What::Symlink(target) => {
                let target = target.clone();
                (Kind::Symlink(target.clone()), "link".to_owned(), target)
            }
            &What::CharDevice(major, minor) => {
                let what = format!("char {major}:{minor}");
                (Kind::CharDevice { major, minor }, what, Vec::new())
            }
            &What::BlockDevice(major, minor) => {
                let what = format!("block {major}:{minor}");
                (Kind::BlockDevice { major, minor }, what, Vec::new())
            }
            What::Fifo => (Kind::Fifo, "fifo".to_owned(), Vec::new()),
            What::Socket => (Kind::Socket, "socket".to_owned(), Vec::new()),
        };
        if let Ok(inode) = tree.add_inode(kind, attributes) {
            let facts = (what, bytes, facts);
            if tree.link(parent, &node.name, inode).is_ok() {
                want.insert(path, facts.clone());
            }
            others.push((inode, facts));
        }
    }
    match writer.finish(&tree) {
        Ok((image, _)) => (image.into_inner(), want),
        // Two attributes of one name are the input's fault, and everything else is ours.
        Err(error) => panic!("{error}"),
    }
}

fn read(image: Vec<u8>) -> BTreeMap<Vec<u8>, Facts> {
    let reader = FilesystemReader::from_reader(Cursor::new(image)).expect("an image");
    let mut got = BTreeMap::new();
    for node in reader.files() {
        let header = node.header;
        let facts = (header.permissions, header.uid, header.gid, header.mtime);
        let device = |number: u32| {
            let minor = number & 0xff | number >> 12 & !0xff;
            format!("{}:{minor}", number >> 8 & 0xfff)
        };
        let mut bytes = Vec::new();
        let what = match &node.inner {
            InnerNode::Dir(_) => "dir".to_owned(),
            InnerNode::File(file) => {
                let mut content = reader.file(file).reader();
                content.read_to_end(&mut bytes).expect("content");
                "file".to_owned()
            }
            InnerNode::Symlink(link) => {
                bytes.extend(link.link.as_os_str().as_bytes());
                "link".to_owned()
            }
            InnerNode::CharacterDevice(d) => format!("char {}", device(d.device_number)),
            InnerNode::BlockDevice(d) => format!("block {}", device(d.device_number)),
            InnerNode::NamedPipe => "fifo".to_owned(),
            InnerNode::Socket => "socket".to_owned(),
        };
        let path = node.fullpath.as_os_str().as_bytes();
        if path != b"/" {
            got.insert(path.to_vec(), (what, bytes, facts));
        }
    }
    got
}
