//! The submit side: what sbatch, salloc and srun do before a job exists.
//!
//! The image is resolved here, once, by an unprivileged program; nodes never ask a registry.
//! Nothing here runs unless the user gave one of our options.

#[cfg(test)]
mod tests;

use std::process::Command;

use node_setup::located::Located;
use shifter_core::config::{Config, ConfigError, SshJobs};
use shifter_core::exit::ExitCode;
use shifter_core::ids::ImageId;
use shifter_core::layout::Program;
use shifter_core::manifest::Modes;
use shifter_core::reference::{ImageRef, RefError};
use shifter_core::sanitize;
use shifter_core::volmap::{VolumeError, VolumeMap};
use thiserror::Error;

use crate::child::{self, ChildError, Terms};
use crate::options::RawOptions;
use crate::pins::{self, PinError, Pins};
use crate::settings::Settings;
use crate::{ssh, steps};

/// Says why a job is not submitted.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The site's configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Volumes, modules or switches without an image.
    #[error("cannot use --volume, --module, --autoshift, --entrypoint or --sshd without --image")]
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
    /// The site does not let jobs run inside this image without saying so.
    #[error("cannot use --autoshift with image '{}': this site does not allow it", sanitize::text(.0))]
    NoAutoshift(String),
    /// The site does not give out the host's own environment.
    #[error("cannot use --ccm: this site does not allow it")]
    NoCcm,
    /// The host's own environment and something that is put into an image.
    #[error(
        "cannot use --ccm together with --image, --volume, --module, --autoshift or --entrypoint"
    )]
    CcmAndImage,
    /// A step cannot change what its job is.
    #[error("cannot use --ccm for a step: it is for whole jobs")]
    CcmStep,
    /// The components of one step ask for different things.
    #[error("cannot give the components of one step different containers")]
    MixedStep,
    /// The site has no ssh between the nodes of a job.
    #[error("cannot use --sshd: this site does not allow it")]
    NoSsh,
    /// The job was started without.
    #[error("cannot use --sshd for a step: its job was started without")]
    NoSshInJob,
    /// Servers are in a job's containers alone.
    #[error("cannot use --sshd for a step with a container of its own: ssh leads to its job's")]
    SshInStep,
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
            Self::MixedStep => Some("use an srun for each".into()),
            Self::NoAutoshift(_) => Some("without it: srun shifter COMMAND".into()),
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
    /// None: a step takes its job's.
    image: Option<ImageRef>,
    volumes: VolumeMap,
    /// Those in use, default ones included; none if no module was named and none is in use.
    modules: Vec<String>,
    names_modules: bool,
    autoshift: Option<bool>,
    ccm: bool,
    sshd: Option<bool>,
    entrypoint: Option<bool>,
}

