//! Where the local files alone say who is in which group, nobody else has to be asked.

use std::fs;

const SWITCH: &str = "/etc/nsswitch.conf";

/// Where systemd's name service finds whom to ask for users, and drop-in files that describe them
/// (systemd: nss-systemd(8), userdbd).
const USERS_OF_SYSTEMD: [&str; 6] = [
    "/run/systemd/userdb",
    "/run/userdb",
    "/run/host/userdb",
    "/etc/userdb",
    "/usr/local/lib/userdb",
    "/usr/lib/userdb",
];

/// What is always there where systemd runs: it knows no groups of anybody's.
const DYNAMIC_USERS: &str = "io.systemd.DynamicUser";

/// True if the groups of a user are those of `/etc/group` and no others.
pub fn has_only_local_groups() -> bool {
    let text = fs::read_to_string(SWITCH).unwrap_or_default();
    is_local(&text, || !USERS_OF_SYSTEMD.iter().any(|dir| has_users(dir)))
}

/// Judges the text of nsswitch.conf(5); `is_systemd_empty` says whether systemd's has nobody to ask.
fn is_local(text: &str, is_systemd_empty: impl Fn() -> bool) -> bool {
    let of = |database: &str| -> Vec<&str> {
        let lines = text.lines().filter_map(|line| {
            let line = line.split('#').next().unwrap_or_default().trim_start();
            let (name, services) = line.split_once(|c: char| c == ':' || c.is_whitespace())?;
            (name == database).then_some(services)
        });
        lines.collect()
    };
    // The C library falls back to the second where there is no line for the first.
    let mut lines = of("initgroups");
    if lines.is_empty() {
        lines = of("group");
    }
    let is_local = |services: &&str| {
        let mut services = services.split_ascii_whitespace();
        services.next() == Some("files")
            && services.all(|service| service == "systemd" && is_systemd_empty())
    };
    !lines.is_empty() && lines.iter().all(is_local)
}

/// True unless the directory has nobody to ask for sure.
fn has_users(dir: &str) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return fs::symlink_metadata(dir).is_ok();
    };
    let mut names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    names.any(|name| !name.is_ok_and(|name| name == DYNAMIC_USERS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_an_empty_systemd_are_local() {
        for (text, is_empty, expected) in [
            ("group: files\n", false, true),
            ("passwd: files sss\n group:\tfiles # ldap\n", false, true),
            ("group: files\ninitgroups files sss\n", true, false),
            ("group : files\n", true, false),
            ("group: files systemd\n", true, true),
            ("group: files systemd\n", false, false),
            ("group: files sss\n", true, false),
            ("group: sss files\n", true, false),
            ("group: systemd\n", true, false),
            ("group: files [SUCCESS=merge] systemd\n", true, false),
            ("group: files\ninitgroups: files sss\n", true, false),
            ("group: files sss\ninitgroups: files\n", true, true),
            ("group: files\ngroup: files sss\n", true, false),
            ("group:\n", true, false),
            ("#group: files\n", true, false),
            ("", true, false),
        ] {
            assert_eq!(is_local(text, || is_empty), expected, "{text} {is_empty}");
        }
    }

    #[test]
    fn a_directory_with_more_than_dynamic_users_may_know_somebody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        assert!(!has_users(path) && !has_users(&format!("{path}/none")));
        fs::write(dir.path().join(DYNAMIC_USERS), "").unwrap();
        assert!(!has_users(path));
        assert!(has_users(&format!("{path}/{DYNAMIC_USERS}")));
        fs::write(dir.path().join("io.systemd.Home"), "").unwrap();
        assert!(has_users(path));
    }
}
