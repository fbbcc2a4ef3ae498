//! Turns the layers of one image into one squashfs file, in one pass over their bytes.
//!
//! Layers are read top first, as they arrive. What upper layers hide of a lower one is then mostly
//! known (`mask`), so dead bytes are neither compressed nor written; all others go to the writer
//! at once. Each layer's entries are kept (`list`), and when all are there, the exact merge is
//! made of the lists alone, bottom up. Bytes that it needs and that were taken for dead are fetched
//! by reading just their layer again; an image in which too much turned out to be dead is written
//! once more.
//!
//! It never unpacks a tree, never needs privilege and never names, renames or synchronises the
//! file that it writes: the caller does. The same layers give the same bytes, however they arrive
//! and whatever the number of threads: all that is decided depends on entries alone.

mod error;
mod list;
mod mask;
#[cfg(test)]
mod tests;

pub use error::BuildError;

use crate::cancel::Cancel;
use crate::layer::{Budget, Chunk, End, EntryKind, LayerReader, Limits};
use crate::merge::{MergeOptions, Merged, Merger, Source};
use list::{Entries, EntryList};
use mask::Mask;
use shifter_core::sanitize;
use squashfs_writer::{self as squashfs, DataId, Writer};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

/// Gives a blob's bytes from the first one, each time it is called; returns at once. The bytes may
/// still be arriving: a read then waits. Whoever provides them compares them with the blob's own
/// digest and lets the last read fail if it is wrong.
pub type Open<'a> = dyn Fn() -> io::Result<Box<dyn Read + Send>> + Sync + 'a;

/// One layer blob, as the manifest and the image configuration describe it.
#[derive(Clone)]
pub struct LayerSource<'a> {
    /// The manifest's media type; empty if none is known (the content then decides alone).
    pub media_type: String,
    /// `sha256:<hex>` of the uncompressed tar, verified if given.
    pub diff_id: Option<String>,
    /// The blob as stored.
    pub open: &'a Open<'a>,
}

/// What the caller may choose about a build.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// How the image is written.
    pub squashfs: squashfs::Options,
    /// What the layers may cost.
    pub limits: Limits,
    /// Keeps `security.capability` attributes.
    pub keep_capabilities: bool,
    /// Ends the build when it is raised.
    pub cancel: Cancel,
}

impl BuildOptions {
    /// The same for images of another format; a compressor that it has not gives way to the usual one.
    pub fn in_format(&self, format: squashfs::Format) -> Self {
        let mut options = self.clone();
        options.squashfs.format = format;
        if !format.has(options.squashfs.compression) {
            options.squashfs.compression = squashfs::Compression::default();
        }
        options
    }
}

/// What a build did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildReport {
    /// Names in the finished image, the root not counted.
    pub entries: u64,
    /// Bytes of all layer blobs as stored.
    pub bytes_in: u64,
    /// Bytes of the finished file.
    pub bytes_out: u64,
    /// `sha256:<hex>` of each layer's uncompressed tar, bottom first.
    pub diff_ids: Vec<String>,
    /// Layers that had to be read twice, counted from 1, bottom first.
    pub read_again: Vec<usize>,
    /// Bytes of files that are in the image, but in no directory; before compression.
    pub dead_bytes: u64,
}

/// An image may have this many dead bytes, and as many again as an eighth of it.
const DEAD_BYTES: u64 = 8 << 20;

/// Bytes that each of the next layers is decompressed ahead where many cores have nothing better to
/// do.
const READ_AHEAD: usize = 8 << 20;

