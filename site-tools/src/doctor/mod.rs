//! `shifter doctor`: is this node fit to run containers?
//!
//! Run by an administrator, a health check, or a user; each sees what the kernel lets them see.

mod apart;
mod kernel;
mod plugstack;
mod programs;
mod slurm;
mod state;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::exit::ExitCode;
use shifter_core::sanitize;

use crate::finding::{self, Form};
use crate::{judge, look, output};

const PROGRAM: &str = "shifter doctor";

const HELP: &str = "\
Usage: shifter doctor [--json | --nhc]

Says whether this node is fit to run containers: its kernel, the configuration
and what it names, the installed programs, the image store, what earlier jobs
left, and Slurm's plugin stack. Run it as root to have everything checked.

      --json     print one JSON array
      --nhc      print nothing if all is well, else one line 'ERROR ...', as
                 Node Health Check has it
  -h, --help     print this text

Exit status: 0 no error found, 1 an error found, 2 wrong usage.
";

/// Runs the program with the arguments after its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match parse(args) {
        Err(error) => {
            let message = sanitize::text(&error.to_string());
            output::failure(PROGRAM, &message, Some("shifter doctor --help"));
            ExitCode::Usage
        }
        Ok(None) => output::data(HELP),
        Ok(Some(Asked::Examination)) => {
            look::announce(apart::at);
            examine();
            ExitCode::Success
        }
        Ok(Some(Asked::Report(form))) => {
            let findings = apart::findings();
            match output::data(&finding::render(&findings, form)) {
                ExitCode::Success => finding::exit_code(&findings),
                failed => failed,
            }
        }
    }
}

/// What the program is called for.
#[derive(Debug, PartialEq)]
enum Asked {
    /// A report for whoever calls.
    Report(Form),
    /// The examination itself, for the process that reports.
    Examination,
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Asked>, lexopt::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    if args == [apart::WORD] {
        return Ok(Some(Asked::Examination));
    }
    let mut parser = lexopt::Parser::from_args(args);
    let mut form = Form::Lines;
    while let Some(arg) = parser.next()? {
        let asked = match arg {
            Short('h') | Long("help") => return Ok(None),
            Long("json") => Form::Json,
            Long("nhc") => Form::Nhc,
            other => return Err(other.unexpected()),
        };
        if form != Form::Lines && form != asked {
            return Err("--json and --nhc exclude each other".into());
        }
        form = asked;
    }
    Ok(Some(Asked::Report(form)))
}

/// Looks at everything, last at what may be on file systems of a network.
fn examine() {
    let path = Path::new(DEFAULT_PATH);
    let (judged, configured) = judge::text(path);
    apart::found(judged);
    let config = configured.clone();
    let prefix = match &config {
        Some(config) => config.prefix.clone(),
        // The programs are where this one is, whatever the configuration would say.
        None => own_prefix().unwrap_or_else(|| Config::default().prefix),
    };
    let config = config.unwrap_or_default();
    // As long as starts wait, but not longer than health checks do.
    match config.root.answer_timeout_secs {
        0 => apart::patience(apart::PATIENCE),
        seconds => apart::patience(seconds.min(apart::PATIENCE)),
    }
    apart::found(kernel::check(&config));
    apart::found(programs::check(&prefix, &config));
    apart::found(state::check());
    apart::found(slurm::check(&prefix, &config));
    if let Some(config) = configured {
        apart::found(judge::named(path, &config));
    }
}

/// Returns the prefix of which this program is `lib/shifter/shifter-doctor`.
fn own_prefix() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    Some(program.ancestors().nth(3)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let parse = |text: &str| {
            parse(text.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
        };
        let report = |form| Ok(Some(Asked::Report(form)));
        assert_eq!(parse(""), report(Form::Lines));
        assert_eq!(parse("--json"), report(Form::Json));
        assert_eq!(parse("--nhc --nhc"), report(Form::Nhc));
        assert_eq!(parse("--apart"), Ok(Some(Asked::Examination)));
        assert!(parse("--apart --json").is_err());
        assert_eq!(parse("--nhc -h"), Ok(None));
        assert!(parse("--nhc --json").unwrap_err().contains("exclude"));
        assert!(parse("x").is_err() && parse("--wat").is_err());
    }
}
