//! The commands: their names, and which options and how many words each has.

use super::args::UsageError;

/// What the program can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Command {
    #[default]
    Help,
    Version,
    Pull,
    Images,
    Lookup,
    Inspect,
    Remove,
    Import,
    Login,
    Logout,
    Collect,
    Verify,
}

/// One line of the table: a name, what it means, its options, and its words.
struct Entry {
    name: &'static str,
    command: Command,
    options: &'static [&'static str],
    words: (usize, usize),
    needs: &'static str,
}

/// A command of the C Shifter that needs its gateway.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Removed {
    pub name: &'static str,
    pub hint: &'static str,
}

const MANY: usize = usize::MAX;
const IMPORT: &[&str] = &[
    "json",
    "quiet",
    "store",
    "source-format",
    "select",
    "user",
    "group",
    "platform",
];

const TABLE: [Entry; 13] = [
    Entry {
        name: "pull",
        command: Command::Pull,
        options: &[
            "json",
            "quiet",
            "store",
            "platform",
            "login",
            "username",
            "password-stdin",
            "user",
            "group",
        ],
        words: (1, MANY),
        needs: "at least one image",
    },
    Entry {
        name: "images",
        command: Command::Images,
        options: &["json", "quiet", "digests", "filter", "store"],
        words: (0, 1),
        needs: "at most one pattern",
    },
    Entry {
        name: "lookup",
        command: Command::Lookup,
        options: &["json"],
        words: (1, 1),
        needs: "one image",
    },
    Entry {
        name: "inspect",
        command: Command::Inspect,
        options: &["format", "json"],
        words: (1, MANY),
        needs: "at least one image",
    },
    Entry {
        name: "rmi",
        command: Command::Remove,
        options: &["store"],
        words: (1, MANY),
        needs: "at least one image",
    },
    Entry {
        name: "import",
        command: Command::Import,
        options: IMPORT,
        words: (1, 2),
        needs: "a file and at most one name",
    },
    Entry {
        name: "load",
        command: Command::Import,
        options: IMPORT,
        words: (1, 2),
        needs: "a file and at most one name",
    },
    Entry {
        name: "login",
        command: Command::Login,
        options: &["username", "password-stdin", "quiet"],
        words: (0, 1),
        needs: "at most one registry",
    },
    Entry {
        name: "logout",
        command: Command::Logout,
        options: &["quiet"],
        words: (0, 1),
        needs: "at most one registry",
    },
    Entry {
        name: "gc",
        command: Command::Collect,
        options: &["json", "quiet", "store", "dry-run", "older-than"],
        words: (0, 0),
        needs: "no argument",
    },
    Entry {
        name: "verify",
        command: Command::Verify,
        options: &["json", "quiet", "store"],
        words: (0, MANY),
        needs: "images or nothing",
    },
    Entry {
        name: "help",
        command: Command::Help,
        options: &[],
        words: (0, MANY),
        needs: "",
    },
    Entry {
        name: "version",
        command: Command::Version,
        options: &[],
        words: (0, MANY),
        needs: "",
    },
];

/// Requests to the C Shifter's image gateway, and what to do instead.
const REMOVED: [Removed; 3] = [
    Removed {
        name: "pullnb",
        hint: "shifterimg pull --quiet IMAGE &",
    },
    Removed {
        name: "expire",
        hint: "shifterimg rmi IMAGE",
    },
    Removed {
        name: "autoexpire",
        hint: "shifterimg gc",
    },
];

impl Command {
    /// Finds a command by its name.
    pub fn find(name: &str) -> Result<Self, UsageError> {
        if let Some(entry) = TABLE.iter().find(|entry| entry.name == name) {
            return Ok(entry.command);
        }
        Err(match REMOVED.iter().find(|removed| removed.name == name) {
            Some(removed) => UsageError::Removed(removed),
            None => UsageError::Command(name.to_owned()),
        })
    }

    /// Checks that the command has these options and that many words.
    pub fn check(self, given: &[&'static str], words: usize) -> Result<(), UsageError> {
        let Some(entry) = TABLE.iter().find(|entry| entry.command == self) else {
            return Ok(());
        };
        let command = entry.name;
        if let Some(option) = given.iter().find(|option| !entry.options.contains(option)) {
            return Err(UsageError::Misplaced { command, option });
        }
        let (least, most) = entry.words;
        if words < least || words > most {
            let needs = entry.needs;
            return Err(UsageError::Count { command, needs });
        }
        Ok(())
    }

    /// Returns the names of all commands that do something with images.
    #[cfg(test)]
    pub fn names() -> impl Iterator<Item = &'static str> {
        let names = TABLE.iter().map(|entry| entry.name);
        names.filter(|name| !["help", "version"].contains(name))
    }
}
