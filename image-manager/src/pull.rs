//! Pulling one image: from a reference to a published file in a store.
//!
//! Owns the order: resolve, check the configuration, download and build, lock the image's id, publish,
//! tag. What each step means is in the modules it calls. An image that is there
//! already is only tagged: its id pins its content, because the build compared every layer with the
//! digests in the configuration.

mod layers;
mod watch;

use std::fs::File;
use std::path::PathBuf;

use shifter_core::exit::ExitCode;
use shifter_core::ids::ImageId;
use shifter_core::meta::ImageMeta;
use shifter_core::reference::{Digest, ImageType};
use shifter_core::store::IndexEntry;
use thiserror::Error;

use crate::build::{BuildError, BuildOptions};
use crate::cache::{BlobCache, CacheError};
use crate::cancel::Cancelled;
use crate::image_config::{ImageConfig, ImageConfigError};
use crate::registry::{Access, RegistryError};
use crate::store::{ImageLock, ImageRecord, Store, StoreError, Waiting, is_full, now};

use layers::Layers;
pub use watch::{Event, Request};

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
    /// The user wants to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The layers do not make an image.
    #[error("cannot build the image")]
    Build(#[source] BuildError),
}

impl From<CacheError> for PullError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Registry(error) => error.into(),
            CacheError::Store(error) => error.into(),
            CacheError::Abandoned | CacheError::Private => Self::Abandoned,
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
            Self::Build(error) => error.exit_code(),
            Self::Config(_) => ExitCode::Image,
            Self::Abandoned | Self::Cancelled(_) => ExitCode::Internal,
        }
    }

    /// Returns a known way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Build(error) => error.hint().map(str::to_owned),
            Self::NotPullable(_) => Some("shifter import FILE NAME".to_owned()),
            _ => None,
        }
    }
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

/// Pulls an image. One that needs a login may be seen by the request's audience alone.
pub fn pull(request: &Request<'_>) -> Result<Pulled, PullError> {
    let Request {
        store,
        reference,
        audience,
        watch,
        ..
    } = *request;
    if *reference.image_type() != ImageType::Docker {
        return Err(PullError::NotPullable(reference.image_type().to_string()));
    }
    watch(Event::Resolving);
    let repository = request.client.repository(reference)?;
    let resolved = repository.resolve_for(reference, request.wanted)?;
    watch(Event::Resolved {
        digest: &resolved.digest,
        layers: &resolved.manifest.layers,
    });
    request.cancel.check()?;
    let layer_count = resolved.manifest.layers.len();
    let mut config = ImageConfig::parse(
        &resolved.config,
        layer_count,
        &request.wanted.platform().architecture,
    )?;
    let left_out = config.meta.remove_unwritable();
    if resolved.access == Access::Private {
        audience.restrict(&mut config.meta);
    }
    let mut record = ImageRecord {
        source: repository.source(),
        is_private: resolved.access == Access::Private,
        digest: Some(resolved.digest.to_string()),
        pulled_by: Some(audience.puller),
        pulled: Some(now()),
        ..ImageRecord::default()
    };
    record.describe(&resolved.config);

    if store.is_read_only() {
        let digest = resolved.digest.to_string();
        let may_have =
            |found: &ImageMeta, known: Option<&ImageRecord>| may_have(found, &record, known);
        let found =
            store.find_unchanged(reference, (&config.id, &digest), &config.meta, may_have)?;
        let path = store.path().to_owned();
        let (path, size) = found.ok_or(StoreError::ReadOnly { path })?;
        return Ok(Pulled {
            id: config.id,
            digest: resolved.digest,
            path,
            size,
            is_new: false,
            left_out,
        });
    }
    store.sweep()?;
    let cache = BlobCache::of_store(store)?.with_cancel(request.cancel.clone());
    cache.sweep()?;
    let waiting = &Waiting {
        cancel: Some(request.cancel),
        tell: &|owner| watch(Event::Waiting(&owner.describe())),
    };
    let lock = store.lock(&config.id, waiting)?;
    let (lock, is_new) = match find(&lock, &record)? {
        Some(found) => {
            lock.widen(&found, &config.meta)?;
            (lock, false)
        }
        None => {
            drop(lock);
            let layers = Layers {
                request,
                repository: &repository,
                layers: &resolved.manifest.layers,
                diff_ids: &config.diff_ids,
                cache: &cache,
            };
            build(&layers, &config, record, waiting)?
        }
    };
    let (path, size) = lock.image()?;
    let entry = IndexEntry {
        reference: reference.canonical(),
        id: config.id.clone(),
        digest: Some(resolved.digest.to_string()),
        pulled: now(),
        size,
    };
    lock.check()?;
    store.tag(reference, &entry, waiting)?;
    lock.keep()?;
    drop(lock);
    // What was pulled stays pulled if the cache cannot be made smaller.
    cache.release();
    let _ = cache.trim(store.cache_limit());
    Ok(Pulled {
        id: config.id,
        digest: resolved.digest,
        path,
        size,
        is_new,
        left_out,
    })
}

