//! Why an image reference is refused, in words that name the part and the way out.

use thiserror::Error;

use crate::sanitize::text as safe;
use crate::volmap::PathFault;

/// Says what is wrong with an image reference or a digest.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RefError {
    /// There is no text.
    #[error("the image reference is empty")]
    Empty,
    /// The reference, or its host and path together, is too long.
    #[error("the image reference is longer than {limit} bytes")]
    TooLong {
        /// Bytes it may have.
        limit: usize,
    },
    /// A space or a control character.
    #[error("image reference '{}' contains '{}' as character {position}", safe(.text), .found.escape_debug())]
    Character {
        /// The reference as it came.
        text: String,
        /// The character.
        found: char,
        /// Its place, counted in characters from 1.
        position: usize,
    },
    /// The default type is none that this site knows.
    #[error("image type '{}' is not known", safe(.name))]
    Type {
        /// The type.
        name: String,
    },
    /// A URL where a reference is expected.
    #[error("'{}://' is not a part of an image reference", safe(.scheme))]
    Scheme {
        /// What stands before `://`.
        scheme: String,
    },
    /// A file where a reference is expected.
    #[error("'{}' is the name of a file, not of an image", safe(.path))]
    FileName {
        /// The file.
        path: String,
    },
    /// The host or its port is not well-formed.
    #[error("registry '{}' {rule}", safe(.host))]
    Host {
        /// Host and port as they came.
        host: String,
        /// What is wrong with them.
        rule: &'static str,
    },
    /// The repository would be well-formed in lower case.
    #[error("repository '{}' contains upper-case letters", safe(.path))]
    UpperCase {
        /// The repository.
        path: String,
    },
    /// A component of the repository is not well-formed.
    #[error("repository '{}' is not well-formed at '{}'", safe(.path), safe(.component))]
    Path {
        /// The repository.
        path: String,
        /// The first component that is not well-formed.
        component: String,
    },
    /// The tag is not well-formed.
    #[error("tag '{}' is not 1 to 128 of A-Z a-z 0-9 . _ -, not starting with . or -", safe(.tag))]
    Tag {
        /// The tag.
        tag: String,
    },
    /// The digest is not one of the two kinds accepted.
    #[error("digest '{}' is not sha256: with 64 or sha512: with 128 lower-case hexadecimal digits", safe(.digest))]
    Digest {
        /// The digest.
        digest: String,
    },
    /// Images of this type have no digest.
    #[error("an image of type '{}' cannot be named by digest", safe(.image_type))]
    DigestNotAllowed {
        /// The type.
        image_type: String,
    },
    /// The id is not well-formed.
    #[error("image id '{}' is not 64 lower-case hexadecimal digits", safe(.id))]
    Id {
        /// The id.
        id: String,
    },
    /// The path of a local image is not accepted.
    #[error("local image '{}': {fault}", safe(.path))]
    LocalPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        fault: PathFault,
    },
}

impl RefError {
    /// Returns the way out, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UpperCase { path } => {
                Some(format!("did you mean '{}'?", safe(&path.to_lowercase())))
            }
            Self::FileName { path } if path.starts_with('~') => {
                Some("write the path out: '~' means nothing here".into())
            }
            // A lone '.' or '..'.
            Self::FileName { path } if path.starts_with('.') => {
                Some("a directory of the host is named 'local:/path'".into())
            }
            Self::FileName { path } => Some(format!("did you mean './{}'?", safe(path))),
            Self::Scheme { .. } => {
                Some("leave it out: a reference starts with the registry".into())
            }
            Self::Empty | Self::Path { .. } => Some(
                "a reference is [host[:port]/]path[:tag][@digest], such as 'ubuntu:24.04'".into(),
            ),
            Self::LocalPath { .. } => Some(
                "write 'local:' and an absolute path or the name of one of the site's trees".into(),
            ),
            _ => None,
        }
    }
}
