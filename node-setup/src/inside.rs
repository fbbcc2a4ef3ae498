//! `/opt/udiImage/bin/shifter`: what `shifter COMMAND` is in a container, without any privilege.
//!
//! Scripts that were written for the host's `shifter` go on working where they run in the container
//! already (autoshift): the command is executed as it is. No other container can be entered from in here.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::process::chdir;
use serde::Deserialize;
use shifter_core::config::Config;
use shifter_core::env::Pair;
use shifter_core::exit::ExitCode;
use shifter_core::layout::Program;
use shifter_core::reference::ImageRef;
use shifter_core::sanitize;
use shifter_core::volmap::{Origin, VolumeMap};

use crate::error::{Context, Error, Result};
use crate::modules::place::UDI_IMAGE;
use crate::options::{self, Action, RunOptions};
use crate::{entry, launch, out, process};

const NAME: &str = "shifter";

/// What the set-up wrote about the container: see [`crate::etc::ShifterConfig`].
const CONTAINER: &str = "/var/shifterConfig.json";

/// The part of it that matters here.
#[derive(Deserialize)]
struct Own {
    identifier: String,
    #[serde(rename = "volMap")]
    volumes: String,
    modules: String,
}

/// Runs the program and returns its exit code; a command that starts replaces the process.
pub fn main(words: Vec<OsString>) -> ExitCode {
    match run(words) {
        Ok(code) => code,
        Err(error) => out::report(NAME, &error),
    }
}

