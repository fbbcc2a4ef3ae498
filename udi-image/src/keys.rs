//! Keys: made once for a job, read from files that are not believed to be small.

use std::io;
use std::path::Path;

use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use shifter_core::small;
use thiserror::Error;

/// Bytes that the file of a key may have.
const FILE_LIMIT: u64 = 4096;

/// Says why a key cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read '{path}'")]
    Read {
        /// The file.
        path: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// What is in the file is no ed25519 key in OpenSSH's form.
    #[error("'{0}' holds no ed25519 key")]
    Malformed(String),
    /// The kernel gives no random numbers.
    #[error("cannot get random numbers")]
    Random(#[source] io::Error),
    /// The key cannot be written as text.
    #[error("cannot write the key as text")]
    Encode(#[from] ssh_key::Error),
}

/// A new key: the private half as a file of OpenSSH's, the public one as a line without its end.
pub struct NewKey {
    /// `-----BEGIN OPENSSH PRIVATE KEY-----` and so on.
    pub private: String,
    /// `ssh-ed25519 AAAA… COMMENT`
    pub public: String,
}

/// Makes an ed25519 key.
pub fn generate(comment: &str) -> Result<NewKey, KeyError> {
    let mut seed = [0_u8; 32];
    let mut filled = 0;
    while filled < seed.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut seed[filled..], flags)
            .map_err(|error| KeyError::Random(error.into()))?;
    }
    let pair = Ed25519Keypair::from_seed(&seed);
    let key = PrivateKey::new(KeypairData::from(pair), comment)?;
    Ok(NewKey {
        private: key.to_openssh(LineEnding::LF)?.to_string(),
        public: key.public_key().to_openssh()?,
    })
}

/// Reads a private key.
pub fn read_private(path: &Path) -> Result<PrivateKey, KeyError> {
    let malformed = || KeyError::Malformed(path.display().to_string());
    let key = PrivateKey::from_openssh(read(path)?).map_err(|_| malformed())?;
    is_ed25519(&key.algorithm())
        .then_some(key)
        .ok_or_else(malformed)
}

/// Reads a public key: one line, and nothing else in the file.
pub fn read_public(path: &Path) -> Result<PublicKey, KeyError> {
    let malformed = || KeyError::Malformed(path.display().to_string());
    let text = String::from_utf8(read(path)?).map_err(|_| malformed())?;
    parse_public(text.trim_end()).ok_or_else(malformed)
}

/// Reads a public key that stands alone: options before it, or a second line, are no key.
pub fn parse_public(line: &str) -> Option<PublicKey> {
    if line.contains(['\n', '\r']) || !line.starts_with("ssh-ed25519 ") {
        return None;
    }
    let key = PublicKey::from_openssh(line).ok()?;
    is_ed25519(&key.algorithm()).then_some(key)
}

fn is_ed25519(algorithm: &Algorithm) -> bool {
    *algorithm == Algorithm::Ed25519
}

/// Reads a small regular file; nobody waits for a pipe, or reads what has no end.
pub fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    small::read(path, FILE_LIMIT).map_err(|source| KeyError::Read {
        path: path.display().to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let key = generate("job 17").unwrap();
        let (private, public) = (dir.path().join("id"), dir.path().join("id.pub"));
        std::fs::write(&private, &key.private).unwrap();
        std::fs::write(&public, &key.public).unwrap();
        let read = read_private(&private).unwrap();
        assert_eq!(
            read.public_key().key_data(),
            read_public(&public).unwrap().key_data()
        );
        assert!(key.public.ends_with(" job 17"), "{}", key.public);
        assert_ne!(generate("").unwrap().private, generate("").unwrap().private);
    }

    #[test]
    fn only_one_plain_line_is_a_public_key() {
        let key = generate("x").unwrap().public;
        assert!(parse_public(&key).is_some());
        for forged in [
            format!("command=\"id\" {key}"),
            format!("{key}\ncommand=\"id\" {key}"),
            format!("{key}\r{key}"),
            key.replace("ssh-ed25519", "ssh-rsa"),
            "ssh-ed25519 AAAA".to_owned(),
            String::new(),
        ] {
            assert!(parse_public(&forged).is_none(), "{forged}");
        }
    }

    #[test]
    fn s58_what_is_no_small_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large");
        std::fs::File::create(&large)
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        for path in [&large, &fifo, &dir.path().to_owned()] {
            assert!(read_private(path).is_err(), "{}", path.display());
            assert!(read_public(path).is_err(), "{}", path.display());
        }
    }
}
