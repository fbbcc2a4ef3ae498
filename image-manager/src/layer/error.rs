//! Why a layer could not be read.

use std::io;

/// Why a layer could not be read. Texts from the layer are made printable.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob could not be read.
    #[error("cannot read the blob")]
    Read {
        /// What the operating system answered.
        source: io::Error,
    },
    /// A limit of the caller's allows no further thread.
    #[error("cannot start a thread")]
    Thread {
        /// What the operating system answered.
        source: io::Error,
    },
    /// A limit of the caller's allows no more memory.
    #[error("there is not enough memory to decompress it")]
    Memory,
    /// The blob ends in the middle.
    #[error("it ends too early: the blob is incomplete")]
    Truncated,
    /// The compressed data is damaged, or needs more memory than any sane layer.
    #[error("cannot decompress it")]
    Compression {
        /// What the decompressor said.
        source: io::Error,
    },
    /// The manifest says one thing and the blob is another.
    #[error("it is {found}, but its media type is '{media_type}'")]
    MediaType {
        /// The media type from the manifest.
        media_type: String,
        /// What the first bytes say.
        found: &'static str,
    },
    /// The manifest's media type is not one of a layer that can be read.
    #[error("its media type '{media_type}' is not supported")]
    UnknownMediaType {
        /// The media type from the manifest.
        media_type: String,
    },
    /// The archive breaks the tar format.
    #[error("entry {number} of the archive is malformed: {reason}")]
    Malformed {
        /// Position of the entry, counted from 1.
        number: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// An entry's name or link target leaves the image or cannot exist.
    #[error("entry '{path}' is refused: {reason}")]
    Refused {
        /// The name as found, made printable.
        path: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Somebody asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The layer is larger than allowed.
    #[error("it exceeds the limit of {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
}
