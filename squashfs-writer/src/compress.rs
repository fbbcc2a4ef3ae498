//! The compressors that squashfs knows and this writer offers.
//!
//! Owns the compressor's id and options as stored in the image, and one reusable compressor per
//! thread. Decides nothing about blocks except whether compressing made one smaller.

use super::Error;
use std::io;

/// Compressor of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// zstd, level 1 to 22: the best balance for container images.
    Zstd {
        /// Compression level.
        level: i32,
    },
    /// zlib's deflate, level 1 to 9: read by every kernel.
    Gzip {
        /// Compression level.
        level: u32,
    },
    /// lz4: larger images, fastest to read.
    Lz4,
    /// Stores every block as it is.
    None,
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd { level: 1 }
    }
}

impl Compression {
    /// The id in the superblock. Squashfs has none for "no compressor": gzip's is used, and no
    /// block is ever marked as compressed.
    pub(super) fn id(self) -> u16 {
        match self {
            Self::Gzip { .. } | Self::None => 1,
            Self::Lz4 => 5,
            Self::Zstd { .. } => 6,
        }
    }

    /// The option block behind the superblock; lz4 must have one, the others only tell tools
    /// which level was used.
    pub(super) fn options(self) -> Option<[u8; 8]> {
        let mut block = [0u8; 8];
        match self {
            Self::None => return None,
            Self::Zstd { level } => block[..4].copy_from_slice(&level.to_le_bytes()),
            Self::Gzip { level } => {
                block[..4].copy_from_slice(&level.to_le_bytes());
                block[4..6].copy_from_slice(&15u16.to_le_bytes());
            }
            Self::Lz4 => block[..4].copy_from_slice(&1u32.to_le_bytes()),
        }
        Some(block)
    }

    /// How many bytes of [`Self::options`] count.
    pub(super) fn options_len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Zstd { .. } => 4,
            Self::Gzip { .. } | Self::Lz4 => 8,
        }
    }

    pub(super) fn check(self) -> Result<(), Error> {
        let reason = match self {
            Self::Zstd { level } if !(1..=22).contains(&level) => "zstd has levels 1 to 22",
            Self::Gzip { level } if !(1..=9).contains(&level) => "gzip has levels 1 to 9",
            _ => return Ok(()),
        };
        Err(Error::Options {
            option: "compression",
            reason,
        })
    }
}

/// One thread's compressor.
pub(super) enum Compressor {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(flate2::Compress),
    Lz4,
    None,
}

impl Compressor {
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd { level } => Self::Zstd(zstd::bulk::Compressor::new(level)?),
            Compression::Gzip { level } => {
                Self::Gzip(flate2::Compress::new(flate2::Compression::new(level), true))
            }
            Compression::Lz4 => Self::Lz4,
            Compression::None => Self::None,
        })
    }

    /// Compresses `raw` into `out` (overwritten). `false` means that it did not get smaller and
    /// must be stored raw; `out` is then meaningless.
    pub(super) fn compress(&mut self, raw: &[u8], out: &mut Vec<u8>) -> io::Result<bool> {
        out.clear();
        let written = match self {
            Self::None => return Ok(false),
            Self::Zstd(zstd) => {
                // The bound, not the block's own size: zstd is slower when it must watch its step.
                out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
                zstd.compress_to_buffer(raw, out)?
            }
            Self::Gzip(gzip) => {
                gzip.reset();
                // No larger buffer than the block: running out of it is the answer "not smaller".
                out.resize(raw.len(), 0);
                match gzip.compress(raw, out, flate2::FlushCompress::Finish) {
                    Ok(flate2::Status::StreamEnd) => {}
                    Ok(_) => return Ok(false),
                    Err(e) => return Err(io::Error::other(e)),
                }
                usize::try_from(gzip.total_out()).unwrap_or(usize::MAX)
            }
            Self::Lz4 => {
                out.resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
                lz4_flex::block::compress_into(raw, out).map_err(io::Error::other)?
            }
        };
        if written >= raw.len() {
            return Ok(false);
        }
        out.truncate(written);
        Ok(true)
    }
}
