//! The uncompressed bytes of a blob: decompressed on a thread of their own, hashed, counted.
//!
//! Compression is decided by the first bytes and must agree with the media type. At most a few
//! pieces are decompressed ahead.

use super::{LayerError, Limits};
use crate::hash::Hasher;
use sha2::{Digest, Sha256};
use shifter_core::sanitize;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

const PIECE: usize = 256 * 1024;
const PIECES_AHEAD: usize = 4;
/// 128 MiB, what every zstd tool accepts without being asked; a frame may demand up to 2 TiB.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What is left of an image's limits, shared by its layers.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    bytes: AtomicU64,
    entries: AtomicU64,
    name_bytes: AtomicU64,
}

impl Budget {
    /// Starts with everything left.
    pub fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            limits: limits.clone(),
            bytes: AtomicU64::new(limits.bytes),
            entries: AtomicU64::new(limits.entries.into()),
            name_bytes: AtomicU64::new(limits.name_bytes),
        })
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn take_bytes(&self, count: u64) -> Result<(), LayerError> {
        let limit = self.limits.bytes;
        take(&self.bytes, count).ok_or(LayerError::Limit {
            what: "bytes for all layers",
            limit,
        })
    }

    pub(super) fn take_entry(&self) -> Result<(), LayerError> {
        let limit = self.limits.entries.into();
        take(&self.entries, 1).ok_or(LayerError::Limit {
            what: "entries for all layers",
            limit,
        })
    }

    pub(super) fn take_name_bytes(&self, count: usize) -> Result<(), LayerError> {
        let limit = self.limits.name_bytes;
        let what = "bytes of names and attributes for all layers";
        take(&self.name_bytes, count as u64).ok_or(LayerError::Limit { what, limit })
    }
}

fn take(left: &AtomicU64, count: u64) -> Option<()> {
    let taken = |left: u64| left.checked_sub(count);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken)
        .ok()
        .map(|_| ())
}

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable one in front of it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// What a media type promises; `None` if it is empty and promises nothing.
    fn promised(media_type: &str) -> Result<Option<Self>, LayerError> {
        if media_type.is_empty() {
            return Ok(None);
        }
        let rest = [
            "application/vnd.oci.image.layer.",
            "application/vnd.docker.image.rootfs.",
        ]
        .iter()
        .find_map(|prefix| media_type.strip_prefix(prefix));
        Ok(Some(match rest {
            Some("v1.tar" | "nondistributable.v1.tar" | "diff.tar" | "foreign.diff.tar") => {
                Self::Plain
            }
            Some(
                "v1.tar+gzip"
                | "nondistributable.v1.tar+gzip"
                | "diff.tar.gzip"
                | "foreign.diff.tar.gzip",
            ) => Self::Gzip,
            Some(
                "v1.tar+zstd"
                | "nondistributable.v1.tar+zstd"
                | "diff.tar.zstd"
                | "foreign.diff.tar.zstd",
            ) => Self::Zstd,
            _ => {
                let media_type = sanitize::text(media_type);
                return Err(LayerError::UnknownMediaType { media_type });
            }
        }))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "not compressed",
            Self::Gzip => "compressed with gzip",
            Self::Zstd => "compressed with zstd",
        }
    }
}

/// The uncompressed bytes of one blob.
pub(super) struct Stream {
    pieces: Option<Receiver<io::Result<Vec<u8>>>>,
    worker: Option<JoinHandle<()>>,
    piece: Vec<u8>,
    used: usize,
    hasher: Option<Hasher>,
    budget: Arc<Budget>,
    /// Bytes that this layer may still have because of its compression ratio.
    allowed: u64,
    ratio_limit: u64,
}

