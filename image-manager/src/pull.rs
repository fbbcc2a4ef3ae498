//! Pulling one image: from a reference to a published file in a store.
//!
//! Owns the order: resolve, check the configuration, lock the image's id, download, build, publish,
//! drop the layers, tag. What each step means is in the modules it calls. An image that is there
//! already is only tagged: its id pins its content, because the build compared every layer with the
//! digests in the configuration.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use shifter_core::exit::ExitCode;
use shifter_core::ids::ImageId;
use shifter_core::reference::{Digest, ImageRef, ImageType};
use shifter_core::store::IndexEntry;
use thiserror::Error;

use crate::build::{BuildError, LayerSource, Open, build_image};
use crate::cache::{BlobCache, CacheError};
use crate::image_config::{ImageConfig, ImageConfigError};
use crate::registry::{
    Access, Client, Descriptor, RegistryError, Repository, Resolved, host_architecture,
};
use crate::store::{ImageLock, Store, StoreError, is_full};

/// Layers downloaded at once.
const DOWNLOADS: usize = 3;

/// Says which part of a pull failed.
#[derive(Debug, Error)]
pub enum PullError {
    /// Only docker images live in registries.
    #[error("images of the type '{0}' do not come from a registry")]
    NotPullable(String),
    /// The registry could not be reached or did not deliver.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store cannot take the image.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image's own description of itself cannot be used.
    #[error(transparent)]
    Config(#[from] ImageConfigError),
    /// Another part of the pull failed, and says why.
    #[error("the download was given up")]
    Abandoned,
    /// The layers do not make an image.
    #[error("cannot build the image")]
    Build(#[source] BuildError),
}

impl From<CacheError> for PullError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Registry(error) => error.into(),
            CacheError::Store(error) => error.into(),
            CacheError::Abandoned => Self::Abandoned,
        }
    }
}

impl PullError {
    /// Returns the code the program ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotPullable(_) => ExitCode::Usage,
            Self::Registry(error) => error.exit_code(),
            Self::Store(error) => error.exit_code(),
            Self::Config(_) | Self::Build(_) => ExitCode::Image,
            Self::Abandoned => ExitCode::Internal,
        }
    }

    /// Returns a known way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            Self::Store(error) => error.hint(),
            _ => None,
        }
    }
}

/// What a pull is doing, for whoever watches.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Asks the registry.
    Resolving,
    /// Waits for another pull of the same image.
    Waiting,
    /// Downloads layers: bytes done and bytes in all.
    Downloading(u64, u64),
    /// Writes the image.
    Building,
}

/// An image that is in the store now.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// Its id.
    pub id: ImageId,
    /// The digest that the reference has in the registry.
    pub digest: Digest,
    /// The file it is in.
    pub path: PathBuf,
    /// Size of that file, in bytes.
    pub size: u64,
    /// False if the store had the image already.
    pub is_new: bool,
    /// Names of the image's variables that its metadata cannot hold.
    pub left_out: Vec<Vec<u8>>,
}

/// Pulls `reference` into `store`. An image that needs a login may be seen by `puller` alone.
pub fn pull(
    client: &Client,
    store: &Store,
    reference: &ImageRef,
    puller: u32,
    watch: &(dyn Fn(Step) + Sync),
) -> Result<Pulled, PullError> {
    if *reference.image_type() != ImageType::Docker {
        return Err(PullError::NotPullable(reference.image_type().to_string()));
    }
    watch(Step::Resolving);
    let repository = client.repository(reference)?;
    let resolved = repository.resolve(reference)?;
    let layer_count = resolved.manifest.layers.len();
    let mut config = ImageConfig::parse(&resolved.config, layer_count, host_architecture())?;
    let left_out = config.meta.remove_unwritable();
    if resolved.access == Access::Private {
        config.meta.user_acl = vec![puller];
    }

    store.sweep()?;
    let cache = BlobCache::of_store(store)?;
    cache.sweep()?;
    let mut lock = store.lock(&config.id, || watch(Step::Waiting))?;
    let found = lock.complete()?;
    let is_new = found.is_none();
    match found {
        Some(found) => lock.widen(&found, &config.meta)?,
        None => {
            let made = make(&repository, &resolved, &config, &cache, &mut lock, watch);
            // Layers are worth keeping only where the next try would download them again.
            let is_retried = matches!(made, Err(PullError::Registry(_)));
            let removed = match is_retried {
                true => Ok(()),
                false => resolved
                    .manifest
                    .layers
                    .iter()
                    .try_for_each(|l| cache.remove(&l.digest)),
            };
            made?;
            removed?;
        }
    }
    let (path, size) = lock.image()?;
    let entry = IndexEntry {
        reference: reference.canonical(),
        id: config.id.clone(),
        digest: Some(resolved.digest.to_string()),
        pulled: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
        size,
    };
    store.tag(reference, &entry)?;
    lock.keep()?;
    Ok(Pulled {
        id: config.id,
        digest: resolved.digest,
        path,
        size,
        is_new,
        left_out,
    })
}

