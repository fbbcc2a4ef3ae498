//! The tree of an image: names, links and attributes, checked as they are added.
//!
//! Inodes live in one list and are named by [`InodeId`], so that any depth and any number of hard
//! links is plain data. An inode that no directory links to is left out of the image.

use super::attributes::{AttributeTable, Attributes, Shared};
use super::names::{At, Names, Text};
use super::{DataId, Error};

/// Longest name in a directory.
pub(super) const MAX_NAME: usize = 255;
/// Longest target of a symbolic link (Linux's PATH_MAX less its NUL).
pub(super) const MAX_TARGET: usize = 4095;

/// What an inode is; directories are made by [`Tree::add_directory`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file and the contents written for it; several files may share one [`DataId`].
    File(DataId),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Below 2^12.
        major: u32,
        /// Below 2^20.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Below 2^12.
        major: u32,
        /// Below 2^20.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Names an inode of one [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(pub(super) u32);

impl InodeId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// An inode as the tree keeps it, in 16 bytes.
struct Inode {
    content: Packed,
    attributes: Shared,
}

enum Packed {
    /// Which of the tree's directories.
    Directory(u32),
    File(DataId),
    Symlink(At),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Socket,
}

/// What an inode is, directories included.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Directory,
    File(DataId),
    Symlink(&'a [u8]),
    /// The number as the kernel encodes it.
    CharDevice(u32),
    /// The same.
    BlockDevice(u32),
    Fifo,
    Socket,
}

/// All names of an image.
pub struct Tree {
    inodes: Vec<Inode>,
    directories: Vec<Names>,
    text: Text,
    attributes: AttributeTable,
}

impl Tree {
    /// The root directory of every tree.
    pub const ROOT: InodeId = InodeId(0);

    /// Starts a tree that has only its root directory.
    pub fn new(root: Attributes) -> Result<Self, Error> {
        let mut tree = Self {
            inodes: Vec::new(),
            directories: Vec::new(),
            text: Text::default(),
            attributes: AttributeTable::default(),
        };
        tree.push_directory(root)?;
        Ok(tree)
    }

    /// Adds an inode that has no name yet.
    pub fn add_inode(&mut self, kind: Kind, attributes: Attributes) -> Result<InodeId, Error> {
        let reason = match &kind {
            Kind::Symlink(target) if target.is_empty() => "the link target is empty",
            Kind::Symlink(target) if target.len() > MAX_TARGET => {
                "the link target is longer than 4095 bytes"
            }
            Kind::Symlink(target) if target.contains(&0) => "the link target contains a NUL",
            Kind::CharDevice { major, .. } | Kind::BlockDevice { major, .. }
                if *major >= 1 << 12 =>
            {
                "the device's major number is above 4095"
            }
            Kind::CharDevice { minor, .. } | Kind::BlockDevice { minor, .. }
                if *minor >= 1 << 20 =>
            {
                "the device's minor number is above 1048575"
            }
            _ => {
                let packed = self.pack(kind)?;
                return self.push(packed, attributes);
            }
        };
        Err(Error::Inode { reason })
    }

    fn pack(&mut self, kind: Kind) -> Result<Packed, Error> {
        let device = |major: u32, minor: u32| major << 8 | minor & 0xff | (minor & !0xff) << 12;
        Ok(match kind {
            Kind::File(data) => Packed::File(data),
            Kind::Symlink(target) => Packed::Symlink(self.text.push(&target)?),
            Kind::CharDevice { major, minor } => Packed::CharDevice(device(major, minor)),
            Kind::BlockDevice { major, minor } => Packed::BlockDevice(device(major, minor)),
            Kind::Fifo => Packed::Fifo,
            Kind::Socket => Packed::Socket,
        })
    }

    /// Adds an empty directory below `parent`.
    pub fn add_directory(
        &mut self,
        parent: InodeId,
        name: &[u8],
        attributes: Attributes,
    ) -> Result<InodeId, Error> {
        let id = self.push_directory(attributes)?;
        self.insert(parent, name, id)?;
        Ok(id)
    }

    /// Gives an inode a name; each further name of one inode is a hard link.
    pub fn link(&mut self, parent: InodeId, name: &[u8], inode: InodeId) -> Result<(), Error> {
        match self.inodes.get(inode.0 as usize) {
            Some(Inode {
                content: Packed::Directory(_),
                ..
            }) => Err(Error::Inode {
                reason: "a directory has one name only",
            }),
            Some(_) => self.insert(parent, name, inode),
            None => Err(Error::Inode {
                reason: "the inode is of another tree",
            }),
        }
    }

