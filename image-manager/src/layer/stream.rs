//! The uncompressed bytes of a blob: decompressed on a thread, hashed on another, counted.
//!
//! Compression is decided by the first bytes and must agree with the media type. At most a few
//! pieces are decompressed ahead; their buffers are used again.

use super::gzip::Gzip;
use super::{LayerError, Limits, window};
use crate::cancel::Cancel;
use crate::hash::Hasher;
use shifter_core::sanitize;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

const PIECE: usize = 256 * 1024;
const PIECES_AHEAD: usize = 4;
/// Bytes of a blob read at once.
const BLOB_BUFFER: usize = 256 * 1024;
/// How long a request to stop may go unnoticed.
const PATIENCE: Duration = Duration::from_millis(100);

/// What zstd calls its `ZSTD_error_memory_allocation`, of which the crate gives the name alone.
const ZSTD_NO_MEMORY: &str = "Allocation error : not enough memory";

/// What is left of an image's limits, and of its time, shared by its layers.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    cancel: Cancel,
    /// Pieces that a layer may be ahead.
    pieces: usize,
    bytes: AtomicU64,
    entries: AtomicU64,
    name_bytes: AtomicU64,
    /// Layers that were opened, and how many of those, the first ones, are read no more.
    opened: AtomicU64,
    ended: Mutex<u64>,
    turn: Condvar,
}

impl Budget {
    /// Starts with everything left.
    pub fn new(limits: &Limits) -> Arc<Self> {
        Self::cancellable(limits, &Cancel::default(), 0)
    }

    /// The same; `cancel` ends all reading, and each layer may be decompressed about `ahead`
    /// bytes ahead.
    pub fn cancellable(limits: &Limits, cancel: &Cancel, ahead: usize) -> Arc<Self> {
        Arc::new(Self {
            limits: limits.clone(),
            cancel: cancel.clone(),
            pieces: (ahead / PIECE).max(PIECES_AHEAD),
            bytes: AtomicU64::new(limits.bytes),
            entries: AtomicU64::new(limits.entries.into()),
            name_bytes: AtomicU64::new(limits.name_bytes),
            opened: AtomicU64::new(0),
            ended: Mutex::new(0),
            turn: Condvar::new(),
        })
    }

    /// Waits until all layers that were opened before this one have been read: one at a time may take as
    /// much memory as it likes. They are read in the order in which they are opened.
    fn wait_for_turn(&self, number: u64) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.turn.wait_while(ended, |ended| *ended < number);
        drop(waited);
    }

    fn end_turn(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.turn.notify_all();
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

/// What is computed to find damage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check {
    /// The digest of the uncompressed bytes.
    pub(super) digest: bool,
    /// The checksum that gzip has in its own format.
    pub(super) crc: bool,
}

/// What is known about a blob when it has been read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// `sha256:<hex>` of the uncompressed bytes, if it was asked for.
    pub diff_id: Option<String>,
    /// Bytes of the blob as stored.
    pub blob_bytes: u64,
}

/// What the threads hand on.
enum Message {
    /// Uncompressed bytes, and how much of the blob it took to get so far.
    Piece {
        bytes: Vec<u8>,
        blob_bytes: u64,
    },
    End(End),
    Failed(LayerError),
}

/// The uncompressed bytes of one blob.
pub(super) struct Stream {
    messages: Receiver<Message>,
    /// Takes buffers back.
    spare: Sender<Vec<u8>>,
    piece: Vec<u8>,
    used: usize,
    end: Option<End>,
    budget: Arc<Budget>,
    /// Uncompressed bytes so far.
    bytes: u64,
    _turn: Turn,
}

/// A layer that is open; the next one's turn comes when it is dropped.
struct Turn(Arc<Budget>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.end_turn();
    }
}