impl Stream {
    pub(super) fn open<R: Read + Send + 'static>(
        blob: R,
        blob_bytes: u64,
        media_type: &str,
        verify: bool,
        budget: Arc<Budget>,
    ) -> Result<Self, LayerError> {
        let mut blob = Blob(blob);
        let mut head = Vec::with_capacity(4);
        Read::by_ref(&mut blob)
            .take(4)
            .read_to_end(&mut head)
            .map_err(classify)?;
        let packing = Packing::of(&head);
        if Packing::promised(media_type)?.is_some_and(|promised| promised != packing) {
            let (media_type, found) = (sanitize::text(media_type), packing.name());
            return Err(LayerError::MediaType { media_type, found });
        }
        let source = BufReader::with_capacity(PIECE, Cursor::new(head).chain(blob));
        let (sender, pieces) = sync_channel(PIECES_AHEAD);
        let worker = std::thread::Builder::new()
            .name("layer".into())
            .spawn(move || decompress(packing, source, &sender))
            .map_err(|source| LayerError::Read { source })?;
        let limits = budget.limits();
        let ratio_limit = blob_bytes
            .saturating_mul(limits.ratio)
            .saturating_add(limits.free_bytes);
        Ok(Self {
            pieces: Some(pieces),
            worker: Some(worker),
            piece: Vec::new(),
            used: 0,
            hasher: verify.then(|| Hasher::Sha256(Sha256::new())),
            budget,
            allowed: ratio_limit,
            ratio_limit,
        })
    }

    /// The next bytes, as many as are at hand; empty at the end.
    pub(super) fn available(&mut self) -> Result<&[u8], LayerError> {
        while self.used == self.piece.len() {
            let Some(pieces) = &self.pieces else { break };
            match pieces.recv() {
                Err(_) => self.pieces = None,
                Ok(piece) => {
                    let piece = piece.map_err(classify)?;
                    let length = piece.len() as u64;
                    let limit = self.ratio_limit;
                    let what = "bytes for a blob of this size";
                    self.allowed = self
                        .allowed
                        .checked_sub(length)
                        .ok_or(LayerError::Limit { what, limit })?;
                    self.budget.take_bytes(length)?;
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&piece);
                    }
                    self.piece = piece;
                    self.used = 0;
                }
            }
        }
        Ok(&self.piece[self.used..])
    }

    /// Marks bytes that [`Self::available`] returned as read.
    pub(super) fn consume(&mut self, count: usize) {
        self.used = (self.used + count).min(self.piece.len());
    }

    /// The last `count` bytes that were marked as read.
    pub(super) fn consumed(&self, count: usize) -> &[u8] {
        &self.piece[self.used.saturating_sub(count)..self.used]
    }

    /// Fills `out`; `false` if the stream ends before its first byte.
    pub(super) fn fill(&mut self, out: &mut [u8]) -> Result<bool, LayerError> {
        let mut filled = 0;
        while filled < out.len() {
            let bytes = self.available()?;
            let count = bytes.len().min(out.len() - filled);
            if count == 0 {
                return if filled == 0 {
                    Ok(false)
                } else {
                    Err(LayerError::Truncated)
                };
            }
            out[filled..filled + count].copy_from_slice(&bytes[..count]);
            filled += count;
            self.consume(count);
        }
        Ok(true)
    }

    pub(super) fn skip(&mut self, mut count: u64) -> Result<(), LayerError> {
        while count > 0 {
            let bytes = self.available()?.len() as u64;
            if bytes == 0 {
                return Err(LayerError::Truncated);
            }
            let now = bytes.min(count);
            self.consume(now as usize); // at most one piece
            count -= now;
        }
        Ok(())
    }

    /// Reads to the end and returns the digest of everything, if it was asked for.
    pub(super) fn finish(mut self) -> Result<Option<String>, LayerError> {
        loop {
            let count = self.available()?.len();
            if count == 0 {
                break;
            }
            self.consume(count);
        }
        Ok(self.hasher.take().map(Hasher::finish))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Without a receiver the worker's next send fails, and it ends.
        self.pieces = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// The worker: sends pieces until the blob ends, something fails or nobody listens.
fn decompress<R: BufRead>(packing: Packing, blob: R, pieces: &SyncSender<io::Result<Vec<u8>>>) {
    match packing {
        Packing::Plain => pump(blob, pieces),
        Packing::Gzip => pump(flate2::bufread::MultiGzDecoder::new(blob), pieces),
        Packing::Zstd => {
            let decoder = zstd::Decoder::with_buffer(blob).and_then(|mut decoder| {
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Ok(decoder)
            });
            match decoder {
                Ok(decoder) => pump(decoder, pieces),
                Err(e) => {
                    let _ = pieces.send(Err(e));
                }
            }
        }
    }
}

fn pump(source: impl Read, pieces: &SyncSender<io::Result<Vec<u8>>>) {
    let mut source = source.take(u64::MAX);
    loop {
        source.set_limit(PIECE as u64);
        let mut piece = Vec::with_capacity(PIECE);
        let result = source.read_to_end(&mut piece);
        // What was readable before the failure is of no use: the layer is refused as a whole.
        let message = match result {
            Ok(0) => return,
            Ok(_) => Ok(piece),
            Err(e) => Err(e),
        };
        let failed = message.is_err();
        if pieces.send(message).is_err() || failed {
            return;
        }
    }
}

/// The blob itself: its errors are wrapped, so that they are known behind a decompressor.
struct Blob<R>(R);

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct BlobError(io::Error);

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out).map_err(|e| match e.kind() {
            io::ErrorKind::Interrupted => e,
            _ => io::Error::other(BlobError(e)),
        })
    }
}

fn classify(source: io::Error) -> LayerError {
    if source
        .get_ref()
        .is_some_and(|inner| inner.is::<BlobError>())
    {
        return LayerError::Read { source };
    }
    match source.kind() {
        io::ErrorKind::UnexpectedEof => LayerError::Truncated,
        _ => LayerError::Compression { source },
    }
}
