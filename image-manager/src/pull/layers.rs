//! Downloading an image's layers and building the image of them, at the same time.
//!
//! The layers that the build reads first are downloaded first: the top ones. The build reads them
//! from the cache while they arrive. Whichever of the two fails stops the other, and is the one
//! that says why.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::build::{BuildError, BuildOptions, LayerSource, Open, build_image};
use crate::cache::{BlobCache, CacheError};
use crate::cancel::Cancelled;
use crate::registry::{Descriptor, Repository};
use crate::store::is_full;

use super::{Event, PullError, Request};

/// Layers downloaded at once.
const DOWNLOADS: usize = 4;

/// What is pulled, and with what.
pub(super) struct Layers<'a> {
    pub request: &'a Request<'a>,
    pub repository: &'a Repository<'a>,
    /// Bottom first.
    pub layers: &'a [Descriptor],
    /// As many.
    pub diff_ids: &'a [String],
    pub cache: &'a BlobCache,
}

impl Layers<'_> {
    /// The blobs in the order in which they are needed. Images repeat layers, mostly the empty one.
    pub fn blobs(&self) -> Vec<&Descriptor> {
        let mut seen = BTreeSet::new();
        let top_first = self.layers.iter().rev();
        top_first.filter(|blob| seen.insert(&blob.digest)).collect()
    }

    /// Builds the image into `out`. Blobs that turn out to be damaged in the cache, or that came
    /// wrong from the registry at first, are worth a second try.
    pub fn build(&self, out: &mut File) -> Result<(), PullError> {
        match self.attempt(out) {
            // A damaged blob may look like a damaged archive: its end, which tells, is not read then.
            Err(PullError::Build(error)) if !is_full(&error) => {
                if !self.cache.recover()? {
                    return Err(PullError::Build(error));
                }
                out.set_len(0).map_err(|source| {
                    let source = squashfs_writer::Error::Write { source };
                    PullError::Build(BuildError::Write { source })
                })?;
                self.attempt(out)
            }
            result => result,
        }
    }

    fn attempt(&self, out: &mut File) -> Result<(), PullError> {
        let opens: Vec<_> = self.layers.iter().map(|layer| self.open(layer)).collect();
        let described = self.layers.iter().zip(self.diff_ids).zip(&opens);
        let sources: Vec<LayerSource<'_>> = described
            .map(|((layer, diff_id), open)| LayerSource {
                media_type: layer.media_type.clone(),
                diff_id: Some(diff_id.clone()),
                open: open as &Open<'_>,
            })
            .collect();
        let blobs = self.blobs();
        let options = BuildOptions {
            cancel: self.request.cancel.clone(),
            ..self.request.options.clone()
        };
        (self.request.watch)(Event::Downloading);
        let (built, downloaded) = std::thread::scope(|scope| {
            let download = scope.spawn(|| self.download(&blobs));
            let built = build_image(&sources, out, &options);
            if built.is_err() {
                self.cache.abandon();
            }
            let died = |_| Err(CacheError::Abandoned);
            (built, download.join().unwrap_or_else(died))
        });
        match (built, downloaded) {
            (Ok(_), Ok(())) => Ok(()),
            (Err(BuildError::Cancelled(cancelled)), _) => Err(PullError::Cancelled(cancelled)),
            _ if self.request.cancel.is_cancelled() => Err(PullError::Cancelled(Cancelled)),
            // A download that was abandoned says that somebody else has the reason.
            (Err(error), Ok(()) | Err(CacheError::Abandoned)) => Err(PullError::Build(error)),
            (_, Err(error)) => Err(error.into()),
        }
    }

    fn open<'a>(
        &'a self,
        layer: &'a Descriptor,
    ) -> impl Fn() -> io::Result<Box<dyn Read + Send>> + Sync + 'a {
        move || Ok(Box::new(self.cache.reader(layer)))
    }

    /// Fetches blobs, several at once, in their order; all are here when it returns `Ok`.
    fn download(&self, blobs: &[&Descriptor]) -> Result<(), CacheError> {
        let next = AtomicUsize::new(0);
        let left = AtomicUsize::new(blobs.len());
        let failed = Mutex::new(None);
        let work = || {
            while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let digest = &blob.digest;
                let watch = |progress: crate::cache::Progress<'_>| {
                    (self.request.watch)(Event::Layer { digest, progress });
                };
                if let Err(error) = self.cache.download(self.repository, blob, &watch) {
                    // The image cannot be had any more: whoever reads or downloads stops.
                    self.cache.abandon();
                    next.store(blobs.len(), Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    // The first is the reason for the others.
                    failed.get_or_insert(error);
                    return;
                }
                if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    (self.request.watch)(Event::Building);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..DOWNLOADS.min(blobs.len()) {
                scope.spawn(work);
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
