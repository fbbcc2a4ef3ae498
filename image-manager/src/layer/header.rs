//! The fields of a 512-byte tar header: old, ustar, star and GNU.
//!
//! ```text
//! 0 name[100]  100 mode[8]  108 uid[8]  116 gid[8]  124 size[12]  136 mtime[12]  148 checksum[8]
//! 156 type  157 link[100]  257 magic[6] 263 version[2]  329 major[8]  337 minor[8]
//! 345 prefix[155] (ustar), prefix[131] (star, "tar\0" at 508), atime[12] ctime[12] (GNU)
//! 386 sparse[4 x 24], 482 extended, 483 real size[12] (GNU, type S)
//! ```

use std::ops::Range;

/// Size of a header and of every other unit in an archive.
pub(super) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const VERSION: Range<usize> = 263..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const USTAR_PREFIX: Range<usize> = 345..500;
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_TIMES: [Range<usize>; 2] = [345..357, 357..369];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// One header block whose checksum is right.
#[derive(Clone, Copy)]
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Checks the checksum, which old programs computed with signed characters.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Self, &'static str> {
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, &byte) in block.iter().enumerate() {
            let byte = if CHECKSUM.contains(&at) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        let stated = number(&block[CHECKSUM])?;
        if stated != unsigned && stated != signed {
            return Err("its checksum is wrong");
        }
        Ok(Self(block))
    }

    pub(super) fn block(&self) -> &'a [u8; BLOCK] {
        self.0
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[KIND]
    }

    pub(super) fn size(&self) -> Result<u64, &'static str> {
        u64::try_from(number(&self.0[SIZE])?).map_err(|_| "its size is negative")
    }

    pub(super) fn mode(&self) -> Result<i64, &'static str> {
        number(&self.0[MODE])
    }

    pub(super) fn uid(&self) -> Result<i64, &'static str> {
        number(&self.0[UID])
    }

    pub(super) fn gid(&self) -> Result<i64, &'static str> {
        number(&self.0[GID])
    }

    pub(super) fn mtime(&self) -> Result<i64, &'static str> {
        number(&self.0[MTIME])
    }

    /// Major and minor number; old archives have none.
    pub(super) fn device(&self) -> Result<(i64, i64), &'static str> {
        match self.format() {
            Format::V7 => Ok((0, 0)),
            _ => Ok((number(&self.0[MAJOR])?, number(&self.0[MINOR])?)),
        }
    }

    pub(super) fn link(&self) -> &'a [u8] {
        text(&self.0[LINK])
    }

    /// The name with its prefix, if the format has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let prefix = match self.format() {
            Format::V7 => &[],
            Format::Ustar => text(&self.0[USTAR_PREFIX]),
            Format::Star => text(&self.0[STAR_PREFIX]),
            Format::Gnu => self.misplaced_prefix(),
        };
        let name = text(&self.0[NAME]);
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, name].join(&b'/')
        }
    }

    /// Go before 1.8 wrote ustar's prefix into GNU headers, and docker wrote images with it: taken
    /// as one where the times that belong there cannot be read and it is plain text.
    fn misplaced_prefix(&self) -> &'a [u8] {
        let is_time = |field: Range<usize>| {
            let field = &self.0[field];
            field[0] == 0 || number(field).is_ok()
        };
        let prefix = text(&self.0[USTAR_PREFIX]);
        if GNU_TIMES.into_iter().all(is_time) || !prefix.is_ascii() {
            &[]
        } else {
            prefix
        }
    }

    fn format(&self) -> Format {
        match (&self.0[MAGIC], &self.0[VERSION], &self.0[STAR_TRAILER]) {
            (b"ustar\0", _, b"tar\0") => Format::Star,
            (b"ustar\0", _, _) => Format::Ustar,
            (b"ustar ", b" \0", _) => Format::Gnu,
            _ => Format::V7,
        }
    }
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// A number: octal digits between blanks and NULs, or base 256 if the first bit is set.
pub(super) fn number(field: &[u8]) -> Result<i64, &'static str> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => binary(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Result<i64, &'static str> {
    let is_blank = |b: &u8| *b == b' ' || *b == 0;
    let Some(start) = field.iter().position(|b| !is_blank(b)) else {
        return Ok(0);
    };
    let end = field
        .iter()
        .rposition(|b| !is_blank(b))
        .map_or(start, |last| last + 1);
    text(&field[start..end])
        .iter()
        .try_fold(0i64, |sum, digit| match digit {
            b'0'..=b'7' => sum
                .checked_mul(8)
                .and_then(|sum| sum.checked_add(i64::from(digit - b'0')))
                .ok_or("a number is too large"),
            _ => Err("a number is not octal"),
        })
}

/// Two's complement, most significant byte first; the very first bit only marks the form.
fn binary(field: &[u8]) -> Result<i64, &'static str> {
    let is_negative = field[0] & 0x40 != 0;
    let mut sum = if is_negative { -1i128 } else { 0 };
    for (at, &byte) in field.iter().enumerate() {
        // The marking bit stands for the sign in the first byte.
        let byte = match (at, is_negative) {
            (0, false) => byte & 0x7f,
            _ => byte,
        };
        sum = sum << 8 | i128::from(byte);
        if i64::try_from(sum).is_err() {
            return Err("a number is too large");
        }
    }
    i64::try_from(sum).map_err(|_| "a number is too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_forms() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77777777777)),
            (b"777777777777", Some(0o777777777777)),
            (b"12\x0034", Some(0o12)),
            (b"9\0", None),
            (b"-1\0", None),
            (b"0x1\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\xc0\0\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field).ok(), want, "{field:?}");
        }
    }

    #[test]
    fn names_with_each_formats_prefix() {
        for (magic, trailer, prefix, want) in [
            (
                &b"ustar\x0000"[..],
                &b"\0\0\0\0"[..],
                &b"dir"[..],
                "dir/name",
            ),
            (b"ustar\x0000", b"tar\0", b"dir", "dir/name"),
            (b"ustar  \0", b"\0\0\0\0", b"00000000001\0", "name"),
            (b"ustar  \0", b"\0\0\0\0", b"some/dir", "some/dir/name"),
            (b"\0\0\0\0\0\0\0\0", b"\0\0\0\0", b"dir", "name"),
        ] {
            let mut block = [0; BLOCK];
            block[..4].copy_from_slice(b"name");
            block[257..265].copy_from_slice(magic);
            block[345..345 + prefix.len()].copy_from_slice(prefix);
            block[STAR_TRAILER].copy_from_slice(trailer);
            block[CHECKSUM].fill(b' ');
            let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
            block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert_eq!(Header::parse(&block).unwrap().name(), want.as_bytes());
            block[0] = b'N';
            assert!(Header::parse(&block).is_err());
        }
    }
}
