//! The command line: options exactly as typed, and the help text.
//!
//! Nothing is judged here but the form; references are parsed when the configuration is known.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::prelude::*;
use thiserror::Error;

use super::command::{Command, Removed};
use crate::import::SourceFormat;
use crate::store::StoreKind;

/// What `--help` prints.
pub(super) const HELP: &str = "\
Pulls container images, and manages the image stores.

usage: shifterimg [OPTIONS] COMMAND [ARGUMENT...]

commands:
  pull IMAGE...             pull images from their registries
  images [PATTERN]          list the images that you may use
  lookup IMAGE              print the id of an image
  inspect IMAGE...          print all that is known of images, as JSON
  rmi IMAGE...              remove tags, and images without any tag left
  import FILE [NAME]        take an image from a file: an archive of docker's or
                            OCI's, an OCI layout, a root file system as a tar,
                            a squashfs file; '-' is standard input
  load FILE [NAME]          the same
  login [REGISTRY]          check a login and keep it
  logout [REGISTRY]         forget a login
  gc                        remove what is not used any more
  verify [IMAGE...]         compare the store's files with their digests

options for pull:
  --platform OS/ARCH[/VARIANT]  take the image for this platform
  --login                   ask for a user name and a password for this pull
  -u, --username NAME       the user name
  --password-stdin          read the password from standard input
options for pull and import:
  --user NAME,...           let these users have an image that not everybody may have;
                            an imported one is then no longer everybody's
  --group NAME,...          the same for groups
options for images:
  --digests                 print whole digests
  --filter KEY=VALUE        reference=PATTERN, store=site|user, dangling=true|false,
                            label=NAME[=VALUE]; may be repeated
options for inspect:
  --format TEXT             replace {{.key.key}} and {{json .key}} in TEXT
options for import:
  --source-format FORMAT    docker-archive, oci-archive, oci, tar or squashfs
  --select NAME             the image of this name, where FILE has several
options for login:
  -u, --username NAME, --password-stdin
options for gc:
  --older-than DAYS         how long images without a tag are kept: 7
  --dry-run                 only say what would be removed
options for all:
  --store site|user         use the site's store, or your own in ~/.shifter
  --centralized-repository  the same as --store site
  --json                    print JSON, one object per line
  -q, --quiet               print no progress and no result
  -v, --verbose             say what is done
  --config FILE             read FILE instead of /etc/shifter/shifter.toml
  -h, --help, -V, --version

IMAGE is [TYPE:][HOST[:PORT]/]NAME[:TAG][@DIGEST] or id:ID.

exit status: 0 done, 2 wrong usage, 3 denied, 4 no such image or not usable,
6 the store is not its owner's alone, 7 the registry failed, 1 anything else;
130 and 143 after Ctrl-C and SIGTERM
";

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// What to do.
    pub command: Command,
    /// Images, files or a registry, as typed.
    pub words: Vec<String>,
    /// The configuration to read instead of the usual one.
    pub config: Option<PathBuf>,
    /// The store to use.
    pub store: Option<StoreKind>,
    /// Print JSON.
    pub json: bool,
    /// Print nothing but data and errors.
    pub quiet: bool,
    /// Say what is done.
    pub verbose: bool,
    /// `os/architecture[/variant]`.
    pub platform: Option<String>,
    /// Ask for a login.
    pub login: bool,
    /// The login's user.
    pub username: Option<String>,
    /// Read the login's password from standard input.
    pub password_stdin: bool,
    /// Who may have the image: names or numbers.
    pub users: Vec<String>,
    /// Which groups may have the image: names or numbers.
    pub groups: Vec<String>,
    /// Print whole digests.
    pub digests: bool,
    /// What to list.
    pub filters: Vec<String>,
    /// What to print of an image.
    pub format: Option<String>,
    /// What the imported file is.
    pub source_format: Option<SourceFormat>,
    /// Which image of an archive.
    pub select: Option<String>,
    /// Change nothing.
    pub dry_run: bool,
    /// Days for which an image without a tag is kept.
    pub older_than: Option<u32>,
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
    /// A command of the C Shifter that is not there any more.
    #[error("'{}' is a command of the image gateway", .0.name)]
    Removed(&'static Removed),
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
    /// A value that an option cannot have.
    #[error(
        "--{option} is {wanted}, not '{}'",
        shifter_core::sanitize::text(found)
    )]
    Value {
        /// The option.
        option: &'static str,
        /// What it can be.
        wanted: &'static str,
        /// What it was.
        found: String,
    },
    /// A password of nobody.
    #[error("--password-stdin needs --username")]
    NoUsername,
    /// The command needs another number of words.
    #[error("'{command}' needs {needs}")]
    Count {
        /// The command.
        command: &'static str,
        /// How many it needs.
        needs: &'static str,
    },
}

