//! The command line: options exactly as typed, and the help text.
//!
//! Nothing is judged here but the form; references are parsed when the configuration is known.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::prelude::*;
use thiserror::Error;

use crate::store::StoreKind;

/// What `--help` prints.
pub(super) const HELP: &str = "\
Pulls container images and finds them in the image stores.

usage: shifterimg [--config FILE] COMMAND

commands:
  pull [--quiet] [--json] [--store site|user] IMAGE...
          pull images from their registries
  lookup [--json] IMAGE
          print the id of an image
  images [--json]
          list the images that you may use
  rmi [--store site|user] IMAGE...
          remove tags, and images without any tag left

options:
  --config FILE       read FILE instead of /etc/shifter/shifter.toml
  --store site|user   use the site's store, or your own in ~/.shifter
  --quiet             print no progress and no result
  --json              print one JSON object per image
  --help, --version

IMAGE is [TYPE:][HOST[:PORT]/]NAME[:TAG][@DIGEST] or id:ID.

exit status: 0 done, 2 wrong usage, 3 denied, 4 no such image or not usable,
7 the registry failed, 1 anything else
";

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// The configuration to read instead of the usual one.
    pub config: Option<PathBuf>,
    /// What to do.
    pub command: Command,
    /// Print JSON.
    pub json: bool,
    /// Print nothing but data and errors.
    pub quiet: bool,
    /// The store to use.
    pub store: Option<StoreKind>,
    /// The images, as typed.
    pub images: Vec<String>,
}

/// The commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Version,
    Pull,
    Lookup,
    Images,
    Remove,
}

/// Says what is wrong with the command line.
#[derive(Debug, Error)]
pub(super) enum UsageError {
    /// An option that does not exist, or one without its value.
    #[error(transparent)]
    Option(#[from] lexopt::Error),
    /// The first word is not a command.
    #[error("there is no command '{}'", shifter_core::sanitize::text(.0))]
    Command(String),
    /// No command at all.
    #[error("a command is missing")]
    NoCommand,
    /// An option that the command does not have.
    #[error("'{command}' has no option --{option}")]
    Misplaced {
        /// The command.
        command: &'static str,
        /// The option.
        option: &'static str,
    },
    /// A store that does not exist.
    #[error("--store is 'site' or 'user', not '{}'", shifter_core::sanitize::text(.0))]
    Store(String),
    /// The command needs another number of images.
    #[error("'{command}' needs {needs}")]
    Count {
        /// The command.
        command: &'static str,
        /// How many it needs.
        needs: &'static str,
    },
}

impl Options {
    /// Parses the arguments after the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut parser = lexopt::Parser::from_args(args);
        let (mut config, mut store, mut name) = (None, None, None);
        let (mut json, mut quiet, mut images) = (false, false, Vec::new());
        while let Some(arg) = parser.next()? {
            match arg {
                Short('h') | Long("help") => return Ok(Self::bare(Command::Help)),
                Short('V') | Long("version") => return Ok(Self::bare(Command::Version)),
                Long("config") => config = Some(PathBuf::from(parser.value()?)),
                Long("json") => json = true,
                Short('q') | Long("quiet") => quiet = true,
                Long("store") => {
                    let word = parser.value()?.string()?;
                    store = Some(match word.as_str() {
                        "site" => StoreKind::Site,
                        "user" => StoreKind::User,
                        _ => return Err(UsageError::Store(word)),
                    });
                }
                Value(word) if name.is_none() => name = Some(word.string()?),
                Value(image) => images.push(image.string()?),
                other => return Err(other.unexpected().into()),
            }
        }
        let command = match name.ok_or(UsageError::NoCommand)?.as_str() {
            "help" => return Ok(Self::bare(Command::Help)),
            "version" => return Ok(Self::bare(Command::Version)),
            "pull" => Command::Pull,
            "lookup" => Command::Lookup,
            "images" => Command::Images,
            "rmi" => Command::Remove,
            other => return Err(UsageError::Command(other.to_owned())),
        };
        let options = Self {
            config,
            command,
            json,
            quiet,
            store,
            images,
        };
        options.check()?;
        Ok(options)
    }

    fn bare(command: Command) -> Self {
        let (config, store, images) = (None, None, Vec::new());
        Self {
            config,
            command,
            json: false,
            quiet: false,
            store,
            images,
        }
    }

    /// Checks that the command has these options and that many images.
    fn check(&self) -> Result<(), UsageError> {
        let (command, has_json, has_quiet, has_store) = match self.command {
            Command::Help | Command::Version => return Ok(()),
            Command::Pull => ("pull", true, true, true),
            Command::Lookup => ("lookup", true, false, false),
            Command::Images => ("images", true, false, false),
            Command::Remove => ("rmi", false, false, true),
        };
        let given = [
            (self.json, has_json, "json"),
            (self.quiet, has_quiet, "quiet"),
            (self.store.is_some(), has_store, "store"),
        ];
        if let Some((.., option)) = given.into_iter().find(|(given, has, _)| *given && !has) {
            return Err(UsageError::Misplaced { command, option });
        }
        let needs = match (self.command, self.images.len()) {
            (Command::Lookup, 1) | (Command::Images, 0) => return Ok(()),
            (Command::Pull | Command::Remove, 1..) => return Ok(()),
            (Command::Lookup, _) => "one image",
            (Command::Images, _) => "no image",
            _ => "at least one image",
        };
        Err(UsageError::Count { command, needs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let words = line.split_whitespace().map(OsString::from);
        Options::parse(words).map_err(|error| error.to_string())
    }

    #[test]
    fn command_lines() {
        let pull = parse("--config /c pull --quiet a --store=site b --json").unwrap();
        assert_eq!(pull.config, Some("/c".into()));
        assert_eq!(
            (pull.command, pull.store),
            (Command::Pull, Some(StoreKind::Site))
        );
        assert!(pull.json && pull.quiet);
        assert_eq!(pull.images, ["a", "b"]);
        assert_eq!(parse("lookup id:x").unwrap().command, Command::Lookup);
        assert_eq!(parse("pull x --help").unwrap().command, Command::Help);
        assert_eq!(parse("-V").unwrap().command, Command::Version);
        assert_eq!(parse("rmi -- -x").unwrap().images, ["-x"]);

        let table = [
            ("", "a command is missing"),
            ("push x", "there is no command 'push'"),
            ("pull", "'pull' needs at least one image"),
            ("lookup a b", "'lookup' needs one image"),
            ("images a", "'images' needs no image"),
            ("lookup --store user a", "'lookup' has no option --store"),
            ("images --quiet", "'images' has no option --quiet"),
            ("rmi --json a", "'rmi' has no option --json"),
            (
                "pull --store elsewhere a",
                "--store is 'site' or 'user', not 'elsewhere'",
            ),
            ("pull --stroe user a", "invalid option '--stroe'"),
            ("pull --config", "missing argument for option '--config'"),
        ];
        for (line, expect) in table {
            assert_eq!(parse(line).unwrap_err(), expect, "{line}");
        }
    }

    #[test]
    fn help_names_every_option() {
        for word in [
            "--config", "--store", "--quiet", "--json", "pull", "lookup", "images", "rmi",
        ] {
            assert!(HELP.contains(word), "{word}");
        }
    }
}
