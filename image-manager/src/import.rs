//! Taking images from files: archives of docker's and OCI's, OCI layouts, root file systems and
//! squashfs files.
//!
//! Owns the order: open and recognise, list the images, check the configuration, lock the image's
//! id, build, publish, tag. An image of an archive gets the id that a pull would give it, since the
//! same digests pin the same content. Nothing is unpacked, and no name in an archive is ever one in
//! the file system.

mod docker;
mod error;
mod input;
mod names;
mod oci;
mod rootfs;
mod section;
mod squashfs;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use shifter_core::ids::ImageId;
use shifter_core::reference::{Digest, ImageRef};
use shifter_core::store::IndexEntry;

use crate::build::{BuildOptions, LayerSource, Open, build_image};
use crate::cancel::Cancel;
use crate::image_config::ImageConfig;
use crate::registry::Wanted;
use crate::store::{Audience, ImageRecord, LayerRecord, Store, StoreKind, Waiting, is_full, now};
use input::Input;
use names::Names;
use section::{Section, Verified};

pub use error::{ImportError, Unsupported};

const MANIFEST_LIMIT: u64 = 4 << 20;
const CONFIG_LIMIT: u64 = 8 << 20;
/// Images that one archive may hold.
const IMAGE_LIMIT: usize = 1000;

/// What a file is; without it the content decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceFormat {
    /// What `docker save` writes.
    DockerArchive,
    /// An OCI layout in an archive.
    OciArchive,
    /// An OCI layout in a directory.
    OciLayout,
    /// A root file system.
    Tar,
    /// A squashfs file.
    Squashfs,
}

impl SourceFormat {
    /// Reads the name used on the command line.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "docker-archive" => Self::DockerArchive,
            "oci-archive" => Self::OciArchive,
            "oci" => Self::OciLayout,
            "tar" => Self::Tar,
            "squashfs" => Self::Squashfs,
            _ => return None,
        })
    }

    fn described(self) -> &'static str {
        match self {
            Self::DockerArchive => "an archive of docker's",
            Self::OciArchive => "an OCI archive",
            Self::OciLayout => "the directory of an OCI layout",
            Self::Tar => "an archive",
            Self::Squashfs => "a squashfs file",
        }
    }
}

/// How a file is to be imported.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The file or directory; `-` is standard input.
    pub path: &'a Path,
    /// What it is, if that is known.
    pub format: Option<SourceFormat>,
    /// Which image, where there are several.
    pub select: Option<&'a str>,
    /// Which image of several, and what it must be for.
    pub wanted: &'a Wanted,
    /// Whether a squashfs file, which nobody can verify, is taken.
    pub is_squashfs_allowed: bool,
}

/// An opened file and the images in it.
pub struct Archive {
    input: Input,
    stamp: Option<section::Stamp>,
    content: Content,
    wanted: Wanted,
    may_nest: bool,
}

/// One image of an archive, by its position.
struct Found<T> {
    names: Vec<String>,
    image: T,
}

enum Content {
    Docker(Names, Vec<Found<docker::Image>>),
    Oci(Option<Names>, Vec<Found<oci::Image>>),
    RootFs,
    Squashfs,
}

/// The bytes of a layer.
struct Blob {
    section: Section,
    media_type: String,
    digest: Option<Digest>,
}

/// Who may have the image, and under which names.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// The tags it gets.
    pub names: Vec<ImageRef>,
    /// Real uid of who imports it.
    pub importer: u32,
    /// Who may have it; without it everybody may.
    pub audience: Option<Audience>,
    /// How it is written.
    pub options: BuildOptions,
}

/// What an import is doing, for whoever watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportStep<'a> {
    /// Waits for somebody else who is at work on this image, and who that is.
    Waiting(&'a str),
    /// Writes the image.
    Building,
}

/// An image that is in the store now.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Its id.
    pub id: ImageId,
    /// The digest of its manifest, where there is one.
    pub digest: Option<Digest>,
    /// The file it is in.
    pub path: PathBuf,
    /// Size of that file, in bytes.
    pub size: u64,
    /// False if the store had the image already.
    pub is_new: bool,
    /// Names of the image's variables that its metadata cannot hold.
    pub left_out: Vec<Vec<u8>>,
}

