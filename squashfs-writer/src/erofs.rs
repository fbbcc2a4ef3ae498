//! The erofs form of an image, of the same blocks, with the metadata that Linux's erofs reads.
//!
//! A block of content, compressed, is one *cluster*: it fills whole blocks of 4 KiB, with the room
//! that is left before it. Fragment blocks lie end to end in the *packed inode*, which has no name;
//! small files are parts of it. As for squashfs all data comes first, so one pass is enough:
//!
//! ```text
//! superblock        4 KiB; written as zeroes, patched last
//! clusters          in the order in which they came
//! zeroes            one block, if a file has holes
//! inodes            at multiples of 32 bytes, and what belongs to each one behind it: attributes, the
//!                   end of a listing, a link's target, the index of clusters; the packed inode last
//! listings          those, and targets of links, that do not fit behind their inodes
//! ```
//!
//! The inodes of a directory's entries lie side by side, so that who lists it reads them together.
//! Nothing of the metadata is compressed. Only what Linux 6.1 reads is used, and zstd, which
//! came with 6.10.

mod directory;
mod inode;
mod superblock;

use super::appender::Appender;
use super::compress::Compression;
use super::data::{FileData, Files, Finished, Fragment, RAW};
use super::tree::{Content, InodeId, Tree};
use super::writer::Summary;
use super::{DataId, Error, Options};
use directory::Name;
use inode::{Cluster, Layout, Record};
use std::io::{Read, Seek, Write};
use superblock::Superblock;

/// What everything in the image is a multiple of.
pub(super) const BLOCK: usize = 1 << BLOCK_BITS;
const BLOCK_BITS: u8 = 12;
/// Bytes behind an inode that are worth the gap they may leave before it.
const INLINE: u64 = 2048;
/// Holes are stored in the index of their file, which takes 2 MB for each GB of them.
const HOLES: u64 = 64 << 30;
/// Where the root's inode is; number 0 would be no inode to many programs.
const FIRST: u64 = 64;

/// Whether erofs has this compressor.
pub(super) fn has(compression: Compression) -> bool {
    superblock::algorithm(compression).is_some()
}

/// Refuses what erofs has no form for.
pub(super) fn check(options: &Options) -> Result<(), Error> {
    let refuse = |option, reason| Err(Error::Options { option, reason });
    if !has(options.compression) {
        return refuse("compression", "erofs images have zstd, lz4 or none");
    }
    if options.pack_tails {
        return refuse("pack_tails", "erofs images have no packed tail ends");
    }
    if options.export {
        return refuse("export", "erofs images need no export table");
    }
    Ok(())
}

/// Appends the metadata of `tree` and completes the image.
pub(super) fn finish<W: Read + Write + Seek>(
    data: Finished<W>,
    tree: &Tree,
    options: &Options,
) -> Result<(W, Summary), Error> {
    let Finished {
        mut out,
        files,
        fragments,
    } = data;
    let has_holes = files.have_holes();
    let zeroes = match has_holes {
        true => block_of(out.append(&[0; BLOCK])?)?,
        false => 0,
    };
    let mut image = Image {
        tree,
        files: &files,
        fragments: &fragments,
        cluster: options.block_size.into(),
        algorithm: superblock::algorithm(options.compression).unwrap_or_default(),
        zeroes,
        slots: vec![Slot::default(); tree.len()],
        newest: 0,
        count: 0,
    };
    let end = image.place()?;
    let packed = end.next_multiple_of(inode::SLOT);
    let metadata = block_of(out.position())?;
    image.write(&mut out, packed)?;

    let block = Superblock {
        compression: options.compression,
        cluster: options.block_size,
        root: (FIRST / inode::SLOT) as u16, // 2
        packed: if fragments.is_empty() {
            0
        } else {
            packed / inode::SLOT
        },
        inodes: image.count.into(),
        mtime: options.mtime.unwrap_or(image.newest),
        blocks: block_of(out.position())?,
        metadata,
        is_shared: has_holes || options.share_equal || !fragments.is_empty(),
    };
    let (bytes, inodes) = (out.position(), image.count);
    let file = out.complete(&block.encode())?;
    Ok((file, Summary { inodes, bytes }))
}

/// Fills a compressed block with zeroes before it, and any other with zeroes behind it. `false`
/// means that compressing saved no block.
pub(super) fn align(raw: &mut Vec<u8>, packed: &mut Vec<u8>, is_smaller: bool) -> bool {
    let full = raw.len().next_multiple_of(BLOCK);
    let needed = packed.len().next_multiple_of(BLOCK);
    if is_smaller && needed < full {
        let gap = needed - packed.len();
        packed.splice(..0, std::iter::repeat_n(0, gap));
        return true;
    }
    raw.resize(full, 0);
    false
}