/// Returns the metadata of an image that is there, if whoever pulls may have it.
fn find(lock: &ImageLock<'_>, record: &ImageRecord) -> Result<Option<ImageMeta>, StoreError> {
    // A record that cannot be read proves nothing.
    let known = lock.record().ok().flatten();
    let may_have = |found: &ImageMeta| may_have(found, record, known.as_ref());
    Ok(lock.complete()?.filter(may_have))
}

/// True if an image may be given to who pulls it, of whom `record` tells.
fn may_have(found: &ImageMeta, record: &ImageRecord, known: Option<&ImageRecord>) -> bool {
    // An id is no secret, and whoever knows it can make a registry name it. So only the layers prove
    // that this registry gives away a private image, unless it came from there. What a registry shows
    // everybody proves nothing: it may want a login for the layers alone.
    let is_from = known.is_some_and(|known| known.source == record.source);
    found.is_public() || record.is_private && is_from
}

/// Builds an image and publishes it; false if somebody else from the same source did.
fn build<'a>(
    layers: &Layers<'a>,
    config: &ImageConfig,
    mut record: ImageRecord,
    waiting: &Waiting<'_>,
) -> Result<(ImageLock<'a>, bool), PullError> {
    let Request {
        store, audience, ..
    } = *layers.request;
    let mut meta = config.meta.clone();
    let workshop = store.workshop(&config.id, &record.source, waiting)?;
    let lock = store.lock(&config.id, waiting)?;
    if let Some(found) = find(&lock, &record)? {
        lock.widen(&found, &meta)?;
        return Ok((lock, false));
    }
    let options = lock.form(layers.request.options)?;
    drop(lock);
    let mut out = workshop.begin()?;
    let made = make(layers, store, &mut out, &options);
    if let Err(PullError::Store(StoreError::Full { .. })) = made {
        // The reason is what matters; what stays goes when room is needed.
        let _ = layers.cache.give_back(&layers.blobs());
    }
    made?;
    meta.format = options.squashfs.format.as_str().to_owned();
    record.layers = layers.records();
    // A registry may show everybody what it gives only to some.
    if layers.repository.access() == Access::Private {
        audience.restrict(&mut meta);
        record.is_private = true;
    }
    let image = workshop.seal(&out)?;
    let lock = store.lock(&config.id, waiting)?;
    lock.publish(&image, &meta, record)?;
    Ok((lock, true))
}

/// Downloads the layers and builds the image.
fn make(
    layers: &Layers<'_>,
    store: &Store,
    out: &mut File,
    options: &BuildOptions,
) -> Result<(), PullError> {
    let blobs = layers.blobs();
    layers.cache.reserve(&blobs)?;
    let sizes = blobs.iter().map(|blob| blob.size);
    let bytes = sizes.fold(0, u64::saturating_add);
    // Layers may hide most of each other; where not even a quarter fits, no download is worth it.
    if free_bytes(out).is_some_and(|free| free < bytes / 4) {
        return Err(PullError::Store(store.full(bytes)));
    }
    layers.build(out, options).map_err(|error| match error {
        PullError::Build(error) if is_full(&error) => PullError::Store(store.full(bytes)),
        error => error,
    })?;
    Ok(layers.request.cancel.check()?)
}

/// What the file system of a file has room for, if it says so.
fn free_bytes(file: &File) -> Option<u64> {
    let found = rustix::fs::fstatvfs(file).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
