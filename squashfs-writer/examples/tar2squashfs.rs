//! Converts a tar archive from standard input to a squashfs image in one pass:
//!
//!     tar2squashfs OUT [compression=zstd:1] [block_size=65536] [threads=2] [pack_tails=true]
//!                      [share_equal=false] [export=true] [format=erofs] < ARCHIVE
//!
//! Whiteouts and everything else that concerns several layers is not its business.

use squashfs_writer::{Attributes, Error, InodeId, Kind, Options, Tree, Writer, clamp_time};
use std::collections::HashMap;
use std::error::Error as AnyError;
use std::fs::File;
use std::io::{self, BufReader, Read};
use tar::{Archive, EntryType};

type Result<T> = std::result::Result<T, Box<dyn AnyError>>;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let out = words.next().ok_or("the name of the image is missing")?;
    let mut options = Options::default();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .ok_or("options have the form key=value")?;
        match key {
            "compression" => options.compression = value.parse()?,
            "block_size" => options.block_size = value.parse()?,
            "threads" => options.threads = value.parse()?,
            "pack_tails" => options.pack_tails = value.parse()?,
            "share_equal" => options.share_equal = value.parse()?,
            "format" => options.format = value.parse()?,
            "export" => options.export = value.parse()?,
            _ => return Err(format!("there is no option '{key}'").into()),
        }
    }
    // Equal files are found by reading back what was written.
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(out)?;
    let writer = Writer::new(&mut file, &options)?;
    convert(io::stdin().lock(), writer)
}

/// Names so far; directories and the rest apart, because only the rest can have several names.
#[derive(Default)]
struct Names {
    directories: HashMap<Vec<u8>, InodeId>,
    others: HashMap<Vec<u8>, InodeId>,
}

fn convert(archive: impl Read, mut writer: Writer<&mut File>) -> Result<()> {
    let mut tree = Tree::new(directory())?;
    let mut names = Names::default();
    let mut buffer = vec![0; 1 << 18];
    let mut archive = Archive::new(BufReader::with_capacity(1 << 18, archive));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = clean(&entry.path_bytes());
        let attributes = attributes(&mut entry)?;
        let header = entry.header();
        // Empty fields are no numbers; only devices need them.
        let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or(0);
        let (major, minor) = (number(header.device_major()), number(header.device_minor()));
        let target = entry.link_name_bytes().map(|name| name.into_owned());
        let (above, name) = split(&path);
        if name.is_empty() {
            continue; // the root directory
        }
        let parent = names.parent(&mut tree, above)?;
        let kind = match entry.header().entry_type() {
            EntryType::Directory => {
                let id = tree.add_directory(parent, name, attributes)?;
                names.directories.insert(path, id);
                continue;
            }
            EntryType::Link => {
                let target = clean(&target.ok_or("a hard link without a target")?);
                let inode = names.others.get(&target).ok_or("a hard link to nothing")?;
                tree.link(parent, name, *inode)?;
                continue;
            }
            EntryType::Symlink => Kind::Symlink(target.ok_or("a link without a target")?),
            EntryType::Char => Kind::CharDevice { major, minor },
            EntryType::Block => Kind::BlockDevice { major, minor },
            EntryType::Fifo => Kind::Fifo,
            _ => {
                let mut file = writer.start_file();
                loop {
                    match entry.read(&mut buffer)? {
                        0 => break,
                        count => file.append(&buffer[..count])?,
                    }
                }
                Kind::File(file.finish()?)
            }
        };
        let inode = tree.add_inode(kind, attributes)?;
        tree.link(parent, name, inode)?;
        names.others.insert(path, inode);
    }
    writer.finish(&tree)?;
    Ok(())
}

impl Names {
    /// The directory at a path, made where the archive does not list it.
    fn parent(&mut self, tree: &mut Tree, path: &[u8]) -> std::result::Result<InodeId, Error> {
        if path.is_empty() {
            return Ok(Tree::ROOT);
        }
        if let Some(&known) = self.directories.get(path) {
            return Ok(known);
        }
        let (above, name) = split(path);
        let parent = self.parent(tree, above)?;
        let id = tree.add_directory(parent, name, directory())?;
        self.directories.insert(path.to_vec(), id);
        Ok(id)
    }
}

fn directory() -> Attributes {
    Attributes {
        mode: 0o755,
        ..Attributes::default()
    }
}

fn attributes(entry: &mut tar::Entry<'_, impl Read>) -> Result<Attributes> {
    let mut xattrs = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                xattrs.push((name.to_vec(), extension.value_bytes().to_vec()));
            }
        }
    }
    let header = entry.header();
    Ok(Attributes {
        mode: (header.mode()? & 0o7777) as u16, // 12 bits
        uid: u32::try_from(header.uid()?)?,
        gid: u32::try_from(header.gid()?)?,
        mtime: clamp_time(header.mtime()?.try_into()?),
        xattrs,
    })
}

/// A path without empty and "." components.
fn clean(path: &[u8]) -> Vec<u8> {
    let components = path.split(|&b| b == b'/');
    let components = components.filter(|c| !c.is_empty() && *c != b".");
    components.collect::<Vec<_>>().join(&b'/')
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}
