//! What a job asks for: image, volumes, modules, out of its variables.
//!
//! ```text
//! UDI             IMAGE [-v VOLUME]... [-m MODULE]...      words, no quotes
//! SHIFTER_IMAGE   the image, if there is no UDI; an id if SHIFTER_IMAGETYPE is id
//! SHIFTER_IMAGEREQUEST  what the id was resolved from: with it the submit filter's pin counts
//! SHIFTER_VOLUME  more volumes           SHIFTER_MODULE  more modules, with commas
//! CRAY_ROOTFS     SHIFTER or UDI: the job counts on a root
//! ```
//!
//! All of it is the user's. Nothing here is permission: nodes judge it again.

use shifter_core::config::Config;
use shifter_core::ids::ImageId;
use shifter_core::manifest::ResolvedImage;
use shifter_core::reference::{ImageRef, RefError};
use shifter_core::sanitize;
use shifter_core::volmap::{Origin, VolumeError, VolumeMap};
use thiserror::Error;

use crate::call::Direct;
use crate::variables::Variables;

/// Bytes that one variable may have.
const LIMIT: usize = 64 << 10;

/// Bytes that the canonical form of a reference may have.
const REQUEST_LIMIT: usize = 512;

/// Modules that one job may name.
const MODULE_LIMIT: usize = 64;

/// Values of `CRAY_ROOTFS` that mean our root.
const OUR_ROOTS: [&str; 2] = ["SHIFTER", "UDI"];

/// Something that the user has to change.
#[derive(Debug, Error)]
pub enum Mistake {
    /// A variable is longer than anything sensible.
    #[error("the value of {0} is longer than {LIMIT} bytes")]
    Long(&'static str),
    /// The image cannot be understood.
    #[error("cannot understand image '{}'", sanitize::text(.text))]
    Reference {
        /// The words.
        text: String,
        /// What is wrong.
        source: RefError,
    },
    /// An option after the image is unknown or lacks its value.
    #[error("cannot understand '{}' in UDI", sanitize::text(.0))]
    Word(String),
    /// A volume is refused.
    #[error("cannot use the volumes")]
    Volumes(#[from] VolumeError),
    /// The text cannot be the name of a module.
    #[error("'{}' is not the name of a module", sanitize::text(.0))]
    Module(String),
    /// The site does not have the modules, or not together.
    #[error(transparent)]
    Modules(#[from] node_setup::error::Error),
    /// Volumes, modules or a root without an image.
    #[error("{0} is of no use without an image")]
    NoImage(&'static str),
    /// Such images are not in a store, so no id pins them.
    #[error("cannot use image '{}' for a job: it is in no image store", sanitize::text(.0))]
    NotStored(String),
    /// The site has no tree of this name.
    #[error("cannot use image 'local:{}': the site has no tree of this name", sanitize::text(.0))]
    NoTree(String),
}

impl Mistake {
    /// Returns the way out, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Reference { source, .. } => source.hint(),
            Self::Volumes(error) => error.hint(),
            Self::Modules(error) => error.hint(),
            Self::Word(_) => Some("UDI is an image, and -v VOLUME after it".into()),
            Self::NoImage(_) => Some("add -v UDI=IMAGE".into()),
            Self::NotStored(image) => {
                let image = sanitize::text(image);
                Some(format!("in the job: shifter --image={image} COMMAND"))
            }
            _ => None,
        }
    }
}

/// An image as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// Resolved when the job was submitted.
    Pinned(ResolvedImage),
    /// To be resolved.
    Named(ImageRef),
}

/// What a job asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub image: Image,
    /// The volumes.
    pub volumes: VolumeMap,
    /// The modules as named; none means the site's default ones.
    pub modules: Vec<String>,
}

