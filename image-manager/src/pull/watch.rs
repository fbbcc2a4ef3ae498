//! What a pull is asked for, and what it tells whoever watches.

use shifter_core::reference::{Digest, ImageRef};

use crate::build::BuildOptions;
use crate::cache;
use crate::cancel::Cancel;
use crate::registry::{Client, Descriptor, Wanted};
use crate::store::{Audience, Store};

/// Everything that a pull needs.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Talks to the registry; what it has to tell is told by the client.
    pub client: &'a Client,
    /// Where the image goes.
    pub store: &'a Store,
    /// The image.
    pub reference: &'a ImageRef,
    /// For which platform.
    pub wanted: &'a Wanted,
    /// Who may see it, if not everybody may.
    pub audience: &'a Audience,
    /// How the image is written.
    pub options: &'a BuildOptions,
    /// Asks the pull to stop.
    pub cancel: &'a Cancel,
    /// Hears what is done; several threads tell.
    pub watch: &'a (dyn Fn(Event<'_>) + Sync),
}

/// What a pull is doing.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Asks the registry.
    Resolving,
    /// The image is known, and these are its layers, bottom first.
    Resolved {
        /// What the reference stands for: the index, if there is one.
        digest: &'a Digest,
        /// The layers; the same one may be there more than once.
        layers: &'a [Descriptor],
    },
    /// Waits for somebody else who is at work on this image, and who that is.
    Waiting(&'a str),
    /// Downloads layers, and perhaps writes the image already.
    Downloading,
    /// More of a layer is here, or somebody else downloads it.
    Layer {
        /// Which one.
        digest: &'a Digest,
        /// What is new; the bytes of a layer add up to its size.
        progress: cache::Progress<'a>,
    },
    /// All layers are here, and the image is written.
    Building,
}
