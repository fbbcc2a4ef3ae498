//! Where blobs are: names and folders of a cache.
//!
//! ```text
//! <algorithm>/<hex>             a complete blob; its mtime is its last use
//! <algorithm>/<hex>.part        the beginning of one
//! <algorithm>/<hex>.lock        lease of whoever writes it
//! <algorithm>/<hex>-<registry>.part, .lock  the same where another registry gives it at the same time
//! <algorithm>/<hex>.trim        a blob that is being removed
//! <algorithm>-<repository>/…    the same for blobs that a registry gave only to who has a login
//! .use-<nonce>                  lease of a pull: the blobs that must stay for it
//! .lock-trim                    lease of whoever makes the cache smaller
//! ```
//!
//! The folder of a private blob is named after its registry and repository. A digest is no secret,
//! and a registry that somebody runs can name any: were a private blob found by its digest alone,
//! whoever knows that digest could have it built into an image of their own.

use std::io;
use std::os::fd::OwnedFd;

use shifter_core::reference::Digest;

use crate::files;
use crate::hash;
use crate::registry::Descriptor;

pub(super) const PART: &str = ".part";
pub(super) const LOCK: &str = ".lock";
pub(super) const TRIM: &str = ".trim";
pub(super) const USE_PREFIX: &str = ".use-";
pub(super) const TRIM_LOCK: &str = ".lock-trim";

/// Digits of a repository's hash in the name of a folder.
const SCOPE_LENGTH: usize = 32;

/// Digits of a registry's hash in names.
const REGISTRY_LENGTH: usize = 16;

/// Which pulls a blob may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All of them: everybody can download it.
    Public,
    /// Those from this registry and repository, which has let the user in.
    Private(String),
}

impl Scope {
    fn folder_name(&self, digest: &Digest) -> String {
        let algorithm = digest.algorithm();
        match self {
            Self::Public => algorithm.to_owned(),
            Self::Private(source) => {
                let hash = hash::sha256_hex(source.as_bytes());
                format!("{algorithm}-{}", &hash[..SCOPE_LENGTH])
            }
        }
    }

    /// Opens the folder that a blob is written to, made if it is missing.
    pub fn make(&self, cache: &OwnedFd, digest: &Digest) -> io::Result<OwnedFd> {
        files::make_dir(cache, &self.folder_name(digest), 0o700)
    }

    /// Opens the folders in which a blob may be found.
    pub fn find(&self, cache: &OwnedFd, digest: &Digest) -> io::Result<Vec<OwnedFd>> {
        let mut scopes = vec![&Self::Public];
        if *self != Self::Public {
            scopes.push(self);
        }
        let mut folders = Vec::new();
        for scope in scopes {
            match files::open_subdir(cache, &scope.folder_name(digest)) {
                Ok(folder) => folders.push(folder),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(folders)
    }
}

/// Opens all folders of a cache, with their names.
pub(super) fn all(cache: &OwnedFd) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut folders = Vec::new();
    for name in files::names(cache)? {
        if is_folder(&name) {
            let folder = files::open_subdir(cache, &name)?;
            folders.push((name, folder));
        }
    }
    Ok(folders)
}

fn is_folder(name: &str) -> bool {
    let (algorithm, scope) = name.split_once('-').unwrap_or((name, ""));
    let is_scope = scope.len() == SCOPE_LENGTH && is_hex(scope);
    ["sha256", "sha512"].contains(&algorithm) && (is_scope || name == algorithm)
}

/// Returns the digest that a file holds a blob of, or the beginning of one.
pub(super) fn digest_of(folder: &str, file: &str) -> Option<Digest> {
    let algorithm = folder.split('-').next()?;
    let hex = match file.strip_suffix(PART) {
        Some(stem) => stem.split('-').next()?,
        None => file,
    };
    Digest::parse(&format!("{algorithm}:{hex}")).ok()
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Names of what a blob that is not complete has.
pub(super) struct Names {
    pub part: String,
    pub lock: String,
}

impl Names {
    /// Those that all pulls share.
    pub fn shared(blob: &Descriptor) -> Self {
        Self::new(blob.digest.hex())
    }

    /// Those of a registry's own, for when the others are taken by another registry.
    pub fn of_registry(blob: &Descriptor, registry: &str) -> Self {
        let key = &hash::sha256_hex(registry.as_bytes())[..REGISTRY_LENGTH];
        Self::new(&format!("{}-{key}", blob.digest.hex()))
    }

    fn new(stem: &str) -> Self {
        Self {
            part: format!("{stem}{PART}"),
            lock: format!("{stem}{LOCK}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_blobs_have_a_folder_for_each_repository() {
        let digest = Digest::parse(&format!("sha256:{}", "a".repeat(64))).unwrap();
        let name = |source: &str| Scope::Private(source.into()).folder_name(&digest);
        assert_eq!(Scope::Public.folder_name(&digest), "sha256");
        assert_ne!(name("quay.io/a"), name("quay.io/b"));
        for source in ["quay.io/a", "../../x", ""] {
            assert!(is_folder(&name(source)), "{source}");
            let found = digest_of(&name(source), &"a".repeat(64));
            assert_eq!(found.as_ref(), Some(&digest));
        }
        for other in ["sha1", "sha256-", "sha256-x", ".lock-trim", "sha256-../x"] {
            assert!(!is_folder(other), "{other}");
        }
        let part = format!("{}.part", "a".repeat(64));
        assert_eq!(digest_of("sha256", &part), Some(digest.clone()));
        let blob = Descriptor::new(String::new(), digest.clone(), 0);
        let of_registry = Names::of_registry(&blob, "quay.io").part;
        assert_ne!(of_registry, part);
        assert_eq!(digest_of("sha256", &of_registry), Some(digest));
        assert_eq!(digest_of("sha256", "x.part"), None);
    }
}