fn block_of(position: u64) -> Result<u32, Error> {
    u32::try_from(position / BLOCK as u64).map_err(|_| Error::TooMany {
        what: "blocks of 4 KiB",
        limit: u32::MAX.into(),
    })
}

/// Where an inode is, in slots, which is also its number; 0 means nowhere yet.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    at: u32,
    links: u32,
}

struct Image<'a> {
    tree: &'a Tree,
    files: &'a Files,
    fragments: &'a [Fragment],
    cluster: u64,
    algorithm: u8,
    /// The block that holes are made of.
    zeroes: u32,
    slots: Vec<Slot>,
    newest: u32,
    count: u32,
}

/// Bytes of an inode's content, and how many of them are where.
#[derive(Debug, Clone, Copy, Default)]
struct Shape {
    size: u64,
    /// Behind the inode: the end of the content, which must lie within one block.
    tail: u64,
    /// Behind the inode: an index of clusters, at a multiple of 8.
    index: u64,
    /// Blocks among the listings.
    blocks: u32,
}

impl<'a> Image<'a> {
    /// Visits all names, and first the root: a directory's entries side by side, then those of its
    /// subdirectories. What has several names is visited as often.
    fn walk(
        tree: &'a Tree,
        mut visit: impl FnMut(InodeId, InodeId) -> Result<(), Error>,
    ) -> Result<(), Error> {
        visit(Tree::ROOT, Tree::ROOT)?;
        let mut waiting = vec![Tree::ROOT];
        while let Some(parent) = waiting.pop() {
            let first = waiting.len();
            for (_, child) in tree.names(parent) {
                visit(parent, child)?;
                if tree.is_directory(child) {
                    waiting.push(child);
                }
            }
            waiting[first..].reverse();
        }
        Ok(())
    }

    /// Gives each inode its place and counts its names; returns where the last one ends.
    fn place(&mut self) -> Result<u64, Error> {
        let mut end = FIRST;
        Self::walk(self.tree, |parent, id| {
            if self.tree.is_directory(id) {
                // Its "." and its "..", which is the root's own.
                self.slots[id.index()].links += 1;
                self.slots[parent.index()].links += u32::from(parent != id);
            }
            let slot = &mut self.slots[id.index()];
            slot.links += 1;
            if slot.at != 0 {
                return Ok(());
            }
            let shape = self.shape(id)?;
            let attributes = self.tree.attributes(id);
            let head = inode::SIZE + inode::xattrs_size(&attributes.xattrs)?;
            let block = BLOCK as u64;
            let crosses = |at: u64| (at + head) % block + shape.tail > block;
            let mut at = end.next_multiple_of(inode::SLOT);
            while crosses(at) {
                at += inode::SLOT;
            }
            end = match shape.index {
                0 => at + head + shape.tail,
                index => (at + head).next_multiple_of(8) + index,
            };
            self.slots[id.index()].at =
                u32::try_from(at / inode::SLOT).map_err(|_| Error::TooMany {
                    what: "bytes of metadata",
                    limit: u64::from(u32::MAX) * inode::SLOT,
                })?;
            self.newest = self.newest.max(self.tree.mtime(id));
            self.count += 1;
            Ok(())
        })?;
        Ok(end)
    }

    fn shape(&self, id: InodeId) -> Result<Shape, Error> {
        let own = |size: u64| {
            let (full, tail) = (size / BLOCK as u64, size % BLOCK as u64);
            let is_inline = tail <= INLINE;
            Shape {
                size,
                tail: if is_inline { tail } else { 0 },
                index: 0,
                // A listing of 2^32 blocks has no place in memory.
                blocks: full as u32 + u32::from(!is_inline),
            }
        };
        Ok(match self.tree.content(id) {
            Content::Directory => {
                let mut lengths: Vec<_> = self.names(id, id).map(|name| name.name.len()).collect();
                let size = directory::size(lengths.drain(..));
                own(size)
            }
            Content::Symlink(target) => own(target.len() as u64),
            Content::File(id) => {
                let data = self.files.get(id)?;
                let index = match self.layout(id)? {
                    _ if is_packed(data) => 8,
                    Layout::Clusters(_) => inode::index_size(data.size),
                    _ => 0,
                };
                Shape {
                    size: data.size,
                    index,
                    ..Shape::default()
                }
            }
            _ => Shape::default(),
        })
    }

