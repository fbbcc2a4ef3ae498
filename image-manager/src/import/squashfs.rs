//! Squashfs files that somebody else made: they are copied as they are.
//!
//! Nothing of such a file can be verified but that it is a whole one, so its id is its own digest.

use std::fs::File;
use std::io::{Read, Write};

use shifter_core::ids::ImageId;
use shifter_core::meta::ImageMeta;

use super::error::{ImportError, Unsupported};
use super::section::{Section, Verified};
use crate::cancel::Cancel;
use crate::hash::Hasher;
use crate::image_config::ImageConfigError;

const PIECE: usize = 1 << 20;
const SUPERBLOCK: usize = 96;

/// Checks that this is a squashfs 4.0 file and all of it is there.
pub(super) fn check(file: &Section) -> Result<(), ImportError> {
    let head = file.part(0, SUPERBLOCK as u64).bytes(SUPERBLOCK as u64);
    let head = head.map_err(ImportError::Read)?.unwrap_or_default();
    let is_whole = Some(head)
        .filter(|head| head.len() == SUPERBLOCK)
        .is_some_and(|head| {
            let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
            let mut used = [0; 8];
            used.copy_from_slice(&head[40..48]);
            let used = u64::from_le_bytes(used);
            let is_known_version = (short(28), short(30)) == (4, 0);
            // Of gzip, lzma, lzo, xz, lz4 and zstd: no kernel ever had lzma.
            let is_known_codec = (1..=6).contains(&short(20)) && short(20) != 2;
            is_known_version
                && is_known_codec
                && (SUPERBLOCK as u64..=file.length()).contains(&used)
        });
    match is_whole {
        true => Ok(()),
        false => Err(ImportError::Unsupported(Unsupported::Squashfs)),
    }
}

/// What is known of a squashfs file: its format.
pub(super) fn meta() -> ImageMeta {
    ImageMeta {
        format: "squashfs".into(),
        ..ImageMeta::default()
    }
}

/// Reads the file and returns the id that is its digest.
pub(super) fn id(file: &Section, cancel: &Cancel) -> Result<ImageId, ImportError> {
    let digest = copy(file, None, cancel)?;
    Ok(ImageId::parse(&digest).map_err(ImageConfigError::Id)?)
}

/// Reads the file, copies it to `out` if there is one, and returns its digest.
pub(super) fn copy(
    file: &Section,
    mut out: Option<&mut File>,
    cancel: &Cancel,
) -> Result<String, ImportError> {
    let mut reader = Verified::new(file.reader(), None, cancel);
    let mut hasher = Hasher::sha256();
    let mut piece = vec![0; PIECE];
    loop {
        cancel.check()?;
        let count = reader.read(&mut piece).map_err(ImportError::Read)?;
        if count == 0 {
            break;
        }
        hasher.update(&piece[..count]);
        if let Some(out) = &mut out {
            let written = out.write_all(&piece[..count]);
            let failed = |source| squashfs_writer::Error::Write { source };
            written.map_err(|error| ImportError::Build(failed(error).into()))?;
        }
    }
    Ok(hasher.finish_hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::BuildError;

    #[test]
    fn only_what_a_kernel_mounts_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let judge = |codec: u8, used: u8| {
            let mut head = [0; SUPERBLOCK];
            (head[20], head[28], head[40]) = (codec, 4, used);
            std::fs::write(&path, head).unwrap();
            check(&Section::whole(File::open(&path).unwrap()).unwrap()).is_ok()
        };
        let taken: Vec<u8> = (0..9).filter(|codec| judge(*codec, 96)).collect();
        assert_eq!(taken, [1, 3, 4, 5, 6]);
        // More than there is, and less than a superblock.
        assert!(!judge(6, 97) && !judge(6, 95));
    }

    #[test]
    fn only_a_full_disk_is_called_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"bytes").unwrap();
        let open = || File::open(&path).unwrap();
        let file = Section::whole(open()).unwrap();
        let cancel = Cancel::default();
        // Not open for writing.
        let failed = copy(&file, Some(&mut open()), &cancel).unwrap_err();
        let is_other = matches!(&failed, ImportError::Build(BuildError::Write { .. }));
        assert!(is_other, "{failed:?}");
        let mut full = File::options().write(true).open("/dev/full").unwrap();
        let failed = copy(&file, Some(&mut full), &cancel).unwrap_err();
        let is_full = matches!(&failed, ImportError::Build(BuildError::DiskFull { .. }));
        assert!(is_full, "{failed:?}");
    }
}
