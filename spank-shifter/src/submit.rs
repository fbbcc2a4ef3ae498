//! The submit side: what sbatch, salloc and srun do before a job exists.
//!
//! The image is resolved here, once, by an unprivileged program; nodes never ask a registry.
//! Nothing here runs unless the user gave one of our options.

use std::process::Command;

use serde::Deserialize;
use shifter_core::config::{Config, ConfigError};
use shifter_core::exit::ExitCode;
use shifter_core::ids::ImageId;
use shifter_core::layout::Program;
use shifter_core::reference::{ImageRef, RefError};
use shifter_core::sanitize;
use shifter_core::volmap::{VolumeError, VolumeMap};
use thiserror::Error;

use crate::child::{self, ChildError, Terms};
use crate::options::RawOptions;
use crate::pins::{self, PinError, Pins};
use crate::settings::Settings;

/// Says why a job is not submitted.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The site's configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Volumes or modules without an image.
    #[error("cannot use --volume or --module without --image")]
    NoImage,
    /// The image reference is malformed.
    #[error("cannot understand image '{}'", sanitize::text(.text))]
    Reference {
        /// The reference as typed.
        text: String,
        /// What is wrong with it.
        source: RefError,
    },
    /// A volume is malformed or refused.
    #[error("cannot use the volumes")]
    Volumes(#[from] VolumeError),
    /// Something else is not well-formed.
    #[error(transparent)]
    Form(#[from] PinError),
    /// The site does not have the modules, or not together.
    #[error(transparent)]
    Modules(#[from] node_setup::error::Error),
    /// The step asks for something that its job was not given.
    #[error("cannot change the {what} of a job that is already running")]
    OtherThanJob {
        /// "image", "volumes" or "modules".
        what: &'static str,
        /// The image, for the hint.
        image: String,
    },
    /// The image manager did not answer.
    #[error("cannot look up image '{}'", sanitize::text(.image))]
    Lookup {
        /// The reference.
        image: String,
        /// Why.
        source: ChildError,
    },
    /// The image manager refused, in its own words.
    #[error("{}", .lines.join("\n"))]
    Refused {
        /// Its message and hint.
        lines: Vec<String>,
    },
    /// The image manager failed without a word, or said something else than it should.
    #[error("cannot look up image '{}': {reason}", sanitize::text(.image))]
    Answer {
        /// The reference.
        image: String,
        /// What was wrong with the answer.
        reason: String,
    },
    /// The image could not be pulled; its program has said why.
    #[error("cannot pull image '{}': {reason}", sanitize::text(.image))]
    Pull {
        /// The reference.
        image: String,
        /// How it ended.
        reason: String,
    },
    /// Only the user has the image, and nodes do not read users' stores for jobs.
    #[error("cannot use image '{}' for a job: it is in your own store only", sanitize::text(.0))]
    UsersOwn(String),
    /// Files and directories that users name are not pinned by an id, and not judged for a job.
    #[error("cannot use image '{}' for a job: it is in no image store", sanitize::text(.0))]
    NotStored(String),
    /// The site has no tree of this name.
    #[error("cannot use image 'local:{}': the site has no tree of this name", sanitize::text(.0))]
    NoTree(String),
}

impl SubmitError {
    /// Returns the way out, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoImage => Some("add --image=REF".into()),
            Self::Reference { source, .. } => source.hint(),
            Self::Volumes(error) => error.hint(),
            Self::Modules(error) => error.hint(),
            Self::OtherThanJob { image, .. } => Some(format!(
                "srun shifter --image={} COMMAND",
                sanitize::text(image)
            )),
            Self::UsersOwn(image) => {
                let name = image.strip_prefix("docker:").unwrap_or(image);
                Some(format!(
                    "shifter pull --store=site {}",
                    sanitize::text(name)
                ))
            }
            Self::NotStored(image) => {
                let image = sanitize::text(image);
                Some(format!("in the job: srun shifter --image={image} COMMAND"))
            }
            _ => None,
        }
    }
}

