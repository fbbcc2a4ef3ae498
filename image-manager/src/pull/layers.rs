//! Downloading an image's layers and building the image of them, at the same time.
//!
//! The layers that the build reads first are downloaded first: the top ones. The build reads them
//! from the cache while they arrive. Whichever of the two fails stops the other, and is the one
//! that says why.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::build::{BuildError, BuildOptions, LayerSource, Open, build_image};
use crate::cache::{BlobCache, BlobReader, CacheError};
use crate::registry::{Descriptor, Repository};

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
            Err(Failure { error, is_a_blob }) => {
                if !is_a_blob || !self.cache.recover()? {
                    return Err(error);
                }
                self.attempt(out).map_err(|failure| failure.error)
            }
            Ok(()) => Ok(()),
        }
    }

    fn attempt(&self, out: &mut File) -> Result<(), Failure> {
        let has_failed = Arc::new(AtomicBool::new(false));
        let opens: Vec<_> = self
            .layers
            .iter()
            .map(|l| self.open(l, &has_failed))
            .collect();
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
            ..BuildOptions::default()
        };
        (self.request.watch)(Event::Downloading);
        let (built, is_a_blob, downloaded) = std::thread::scope(|scope| {
            let download = scope.spawn(|| self.download(&blobs));
            let built = build_image(&sources, out, &options);
            let is_a_blob = has_failed.load(Ordering::SeqCst);
            if built.is_err() {
                self.cache.abandon();
            }
            let died = |_| Err(CacheError::Abandoned);
            (built, is_a_blob, download.join().unwrap_or_else(died))
        });
        let error = match (built, downloaded) {
            (Ok(_), Ok(())) => return Ok(()),
            (Err(BuildError::Cancelled(cancelled)), _) => PullError::Cancelled(cancelled),
            (Err(error), _) if !is_a_blob => PullError::Build(error),
            (Err(error), Ok(()) | Err(CacheError::Abandoned)) => {
                let error = PullError::Build(error);
                return Err(Failure { error, is_a_blob });
            }
            (_, Err(error)) => error.into(),
        };
        let is_a_blob = false;
        Err(Failure { error, is_a_blob })
    }

    fn open<'a>(
        &'a self,
        layer: &'a Descriptor,
        has_failed: &'a Arc<AtomicBool>,
    ) -> impl Fn() -> io::Result<Box<dyn Read + Send>> + Sync + 'a {
        move || {
            Ok(Box::new(Watched {
                blob: self.cache.reader(layer),
                has_failed: Arc::clone(has_failed),
            }))
        }
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

/// Why there is no image.
struct Failure {
    error: PullError,
    /// A blob could not be read, and its download does not say why.
    is_a_blob: bool,
}

/// A blob that tells if reading it failed.
struct Watched {
    blob: BlobReader,
    has_failed: Arc<AtomicBool>,
}

impl Read for Watched {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let result = self.blob.read(out);
        if result.is_err() {
            self.has_failed.store(true, Ordering::SeqCst);
        }
        result
    }
}
