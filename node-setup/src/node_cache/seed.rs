//! What mkfs writes into an empty file, without the zeroes: some dozens of blocks.
//!
//! mkfs itself writes megabytes of zeroes, which a parallel file system takes a second for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::BLOCK;

const CHUNK: usize = 256 << 10;

/// Bytes that a seed may have: the largest file systems have 20 MB.
const LIMIT: u64 = 64 << 20;

/// The size of a file and its bytes that are not zero.
#[derive(Debug, PartialEq, Eq)]
pub struct Seed {
    size: u64,
    /// `(offset, bytes)`, in whole blocks, ascending.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Seed {
    /// Reads what is not zero of a sparse file.
    pub fn read(file: &File) -> io::Result<Self> {
        const ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];
        let size = file.metadata()?.len();
        let mut seed = Self {
            size,
            pieces: Vec::new(),
        };
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        while let Some((start, end)) = next_data(file, at)? {
            at = start;
            while at < end {
                let length = CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK));
                let read = &mut chunk[..length];
                file.read_exact_at(read, at)?;
                for block in read.chunks(ZEROES.len()) {
                    if *block != ZEROES[..block.len()] {
                        seed.add(at, block);
                    }
                    at += block.len() as u64;
                }
            }
            if seed.bytes() > LIMIT {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        Ok(seed)
    }

    /// Writes it into an empty file.
    pub fn write(&self, file: &File) -> io::Result<()> {
        file.set_len(self.size)?;
        self.pieces
            .iter()
            .try_for_each(|(offset, bytes)| file.write_all_at(bytes, *offset))
    }

    /// Returns the size of the file it makes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns how many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.pieces
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum()
    }

    fn add(&mut self, offset: u64, block: &[u8]) {
        match self.pieces.last_mut() {
            Some((start, bytes)) if *start + bytes.len() as u64 == offset => {
                bytes.extend_from_slice(block);
            }
            _ => self.pieces.push((offset, block.to_vec())),
        }
    }
}

/// Returns where the next bytes at or after `at` are that are not in a hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((
        start,
        rustix::fs::seek(file, SeekFrom::Hole(start))?,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_memory() -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        File::from(rustix::fs::memfd_create("test", flags).unwrap())
    }

    #[test]
    fn holes_and_zeroes_are_left_out() {
        let file = in_memory();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(&[0; 3 << 20], 1 << 30).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&[7; 10_000], (1 << 30) + 4096).unwrap();
        file.write_all_at(b"last", (1 << 40) - 4).unwrap();
        let seed = Seed::read(&file).unwrap();
        let pieces: Vec<(u64, usize)> = seed.pieces.iter().map(|(o, b)| (*o, b.len())).collect();
        let expected = [
            (0, 4096),
            ((1 << 30) + 4096, 3 * 4096),
            ((1 << 40) - 4096, 4096),
        ];
        assert_eq!(pieces, expected);

        let copy = in_memory();
        seed.write(&copy).unwrap();
        assert_eq!(copy.metadata().unwrap().len(), 1 << 40);
        assert_eq!(Seed::read(&copy).unwrap(), seed);
        let mut word = [0; 4];
        copy.read_exact_at(&mut word, (1 << 40) - 4).unwrap();
        assert_eq!(&word, b"last");
    }

    #[test]
    fn an_empty_file_has_nothing() {
        let seed = Seed::read(&in_memory()).unwrap();
        assert_eq!((seed.size(), seed.bytes()), (0, 0));
    }
}
