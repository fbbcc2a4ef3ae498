//! How much memory a zstd frame asks of whoever decompresses it.
//!
//! ```text
//! 0 magic 28 b5 2f fd   4 descriptor   5 window, unless the frame is one segment
//! id of a dictionary    size of the content: as the descriptor says
//! ```
//!
//! Engines write frames with windows of at most 8 MiB; only those of `zstd --long` and `--ultra` have more.

/// Bytes of a window that any number of layers may have at once, as a logarithm: 8 MiB.
pub(super) const USUAL_LOG: u32 = 23;
/// 128 MiB, what every zstd tool accepts without being asked; a frame may demand up to 2 TiB.
pub(super) const LARGEST_LOG: u32 = 27;

/// Whether the first frame in `head` has a window that engines write. What cannot be told is not usual.
pub(super) fn is_usual(mut head: &[u8]) -> bool {
    loop {
        match head {
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, rest @ ..] => {
                let length = u32::from_le_bytes([*a, *b, *c, *d]);
                let rest = usize::try_from(length)
                    .ok()
                    .and_then(|skip| rest.get(skip..));
                let Some(rest) = rest else { return false };
                head = rest;
            }
            [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] => {
                return window(*descriptor, rest).is_some_and(|bytes| bytes <= 1 << USUAL_LOG);
            }
            _ => return false,
        }
    }
}

/// The window that a frame's header demands, in bytes.
fn window(descriptor: u8, rest: &[u8]) -> Option<u64> {
    let is_one_segment = descriptor & 0x20 != 0;
    if !is_one_segment {
        let byte = *rest.first()?;
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * u64::from(byte & 7));
    }
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let (length, more) = [(1, 0), (2, 256), (4, 0), (8, 0)][usize::from(descriptor >> 6)];
    let digits = rest.get(dictionary..)?.get(..length)?;
    let number = digits.iter().rev();
    let size = number.fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    Some(size.saturating_add(more))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn frame(log: u32, is_size_known: bool, length: usize) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        if is_size_known {
            encoder.set_pledged_src_size(Some(length as u64)).unwrap();
        }
        encoder.write_all(&vec![7; length]).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn windows_are_read_as_zstd_writes_them() {
        for (log, is_size_known, length, is_small) in [
            (23, false, 100, true),
            (24, false, 100, false),
            (27, false, 100, false),
            // What is smaller than its window needs none of that size.
            (27, true, 100, true),
            (27, true, 300, true),
            (27, true, 70_000, true),
            (24, true, 9 << 20, false),
            (20, true, 9 << 20, true),
        ] {
            let frame = frame(log, is_size_known, length);
            assert_eq!(is_usual(&frame), is_small, "{log} {is_size_known} {length}");
            let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], &frame[..]].concat();
            assert_eq!(is_usual(&skippable), is_small);
        }
    }

    #[test]
    fn what_cannot_be_told_is_not_usual() {
        let usual = frame(23, false, 100);
        let beyond = [0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 1];
        for head in [&b""[..], b"\x28\xb5\x2f\xfd", &usual[..5], &beyond] {
            assert!(!is_usual(head), "{head:?}");
        }
    }
}
