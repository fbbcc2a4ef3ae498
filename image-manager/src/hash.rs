//! Digests of bytes: computing them, and comparing them with what a registry promised.
//!
//! Owns the two algorithms an image may be named by, sha256 and sha512. Never accepts another one:
//! [`Digest`] cannot hold it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ring::digest::{Context, SHA256, SHA512, digest};
use shifter_core::reference::Digest;

/// Bytes of a file that are read at once.
const PIECE: usize = 256 << 10;

/// A digest that is being computed.
#[derive(Clone)]
pub struct Hasher {
    name: &'static str,
    state: Context,
}

impl Hasher {
    /// Starts SHA-256.
    pub fn sha256() -> Self {
        Self {
            name: "sha256",
            state: Context::new(&SHA256),
        }
    }

    /// Starts the algorithm that `expected` was made with.
    pub fn like(expected: &Digest) -> Self {
        // `Digest` holds one of two algorithms; a third would never compare equal to its text.
        match expected.algorithm() {
            "sha512" => Self {
                name: "sha512",
                state: Context::new(&SHA512),
            },
            _ => Self::sha256(),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// Takes all of a file.
    pub(crate) fn update_from(&mut self, file: &File) -> io::Result<()> {
        read_file(file, |bytes| {
            self.update(bytes);
            Ok(())
        })
    }

    /// Returns the digest as `<algorithm>:<hex>`.
    pub fn finish(self) -> String {
        let name = self.name;
        format!("{name}:{}", self.finish_hex())
    }

    /// Returns the digest's hexadecimal digits alone.
    pub fn finish_hex(self) -> String {
        hex(self.state.finish().as_ref())
    }
}

/// Reads a file from its first byte on, without moving its position. `take` gets each piece; its error
/// ends the work.
pub(crate) fn read_file(
    file: &File,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (mut piece, mut position) = (vec![0; PIECE], 0);
    loop {
        let count = file.read_at(&mut piece, position)?;
        if count == 0 {
            return Ok(());
        }
        take(&piece[..count])?;
        position += count as u64;
    }
}

/// True if `bytes` have the digest `expected`.
pub fn matches(bytes: &[u8], expected: &Digest) -> bool {
    let mut hasher = Hasher::like(expected);
    hasher.update(bytes);
    hasher.finish() == expected.to_string()
}

/// Returns the 64 hexadecimal digits of the SHA-256 of `bytes`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256_hex(b""), empty);
        let digest = Digest::parse(&format!("sha256:{empty}")).unwrap();
        assert!(matches(b"", &digest) && !matches(b"x", &digest));
        let long = format!(
            "sha512:{}",
            "cf83e1357eefb8bd".to_owned() + &"0".repeat(112)
        );
        assert!(!matches(b"", &Digest::parse(&long).unwrap()));
        assert!(
            Hasher::like(&Digest::parse(&long).unwrap())
                .finish()
                .starts_with("sha512:cf83e1")
        );
    }
}
