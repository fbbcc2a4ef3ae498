//! The writer itself: superblock first as zeroes, then data, then all metadata, then the
//! superblock again.

use super::data::{DataWriter, FileData, FileWriter, Finished};
use super::directory::{self, Name};
use super::inode::{self, Head};
use super::metadata::{MetadataWriter, Position, Table};
use super::superblock::{self, Superblock};
use super::tree::{Content, InodeId, Tree};
use super::xattr::XattrWriter;
use super::{Attributes, Error, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, Options};
use std::collections::HashMap;
use std::io::{BufWriter, Seek, SeekFrom, Write};

/// The kernel reads whole device blocks; 4 KiB suits every device.
const PADDING: u64 = 4096;
const MAX_IDS: usize = u16::MAX as usize;

/// What an image became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Inodes in the image, the root included.
    pub inodes: u32,
    /// Size of the image, padding included.
    pub bytes: u64,
}

/// Writes one image; see the [module](super) for an example.
pub struct Writer<W: Write + Seek> {
    data: DataWriter<W>,
    options: Options,
}

impl<W: Write + Seek> Writer<W> {
    /// Starts an image at the start of `out`, which should be empty.
    pub fn new(out: W, options: &Options) -> Result<Self, Error> {
        let size = options.block_size;
        if !size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&size) {
            let reason = "must be a power of two from 4 KiB to 1 MiB";
            return Err(Error::Options {
                option: "block_size",
                reason,
            });
        }
        options.compression.check()?;
        let mut out = BufWriter::with_capacity(256 * 1024, out);
        let mut head = vec![0; superblock::SIZE];
        if let Some(block) = options.compression.options() {
            let len = options.compression.options_len();
            head.extend_from_slice(&(0x8000 | len as u16).to_le_bytes()); // at most 8
            head.extend_from_slice(&block[..len]);
        }
        out.seek(SeekFrom::Start(0))
            .and_then(|_| out.write_all(&head))
            .map_err(|source| Error::Write { source })?;
        let data = DataWriter::new(out, head.len() as u64, options)?;
        Ok(Self {
            data,
            options: options.clone(),
        })
    }

    /// Starts the contents of a regular file.
    pub fn start_file(&mut self) -> FileWriter<'_, W> {
        self.data.start_file()
    }

    /// Appends the metadata of `tree` and completes the image. The output is flushed, but not
    /// synchronised with the disk.
    pub fn finish(self, tree: &Tree) -> Result<(W, Summary), Error> {
        let Finished {
            out,
            position,
            files,
            fragments,
        } = self.data.finish()?;
        let compression = self.options.compression;
        let tables = Tables::new(tree, &files, compression)?.build()?;

        let mut records = Vec::with_capacity(fragments.len() * 16);
        for fragment in &fragments {
            records.extend_from_slice(&fragment.start.to_le_bytes());
            records.extend_from_slice(&fragment.size.to_le_bytes());
            records.extend_from_slice(&[0; 4]);
        }
        let mut out = Appender { out, position };
        let inode_table = out.append(&tables.inodes)?;
        let directory_table = out.append(&tables.directories)?;
        let fragment_table = match fragments.len() {
            0 => superblock::ABSENT,
            _ => out.append_table(&Table::new(&records, compression)?, &[])?,
        };
        let ids: Vec<u8> = tables.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let id_table = out.append_table(&Table::new(&ids, compression)?, &[])?;
        let xattr_table = match tables.xattrs.finish(compression)? {
            None => superblock::ABSENT,
            Some(xattrs) => {
                let mut head = out.append(&xattrs.pairs)?.to_le_bytes().to_vec();
                head.extend_from_slice(&xattrs.count.to_le_bytes());
                head.extend_from_slice(&[0; 4]);
                out.append_table(&xattrs.ids, &head)?
            }
        };
        let bytes_used = out.position;
        let padding = bytes_used.next_multiple_of(PADDING) - bytes_used;
        out.append(&vec![0; padding as usize])?; // less than 4096

        let block = Superblock {
            inodes: tables.count,
            mtime: self.options.mtime.unwrap_or(tables.newest),
            block_size: self.options.block_size,
            fragments: fragments.len() as u32, // `pack_tail` counted
            compressor: compression.id(),
            has_options: compression.options().is_some(),
            is_raw: compression == super::Compression::None,
            ids: tables.ids.len() as u16, // at most MAX_IDS
            root: tables.root.reference(),
            bytes_used,
            id_table,
            xattr_table,
            inode_table,
            directory_table,
            fragment_table,
        };
        let bytes = out.position;
        let file = out.complete(&block)?;
        Ok((
            file,
            Summary {
                inodes: tables.count,
                bytes,
            },
        ))
    }

    #[cfg(test)]
    pub(super) fn leave_gap(&mut self, bytes: u64) -> Result<(), Error> {
        self.data.leave_gap(bytes)
    }
}

/// The output and how far it is.
struct Appender<W: Write> {
    out: BufWriter<W>,
    position: u64,
}

impl<W: Write + Seek> Appender<W> {
    /// Appends bytes and returns where they start.
    fn append(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let start = self.position;
        self.out
            .write_all(bytes)
            .map_err(|source| Error::Write { source })?;
        self.position += bytes.len() as u64;
        Ok(start)
    }

    /// Appends a table's blocks, then `head` and the blocks' positions; returns where `head` is.
    fn append_table(&mut self, table: &Table, head: &[u8]) -> Result<u64, Error> {
        let first = self.append(&table.stored)?;
        let mut index = head.to_vec();
        for start in &table.starts {
            index.extend_from_slice(&(first + start).to_le_bytes());
        }
        self.append(&index)
    }

