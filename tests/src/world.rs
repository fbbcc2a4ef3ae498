//! The world that `tests/world.sh` makes: its users and places.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A user of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// An ordinary user, also in the group proj.
    Alice,
    /// Another ordinary user.
    Bob,
    /// The owner of the site's image store.
    Shifter,
}

impl User {
    /// Everybody of whom no process may be left after a job.
    pub const ALL: [User; 3] = [User::Alice, User::Bob, User::Shifter];

    /// Returns the login name.
    pub fn name(self) -> &'static str {
        match self {
            User::Alice => "alice",
            User::Bob => "bob",
            User::Shifter => "shifter",
        }
    }

    /// Returns the numeric user id.
    pub fn uid(self) -> u32 {
        match self {
            User::Alice => 2001,
            User::Bob => 2002,
            User::Shifter => 2900,
        }
    }

    /// Returns the numeric id of the primary group.
    pub fn gid(self) -> u32 {
        self.uid()
    }

    /// Returns a directory that the user owns on the file system all nodes share.
    pub fn scratch(self) -> PathBuf {
        match self {
            User::Shifter => PathBuf::from("/"),
            user => Path::new("/scratch").join(user.name()),
        }
    }
}

/// Fails outside a world: what follows would change the machine itself.
pub fn require() -> Result<()> {
    if std::env::var_os("SHIFTER_WORLD").is_none() {
        bail!("this runs only in a world of its own: tests/world.sh COMMAND");
    }
    Ok(())
}

/// Returns the checkout.
pub fn checkout() -> PathBuf {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member).to_owned()
}

/// Returns the directory of everything that is built.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => checkout().join(dir),
        None => checkout().join("target"),
    }
}