fn run(words: Vec<OsString>) -> Result<ExitCode> {
    process::fill_standard_descriptors()?;
    let mut environment = launch::own_environment();
    if let Some(mut command) = entry::told(&mut environment) {
        command.extend(words.into_iter().map(OsString::into_vec));
        return Err(launch::execute(&command, &environment));
    }
    match options::parse(words)? {
        Action::Help => Ok(out::answer(options::HELP)),
        Action::Version => Ok(out::answer(concat!(
            "shifter ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        ))),
        Action::Tool(Program::Ps, words) => list(words).map(|never| match never {}),
        Action::Images(_) | Action::Tool(..) => Err(Error::Denied {
            what: "only commands can be run inside a container".into(),
            hint: Some("run this shifter command outside of it"),
        }),
        Action::Run(options) => execute(&options).map(|never| match never {}),
    }
}

/// Becomes the program that lists containers.
fn list(words: Vec<OsString>) -> Result<Infallible> {
    let program = format!("{UDI_IMAGE}/sbin/shifter-ps");
    let words = words.into_iter().map(OsString::into_vec);
    let command: Vec<Vec<u8>> = [program.into_bytes()].into_iter().chain(words).collect();
    Err(launch::execute(&command, &launch::own_environment()))
}

fn execute(options: &RunOptions) -> Result<Infallible> {
    let bytes = process::read_record(CONTAINER).step("read", CONTAINER)?;
    let own: Own = serde_json::from_slice(&bytes)
        .map_err(io::Error::from)
        .step("read", CONTAINER)?;
    let environment = launch::own_environment();
    let request = environment
        .iter()
        .find(|(name, _)| name == b"SHIFTER_IMAGEREQUEST");
    let request = request.map(|(_, value)| String::from_utf8_lossy(value).into_owned());
    own.check(options, &request.unwrap_or_default())?;
    if let Some(Some(dir)) = &options.workdir {
        let shown = sanitize::bytes(dir.as_bytes());
        chdir(dir.as_bytes()).map_err(|error| {
            let reason = io::Error::from(error);
            Error::Usage(format!(
                "cannot enter working directory '{shown}': {reason}"
            ))
        })?;
    }
    let environment = changed(environment, options)?;
    Err(launch::execute(
        &command(options, &environment),
        &environment,
    ))
}

impl Own {
    /// Refuses what would need another container.
    fn check(&self, options: &RunOptions, request: &str) -> Result<()> {
        if let Some(text) = &options.image {
            let parsed = ImageRef::parse(text, &Config::default().type_rules());
            let other = parsed.map_err(|source| Error::Reference {
                text: text.clone(),
                source,
            })?;
            let id = other.image_id().map(ToString::to_string);
            let name = other.canonical();
            if id.as_ref() != Some(&self.identifier)
                && ![request, &self.identifier].contains(&&*name)
            {
                let (own, name) = (sanitize::text(request), sanitize::text(&name));
                let what =
                    format!("this is the container of '{own}', and '{name}' is another image");
                return Err(refused(what));
            }
        }
        let texts = options.volumes.iter().map(String::as_str);
        let volumes = VolumeMap::parse_many(texts, Origin::User).map_err(Error::Volumes)?;
        if !volumes.is_empty() && volumes.signature() != self.volumes {
            return Err(refused(
                "the volumes of this container cannot be changed".into(),
            ));
        }
        let modules = options
            .modules
            .as_ref()
            .map(|names| match names.as_slice() {
                [none] if none == "none" => String::new(),
                names => names.join(","),
            });
        if modules.is_some_and(|modules| modules != self.modules) {
            return Err(refused(
                "the modules of this container cannot be changed".into(),
            ));
        }
        let needs_new = options.writable.is_some() || options.rootless || options.clear_env;
        let needs_image = [&options.entrypoint, &options.workdir].contains(&&Some(None));
        if needs_new || needs_image {
            return Err(refused(
                "this option is for entering a container, and this is one".into(),
            ));
        }
        Ok(())
    }
}

fn refused(what: String) -> Error {
    Error::Denied {
        what,
        hint: Some("outside of it, or with the module for Slurm: srun --image=IMAGE COMMAND"),
    }
}

/// Returns the environment with what the options set.
fn changed(environment: Vec<Pair>, options: &RunOptions) -> Result<Vec<Pair>> {
    let file = match &options.env_file {
        Some(path) => launch::env_file(path)?,
        None => Vec::new(),
    };
    let given: Vec<&Pair> = file.iter().chain(&options.env).collect();
    let kept = environment.into_iter();
    let kept = kept.filter(|(name, _)| !given.iter().any(|(other, _)| other == name));
    let mut environment: Vec<Pair> = kept.collect();
    // Of a name that is given twice the last counts.
    for pair in given {
        environment.retain(|(name, _)| *name != pair.0);
        environment.push(pair.clone());
    }
    Ok(environment)
}

fn command(options: &RunOptions, environment: &[Pair]) -> Vec<Vec<u8>> {
    let program = options.entrypoint.iter().flatten();
    let words = program.chain(&options.command);
    let words: Vec<Vec<u8>> = words.map(|word| word.as_bytes().to_vec()).collect();
    if !words.is_empty() {
        return words;
    }
    let shell = environment.iter().find(|(name, _)| name == b"SHELL");
    let shell = shell.map(|(_, value)| value.clone()).unwrap_or_default();
    let found = rustix::fs::access(&*shell, rustix::fs::Access::EXEC_OK).is_ok();
    vec![if found { shell } else { b"/bin/sh".to_vec() }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own {
        Own {
            identifier: "a".repeat(64),
            volumes: "/a:/b".into(),
            modules: "mpi".into(),
        }
    }

    fn options(words: &[&str]) -> RunOptions {
        let words = words.iter().map(OsString::from).collect();
        match options::parse(words).unwrap() {
            Action::Run(options) => *options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_container_is_may_be_asked_for() {
        let id = format!("--image=id:{}", "a".repeat(64));
        let other = format!("--image=id:{}", "b".repeat(64));
        let judge = |words: &[&str]| own().check(&options(words), "docker:x:1");
        for words in [
            &["true"][..],
            &["--image=x:1", "true"],
            &[&id, "true"],
            &[
                "--volume=/a:/b",
                "--module=mpi",
                "--env=A=1",
                "--workdir=/tmp",
                "true",
            ],
            &["--entrypoint=/bin/sh", "x"],
        ] {
            assert!(judge(words).is_ok(), "{words:?}");
        }
        for words in [
            &["--image=x:2", "true"][..],
            &[&other, "true"],
            &["--volume=/c:/d", "true"],
            &["--module=none", "true"],
            &["--clearenv", "true"],
            &["--writable-tmpfs", "true"],
        ] {
            let error = judge(words).unwrap_err();
            assert!(error.hint().unwrap().contains("srun --image"), "{words:?}");
            assert_eq!(error.exit_code(), ExitCode::Denied);
        }
    }

    #[test]
    fn options_change_the_environment_and_the_last_one_counts() {
        let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let given = vec![pair("A", "1"), pair("B", "2")];
        let words = ["--env=B=3", "--env=C=4", "--env=C=5", "true"];
        let found = changed(given, &options(&words)).unwrap();
        assert_eq!(found, [pair("A", "1"), pair("B", "3"), pair("C", "5")]);
    }
}
