//! What can go wrong while a root is made, joined or removed.

use std::io;
use std::path::PathBuf;

use shifter_core::chain;
use shifter_core::config::ConfigError;
use shifter_core::env::EnvError;
use shifter_core::exit::ExitCode;
use shifter_core::manifest::ManifestError;
use shifter_core::reference::RefError;
use shifter_core::sanitize;
pub use shifter_core::sanitize::plain;
use shifter_core::trusted::TrustError;
use shifter_core::volmap::VolumeError;
use thiserror::Error;

use crate::sys;

/// A failure: what was attempted, on which object, and why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The command line cannot be understood.
    #[error("{0}")]
    Usage(String),
    /// A variable on the command line is none.
    #[error(transparent)]
    Variable(EnvError),
    /// A file of variables cannot be understood.
    #[error("cannot use environment file '{}'", sanitize::text(.file))]
    EnvFile {
        /// The file as typed.
        file: String,
        /// What is wrong with it.
        source: EnvError,
    },
    /// The process is not what it must be to go on.
    #[error("{0}")]
    Privilege(&'static str),
    /// The program has not got what its setuid bit is to give it.
    #[error(
        "not running with root's privileges: the program must be installed setuid root, and not be \
         started under no_new_privs, a tracer or from a nosuid mount"
    )]
    NotSetuid,
    /// A job's ssh server cannot be started on this node.
    #[error("no ssh on this node: {0}")]
    Ssh(String),
    /// The machine lacks what a container without privilege needs.
    #[error("cannot make a container without privilege: {0}")]
    Rootless(String),
    /// The site's configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The job manifest is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An image reference is malformed.
    #[error("cannot understand image '{}'", sanitize::text(.text))]
    Reference {
        /// The reference as typed.
        text: String,
        /// What is wrong with it.
        source: RefError,
    },
    /// A volume map is malformed or against the policy.
    #[error("cannot use the volumes")]
    Volumes(#[source] VolumeError),
    /// The image does not exist, or the user may not have it: the two look the same.
    #[error("cannot find image '{}': it is not in the site store", sanitize::text(.0))]
    NoImage(String),
    /// The image exists and cannot be used.
    #[error("cannot use image '{}': {reason}", sanitize::text(.image))]
    BadImage {
        /// The image as the user knows it.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that steers the program is not root's alone.
    #[error(transparent)]
    Untrusted(TrustError),
    /// The image store itself is not there or not trusted.
    #[error("cannot use the image store")]
    Store(#[source] TrustError),
    /// Two of the site's own mounts exclude each other.
    #[error("cannot mount the site's '{}': {reason}", sanitize::text(.target))]
    SiteMount {
        /// Where in the container.
        target: String,
        /// Why.
        reason: String,
    },
    /// A user's volume is refused.
    #[error("cannot mount volume '{}' at '{}': {reason}", sanitize::text(.from), sanitize::text(.to))]
    Volume {
        /// The source as typed.
        from: String,
        /// The target as typed.
        to: String,
        /// Why.
        reason: String,
        /// The way out.
        hint: Option<String>,
    },
    /// Something is refused by the site's policy.
    #[error("{what}")]
    Denied {
        /// What is refused, and why.
        what: String,
        /// The way out.
        hint: Option<&'static str>,
    },
    /// A step of building or removing a root failed.
    #[error("cannot {step} '{}'", sanitize::text(.object))]
    Step {
        /// What was attempted: "mount", "create directory".
        step: &'static str,
        /// On what.
        object: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A kernel module that the site wants cannot be had.
    #[error("cannot load kernel module '{}': {}", sanitize::text(.name), sanitize::text(.reason))]
    KernelModule {
        /// The module as configured.
        name: String,
        /// Why, and where it was looked for.
        reason: String,
        /// The way out.
        hint: String,
    },
    /// A program of the site's that runs while a root is built did not succeed.
    #[error("{hook} failed: {reason}")]
    Hook {
        /// Which one, and for what.
        hook: String,
        /// How it ended, and what it said last.
        reason: String,
    },
    /// A module is asked for that the site does not have.
    #[error("module '{}' does not exist here", sanitize::text(.name))]
    NoModule {
        /// The module as typed.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A module of the site's cannot be set up on this node.
    #[error("cannot set up module '{module}': {reason}")]
    Module {
        /// The module.
        module: String,
        /// Why.
        reason: String,
    },
    /// The user is not known to the name service, or it did not answer in time.
    #[error("cannot find the account of uid {uid}: {reason}")]
    Account {
        /// The user.
        uid: u32,
        /// Why.
        reason: String,
    },
    /// Nobody knows the name of a user or group, or the name service did not answer in time.
    #[error("cannot find {kind} '{}': {reason}", sanitize::text(.name))]
    Name {
        /// "user" or "group".
        kind: &'static str,
        /// The name.
        name: String,
        /// Why.
        reason: String,
    },
    /// Set-up and teardown of one job met.
    #[error("job {0} is being removed")]
    Removed(String),
    /// Teardown left something behind.
    #[error("cannot remove everything of job {job}: {}", .failures.join("; "))]
    Leftover {
        /// The job.
        job: String,
        /// Every step that failed.
        failures: Vec<String>,
    },
    /// A file system does not answer.
    #[error("no answer from {from} in {seconds} s")]
    NoAnswer {
        /// What was asked, in words.
        from: String,
        /// How long one answer was waited for.
        seconds: u32,
    },
    /// What a copy of the process has failed with, in its own words.
    #[error("{message}")]
    Reported {
        /// The message and its causes.
        message: String,
        /// The way out.
        hint: Option<String>,
        /// Whose fault it is.
        code: ExitCode,
    },
    /// The command does not exist in the container.
    #[error("cannot run '{}': {reason}", sanitize::bytes(.command))]
    Command {
        /// The command as typed.
        command: Vec<u8>,
        /// Why.
        reason: String,
        /// [`ExitCode::NotFound`] or [`ExitCode::NotExecutable`].
        code: ExitCode,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns the exit code of a program that ends with this error.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Error::Usage(_)
            | Error::Variable(_)
            | Error::EnvFile { .. }
            | Error::Reference { .. } => ExitCode::Usage,
            Error::Manifest(ManifestError::Malformed(_) | ManifestError::TooLarge) => {
                ExitCode::Usage
            }
            // No user can help it, and it would meet every job on this node.
            Error::Manifest(ManifestError::Newer(_)) => ExitCode::Internal,
            Error::Volumes(error) if error.is_malformed() => ExitCode::Usage,
            Error::Manifest(_)
            | Error::Volumes(_)
            | Error::Volume { .. }
            | Error::NoModule { .. }
            | Error::Denied { .. } => ExitCode::Denied,
            Error::NoImage(_) | Error::BadImage { .. } => ExitCode::Image,
            Error::Store(_)
            | Error::KernelModule { .. }
            | Error::Step { .. }
            | Error::NoAnswer { .. }
            | Error::SiteMount { .. }
            | Error::Hook { .. }
            | Error::Module { .. } => ExitCode::Mount,
            Error::Privilege(_) | Error::NotSetuid | Error::Rootless(_) => ExitCode::Privilege,
            Error::Config(_)
            | Error::Untrusted(_)
            | Error::Account { .. }
            | Error::Name { .. }
            | Error::Removed(_)
            | Error::Ssh(_)
            | Error::Leftover { .. } => ExitCode::Internal,
            Error::Command { code, .. } | Error::Reported { code, .. } => *code,
        }
    }

    /// Returns the way out, where one is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            // Images of the other types come from no registry.
            Error::NoImage(image) => image
                .strip_prefix("docker:")
                .map(|name| format!("shifter pull {}", sanitize::text(name))),
            Error::Variable(source) | Error::EnvFile { source, .. } => {
                source.hint().map(str::to_owned)
            }
            // Docker's -v is --volume.
            Error::Command {
                command,
                code: ExitCode::NotFound,
                ..
            } if command.starts_with(b"/") && command.windows(2).any(|two| two == b":/") => {
                Some("a volume is given with -V or --volume; -v is --verbose".to_owned())
            }
            Error::NotSetuid => Some("with --rootless it does without them".to_owned()),
            Error::Volume { hint, .. } | Error::Reported { hint, .. } => hint.clone(),
            Error::NoModule { known, .. } if known.is_empty() => {
                Some("this site has no modules".to_owned())
            }
            Error::NoModule { known, .. } => Some(format!("modules here: {}", known.join(", "))),
            Error::KernelModule { hint, .. } => Some(sanitize::text(hint)),
            Error::Denied { hint, .. } => hint.map(str::to_owned),
            Error::Config(error) => error.hint(),
            Error::Volumes(error) => error.hint(),
            Error::Reference { source, .. } => source.hint(),
            Error::Manifest(ManifestError::Volume(error)) => error.hint(),
            Error::Manifest(ManifestError::Newer(_)) => {
                Some("all nodes of a site need the same version of shifter".to_owned())
            }
            Error::Step { source, .. } if source.raw_os_error() == Some(libc::ENOSYS) => {
                let needed = "Linux 5.14 or newer is needed";
                Some(match sys::missing_call() {
                    Some(call) => format!("this kernel has no {call}(2): {needed}"),
                    None => needed.to_owned(),
                })
            }
            Error::Step {
                step: "open file system",
                object,
                source,
            } if source.raw_os_error() == Some(libc::ENODEV) => Some(format!(
                "this node's kernel lacks '{}': the site can list it in kernel.preload",
                sanitize::text(object)
            )),
            _ => None,
        }
    }

    /// Writes the message and its causes on one line.
    pub fn chain(&self) -> String {
        chain::line(self)
    }
}

/// Names the step and the object of an operating system error.
pub trait Context<T> {
    /// Turns the error into [`Error::Step`].
    fn step(self, step: &'static str, object: impl Into<Object>) -> Result<T>;
}

/// The object of a step: text or a path.
pub struct Object(String);

impl From<&str> for Object {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
impl From<&std::path::Path> for Object {
    fn from(path: &std::path::Path) -> Self {
        Self(path.to_string_lossy().into_owned())
    }
}
impl From<&PathBuf> for Object {
    fn from(path: &PathBuf) -> Self {
        Self::from(path.as_path())
    }
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn step(self, step: &'static str, object: impl Into<Object>) -> Result<T> {
        self.map_err(|error| Error::Step {
            step,
            object: object.into().0,
            source: error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_without_numbers() {
        let cause = io::Error::from_raw_os_error(libc::ENOENT);
        let error = Error::Step {
            step: "open",
            object: "a\nb".into(),
            source: cause,
        };
        assert_eq!(
            error.chain(),
            "cannot open 'a\\u{a}b': No such file or directory"
        );
        assert_eq!(error.exit_code(), ExitCode::Mount);
    }

    #[test]
    fn a_volume_that_is_taken_for_a_command_is_told() {
        let hint = |command: &str, code| {
            let (command, reason) = (command.into(), String::new());
            let error = Error::Command {
                command,
                reason,
                code,
            };
            error.hint()
        };
        assert!(hint("/scratch/me:/data", ExitCode::NotFound).is_some());
        assert_eq!(hint("/bin/ls", ExitCode::NotFound), None);
        assert_eq!(hint("/a:/b", ExitCode::NotExecutable), None);
    }

    #[test]
    fn a_missing_image_names_the_way_to_it() {
        let hint = |name: &str| Error::NoImage(name.into()).hint();
        assert_eq!(
            hint("docker:ubuntu:latest").as_deref(),
            Some("shifter pull ubuntu:latest")
        );
        assert_eq!(hint("id:00"), None);
        assert_eq!(hint("custom:mine:latest"), None);
    }

    #[test]
    fn a_node_that_is_too_old_is_at_fault_and_not_the_user() {
        let error = Error::Manifest(ManifestError::Newer(9));
        assert!(!error.exit_code().is_users_mistake());
        assert!(error.hint().is_some());
        let forged = Error::Manifest(ManifestError::Field { field: "cluster" });
        assert!(forged.exit_code().is_users_mistake());
    }
}