/// Options that are well-formed and that the site allows.
#[derive(Debug)]
pub struct Request {
    image: ImageRef,
    volumes: VolumeMap,
    /// Those in use, default ones included; none if no module was named and none is in use.
    modules: Vec<String>,
    names_modules: bool,
}

impl Request {
    /// Checks the options against the site's rules.
    pub fn check(raw: &RawOptions, config: &Config) -> Result<Self, SubmitError> {
        let text = raw.image.as_deref().ok_or(SubmitError::NoImage)?;
        let image = ImageRef::parse(text, &config.type_rules()).map_err(|source| {
            SubmitError::Reference {
                text: text.to_owned(),
                source,
            }
        })?;
        match image.tree() {
            Some(name) if config.store.trees.contains_key(name) => {}
            Some(name) => return Err(SubmitError::NoTree(name.to_owned())),
            None if image.image_type().is_stored() => {}
            None => return Err(SubmitError::NotStored(image.canonical())),
        }
        let volumes = pins::parse_volumes(raw.volumes.iter().map(String::as_str))?;
        let modules = pins::parse_modules(raw.modules.iter().map(String::as_str))?;
        let names_modules = !modules.is_empty();
        let modules = node_setup::modules::requested(config, &modules);
        node_setup::modules::check(config, &modules)?;
        Ok(Self {
            image,
            volumes,
            modules,
            names_modules,
        })
    }

    /// Returns the modules as a node is told of them: where there is no name, it takes its default
    /// ones.
    fn pinned_modules(&self) -> Vec<String> {
        if self.names_modules && self.modules.is_empty() {
            vec![pins::NO_MODULE.to_owned()]
        } else {
            self.modules.clone()
        }
    }

    /// Insists that a step inside a job asks for nothing else than the job was given: the nodes
    /// are ready, and a step cannot change them.
    pub fn agree(&self, job: Option<&Pins>) -> Result<(), SubmitError> {
        let other = |what| SubmitError::OtherThanJob {
            what,
            image: self.image.canonical(),
        };
        let job = job.ok_or_else(|| other("image"))?;
        if self.image.canonical() != job.request && self.image.image_id() != Some(&job.id) {
            return Err(other("image"));
        }
        if !self.volumes.is_empty() && self.volumes.signature() != job.volumes.signature() {
            return Err(other("volumes"));
        }
        if self.names_modules && self.pinned_modules() != job.modules {
            return Err(other("modules"));
        }
        Ok(())
    }

    /// Resolves the image, pulling it first where the site wants that and it is missing.
    pub fn resolve(self, tools: &Tools<'_>) -> Result<Pins, SubmitError> {
        let seconds = tools.config.slurm.submit_pull_timeout_secs;
        let id = match tools.look_up(&self.image)? {
            Answer::Found(id) => id,
            Answer::Missing(_) if seconds > 0 && self.image.image_id().is_none() => {
                tools.pull(&self.image, seconds)?;
                match tools.look_up(&self.image)? {
                    Answer::Found(id) => id,
                    Answer::Missing(lines) => return Err(SubmitError::Refused { lines }),
                }
            }
            Answer::Missing(lines) => return Err(SubmitError::Refused { lines }),
        };
        Ok(Pins {
            id,
            request: self.image.canonical(),
            modules: self.pinned_modules(),
            volumes: self.volumes,
            ssh: false,
        })
    }
}

enum Answer {
    Found(ImageId),
    Missing(Vec<String>),
}

/// The part of `shifterimg lookup --json` that matters here.
#[derive(Deserialize)]
struct Located {
    id: ImageId,
    store: String,
}

/// The image manager, run as the user.
pub struct Tools<'a> {
    /// The site's configuration.
    pub config: &'a Config,
    /// Where it was read from.
    pub settings: &'a Settings,
    /// Readies a command to be run from within Slurm's processes.
    pub ready: fn(Command) -> Command,
    /// Tells the user what takes so long.
    pub tell: fn(&str),
}

