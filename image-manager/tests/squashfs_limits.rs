//! Images at the edges of the format, as the kernel sees them.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use squashfs_writer::{Attributes, Compression, Options};
use std::io::Write;
use support::trees::{Piece, Plan, What, write};
use support::{facts, in_private_mounts, with_mounted};

/// One entry in the root directory.
fn entry(name: &[u8], what: What, attributes: Attributes) -> Plan {
    Plan {
        parent: 0,
        name: name.to_vec(),
        what,
        attributes,
    }
}

fn mode(mode: u16) -> Attributes {
    Attributes {
        mode,
        ..Attributes::default()
    }
}

/// Contents that end before, at and behind the edges of blocks, with and without holes.
fn files(block: usize) -> Vec<Plan> {
    let mut plans = Vec::new();
    for size in [1, block - 1, block, block + 1, 3 * block, 3 * block + 7] {
        let noise = Piece::Noise(size as u8, size);
        let text = Piece::Text(b'a', size);
        for (kind, pieces) in [
            ("noise", vec![noise.clone()]),
            ("again", vec![noise.clone()]),
            ("text", vec![text.clone()]),
            ("zeroes", vec![Piece::Zeroes(size)]),
            ("hole-first", vec![Piece::Hole(2 * block as u64), text]),
            (
                "hole-last",
                vec![noise.clone(), Piece::Hole(2 * block as u64)],
            ),
            ("longer", vec![noise, Piece::Text(b'x', 100)]),
        ] {
            let name = format!("{kind}-{size}");
            plans.push(entry(name.as_bytes(), What::File(pieces), mode(0o644)));
        }
    }
    plans
}

fn edges() -> Vec<Plan> {
    let empty_value = vec![
        (b"user.empty".to_vec(), Vec::new()),
        (b"trusted.zero".to_vec(), vec![0]),
    ];
    let owned = |uid, gid, mtime| Attributes {
        mode: 0o7777,
        uid,
        gid,
        mtime,
        xattrs: empty_value.clone(),
    };
    let (top, device) = (u32::MAX - 1, (4095, (1 << 20) - 1));
    let mut plans = vec![
        entry(&[0xff; 255], What::Fifo, mode(0)),
        entry(b"\xc3\x28 \n\t\\", What::Dir, owned(65_536, top, 1 << 31)),
        entry(
            b"twice",
            What::File(Vec::new()),
            owned(top, 65_535, u32::MAX),
        ),
        entry(b"same", What::File(Vec::new()), owned(top, 65_535, 0)),
        entry(b"link", What::Link(vec![b'x'; 4095]), mode(0o777)),
        entry(b"char", What::Char(device.0, device.1), mode(0o600)),
        entry(b"block", What::Block(device.0, device.1), mode(0o600)),
        entry(b"null", What::Char(1, 3), mode(0o666)),
        entry(b"socket", What::Socket, mode(0o755)),
    ];
    // Each of these is in the directory before.
    let depth = 200;
    plans.extend((0..depth).map(|level| Plan {
        parent: level + 1, // the root, the strange one above, and those made so far
        name: b"deeper".to_vec(),
        what: What::Dir,
        attributes: mode(0o755),
    }));
    plans
}

#[test]
fn privileged_edges_of_the_format_with_every_compressor_and_block_size() {
    in_private_mounts(|| {
        for (text, block_size) in [
            ("zstd:1", 4096),
            ("zstd:19", 1 << 16),
            ("zstd:1", 1 << 20),
            ("gzip:6", 1 << 16),
            ("xz:1", 4096),
            ("xz:0", 1 << 20),
            ("lz4", 1 << 16),
            ("none", 4096),
        ] {
            let compression: Compression = text.parse().unwrap();
            let options = Options {
                compression,
                block_size,
                export: true,
                pack_tails: block_size == 1 << 16,
                ..Options::default()
            };
            let mut plans = edges();
            plans.extend(files(block_size.min(1 << 14) as usize));
            let large = vec![Piece::Text(b'l', (2 << 20) + 5)];
            plans.push(entry(b"large", What::File(large), mode(0o644)));
            let (image, want) = write(&plans, &options);
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&image).unwrap();
            let mut got = with_mounted(file.path(), facts::of_directory);
            got.remove("");
            facts::assert_same(&got, &want, &format!("{text} {block_size}"));
        }
    });
}
