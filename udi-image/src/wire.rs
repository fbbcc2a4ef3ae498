//! The encoding of the file server's packets (draft-ietf-secsh-filexfer-02).
//!
//! ```text
//! packet     length: u32, type: u8, the rest
//! string     length: u32, bytes
//! attributes flags: u32, size: u64 if 1, uid and gid: u32 if 2, mode: u32 if 4,
//!            times of access and change: u32 if 8, count and pairs of strings if 1 << 31
//! ```

use std::io::{self, ErrorKind, Read};

/// Bytes of a packet: the largest write of any client, and room.
pub const PACKET_LIMIT: usize = (256 << 10) + 1024;

/// A packet cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Attributes of a file; only those that are there are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bytes.
    pub size: Option<u64>,
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Mode, with the kind of file.
    pub mode: Option<u32>,
    /// Seconds of access and change since 1970.
    pub times: Option<(u32, u32)>,
}

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const MODE: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 1 << 31;

/// Reads a packet; nothing at the end of the input.
///
/// # Errors
/// As for read(2), for an end within a packet, and for one that is too large.
pub fn read_packet(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while let Some(rest @ [_, ..]) = length.get_mut(filled..) {
        match input.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = u32::from_be_bytes(length) as usize;
    if !(1..=PACKET_LIMIT).contains(&length) {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut packet = vec![0; length];
    input.read_exact(&mut packet)?;
    Ok(Some(packet))
}

/// What is left of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Takes a byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// Takes a number.
    pub fn number(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Takes a long number.
    pub fn long(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Takes a string.
    pub fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.number()? as usize;
        self.take(length)
    }

    /// Takes attributes.
    pub fn attributes(&mut self) -> Result<Attributes, Malformed> {
        let flags = self.number()?;
        let mut attributes = Attributes::default();
        if flags & SIZE != 0 {
            attributes.size = Some(self.long()?);
        }
        if flags & OWNER != 0 {
            attributes.owner = Some((self.number()?, self.number()?));
        }
        if flags & MODE != 0 {
            attributes.mode = Some(self.number()?);
        }
        if flags & TIMES != 0 {
            attributes.times = Some((self.number()?, self.number()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..self.number()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(attributes)
    }
}

/// A packet that is being written.
#[derive(Clone, Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Starts a packet of a type.
    pub fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    /// Adds a number.
    pub fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    /// Adds a long number.
    pub fn long(mut self, number: u64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    /// Adds a string.
    pub fn string(self, bytes: &[u8]) -> Self {
        let mut next = self.number(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        next.0.extend(bytes);
        next
    }

    /// Adds attributes.
    pub fn attributes(self, attributes: &Attributes) -> Self {
        let Attributes {
            size,
            owner,
            mode,
            times,
        } = attributes;
        let flag = |is_there, flag| if is_there { flag } else { 0 };
        let mut next = self.number(
            flag(size.is_some(), SIZE)
                | flag(owner.is_some(), OWNER)
                | flag(mode.is_some(), MODE)
                | flag(times.is_some(), TIMES),
        );
        if let Some(size) = size {
            next = next.long(*size);
        }
        for (first, second) in owner.iter().copied() {
            next = next.number(first).number(second);
        }
        if let Some(mode) = mode {
            next = next.number(*mode);
        }
        for (first, second) in times.iter().copied() {
            next = next.number(first).number(second);
        }
        next
    }

    /// Adds what another writer has after its type.
    pub fn append(mut self, other: &Self) -> Self {
        self.0.extend(other.0.get(5..).unwrap_or_default());
        self
    }

    /// Returns how many bytes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.0.len() == 5
    }

    /// Finishes the packet.
    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_have_an_end() {
        let packet = Writer::new(7).number(1).string(b"abc").finish();
        let mut input = &packet[..];
        assert_eq!(read_packet(&mut input).unwrap().unwrap(), &packet[4..]);
        assert!(read_packet(&mut input).unwrap().is_none());
        for cut in 1..packet.len() {
            assert!(read_packet(&mut &packet[..cut]).is_err(), "{cut}");
        }
        for length in [0_u32, PACKET_LIMIT as u32 + 1, u32::MAX] {
            assert!(read_packet(&mut &length.to_be_bytes()[..]).is_err());
        }
    }

    proptest! {
        #[test]
        fn attributes_are_read_as_written(
            size: Option<u64>,
            owner: Option<(u32, u32)>,
            mode: Option<u32>,
            times: Option<(u32, u32)>,
        ) {
            let attributes = Attributes { size, owner, mode, times };
            let packet = Writer::new(0).attributes(&attributes).finish();
            let mut reader = Reader(&packet[5..]);
            prop_assert_eq!(reader.attributes(), Ok(attributes));
            prop_assert!(reader.0.is_empty());
        }

        #[test]
        fn reading_is_total(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader(&bytes);
            while reader.attributes().is_ok() && reader.string().is_ok() && !reader.0.is_empty() {}
        }
    }
}