impl Tools<'_> {
    fn look_up(&self, image: &ImageRef) -> Result<Answer, SubmitError> {
        if let Some(id) = image.tree().and_then(ImageId::of_tree) {
            return Ok(Answer::Found(id));
        }
        let reference = image.canonical();
        let mut command = self.command();
        command.args(["lookup", "--json", &reference]);
        let seconds = self.config.slurm.lookup_timeout_secs;
        let terms = Terms {
            seconds,
            own_group: false,
            shows_stderr: false,
        };
        let finished = child::run(command, b"", terms).map_err(|source| SubmitError::Lookup {
            image: reference.clone(),
            source,
        })?;
        let answer = |reason| SubmitError::Answer {
            image: reference.clone(),
            reason,
        };
        if !finished.status.success() {
            let mut lines = finished.messages(2);
            if let Some(first) = lines.first_mut() {
                // The user ran sbatch, not the helper: its name says nothing.
                *first = first.trim_start_matches("shifterimg: ").to_owned();
            }
            let code = finished.status.code().and_then(ExitCode::from_code);
            return match code {
                _ if lines.is_empty() => Err(answer(format!(
                    "shifterimg ended with {}",
                    finished.ending()
                ))),
                Some(ExitCode::Image) => Ok(Answer::Missing(lines)),
                _ => Err(SubmitError::Refused { lines }),
            };
        }
        let located: Located = serde_json::from_slice(&finished.stdout)
            .map_err(|error| answer(format!("the answer cannot be read: {error}")))?;
        match located.store.as_str() {
            "site" => Ok(Answer::Found(located.id)),
            _ => Err(SubmitError::UsersOwn(reference)),
        }
    }

    fn pull(&self, image: &ImageRef, seconds: u32) -> Result<(), SubmitError> {
        let reference = image.canonical();
        (self.tell)(&format!("shifter: pulling image '{reference}'"));
        let mut command = self.command();
        command.args(["pull", "--store", "site", &reference]);
        let terms = Terms {
            seconds,
            own_group: false,
            shows_stderr: true,
        };
        let failed = |reason| SubmitError::Pull {
            image: reference.clone(),
            reason,
        };
        let finished =
            child::run(command, b"", terms).map_err(|error| failed(error.to_string()))?;
        if finished.status.success() {
            Ok(())
        } else {
            Err(failed(finished.ending()))
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(Program::Shifterimg.path(&self.config.prefix));
        command.args(self.settings.config_args());
        (self.ready)(command)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::pins::tests::sample;
    use crate::report;

    const SITE: &str = "[module.mpi]\nconflicts = ['gpu']\n[module.gpu]\n\
                        [store]\ntrees = { sl6 = '/chos/sl6' }\n";

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("/x")).unwrap()
    }

    fn options(image: &str, volumes: &[&str], modules: &[&str]) -> RawOptions {
        let mut raw = RawOptions::new();
        let images = (!image.is_empty()).then_some((0, image)).into_iter();
        let volumes = volumes.iter().map(|volume| (1, *volume));
        let modules = modules.iter().map(|module| (3, *module));
        for (number, value) in images.chain(volumes).chain(modules) {
            raw.add(number, value.as_bytes()).unwrap();
        }
        raw
    }

    fn check(image: &str, volumes: &[&str], modules: &[&str]) -> Result<Request, String> {
        Request::check(&options(image, volumes, modules), &config(SITE))
            .map_err(|error| report::lines(&error, error.hint()).join("|"))
    }

    #[test]
    fn what_is_refused_says_the_way_out() {
        let table = [
            (
                check("", &["/a:/b"], &[]),
                "without --image|hint: add --image=REF",
            ),
            (check("", &[], &["mpi"]), "without --image|"),
            (check("a b", &[], &[]), "cannot understand image 'a b'"),
            (
                check("./x.sqsh", &[], &[]),
                "'file:./x.sqsh' for a job: it is in no image store|hint: in the job: srun shifter",
            ),
            (check("local:/a", &[], &[]), "'local:/a' for a job"),
            (check("local:sl7", &[], &[]), "no tree of this name"),
            (check("x", &["/a:/etc"], &[]), "'/etc'"),
            (check("x", &["/a"], &[]), "hint: "),
            (check("x", &["/a:/c", "/b:/c"], &[]), "target '/c'"),
            (check("x", &[], &["zzz"]), "'zzz'"),
            (check("x", &[], &["mpi", "gpu"]), "'mpi'"),
            (
                check("x", &[], &["a b"]),
                "'a b' is not the name of a module",
            ),
        ];
        for (result, expected) in table {
            let error = result.unwrap_err();
            assert!(
                error.starts_with("shifter: ") && error.contains(expected),
                "{error}"
            );
        }
        assert!(check("x", &["/a:/b", "/c:/d"], &["mpi"]).is_ok());
        assert!(check("local:sl6", &[], &[]).is_ok());
    }

    #[test]
    fn modules_are_pinned_with_the_default_ones_and_none_is_said() {
        let site = format!("default_modules = ['gpu']\n{SITE}");
        let pinned = |names: &[&str], site: &str| {
            let request = Request::check(&options("x", &[], names), &config(site)).unwrap();
            request.pinned_modules().join(",")
        };
        assert_eq!(pinned(&[], &site), "gpu");
        assert_eq!(pinned(&["mpi"], &site), "mpi");
        assert_eq!(pinned(&["none"], &site), "none");
        assert_eq!(pinned(&[], SITE), "");
        assert_eq!(pinned(&["none"], SITE), "none");
        // A step may name what its job has by default.
        let job = Pins {
            modules: vec!["gpu".into()],
            ..sample()
        };
        let agrees = |names: &[&str]| {
            let raw = options("ubuntu:24.04", &[], names);
            let request = Request::check(&raw, &config(&site)).unwrap();
            request.agree(Some(&job)).is_ok()
        };
        assert!(agrees(&[]) && agrees(&["gpu"]) && !agrees(&["mpi"]) && !agrees(&["none"]));
    }

    #[test]
    fn a_step_has_what_its_job_has() {
        let job = sample();
        let id = format!("id:{}", job.id);
        let same = ["/data:/data2:ro", "/scratch:/mnt"];
        let table = [
            (check("ubuntu:24.04", &[], &[]), None),
            (check(&id, &[], &[]), None),
            (check("ubuntu:24.04", &same, &[]), None),
            (check("ubuntu:22.04", &[], &[]), Some("image")),
            (check(&id.replace('a', "b"), &[], &[]), Some("image")),
            (check("ubuntu:24.04", &same[..1], &[]), Some("volumes")),
            (check("ubuntu:24.04", &[], &["gpu"]), Some("modules")),
        ];
        for (request, expected) in table {
            let what = match request.unwrap().agree(Some(&job)) {
                Ok(()) => None,
                Err(SubmitError::OtherThanJob { what, .. }) => Some(what),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(what, expected);
        }
        let error = check("x", &[], &[]).unwrap().agree(None).unwrap_err();
        let hint = error.hint().unwrap();
        assert!(
            hint.contains("srun shifter --image=docker:x:latest COMMAND"),
            "{hint}"
        );
    }

    /// Resolves `x` with a script in the place of the image manager, and returns the id or the
    /// lines of the refusal.
    fn resolve(script: &str, pull_seconds: u32) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::Shifterimg.path(dir.path());
        let text = format!("#!/bin/sh\ncd '{}'\n{script}", dir.path().display());
        fs::write(dir.path().join("script"), text).unwrap();
        // Another process writes the program: were it this one, a child forked meanwhile by
        // another test could still have it open for writing, and then it cannot be executed.
        let mut install = Command::new("/usr/bin/install");
        install
            .args(["-D", "-m755"])
            .arg(dir.path().join("script"))
            .arg(&program);
        assert!(install.status().unwrap().success());
        let mut config = config("[slurm]\nlookup_timeout_secs = 1\n");
        config.prefix = dir.path().to_owned();
        config.slurm.submit_pull_timeout_secs = pull_seconds;
        let settings = Settings::default();
        let tools = Tools {
            config: &config,
            settings: &settings,
            ready: |c| c,
            tell: |_| {},
        };
        let request = Request::check(&options("x", &["/a:/b"], &[]), &config).unwrap();
        match request.resolve(&tools) {
            Ok(pins) => {
                assert_eq!(
                    (pins.request.as_str(), pins.volumes.entries().len()),
                    ("docker:x:latest", 1)
                );
                Ok(pins.id.to_string())
            }
            Err(error) => Err(report::lines(&error, error.hint()).join("|")),
        }
    }

    fn found(store: &str) -> String {
        let id = "a".repeat(64);
        format!("echo '{{\"id\":\"{id}\",\"store\":\"{store}\",\"size\":1}}'\n")
    }

    const MISSING: &str = "echo \"shifterimg: cannot find image '$3'\" >&2\n\
                           echo 'hint: shifter pull x' >&2\nexit 4\n";

    #[test]
    fn the_image_managers_answer_is_pinned() {
        let asked = "[ \"$*\" = 'lookup --json docker:x:latest' ] || exit 2\n";
        assert_eq!(
            resolve(&format!("{asked}{}", found("site")), 0),
            Ok("a".repeat(64))
        );
    }

    #[test]
    fn the_image_managers_refusal_is_repeated() {
        let expected = "shifter: cannot find image 'docker:x:latest'|hint: shifter pull x";
        assert_eq!(resolve(MISSING, 0), Err(expected.into()));
        let silent = resolve("exit 1", 0).unwrap_err();
        assert!(
            silent.ends_with(": shifterimg ended with exit code 1"),
            "{silent}"
        );
        let hostile = resolve("printf '\\033[2Jx\\n' >&2; exit 3", 0).unwrap_err();
        assert_eq!(hostile, "shifter: \\u{1b}[2Jx");
    }

    #[test]
    fn an_answer_must_be_one() {
        for script in [
            "echo hello",
            "echo '{}'",
            "echo '{\"id\":\"../x\",\"store\":\"site\"}'",
        ] {
            let error = resolve(script, 0).unwrap_err();
            assert!(
                error.contains("the answer cannot be read"),
                "{script}: {error}"
            );
        }
        let late = resolve("exec sleep 60", 0).unwrap_err();
        assert!(late.contains("did not finish within 1 s"), "{late}");
        let own = resolve(&found("user"), 0).unwrap_err();
        assert!(
            own.contains("your own store only|hint: shifter pull --store=site x"),
            "{own}"
        );
    }

    #[test]
    fn a_missing_image_is_pulled_where_the_site_wants_it() {
        let pulls = "[ \"$1\" = pull ] && { echo \"$*\" > pulled; exit 0; }\n";
        let asked = "[ \"$(cat pulled)\" = 'pull --store site docker:x:latest' ] && {\n";
        let script = format!("{pulls}{asked}{}exit 0; }}\n{MISSING}", found("site"));
        assert_eq!(resolve(&script, 5), Ok("a".repeat(64)));
        assert!(resolve(&script, 0).is_err());
        let broken = format!("[ \"$1\" = pull ] && exit 7\n{MISSING}");
        let error = resolve(&broken, 5).unwrap_err();
        assert_eq!(
            error,
            "shifter: cannot pull image 'docker:x:latest': exit code 7"
        );
        let useless = format!("[ \"$1\" = pull ] && exit 0\n{MISSING}");
        assert!(
            resolve(&useless, 5)
                .unwrap_err()
                .contains("cannot find image")
        );
    }
}
