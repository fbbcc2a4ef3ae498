//! Random trees, written as images, with what should be found in them.
#![allow(dead_code, reason = "each test program uses a part of it")]

use super::facts::{self, Facts, printable};
use proptest::prelude::*;
use squashfs_writer::{Attributes, Compression, Format, InodeId, Kind, Options, Tree, Writer};
use std::collections::BTreeMap;
use std::io::{Cursor, Write};

/// Contents of a random file: pieces of noise or zeroes.
#[derive(Debug, Clone)]
pub enum Piece {
    Noise(u8, usize),
    Text(u8, usize),
    Zeroes(usize),
    Hole(u64),
}

#[derive(Debug, Clone)]
pub enum What {
    Dir,
    File(Vec<Piece>),
    Link(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
    /// Another name of a node before this one.
    Again(usize),
}

/// One node of a random tree; `parent` and `Again` count modulo what is there.
#[derive(Debug, Clone)]
pub struct Plan {
    pub parent: usize,
    pub name: Vec<u8>,
    pub what: What,
    pub attributes: Attributes,
}

pub fn content(pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match *piece {
            Piece::Noise(seed, len) => {
                let mut state = u32::from(seed) + 1;
                bytes.extend((0..len).map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                }));
            }
            Piece::Text(byte, len) => bytes.extend((0..len).map(|n| byte | (n % 3) as u8)),
            Piece::Zeroes(len) => bytes.resize(bytes.len() + len, 0),
            Piece::Hole(len) => bytes.resize(bytes.len() + len as usize, 0),
        }
    }
    bytes
}

/// Writes the planned tree and says what should be found.
pub fn write(plans: &[Plan], options: &Options) -> (Vec<u8>, facts::Tree) {
    let mut writer = Writer::new(Cursor::new(Vec::new()), options).unwrap();
    let root = Attributes {
        mode: 0o755,
        ..Attributes::default()
    };
    let mut tree = Tree::new(root).unwrap();
    let mut want: facts::Tree = BTreeMap::new();
    let mut directories = vec![(Tree::ROOT, Vec::new())];
    let mut others: Vec<(InodeId, Facts)> = Vec::new();
    for plan in plans {
        let (parent, above) = directories[plan.parent % directories.len()].clone();
        let path = if above.is_empty() {
            plan.name.clone()
        } else {
            [above, plan.name.clone()].join(&b'/')
        };
        let shown = printable(&path);
        if want.contains_key(&shown) {
            continue;
        }
        let what = match &plan.what {
            What::Again(which) => {
                if let Some((inode, facts)) = others.get(which % others.len().max(1)) {
                    tree.link(parent, &plan.name, *inode).unwrap();
                    want.insert(shown, facts.clone());
                }
                continue;
            }
            What::Dir => {
                let id = tree
                    .add_directory(parent, &plan.name, plan.attributes.clone())
                    .unwrap();
                directories.push((id, path));
                want.insert(
                    shown.clone(),
                    facts_of("dir".to_owned(), &plan.attributes, &shown),
                );
                continue;
            }
            What::File(pieces) => {
                let mut file = writer.start_file();
                for piece in pieces {
                    match *piece {
                        Piece::Hole(length) => file.append_hole(length).unwrap(),
                        _ => file
                            .write_all(&content(std::slice::from_ref(piece)))
                            .unwrap(),
                    }
                }
                (
                    Kind::File(file.finish().unwrap()),
                    facts::file(&content(pieces)),
                )
            }
            What::Link(target) => (
                Kind::Symlink(target.clone()),
                format!("-> {}", printable(target)),
            ),
            &What::Char(major, minor) => (
                Kind::CharDevice { major, minor },
                format!("char {:?}", (major, minor)),
            ),
            &What::Block(major, minor) => (
                Kind::BlockDevice { major, minor },
                format!("block {:?}", (major, minor)),
            ),
            What::Fifo => (Kind::Fifo, "fifo".to_owned()),
            What::Socket => (Kind::Socket, "socket".to_owned()),
        };
        let (kind, what) = what;
        let mut attributes = plan.attributes.clone();
        if let Kind::Symlink(_) = kind {
            attributes.mode = 0o777;
        }
        let facts = facts_of(what, &attributes, &shown);
        let inode = tree.add_inode(kind, attributes).unwrap();
        tree.link(parent, &plan.name, inode).unwrap();
        others.push((inode, facts.clone()));
        want.insert(shown, facts);
    }
    // The first name of an inode, in the order of paths.
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    for (path, facts) in &want {
        first
            .entry(facts.same_as.clone())
            .or_insert_with(|| path.clone());
    }
    want.values_mut()
        .for_each(|facts| facts.same_as = first[&facts.same_as].clone());
    facts::count_links(&mut want);
    let (image, summary) = writer.finish(&tree).unwrap();
    let image = image.into_inner();
    assert_eq!(summary.bytes, image.len() as u64);
    (image, want)
}