impl Archive {
    /// Opens a file and lists what is in it. What must be copied goes into the store's cache.
    pub fn open(
        request: &Request<'_>,
        store: &Store,
        cancel: &Cancel,
    ) -> Result<Self, ImportError> {
        let input = Input::open(request.path, request.format, store, cancel)?;
        let stamp = input.stamp()?;
        let content = match &input {
            Input::Layout(dir) => Content::Oci(None, oci::Layout::Directory(dir).list()?),
            Input::RootFs(_) => Content::RootFs,
            Input::Squashfs(_) if !request.is_squashfs_allowed => {
                return Err(ImportError::SquashfsDenied);
            }
            Input::Squashfs(file) => {
                squashfs::check(file)?;
                Content::Squashfs
            }
            Input::Archive(file) => {
                let names = Names::of(file, cancel)?;
                Self::list(names, request.format)?
            }
        };
        let mut archive = Self {
            input,
            stamp,
            content,
            wanted: request.wanted.clone(),
            may_nest: request.format == Some(SourceFormat::Tar),
        };
        archive.select(request.select)?;
        Ok(archive)
    }

    fn list(names: Names, wanted: Option<SourceFormat>) -> Result<Content, ImportError> {
        let is_docker = match wanted {
            Some(SourceFormat::DockerArchive) => true,
            Some(SourceFormat::OciArchive) => false,
            // Newer archives of docker's are both; only this list has whole names.
            _ => names.has(docker::LIST),
        };
        if is_docker {
            let found = docker::list(&names)?;
            return Ok(Content::Docker(names, found));
        }
        if !names.has(oci::LIST) {
            return Err(match (wanted, names.foreign()) {
                (None, Some(name)) => ImportError::Member {
                    name,
                    reason: "does not belong into an archive of images".into(),
                },
                (Some(_), _) => ImportError::Missing(oci::LIST.into()),
                _ => ImportError::Missing(docker::LIST.into()),
            });
        }
        let found = oci::Layout::Archive(&names).list()?;
        Ok(Content::Oci(Some(names), found))
    }

    /// Leaves only the image of that name.
    fn select(&mut self, wanted: Option<&str>) -> Result<(), ImportError> {
        let all = self.names();
        if all.is_empty() {
            return Err(ImportError::NoImage);
        }
        let Some(wanted) = wanted else { return Ok(()) };
        let keep = |names: &[String]| names.iter().any(|name| is_name(name, wanted));
        match &mut self.content {
            Content::Docker(_, found) => found.retain(|found| keep(&found.names)),
            Content::Oci(_, found) => found.retain(|found| keep(&found.names)),
            Content::RootFs | Content::Squashfs => return Err(ImportError::Nameless),
        }
        let selected = self.names();
        let flat = |names: Vec<Vec<String>>| names.into_iter().flatten().collect();
        match selected.len() {
            1 => Ok(()),
            0 => Err(ImportError::NotSelected {
                wanted: wanted.to_owned(),
                names: flat(all),
            }),
            count => Err(ImportError::Several {
                count,
                names: flat(selected),
            }),
        }
    }

    /// Returns the names of each image as the archive has them; an image may have none.
    pub fn names(&self) -> Vec<Vec<String>> {
        match &self.content {
            Content::Docker(_, found) => found.iter().map(|one| one.names.clone()).collect(),
            Content::Oci(_, found) => found.iter().map(|one| one.names.clone()).collect(),
            Content::RootFs | Content::Squashfs => vec![Vec::new()],
        }
    }

