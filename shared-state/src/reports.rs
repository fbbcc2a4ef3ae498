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
