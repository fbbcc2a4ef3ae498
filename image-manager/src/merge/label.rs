//! Names as keys of a directory: most are short enough to need no memory of their own.

use std::borrow::Borrow;
use std::cmp::Ordering;

const SHORT: usize = 22;

/// One name, ordered by its bytes.
#[derive(Clone)]
pub(super) enum Label {
    /// Its length, and its bytes first.
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

impl Label {
    pub(super) fn new(name: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match bytes.get_mut(..name.len()) {
            Some(start) => {
                start.copy_from_slice(name);
                Self::Short(name.len() as u8, bytes) // at most 22
            }
            None => Self::Long(name.into()),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(length, bytes) => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Label {
    fn borrow(&self) -> &[u8] {
        self.bytes()
    }
}

impl Ord for Label {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl PartialOrd for Label {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Label {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Label {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_ordered_as_their_bytes_are() {
        let long = [b'a'; 255];
        let mut names: Vec<&[u8]> = vec![b"", b"a", b"b", b"a\0", b"\xff"];
        names.extend([&long[..21], &long[..22], &long[..23], &long]);
        for one in &names {
            for other in &names {
                let (a, b) = (Label::new(one), Label::new(other));
                assert_eq!((a.cmp(&b), a == b), (one.cmp(other), one == other));
                assert_eq!(a.bytes(), *one);
            }
        }
        assert_eq!(size_of::<Label>(), 24);
    }
}
