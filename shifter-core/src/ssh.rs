//! The keys with which a job's nodes reach one another, as text that is carried and never used
//! here.
//!
//! On the wire, as `shifter-ssh-keys` prints them and the shared state keeps them: for the user
//! and then for the nodes, a private key in OpenSSH's form and its public key on a line.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes that a private key may have; an ed25519 one has some 400.
const PRIVATE_LIMIT: usize = 1024;

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n";
const END: &str = "-----END OPENSSH PRIVATE KEY-----\n";

/// Characters of the data of an ed25519 public key.
const PUBLIC_DATA: usize = 68;

/// Both halves of an ed25519 key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// The secret half: a file of OpenSSH's.
    pub private: String,
    /// The other: `ssh-ed25519 AAAA…`, without options before it or a comment after it.
    pub public: String,
}

/// Shows the public half alone.
impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl KeyPair {
    /// True if both halves have the form of a key; whether they belong together nobody can see
    /// from here, and who makes them for himself does himself the harm.
    pub fn is_well_formed(&self) -> bool {
        let is_base64 = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
        };
        let body = self
            .private
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix(END));
        self.private.len() <= PRIVATE_LIMIT
            && body.is_some_and(|body| !body.is_empty() && body.lines().all(is_base64))
            && self
                .public
                .strip_prefix("ssh-ed25519 ")
                .is_some_and(|data| data.len() == PUBLIC_DATA && is_base64(data))
    }
}

/// The keys of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobKeys {
    /// What opens the door of each node.
    pub user: KeyPair,
    /// By what each node is known to be one of the job's.
    pub host: KeyPair,
}

impl JobKeys {
    /// Reads what `shifter-ssh-keys` prints; nothing if it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut pair = || {
            let end = rest.find(END)? + END.len();
            let (private, after) = rest.split_at_checked(end)?;
            let (public, after) = after.split_once('\n')?;
            rest = after;
            Some(KeyPair {
                private: private.to_owned(),
                public: public.to_owned(),
            })
        };
        let keys = Self {
            user: pair()?,
            host: pair()?,
        };
        (rest.is_empty() && keys.is_well_formed()).then_some(keys)
    }

    /// Writes the keys as they are read by [`JobKeys::parse`].
    pub fn to_text(&self) -> String {
        let pair = |pair: &KeyPair| format!("{}{}\n", pair.private, pair.public);
        pair(&self.user) + &pair(&self.host)
    }

    /// True if each has the form of a key.
    pub fn is_well_formed(&self) -> bool {
        self.user.is_well_formed() && self.host.is_well_formed()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Keys that nobody has.
    pub(crate) fn sample() -> JobKeys {
        let pair = |letter: &str| KeyPair {
            private: format!("{BEGIN}{}\n{END}", letter.repeat(70)),
            public: format!("ssh-ed25519 {}", letter.repeat(PUBLIC_DATA)),
        };
        JobKeys {
            user: pair("u"),
            host: pair("h"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let keys = sample();
        assert_eq!(JobKeys::parse(&keys.to_text()), Some(keys));
    }

    #[test]
    fn s58_what_is_no_key_is_refused() {
        let text = sample().to_text();
        let data = "u".repeat(PUBLIC_DATA);
        let table = [
            ("ssh-ed25519 u", "command=\"id\" ssh-ed25519 u".to_owned()),
            (&data, format!("{data}\ncommand=\"id\" ssh-ed25519 {data}")),
            (&data, format!("{data} comment")),
            ("ssh-ed25519", "ssh-rsa".to_owned()),
            ("uuuuu\n-----END", "u\"$(id)\n-----END".to_owned()),
            (BEGIN, format!("{BEGIN}{}\n", "u".repeat(2000))),
            (BEGIN, String::new()),
        ];
        for (from, to) in table {
            let forged = text.replacen(from, &to, 1);
            assert_ne!(forged, text, "{from}");
            assert_eq!(JobKeys::parse(&forged), None, "{to}");
        }
        assert_eq!(JobKeys::parse(&(text.clone() + "more")), None);
        assert_eq!(JobKeys::parse(""), None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", sample());
        assert!(shown.contains("ssh-ed25519") && !shown.contains("PRIVATE"));
    }
}
