//! Turns the layers of one image into one squashfs file.
//!
//! Owns the order of the work, which is two passes: every layer is listed and its diff_id
//! verified, several at once; the lists are merged; then the layers that still have something to
//! give are read again and the surviving bytes go to the writer. It never unpacks a tree, never
//! needs privilege and never names, renames or synchronises the file that it writes: the caller
//! does.

use crate::layer::{Budget, Chunk, Entry, EntryKind, LayerError, LayerReader, Limits};
use crate::merge::{MergeError, MergeOptions, Merger, Source};
use shifter_core::sanitize;
use squashfs_writer::{self as squashfs, DataId, Writer};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Gives a blob's bytes from the first one, each time it is called. They may still be arriving: a
/// read then waits. Whoever provides them compares them with the blob's own digest and lets the
/// last read fail if it is wrong.
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
}

/// Why an image could not be built. Layers are counted from 1, bottom first.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The image has no layers.
    #[error("the image has no layers")]
    NoLayers,
    /// The image has more layers than allowed.
    #[error("the image has more than {limit} layers")]
    TooManyLayers {
        /// How many are allowed.
        limit: usize,
    },
    /// A blob could not be opened.
    #[error("cannot open layer {layer}")]
    Open {
        /// Which layer.
        layer: usize,
        /// What the operating system answered.
        source: io::Error,
    },
    /// A blob is damaged, hostile or too large.
    #[error("cannot read layer {layer}")]
    Layer {
        /// Which layer.
        layer: usize,
        /// What is wrong with it.
        source: LayerError,
    },
    /// A layer's content is not what the image's configuration says.
    #[error("layer {layer} has the diff_id '{found}', but the image says '{expected}'")]
    DiffId {
        /// Which layer.
        layer: usize,
        /// From the image's configuration, made printable.
        expected: String,
        /// What was read.
        found: String,
    },
    /// A blob was changed while it was read.
    #[error("layer {layer} changed while it was read")]
    Changed {
        /// Which layer.
        layer: usize,
    },
    /// Layers that cannot be put on top of each other.
    #[error("cannot merge layer {layer}")]
    Merge {
        /// Which layer.
        layer: usize,
        /// Which entry, and why.
        source: MergeError,
    },
    /// The disk or the user's share of it is full.
    #[error("cannot write the image: no space left")]
    DiskFull {
        /// What the operating system answered.
        source: io::Error,
    },
    /// The image could not be written for another reason.
    #[error("cannot write the image")]
    Write {
        /// What the writer says.
        source: squashfs::Error,
    },
}

impl From<squashfs::Error> for BuildError {
    fn from(error: squashfs::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error {
            squashfs::Error::Write { source }
                if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) =>
            {
                Self::DiskFull { source }
            }
            source => Self::Write { source },
        }
    }
}

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
    let numbered = layers.iter().enumerate();
    let blobs: Vec<Blob<'_>> = numbered
        .map(|(at, layer)| Blob {
            number: at + 1,
            layer,
            bytes: AtomicU64::new(0),
        })
        .collect();

    let mut merger = Merger::new(MergeOptions {
        keep_capabilities: options.keep_capabilities,
        nodes: options.limits.entries.saturating_mul(2),
        path_bytes: options.limits.path_bytes,
    });
    let mut diff_ids = Vec::with_capacity(blobs.len());
    for (blob, list) in blobs.iter().zip(list_all(&blobs, options)?) {
        let layer = blob.number;
        merger
            .add_layer(list.entries)
            .map_err(|source| BuildError::Merge { layer, source })?;
        diff_ids.push(list.diff_id);
    }
    let merged = merger.finish();

    out.set_len(0)
        .map_err(|source| squashfs::Error::Write { source })?;
    let mut writer = Writer::new(out, &options.squashfs)?;
    let written = copy_all(&blobs, &merged.sources(), &mut writer, &options.limits)?;
    let (tree, entries) = merged.into_tree(|source| {
        // `copy_all` returns one for each source, or an error.
        written.get(&source).copied().ok_or(BuildError::Changed {
            layer: number(source),
        })
    })?;
    let (_, summary) = writer.finish(&tree)?;
    let bytes_in = blobs
        .iter()
        .map(|blob| blob.bytes.load(Ordering::Relaxed))
        .sum();
    Ok(BuildReport {
        entries,
        bytes_in,
        bytes_out: summary.bytes,
        diff_ids,
    })
}