/// Downloads the layers, builds the image and publishes it.
fn make(
    repository: &Repository<'_>,
    resolved: &Resolved,
    config: &ImageConfig,
    cache: &BlobCache,
    lock: &mut ImageLock<'_>,
    watch: &(dyn Fn(Step) + Sync),
) -> Result<(), PullError> {
    let layers = &resolved.manifest.layers;
    // Images repeat layers, mostly the empty one.
    let unique: BTreeMap<&Digest, &Descriptor> = layers.iter().map(|l| (&l.digest, l)).collect();
    cache.check_space(unique.values().copied())?;
    let blobs: Vec<&Descriptor> = unique.values().copied().collect();
    let files = download(repository, &blobs, cache, watch)?;

    watch(Step::Building);
    let by_digest: BTreeMap<&Digest, File> =
        blobs.iter().map(|blob| &blob.digest).zip(files).collect();
    let opens: Vec<Box<Open<'_>>> = layers
        .iter()
        .map(|layer| -> Box<Open<'_>> {
            let file = by_digest.get(&layer.digest);
            Box::new(move || {
                let file = file.ok_or(io::ErrorKind::NotFound)?;
                // The verified file itself, whatever becomes of its name, at a position of its own.
                let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
                Ok(Box::new(file) as Box<dyn Read + Send>)
            })
        })
        .collect();
    let described = layers.iter().zip(&config.diff_ids).zip(&opens);
    let sources: Vec<LayerSource<'_>> = described
        .map(|((layer, diff_id), open)| LayerSource {
            media_type: layer.media_type.clone(),
            diff_id: Some(diff_id.clone()),
            open: &**open,
        })
        .collect();
    let mut out = lock.begin()?;
    build_image(&sources, &mut out, lock.build_options()).map_err(|error| {
        if is_full(&error) {
            PullError::Store(lock.full(layers.iter().map(|layer| layer.size).sum()))
        } else {
            PullError::Build(error)
        }
    })?;
    Ok(lock.publish(&out, &config.meta)?)
}

/// Fetches blobs, several at once; the files are in the order of `blobs`.
fn download(
    repository: &Repository<'_>,
    blobs: &[&Descriptor],
    cache: &BlobCache,
    watch: &(dyn Fn(Step) + Sync),
) -> Result<Vec<File>, PullError> {
    let total = blobs
        .iter()
        .fold(0u64, |sum, blob| sum.saturating_add(blob.size));
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let results: Mutex<BTreeMap<usize, Result<File, CacheError>>> = Mutex::default();
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(blob) = blobs.get(at) else { return };
            let result = cache.fetch(repository, blob, |bytes| {
                let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                watch(Step::Downloading(done, total));
            });
            if result.is_err() {
                // The image cannot be had any more: let the other threads finish and stop.
                next.store(blobs.len(), Ordering::Relaxed);
            }
            results
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(at, result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..DOWNLOADS.min(blobs.len()) {
            scope.spawn(work);
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(results.into_values().collect::<Result<_, _>>()?)
}
