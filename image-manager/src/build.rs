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
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// One layer blob in the cache, as the manifest and the image configuration describe it.
#[derive(Debug, Clone)]
pub struct LayerSource {
    /// The blob, its own digest already verified by whoever fetched it.
    pub path: PathBuf,
    /// The manifest's media type; empty if none is known (the content then decides alone).
    pub media_type: String,
    /// `sha256:<hex>` of the uncompressed tar, verified if given.
    pub diff_id: Option<String>,
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
    #[error("cannot open layer {layer} '{path}'")]
    Open {
        /// Which layer.
        layer: usize,
        /// Its blob, made printable.
        path: String,
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
    layers: &[LayerSource],
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
    let blobs = layers
        .iter()
        .enumerate()
        .map(|(at, layer)| Blob::open(at + 1, layer));
    let blobs = blobs.collect::<Result<Vec<_>, _>>()?;

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
    let bytes_in = blobs.iter().map(|blob| blob.stamp.bytes).sum();
    Ok(BuildReport {
        entries,
        bytes_in,
        bytes_out: summary.bytes,
        diff_ids,
    })
}

/// A blob that stays open between the passes.
struct Blob<'a> {
    number: usize,
    layer: &'a LayerSource,
    file: File,
    stamp: Stamp,
}

/// What changes when a file is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(Self {
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl<'a> Blob<'a> {
    fn open(number: usize, layer: &'a LayerSource) -> Result<Self, BuildError> {
        let opened = File::open(&layer.path).and_then(|file| Ok((Stamp::of(&file)?, file)));
        let (stamp, file) = opened.map_err(|source| {
            let path = sanitize::text(&layer.path.to_string_lossy());
            BuildError::Open {
                layer: number,
                path,
                source,
            }
        })?;
        Ok(Self {
            number,
            layer,
            file,
            stamp,
        })
    }

    fn read(&self, verify: bool, budget: &Arc<Budget>) -> Result<LayerReader, LayerError> {
        // The position is shared by all descriptors of one opening: one reader at a time.
        let file = self.file.try_clone().and_then(|mut file| {
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        });
        let file = file.map_err(|source| LayerError::Read { source })?;
        LayerReader::open(
            file,
            self.stamp.bytes,
            &self.layer.media_type,
            verify,
            budget,
        )
    }

    fn error(&self, source: LayerError) -> BuildError {
        BuildError::Layer {
            layer: self.number,
            source,
        }
    }

    fn check_unchanged(&self) -> Result<(), BuildError> {
        match Stamp::of(&self.file) {
            Ok(stamp) if stamp == self.stamp => Ok(()),
            _ => Err(BuildError::Changed { layer: self.number }),
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
    let read = || {
        let mut reader = blob.read(true, budget)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok((entries, reader.finish()?.unwrap_or_default()))
    };
    let (entries, diff_id) = read().map_err(|e| blob.error(e))?;
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
        let mut reader = blob.read(false, &budget).map_err(|e| blob.error(e))?;
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
        blob.check_unchanged()?;
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
