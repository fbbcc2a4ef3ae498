//! The program `shifter-config`: from the command line to an exit code.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use shifter_core::config::DEFAULT_PATH;
use shifter_core::exit::ExitCode;
use shifter_core::sanitize;
use thiserror::Error;

use crate::finding::{self, Form};
use crate::{import, judge, look, output};

const PROGRAM: &str = "shifter-config";

/// Bytes of an old configuration that are read.
const OLD_LIMIT: u64 = 16 << 20;

const HELP: &str = "\
Usage: shifter-config import [--output FILE] [--ignore-unknown] UDIROOT.CONF
       shifter-config check [--json] [SHIFTER.TOML]

Converts the configuration of a C Shifter, or judges one of this Shifter's.

import: prints the new configuration, and on standard error what could not be
carried over, why, and what to do about it.
      --output=FILE       write to FILE, which must not exist yet
      --ignore-unknown    leave out keys that the C Shifter does not have either

check: judges a configuration, /etc/shifter/shifter.toml unless told otherwise:
its form, who can change it, and whether what it names is there.
      --json              print one JSON array

  -h, --help              print this text
      --version           print the version

Exit status: 0 done, no error found; 1 error found, or a file cannot be read or
written; 2 the command line or the old configuration cannot be understood.
";

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Help,
    Version,
    Import {
        file: PathBuf,
        output: Option<PathBuf>,
        ignores_unknown: bool,
    },
    Check {
        file: PathBuf,
        form: Form,
    },
}

