//! Downloading an image's layers and building the image of them, at the same time.
//!
//! The layers that the build reads first are downloaded first: the top ones. The build reads them
//! from the cache while they arrive. Whichever of the two fails stops the other, and is the one
//! that says why.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use crate::build::{BuildError, BuildOptions, LayerSource, Open, build_image};
use crate::cache::{BlobCache, CacheError};
use crate::cancel::Cancelled;
use crate::registry::{Descriptor, Repository};
use crate::store::{LayerRecord, is_full};

use super::{Event, PullError, Request};

/// Layers downloaded at once.
const DOWNLOADS: usize = 4;

/// Bytes of an image after which the disk is asked to write them, and how often that is looked at.
const WRITE_OUT: u64 = 16 << 20;
const INTERVAL: Duration = Duration::from_millis(20);

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

    /// What the image's record says of them.
    pub fn records(&self) -> Vec<LayerRecord> {
        let described = self.layers.iter().zip(self.diff_ids);
        let records = described.map(|(layer, diff_id)| LayerRecord {
            media_type: layer.media_type.clone(),
            digest: layer.digest.to_string(),
            size: layer.size,
            diff_id: diff_id.clone(),
        });
        records.collect()
    }

    /// Builds the image into `out`. Blobs that turn out to be damaged in the cache, or that came
    /// wrong from the registry at first, are worth a second try.
    pub fn build(&self, out: &mut File, options: &BuildOptions) -> Result<(), PullError> {
        match self.attempt(out, options) {
            // A damaged blob may look like a damaged archive: its end, which tells, is not read then.
            Err(PullError::Build(error)) if !is_full(&error) => {
                if !self.cache.recover()? {
                    return Err(PullError::Build(error));
                }
                out.set_len(0).map_err(|source| {
                    let source = squashfs_writer::Error::Write { source };
                    PullError::Build(BuildError::Write { source })
                })?;
                self.attempt(out, options)
            }
            result => result,
        }
    }

    fn attempt(&self, out: &mut File, options: &BuildOptions) -> Result<(), PullError> {
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
            ..options.clone()
        };
        (self.request.watch)(Event::Downloading);
        let copy = out.try_clone();
        let (built, downloaded) = std::thread::scope(|scope| {
            let download = Builder::new().spawn_scoped(scope, || self.download(&blobs));
            // Where a limit allows no further thread, one comes after the other.
            let early = download.is_err().then(|| self.download(&blobs));
            let (is_building, end) = channel();
            if let Ok(file) = copy {
                // Without it, the end takes longer.
                let _ = Builder::new().spawn_scoped(scope, move || write_out(&file, &end));
            }
            let built = build_image(&sources, out, &options);
            drop(is_building);
            if let Err(error) = &built {
                // Another blob than was asked for breaks a decoder, too: only its digest tells.
                if let Some(at) = error.layer_at_fault() {
                    self.cache.settle(&self.layers[at]);
                }
                self.cache.abandon();
            }
            let died = || Err(CacheError::Abandoned);
            let downloaded = match download {
                Ok(thread) => thread.join().unwrap_or_else(|_| died()),
                Err(_) => early.unwrap_or_else(died),
            };
            (built, downloaded)
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
            for _ in 1..DOWNLOADS.min(blobs.len()) {
                // Fewer where a limit allows no more.
                let _ = Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Has the disk written what is finished of the image until nobody holds the other end of
/// `is_building`: else all of it would be waited for at the end, when nothing else is left to do.
fn write_out(file: &File, is_building: &Receiver<()>) {
    let mut written = 0;
    while is_building.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let length = file.metadata().map_or(0, |meta| meta.len());
        if length >= written + WRITE_OUT {
            // An error is seen again where the image is made durable.
            let _ = file.sync_data();
            written = length;
        }
    }
}