impl Stream {
    pub(super) fn open<R: Read + Send + 'static>(
        blob: R,
        media_type: &str,
        check: Check,
        budget: Arc<Budget>,
    ) -> Result<Self, LayerError> {
        let promised = Packing::promised(media_type)?;
        let media_type = sanitize::text(media_type);
        let ahead = |is_last| if is_last { budget.pieces } else { PIECES_AHEAD };
        let (sender, mut messages) = sync_channel(ahead(!check.digest));
        let (spare, buffers) = channel();
        let start = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new().name(name.into());
            let started = builder.spawn(work);
            started.map_err(|source| LayerError::Thread { source })
        };
        let number = budget.opened.fetch_add(1, Ordering::Relaxed);
        let turn = Turn(Arc::clone(&budget));
        let shared = Arc::clone(&budget);
        // Nobody waits for these threads: they end when nobody listens or the blob ends, and a
        // blob that is still arriving may keep one of them waiting.
        start(
            "layer",
            Box::new(move || {
                let mut blob = Blob::new(blob);
                let result = detect(&mut blob, promised, media_type).and_then(|packing| {
                    let wait = || shared.wait_for_turn(number);
                    decompress(packing, check.crc, blob, wait, &buffers, &sender)
                });
                if let Err(error) = result {
                    let _ = sender.send(Message::Failed(error));
                }
            }),
        )?;
        if check.digest {
            let (sender, hashed) = sync_channel(ahead(true));
            let raw = std::mem::replace(&mut messages, hashed);
            start("diff_id", Box::new(move || hash(&raw, &sender)))?;
        }
        Ok(Self {
            messages,
            spare,
            piece: Vec::new(),
            used: 0,
            end: None,
            budget,
            bytes: 0,
            _turn: turn,
        })
    }

    /// The next bytes, as many as are at hand; empty at the end.
    pub(super) fn available(&mut self) -> Result<&[u8], LayerError> {
        while self.used == self.piece.len() && self.end.is_none() {
            match self.receive()? {
                Some(Message::Piece { bytes, blob_bytes }) => {
                    self.count(bytes.len() as u64, blob_bytes)?;
                    let old = std::mem::replace(&mut self.piece, bytes);
                    self.used = 0;
                    // Fails only if the blob has ended.
                    let _ = self.spare.send(old);
                }
                Some(Message::End(end)) => self.end = Some(end),
                Some(Message::Failed(error)) => return Err(error),
                None => {
                    let source = io::Error::other("a thread that reads it ended early");
                    return Err(LayerError::Read { source });
                }
            }
        }
        Ok(&self.piece[self.used..])
    }

    /// The next message; `None` if the thread has died.
    fn receive(&self) -> Result<Option<Message>, LayerError> {
        loop {
            if self.budget.cancel.is_cancelled() {
                return Err(LayerError::Cancelled);
            }
            match self.messages.recv_timeout(PATIENCE) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn count(&mut self, length: u64, blob_bytes: u64) -> Result<(), LayerError> {
        self.bytes = self.bytes.saturating_add(length);
        let limits = self.budget.limits();
        let limit = blob_bytes
            .saturating_mul(limits.ratio)
            .saturating_add(limits.free_bytes);
        if self.bytes > limit {
            let what = "bytes for a blob of this size";
            return Err(LayerError::Limit { what, limit });
        }
        self.budget.take_bytes(length)
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

    /// Reads to the end.
    pub(super) fn finish(mut self) -> Result<End, LayerError> {
        loop {
            let count = self.available()?.len();
            self.consume(count);
            if let Some(end) = self.end.take() {
                return Ok(end);
            }
        }
    }
}

/// How a blob is compressed, if that is what was promised.
fn detect<R: Read>(
    blob: &mut Blob<R>,
    promised: Option<Packing>,
    media_type: String,
) -> Result<Packing, LayerError> {
    let packing = Packing::of(blob.fill_buf().map_err(classify)?);
    if promised.is_some_and(|promised| promised != packing) {
        let found = packing.name();
        return Err(LayerError::MediaType { media_type, found });
    }
    Ok(packing)
}

/// The first thread: sends pieces until the blob ends, something fails or nobody listens.
fn decompress<R: Read>(
    packing: Packing,
    check_crc: bool,
    mut blob: Blob<R>,
    wait_for_turn: impl FnOnce(),
    buffers: &Receiver<Vec<u8>>,
    messages: &SyncSender<Message>,
) -> Result<(), LayerError> {
    match packing {
        Packing::Plain => pump(&mut blob, |blob| blob.count, buffers, messages),
        Packing::Gzip => {
            let mut decoder = Gzip::new(blob, check_crc);
            pump(&mut decoder, |it| it.get_ref().count, buffers, messages)
        }
        Packing::Zstd => {
            let is_usual = window::is_usual(blob.fill_buf().map_err(classify)?);
            let log = match is_usual {
                true => window::USUAL_LOG,
                false => {
                    wait_for_turn();
                    window::LARGEST_LOG
                }
            };
            let mut decoder = zstd::Decoder::with_buffer(blob).map_err(classify)?;
            decoder.window_log_max(log).map_err(classify)?;
            pump(&mut decoder, |it| it.get_ref().count, buffers, messages)
        }
    }
}

fn pump<S: Read>(
    source: &mut S,
    blob_bytes: impl Fn(&S) -> u64,
    buffers: &Receiver<Vec<u8>>,
    messages: &SyncSender<Message>,
) -> Result<(), LayerError> {
    loop {
        let mut bytes = buffers.try_recv().unwrap_or_default();
        bytes.resize(PIECE, 0);
        // What was readable before an error is of no use: the layer is refused as a whole.
        let count = fill(source, &mut bytes).map_err(classify)?;
        bytes.truncate(count);
        let is_last = count == 0;
        let blob_bytes = blob_bytes(source);
        let message = match is_last {
            true => Message::End(End {
                diff_id: None,
                blob_bytes,
            }),
            false => Message::Piece { bytes, blob_bytes },
        };
        if messages.send(message).is_err() || is_last {
            return Ok(());
        }
    }
}

/// Reads until `out` is full or there is no more.
fn fill(source: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match source.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// The second thread: hashes what passes through.
fn hash(raw: &Receiver<Message>, hashed: &SyncSender<Message>) {
    let mut hasher = Hasher::sha256();
    while let Ok(message) = raw.recv() {
        let message = match message {
            Message::Piece { bytes, blob_bytes } => {
                hasher.update(&bytes);
                Message::Piece { bytes, blob_bytes }
            }
            Message::End(end) => {
                let end = End {
                    diff_id: Some(hasher.finish()),
                    ..end
                };
                let _ = hashed.send(Message::End(end));
                return;
            }
            failed @ Message::Failed(_) => failed,
        };
        if hashed.send(message).is_err() {
            return;
        }
    }
}

/// The blob itself, buffered and counted. Its errors are wrapped, so that they are known behind a
/// decompressor. The buffer is filled whole, so that what is counted does not depend on how the
/// bytes arrive.
struct Blob<R> {
    blob: R,
    buffer: Vec<u8>,
    used: usize,
    count: u64,
    ended: bool,
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct BlobError(io::Error);

impl<R: Read> Blob<R> {
    fn new(blob: R) -> Self {
        Self {
            blob,
            buffer: Vec::new(),
            used: 0,
            count: 0,
            ended: false,
        }
    }
}

impl<R: Read> BufRead for Blob<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.buffer.len() && !self.ended {
            self.buffer.resize(BLOB_BUFFER, 0);
            let count = fill(&mut self.blob, &mut self.buffer);
            let count = count.map_err(|e| io::Error::other(BlobError(e)))?;
            self.buffer.truncate(count);
            self.used = 0;
            self.count += count as u64;
            self.ended = count < BLOB_BUFFER;
        }
        Ok(&self.buffer[self.used..])
    }

    fn consume(&mut self, count: usize) {
        self.used = (self.used + count).min(self.buffer.len());
    }
}

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(out.len());
        out[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
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
        _ if source.to_string() == ZSTD_NO_MEMORY => LayerError::Memory,
        _ => LayerError::Compression { source },
    }
}