impl Request {
    /// Reads a job's variables; nothing if it asks for no image.
    pub fn from_variables(variables: &Variables, config: &Config) -> Result<Option<Self>, Mistake> {
        let value = |name: &'static str| match variables.get(name).map(str::trim) {
            Some(text) if text.len() > LIMIT => Err(Mistake::Long(name)),
            text => Ok(text.filter(|text| !text.is_empty())),
        };
        let named = value("SHIFTER_IMAGE")?;
        let pin = value("SHIFTER_IMAGETYPE")?.filter(|kind| *kind == "id");
        let pin = pin.and(named).and_then(|id| ImageId::parse(id).ok());
        let asked = value("SHIFTER_IMAGEREQUEST")?.filter(|text| is_plain(text));
        let more = More {
            volumes: value("SHIFTER_VOLUME")?,
            modules: value("SHIFTER_MODULE")?,
        };
        if let Some(udi) = value("UDI")? {
            let words = Words::parse(udi)?;
            let image = reference(words.image, config)?;
            let image = match pin {
                Some(id) if asked == Some(&image.canonical()) => Image::Pinned(ResolvedImage {
                    id,
                    reference: image.canonical(),
                }),
                _ => Image::Named(image),
            };
            return judge(image, words.volumes, words.modules, more, config).map(Some);
        }
        let image = match (named, pin) {
            (_, Some(id)) => Image::Pinned(ResolvedImage {
                reference: asked.map_or_else(|| format!("id:{id}"), str::to_owned),
                id,
            }),
            (Some(text), None) => {
                let kind = value("SHIFTER_IMAGETYPE")?.unwrap_or_default();
                let typed = format!("{kind}:{text}");
                let text = if kind.is_empty() { text } else { &typed };
                Image::Named(reference(text, config)?)
            }
            (None, None) => {
                let roots = value("CRAY_ROOTFS")?.filter(|root| OUR_ROOTS.contains(root));
                let useless = [
                    ("CRAY_ROOTFS", roots),
                    ("SHIFTER_VOLUME", more.volumes),
                    ("SHIFTER_MODULE", more.modules),
                ];
                return match useless.into_iter().find(|(_, value)| value.is_some()) {
                    Some((name, _)) => Err(Mistake::NoImage(name)),
                    None => Ok(None),
                };
            }
        };
        judge(image, Vec::new(), Vec::new(), more, config).map(Some)
    }

    /// Reads the words of a call that says itself what is asked for.
    pub fn from_direct(direct: &Direct, config: &Config) -> Result<Self, Mistake> {
        let image = Image::Named(reference(&direct.image, config)?);
        let volumes = direct.volumes.iter().map(String::as_str).collect();
        judge(image, volumes, Vec::new(), More::default(), config)
    }
}

/// What else the variables name.
#[derive(Clone, Copy, Default)]
struct More<'a> {
    volumes: Option<&'a str>,
    modules: Option<&'a str>,
}

/// The words of UDI.
struct Words<'a> {
    image: &'a str,
    volumes: Vec<&'a str>,
    modules: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn parse(text: &'a str) -> Result<Self, Mistake> {
        let mut words = text.split_ascii_whitespace();
        let mut parsed = Words {
            image: words.next().unwrap_or_default(),
            volumes: Vec::new(),
            modules: Vec::new(),
        };
        while let Some(word) = words.next() {
            let refused = || Mistake::Word(word.to_owned());
            let (option, inline) = match word.split_once('=') {
                Some((option, value)) if option.starts_with("--") => (option, Some(value)),
                _ => (word, None),
            };
            let list = match option {
                "-v" | "-V" | "--volume" => &mut parsed.volumes,
                "-m" | "--module" => &mut parsed.modules,
                _ => return Err(refused()),
            };
            list.push(inline.or_else(|| words.next()).ok_or_else(refused)?);
        }
        Ok(parsed)
    }
}

fn is_plain(text: &str) -> bool {
    text.len() <= REQUEST_LIMIT && !text.chars().any(char::is_control)
}

fn reference(text: &str, config: &Config) -> Result<ImageRef, Mistake> {
    let image =
        ImageRef::parse(text, &config.type_rules()).map_err(|source| Mistake::Reference {
            text: text.to_owned(),
            source,
        })?;
    match image.tree() {
        Some(name) if config.store.trees.contains_key(name) => Ok(image),
        Some(name) => Err(Mistake::NoTree(name.to_owned())),
        None if image.image_type().is_stored() => Ok(image),
        None => Err(Mistake::NotStored(image.canonical())),
    }
}

