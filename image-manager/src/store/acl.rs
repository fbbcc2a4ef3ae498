//! Who may see an image: names and numbers of users and groups, and what a pull adds to them.
//!
//! Access only ever grows, and only for an image that the registry has just given to the one who
//! asks: [`ImageLock::widen`] is called after that. Names are looked up by the host's `getent`,
//! which asks what the site uses (LDAP, sssd) without its libraries in this process.
//!
//! [`ImageLock::widen`]: super::ImageLock::widen

use std::io;
use std::process::{Command, Stdio};

use shifter_core::exit::ExitCode;
use shifter_core::meta::ImageMeta;
use shifter_core::sanitize;
use thiserror::Error;

const GETENT: &str = "/usr/bin/getent";

/// Says why a list of users or groups cannot be used.
#[derive(Debug, Error)]
pub enum AclError {
    /// Nobody has that name.
    #[error("there is no {kind} '{}'", sanitize::text(name))]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// The name as it was given.
        name: String,
    },
    /// The host could not be asked.
    #[error("cannot run '{GETENT}'")]
    Lookup(#[source] io::Error),
}

impl AclError {
    /// Returns the code the program ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unknown { .. } => ExitCode::Usage,
            Self::Lookup(_) => ExitCode::Internal,
        }
    }
}

/// For whom an image is pulled that not everybody may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// Who pulls it.
    pub puller: u32,
    /// Who else may see it, by uid.
    pub users: Vec<u32>,
    /// The groups whose members may see it, by gid.
    pub groups: Vec<u32>,
}

impl Audience {
    /// Describes a pull for oneself.
    pub fn only(puller: u32) -> Self {
        Self {
            puller,
            ..Self::default()
        }
    }

    /// Adds users and groups by names or numbers; several are separated by commas.
    pub fn with(puller: u32, users: &[String], groups: &[String]) -> Result<Self, AclError> {
        Ok(Self {
            puller,
            users: ids(users, "user", "passwd")?,
            groups: ids(groups, "group", "group")?,
        })
    }

    /// Writes the access lists of a private image.
    pub fn restrict(&self, meta: &mut ImageMeta) {
        meta.user_acl = self.users.clone();
        meta.user_acl.push(self.puller);
        meta.group_acl = self.groups.clone();
        tidy(meta);
    }
}

/// Returns the metadata with those who may see the image by either.
pub(super) fn union(found: &ImageMeta, wanted: &ImageMeta) -> ImageMeta {
    let mut meta = found.clone();
    if found.is_public() || wanted.is_public() {
        (meta.user_acl, meta.group_acl) = (Vec::new(), Vec::new());
    } else {
        meta.user_acl.extend(&wanted.user_acl);
        meta.group_acl.extend(&wanted.group_acl);
        tidy(&mut meta);
    }
    meta
}

fn tidy(meta: &mut ImageMeta) {
    for acl in [&mut meta.user_acl, &mut meta.group_acl] {
        acl.sort_unstable();
        acl.dedup();
    }
}

fn ids(lists: &[String], kind: &'static str, database: &str) -> Result<Vec<u32>, AclError> {
    let names = lists.iter().flat_map(|list| list.split(','));
    let mut found = names
        .map(|name| id(name, kind, database))
        .collect::<Result<Vec<u32>, _>>()?;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Finds the number of a name; a number stands for itself, whether or not somebody has it.
fn id(name: &str, kind: &'static str, database: &str) -> Result<u32, AclError> {
    let unknown = || AclError::Unknown {
        kind,
        name: name.to_owned(),
    };
    // The largest number means "nobody" to the kernel.
    let is_id = |id: &u32| *id != u32::MAX;
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return name.parse().ok().filter(is_id).ok_or_else(unknown);
    }
    if name.is_empty() || name.starts_with('-') || name.contains([':', '\n', '\0', ' ']) {
        return Err(unknown());
    }
    let output = Command::new(GETENT)
        .args([database, name])
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(AclError::Lookup)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    parse_line(line, name).filter(is_id).ok_or_else(unknown)
}

/// Takes the number from a line of passwd or group that is for `name`.
fn parse_line(line: &str, name: &str) -> Option<u32> {
    let mut fields = line.split(':');
    let found = fields.next()?;
    (found == name).then(|| fields.nth(1)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_databases() {
        let table = [
            ("root:x:0:0:root:/root:/bin/bash", "root", Some(0)),
            ("wheel:x:10:alice,bob", "wheel", Some(10)),
            ("root:x:0:0", "toor", None),
            ("root:x:zero:0", "root", None),
            ("", "root", None),
            ("root", "root", None),
        ];
        for (line, name, expect) in table {
            assert_eq!(parse_line(line, name), expect, "{line}");
        }
    }

    #[test]
    fn names_and_numbers() {
        let list = |text: &str| vec![text.to_owned()];
        let audience = Audience::with(7, &list("root,4242,0"), &list("root")).unwrap();
        assert_eq!((audience.users, audience.groups), (vec![0, 4242], vec![0]));
        let bad = [
            "nobody-of-this-name",
            "",
            "a,,b",
            "-s",
            "4294967295",
            "99999999999",
            "a:b",
            "1 2",
        ];
        for name in bad {
            let refused = Audience::with(7, &list(name), &[]);
            assert!(
                matches!(refused, Err(AclError::Unknown { kind: "user", .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn private_images_are_for_the_puller_and_whom_it_names() {
        let mut meta = ImageMeta::default();
        Audience::only(7).restrict(&mut meta);
        assert_eq!((&meta.user_acl[..], meta.group_acl.len()), (&[7][..], 0));
        let audience = Audience {
            puller: 7,
            users: vec![9, 7, 8],
            groups: vec![5],
        };
        audience.restrict(&mut meta);
        assert_eq!(
            (&meta.user_acl[..], &meta.group_acl[..]),
            (&[7, 8, 9][..], &[5][..])
        );
    }
}