/// Merges `layers` (bottom first) into one squashfs image, which replaces the contents of `out`.
/// The data is not yet synchronised with the disk. After an error `out` is not an image.
pub fn build_image(
    layers: &[LayerSource<'_>],
    out: &mut File,
    options: &BuildOptions,
) -> Result<BuildReport, BuildError> {
    if layers.is_empty() {
        return Err(BuildError::NoLayers);
    }
    let limit = options.limits.layers;
    if layers.len() > limit {
        return Err(BuildError::TooManyLayers { limit });
    }
    let mut image = Image::start(out, options, layers.len())?;
    let (lists, ends) = read_all(layers, options, &mut image)?;
    let merged = merge(lists, options)?;
    let sources = merged.sources();
    let mut dead_bytes = image.bytes - image.count_known(&sources);
    let live_bytes: u64 = sources.iter().map(|(_, size)| size).sum();
    if dead_bytes > DEAD_BYTES + live_bytes / 8 {
        drop(image);
        image = Image::start(out, options, layers.len())?;
        dead_bytes = 0;
    }
    let read_again = add_missing(layers, &ends, &sources, options, &mut image)?;

    let Image {
        mut writer, files, ..
    } = image;
    let empty = writer.start_file().finish()?;
    // The tree takes their place.
    writer.end_sharing();
    drop(sources);
    let (tree, entries) = merged.into_tree(|source, size| match size {
        0 => Ok(empty),
        // `add_missing` leaves none out, or fails.
        _ => find(&files, source).ok_or(BuildError::Changed {
            layer: source.layer as usize + 1,
        }),
    })?;
    let (_, summary) = writer.finish(&tree)?;
    Ok(BuildReport {
        entries,
        bytes_in: ends.iter().map(|end| end.blob_bytes).sum(),
        bytes_out: summary.bytes,
        diff_ids: ends.into_iter().filter_map(|end| end.diff_id).collect(),
        read_again,
        dead_bytes,
    })
}

/// The image being written, and the files whose bytes are in it.
struct Image<'a> {
    writer: Writer<&'a mut File>,
    /// For each layer, in the order of entries.
    files: Vec<Vec<(u32, DataId)>>,
    bytes: u64,
}

impl<'a> Image<'a> {
    fn start(out: &'a mut File, options: &BuildOptions, layers: usize) -> Result<Self, BuildError> {
        out.set_len(0)
            .map_err(|source| squashfs::Error::Write { source })?;
        Ok(Self {
            writer: Writer::new(out, &options.squashfs)?,
            files: vec![Vec::new(); layers],
            bytes: 0,
        })
    }

    /// Copies the contents of the entry that `reader` is at.
    fn copy(
        &mut self,
        reader: &mut LayerReader,
        at: usize,
        (entry, size): (u32, u64),
    ) -> Result<(), BuildError> {
        let mut file = self.writer.start_file();
        while let Some(chunk) = reader.next_chunk().map_err(|e| BuildError::layer(at, e))? {
            match chunk {
                Chunk::Data(bytes) => file.append(bytes)?,
                Chunk::Hole(length) => file.append_hole(length)?,
            }
        }
        let data = file.finish()?;
        self.files[at].push((entry, data));
        self.bytes += size;
        Ok(())
    }

    /// Bytes of those files among `sources` that are in the image.
    fn count_known(&self, sources: &[(Source, u64)]) -> u64 {
        let known = |(source, _): &&(Source, u64)| find(&self.files, *source).is_some();
        sources.iter().filter(known).map(|(_, size)| size).sum()
    }
}

fn find(files: &[Vec<(u32, DataId)>], source: Source) -> Option<DataId> {
    let files = files.get(source.layer as usize)?;
    let found = files.binary_search_by_key(&source.entry, |(entry, _)| *entry);
    found.ok().map(|index| files[index].1)
}

/// Reads every layer, top first. What is not hidden goes into the image; the lists are returned
/// bottom first.
fn read_all(
    layers: &[LayerSource<'_>],
    options: &BuildOptions,
    image: &mut Image<'_>,
) -> Result<(VecDeque<Entries>, VecDeque<End>), BuildError> {
    let mut ahead = Ahead::new(layers, options);
    let mut mask = Mask::default();
    let (mut lists, mut ends) = (VecDeque::new(), VecDeque::new());
    while let Some((at, reader)) = ahead.next() {
        let mut reader = reader?;
        let mut list = EntryList::default();
        for number in 0u32.. {
            let next = reader.next_entry();
            let Some(entry) = next.map_err(|e| BuildError::layer(at, e))? else {
                break;
            };
            if let EntryKind::File { size: size @ 1.. } = entry.kind
                && !mask.hides(&entry.path)
            {
                image.copy(&mut reader, at, (number, size))?;
            }
            // Nothing lies below the lowest layer.
            if at > 0 {
                mask.note(&entry);
            }
            list.push(&entry);
        }
        let end = reader.finish().map_err(|e| BuildError::layer(at, e))?;
        check_diff_id(at, layers[at].diff_id.as_ref(), &end)?;
        mask.end_layer();
        lists.push_front(list.finish());
        ends.push_front(end);
    }
    Ok((lists, ends))
}

fn check_diff_id(at: usize, expected: Option<&String>, end: &End) -> Result<(), BuildError> {
    let found = end.diff_id.clone().unwrap_or_default();
    match expected {
        Some(expected) if *expected != found => Err(BuildError::DiffId {
            layer: at + 1,
            expected: sanitize::text(expected),
            found,
        }),
        _ => Ok(()),
    }
}

/// Layers on their way: the next ones are decompressed as far as their buffers go while one is
/// read.
struct Ahead<'a> {
    layers: &'a [LayerSource<'a>],
    /// How many are not opened yet; they are the lowest.
    left: usize,
    opened: VecDeque<(usize, Result<LayerReader, BuildError>)>,
    depth: usize,
    budget: Arc<Budget>,
}