    fn insert(&mut self, parent: InodeId, name: &[u8], inode: InodeId) -> Result<(), Error> {
        let refuse = |reason| {
            Err(Error::Name {
                name: name.escape_ascii().to_string(),
                reason,
            })
        };
        if name.is_empty() || name == b"." || name == b".." {
            return refuse("it is reserved");
        }
        if name.len() > MAX_NAME {
            return refuse("it is longer than 255 bytes");
        }
        if name.iter().any(|&b| b == b'/' || b == 0) {
            return refuse("it contains '/' or NUL");
        }
        let Some(Inode {
            content: Packed::Directory(at),
            ..
        }) = self.inodes.get(parent.0 as usize)
        else {
            return refuse("its parent is not a directory");
        };
        let names = &mut self.directories[*at as usize];
        match names.insert(&mut self.text, name, inode)? {
            true => Ok(()),
            false => refuse("the directory has it already"),
        }
    }

    fn push_directory(&mut self, attributes: Attributes) -> Result<InodeId, Error> {
        // There are no more directories than inodes, which `push` counts.
        let at = self.directories.len() as u32;
        let id = self.push(Packed::Directory(at), attributes)?;
        self.directories.push(Names::default());
        Ok(id)
    }

    fn push(&mut self, content: Packed, attributes: Attributes) -> Result<InodeId, Error> {
        if attributes.mode > 0o7777 {
            return Err(Error::Inode {
                reason: "the mode has bits above 7777",
            });
        }
        // Inode numbers start at 1 and the root's parent is one above the last.
        let limit = u32::MAX - 2;
        let id = u32::try_from(self.inodes.len())
            .ok()
            .filter(|&id| id < limit);
        let id = id.ok_or(Error::TooMany {
            what: "inodes",
            limit: limit.into(),
        })?;
        let attributes = self.attributes.add(attributes);
        self.inodes.push(Inode {
            content,
            attributes,
        });
        Ok(InodeId(id))
    }

    /// Inodes of the tree, those that nothing links to among them.
    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }

    pub(super) fn content(&self, id: InodeId) -> Content<'_> {
        match self.inodes[id.index()].content {
            Packed::Directory(_) => Content::Directory,
            Packed::File(data) => Content::File(data),
            Packed::Symlink(target) => Content::Symlink(self.text.get(target)),
            Packed::CharDevice(number) => Content::CharDevice(number),
            Packed::BlockDevice(number) => Content::BlockDevice(number),
            Packed::Fifo => Content::Fifo,
            Packed::Socket => Content::Socket,
        }
    }

    /// All attributes but the time.
    pub(super) fn attributes(&self, id: InodeId) -> &Attributes {
        self.attributes.timeless(self.inodes[id.index()].attributes)
    }

    pub(super) fn mtime(&self, id: InodeId) -> u32 {
        self.inodes[id.index()].attributes.mtime()
    }

    /// The names in a directory in the order of their bytes; none in anything else.
    pub(super) fn names(&self, id: InodeId) -> impl Iterator<Item = (&[u8], InodeId)> {
        let names = match self.inodes[id.index()].content {
            Packed::Directory(at) => self.directories.get(at as usize),
            _ => None,
        };
        names.into_iter().flat_map(|names| names.iter(&self.text))
    }

    pub(super) fn is_directory(&self, id: InodeId) -> bool {
        matches!(self.inodes[id.index()].content, Packed::Directory(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_are_small() {
        assert_eq!(size_of::<Inode>(), 16);
    }

    #[test]
    fn names_and_inodes_that_the_kernel_could_not_show_are_refused() {
        let mut tree = Tree::new(Attributes::default()).unwrap();
        let fifo = tree.add_inode(Kind::Fifo, Attributes::default()).unwrap();
        let long = [b'x'; 256];
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &long] {
            assert!(tree.link(Tree::ROOT, name, fifo).is_err(), "{name:?}");
        }
        for name in [&long[..255], b"\xff\xfe", b"a b\n", b"..."] {
            tree.link(Tree::ROOT, name, fifo).unwrap();
        }
        assert!(tree.link(Tree::ROOT, b"...", fifo).is_err(), "a name twice");
        assert!(tree.link(fifo, b"x", fifo).is_err(), "a name below a file");
        assert!(
            tree.link(Tree::ROOT, b"x", Tree::ROOT).is_err(),
            "a second name for a directory"
        );
        assert!(tree.link(Tree::ROOT, b"x", InodeId(99)).is_err());

        let device = |major, minor| Kind::CharDevice { major, minor };
        for (kind, good) in [
            (Kind::Symlink(Vec::new()), false),
            (Kind::Symlink(vec![b'x'; 4096]), false),
            (Kind::Symlink(b"a\0".to_vec()), false),
            (Kind::Symlink(vec![b'x'; 4095]), true),
            (device(4096, 0), false),
            (device(0, 1 << 20), false),
            (device(4095, (1 << 20) - 1), true),
        ] {
            let added = tree.add_inode(kind.clone(), Attributes::default());
            assert_eq!(added.is_ok(), good, "{kind:?}");
        }
        let mode = Attributes {
            mode: 0o10000,
            ..Attributes::default()
        };
        assert!(tree.add_inode(Kind::Fifo, mode).is_err());
    }
}
