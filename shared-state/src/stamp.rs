//! The line that every file of a state begins with, and the job it must be for.
//!
//! ```text
//! shifter-state SCHEMA NAME FILES CLUSTER JOB RESTART UID GID TIME LENGTH
//! ```
//!
//! FILES counts the files of the whole state, TIME the seconds since 1970, LENGTH the bytes after
//! the line: a file that was cut short, or one of a state that is being removed, is seen to be.

use shifter_core::ids::JobId;

use crate::error::{Result, Rule};

/// The only form that this version reads and writes.
const SCHEMA: u32 = 1;

/// Bytes that the line may have.
pub(crate) const LINE_LIMIT: usize = 512;

/// A run of a job, as the batch system itself describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Name of the cluster.
    pub cluster: JobId,
    /// The job.
    pub job: JobId,
    /// How often it was started before.
    pub restart: u32,
    /// Its user.
    pub uid: u32,
    /// The group it runs with.
    pub gid: u32,
}

impl Key {
    /// Returns the name of the run's directory. No two runs have the same: what comes after the
    /// last dot is a number.
    pub(crate) fn dir(&self) -> String {
        format!("{}.{}", self.job, self.restart)
    }
}

/// What the line says beside the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Files in the whole state.
    pub files: usize,
    /// When it was written, in seconds since 1970.
    pub time: u64,
    /// Bytes after the line.
    pub length: usize,
}

impl Stamp {
    /// Writes the line for the file `name` of the run `key`.
    pub fn line(&self, key: &Key, name: &str) -> String {
        let Stamp {
            files,
            time,
            length,
        } = self;
        let fields = expected(key, name, *files).join(" ");
        format!("{fields} {time} {length}\n")
    }

    /// Reads the line at the beginning of the file `name`, refuses it if it is not for `key`, and
    /// returns it with what comes after it.
    pub fn split<'a>(bytes: &'a [u8], key: &Key, name: &str) -> Result<(Self, &'a [u8]), Rule> {
        let (stamp, body) = Self::begin(bytes, key, name)?;
        if stamp.length == body.len() {
            Ok((stamp, body))
        } else {
            Err(Rule::Incomplete)
        }
    }

    /// The same where only the beginning of the file was read: what comes after the line is not all.
    pub fn begin<'a>(bytes: &'a [u8], key: &Key, name: &str) -> Result<(Self, &'a [u8]), Rule> {
        let line = bytes
            .iter()
            .take(LINE_LIMIT)
            .position(|byte| *byte == b'\n');
        let (line, rest) = bytes.split_at(line.ok_or(Rule::Stamp)?);
        let body = &rest[1..];
        let line = std::str::from_utf8(line).map_err(|_| Rule::Stamp)?;
        let found: Vec<&str> = line.split(' ').collect();
        let &[.., files, _, _, _, _, _, time, length] = found.as_slice() else {
            return Err(Rule::Stamp);
        };
        let stamp = Stamp {
            files: number(files)?,
            time: number(time)?,
            length: number(length)?,
        };
        let expected = expected(key, name, stamp.files);
        if found.len() != expected.len() + 2 {
            return Err(Rule::Stamp);
        }
        for ((what, found), expected) in FIELDS.into_iter().zip(found).zip(expected) {
            if found != expected {
                let found = found.to_owned();
                return Err(Rule::Mismatch {
                    what,
                    found,
                    expected,
                });
            }
        }
        Ok((stamp, body))
    }
}

/// What the fields of [`expected`] are called.
const FIELDS: [&str; 9] = [
    "purpose",
    "schema",
    "file",
    "number of files",
    "cluster",
    "job",
    "restart",
    "uid",
    "gid",
];

/// Returns the fields that nobody but us decides. None has a space in it.
fn expected(key: &Key, name: &str, files: usize) -> [String; 9] {
    [
        "shifter-state".to_owned(),
        SCHEMA.to_string(),
        name.to_owned(),
        files.to_string(),
        key.cluster.to_string(),
        key.job.to_string(),
        key.restart.to_string(),
        key.uid.to_string(),
        key.gid.to_string(),
    ]
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, Rule> {
    // parse alone would also take "+1".
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain
        .then(|| text.parse().ok())
        .flatten()
        .ok_or(Rule::Stamp)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn key() -> Key {
        Key {
            cluster: JobId::parse("mini").unwrap(),
            job: JobId::parse("17").unwrap(),
            restart: 0,
            uid: 2001,
            gid: 2001,
        }
    }

    const STAMP: Stamp = Stamp {
        files: 2,
        time: 7,
        length: 3,
    };

    fn file() -> Vec<u8> {
        [STAMP.line(&key(), "group").as_bytes(), b"a\nb"].concat()
    }

    #[test]
    fn the_line_is_as_documented() {
        let line = STAMP.line(&key(), "group");
        assert_eq!(line, "shifter-state 1 group 2 mini 17 0 2001 2001 7 3\n");
        let bytes = file();
        let (stamp, body) = Stamp::split(&bytes, &key(), "group").unwrap();
        assert_eq!((stamp, body), (STAMP, &b"a\nb"[..]));
    }

    #[test]
    fn every_field_must_agree() {
        let table = [
            ("shifter-state", "other", "purpose"),
            ("state 1", "state 2", "schema"),
            ("group", "passwd", "file"),
            ("mini", "maxi", "cluster"),
            (" 17 ", " 18 ", "job"),
            (" 0 ", " 1 ", "restart"),
            ("2001 ", "2002 ", "uid"),
            (" 2001 7", " 2002 7", "gid"),
        ];
        let text = String::from_utf8(file()).unwrap();
        for (from, to, field) in table {
            let forged = text.replacen(from, to, 1);
            assert_ne!(forged, text);
            match Stamp::split(forged.as_bytes(), &key(), "group") {
                Err(Rule::Mismatch { what, .. }) => assert_eq!(what, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn strange_lines_are_no_stamps() {
        let text = String::from_utf8(file()).unwrap();
        let table = [
            String::new(),
            "\n".into(),
            text.replace(" 7 ", " +7 "),
            text.replace(" 7 ", " -7 "),
            text.replace(" 7 ", "  7 "),
            text.replace(" 7 ", " 7 7 "),
            text.replace(" 3\n", " 99999999999999999999\n"),
            text.replace('\n', " "),
            format!("{}{text}", " ".repeat(LINE_LIMIT)),
        ];
        for forged in table {
            let result = Stamp::split(forged.as_bytes(), &key(), "group");
            assert_eq!(result, Err(Rule::Stamp), "{forged}");
        }
        let (cut, longer) = (&text[..text.len() - 1], format!("{text}x"));
        for forged in [cut, &longer] {
            let result = Stamp::split(forged.as_bytes(), &key(), "group");
            assert_eq!(result, Err(Rule::Incomplete));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_ours(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Stamp::split(&bytes, &key(), "group").is_err());
        }

        #[test]
        fn a_changed_byte_never_names_another_job(at in 0_usize..48, byte in any::<u8>()) {
            let mut forged = file();
            forged[at] = byte;
            if let Ok((_, body)) = Stamp::split(&forged, &key(), "group") {
                prop_assert_eq!(body, b"a\nb");
            }
        }
    }
}
