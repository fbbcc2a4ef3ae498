//! Writing a login into docker's file, or giving it to the helper that the file names.
//!
//! The file is replaced as a whole: written under another name in its directory, 0600 from the
//! first byte on, then renamed. What else is in it stays. A link is followed to the file it leads
//! to, if that and its directory are the user's; nothing is ever written through a link that appears
//! later.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::fs::OFlags;
use serde_json::{Map, Value, json};

use super::super::error::RegistryError;
use super::file::{self, AuthFile, Found};
use super::helper::Helper;
use super::{Login, User, helper_failed, key_of};

/// Where a login went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Into this file, readable by its owner alone.
    File(PathBuf),
    /// To the credential helper of this name.
    Helper(String),
}

/// The file that a user's logins are written to.
pub struct LoginFile {
    path: PathBuf,
    owner: u32,
    search: OsString,
}

impl LoginFile {
    /// Names the file: `$REGISTRY_AUTH_FILE`, else docker's; none without a home.
    pub fn of_user(user: &User<'_>) -> Option<Self> {
        let path = user.path("REGISTRY_AUTH_FILE").or_else(|| user.docker())?;
        Some(Self {
            path,
            owner: user.uid,
            search: user.search(),
        })
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps a login for a registry, named as in image references.
    pub fn store(&self, registry: &str, login: &Login) -> Result<Kept, RegistryError> {
        let (real, mut document) = self.load()?;
        if let Some((name, helper)) = self.helper(registry, &document)? {
            helper
                .store(&key_of(registry), login)
                .map_err(|reason| helper_failed(&name, registry, reason))?;
            return Ok(Kept::Helper(name));
        }
        let auths = document.entry("auths").or_insert_with(|| json!({}));
        let Value::Object(auths) = auths else {
            return Err(self.failed("its 'auths' is not an object"));
        };
        auths.retain(|key, _| file::normalise(key) != registry);
        let pair = format!("{}:{}", login.user(), login.secret());
        auths.insert(
            key_of(registry),
            json!({"auth": BASE64_STANDARD.encode(pair)}),
        );
        self.replace(&real, &document)?;
        Ok(Kept::File(real))
    }

    /// Forgets the login for a registry; false if there was none.
    pub fn erase(&self, registry: &str) -> Result<bool, RegistryError> {
        let (real, mut document) = self.load()?;
        let mut found = false;
        if let Some((name, helper)) = self.helper(registry, &document)? {
            found = helper
                .erase(&key_of(registry))
                .map_err(|reason| helper_failed(&name, registry, reason))?;
        }
        let Some(Value::Object(auths)) = document.get_mut("auths") else {
            return Ok(found);
        };
        let before = auths.len();
        auths.retain(|key, _| file::normalise(key) != registry);
        if auths.len() == before {
            return Ok(found);
        }
        self.replace(&real, &document)?;
        Ok(true)
    }

    /// Reads the file, and finds out where it really is.
    fn load(&self) -> Result<(PathBuf, Map<String, Value>), RegistryError> {
        let fail = |error: io::Error| self.failed(&error.to_string());
        let real = match self.path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.path.is_symlink() {
                    return Err(self.failed("it is a link that leads nowhere"));
                }
                return Ok((self.path.clone(), Map::new()));
            }
            Err(error) => return Err(fail(error)),
        };
        let bytes = file::read(&real, self.owner).map_err(fail)?;
        let bytes = bytes.unwrap_or_default();
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok((real, Map::new()));
        }
        // Also says in which form a helper is named; its errors never show the content.
        AuthFile::parse(&bytes).map_err(|reason| self.failed(&reason))?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(document)) => Ok((real, document)),
            _ => Err(self.failed("it is not an object")),
        }
    }

    /// Finds the helper that keeps the logins of a registry.
    fn helper(
        &self,
        registry: &str,
        document: &Map<String, Value>,
    ) -> Result<Option<(String, Helper)>, RegistryError> {
        let mut settings = document.clone();
        settings.remove("auths");
        let bytes = serde_json::to_vec(&settings).unwrap_or_default();
        let file = AuthFile::parse(&bytes).map_err(|reason| self.failed(&reason))?;
        let Found::Helper(name) = file.find(registry, "") else {
            return Ok(None);
        };
        let helper = Helper::new(&name, &self.search)
            .map_err(|reason| helper_failed(&name, registry, reason))?;
        Ok(Some((name, helper)))
    }

    fn replace(&self, real: &Path, document: &Map<String, Value>) -> Result<(), RegistryError> {
        let mut text = serde_json::to_vec_pretty(document)
            .map_err(|_| self.failed("it cannot be written as text"))?;
        text.push(b'\n');
        self.write(real, &text)
            .map_err(|error| self.failed(&error.to_string()))
    }

    fn write(&self, real: &Path, text: &[u8]) -> io::Result<()> {
        let dir = real.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let meta = dir.metadata()?;
        if meta.uid() != self.owner || meta.mode() & 0o022 != 0 {
            let rule = "its directory must be yours, and nobody else may write there";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, rule));
        }
        let name = real.file_name().unwrap_or_default().to_string_lossy();
        let temporary = dir.join(format!(".{name}.{}", std::process::id()));
        let begin = || {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                .open(&temporary)
        };
        let mut file = match begin() {
            // Left by a process that died and had this number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&temporary)?;
                begin()?
            }
            opened => opened?,
        };
        let written = fill(&mut file, text).and_then(|()| std::fs::rename(&temporary, real));
        if written.is_err() {
            // The first error is the one that matters.
            let _ = std::fs::remove_file(&temporary);
        }
        written?;
        File::open(dir)?.sync_all()
    }

    fn failed(&self, reason: &str) -> RegistryError {
        RegistryError::File {
            path: self.path.clone(),
            reason: reason.to_owned(),
        }
    }
}

fn fill(file: &mut File, text: &[u8]) -> io::Result<()> {
    // The umask may have taken away what the owner needs.
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::fchmod(&*file, mode)?;
    file.write_all(text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
