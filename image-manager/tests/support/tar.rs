//! Writes tar archives for tests, honest and hostile ones.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::Write;

/// Everything an entry of an archive may say.
#[derive(Debug, Clone)]
pub struct Sample {
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub device: (u64, u64),
    pub body: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Sample {
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            device: (0, 0),
            body: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    pub fn file(name: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Self {
        Self {
            body: body.as_ref().to_vec(),
            ..Self::new(b'0', name)
        }
    }

    pub fn dir(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            mode: 0o777,
            ..Self::new(b'2', name)
        }
    }

    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            ..Self::new(b'1', name)
        }
    }

    pub fn mode(self, mode: u64) -> Self {
        Self { mode, ..self }
    }

    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.as_bytes().to_vec(), value.to_vec()));
        self
    }

    /// The header alone, with what does not fit cut off.
    pub fn header(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut text = |at: usize, room: usize, text: &[u8]| {
            let len = text.len().min(room);
            block[at..at + len].copy_from_slice(&text[..len]);
        };
        text(0, 100, &self.name);
        text(157, 100, &self.link);
        text(257, 8, b"ustar\x0000");
        let mut number = |at: usize, digits: usize, value: u64| {
            let octal = format!("{value:0digits$o}");
            if octal.len() <= digits {
                text(at, digits, octal.as_bytes());
            }
        };
        number(100, 7, self.mode);
        number(108, 7, self.uid);
        number(116, 7, self.gid);
        number(124, 11, self.body.len() as u64);
        number(136, 11, self.mtime);
        number(329, 7, self.device.0);
        number(337, 7, self.device.1);
        block[156] = self.kind;
        checksum(&mut block);
        block
    }

    /// The entry with everything that it needs: pax records, header, contents.
    pub fn bytes(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if self.name.len() > 100 {
            records.extend(record(b"path", &self.name));
        }
        if self.link.len() > 100 {
            records.extend(record(b"linkpath", &self.link));
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id > 0o7777777 {
                records.extend(record(key.as_bytes(), id.to_string().as_bytes()));
            }
        }
        for (name, value) in &self.xattrs {
            records.extend(record(&[b"SCHILY.xattr.", &name[..]].concat(), value));
        }
        let mut bytes = if records.is_empty() {
            Vec::new()
        } else {
            pax(&records)
        };
        bytes.extend_from_slice(&self.header());
        bytes.extend_from_slice(&self.body);
        pad(&mut bytes);
        bytes
    }

    /// The entry without pax records, with other bytes at a place of its header.
    pub fn patched(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut header = self.header();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        checksum(&mut header);
        let mut all = header.to_vec();
        all.extend_from_slice(&self.body);
        pad(&mut all);
        all
    }
}

/// Computes a header's checksum.
pub fn checksum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// One pax record.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|n| n.to_string().len() + rest == *n).unwrap();
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A pax extended header with these records.
pub fn pax(records: &[u8]) -> Vec<u8> {
    extension(b'x', records)
}

/// An entry that only says something about the next one.
pub fn extension(kind: u8, body: &[u8]) -> Vec<u8> {
    let sample = Sample {
        body: body.to_vec(),
        ..Sample::new(kind, "extension")
    };
    let mut bytes = sample.header().to_vec();
    bytes.extend_from_slice(body);
    pad(&mut bytes);
    bytes
}

pub fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

/// A whole archive.
pub fn archive(samples: &[Sample]) -> Vec<u8> {
    let mut bytes: Vec<u8> = samples.iter().flat_map(Sample::bytes).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// An archive of ready parts.
pub fn archive_of(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}
