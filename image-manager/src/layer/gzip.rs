//! Gzip members, one after the other, as one stream of bytes.
//!
//! ```text
//! 0 magic 1f 8b   2 method (8)   3 flags   4 mtime   8 extra flags   9 system
//! 10 extra field, name, comment, checksum of the header: as the flags say
//! deflated data
//! CRC-32 and length of the uncompressed data, u32 each, little endian
//! ```
//!
//! The CRC is only computed where nothing stronger protects the bytes: it takes a fifth of the time
//! of inflating.

use flate2::{Crc, Decompress, FlushDecompress, Status};
use std::io::{self, BufRead, Read};

const DEFLATE: u8 = 8;
const HAS_HEADER_CRC: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

enum State {
    Header,
    Body,
    End,
}

/// Decompresses a blob.
pub(super) struct Gzip<B> {
    blob: B,
    inflate: Decompress,
    state: State,
    crc: Option<Crc>,
}

impl<B: BufRead> Gzip<B> {
    /// Starts to read; with `check` the CRC of each member is compared.
    pub(super) fn new(blob: B, check: bool) -> Self {
        Self {
            blob,
            inflate: Decompress::new(false),
            state: State::Header,
            crc: check.then(Crc::new),
        }
    }

    pub(super) fn get_ref(&self) -> &B {
        &self.blob
    }

    fn read_header(&mut self) -> io::Result<()> {
        let mut head = [0; 10];
        self.blob.read_exact(&mut head)?;
        let [0x1f, 0x8b, DEFLATE, flags, ..] = head else {
            return Err(damaged("it has no gzip header where one must be"));
        };
        if flags & RESERVED != 0 {
            return Err(damaged("its gzip header has flags that nobody knows"));
        }
        if flags & HAS_EXTRA != 0 {
            let length = self.read_bytes::<2>().map(u16::from_le_bytes)?;
            self.skip(length.into())?;
        }
        for text in [HAS_NAME, HAS_COMMENT] {
            if flags & text != 0 {
                self.blob.skip_until(0)?;
            }
        }
        if flags & HAS_HEADER_CRC != 0 {
            self.skip(2)?;
        }
        Ok(())
    }

    fn read_trailer(&mut self) -> io::Result<()> {
        let crc = self.read_bytes::<4>().map(u32::from_le_bytes)?;
        let length = self.read_bytes::<4>().map(u32::from_le_bytes)?;
        // The length is that of the data modulo 2^32.
        let is_right = length == self.inflate.total_out() as u32
            && self.crc.as_ref().is_none_or(|found| found.sum() == crc);
        if let Some(crc) = &mut self.crc {
            crc.reset();
        }
        self.inflate.reset(false);
        is_right
            .then_some(())
            .ok_or_else(|| damaged("its gzip checksum is wrong"))
    }

    fn read_bytes<const LENGTH: usize>(&mut self) -> io::Result<[u8; LENGTH]> {
        let mut bytes = [0; LENGTH];
        self.blob.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.blob.by_ref().take(count), &mut io::sink())?;
        match skipped == count {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Inflates into `out`; nothing comes out if there is not enough to come in.
    fn inflate(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let input = self.blob.fill_buf()?;
        let is_end = input.is_empty();
        let before = (self.inflate.total_in(), self.inflate.total_out());
        let status = self.inflate.decompress(input, out, FlushDecompress::None);
        // Neither is more than a buffer.
        let used = (self.inflate.total_in() - before.0) as usize;
        let made = (self.inflate.total_out() - before.1) as usize;
        self.blob.consume(used);
        if let Some(crc) = &mut self.crc {
            crc.update(&out[..made]);
        }
        match status {
            Ok(Status::StreamEnd) => {
                self.read_trailer()?;
                self.state = State::Header;
            }
            Ok(_) if is_end && made == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
        Ok(made)
    }
}

impl<B: BufRead> Read for Gzip<B> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                State::Header if self.blob.fill_buf()?.is_empty() => self.state = State::End,
                State::Header => {
                    self.read_header()?;
                    self.state = State::Body;
                }
                State::Body => match self.inflate(out)? {
                    0 => {}
                    made => return Ok(made),
                },
                State::End => return Ok(0),
            }
        }
    }
}

fn damaged(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, GzBuilder};
    use proptest::prelude::*;
    use std::io::{BufReader, Write};

    /// A member with every field that a header may have.
    fn member(bytes: &[u8], is_full: bool) -> Vec<u8> {
        let mut builder = GzBuilder::new().mtime(7);
        if is_full {
            builder = builder.filename("name").comment("text").extra([1, 2, 3]);
        }
        let mut encoder = builder.write(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(blob: &[u8], step: usize, check: bool) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let blob = BufReader::with_capacity(step, blob);
        Gzip::new(blob, check).read_to_end(&mut out).map(|_| out)
    }

    proptest! {
        #[test]
        fn members_follow_each_other(
            parts in prop::collection::vec((prop::collection::vec(0..3u8, 0..3000), any::<bool>()), 1..4),
            step in 1..500usize,
        ) {
            let mut blob = Vec::new();
            let mut whole = Vec::new();
            // Where a blob may end, and what it holds up to there.
            let mut ends = vec![(0, 0)];
            for (part, is_full) in &parts {
                blob.extend(member(part, *is_full));
                whole.extend_from_slice(part);
                ends.push((blob.len(), whole.len()));
            }
            for check in [true, false] {
                prop_assert_eq!(read(&blob, step, check).unwrap(), whole.clone());
            }
            for length in blob.len().saturating_sub(40)..blob.len() {
                let cut = read(&blob[..length], step, true).ok();
                let held = ends.iter().find(|(end, _)| *end == length);
                prop_assert_eq!(cut.as_deref(), held.map(|(_, made)| &whole[..*made]));
            }
        }
    }

    #[test]
    fn damage_is_found() {
        let blob = member(&[7; 100], true);
        let damage = |at: usize| {
            let mut blob = blob.clone();
            blob[at] ^= 0x40;
            blob
        };
        let last = blob.len() - 1;
        for (at, check) in [
            (0, false),
            (1, false),
            (2, false),
            (3, false),
            (last - 2, false),
            (last - 6, true),
        ] {
            let error = read(&damage(at), 64, check).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{at}: {error}");
        }
        assert!(read(&damage(last - 6), 64, false).is_ok());
        let trailed = [&blob[..], &[0]].concat();
        assert!(read(&trailed, 64, false).is_err());
        for length in 0..blob.len() {
            let result = read(&blob[..length], 64, false);
            assert_eq!(result.is_ok(), length == 0, "{length}");
        }
    }
}
