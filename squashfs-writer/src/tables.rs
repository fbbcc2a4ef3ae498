//! The inode and directory tables: which inode gets which number, and what lies where.
//!
//! A directory comes after what is in it, because its listing says where that is; apart from that
//! everything is in the order in which a walk by name looks at it. The kernel keeps eight blocks of
//! metadata: in this order each is read and decompressed least often, by walks (a quarter less
//! often than with a directory's files side by side) and also by programs that start.
//!
//! What is near the root comes last, together: who makes a container looks at every entry of the
//! top level, and at some directories below, before the image's first program is asked for.

use super::attributes::Attributes;
use super::data::Files;
use super::directory::{self, Name};
use super::inode::{self, Head};
use super::metadata::{MetadataWriter, Position};
use super::tree::{Content, InodeId, Tree};
use super::xattr::XattrWriter;
use super::{Compression, Error};
use std::collections::HashMap;

const MAX_IDS: usize = u16::MAX as usize;

/// The inode and directory tables while they grow.
pub(super) struct Tables<'a> {
    tree: &'a Tree,
    files: &'a Files,
    inodes: MetadataWriter,
    directories: MetadataWriter,
    xattrs: XattrWriter<'a>,
    ids: Vec<u32>,
    id_index: HashMap<u32, u16>,
    slots: Vec<Slot>,
    count: u32,
    newest: u32,
}

/// What is left to do, the next thing last, with how far from the root it is.
enum Step {
    Enter(InodeId, usize),
    Leave(InodeId, usize),
}

/// Directories that are so far from the root, or nearer, come last; in the top level everything does.
const NEAR: usize = 2;

/// What is known about one inode so far; number 0 means that nothing links to it.
#[derive(Clone, Copy, Default)]
struct Slot {
    number: u32,
    links: u32,
    /// A directory's parent.
    parent: u32,
    /// Where it is.
    reference: u64,
    is_written: bool,
}

impl Slot {
    fn written(&self) -> Option<Position> {
        self.is_written.then(|| Position::of(self.reference))
    }
}

/// The finished tables.
pub(super) struct Built<'a> {
    pub(super) inodes: Vec<u8>,
    pub(super) directories: Vec<u8>,
    pub(super) xattrs: XattrWriter<'a>,
    pub(super) ids: Vec<u32>,
    pub(super) root: Position,
    pub(super) count: u32,
    pub(super) newest: u32,
    /// The reference of each inode in the order of their numbers, as the export table has them.
    pub(super) numbered: Vec<u8>,
}