    /// The names of a directory with `.` and `..`, in the order of their bytes.
    fn names(&self, id: InodeId, parent: InodeId) -> impl Iterator<Item = Name<'a>> {
        let name = |name, id: InodeId| Name {
            name,
            inode: self.slots[id.index()].at.into(),
            kind: inode::kind_numbers(self.tree.content(id)).1,
        };
        let mut names: Vec<Name<'a>> = vec![name(&b"."[..], id), name(b"..", parent)];
        names.extend(self.tree.names(id).map(|(text, child)| name(text, child)));
        names.sort_unstable_by_key(|name| name.name);
        names.into_iter()
    }

    fn layout(&self, id: DataId) -> Result<Layout, Error> {
        let (data, blocks) = (self.files.get(id)?, self.files.blocks(id));
        if self.files.sparse(id) > HOLES {
            let reason = "a file has more than 64 GiB of holes, which erofs has no form for";
            return Err(Error::Inode { reason });
        }
        if is_packed(data) {
            return Ok(Layout::Clusters(1));
        }
        if blocks.iter().all(|word| word & RAW != 0) {
            return Ok(Layout::Plain(block_of(data.start().unwrap_or(0))?));
        }
        let bytes: u64 = blocks.iter().map(|word| u64::from(word & !RAW)).sum();
        Ok(Layout::Clusters(block_of(bytes)?))
    }

    /// Appends all inodes, the packed inode and the listings.
    fn write<W: Read + Write + Seek>(
        &mut self,
        out: &mut Appender<W>,
        packed: u64,
    ) -> Result<(), Error> {
        let start = out.position();
        let end = match self.fragments.len() {
            0 => packed,
            count => packed + inode::SIZE + inode::index_size(count as u64 * self.cluster),
        };
        let listings = (start + end).next_multiple_of(BLOCK as u64);
        let mut next = block_of(listings)?;
        let mut later = Vec::new();
        let mut number = 0;
        Self::walk(self.tree, |parent, id| {
            let at = start + u64::from(self.slots[id.index()].at) * inode::SLOT;
            if at < out.position() {
                return Ok(()); // another name of what was written
            }
            number += 1;
            let shape = self.shape(id)?;
            let record = self.record(id, parent, shape, number, next)?;
            pad_to(out, at)?;
            out.append(&record)?;
            if let Content::File(data) = self.tree.content(id) {
                self.write_index(out, data)?;
            }
            if shape.blocks > 0 {
                later.push((parent, id));
                let end = next.checked_add(shape.blocks).map(u64::from);
                next = block_of(end.unwrap_or(u64::MAX).saturating_mul(BLOCK as u64))?;
            }
            Ok(())
        })?;
        if !self.fragments.is_empty() {
            pad_to(out, start + packed)?;
            self.write_packed(out, number + 1)?;
        }
        pad_to(out, listings)?;
        for (parent, id) in later {
            let content = self.listing(id, parent);
            let blocks = self.shape(id)?.blocks as usize * BLOCK;
            out.append(&content[..content.len().min(blocks)])?;
            let end = out.position().next_multiple_of(BLOCK as u64);
            pad_to(out, end)?;
        }
        Ok(())
    }

    /// The content of a directory or a link.
    fn listing(&self, id: InodeId, parent: InodeId) -> Vec<u8> {
        match self.tree.content(id) {
            Content::Directory => directory::encode(&self.names(id, parent).collect::<Vec<_>>()),
            Content::Symlink(target) => target.to_vec(),
            _ => Vec::new(),
        }
    }

    /// An inode with what belongs behind it, but for an index of clusters.
    fn record(
        &self,
        id: InodeId,
        parent: InodeId,
        shape: Shape,
        number: u32,
        next: u32,
    ) -> Result<Vec<u8>, Error> {
        let content = self.tree.content(id);
        let layout = match content {
            Content::File(data) => Some(self.layout(data)?),
            Content::CharDevice(number) | Content::BlockDevice(number) => {
                Some(Layout::Device(number))
            }
            Content::Fifo | Content::Socket => Some(Layout::Plain(0)),
            Content::Symlink(_) | Content::Directory => None,
        };
        let layout = layout.unwrap_or(match shape.tail {
            0 => Layout::Plain(next),
            _ => Layout::Inline(next),
        });
        let record = Record {
            layout,
            kind: inode::kind_numbers(content).0,
            size: shape.size,
            number,
            links: self.slots[id.index()].links,
            attributes: self.tree.attributes(id),
            mtime: self.tree.mtime(id),
        };
        let mut bytes = record.encode()?;
        if shape.tail > 0 {
            let content = self.listing(id, parent);
            bytes.extend_from_slice(&content[content.len() - shape.tail as usize..]); // its end
        }
        Ok(bytes)
    }

    /// Appends the index behind a file's inode, if it needs one.
    fn write_index<W: Read + Write + Seek>(
        &self,
        out: &mut Appender<W>,
        id: DataId,
    ) -> Result<(), Error> {
        let data = self.files.get(id)?;
        let Layout::Clusters(_) = self.layout(id)? else {
            return Ok(());
        };
        let at = out.position().next_multiple_of(8);
        pad_to(out, at)?;
        if let Some(tail) = data.tail() {
            let offset = u64::from(tail.fragment) * self.cluster + u64::from(tail.offset);
            out.append(&inode::packed_header(offset))?;
            return Ok(());
        }
        out.append(&inode::index_header(self.algorithm))?;
        let mut position = data.start().unwrap_or(0);
        let mut left = data.size;
        for &word in self.files.blocks(id) {
            let content = left.min(self.cluster);
            self.write_cluster(out, content, position, word)?;
            left -= content;
            position += u64::from(word & !RAW);
        }
        Ok(())
    }

    fn write_cluster<W: Read + Write + Seek>(
        &self,
        out: &mut Appender<W>,
        content: u64,
        position: u64,
        word: u32,
    ) -> Result<(), Error> {
        let is_hole = word == 0;
        let blocks = (word & !RAW) >> BLOCK_BITS; // at most 256
        let cluster = Cluster {
            content,
            block: if is_hole {
                self.zeroes
            } else {
                block_of(position)?
            },
            compressed: if word & RAW == 0 { blocks as u16 } else { 0 },
            is_hole,
        };
        let mut index = Vec::with_capacity(256 * 8);
        inode::put_cluster(&mut index, cluster);
        out.append(&index)?;
        Ok(())
    }

    /// Appends the inode whose content is all fragment blocks.
    fn write_packed<W: Read + Write + Seek>(
        &self,
        out: &mut Appender<W>,
        number: u32,
    ) -> Result<(), Error> {
        let bytes: u64 = self
            .fragments
            .iter()
            .map(|f| u64::from(f.size & !RAW))
            .sum();
        let record = Record {
            layout: Layout::Clusters(block_of(bytes)?),
            kind: 0o100_000,
            size: self.fragments.len() as u64 * self.cluster,
            number,
            links: 1,
            attributes: &super::Attributes::default(),
            mtime: 0,
        };
        out.append(&record.encode()?)?;
        out.append(&inode::index_header(self.algorithm))?;
        for fragment in self.fragments {
            self.write_cluster(out, self.cluster, fragment.start, fragment.size)?;
        }
        Ok(())
    }
}

