//! The compressors that squashfs knows and this writer offers.
//!
//! Owns the compressor's id and options as stored in the image, and one reusable compressor per
//! thread. Decides nothing about blocks except whether compressing made one smaller.

use super::Error;
use super::metadata;
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use std::io;

/// Compressor of an image.
///
/// Its text form, as in configuration files, is the name and, for those that have one, a level:
/// `zstd`, `zstd:3`, `gzip:9`, `xz:6`, `lz4`, `none`.
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
    /// LZMA2, preset 0 to 9: the smallest images, and by far the slowest to write and to read.
    Xz {
        /// The preset of the `xz` program.
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

impl std::str::FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || Error::Options {
            option: "compression",
            reason: "must be zstd[:1-22], gzip[:1-9], xz[:0-9], lz4 or none",
        };
        let (name, level) = match text.split_once(':') {
            None => (text, None),
            Some((name, level)) => (name, Some(level.parse::<u8>().map_err(|_| refused())?)),
        };
        let compression = match (name, level) {
            ("zstd", level) => Self::Zstd {
                level: level.unwrap_or(1).into(),
            },
            ("gzip", level) => Self::Gzip {
                level: level.unwrap_or(6).into(),
            },
            ("xz", level) => Self::Xz {
                level: level.unwrap_or(6).into(),
            },
            ("lz4", None) => Self::Lz4,
            ("none", None) => Self::None,
            _ => return Err(refused()),
        };
        compression.check().map_err(|_| refused())?;
        Ok(compression)
    }
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zstd { level } => write!(f, "zstd:{level}"),
            Self::Gzip { level } => write!(f, "gzip:{level}"),
            Self::Xz { level } => write!(f, "xz:{level}"),
            Self::Lz4 => f.write_str("lz4"),
            Self::None => f.write_str("none"),
        }
    }
}

impl Compression {
    /// The id in the superblock. Squashfs has none for "no compressor": gzip's is used, and no
    /// block is ever marked as compressed.
    pub(super) fn id(self) -> u16 {
        match self {
            Self::Gzip { .. } | Self::None => 1,
            Self::Xz { .. } => 4,
            Self::Lz4 => 5,
            Self::Zstd { .. } => 6,
        }
    }

    /// The option block behind the superblock. lz4 must have one; those of zstd and gzip only
    /// tell tools which level was used. Without one of xz's the kernel expects a dictionary of
    /// the size of a block, which is what we use.
    pub(super) fn options(self) -> Option<Vec<u8>> {
        match self {
            Self::None | Self::Xz { .. } => None,
            Self::Zstd { level } => Some(level.to_le_bytes().to_vec()),
            Self::Gzip { level } => {
                // Level, window bits, and no particular strategy.
                let words = [level.to_le_bytes(), 15u32.to_le_bytes()];
                Some(words.concat())
            }
            // The version of the format, and no flags.
            Self::Lz4 => Some([1u32.to_le_bytes(), [0; 4]].concat()),
        }
    }

    pub(super) fn check(self) -> Result<(), Error> {
        let reason = match self {
            Self::Zstd { level } if !(1..=22).contains(&level) => "zstd has levels 1 to 22",
            Self::Gzip { level } if !(1..=9).contains(&level) => "gzip has levels 1 to 9",
            Self::Xz { level } if level > 9 => "xz has levels 0 to 9",
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
    Xz { level: u32, dictionary: u32 },
    Lz4,
    None,
}

impl Compressor {
    /// A compressor for blocks of at most `block_size` bytes, or of a metadata block's.
    pub(super) fn new(compression: Compression, block_size: usize) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd { level } => Self::Zstd(zstd::bulk::Compressor::new(level)?),
            Compression::Gzip { level } => {
                Self::Gzip(flate2::Compress::new(flate2::Compression::new(level), true))
            }
            Compression::Xz { level } => {
                // The kernel decompresses with one dictionary of this size for all blocks; sizes
                // of blocks are powers of two, which is one of the forms that it accepts.
                let size = block_size.max(metadata::BLOCK);
                let dictionary = u32::try_from(size).unwrap_or(u32::MAX); // at most 1 MiB
                Self::Xz { level, dictionary }
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
            Self::Xz { level, dictionary } => {
                let mut options = LzmaOptions::new_preset(*level)?;
                options.dict_size(*dictionary);
                let mut filters = Filters::new();
                filters.lzma2(&options);
                // CRC32 is the one check that every kernel with xz can read.
                let mut xz = Stream::new_stream_encoder(&filters, Check::Crc32)?;
                out.reserve(raw.len());
                match xz.process_vec(raw, out, liblzma::stream::Action::Finish)? {
                    liblzma::stream::Status::StreamEnd => out.len(),
                    _ => return Ok(false),
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_read_as_it_is_shown() {
        for (text, shown) in [
            ("zstd", "zstd:1"),
            ("zstd:22", "zstd:22"),
            ("gzip", "gzip:6"),
            ("gzip:9", "gzip:9"),
            ("xz", "xz:6"),
            ("xz:0", "xz:0"),
            ("lz4", "lz4"),
            ("none", "none"),
        ] {
            let read: Compression = text.parse().unwrap();
            assert_eq!(read.to_string(), shown);
            assert_eq!(shown.parse::<Compression>().unwrap(), read);
        }
        for text in [
            "", "zip", "zstd:", "zstd:0", "zstd:23", "zstd:+1 ", "gzip:10", "gzip:0", "xz:10",
            "lz4:1", "lz4:", "none:0", "ZSTD", "zstd:1:2", "zstd:-1",
        ] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