impl<'a> Tables<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        files: &'a Files,
        compression: Compression,
    ) -> Result<Self, Error> {
        Ok(Self {
            tree,
            files,
            inodes: MetadataWriter::new(compression)?,
            directories: MetadataWriter::new(compression)?,
            xattrs: XattrWriter::new(compression)?,
            ids: Vec::new(),
            id_index: HashMap::new(),
            slots: vec![Slot::default(); tree.len()],
            count: 0,
            newest: 0,
        })
    }

    pub(super) fn build(mut self, export: bool) -> Result<Built<'a>, Error> {
        let tree = self.tree;
        self.number();
        let mut near: [Vec<InodeId>; NEAR + 1] = Default::default();
        let mut waiting = vec![Step::Enter(Tree::ROOT, 0)];
        while let Some(step) = waiting.pop() {
            match step {
                Step::Leave(id, depth) if depth <= NEAR => near[depth].push(id),
                Step::Leave(id, _) => _ = self.write_directory(id)?,
                Step::Enter(id, depth) => match tree.content(id) {
                    Content::Directory => {
                        waiting.push(Step::Leave(id, depth));
                        let first = waiting.len();
                        let children = tree.names(id);
                        waiting.extend(children.map(|(_, child)| Step::Enter(child, depth + 1)));
                        waiting[first..].reverse();
                    }
                    _ if depth == 1 => near[depth].push(id),
                    content => self.write_other(id, content)?,
                },
            }
        }
        let mut root = Position::default();
        for id in near.into_iter().rev().flatten() {
            match tree.content(id) {
                Content::Directory => root = self.write_directory(id)?,
                content => self.write_other(id, content)?,
            }
        }
        let numbered = if export { self.numbered() } else { Vec::new() };
        Ok(Built {
            inodes: self.inodes.finish()?,
            directories: self.directories.finish()?,
            xattrs: self.xattrs,
            ids: self.ids,
            root,
            count: self.count,
            newest: self.newest,
            numbered,
        })
    }

    /// Numbers every inode that can be reached and counts its links. The entries of a directory
    /// get neighbouring numbers, which keeps listings short.
    fn number(&mut self) {
        let tree = self.tree;
        let mut waiting = vec![Tree::ROOT];
        self.count = 1;
        // "." and the name in the parent; each subdirectory's ".." adds one.
        self.slots[0] = Slot {
            number: 1,
            links: 2,
            ..Slot::default()
        };
        while let Some(id) = waiting.pop() {
            let parent = self.slots[id.0 as usize].number;
            for (_, child) in tree.names(id) {
                let slot = &mut self.slots[child.0 as usize];
                slot.links += 1;
                if slot.number == 0 {
                    self.count += 1;
                    slot.number = self.count;
                }
                if tree.is_directory(child) {
                    slot.links += 1;
                    slot.parent = parent;
                    self.slots[id.0 as usize].links += 1;
                    waiting.push(child);
                }
            }
        }
        // The root is not in any directory: like other tools, give it a parent beyond all inodes.
        self.slots[0].parent = self.count + 1;
    }

    fn numbered(&self) -> Vec<u8> {
        let mut numbered = vec![0; self.count as usize * 8];
        for slot in &self.slots {
            if let Some(position) = slot.written() {
                let at = (slot.number as usize - 1) * 8; // what is written has a number
                numbered[at..at + 8].copy_from_slice(&position.reference().to_le_bytes());
            }
        }
        numbered
    }

    fn write_directory(&mut self, id: InodeId) -> Result<Position, Error> {
        let tree = self.tree;
        let mut names = Vec::new();
        for (name, child) in tree.names(id) {
            let slot = self.slots[child.0 as usize];
            names.push(Name {
                name,
                inode: slot.written().unwrap_or_default(), // children are written first
                number: slot.number,
                kind: inode::kind_number(tree.content(child)),
            });
        }
        let listing = directory::write(&mut self.directories, &names)?;
        let head = self.head(id)?;
        let record = inode::directory(&head, &listing, self.slots[id.0 as usize].parent)?;
        self.write_record(id, &record)
    }

    /// Writes an inode that is not a directory, when its first name comes.
    fn write_other(&mut self, id: InodeId, content: Content<'_>) -> Result<(), Error> {
        if self.slots[id.0 as usize].is_written {
            return Ok(());
        }
        let head = self.head(id)?;
        let record = match content {
            Content::File(id) => {
                let data = self.files.get(id)?;
                let (blocks, sparse) = (self.files.blocks(id), self.files.sparse(id));
                inode::file(&head, data, blocks, sparse)
            }
            other => inode::special(&head, other),
        };
        self.write_record(id, &record)?;
        Ok(())
    }

    fn write_record(&mut self, id: InodeId, record: &[u8]) -> Result<Position, Error> {
        let position = self.inodes.position();
        self.inodes.write(record)?;
        let slot = &mut self.slots[id.0 as usize];
        (slot.reference, slot.is_written) = (position.reference(), true);
        Ok(position)
    }

    fn head(&mut self, id: InodeId) -> Result<Head<'a>, Error> {
        let attributes: &'a Attributes = self.tree.attributes(id);
        let mtime = self.tree.mtime(id);
        let slot = self.slots[id.0 as usize];
        self.newest = self.newest.max(mtime);
        Ok(Head {
            attributes,
            mtime,
            uid: self.id(attributes.uid)?,
            gid: self.id(attributes.gid)?,
            number: slot.number,
            links: slot.links,
            xattrs: self.xattrs.index(&attributes.xattrs)?,
        })
    }

    fn id(&mut self, id: u32) -> Result<u16, Error> {
        if let Some(&index) = self.id_index.get(&id) {
            return Ok(index);
        }
        if self.ids.len() >= MAX_IDS {
            return Err(Error::TooMany {
                what: "different uids and gids",
                limit: MAX_IDS as u64,
            });
        }
        let index = self.ids.len() as u16; // below MAX_IDS
        self.ids.push(id);
        self.id_index.insert(id, index);
        Ok(index)
    }
}
