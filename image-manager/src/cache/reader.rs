//! Reading a blob from its first byte, also while it is still arriving.
//!
//! Bytes that this process downloads are hashed as they arrive; all others are hashed here, and
//! the end of the blob is an error if they are not what the digest says. So nobody who reads to the
//! end has been given another blob, whoever wrote into the cache.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use shifter_core::reference::Digest;

use super::flight::{End, Flight, Trust};
use crate::cancel::Cancel;
use crate::hash::Hasher;

/// Why a blob that is being read cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BlobError {
    /// Its download failed, for a reason that the download gives.
    #[error("the download of {0} failed")]
    Failed(Digest),
    /// What was in the cache is not what its name says; it is removed.
    #[error("{0} was damaged in the cache")]
    Damaged(Digest),
    /// The registry sent something else first: what was read so far is void.
    #[error("the download of {0} began again")]
    Restarted(Digest),
}

/// The bytes of one blob, in order. Reading blocks until they arrive.
pub struct BlobReader {
    flight: Arc<Flight>,
    digest: Digest,
    position: u64,
    round: Option<u32>,
    hasher: Option<Hasher>,
    cancel: Cancel,
}

impl BlobReader {
    pub(super) fn new(flight: Arc<Flight>, digest: Digest, cancel: Cancel) -> Self {
        Self {
            flight,
            digest,
            position: 0,
            round: None,
            hasher: None,
            cancel,
        }
    }

    fn fail(error: BlobError) -> io::Error {
        io::Error::other(error)
    }

    /// Decides what the end of the bytes means.
    fn end(&mut self) -> io::Result<usize> {
        let Some(hasher) = self.hasher.take() else {
            return Ok(0);
        };
        if hasher.finish() == self.digest.to_string() {
            // Reading it again need not hash it again.
            self.flight.update(|state| state.trust = Trust::Hashed);
            return Ok(0);
        }
        self.flight.finish(End::Damaged);
        Err(Self::fail(BlobError::Damaged(self.digest.clone())))
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let (position, round) = (self.position, self.round);
        let state = self.flight.wait(|state| {
            state.available > position
                || round.is_some_and(|round| round != state.round)
                || self.cancel.is_cancelled()
        });
        if self.cancel.is_cancelled() {
            return Err(Self::fail(BlobError::Failed(self.digest.clone())));
        }
        match state.end {
            Some(End::Failed) => return Err(Self::fail(BlobError::Failed(self.digest.clone()))),
            Some(End::Damaged) => return Err(Self::fail(BlobError::Damaged(self.digest.clone()))),
            Some(End::Complete) | None => {}
        }
        if *self.round.get_or_insert(state.round) != state.round {
            return Err(Self::fail(BlobError::Restarted(self.digest.clone())));
        }
        if position == 0 && self.hasher.is_none() && state.trust == Trust::Unread {
            self.hasher = Some(Hasher::like(&self.digest));
        }
        let left = usize::try_from(state.available - position).unwrap_or(usize::MAX);
        if left == 0 {
            return self.end();
        }
        let Some(file) = state.file else {
            return Err(Self::fail(BlobError::Failed(self.digest.clone())));
        };
        let wanted = left.min(buffer.len());
        let count = file.read_at(&mut buffer[..wanted], position)?;
        if count == 0 {
            // Somebody made the file shorter.
            self.flight.finish(End::Damaged);
            return Err(Self::fail(BlobError::Damaged(self.digest.clone())));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        self.position += count as u64;
        Ok(count)
    }
}
