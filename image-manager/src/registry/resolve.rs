//! From a reference to the manifest of one image: tags, digests, indexes, platforms.
//!
//! Every document is compared with what was known of it before; one that does not fit is fetched
//! again once, from the next source if there is one, and then refused.

use shifter_core::reference::{Digest, ImageRef};
use shifter_core::sanitize;

use crate::hash;

use super::error::RegistryError;
use super::http::Want;
use super::manifest::{self, Descriptor, Document, Manifest, ManifestError};
use super::platform::Wanted;
use super::repository::Repository;
use super::source::Source;

const MANIFEST_LIMIT: u64 = 4 << 20;
const CONFIG_LIMIT: u64 = 8 << 20;
/// Indexes that may lead to one another.
const DEPTH_LIMIT: usize = 3;
/// Indexes that may be opened in all.
const INDEX_LIMIT: usize = 8;

/// Whether everybody may pull an image, or only who has a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The registry gave it without asking who wants it.
    Public,
    /// The registry gave it to the user's login.
    Private,
}

/// What a reference means to the registry at this moment.
#[derive(Debug)]
pub struct Resolved {
    /// The digest of what the tag points to: the index, if there is one.
    pub digest: Digest,
    /// The manifest for the platform.
    pub manifest: Manifest,
    /// The image's configuration as it was sent.
    pub config: Vec<u8>,
    /// Whether a login was needed.
    pub access: Access,
}

impl Repository<'_> {
    /// Finds the image that `reference` names for this machine, and fetches its configuration.
    pub fn resolve(&self, reference: &ImageRef) -> Result<Resolved, RegistryError> {
        self.resolve_for(reference, &Wanted::default())
    }

    /// Finds the image that `reference` names for a platform, and fetches its configuration. With
    /// a tag and a digest the digest counts.
    pub fn resolve_for(
        &self,
        reference: &ImageRef,
        wanted: &Wanted,
    ) -> Result<Resolved, RegistryError> {
        let digest = reference.digest().cloned();
        let name = match &digest {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or("latest").to_owned(),
        };
        let mut access = Access::Public;
        let (document, digest) = self.document(&name, digest.as_ref(), None, &mut access)?;
        let manifest = self.descend(document, &digest, wanted, &mut access)?;
        let config = self.config(&manifest.config, &mut access)?;
        Ok(Resolved {
            digest,
            manifest,
            config,
            access,
        })
    }

    /// Walks from an index to the manifest that fits best, through other indexes if need be.
    fn descend(
        &self,
        document: Document,
        digest: &Digest,
        wanted: &Wanted,
        access: &mut Access,
    ) -> Result<Manifest, RegistryError> {
        let outermost = digest.to_string();
        let mut available = Vec::new();
        let mut opened = 0;
        let mut current = (document, 0);
        // The last one is looked at next.
        let mut pending: Vec<(Descriptor, usize)> = Vec::new();
        loop {
            let entries = match current.0 {
                Document::Manifest(manifest) => return Ok(manifest),
                Document::Index(entries) => entries,
            };
            opened += 1;
            if current.1 >= DEPTH_LIMIT || opened > INDEX_LIMIT {
                return Err(self.unusable(&outermost, ManifestError::TooDeep));
            }
            let choice = manifest::choose(&entries, wanted);
            available.extend(choice.available);
            let next = choice.fitting.into_iter().rev();
            pending.extend(next.map(|entry| (entry.clone(), current.1 + 1)));
            let Some((entry, depth)) = pending.pop() else {
                let source = manifest::no_platform(wanted, available);
                return Err(self.unusable(&outermost, source));
            };
            let name = entry.digest.to_string();
            let (document, _) = self.document(&name, Some(&entry.digest), Some(&entry), access)?;
            current = (document, depth);
        }
    }

    /// Fetches a manifest or index and compares it with everything known of it beforehand.
    fn document(
        &self,
        name: &str,
        wanted: Option<&Digest>,
        descriptor: Option<&Descriptor>,
        access: &mut Access,
    ) -> Result<(Document, Digest), RegistryError> {
        let mut fetch = || {
            self.with_each(|source, _| {
                let found = document(source, name, wanted, descriptor)?;
                self.prefer(source.number());
                if source.uses_login() {
                    *access = Access::Private;
                }
                Ok(found)
            })
        };
        match fetch() {
            // Bits fall over once; a server that lies does so again.
            Err(RegistryError::Forged { .. }) => fetch(),
            result => result,
        }
    }

    fn config(
        &self,
        descriptor: &Descriptor,
        access: &mut Access,
    ) -> Result<Vec<u8>, RegistryError> {
        if descriptor.size > CONFIG_LIMIT {
            return Err(RegistryError::TooLarge {
                what: "the image configuration",
                address: self.shown(&format!("blobs/{}", descriptor.digest)),
                limit: CONFIG_LIMIT,
            });
        }
        let fetch = || {
            let mut bytes = Vec::new();
            self.blob(descriptor, |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })
            .map(|()| bytes)
        };
        let bytes = match fetch() {
            Err(RegistryError::Forged { .. }) => fetch(),
            result => result,
        }?;
        if self.uses_login() {
            *access = Access::Private;
        }
        Ok(bytes)
    }

    fn unusable(&self, name: &str, source: ManifestError) -> RegistryError {
        RegistryError::Manifest {
            address: self.shown(&format!("manifests/{name}")),
            source,
        }
    }
}

/// Fetches a document from one source.
fn document(
    source: &Source<'_>,
    name: &str,
    wanted: Option<&Digest>,
    descriptor: Option<&Descriptor>,
) -> Result<(Document, Digest), RegistryError> {
    let what = "the manifest";
    let answer = source.get(&format!("manifests/{name}"), &Want::Manifest)?;
    let address = answer.address.to_string();
    let forged = |reason: String| RegistryError::Forged {
        what,
        address: address.clone(),
        reason,
    };
    let announced = match answer.header("docker-content-digest") {
        // A registry that names the content by a digest no one may use is not believed.
        Some(text) => Some(Digest::parse(text).map_err(|_| {
            forged(format!(
                "its digest '{}' is not acceptable",
                sanitize::text(text)
            ))
        })?),
        None => None,
    };
    let content_type = answer.header("content-type").unwrap_or_default().to_owned();
    let bytes = answer.read(what, MANIFEST_LIMIT)?;
    for digest in [wanted, announced.as_ref()].into_iter().flatten() {
        if !hash::matches(&bytes, digest) {
            return Err(forged(format!("its digest is not {digest}")));
        }
    }
    if let Some(descriptor) = descriptor
        && descriptor.size != bytes.len() as u64
    {
        let (promised, found) = (descriptor.size, bytes.len());
        return Err(forged(format!(
            "the index promises {promised} bytes, not {found}"
        )));
    }
    let unusable = |source| RegistryError::Manifest {
        address: address.clone(),
        source,
    };
    let document = manifest::parse(&bytes, &content_type).map_err(unusable)?;
    if let Some(descriptor) = descriptor
        && !manifest::is_kind(&descriptor.media_type, &document)
    {
        let promised = sanitize::text(&descriptor.media_type);
        return Err(forged(format!("the index promises a '{promised}'")));
    }
    let digest = match wanted {
        Some(digest) => digest.clone(),
        None => Digest::parse(&format!("sha256:{}", hash::sha256_hex(&bytes)))
            .map_err(|error| forged(error.to_string()))?,
    };
    Ok((document, digest))
}