impl UsageError {
    /// Returns a known way out.
    pub fn hint(&self) -> String {
        match self {
            Self::Removed(removed) => removed.hint.into(),
            Self::Command(word) if word.ends_with(".toml") => "--config FILE".into(),
            _ => "shifterimg --help".into(),
        }
    }
}

impl Options {
    /// Parses the arguments after the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut parser = lexopt::Parser::from_args(args);
        let mut options = Self::default();
        let mut name = None;
        // By the options' names, to compare with what the command has.
        let mut given: Vec<&'static str> = Vec::new();
        while let Some(arg) = parser.next()? {
            match arg {
                Short('h') | Long("help") => return Ok(Self::bare(Command::Help)),
                Short('V') | Long("version") => return Ok(Self::bare(Command::Version)),
                Long("config") => options.config = Some(PathBuf::from(parser.value()?)),
                Long("json") => {
                    options.json = true;
                    given.push("json");
                }
                Short('q') | Long("quiet") => {
                    options.quiet = true;
                    given.push("quiet");
                }
                Short('v') | Long("verbose") => options.verbose = true,
                Long("store") => {
                    options.store = Some(store(parser.value()?.string()?)?);
                    given.push("store");
                }
                Long("centralized-repository") => {
                    options.store = Some(StoreKind::Site);
                    given.push("store");
                }
                Long("platform") => {
                    options.platform = Some(parser.value()?.string()?);
                    given.push("platform");
                }
                Long("login") => {
                    options.login = true;
                    given.push("login");
                }
                Short('u') | Long("username") => {
                    options.username = Some(parser.value()?.string()?);
                    given.push("username");
                }
                Long("password-stdin") => {
                    options.password_stdin = true;
                    given.push("password-stdin");
                }
                Long("user") => {
                    options.users.extend(list(&parser.value()?.string()?));
                    given.push("user");
                }
                Long("group") => {
                    options.groups.extend(list(&parser.value()?.string()?));
                    given.push("group");
                }
                Long("digests") => {
                    options.digests = true;
                    given.push("digests");
                }
                Long("filter") => {
                    options.filters.push(parser.value()?.string()?);
                    given.push("filter");
                }
                Long("format") => {
                    options.format = Some(parser.value()?.string()?);
                    given.push("format");
                }
                Long("source-format") => {
                    let found = parser.value()?.string()?;
                    options.source_format =
                        Some(SourceFormat::parse(&found).ok_or(UsageError::Value {
                            option: "source-format",
                            wanted: "docker-archive, oci-archive, oci, tar or squashfs",
                            found,
                        })?);
                    given.push("source-format");
                }
                Long("select") => {
                    options.select = Some(parser.value()?.string()?);
                    given.push("select");
                }
                Long("dry-run") => {
                    options.dry_run = true;
                    given.push("dry-run");
                }
                Long("older-than") => {
                    let found = parser.value()?.string()?;
                    options.older_than = Some(found.parse().map_err(|_| UsageError::Value {
                        option: "older-than",
                        wanted: "a number of days",
                        found,
                    })?);
                    given.push("older-than");
                }
                Value(word) if name.is_none() => name = Some(word.string()?),
                Value(word) => options.words.push(word.string()?),
                other => return Err(other.unexpected().into()),
            }
        }
        options.command = Command::find(&name.ok_or(UsageError::NoCommand)?)?;
        options.command.check(&given, options.words.len())?;
        options.check_login()?;
        Ok(options)
    }

    fn bare(command: Command) -> Self {
        Self {
            command,
            ..Self::default()
        }
    }

    /// Checks what options say of one another.
    fn check_login(&self) -> Result<(), UsageError> {
        match self.password_stdin && self.username.is_none() {
            true => Err(UsageError::NoUsername),
            false => Ok(()),
        }
    }

    /// True if a login is to be used that is not in the user's files.
    pub fn wants_login(&self) -> bool {
        self.login || self.username.is_some()
    }
}