/// Whether all of a file is in a fragment block.
fn is_packed(data: &FileData) -> bool {
    data.tail().is_some()
}

fn pad_to<W: Read + Write + Seek>(out: &mut Appender<W>, position: u64) -> Result<(), Error> {
    const ZEROES: [u8; BLOCK] = [0; BLOCK];
    while out.position() < position {
        let gap = (position - out.position()).min(BLOCK as u64);
        out.append(&ZEROES[..gap as usize])?; // at most a block
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_blocks_end_where_their_blocks_end() {
        let mut raw = vec![1; 10_000];
        let mut packed = vec![2; 5000];
        assert!(align(&mut raw, &mut packed, true));
        assert_eq!(packed.len(), 8192);
        assert!(packed[..3192].iter().all(|&byte| byte == 0) && packed[3192] == 2);
        // 10,000 bytes take three blocks whether compressed to 8193 or not at all.
        let mut packed = vec![2; 8193];
        assert!(!align(&mut raw, &mut packed, true));
        assert_eq!((raw.len(), raw[9_999], raw[10_000]), (12_288, 1, 0));
    }

    #[test]
    fn what_erofs_has_no_form_for_is_refused() {
        let options = |compression| Options {
            compression,
            ..Options::default()
        };
        assert!(check(&options(Compression::Gzip { level: 6 })).is_err());
        assert!(check(&options(Compression::Xz { level: 6 })).is_err());
        let good = options(Compression::Lz4);
        assert!(check(&good).is_ok());
        let packs_tails = Options {
            pack_tails: true,
            ..good.clone()
        };
        assert!(check(&packs_tails).is_err());
        assert!(
            check(&Options {
                export: true,
                ..good
            })
            .is_err()
        );
    }
}
