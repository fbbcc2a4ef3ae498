//! Files in which the nodes of a job report to its launch node, for fan-out tools that pass on no
//! output.
//!
//! ```text
//! <cluster>/.reports-<word>/<name>   one for each node; what it says is in its name where that is enough
//! ```
//!
//! They belong to nobody but whoever made the word, which no two fan-outs have in common. What a
//! launch node that died has left is swept with the rest.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::dirs;
use crate::error::{Context, Error, Result};
use crate::stamp::Key;
use crate::state::SharedState;

/// Bytes of one report.
const REPORT_LIMIT: usize = 4 << 10;

/// Bytes that the name of a report may have.
const NAME_LIMIT: usize = 255;

impl SharedState {
    /// Makes the place for the reports of one fan-out.
    pub fn make_reports(&self, key: &Key, word: &str) -> Result<()> {
        self.as_owner(|| {
            let cluster = self.make_cluster(key)?;
            let name = place(word)?;
            dirs::make(&cluster, &name).step("create", &name)
        })
    }

    /// Leaves a report.
    ///
    /// # Errors
    /// [`Error::Step`] if the launch node does not wait for it any more, and has removed the place.
    pub fn leave_report(&self, key: &Key, word: &str, name: &str, text: &str) -> Result<()> {
        if !(1..=NAME_LIMIT).contains(&name.len()) || name.contains('/') || name.starts_with('.') {
            return Err(Error::File(name.to_owned()));
        }
        self.as_owner(|| {
            let place = self.reports_dir(key, word)?.ok_or(Errno::NOENT);
            let place = place.step("open", name)?;
            let parts = [text.as_bytes()];
            let parts = if text.is_empty() { &[][..] } else { &parts[..] };
            dirs::create(&place, name, parts).step("write", name)
        })
    }

    /// Returns the names of at most `limit` reports.
    pub fn reports(&self, key: &Key, word: &str, limit: usize) -> Result<Vec<String>> {
        self.as_owner(|| match self.reports_dir(key, word)? {
            Some(place) => dirs::list(&place, "reports", limit),
            None => Ok(Vec::new()),
        })
    }

    /// Reads a report; nothing if it is not there.
    pub fn read_report(&self, key: &Key, word: &str, name: &str) -> Result<Option<Vec<u8>>> {
        self.as_owner(|| match self.reports_dir(key, word)? {
            Some(place) => dirs::read(&place, name, self.owner, REPORT_LIMIT),
            None => Ok(None),
        })
    }

    /// Removes the place with all reports.
    pub fn remove_reports(&self, key: &Key, word: &str) -> Result<()> {
        self.as_owner(|| match self.cluster(key)? {
            Some(cluster) => dirs::remove(&cluster, &place(word)?),
            None => Ok(()),
        })
    }

    fn reports_dir(&self, key: &Key, word: &str) -> Result<Option<OwnedFd>> {
        match self.cluster(key)? {
            Some(cluster) => dirs::open(&cluster, &place(word)?, self.owner),
            None => Ok(None),
        }
    }
}

fn place(word: &str) -> Result<String> {
    let well_formed =
        (1..=64).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric());
    if well_formed {
        Ok(format!(".reports-{word}"))
    } else {
        Err(Error::File(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::Rule;
    use crate::stamp::tests::key;
    use crate::tests::Site;

    #[test]
    fn what_nodes_leave_the_launch_node_finds() {
        let site = Site::new();
        let (launch, node) = (site.node(), site.node());
        launch.make_reports(&key(), "7f").unwrap();
        assert!(launch.make_reports(&key(), "7f").is_err(), "another's");
        node.leave_report(&key(), "7f", "7f:n1:ok", "").unwrap();
        node.leave_report(&key(), "7f", "7f:n2:fail", "why")
            .unwrap();
        let mut names = launch.reports(&key(), "7f", 9).unwrap();
        names.sort_unstable();
        assert_eq!(names, ["7f:n1:ok", "7f:n2:fail"]);
        let read = |name| launch.read_report(&key(), "7f", name).unwrap();
        assert_eq!(read("7f:n1:ok").as_deref(), Some(&b""[..]));
        assert_eq!(read("7f:n2:fail").as_deref(), Some(&b"why"[..]));
        assert_eq!(read("7f:n3:ok"), None);
        assert_eq!(launch.reports(&key(), "80", 9).unwrap(), [""; 0]);
        launch.remove_reports(&key(), "7f").unwrap();
        launch.remove_reports(&key(), "7f").unwrap();
        assert!(site.names().is_empty());
    }

    #[test]
    fn nobody_reports_where_nobody_listens_any_more() {
        let site = Site::new();
        let state = site.node();
        let leave = || state.leave_report(&key(), "7f", "n1", "");
        assert!(matches!(leave(), Err(Error::Step { .. })));
        state.make_reports(&key(), "7f").unwrap();
        leave().unwrap();
        assert!(
            matches!(leave(), Err(Error::Step { .. })),
            "the first counts"
        );
        state.remove_reports(&key(), "7f").unwrap();
        assert!(matches!(leave(), Err(Error::Step { .. })));
        assert!(site.names().is_empty());
    }

    #[test]
    fn a_launch_node_that_dies_leaves_its_place_to_the_sweepers() {
        let site = Site::new();
        let state = site.node();
        state.make_reports(&key(), "7f").unwrap();
        state.leave_report(&key(), "7f", "n1", "").unwrap();
        state.sweep().unwrap();
        assert_eq!(site.names(), [".reports-7f"]);
        site.let_pass(10_000_000);
        state.sweep().unwrap();
        assert!(site.names().is_empty());
    }

    #[test]
    fn words_and_names_lead_nowhere_else() {
        let site = Site::new();
        let state = site.node();
        for word in ["", "..", "a/b", ".x", "a b", &"a".repeat(65)] {
            assert!(state.make_reports(&key(), word).is_err(), "{word:?}");
        }
        state.make_reports(&key(), "7f").unwrap();
        for name in ["", "..", ".x", "a/b", "../x", &"a".repeat(256)] {
            let refused = state.leave_report(&key(), "7f", name, "");
            assert!(matches!(refused, Err(Error::File(_))), "{name:?}");
        }
        assert_eq!(state.reports(&key(), "7f", 9).unwrap(), [""; 0]);
    }

    #[test]
    fn what_the_owner_has_not_written_is_no_report() {
        let site = Site::new();
        let state = site.node();
        state.make_reports(&key(), "7f").unwrap();
        let place = site.path(".reports-7f");
        let write = |name: &str, bytes: &[u8], mode| {
            fs::write(place.join(name), bytes).unwrap();
            fs::set_permissions(place.join(name), Permissions::from_mode(mode)).unwrap();
        };
        write("open", b"", 0o644);
        write("long", &[b'x'; REPORT_LIMIT + 1], 0o600);
        symlink("/etc/passwd", place.join("link")).unwrap();
        let rule = |name| match state.read_report(&key(), "7f", name) {
            Err(Error::Refused { rule, .. }) => rule,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(rule("open"), Rule::Mode(0o644));
        assert_eq!(rule("long"), Rule::Size);
        assert_eq!(rule("link"), Rule::Kind("regular file"));
        // More than a job has nodes are not even listed.
        assert!(matches!(
            state.reports(&key(), "7f", 2),
            Err(Error::Refused {
                rule: Rule::Size,
                ..
            })
        ));
        symlink(&place, site.path(".reports-80")).unwrap();
        let refused = state.leave_report(&key(), "80", "n1", "");
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    }
}
