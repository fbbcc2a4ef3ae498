//! Who runs the program, and in what environment.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is known of the user who runs the program.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The effective uid: what files belong to.
    pub uid: u32,
    /// The home directory, if HOME names one that belongs to this user.
    pub home: Option<PathBuf>,
    /// The user on whose behalf sudo started the program.
    pub sudo_uid: Option<u32>,
    /// True if sudo started the program, whatever it says of the user.
    pub is_sudo: bool,
    /// The language of messages of programs that this one starts.
    pub lang: Option<OsString>,
    /// What kind of terminal it is.
    pub term: Option<OsString>,
}

impl Caller {
    /// Reads the process and its environment.
    pub fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let sudo = std::env::var_os("SUDO_UID");
        let home = std::env::var_os("HOME").map(PathBuf::from);
        Self {
            uid,
            // sudo may keep the HOME of the one who called it.
            home: home.filter(|home| is_home_of(home, uid)),
            sudo_uid: sudo.as_ref().and_then(|text| text.to_str()?.parse().ok()),
            is_sudo: sudo.is_some(),
            lang: std::env::var_os("LANG"),
            term: std::env::var_os("TERM"),
        }
    }

    /// Returns the uid that a private image is for.
    pub fn puller(&self) -> u32 {
        self.sudo_uid.unwrap_or(self.uid)
    }
}

fn is_home_of(home: &Path, uid: u32) -> bool {
    home.is_absolute()
        && home
            .metadata()
            .is_ok_and(|meta| meta.is_dir() && meta.uid() == uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_belongs_to_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let me = rustix::process::geteuid().as_raw();
        assert!(is_home_of(dir.path(), me));
        assert!(!is_home_of(dir.path(), me + 1));
        assert!(!is_home_of(Path::new("relative"), me));
        assert!(!is_home_of(Path::new("/no/such"), me));
    }
}