impl<'a> Ahead<'a> {
    fn new(layers: &'a [LayerSource<'a>], options: &BuildOptions) -> Self {
        // A reader keeps three cores busy, and another one helps only if there are more.
        let cores = options.squashfs.threads;
        let ahead = if cores < 8 { 0 } else { READ_AHEAD };
        Self {
            layers,
            left: layers.len(),
            opened: VecDeque::new(),
            depth: (cores / 4).clamp(1, 4),
            budget: Budget::cancellable(&options.limits, &options.cancel, ahead),
        }
    }

    /// The next layer from the top.
    fn next(&mut self) -> Option<(usize, Result<LayerReader, BuildError>)> {
        while self.left > 0 && self.opened.len() <= self.depth {
            self.left -= 1;
            let reader = open(self.layers, self.left, &self.budget);
            self.opened.push_back((self.left, reader));
        }
        self.opened.pop_front()
    }
}

fn open(
    layers: &[LayerSource<'_>],
    at: usize,
    budget: &Arc<Budget>,
) -> Result<LayerReader, BuildError> {
    let layer = at + 1;
    let source = &layers[at];
    let blob = (source.open)().map_err(|source| BuildError::Open { layer, source })?;
    let reader = match source.diff_id {
        Some(_) => LayerReader::open_known(blob, &source.media_type, budget),
        None => LayerReader::open(blob, &source.media_type, true, budget),
    };
    reader.map_err(|e| BuildError::layer(at, e))
}

fn merge(lists: VecDeque<Entries>, options: &BuildOptions) -> Result<Merged, BuildError> {
    let mut merger = Merger::new(MergeOptions {
        keep_capabilities: options.keep_capabilities,
        nodes: options.limits.entries.saturating_mul(2),
        path_bytes: options.limits.path_bytes,
    });
    for (at, list) in lists.into_iter().enumerate() {
        options.cancel.check().map_err(BuildError::Cancelled)?;
        let layer = at + 1;
        merger
            .add_layer(list)
            .map_err(|source| BuildError::Merge { layer, source })?;
    }
    Ok(merger.finish())
}

/// Adds the files among `sources` that are not in the image, top layer first; returns which
/// layers were read for it.
fn add_missing(
    layers: &[LayerSource<'_>],
    ends: &VecDeque<End>,
    sources: &[(Source, u64)],
    options: &BuildOptions,
    image: &mut Image<'_>,
) -> Result<Vec<usize>, BuildError> {
    let budget = Budget::cancellable(&options.limits, &options.cancel, 0);
    let mut read = Vec::new();
    for at in (0..layers.len()).rev() {
        let start = sources.partition_point(|(source, _)| (source.layer as usize) < at);
        let missing =
            |(source, size): &&(Source, u64)| *size > 0 && find(&image.files, *source).is_none();
        let missing: Vec<(Source, u64)> = sources[start..]
            .iter()
            .take_while(|(source, _)| source.layer as usize == at)
            .filter(missing)
            .copied()
            .collect();
        if missing.is_empty() {
            continue;
        }
        let changed = BuildError::Changed { layer: at + 1 };
        let mut reader = open(layers, at, &budget)?;
        let mut missing = missing.into_iter().peekable();
        for number in 0u32.. {
            let Some(&(wanted, size)) = missing.peek() else {
                break;
            };
            let next = reader.next_entry();
            let entry = next.map_err(|e| BuildError::layer(at, e))?;
            if number != wanted.entry {
                continue;
            }
            if entry.is_none_or(|entry| entry.kind != EntryKind::File { size }) {
                return Err(changed);
            }
            image.copy(&mut reader, at, (number, size))?;
            missing.next();
        }
        let end = reader.finish().map_err(|e| BuildError::layer(at, e))?;
        if end != ends[at] {
            return Err(changed);
        }
        image.files[at].sort_unstable_by_key(|(entry, _)| *entry);
        read.insert(0, at + 1);
    }
    Ok(read)
}
