//! Names and records of an image store, as the puller writes and the node reads them.
//!
//! ```text
//! <store>/<id>.squashfs or <id>.erofs                   the image
//! <store>/<id>.meta                                     see [`crate::meta`]
//! <store>/index/<type>/<escaped reference>              one JSON object per tag, see [`IndexEntry`]
//! ```

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::ImageId;
use crate::reference::ImageRef;

/// Bytes an index entry may have.
pub const ENTRY_LIMIT: u64 = 64 << 10;

/// Says why a store's record cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The escaped reference is longer than a file name may be.
    #[error("the image reference is too long for the store")]
    NameTooLong,
    /// The index entry is not what this program writes.
    #[error("the store's index entry cannot be read")]
    Malformed(#[from] serde_json::Error),
    /// The entry is for another reference than its name says.
    #[error("the store's index entry is for '{0}'")]
    Foreign(String),
}

/// What the index says of one reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexEntry {
    /// The reference in canonical form.
    pub reference: String,
    /// The image it names.
    pub id: ImageId,
    /// Digest of the manifest it was pulled by, where there was one.
    pub digest: Option<String>,
    /// Time of the pull, in seconds since 1970.
    pub pulled: u64,
    /// Size of the image file, in bytes.
    pub size: u64,
}

impl IndexEntry {
    /// Parses an entry and insists that it is `reference`'s.
    pub fn parse(bytes: &[u8], reference: &ImageRef) -> Result<Self, StoreError> {
        let entry: Self = serde_json::from_slice(bytes)?;
        if entry.reference == reference.canonical() {
            Ok(entry)
        } else {
            Err(StoreError::Foreign(crate::sanitize::text(&entry.reference)))
        }
    }
}

/// Returns the path of a reference's index entry below the store: `index/docker/ubuntu%3A24.04`.
pub fn index_path(reference: &ImageRef) -> Result<String, StoreError> {
    let name = escape(&reference.name());
    if name.len() > 255 {
        return Err(StoreError::NameTooLong);
    }
    Ok(format!("index/{}/{name}", reference.image_type().as_str()))
}

/// The formats of images; as the C Shifter has it, each is the end of its files' names.
pub const FORMATS: [&str; 2] = ["squashfs", "erofs"];

/// Returns the file name of an image of one of the [`FORMATS`].
pub fn image_file(id: &ImageId, format: &str) -> String {
    format!("{id}.{format}")
}

/// Returns the file name of an image's metadata.
pub fn meta_file(id: &ImageId) -> String {
    format!("{id}.meta")
}

/// Percent-escapes everything but `A-Z a-z 0-9 _ -` and dots that do not lead.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for (at, byte) in text.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || b"_-".contains(&byte) || (byte == b'.' && at > 0) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_makes_one_path_component() {
        assert_eq!(
            escape("127.0.0.1:5000/a/b:latest"),
            "127.0.0.1%3A5000%2Fa%2Fb%3Alatest"
        );
        assert_eq!(escape("../x"), "%2E.%2Fx");
        assert_eq!(escape("%"), "%25");
    }
}
