//! Why an image could not be built.

use crate::cancel::Cancelled;
use crate::layer::LayerError;
use crate::merge::MergeError;
use shifter_core::exit::ExitCode;
use squashfs_writer as squashfs;
use std::io;

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
    /// Somebody asked it to stop.
    #[error(transparent)]
    Cancelled(Cancelled),
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

impl BuildError {
    /// Returns the code a program ends with: an image that cannot be built is at fault itself, but
    /// for what this process could not have.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Layer {
                source: LayerError::Thread { .. } | LayerError::Memory,
                ..
            }
            | Self::DiskFull { .. }
            | Self::Write { .. }
            | Self::Cancelled(_) => ExitCode::Internal,
            _ => ExitCode::Image,
        }
    }

    /// Returns a known way out.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Layer {
                source: LayerError::Thread { .. },
                ..
            } => Some("raise the limit on processes, see 'ulimit -u'"),
            Self::Layer {
                source: LayerError::Memory,
                ..
            } => Some("raise the limit on memory, see 'ulimit -a'"),
            Self::DiskFull { source } if source.kind() == io::ErrorKind::FileTooLarge => {
                Some("raise the limit on the size of files, see 'ulimit -f'")
            }
            _ => None,
        }
    }

    /// The place, counted from 0, of the layer whose bytes are at fault if they are what the image's
    /// author made them.
    pub fn layer_at_fault(&self) -> Option<usize> {
        match self {
            Self::Layer {
                source:
                    LayerError::Thread { .. } | LayerError::Memory | LayerError::UnknownMediaType { .. },
                ..
            } => None,
            Self::Layer { layer, .. } => layer.checked_sub(1),
            _ => None,
        }
    }

    /// An error of the layer at this place, counted from 0.
    pub(super) fn layer(at: usize, source: LayerError) -> Self {
        match source {
            LayerError::Cancelled => Self::Cancelled(Cancelled),
            source => Self::Layer {
                layer: at + 1,
                source,
            },
        }
    }
}