impl Request {
    /// Checks the options against the site's rules.
    pub fn check(raw: &RawOptions, config: &Config) -> Result<Self, SubmitError> {
        if raw.ccm {
            return Self::check_ccm(raw, config);
        }
        let image = raw.image.as_deref().map(|text| check_image(text, config));
        let image = image.transpose()?;
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
            autoshift: raw.autoshift,
            ccm: false,
            sshd: raw.sshd,
            entrypoint: raw.entrypoint,
        })
    }

    fn check_ccm(raw: &RawOptions, config: &Config) -> Result<Self, SubmitError> {
        let asks_image = raw.image.is_some() || raw.autoshift.is_some() || raw.entrypoint.is_some();
        if asks_image || !raw.volumes.is_empty() || !raw.modules.is_empty() {
            return Err(SubmitError::CcmAndImage);
        }
        if !config.slurm.ccm {
            return Err(SubmitError::NoCcm);
        }
        Ok(Self {
            image: None,
            volumes: VolumeMap::default(),
            modules: Vec::new(),
            names_modules: false,
            autoshift: None,
            ccm: true,
            sshd: raw.sshd,
            entrypoint: None,
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

    /// Pins what a new job asks for.
    pub fn for_job(self, tools: &Tools<'_>) -> Result<Pins, SubmitError> {
        let ssh = self.sshd;
        if ssh == Some(true) && tools.config.ssh.enable == SshJobs::Off {
            return Err(SubmitError::NoSsh);
        }
        if self.ccm {
            let mut pins = Pins::of_host().ok_or(SubmitError::NoCcm)?;
            pins.modes.ssh = ssh;
            return Ok(pins);
        }
        let image = self.image.as_ref().ok_or(SubmitError::NoImage)?;
        let request = image.canonical();
        let permits = tools.config.slurm.permits_autoshift(&request);
        let autoshift = match self.autoshift {
            Some(true) if !permits => return Err(SubmitError::NoAutoshift(request)),
            Some(asked) => asked,
            None => tools.config.slurm.autoshift && permits,
        };
        Ok(Pins {
            id: tools.resolve(image)?,
            request,
            modules: self.pinned_modules(),
            volumes: self.volumes,
            modes: Modes {
                autoshift,
                ssh,
                entrypoint: self.entrypoint.unwrap_or_default(),
                ..Modes::default()
            },
        })
    }

    /// Pins what a step in a job asks for; what it does not name it takes from the job.
    pub fn for_step(mut self, job: Option<Pins>, tools: &Tools<'_>) -> Result<Pins, SubmitError> {
        if self.ccm && !job.as_ref().is_some_and(|job| job.modes.ccm) {
            return Err(SubmitError::CcmStep);
        }
        let asks_ssh = self.sshd == Some(true);
        let Some(job) = job else {
            return match asks_ssh {
                true => Err(SubmitError::NoSshInJob),
                false => self.for_job(tools),
            };
        };
        let whole = job.clone();
        let is_jobs = |image: &ImageRef| {
            image.canonical() == job.request || image.image_id() == Some(&job.id)
        };
        let (id, request) = match self.image.take().filter(|image| !is_jobs(image)) {
            Some(other) => (tools.resolve(&other)?, other.canonical()),
            None => (job.id, job.request),
        };
        let unasked = ssh::comes_unasked(tools.config, job.modes);
        if asks_ssh && !job.modes.ssh.unwrap_or(unasked) {
            return Err(SubmitError::NoSshInJob);
        }
        if self.autoshift == Some(true) && !tools.config.slurm.permits_autoshift(&request) {
            return Err(SubmitError::NoAutoshift(request));
        }
        let is_jobs = id == whole.id;
        let pins = Pins {
            id,
            request,
            modules: if self.names_modules {
                self.pinned_modules()
            } else {
                job.modules
            },
            volumes: if self.volumes.is_empty() {
                job.volumes
            } else {
                self.volumes
            },
            modes: Modes {
                autoshift: self.autoshift.unwrap_or(job.modes.autoshift),
                ccm: job.modes.ccm && is_jobs,
                entrypoint: self.entrypoint.unwrap_or(job.modes.entrypoint),
                ..job.modes
            },
        };
        if asks_ssh && !steps::is_jobs(&whole, &pins, tools.config) {
            return Err(SubmitError::SshInStep);
        }
        Ok(pins)
    }
}

fn check_image(text: &str, config: &Config) -> Result<ImageRef, SubmitError> {
    let parsed = ImageRef::parse(text, &config.type_rules());
    let image = parsed.map_err(|source| SubmitError::Reference {
        text: text.to_owned(),
        source,
    })?;
    match image.tree() {
        Some(name) if config.store.trees.contains_key(name) => Ok(image),
        Some(name) => Err(SubmitError::NoTree(name.to_owned())),
        None if image.image_type().is_stored() => Ok(image),
        None => Err(SubmitError::NotStored(image.canonical())),
    }
}

enum Answer {
    Found(ImageId),
    Missing(Vec<String>),
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
    /// True inside an allocation.
    pub is_step: bool,
}

impl Tools<'_> {
    /// Finds the image's id, pulling it first where the site wants that and it is missing.
    fn resolve(&self, image: &ImageRef) -> Result<ImageId, SubmitError> {
        // Nobody waits for a download in an allocation that is paid for.
        let seconds = match self.is_step {
            true => 0,
            false => self.config.slurm.submit_pull_timeout_secs,
        };
        match self.look_up(image)? {
            Answer::Found(id) => Ok(id),
            Answer::Missing(_) if seconds > 0 && image.image_id().is_none() => {
                self.pull(image, seconds)?;
                match self.look_up(image)? {
                    Answer::Found(id) => Ok(id),
                    Answer::Missing(lines) => Err(SubmitError::Refused { lines }),
                }
            }
            Answer::Missing(lines) => Err(SubmitError::Refused { lines }),
        }
    }

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
        match Located::of(&finished) {
            Located::Site(id) => Ok(Answer::Found(id)),
            Located::UsersOwn => Err(SubmitError::UsersOwn(reference)),
            Located::Refused(Some(ExitCode::Image), lines) => Ok(Answer::Missing(lines)),
            Located::Refused(_, lines) => Err(SubmitError::Refused { lines }),
            Located::Unclear(reason) => Err(SubmitError::Answer {
                image: reference,
                reason,
            }),
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
