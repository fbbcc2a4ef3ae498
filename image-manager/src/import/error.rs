//! What can go wrong with an import. Texts from the file are made printable.

use std::io;
use std::path::PathBuf;

use shifter_core::exit::ExitCode;
use shifter_core::sanitize;
use thiserror::Error;

use crate::build::BuildError;
use crate::cancel::Cancelled;
use crate::image_config::ImageConfigError;
use crate::layer::IndexError;
use crate::registry::ManifestError;
use crate::store::StoreError;

/// Says why an image could not be taken from a file.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The file cannot be opened.
    #[error("cannot open '{}'", sanitize::text(&path.display().to_string()))]
    Open {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The input cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// It is nothing that can be imported.
    #[error("it is {0}")]
    Unsupported(Unsupported),
    /// It is not of the format that the user named.
    #[error("it is not {0}")]
    NotThat(&'static str),
    /// The archive cannot be looked through.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A file of the archive or layout is missing.
    #[error("it has no '{}'", sanitize::text(.0))]
    Missing(String),
    /// A file of the archive or layout cannot be used.
    #[error("'{}' in it {reason}", sanitize::text(name))]
    Member {
        /// The file's name in the archive or layout.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It has more of something than any real one.
    #[error("it has more than {limit} {what}")]
    Beyond {
        /// How many it may have.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// A document in it is not what it should be.
    #[error("'{}' in it cannot be used", sanitize::text(name))]
    Document {
        /// The file's name in the archive or layout.
        name: String,
        /// The reason.
        source: ManifestError,
    },
    /// A document in it is not JSON of the expected form.
    #[error("'{}' in it is not valid", sanitize::text(name))]
    Syntax {
        /// The file's name in the archive or layout.
        name: String,
        /// The reason.
        source: serde_json::Error,
    },
    /// There are no images in it.
    #[error("there is no image in it")]
    NoImage,
    /// It has several images, and one name was given.
    #[error("it holds {count} images: {}", list(names))]
    Several {
        /// How many.
        count: usize,
        /// What they are called.
        names: Vec<String>,
    },
    /// It has no image of the selected name.
    #[error("it has no image '{}', but {}", sanitize::text(wanted), list(names))]
    NotSelected {
        /// What was asked for.
        wanted: String,
        /// What they are called.
        names: Vec<String>,
    },
    /// A name was selected in what has none.
    #[error("it has no names to select by")]
    Nameless,
    /// The image has no name, neither its own nor one of the user's.
    #[error("the image in it has no name")]
    NoName,
    /// The name that the image has cannot be used.
    #[error("the image's name '{}' cannot be used", sanitize::text(name))]
    Name {
        /// The name.
        name: String,
        /// The reason.
        source: shifter_core::reference::RefError,
    },
    /// The image has another digest than the reference.
    #[error("the image's digest is {found}, not {wanted}")]
    Digest {
        /// What the reference says.
        wanted: String,
        /// What the image has.
        found: String,
    },
    /// The image's own description of itself cannot be used.
    #[error(transparent)]
    Config(#[from] ImageConfigError),
    /// The layers do not make an image.
    #[error("cannot build the image")]
    Build(#[source] BuildError),
    /// The store cannot take the image.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file was changed while it was read.
    #[error("it changed while it was read")]
    Changed,
    /// Nobody can tell what is in such a file, and whoever uses the store would mount it.
    #[error("squashfs files are not taken into this store from users")]
    SquashfsDenied,
    /// The user wants to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Things that people try to import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Nothing that is known.
    Unknown,
    /// An empty file.
    Empty,
    /// A compression that layers cannot have.
    Xz,
    /// A compression that layers cannot have.
    Bzip2,
    /// Singularity's format.
    Sif,
    /// A directory that is no OCI layout.
    Directory,
    /// Something other than a file or directory.
    Special,
    /// A compressed file with something other than an archive in it.
    Packed,
    /// An archive with nothing but another archive in it.
    Nested,
    /// A squashfs file of a kind that no kernel mounts.
    Squashfs,
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "neither an image archive, nor a root file system, nor squashfs",
            Self::Empty => "empty",
            Self::Xz => "compressed with xz",
            Self::Bzip2 => "compressed with bzip2",
            Self::Sif => "an image of Singularity's",
            Self::Directory => "a directory and no OCI layout",
            Self::Special => "neither a file nor a directory",
            Self::Packed => "compressed, and what is compressed is no archive",
            Self::Nested => "an archive with another archive in it",
            Self::Squashfs => "not a complete squashfs 4.0 file",
        })
    }
}

impl ImportError {
    /// Returns the code the program ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ExitCode::Denied
            }
            Self::Open { .. } | Self::Name { .. } | Self::NoName | Self::Several { .. } => {
                ExitCode::Usage
            }
            // What the system says of the file is one thing, and what decoders say of its bytes another.
            Self::Read(source) if source.raw_os_error().is_some() => ExitCode::Internal,
            Self::Cancelled(_) => ExitCode::Internal,
            Self::SquashfsDenied => ExitCode::Denied,
            Self::Store(error) => error.exit_code(),
            Self::Build(error) => error.exit_code(),
            _ => ExitCode::Image,
        }
    }

    /// Returns a known way out.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unsupported(Unsupported::Xz) => "xz -dc FILE | shifter import - NAME",
            Self::Unsupported(Unsupported::Bzip2) => "bzip2 -dc FILE | shifter import - NAME",
            Self::Unsupported(Unsupported::Sif) => {
                "apptainer build --sandbox DIR FILE; tar -C DIR -c . | shifter import - NAME"
            }
            Self::Unsupported(Unsupported::Directory) => {
                "for a root file system: tar -C DIR -c . | shifter import - NAME"
            }
            Self::Unsupported(Unsupported::Nested) => {
                "unpack it and import what is in it, or say --source-format=tar"
            }
            Self::Several { .. } => {
                "leave the name out for all of them, or choose one with --select"
            }
            Self::NoName => "name it: shifter import FILE NAME",
            Self::Store(error) => return error.hint(),
            Self::Build(error) => error.hint()?,
            Self::Document { source, .. } => source.hint()?,
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    if names.is_empty() {
        return "none with a name".into();
    }
    let mut shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("'{}'", sanitize::text(name)))
        .collect();
    if names.len() > SHOWN {
        shown.push(format!("and {} more", names.len() - SHOWN));
    }
    shown.join(", ")
}