fn judge<'a>(
    image: Image,
    mut volumes: Vec<&'a str>,
    mut modules: Vec<&'a str>,
    more: More<'a>,
    config: &Config,
) -> Result<Request, Mistake> {
    volumes.extend(more.volumes);
    modules.extend(more.modules);
    let volumes = VolumeMap::parse_many(volumes, Origin::User)?;
    let mut names: Vec<String> = Vec::new();
    for name in modules.into_iter().flat_map(|list| list.split(',')) {
        let well_formed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
        let is_name = (1..=64).contains(&name.len()) && name.bytes().all(well_formed);
        if !is_name || name.starts_with(['.', '-']) || names.len() == MODULE_LIMIT {
            return Err(Mistake::Module(name.to_owned()));
        }
        names.push(name.to_owned());
    }
    let used = node_setup::modules::requested(config, &names);
    node_setup::modules::check(config, &used)?;
    Ok(Request {
        image,
        volumes,
        modules: names,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shifter_core::chain;

    use super::*;

    const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn config() -> Config {
        let text = "[module.mpi]\n[module.gpu]\nconflicts = ['mpi']\n\
                    [store]\ntrees = { sl6 = '/chos/sl6' }\n";
        Config::parse(text, Path::new("/x")).unwrap()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Request>, String> {
        let pairs = pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        Request::from_variables(&pairs.collect(), &config()).map_err(|error| {
            let hint = error.hint().unwrap_or_default();
            format!("{}|{hint}", chain::line(&error))
        })
    }

    fn shown(request: &Request) -> String {
        let image = match &request.image {
            Image::Pinned(image) => format!("pinned {}", image.reference),
            Image::Named(image) => image.canonical(),
        };
        let volumes = request.volumes.signature();
        format!("{image} {volumes} {}", request.modules.join(","))
    }

    #[test]
    fn all_the_ways_to_ask() {
        let pin = [("SHIFTER_IMAGE", ID), ("SHIFTER_IMAGETYPE", "id")];
        let request = ("SHIFTER_IMAGEREQUEST", "docker:ubuntu:24.04");
        let table: [(&[(&str, &str)], &str); 10] = [
            (&[("UDI", "centos:latest")], "docker:centos:latest  "),
            (&[("UDI", "docker:centos")], "docker:centos:latest  "),
            (
                &[("UDI", "ubuntu:24.04 -v /u/a:/mnt --volume=/b:/c -m mpi")],
                "docker:ubuntu:24.04 /b:/c;/u/a:/mnt mpi",
            ),
            (
                &[
                    ("UDI", "x"),
                    ("SHIFTER_VOLUME", "/a:/b"),
                    ("SHIFTER_MODULE", "none"),
                ],
                "docker:x:latest /a:/b none",
            ),
            (&[("UDI", "x"), ("SHIFTER_IMAGE", "y")], "docker:x:latest  "),
            (&[("SHIFTER_IMAGE", "y:1")], "docker:y:1  "),
            (
                &[("SHIFTER_IMAGE", "y:1"), ("SHIFTER_IMAGETYPE", "docker")],
                "docker:y:1  ",
            ),
            (&[pin[0], pin[1], request], "pinned docker:ubuntu:24.04  "),
            (
                &[pin[0], pin[1], request, ("UDI", "ubuntu:24.04")],
                "pinned docker:ubuntu:24.04  ",
            ),
            (
                &[pin[0], pin[1], request, ("UDI", "ubuntu:22.04")],
                "docker:ubuntu:22.04  ",
            ),
        ];
        for (pairs, expected) in table {
            assert_eq!(shown(&read(pairs).unwrap().unwrap()), expected, "{pairs:?}");
        }
        for pairs in [
            &[][..],
            &[("UDI", "")],
            &[("UDI", " ")],
            &[("CRAY_ROOTFS", "DSL"), ("HOME", "/x")],
        ] {
            assert!(read(pairs).unwrap().is_none(), "{pairs:?}");
        }
        assert_eq!(
            shown(&read(&[("UDI", "local:sl6")]).unwrap().unwrap()),
            "local:sl6  "
        );
    }

    #[test]
    fn mistakes_name_the_way_out() {
        let long = "x".repeat(LIMIT + 1);
        let table: [(&[(&str, &str)], &str); 13] = [
            (
                &[("UDI", "$(reboot)")],
                "cannot understand image '$(reboot)'",
            ),
            (&[("UDI", "x;id")], "cannot understand image 'x;id'"),
            (
                &[("UDI", "x\ny")],
                "cannot understand 'y' in UDI|UDI is an image",
            ),
            (&[("UDI", "x -v")], "cannot understand '-v' in UDI"),
            (&[("UDI", "x -v /a:/etc")], "'/etc'"),
            (&[("UDI", "x"), ("SHIFTER_VOLUME", "/a")], "|"),
            (&[("UDI", "x -m nope")], "module 'nope' does not exist"),
            (&[("UDI", "x -m gpu,mpi")], "'gpu' cannot be used together"),
            (
                &[("UDI", "x -m `id`")],
                "'`id`' is not the name of a module",
            ),
            (&[("UDI", &long)], "longer than"),
            (
                &[("CRAY_ROOTFS", "SHIFTER")],
                "CRAY_ROOTFS is of no use without an image|add -v UDI",
            ),
            (
                &[("UDI", "./x.sqsh")],
                "in no image store|in the job: shifter --image=",
            ),
            (&[("UDI", "local:sl7")], "no tree of this name"),
        ];
        for (pairs, expected) in table {
            let said = read(pairs).unwrap_err();
            assert!(said.contains(expected), "{pairs:?}: {said}");
        }
    }
}
