//! Owners, permissions, times and extended attributes of inodes, and a table that keeps equal ones once.

use std::collections::HashMap;
use std::sync::Arc;

/// An extended attribute: full name (such as `user.comment`) and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// The name spaces that both formats have.
const NAME_SPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Splits an attribute's name: which of [`NAME_SPACES`] it is in, and what follows.
pub(super) fn split_name(name: &[u8]) -> Result<(usize, &[u8]), &'static str> {
    let mut spaces = NAME_SPACES.iter().enumerate();
    let found = spaces.find_map(|(at, space)| Some((at, name.strip_prefix(*space)?)));
    let (space, rest) = found.ok_or("only user., trusted. and security. can be stored")?;
    if rest.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err("names have 1 to 255 bytes and no NUL");
    }
    Ok((space, rest))
}

/// Owner, permissions, time and extended attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970; the format has no sign and no fraction. See
    /// [`clamp_time`].
    pub mtime: u32,
    /// Extended attributes whose names begin with `user.`, `trusted.` or `security.`.
    pub xattrs: Vec<Xattr>,
}

/// The nearest time that an image can hold: from 1970 to the 7th of February 2106.
pub fn clamp_time(seconds: i64) -> u32 {
    seconds.clamp(0, u32::MAX.into()) as u32 // just clamped
}

/// Attributes of many inodes: few have owners, modes and extended attributes that no other one has, so that
/// eight bytes do for most.
#[derive(Debug, Default)]
pub struct AttributeTable {
    /// Each different one, its time left out.
    sets: Vec<Arc<Attributes>>,
    known: HashMap<Arc<Attributes>, u32>,
}

/// Names attributes of one [`AttributeTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    set: u32,
    mtime: u32,
}

impl AttributeTable {
    /// Keeps attributes; there is room for 2^32 that differ.
    pub fn add(&mut self, mut attributes: Attributes) -> Shared {
        let mtime = std::mem::take(&mut attributes.mtime);
        let set = match self.known.get(&attributes) {
            Some(&known) => known,
            None => {
                let new = self.sets.len() as u32; // far fewer fit into memory
                let attributes = Arc::new(attributes);
                self.sets.push(Arc::clone(&attributes));
                self.known.insert(attributes, new);
                new
            }
        };
        Shared { set, mtime }
    }

    /// The attributes that were kept.
    pub fn get(&self, shared: Shared) -> Attributes {
        Attributes {
            mtime: shared.mtime,
            ..self.timeless(shared).clone()
        }
    }

    /// All but the time.
    pub(super) fn timeless(&self, shared: Shared) -> &Attributes {
        &self.sets[shared.set as usize]
    }
}

impl Shared {
    pub(super) fn mtime(self) -> u32 {
        self.mtime
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_in_time_alone_is_kept_once() {
        let mut table = AttributeTable::default();
        let all: Vec<Attributes> = (0..100)
            .map(|n| Attributes {
                mode: 0o644 + n % 2,
                mtime: n.into(),
                xattrs: vec![(b"user.a".to_vec(), vec![n as u8 % 3])],
                ..Attributes::default()
            })
            .collect();
        let kept: Vec<_> = all.iter().map(|one| table.add(one.clone())).collect();
        assert_eq!(table.sets.len(), 6);
        for (one, shared) in all.iter().zip(kept) {
            assert_eq!(table.get(shared), *one);
        }
    }
}
