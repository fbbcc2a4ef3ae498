//! Image references: `[type:][host[:port]/]path[:tag][@digest]`.
//!
//! ```text
//! docker:  [host[:port]/]path[:tag][@digest]    the grammar of the OCI distribution specification,
//!                                               with the short names of Docker Hub
//! id:      64 lower-case hexadecimal digits     an image by its id
//! local:   /path                                a directory of the host
//! local:   name                                 a directory that the site gave this name
//! file:    /path, ./path, ../path               a squashfs file; the type may be left out
//! custom:  path[:tag]                           what the site put into the store by hand; a type
//!                                               that the site defines has the same form
//! ```
//!
//! The canonical form names the type, the tag (unless a digest alone was given) and the registry
//! (unless it is Docker Hub); host names are lower case; relative paths stay relative. Parsing it gives the same reference
//! again, under any [`TypeRules`] that know the type. Nothing here asks a registry.

mod error;
mod host;
#[cfg(test)]
mod tests;

use std::fmt;

pub use error::RefError;

use self::host::{DOCKER_HUB, is_host};
use crate::ids::{ImageId, is_tree_name};
use crate::volmap::path;

/// Bytes that host and path of a reference may have together.
pub const NAME_LIMIT: usize = 255;

/// Bytes that a whole reference may have; only a local path comes near.
pub const TEXT_LIMIT: usize = 4352;

const DEFAULT_TAG: &str = "latest";

/// What kind of thing a reference names, and so who resolves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageType {
    /// An image of a registry.
    Docker,
    /// An image of the store, by its id.
    Id,
    /// A directory of the host, by its path or by a name of the site's.
    Local,
    /// A squashfs file, by its path.
    File,
    /// An image that the site put into the store.
    Custom,
    /// An image of a type that the site defines.
    Site(String),
}

impl ImageType {
    /// Returns the name that users write before the colon.
    pub fn as_str(&self) -> &str {
        match self {
            ImageType::Docker => "docker",
            ImageType::Id => "id",
            ImageType::Local => "local",
            ImageType::File => "file",
            ImageType::Custom => "custom",
            ImageType::Site(name) => name,
        }
    }

    /// True for what lies in an image store, the site's or a user's own.
    pub fn is_stored(&self) -> bool {
        !matches!(self, ImageType::Local | ImageType::File)
    }

    fn find(name: &str, rules: &TypeRules<'_>) -> Option<ImageType> {
        let built_in = [
            ImageType::Docker,
            ImageType::Id,
            ImageType::Local,
            ImageType::File,
            ImageType::Custom,
        ];
        built_in
            .into_iter()
            .find(|known| known.as_str() == name)
            .or_else(|| {
                rules
                    .site_types
                    .iter()
                    .find(|known| *known == name)
                    .cloned()
                    .map(ImageType::Site)
            })
    }
}

impl fmt::Display for ImageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which types exist at this site.
#[derive(Clone, Copy, Debug)]
pub struct TypeRules<'a> {
    /// The type of a reference that names none.
    pub default_type: &'a str,
    /// Types beside docker, id, local, file and custom.
    pub site_types: &'a [String],
}

/// A digest, `sha256:` or `sha512:` and lower-case hexadecimal digits; safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    text: String,
    colon: usize,
}

impl Digest {
    /// Accepts `sha256:` with 64 and `sha512:` with 128 digits, and nothing else: weaker
    /// algorithms prove nothing, and an unknown name must not become a part of a path.
    pub fn parse(text: &str) -> Result<Digest, RefError> {
        let refused = || RefError::Digest {
            digest: text.to_owned(),
        };
        let (algorithm, hex) = text.split_once(':').ok_or_else(refused)?;
        let digits = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(refused()),
        };
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != digits || !hex.bytes().all(is_digit) {
            return Err(refused());
        }
        Ok(Digest {
            text: text.to_owned(),
            colon: algorithm.len(),
        })
    }

    /// Returns `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.text.split_at(self.colon).0
    }

    /// Returns the digits.
    pub fn hex(&self) -> &str {
        self.text.split_at(self.colon + 1).1
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A well-formed image reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    image_type: ImageType,
    registry: Option<String>,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
    id: Option<ImageId>,
}