fn store(word: String) -> Result<StoreKind, UsageError> {
    match word.as_str() {
        "site" => Ok(StoreKind::Site),
        "user" => Ok(StoreKind::User),
        _ => Err(UsageError::Value {
            option: "store",
            wanted: "'site' or 'user'",
            found: word,
        }),
    }
}

/// Splits at commas; empty parts count as nothing.
fn list(text: &str) -> impl Iterator<Item = String> {
    let parts = text.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).map(String::from)
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
        assert_eq!(pull.words, ["a", "b"]);
        assert_eq!(parse("lookup id:x").unwrap().command, Command::Lookup);
        assert_eq!(parse("pull x --help").unwrap().command, Command::Help);
        assert_eq!(parse("-V").unwrap().command, Command::Version);
        assert_eq!(parse("rmi -- -x").unwrap().words, ["-x"]);
        // As users of the C Shifter and of Sarus write it.
        let shared = parse("--user alice,2002 --group proj, pull docker:x:1").unwrap();
        assert_eq!(shared.users, ["alice", "2002"]);
        assert_eq!(shared.groups, ["proj"]);
        let load = parse("load --centralized-repository --source-format=docker-archive f.tar a:1");
        let load = load.unwrap();
        assert_eq!(
            (load.command, load.store),
            (Command::Import, Some(StoreKind::Site))
        );
        assert_eq!(load.source_format, Some(SourceFormat::DockerArchive));
        assert!(
            parse("pull -u alice --password-stdin x")
                .unwrap()
                .wants_login()
        );
    }

    #[test]
    fn mistakes() {
        let table = [
            ("", "a command is missing"),
            ("push x", "there is no command 'push'"),
            ("pullnb x", "'pullnb' is a command of the image gateway"),
            ("expire x", "'expire' is a command of the image gateway"),
            ("pull", "'pull' needs at least one image"),
            ("lookup a b", "'lookup' needs one image"),
            ("images a b", "'images' needs at most one pattern"),
            ("import", "'import' needs a file and at most one name"),
            ("login a b", "'login' needs at most one registry"),
            ("gc x", "'gc' needs no argument"),
            ("lookup --store user a", "'lookup' has no option --store"),
            ("rmi --json a", "'rmi' has no option --json"),
            ("gc --platform x", "'gc' has no option --platform"),
            ("images --login", "'images' has no option --login"),
            (
                "pull --store elsewhere a",
                "--store is 'site' or 'user', not 'elsewhere'",
            ),
            (
                "gc --older-than week",
                "--older-than is a number of days, not 'week'",
            ),
            (
                "pull --password-stdin x",
                "--password-stdin needs --username",
            ),
            ("pull --stroe user a", "invalid option '--stroe'"),
            ("pull --config", "missing argument for option '--config'"),
        ];
        for (line, expect) in table {
            assert_eq!(parse(line).unwrap_err(), expect, "{line}");
        }
    }

    #[test]
    fn help_names_every_command() {
        for name in Command::names() {
            assert!(HELP.contains(&format!("\n  {name} ")), "{name}");
        }
    }
}
