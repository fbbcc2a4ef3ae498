//! Settings of `ssh` for one host, from files as ssh_config(5) describes them: of a keyword given
//! more than once the first counts; of files with keys all do.

use std::path::PathBuf;

use shifter_core::pattern;

/// What is known about a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// `HostName`.
    pub host_name: Option<String>,
    /// `Port`.
    pub port: Option<u16>,
    /// `User`.
    pub user: Option<String>,
    /// `IdentityFile`: users' own settings for every host must not hide the job's.
    pub identities: Vec<PathBuf>,
    /// `UserKnownHostsFile`.
    pub known_hosts: Vec<PathBuf>,
    /// `HostKeyAlias`.
    pub alias: Option<String>,
    /// `ConnectTimeout`, in seconds.
    pub connect_timeout: Option<u64>,
}

impl HostSettings {
    /// Takes a setting unless there is one already. What this client does not know it does not do.
    pub fn add(&mut self, keyword: &str, value: &str) {
        fn first<T>(slot: &mut Option<T>, value: Option<T>) {
            if slot.is_none() {
                *slot = value;
            }
        }
        let text = || Some(value.to_owned());
        match keyword.to_lowercase().as_str() {
            "hostname" => first(&mut self.host_name, text()),
            "port" => first(&mut self.port, value.parse().ok()),
            "user" => first(&mut self.user, text()),
            "identityfile" => self.identities.push(value.into()),
            "userknownhostsfile" => self.known_hosts.push(value.into()),
            "hostkeyalias" => first(&mut self.alias, text()),
            "connecttimeout" => first(&mut self.connect_timeout, value.parse().ok()),
            _ => {}
        }
    }

    /// Takes what a file says about a host.
    pub fn read(&mut self, text: &str, host: &str) {
        let mut is_meant = true;
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let end = line.find([' ', '\t', '=']).unwrap_or(line.len());
            let (keyword, rest) = line.split_at(end);
            let rest = rest.trim_matches([' ', '\t', '=']);
            match keyword.to_lowercase().as_str() {
                "host" => is_meant = is_one_of(rest, host),
                // Of all conditions this client knows only the one that is none.
                "match" => is_meant = rest.eq_ignore_ascii_case("all"),
                _ if is_meant => self.add(keyword, rest.trim_matches('"')),
                _ => {}
            }
        }
    }
}

/// True if a host is meant by patterns, and by none of those that exclude it.
fn is_one_of(patterns: &str, host: &str) -> bool {
    // The case of letters counts nowhere.
    let (patterns, host) = (patterns.to_lowercase(), host.to_lowercase());
    let fits = |pattern: &str| pattern::fits(pattern.as_bytes(), host.as_bytes());
    let mut is_meant = false;
    for pattern in patterns.split([' ', '\t']) {
        match pattern.strip_prefix('!') {
            Some(pattern) if fits(pattern) => return false,
            Some(_) => {}
            None => is_meant |= fits(pattern),
        }
    }
    is_meant
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
        # The nodes of this job.\n\
        Host n1 n2\n    Port 1204\n    User alice\n    IdentityFile \"/a b/c\"\n\
        \tHostKeyAlias=job\n\
        Host *\nPort 22\nMatch host n1\nUser bob\nMatch all\nConnectTimeout 7\n";

    #[test]
    fn the_first_value_counts() {
        let mut settings = HostSettings::default();
        settings.add("Port", "99");
        settings.read(TEXT, "n2");
        let expected = HostSettings {
            port: Some(99),
            user: Some("alice".into()),
            identities: vec!["/a b/c".into()],
            alias: Some("job".into()),
            connect_timeout: Some(7),
            ..HostSettings::default()
        };
        assert_eq!(settings, expected);
        let mut others = HostSettings::default();
        others.read(TEXT, "example.org");
        assert_eq!((others.port, others.identities), (Some(22), Vec::new()));
    }

    #[test]
    fn patterns() {
        let table = [
            ("n1 n2", "n2", true),
            ("n1 n2", "n22", false),
            ("n*", "n22", true),
            ("n?", "n22", false),
            ("n* !n2?", "n22", false),
            ("!n2", "n1", false),
            ("* !n2", "n1", true),
            ("N1", "n1", true),
            ("*a*b", "xaxxb", true),
            ("*a*b", "xaxxbx", false),
            ("", "n1", false),
        ];
        for (patterns, host, expected) in table {
            assert_eq!(is_one_of(patterns, host), expected, "{patterns}: {host}");
        }
    }
}