impl ImageRef {
    /// Parses a reference as users write it. A leading word is the type only if it is a known
    /// one, so `ubuntu:24.04` and `localhost:5000/x` have none.
    pub fn parse(text: &str, rules: &TypeRules<'_>) -> Result<ImageRef, RefError> {
        check_text(text)?;
        let typed = text
            .split_once(':')
            .and_then(|(word, rest)| Some((ImageType::find(word, rules)?, rest)));
        let is_typed = typed.is_some();
        let (image_type, rest) = match typed {
            Some(typed) => typed,
            None => {
                let name = rules.default_type;
                let default = ImageType::find(name, rules);
                (
                    default.ok_or_else(|| RefError::Type {
                        name: name.to_owned(),
                    })?,
                    text,
                )
            }
        };
        let is_relative = rest.starts_with("./") || rest.starts_with("../");
        match image_type {
            _ if !is_typed && is_relative => Self::file(rest),
            ImageType::Id => Self::id(rest),
            ImageType::Local => Self::local(rest),
            ImageType::File => Self::file(rest),
            _ if !is_typed && rest.starts_with('/') => Self::file(rest),
            _ if !is_typed && is_file_name(rest) => Err(RefError::FileName {
                path: rest.to_owned(),
            }),
            ImageType::Docker if is_typed => Self::docker(rest.strip_prefix("//").unwrap_or(rest)),
            ImageType::Docker => Self::docker(rest),
            ImageType::Custom | ImageType::Site(_) => Self::custom(image_type, rest),
        }
    }

