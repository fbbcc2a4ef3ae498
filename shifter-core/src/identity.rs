//! Who a user is, and the account files a container is given.
//!
//! Lines come from `getent` or from files; a line that does not parse strictly is no line.

use serde::{Deserialize, Serialize};

/// A group: number and, where known, name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The number.
    pub gid: u32,
    /// The name, checked to be printable and without `:`.
    pub name: Option<String>,
}

/// Everything about a user that a container needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Login name.
    pub name: String,
    /// Real uid.
    pub uid: u32,
    /// Primary gid.
    pub gid: u32,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
    /// Supplementary groups, the primary one included or not.
    pub groups: Vec<Group>,
}

/// Groups that one user may bring; the kernel's own limit is 65536.
pub const GROUP_LIMIT: usize = 4096;

impl Identity {
    /// Parses a line of passwd(5) and takes it only if it is `uid`'s; groups stay empty.
    pub fn from_passwd_line(line: &str, uid: u32) -> Option<Self> {
        let fields: Vec<&str> = line.trim_end_matches('\n').split(':').collect();
        let [name, _, line_uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let identity = Identity {
            name: name.to_owned(),
            uid: number(line_uid)?,
            gid: number(gid)?,
            home: home.to_owned(),
            shell: shell.to_owned(),
            groups: Vec::new(),
        };
        (identity.uid == uid && identity.is_well_formed()).then_some(identity)
    }

    /// True if every field can stand in passwd(5) and group(5) without forging another.
    pub fn is_well_formed(&self) -> bool {
        let paths = [&self.home, &self.shell];
        is_account_name(&self.name)
            && paths
                .iter()
                .all(|path| path.len() <= 4096 && is_field(path))
            && self.groups.len() <= GROUP_LIMIT
            && self
                .groups
                .iter()
                .flat_map(|g| &g.name)
                .all(|name| is_account_name(name))
    }

    /// Returns the numbers of all groups, the primary one first, each once.
    pub fn gids(&self) -> Vec<u32> {
        let mut gids = vec![self.gid];
        for group in &self.groups {
            if !gids.contains(&group.gid) {
                gids.push(group.gid);
            }
        }
        gids
    }

    /// Writes the container's /etc/passwd: root, the user and nobody, never a password hash.
    pub fn passwd_file(&self) -> String {
        let mut file = String::from("root:x:0:0:root:/root:/bin/sh\n");
        if self.uid != 0 {
            let Identity {
                name,
                uid,
                gid,
                home,
                shell,
                ..
            } = self;
            file.push_str(&format!("{name}:x:{uid}:{gid}:{name}:{home}:{shell}\n"));
        }
        if self.uid != 65534 {
            file.push_str("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
        }
        file
    }

    /// Writes the container's /etc/group: root, the user's groups with the user as the only
    /// member, and nogroup. A group whose name is not known is called by its number.
    pub fn group_file(&self) -> String {
        let mut file = String::from("root:x:0:\n");
        let mut taken = vec!["root".to_owned(), "nogroup".to_owned()];
        for gid in self
            .gids()
            .into_iter()
            .filter(|gid| ![0, 65534].contains(gid))
        {
            let known = self
                .groups
                .iter()
                .find(|g| g.gid == gid)
                .and_then(|g| g.name.clone());
            let name = known.filter(|name| !taken.contains(name));
            let name = name.unwrap_or_else(|| format!("group{gid}"));
            file.push_str(&format!("{name}:x:{gid}:{}\n", self.name));
            taken.push(name);
        }
        file.push_str("nogroup:x:65534:\n");
        file
    }
}

/// Reads number and name of a line of group(5).
pub fn group_of_line(line: &str) -> Option<(u32, &str)> {
    let mut fields = line.trim_end_matches('\n').split(':');
    let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
    Some((number(gid)?, name)).filter(|_| is_account_name(name))
}

/// True if a line of group(5) has the user among its members.
pub fn has_member(line: &str, user: &str) -> bool {
    let members = line.splitn(4, ':').nth(3).unwrap_or_default();
    let mut members = members.split(',');
    !line.trim_start().starts_with('#') && members.any(|member| member.trim_start() == user)
}

fn number(text: &str) -> Option<u32> {
    // u32::MAX means "no id" to the kernel; parse alone would also take "+1".
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain
        .then(|| text.parse().ok())
        .flatten()
        .filter(|id| *id != u32::MAX)
}

/// True for what may name a user or group: no field of a line can be forged with it.
pub fn is_account_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 256 && is_field(name) && !name.starts_with(['-', '+'])
}

fn is_field(text: &str) -> bool {
    !text.chars().any(|c| c == ':' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> Identity {
        let line = "alice:x:2001:2001:Alice,,:/home/alice:/bin/bash\n";
        let mut alice = Identity::from_passwd_line(line, 2001).unwrap();
        alice.groups = vec![
            Group {
                gid: 2100,
                name: Some("proj".into()),
            },
            Group {
                gid: 2200,
                name: None,
            },
            Group {
                gid: 2001,
                name: Some("alice".into()),
            },
            Group {
                gid: 2300,
                name: Some("root".into()),
            },
        ];
        alice
    }

    #[test]
    fn account_files() {
        assert_eq!(
            alice().group_file(),
            "root:x:0:\nalice:x:2001:alice\nproj:x:2100:alice\ngroup2200:x:2200:alice\n\
             group2300:x:2300:alice\nnogroup:x:65534:\n"
        );
        let passwd = alice().passwd_file();
        assert!(
            passwd.contains("\nalice:x:2001:2001:alice:/home/alice:/bin/bash\n"),
            "{passwd}"
        );
        assert_eq!(alice().gids(), [2001, 2100, 2200, 2300]);
    }

    #[test]
    fn refuses_lines_that_are_not_the_users() {
        let bad = [
            "",
            "alice:x:2002:2001::/h:/s",
            "alice:x:2001:2001:/h:/s",
            "alice:x:2001:2001::/h:/s:extra",
            ":x:2001:2001::/h:/s",
            "+alice:x:2001:2001::/h:/s",
            "alice:x:+2001:2001::/h:/s",
            "alice:x:2001:4294967295::/h:/s",
            "al\tice:x:2001:2001::/h:/s",
        ];
        for line in bad {
            assert_eq!(Identity::from_passwd_line(line, 2001), None, "{line}");
        }
    }

    #[test]
    fn group_lines() {
        assert_eq!(group_of_line("proj:x:2100:bob,carol"), Some((2100, "proj")));
        for (user, expected) in [("bob", true), ("carol", true), ("car", false), ("", false)] {
            assert_eq!(has_member("proj:x:2100:bob, carol", user), expected);
        }
        for line in [
            "bob:x:2100:",
            "bob:bob:bob",
            "#p:x:1:bob",
            "p:x:1:bob ",
            "p:x:1:bob:x",
        ] {
            assert!(!has_member(line, "bob"), "{line}");
        }
        for line in [
            "grp::x",
            ":x:2100:",
            "a",
            "x:2100",
            "+a:x:2100:",
            "a:x:+2100:",
            "a:x:4294967295:",
        ] {
            assert_eq!(group_of_line(line), None, "{line}");
        }
    }
}