fn facts_of(what: String, attributes: &Attributes, path: &str) -> Facts {
    Facts {
        what,
        mode: attributes.mode.into(),
        owner: (attributes.uid, attributes.gid),
        mtime: attributes.mtime.into(),
        xattrs: attributes
            .xattrs
            .iter()
            .map(|(n, v)| (printable(n), v.clone()))
            .collect(),
        same_as: path.to_owned(),
        links: 0,
    }
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let size = || {
        prop_oneof![
            0usize..200,
            Just(4096),
            Just(8192),
            4000usize..4200,
            0usize..20_000,
        ]
    };
    let piece = prop_oneof![
        (any::<u8>(), size()).prop_map(|(seed, len)| Piece::Noise(seed, len)),
        (1u8.., size()).prop_map(|(byte, len)| Piece::Text(byte, len)),
        size().prop_map(Piece::Zeroes),
        size().prop_map(|len| Piece::Hole(len as u64)),
    ];
    // Few enough to be drawn twice: files that are equal, or equal up to some block.
    let common = prop_oneof![
        4 => (0u8..2, prop_oneof![Just(600usize), Just(8192)])
            .prop_map(|(seed, len)| Piece::Noise(seed, len)),
        1 => Just(Piece::Hole(8192)),
    ];
    prop_oneof![
        prop::collection::vec(piece, 0..4),
        prop::collection::vec(common, 1..5),
    ]
}

fn xattrs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let prefix = prop_oneof![Just("user."), Just("trusted."), Just("security.")];
    let value = prop::collection::vec(any::<u8>(), 0..40);
    let one = (prefix, "[a-z]{1,8}", value);
    let some = prop::collection::btree_map(
        one.clone().prop_map(|(p, n, _)| format!("{p}{n}")),
        one,
        0..4,
    );
    let some = some.prop_map(|map| {
        map.into_iter()
            .map(|(name, (_, _, value))| (name.into_bytes(), value))
            .collect()
    });
    prop_oneof![2 => Just(Vec::new()), 1 => some]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let id = || prop_oneof![3 => Just(0u32), 2 => 0u32..5, 1 => any::<u32>().prop_map(|id| id - id / u32::MAX)];
    (0u16..0o10000, id(), id(), any::<u32>(), xattrs()).prop_map(
        |(mode, uid, gid, mtime, xattrs)| Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        },
    )
}

/// Random trees. `special` adds what archives and ordinary file systems cannot hold.
pub fn plans(special: bool) -> impl Strategy<Value = Vec<Plan>> {
    let byte = any::<u8>().prop_map(|b| if b == b'/' || b == 0 { b'_' } else { b });
    let name = prop_oneof![
        3 => "[a-z]{1,3}".prop_map(String::into_bytes),
        1 => prop::collection::vec(byte, 1..=255),
    ];
    let name = name.prop_filter("reserved", |name| name != b"." && name != b"..");
    let target = prop::collection::vec(1u8.., 1..400);
    let what = prop_oneof![
        3 => Just(What::Dir),
        6 => pieces().prop_map(What::File),
        2 => target.prop_map(What::Link),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(a, b)| What::Char(a, b)),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(a, b)| What::Block(a, b)),
        1 => Just(What::Fifo),
        1 => Just(if special { What::Socket } else { What::Fifo }),
        2 => any::<usize>().prop_map(What::Again),
    ];
    let plan = (any::<usize>(), name, what, attributes()).prop_map(
        move |(parent, name, what, mut attributes)| {
            // The kernel shows `user.` attributes on files and directories only, and unsquashfs
            // restores none on anything else.
            if !matches!(what, What::File(_) | What::Dir) {
                attributes
                    .xattrs
                    .retain(|(name, _)| special && !name.starts_with(b"user."));
            }
            Plan {
                parent,
                name,
                what,
                attributes,
            }
        },
    );
    prop::collection::vec(plan, 0..40)
}

pub fn options() -> impl Strategy<Value = Options> {
    let compression = prop_oneof![
        (1i32..5).prop_map(|level| Compression::Zstd { level }),
        (1u32..10).prop_map(|level| Compression::Gzip { level }),
        (0u32..10).prop_map(|level| Compression::Xz { level }),
        Just(Compression::Lz4),
        Just(Compression::None),
    ];
    let block_size = prop_oneof![Just(4096u32), Just(8192), Just(1 << 17), Just(1 << 20)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (compression, block_size, 0usize..4, flags).prop_map(
        |(compression, block_size, threads, (pack_tails, share_equal, export))| Options {
            format: Format::Squashfs,
            compression,
            block_size,
            threads,
            mtime: None,
            pack_tails,
            share_equal,
            export,
        },
    )
}

/// Options of erofs images.
pub fn erofs_options() -> impl Strategy<Value = Options> {
    let compression = prop_oneof![
        (1i32..5).prop_map(|level| Compression::Zstd { level }),
        Just(Compression::Lz4),
        Just(Compression::None),
    ];
    (options(), compression).prop_map(|(options, compression)| Options {
        format: Format::Erofs,
        compression,
        pack_tails: false,
        export: false,
        ..options
    })
}