    fn docker(text: &str) -> Result<ImageRef, RefError> {
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(RefError::Scheme {
                scheme: scheme.to_owned(),
            });
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (registry, rest) = match named.split_once('/') {
            Some((host, rest)) if is_host(host) => (host::canonical(host)?, rest),
            _ => (DOCKER_HUB.to_owned(), named),
        };
        let (path, tag) = split_tag(rest)?;
        check_path(path)?;
        let is_short = registry == DOCKER_HUB && !path.contains('/');
        let repository = if is_short {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + 1 + repository.len() > NAME_LIMIT {
            return Err(RefError::TooLong { limit: NAME_LIMIT });
        }
        let tag = tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(ImageRef {
            image_type: ImageType::Docker,
            registry: Some(registry),
            repository,
            tag,
            digest,
            id: None,
        })
    }

    fn custom(image_type: ImageType, text: &str) -> Result<ImageRef, RefError> {
        if text.contains('@') {
            return Err(RefError::DigestNotAllowed {
                image_type: image_type.to_string(),
            });
        }
        let (path, tag) = split_tag(text)?;
        check_path(path)?;
        if path.len() > NAME_LIMIT {
            return Err(RefError::TooLong { limit: NAME_LIMIT });
        }
        Ok(ImageRef {
            image_type,
            registry: None,
            repository: path.to_owned(),
            tag: Some(tag.unwrap_or_else(|| DEFAULT_TAG.to_owned())),
            digest: None,
            id: None,
        })
    }

    fn id(text: &str) -> Result<ImageRef, RefError> {
        let id = ImageId::parse(text).map_err(|_| RefError::Id {
            id: text.to_owned(),
        })?;
        Ok(ImageRef {
            image_type: ImageType::Id,
            registry: None,
            repository: text.to_owned(),
            tag: None,
            digest: None,
            id: Some(id),
        })
    }

    fn local(text: &str) -> Result<ImageRef, RefError> {
        if is_tree_name(text) {
            return Ok(Self::of_host(ImageType::Local, text.to_owned()));
        }
        let repository = path::clean(text, &[]).map_err(|fault| RefError::LocalPath {
            path: text.to_owned(),
            fault,
        })?;
        Ok(Self::of_host(ImageType::Local, repository))
    }

    fn file(text: &str) -> Result<ImageRef, RefError> {
        if text.is_empty() {
            return Err(RefError::Empty);
        }
        let is_path = ["/", "./", "../"].iter().any(|way| text.starts_with(way));
        if !is_path || text.len() > path::PATH_LIMIT {
            return Err(RefError::FileName {
                path: text.to_owned(),
            });
        }
        Ok(Self::of_host(ImageType::File, text.to_owned()))
    }

    fn of_host(image_type: ImageType, repository: String) -> ImageRef {
        ImageRef {
            image_type,
            registry: None,
            repository,
            tag: None,
            digest: None,
            id: None,
        }
    }

    /// Returns what kind of thing this names.
    pub fn image_type(&self) -> &ImageType {
        &self.image_type
    }

    /// Returns the one form that users and the index see, such as `docker:ubuntu:24.04`.
    pub fn canonical(&self) -> String {
        format!("{}:{}", self.image_type, self.name())
    }

    /// Returns the canonical form without the type.
    pub fn name(&self) -> String {
        let mut name = match self.registry.as_deref() {
            None => self.repository.clone(),
            Some(DOCKER_HUB) => match self.repository.split_once('/') {
                Some(("library", short)) if !short.contains('/') => short.to_owned(),
                // Without the registry this would read as a host.
                Some((first, _)) if is_host(first) => format!("{DOCKER_HUB}/{}", self.repository),
                _ => self.repository.clone(),
            },
            Some(registry) => format!("{registry}/{}", self.repository),
        };
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.text);
        }
        name
    }

    /// Returns the registry as `host[:port]`, for docker images only; Docker Hub is `docker.io`.
    pub fn registry(&self) -> Option<&str> {
        self.registry.as_deref()
    }

    /// Returns the full path in the registry, such as `library/ubuntu`; of other types the path,
    /// name or id.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the name of a tree of the site's, for `local:name` only.
    pub fn tree(&self) -> Option<&str> {
        let is_name = self.image_type == ImageType::Local && !self.repository.starts_with('/');
        is_name.then_some(&*self.repository)
    }

    /// Returns the tag; `latest` where neither a tag nor a digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, where one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns the id of an `id:` reference.
    pub fn image_id(&self) -> Option<&ImageId> {
        self.id.as_ref()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

fn check_text(text: &str) -> Result<(), RefError> {
    if text.is_empty() {
        return Err(RefError::Empty);
    }
    if text.len() > TEXT_LIMIT {
        return Err(RefError::TooLong { limit: TEXT_LIMIT });
    }
    let bad = |c: char| c.is_control() || c.is_whitespace();
    match text.chars().enumerate().find(|(_, c)| bad(*c)) {
        Some((at, found)) => Err(RefError::Character {
            text: text.to_owned(),
            found,
            position: at + 1,
        }),
        None => Ok(()),
    }
}

/// True for what is plainly the name of a file: a path, or `image.sqsh` without a tag.
fn is_file_name(text: &str) -> bool {
    const SUFFIXES: [&str; 5] = [".sqsh", ".squashfs", ".sqfs", ".sif", ".simg"];
    let lower = text.to_ascii_lowercase();
    text.starts_with(['/', '~'])
        || text
            .split('/')
            .next()
            .is_some_and(|first| matches!(first, "." | ".."))
        || SUFFIXES.iter().any(|suffix| lower.ends_with(suffix))
}

/// Checks `host[:port]` and returns the form that references have it in: lower case, and one name
/// for Docker Hub.
pub fn canonical_host(text: &str) -> Result<String, RefError> {
    check_text(text)?;
    host::canonical(text)
}

/// True for the path of a repository in a registry.
pub(crate) fn is_repository(path: &str) -> bool {
    path.len() <= NAME_LIMIT && check_path(path).is_ok()
}

/// True for what may name a tree, a module and the like: safe as a part of a path and in every
/// option.
pub(crate) fn is_plain_name(text: &str) -> bool {
    let well_formed = |b: u8| b.is_ascii_alphanumeric() || b"._+-".contains(&b);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(well_formed)
}

/// Splits `path[:tag]`; no component of a path may contain a colon.
fn split_tag(text: &str) -> Result<(&str, Option<String>), RefError> {
    let Some((path, tag)) = text.split_once(':') else {
        return Ok((text, None));
    };
    let is_tag_byte = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let is_tag = (1..=128).contains(&tag.len())
        && tag.bytes().all(is_tag_byte)
        && !tag.starts_with(['.', '-']);
    if is_tag {
        Ok((path, Some(tag.to_owned())))
    } else {
        Err(RefError::Tag {
            tag: tag.to_owned(),
        })
    }
}

/// Checks each component: runs of `a-z 0-9` with `.`, `_`, `__` or dashes between them.
fn check_path(path: &str) -> Result<(), RefError> {
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_component = |component: &str| {
        let bytes = component.as_bytes();
        let runs = bytes.chunk_by(|a, b| word(a) == word(b));
        bytes.first().is_some_and(word)
            && bytes.last().is_some_and(word)
            && runs.into_iter().all(|run| match run {
                b"." | b"_" | b"__" => true,
                _ => run.iter().all(word) || run.iter().all(|b| *b == b'-'),
            })
    };
    let Some(component) = path.split('/').find(|component| !is_component(component)) else {
        return Ok(());
    };
    if path
        .split('/')
        .all(|component| is_component(&component.to_ascii_lowercase()))
    {
        return Err(RefError::UpperCase {
            path: path.to_owned(),
        });
    }
    Err(RefError::Path {
        path: path.to_owned(),
        component: component.to_owned(),
    })
}