/// A layer and what is known about its blob.
struct Blob<'a> {
    number: usize,
    layer: &'a LayerSource<'a>,
    /// Bytes as stored, once it has been read.
    bytes: AtomicU64,
}

impl Blob<'_> {
    fn read(&self, verify: bool, budget: &Arc<Budget>) -> Result<LayerReader, BuildError> {
        let layer = self.number;
        let blob = (self.layer.open)().map_err(|source| BuildError::Open { layer, source })?;
        LayerReader::open(blob, &self.layer.media_type, verify, budget).map_err(|e| self.error(e))
    }

    fn error(&self, source: LayerError) -> BuildError {
        BuildError::Layer {
            layer: self.number,
            source,
        }
    }
}

struct List {
    entries: Vec<Entry>,
    diff_id: String,
}

/// First pass: the entries of every layer.
fn list_all(blobs: &[Blob<'_>], options: &BuildOptions) -> Result<Vec<List>, BuildError> {
    let budget = Budget::new(&options.limits);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let lists = Mutex::new(BTreeMap::new());
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(blob) = blobs.get(at) else { return };
            let list = list(blob, &budget);
            failed.fetch_or(list.is_err(), Ordering::Relaxed);
            if let Ok(mut lists) = lists.lock() {
                lists.insert(at, list);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..options.squashfs.threads.min(blobs.len()) {
            scope.spawn(work);
        }
        work();
    });
    let lists = lists
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    lists.into_values().collect()
}

fn list(blob: &Blob<'_>, budget: &Arc<Budget>) -> Result<List, BuildError> {
    let mut reader = blob.read(true, budget)?;
    let read = || {
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok((entries, reader.finish()?))
    };
    let (entries, end) = read().map_err(|e| blob.error(e))?;
    blob.bytes.store(end.blob_bytes, Ordering::Relaxed);
    let diff_id = end.diff_id.unwrap_or_default();
    match &blob.layer.diff_id {
        Some(expected) if *expected != diff_id => Err(BuildError::DiffId {
            layer: blob.number,
            expected: sanitize::text(expected),
            found: diff_id,
        }),
        _ => Ok(List { entries, diff_id }),
    }
}

/// Second pass: copies the bytes of `sources` into the image.
fn copy_all(
    blobs: &[Blob<'_>],
    sources: &BTreeMap<Source, u64>,
    writer: &mut Writer<&mut File>,
    limits: &Limits,
) -> Result<HashMap<Source, DataId>, BuildError> {
    let budget = Budget::new(limits);
    let mut written = HashMap::with_capacity(sources.len());
    for (layer, blob) in (0u32..).zip(blobs) {
        let first = Source { layer, entry: 0 };
        let last = Source {
            layer,
            entry: u32::MAX,
        };
        let mut wanted = sources.range(first..=last).peekable();
        if wanted.peek().is_none() {
            continue;
        }
        let mut reader = blob.read(false, &budget)?;
        let mut number = 0u32..;
        while let (Some(&(&source, &size)), Some(at)) = (wanted.peek(), number.next()) {
            let entry = reader.next_entry().map_err(|e| blob.error(e))?;
            if at != source.entry {
                continue;
            }
            if entry.is_none_or(|entry| entry.kind != EntryKind::File { size }) {
                return Err(BuildError::Changed { layer: blob.number });
            }
            written.insert(source, copy(&mut reader, blob, writer)?);
            wanted.next();
        }
    }
    Ok(written)
}

fn copy(
    reader: &mut LayerReader,
    blob: &Blob<'_>,
    writer: &mut Writer<&mut File>,
) -> Result<DataId, BuildError> {
    let mut file = writer.start_file();
    while let Some(chunk) = reader.next_chunk().map_err(|e| blob.error(e))? {
        match chunk {
            Chunk::Data(bytes) => file.append(bytes)?,
            Chunk::Hole(length) => file.append_hole(length)?,
        }
    }
    Ok(file.finish()?)
}

/// A source's layer as people count.
fn number(source: Source) -> usize {
    source.layer as usize + 1
}
