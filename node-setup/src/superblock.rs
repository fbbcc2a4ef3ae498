//! The first 96 bytes of a squashfs file: is it one, and is it all there?
//!
//! Who mounts the file checks more than this; here it is told in words what is wrong with it.

use std::os::fd::OwnedFd;

const SIZE: usize = 96;

/// Checks the superblock of a file that a user named.
///
/// # Errors
/// What is wrong with the file.
pub fn check(file: &OwnedFd) -> Result<(), String> {
    let text = |error: rustix::io::Errno| std::io::Error::from(error).to_string();
    let size = rustix::fs::fstat(file).map_err(text)?.st_size;
    let mut bytes = [0; SIZE];
    let mut count = 0;
    while count < SIZE {
        match rustix::io::pread(file, &mut bytes[count..], count as u64).map_err(text)? {
            0 => break,
            more => count += more,
        }
    }
    judge(&bytes[..count], size.cast_unsigned()).map_err(str::to_owned)
}

/// Judges the beginning of a file of `size` bytes.
fn judge(bytes: &[u8], size: u64) -> Result<(), &'static str> {
    let number = |at: usize, length: usize| {
        let digits = bytes.get(at..at + length).unwrap_or_default();
        digits
            .iter()
            .rev()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    if !bytes.starts_with(b"hsqs") {
        return Err("it is not a squashfs file");
    }
    if bytes.len() < SIZE {
        return Err("it is truncated");
    }
    if (number(28, 2), number(30, 2)) != (4, 0) {
        return Err("it is not of squashfs version 4.0");
    }
    let (block_size, block_log) = (number(12, 4), number(22, 2));
    let is_sound = (12..=20).contains(&block_log) && block_size == 1 << block_log;
    let used = number(40, 8);
    let tables = [number(48, 8), number(64, 8), number(72, 8)];
    if !is_sound || tables.iter().any(|start| *start < 96 || *start >= used) {
        return Err("its superblock is damaged");
    }
    if used > size {
        return Err("it is truncated");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[12..16].copy_from_slice(&131_072_u32.to_le_bytes());
        bytes[22] = 17;
        bytes[28] = 4;
        bytes[40..48].copy_from_slice(&4000_u64.to_le_bytes());
        for at in [48, 64, 72] {
            bytes[at..at + 8].copy_from_slice(&3000_u64.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(judge(&good(), 4096), Ok(()));
        assert_eq!(judge(&good(), 4000), Ok(()));
        let changed = |at: usize, byte: u8| {
            let mut bytes = good();
            bytes[at] = byte;
            judge(&bytes, 4096).unwrap_err()
        };
        assert_eq!(changed(0, 0), "it is not a squashfs file");
        assert_eq!(changed(28, 3), "it is not of squashfs version 4.0");
        assert_eq!(changed(22, 31), "its superblock is damaged");
        assert_eq!(changed(13, 1), "its superblock is damaged");
        assert_eq!(changed(71, 1), "its superblock is damaged");
        assert_eq!(changed(45, 0x10), "it is truncated");
        assert_eq!(judge(&good(), 3999), Err("it is truncated"));
        assert_eq!(judge(b"", 0), Err("it is not a squashfs file"));
        assert_eq!(judge(&good()[..95], 95), Err("it is truncated"));
    }
}