    /// Patches the superblock and gives the output back.
    fn complete(mut self, block: &Superblock) -> Result<W, Error> {
        let write = |source| Error::Write { source };
        self.out.seek(SeekFrom::Start(0)).map_err(write)?;
        self.out.write_all(&block.encode()).map_err(write)?;
        self.out.into_inner().map_err(|e| write(e.into_error()))
    }
}

/// The inode and directory tables while they grow.
struct Tables<'a> {
    tree: &'a Tree,
    files: &'a [FileData],
    inodes: MetadataWriter,
    directories: MetadataWriter,
    xattrs: XattrWriter<'a>,
    ids: Vec<u32>,
    id_index: HashMap<u32, u16>,
    slots: Vec<Slot>,
    count: u32,
    newest: u32,
}

/// What is known about one inode so far; number 0 means that nothing links to it.
#[derive(Clone, Copy, Default)]
struct Slot {
    number: u32,
    links: u32,
    /// A directory's parent.
    parent: u32,
    written: Option<Position>,
}

/// The finished tables.
struct Built<'a> {
    inodes: Vec<u8>,
    directories: Vec<u8>,
    xattrs: XattrWriter<'a>,
    ids: Vec<u32>,
    root: Position,
    count: u32,
    newest: u32,
}

impl<'a> Tables<'a> {
    fn new(
        tree: &'a Tree,
        files: &'a [FileData],
        compression: super::Compression,
    ) -> Result<Self, Error> {
        Ok(Self {
            tree,
            files,
            inodes: MetadataWriter::new(compression)?,
            directories: MetadataWriter::new(compression)?,
            xattrs: XattrWriter::new(compression)?,
            ids: Vec::new(),
            id_index: HashMap::new(),
            slots: vec![Slot::default(); tree.inodes.len()],
            count: 0,
            newest: 0,
        })
    }

    fn build(mut self) -> Result<Built<'a>, Error> {
        let directories = self.number();
        let mut root = Position::default();
        // From the last to the first, so that children exist when their directory is written.
        for &id in directories.iter().rev() {
            root = self.write_directory(id)?;
        }
        Ok(Built {
            inodes: self.inodes.finish()?,
            directories: self.directories.finish()?,
            xattrs: self.xattrs,
            ids: self.ids,
            root,
            count: self.count,
            newest: self.newest,
        })
    }

    /// Numbers every inode that can be reached and counts its links. The entries of a directory
    /// get neighbouring numbers, which keeps listings short. Returns the directories, parents
    /// before children.
    fn number(&mut self) -> Vec<InodeId> {
        let tree = self.tree;
        let mut order = Vec::new();
        let mut waiting = vec![Tree::ROOT];
        self.count = 1;
        // "." and the name in the parent; each subdirectory's ".." adds one.
        self.slots[0] = Slot {
            number: 1,
            links: 2,
            ..Slot::default()
        };
        while let Some(id) = waiting.pop() {
            order.push(id);
            let Content::Directory(names) = &tree.inode(id).content else {
                continue;
            };
            let parent = self.slots[id.0 as usize].number;
            let mut children = Vec::new();
            for &child in names.values() {
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
                    children.push(child);
                }
            }
            waiting.extend(children.into_iter().rev());
        }
        // The root is not in any directory: like other tools, give it a parent beyond all inodes.
        self.slots[0].parent = self.count + 1;
        order
    }

    fn write_directory(&mut self, id: InodeId) -> Result<Position, Error> {
        let tree = self.tree;
        let Content::Directory(children) = &tree.inode(id).content else {
            return Ok(Position::default()); // `number` returns directories only
        };
        let mut names = Vec::with_capacity(children.len());
        for (name, &child) in children {
            let inode = match self.slots[child.0 as usize].written {
                Some(position) => position,
                None => self.write_other(child)?,
            };
            let kind = match &tree.inode(child).content {
                Content::Directory(_) => inode::DIRECTORY,
                Content::Other(kind) => inode::kind_number(kind),
            };
            let number = self.slots[child.0 as usize].number;
            names.push(Name {
                name,
                inode,
                number,
                kind,
            });
        }
        let listing = directory::write(&mut self.directories, &names)?;
        let head = self.head(id)?;
        let record = inode::directory(&head, &listing, self.slots[id.0 as usize].parent)?;
        self.write_record(id, &record)
    }

    fn write_other(&mut self, id: InodeId) -> Result<Position, Error> {
        let tree = self.tree;
        let head = self.head(id)?;
        let record = match &tree.inode(id).content {
            Content::Directory(_) => return Ok(Position::default()), // written before its parent
            Content::Other(super::Kind::File(data)) => {
                let data = self.files.get(data.0 as usize);
                let reason = "the file's contents are of another image";
                inode::file(&head, data.ok_or(Error::Inode { reason })?)
            }
            Content::Other(kind) => inode::special(&head, kind),
        };
        self.write_record(id, &record)
    }

    fn write_record(&mut self, id: InodeId, record: &[u8]) -> Result<Position, Error> {
        let position = self.inodes.position();
        self.inodes.write(record)?;
        self.slots[id.0 as usize].written = Some(position);
        Ok(position)
    }

    fn head(&mut self, id: InodeId) -> Result<Head<'a>, Error> {
        let attributes: &'a Attributes = &self.tree.inode(id).attributes;
        let slot = self.slots[id.0 as usize];
        self.newest = self.newest.max(attributes.mtime);
        Ok(Head {
            attributes,
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
