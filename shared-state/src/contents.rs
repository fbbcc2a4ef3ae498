//! What a state has in it: named files, two of which say who the job's user is.
//!
//! `passwd` is one line of passwd(5), `group` the lines of group(5) of all the user's groups, with
//! nothing before the first colon where a group's name is not known.

use std::collections::BTreeMap;

use shifter_core::identity::{Group, Identity, group_of_line};

use crate::error::{Error, Result, Rule};

/// Name of the file with the user's account.
pub const PASSWD: &str = "passwd";

/// Name of the file with the user's groups.
pub const GROUP: &str = "group";

/// Name of the file with the job's manifest.
pub const MANIFEST: &str = "manifest";

/// Files that a state may have.
pub(crate) const FILE_COUNT_LIMIT: usize = 16;

/// Bytes that a file may have: as many as a manifest.
pub(crate) const FILE_LIMIT: usize = shifter_core::manifest::SIZE_LIMIT as usize;

/// The files of a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<String, Vec<u8>>);

impl Contents {
    /// Makes contents without a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes contents that say who the user is.
    ///
    /// # Errors
    /// [`Error::File`] if there is more to say than a file may have.
    pub fn of_user(user: &Identity) -> Result<Self> {
        let mut contents = Self::new();
        let mut groups = String::new();
        for group in &user.groups {
            let name = group.name.as_deref().unwrap_or_default();
            groups.push_str(&format!("{name}:x:{}:{}\n", group.gid, user.name));
        }
        let Identity {
            name,
            uid,
            gid,
            home,
            shell,
            ..
        } = user;
        let passwd = format!("{name}:x:{uid}:{gid}::{home}:{shell}\n");
        contents.set(PASSWD, passwd)?;
        contents.set(GROUP, groups)?;
        Ok(contents)
    }

    /// Adds a file, or replaces it.
    ///
    /// # Errors
    /// [`Error::File`] for a name that is not plain, and for more than 16 files or 1 MiB.
    pub fn set(&mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Result<()> {
        let bytes = bytes.into();
        let has_room = self.0.len() < FILE_COUNT_LIMIT || self.0.contains_key(name);
        if !is_file_name(name) || !has_room || bytes.len() > FILE_LIMIT {
            return Err(Error::File(name.to_owned()));
        }
        self.0.insert(name.to_owned(), bytes);
        Ok(())
    }

    /// Returns a file.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// Returns all files by their names.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (name.as_str(), &**bytes))
    }

    /// Returns who the user is, if the state says so and it is `uid`.
    ///
    /// # Errors
    /// [`Rule::Accounts`] for lines that are not another's of the user's accounts, strictly.
    pub fn identity(&self, uid: u32) -> Result<Identity> {
        self.parse_identity(uid)
            .ok_or_else(|| Error::refused(PASSWD, Rule::Accounts))
    }

    fn parse_identity(&self, uid: u32) -> Option<Identity> {
        let passwd = std::str::from_utf8(self.get(PASSWD)?).ok()?;
        let groups = std::str::from_utf8(self.get(GROUP)?).ok()?;
        let line = passwd
            .strip_suffix('\n')
            .filter(|line| !line.contains('\n'))?;
        let mut user = Identity::from_passwd_line(line, uid)?;
        let parse = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, "x", _, member] = fields[..] else {
                return None;
            };
            // A letter before it, because no name is no name of a group.
            let (gid, _) = group_of_line(&format!("g{line}")).filter(|_| member == user.name)?;
            let name = (!name.is_empty()).then(|| name.to_owned());
            Some(Group { gid, name })
        };
        user.groups = groups.lines().map(parse).collect::<Option<_>>()?;
        user.is_well_formed().then_some(user)
    }
}

/// True for what may name a file of a state; names of other things there begin with a dot.
pub(crate) fn is_file_name(name: &str) -> bool {
    let well_formed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(well_formed) && !name.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn alice() -> Identity {
        let line = "alice:x:2001:2001:Alice:/home/alice:/bin/bash";
        let mut alice = Identity::from_passwd_line(line, 2001).unwrap();
        let group = |gid, name: Option<&str>| Group {
            gid,
            name: name.map(str::to_owned),
        };
        alice.groups = vec![
            group(2001, Some("alice")),
            group(2100, Some("proj")),
            group(2200, None),
            group(0, Some("root")),
        ];
        alice
    }

    #[test]
    fn a_user_is_read_as_written() {
        let contents = Contents::of_user(&alice()).unwrap();
        assert_eq!(
            contents.get(PASSWD),
            Some(&b"alice:x:2001:2001::/home/alice:/bin/bash\n"[..])
        );
        let groups = "alice:x:2001:alice\nproj:x:2100:alice\n:x:2200:alice\nroot:x:0:alice\n";
        assert_eq!(contents.get(GROUP), Some(groups.as_bytes()));
        assert_eq!(contents.identity(2001).unwrap(), alice());
        assert!(contents.identity(2002).is_err());
    }

    #[test]
    fn accounts_that_are_not_strictly_the_users_are_refused() {
        let table = [
            (PASSWD, ""),
            (PASSWD, "alice:x:2001:2001::/home/alice:/bin/bash"),
            (PASSWD, "alice:x:2001:2001::/h:/s\nbob:x:2001:2001::/h:/s\n"),
            (PASSWD, "alice:x:2002:2001::/h:/s\n"),
            (PASSWD, "al\rice:x:2001:2001::/h:/s\n"),
            (GROUP, "proj:x:2100:bob\n"),
            (GROUP, "proj:x:2100:alice,bob\n"),
            (GROUP, "proj:x:2100\n"),
            (GROUP, "proj:y:2100:alice\n"),
            (GROUP, "proj:x:+2100:alice\n"),
            (GROUP, "proj:x:4294967295:alice\n"),
            (GROUP, "+proj:x:2100:alice\n"),
            (GROUP, "\n"),
        ];
        for (name, text) in table {
            let mut contents = Contents::of_user(&alice()).unwrap();
            contents.set(name, text).unwrap();
            assert!(contents.identity(2001).is_err(), "{name}: {text:?}");
        }
        assert!(Contents::new().identity(2001).is_err());
    }

    #[test]
    fn names_sizes_and_numbers_have_limits() {
        let mut contents = Contents::new();
        for name in ["", ".new", "-x", "a/b", "..", "a b", "a\n", &"a".repeat(65)] {
            assert!(contents.set(name, "").is_err(), "{name:?}");
        }
        assert!(contents.set("key", vec![0; FILE_LIMIT + 1]).is_err());
        for number in 0..FILE_COUNT_LIMIT {
            contents.set(&format!("f{number}"), "").unwrap();
        }
        assert!(contents.set("one-more", "").is_err());
        contents.set("f0", vec![0; FILE_LIMIT]).unwrap();
    }
}
