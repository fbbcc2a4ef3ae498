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

/// One line of the table: a name, what it means, its words, and its options.
struct Entry {
    name: &'static str,
    command: Command,
    words: &'static Words,
    options: &'static [&'static str],
}

/// How many words a command has.
struct Words {
    least: usize,
    most: usize,
    needs: &'static str,
}

impl Words {
    const fn of(least: usize, most: usize, needs: &'static str) -> Self {
        Self { least, most, needs }
    }
}

/// A command of the C Shifter that needs its gateway.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Removed {
    pub name: &'static str,
    pub hint: &'static str,
}

const MANY: usize = usize::MAX;
const ANYTHING: Words = Words::of(0, MANY, "images or nothing");
const NOTHING: Words = Words::of(0, 0, "no argument");
const IMAGE: Words = Words::of(1, 1, "one image");
const IMAGES: Words = Words::of(1, MANY, "at least one image");
const PATTERN: Words = Words::of(0, 1, "at most one pattern");
const REGISTRY: Words = Words::of(0, 1, "at most one registry");
const FILE: Words = Words::of(1, 2, "a file and at most one name");

const PULL: &[&str] = &[
    "json",
    "quiet",
    "store",
    "platform",
    "login",
    "username",
    "password-stdin",
    "user",
    "group",
];
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
const LIST: &[&str] = &["json", "quiet", "digests", "filter", "store"];
const COLLECT: &[&str] = &["json", "quiet", "store", "dry-run", "older-than"];
const LOGIN: &[&str] = &["username", "password-stdin", "quiet"];

const fn entry(
    name: &'static str,
    command: Command,
    words: &'static Words,
    options: &'static [&'static str],
) -> Entry {
    Entry {
        name,
        command,
        words,
        options,
    }
}

const TABLE: [Entry; 13] = [
    entry("pull", Command::Pull, &IMAGES, PULL),
    entry("images", Command::Images, &PATTERN, LIST),
    entry("lookup", Command::Lookup, &IMAGE, &["json"]),
    entry("inspect", Command::Inspect, &IMAGES, &["format", "json"]),
    entry("rmi", Command::Remove, &IMAGES, &["store"]),
    entry("import", Command::Import, &FILE, IMPORT),
    entry("load", Command::Import, &FILE, IMPORT),
    entry("login", Command::Login, &REGISTRY, LOGIN),
    entry("logout", Command::Logout, &REGISTRY, &["quiet"]),
    entry("gc", Command::Collect, &NOTHING, COLLECT),
    entry(
        "verify",
        Command::Verify,
        &ANYTHING,
        &["json", "quiet", "store"],
    ),
    entry("help", Command::Help, &ANYTHING, &[]),
    entry("version", Command::Version, &ANYTHING, &[]),
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
        let Words { least, most, needs } = *entry.words;
        if words < least || words > most {
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