/// Says what is wrong with the command line.
#[derive(Debug, Error)]
enum UsageError {
    #[error(transparent)]
    Option(#[from] lexopt::Error),
    #[error("the first word is 'import' or 'check'")]
    Command,
    #[error("'import' needs one file")]
    Count,
    #[error("'check' takes one file")]
    Many,
    #[error("'{command}' has no option --{option}")]
    Misplaced {
        command: &'static str,
        option: &'static str,
    },
}

/// Runs the program with the arguments after its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match parse(args) {
        Err(error) => {
            let message = sanitize::text(&error.to_string());
            output::failure(PROGRAM, &message, Some("shifter-config --help"));
            ExitCode::Usage
        }
        Ok(Action::Help) => output::data(HELP),
        Ok(Action::Version) => {
            output::data(concat!("shifter-config ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Ok(Action::Check { file, form }) => check(&file, form),
        Ok(Action::Import {
            file,
            output,
            ignores_unknown,
        }) => import(&file, output.as_deref(), ignores_unknown),
    }
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Action, UsageError> {
    let mut parser = lexopt::Parser::from_args(args);
    let (mut command, mut files) = (None, Vec::new());
    let (mut output, mut ignores_unknown, mut is_json) = (None, false, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('h') | Long("help") => return Ok(Action::Help),
            Long("version") => return Ok(Action::Version),
            Long("output") => output = Some(PathBuf::from(parser.value()?)),
            Long("ignore-unknown") => ignores_unknown = true,
            Long("json") => is_json = true,
            Value(word) if command.is_none() => command = Some(word),
            Value(file) => files.push(PathBuf::from(file)),
            other => return Err(other.unexpected().into()),
        }
    }
    let misplaced = |command, given: &[(bool, &'static str)]| {
        let wrong = given.iter().find(|(is_given, _)| *is_given);
        wrong.map(|(_, option)| UsageError::Misplaced { command, option })
    };
    match command.as_deref().and_then(|word| word.to_str()) {
        Some("import") => match (misplaced("import", &[(is_json, "json")]), files.pop()) {
            (Some(error), _) => Err(error),
            (None, Some(file)) if files.is_empty() => Ok(Action::Import {
                file,
                output,
                ignores_unknown,
            }),
            _ => Err(UsageError::Count),
        },
        Some("check") => {
            let given = [
                (output.is_some(), "output"),
                (ignores_unknown, "ignore-unknown"),
            ];
            let file = files.pop().unwrap_or_else(|| DEFAULT_PATH.into());
            let form = if is_json { Form::Json } else { Form::Lines };
            match misplaced("check", &given) {
                Some(error) => Err(error),
                None if files.is_empty() => Ok(Action::Check { file, form }),
                None => Err(UsageError::Many),
            }
        }
        _ => Err(UsageError::Command),
    }
}

fn check(file: &Path, form: Form) -> ExitCode {
    let path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let findings = judge::file(&path);
    match output::data(&finding::render(&findings, form)) {
        ExitCode::Success => finding::exit_code(&findings),
        failed => failed,
    }
}

fn import(file: &Path, output: Option<&Path>, ignores_unknown: bool) -> ExitCode {
    let name = sanitize::text(&file.to_string_lossy());
    let bytes = match look::read(file, OLD_LIMIT) {
        Ok(bytes) => bytes,
        Err(error) => {
            let message = format!("cannot read '{name}': {error}");
            output::failure(PROGRAM, &message, None);
            return ExitCode::Internal;
        }
    };
    let options = import::Options {
        ignores_unknown,
        prefix: own_prefix(),
    };
    let imported = match import::import(&bytes, &name, &options) {
        Ok(imported) => imported,
        Err(error) => {
            output::failure(PROGRAM, &error.to_string(), error.hint());
            return match error {
                import::ImportError::Unverified(_) => ExitCode::Internal,
                _ => ExitCode::Usage,
            };
        }
    };
    let code = match output {
        None => output::data(&imported.toml),
        Some(path) => match write_new(path, &imported.toml) {
            Ok(()) => ExitCode::Success,
            Err(error) => {
                let path = sanitize::text(&path.to_string_lossy());
                let hint = (error.kind() == io::ErrorKind::AlreadyExists)
                    .then_some("write to another file, compare the two, and move it there");
                let message = format!("cannot write '{path}': {error}");
                output::failure(PROGRAM, &message, hint);
                return ExitCode::Internal;
            }
        },
    };
    for remark in &imported.remarks {
        output::note(&format!(
            "{name}:{}: {}: {}",
            remark.line, remark.key, remark.text
        ));
    }
    code
}

/// Returns the prefix below which this program is installed, if it is.
fn own_prefix() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let dir = program.parent()?;
    let is_installed = dir.file_name()? == "sbin" && program.file_name()? == PROGRAM;
    is_installed.then(|| dir.parent().map(Path::to_owned))?
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .inspect_err(|_| {
            // Half a configuration is none, and would be in the next one's way.
            let _ = std::fs::remove_file(path);
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(line: &str) -> Result<Action, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn command_lines() {
        let table = [
            ("", Err("the first word is 'import' or 'check'")),
            ("export x", Err("the first word is 'import' or 'check'")),
            ("import", Err("'import' needs one file")),
            ("import a b", Err("'import' needs one file")),
            ("import --json a", Err("'import' has no option --json")),
            ("check --output=x", Err("'check' has no option --output")),
            ("check a b", Err("'check' takes one file")),
            ("check --wat", Err("invalid option '--wat'")),
            ("check x --help", Ok(Action::Help)),
            ("--version", Ok(Action::Version)),
            (
                "check",
                Ok(Action::Check {
                    file: DEFAULT_PATH.into(),
                    form: Form::Lines,
                }),
            ),
            (
                "--json check -- -x",
                Ok(Action::Check {
                    file: "-x".into(),
                    form: Form::Json,
                }),
            ),
            (
                "import --output o --ignore-unknown i",
                Ok(Action::Import {
                    file: "i".into(),
                    output: Some("o".into()),
                    ignores_unknown: true,
                }),
            ),
        ];
        for (text, expect) in table {
            assert_eq!(line(text), expect.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_there_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        write_new(&path, "a").unwrap();
        let error = write_new(&path, "b").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"a");
    }
}