    /// Says what the file is, for the image's record.
    fn source(&self) -> &'static str {
        match (&self.content, &self.input) {
            (Content::Docker(..), _) => "import:docker-archive",
            (Content::Oci(..), Input::Layout(_)) => "import:oci",
            (Content::Oci(..), _) => "import:oci-archive",
            (Content::RootFs, _) => "import:tar",
            (Content::Squashfs, _) => "import:squashfs",
        }
    }

    /// Puts one image into the store; `number` is its place in [`Archive::names`].
    pub fn import(
        &self,
        number: usize,
        store: &Store,
        target: &Target,
        cancel: &Cancel,
        watch: &(dyn Fn(ImportStep<'_>) + Sync),
    ) -> Result<Imported, ImportError> {
        let (image, digest) = self.prepare(number, cancel)?;
        for wanted in target.names.iter().filter_map(ImageRef::digest) {
            let found = digest
                .as_ref()
                .map_or("not known".into(), Digest::to_string);
            if wanted.to_string() != found {
                let wanted = wanted.to_string();
                return Err(ImportError::Digest { wanted, found });
            }
        }
        let (id, mut meta) = match &image {
            Image::Layers { config, .. } => (config.id.clone(), config.meta.clone()),
            Image::Squashfs(file) => (squashfs::id(file, cancel)?, squashfs::meta()),
        };
        let left_out = meta.remove_unwritable();
        if let Some(audience) = &target.audience {
            audience.restrict(&mut meta);
        }
        let mut record = ImageRecord {
            source: self.source().to_owned(),
            is_private: target.audience.is_some(),
            digest: digest.as_ref().map(Digest::to_string),
            pulled_by: Some(target.importer),
            pulled: Some(now()),
            ..ImageRecord::default()
        };
        image.describe(&mut record);

        store.sweep()?;
        let waiting = &Waiting {
            cancel: Some(cancel),
            tell: &|owner| watch(ImportStep::Waiting(&owner.describe())),
        };
        let workshop = store.workshop(&id, &record.source, waiting)?;
        let mut lock = store.lock(&id, waiting)?;
        let found = lock.complete()?;
        // An id is no secret: only who has the layers too may let others see a private image.
        let found = found.filter(|found| found.is_public() || store.kind() == StoreKind::User);
        let is_new = found.is_none();
        match found {
            Some(found) => lock.widen(&found, &meta)?,
            None => {
                watch(ImportStep::Building);
                let options = BuildOptions {
                    cancel: cancel.clone(),
                    ..lock.form(&target.options)?
                };
                drop(lock);
                let mut out = workshop.begin()?;
                self.make(&image, &id, store, &mut out, &options)?;
                if let Image::Layers { .. } = image {
                    meta.format = options.squashfs.format.as_str().to_owned();
                }
                let sealed = workshop.seal(&out)?;
                lock = store.lock(&id, waiting)?;
                lock.publish(&sealed, &meta, record)?;
            }
        }
        let (path, size) = lock.image()?;
        for reference in &target.names {
            let entry = IndexEntry {
                reference: reference.canonical(),
                id: id.clone(),
                digest: digest.as_ref().map(Digest::to_string),
                pulled: now(),
                size,
            };
            lock.check()?;
            store.tag(reference, &entry, waiting)?;
        }
        lock.keep()?;
        Ok(Imported {
            id,
            digest,
            path,
            size,
            is_new,
            left_out,
        })
    }

    /// Reads an image's configuration and finds its layers.
    fn prepare(
        &self,
        number: usize,
        cancel: &Cancel,
    ) -> Result<(Image, Option<Digest>), ImportError> {
        let architecture = &*self.wanted.platform().architecture;
        let (config, layers, digest) = match (&self.content, &self.input) {
            (Content::Docker(names, found), _) => {
                let one = found.get(number).ok_or(ImportError::NoImage)?;
                let (config, layers) = docker::read(names, &one.image)?;
                (config, layers, None)
            }
            (Content::Oci(names, found), input) => {
                let one = found.get(number).ok_or(ImportError::NoImage)?;
                let layout = match (names, input) {
                    (Some(names), _) => oci::Layout::Archive(names),
                    (None, Input::Layout(dir)) => oci::Layout::Directory(dir),
                    _ => return Err(ImportError::NoImage),
                };
                let parts = layout.read(&one.image, &self.wanted)?;
                (parts.config, parts.layers, Some(parts.digest))
            }
            (Content::RootFs, Input::RootFs(file)) => {
                let config = rootfs::config(file, architecture, self.may_nest, cancel)?;
                let layer = Blob {
                    section: file.clone(),
                    media_type: String::new(),
                    digest: None,
                };
                (config, vec![layer], None)
            }
            (Content::Squashfs, Input::Squashfs(file)) => {
                return Ok((Image::Squashfs(file.clone()), None));
            }
            _ => return Err(ImportError::NoImage),
        };
        let parsed = ImageConfig::parse(&config, layers.len(), architecture)?;
        let image = Image::Layers {
            config: Box::new(parsed),
            raw: config,
            layers,
        };
        Ok((image, digest))
    }

    /// Builds or copies the image.
    fn make(
        &self,
        image: &Image,
        id: &ImageId,
        store: &Store,
        out: &mut File,
        options: &BuildOptions,
    ) -> Result<(), ImportError> {
        let cancel = &options.cancel;
        let made = match image {
            Image::Layers { config, layers, .. } => build(config, layers, out, options),
            Image::Squashfs(file) => match squashfs::copy(file, Some(out), cancel) {
                Ok(digest) if digest == id.as_str() => Ok(()),
                Ok(_) => Err(ImportError::Changed),
                Err(error) => Err(error),
            },
        };
        made.map_err(|error| match error {
            // What was stopped fails in many ways.
            _ if cancel.is_cancelled() => ImportError::Cancelled(crate::cancel::Cancelled),
            ImportError::Build(error) if is_full(&error) => {
                ImportError::Store(store.full(self.input_bytes(image)))
            }
            error => error,
        })?;
        // The second reading must have been of what the first one compared with the digests.
        if self.input.stamp()? != self.stamp {
            return Err(ImportError::Changed);
        }
        Ok(cancel.check()?)
    }

    fn input_bytes(&self, image: &Image) -> u64 {
        match image {
            Image::Squashfs(file) => file.length(),
            Image::Layers { layers, .. } => layers.iter().map(|layer| layer.section.length()).sum(),
        }
    }
}

enum Image {
    Layers {
        config: Box<ImageConfig>,
        raw: Vec<u8>,
        layers: Vec<Blob>,
    },
    Squashfs(Section),
}

impl Image {
    /// Adds what is known of an image to its record.
    fn describe(&self, record: &mut ImageRecord) {
        let Self::Layers {
            config,
            raw,
            layers,
        } = self
        else {
            return;
        };
        record.describe(raw);
        let described = layers.iter().zip(&config.diff_ids);
        let described = described.map(|(layer, diff_id)| LayerRecord {
            media_type: layer.media_type.clone(),
            digest: layer
                .digest
                .as_ref()
                .map_or_else(String::new, Digest::to_string),
            size: layer.section.length(),
            diff_id: diff_id.clone(),
        });
        record.layers = described.collect();
    }
}

fn build(
    config: &ImageConfig,
    layers: &[Blob],
    out: &mut File,
    options: &BuildOptions,
) -> Result<(), ImportError> {
    let opens: Vec<Box<Open<'_>>> = layers
        .iter()
        .map(|layer| -> Box<Open<'_>> {
            Box::new(move || {
                let bytes = layer.section.reader();
                let verified = Verified::new(bytes, layer.digest.as_ref(), &options.cancel);
                Ok(Box::new(verified) as Box<dyn Read + Send>)
            })
        })
        .collect();
    let described = layers.iter().zip(&config.diff_ids).zip(&opens);
    let sources: Vec<LayerSource<'_>> = described
        .map(|((layer, diff_id), open)| LayerSource {
            open: &**open,
            media_type: layer.media_type.clone(),
            diff_id: Some(diff_id.clone()),
        })
        .collect();
    build_image(&sources, out, options).map_err(ImportError::Build)?;
    Ok(())
}

/// True if `name` in an archive is what the user wrote: as it is, or the tag alone of `latest`.
fn is_name(name: &str, wanted: &str) -> bool {
    name == wanted || name.strip_suffix(":latest") == Some(wanted)
}
