//! How a hook is called: by a mom, by a site's own script, or by a hook of OpenPBS.
//!
//! ```text
//! prologue               JOB USER GROUP JOBNAME RESOURCES QUEUE ACCOUNT SCRIPT      Torque
//! prologue               JOB USER GROUP                                            OpenPBS
//! epilogue               JOB USER GROUP JOBNAME SESSION RESOURCES USED ...
//! cray-shifter-prologue  JOB USER GROUP RESERVATION NIDS            a site's own script
//! udiRoot-prologue       JOB USER TYPE VALUE [-v VOLUME]... [-m local|alps] [-n NODES] [-N TASKS]
//! execjob_begin          (facts as JSON on standard input)          conf/torque/*.py
//! ```
//!
//! The role is the last component of `argv[0]`, or `--as=ROLE`. User and group are the words that the
//! batch system itself gives, never variables.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shifter_core::identity::is_account_name;
use shifter_core::ids::{IdError, JobId};
use shifter_core::sanitize;
use thiserror::Error;

/// Bytes that one word may have.
const WORD_LIMIT: usize = 1 << 20;

/// What a hook is run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// On the launch node, before the job.
    Prologue,
    /// On the launch node, after the job.
    Epilogue,
    /// On every other node, before.
    ParallelPrologue,
    /// On every other node, after.
    ParallelEpilogue,
    /// Runs as the user, or has nothing to do.
    Nothing,
}

/// The words of a call, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// What to do.
    pub role: Role,
    /// The job.
    pub job: JobId,
    /// The name of its user.
    pub user: String,
    /// The name of the group it runs with; the account's own if nothing is said.
    pub group: Option<String>,
    /// The job's resources, as the mom has them.
    pub resources: Option<String>,
    /// ALPS's reservation.
    pub reservation: Option<String>,
    /// Cray node numbers.
    pub nids: Option<String>,
    /// What is asked for, where the caller says so itself.
    pub direct: Option<Direct>,
    /// The site's configuration, if it is not where it usually is.
    pub config: Option<PathBuf>,
}

impl Call {
    /// Returns whose job it is, as the log has it.
    pub fn subject(&self) -> String {
        format!("job {} of {}", self.job, self.user)
    }
}

/// A request in the words of `udiRoot-prologue`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direct {
    /// The image, with its type.
    pub image: String,
    /// Volumes.
    pub volumes: Vec<String>,
    /// The nodes, if given.
    pub nodes: Option<String>,
    /// Through ALPS or not, if given.
    pub alps: Option<bool>,
}

/// Says what is wrong with a call.
#[derive(Debug, Error)]
pub enum CallError {
    /// No job or no user.
    #[error("'{0}' needs the job's id and its user")]
    Words(String),
    /// The id has characters that no batch system uses.
    #[error(transparent)]
    Job(#[from] IdError),
    /// The name cannot be one of a user or group.
    #[error("'{}' is not the name of a {kind}", sanitize::text(.name))]
    Account {
        /// "user" or "group".
        kind: &'static str,
        /// The word.
        name: String,
    },
    /// An option is unknown or lacks its value.
    #[error("cannot understand option '{}'", sanitize::text(.0))]
    Option(String),
    /// The role is unknown.
    #[error("'{}' is not a role", sanitize::text(.0))]
    Role(String),
    /// A word is longer than any.
    #[error("a word is longer than {WORD_LIMIT} bytes")]
    Long,
}

/// How the words after the options are to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Convention {
    Mom,
    Cray,
    UdiRoot,
    Facts,
}

/// A call before its words are read.
pub enum Opened {
    /// The words follow.
    Words(Box<Call>),
    /// The facts are on standard input.
    Facts(Role, Option<PathBuf>),
    /// There is nothing to do.
    Nothing,
}

/// Reads the words of a call; `fallback` is the role of a name that is none.
pub fn parse(words: &[String], fallback: Role) -> Result<Opened, CallError> {
    if words.iter().any(|word| word.len() > WORD_LIMIT) {
        return Err(CallError::Long);
    }
    let (name, mut rest) = words.split_first().map_or(("", &[][..]), |(first, rest)| {
        (first.rsplit('/').next().unwrap_or_default(), rest)
    });
    let mut known = role_of(name).unwrap_or((fallback, Convention::Mom));
    let mut config = None;
    while let Some((option, more)) = rest.split_first() {
        if let Some(name) = option.strip_prefix("--as=") {
            known = role_of(name).ok_or_else(|| CallError::Role(name.to_owned()))?;
        } else if let Some(path) = option.strip_prefix("--config=") {
            config = Some(path.into());
        } else if option.starts_with("--") {
            return Err(CallError::Option(option.clone()));
        } else {
            break;
        }
        rest = more;
    }
    let (role, convention) = known;
    if role == Role::Nothing {
        return Ok(Opened::Nothing);
    }
    if convention == Convention::Facts {
        return Ok(Opened::Facts(role, config));
    }
    let [job, user, more @ ..] = rest else {
        return Err(CallError::Words(sanitize::text(name)));
    };
    let mut call = Call {
        role,
        job: JobId::parse(job)?,
        user: account("user", user)?,
        group: None,
        resources: None,
        reservation: None,
        nids: None,
        direct: None,
        config,
    };
    if convention == Convention::UdiRoot {
        call.direct = udi_root(role, more)?;
        return Ok(Opened::Words(Box::new(call)));
    }
    let word = |at: usize| more.get(at).filter(|word| !word.is_empty()).cloned();
    call.group = word(0).map(|name| account("group", &name)).transpose()?;
    if convention == Convention::Cray {
        (call.reservation, call.nids) = (word(1), word(2));
    } else {
        call.resources = match role {
            Role::Prologue | Role::ParallelPrologue => word(2),
            _ => word(3),
        };
    }
    Ok(Opened::Words(Box::new(call)))
}

fn role_of(name: &str) -> Option<(Role, Convention)> {
    use Convention::{Cray, Facts, Mom, UdiRoot};
    Some(match name {
        "prologue" | "shifter-prologue" => (Role::Prologue, Mom),
        "epilogue" | "shifter-epilogue" => (Role::Epilogue, Mom),
        "prologue.parallel" => (Role::ParallelPrologue, Mom),
        "epilogue.parallel" => (Role::ParallelEpilogue, Mom),
        "prologue.user"
        | "epilogue.user"
        | "prologue.user.parallel"
        | "epilogue.user.parallel"
        | "epilogue.precancel" => (Role::Nothing, Mom),
        "cray-shifter-prologue" => (Role::Prologue, Cray),
        "cray-shifter-epilogue" => (Role::Epilogue, Cray),
        "udiRoot-prologue" => (Role::Prologue, UdiRoot),
        "udiRoot-epilogue" => (Role::Epilogue, UdiRoot),
        "execjob_begin" => (Role::Prologue, Facts),
        "execjob_end" => (Role::Epilogue, Facts),
        _ => return None,
    })
}

/// Checks the name of a user or group.
pub fn account(kind: &'static str, name: &str) -> Result<String, CallError> {
    // It becomes an argument of getent, and of nothing else.
    if is_account_name(name) && !name.contains(char::is_whitespace) {
        Ok(name.to_owned())
    } else {
        Err(CallError::Account {
            kind,
            name: name.to_owned(),
        })
    }
}

fn udi_root(role: Role, words: &[String]) -> Result<Option<Direct>, CallError> {
    let mut direct = Direct::default();
    let mut words = words.iter();
    if role == Role::Prologue {
        let (Some(image_type), Some(value)) = (words.next(), words.next()) else {
            return Err(CallError::Words("udiRoot-prologue".into()));
        };
        direct.image = format!("{image_type}:{value}");
    }
    while let Some(option) = words.next() {
        let refused = || CallError::Option(option.clone());
        let value = words.next().ok_or_else(refused)?;
        match option.as_str() {
            "-v" => direct.volumes.push(value.clone()),
            "-n" => direct.nodes = Some(value.clone()),
            // The nodes' tasks come from the batch system.
            "-N" => {}
            "-m" => {
                direct.alps = Some(match value.as_str() {
                    "alps" => true,
                    "local" => false,
                    _ => return Err(refused()),
                });
            }
            _ => return Err(refused()),
        }
    }
    Ok((role == Role::Prologue).then_some(direct))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn call(of: &[&str]) -> Call {
        match parse(&words(of), Role::Prologue) {
            Ok(Opened::Words(call)) => *call,
            Ok(_) => panic!("{of:?}: nothing"),
            Err(error) => panic!("{of:?}: {error}"),
        }
    }

    /// As Torque 6.1.3 calls its hooks.
    const PROLOGUE: [&str; 9] = [
        "/var/spool/torque/mom_priv/prologue",
        "3.server",
        "alice",
        "physics",
        "myjob",
        "nodes=2:ppn=3,gres=shifter16,walltime=00:10:00,neednodes=2:ppn=3",
        "batch",
        "proj1",
        "/var/spool/torque/mom_priv/jobs/3.server.SC",
    ];

    const EPILOGUE: [&str; 12] = [
        "epilogue.parallel",
        "3.server",
        "alice",
        "physics",
        "myjob",
        "0",
        "nodes=2:ppn=3,gres=shifter16",
        "cput=00:00:00",
        "batch",
        "proj1",
        "0",
        "/var/spool/torque/mom_priv/jobs/3.server.SC",
    ];

    #[test]
    fn the_moms_words() {
        let prologue = call(&PROLOGUE);
        assert_eq!(prologue.role, Role::Prologue);
        assert_eq!(
            (
                prologue.job.as_str(),
                &*prologue.user,
                prologue.group.as_deref()
            ),
            ("3.server", "alice", Some("physics"))
        );
        assert_eq!(prologue.resources.as_deref(), Some(PROLOGUE[5]));
        let epilogue = call(&EPILOGUE);
        assert_eq!(epilogue.role, Role::ParallelEpilogue);
        assert_eq!(epilogue.resources.as_deref(), Some(EPILOGUE[6]));
        let openpbs = call(&["prologue", "1[2].server", "alice", "physics"]);
        assert_eq!(
            (openpbs.job.as_str(), openpbs.resources),
            ("1[2].server", None)
        );
    }

    #[test]
    fn the_name_decides_and_the_option_before_it() {
        let table = [
            ("shifter-prologue", Role::Prologue),
            ("/x/epilogue", Role::Epilogue),
            ("prologue.parallel", Role::ParallelPrologue),
            ("udiRoot-epilogue", Role::Epilogue),
            ("cray-shifter-epilogue", Role::Epilogue),
            ("any-other-name", Role::Prologue),
        ];
        for (name, role) in table {
            assert_eq!(call(&[name, "1", "alice"]).role, role, "{name}");
        }
        let by_option = call(&["prologue", "--as=epilogue", "--config=/c", "1", "alice"]);
        assert_eq!(by_option.role, Role::Epilogue);
        assert_eq!(by_option.config, Some("/c".into()));
        for name in [
            "epilogue.precancel",
            "prologue.user",
            "epilogue.user.parallel",
        ] {
            let opened = parse(&words(&[name, "1"]), Role::Prologue);
            assert!(matches!(opened, Ok(Opened::Nothing)), "{name}");
        }
        let opened = parse(&words(&["x", "--as=execjob_end"]), Role::Prologue);
        assert!(matches!(opened, Ok(Opened::Facts(Role::Epilogue, None))));
    }

    #[test]
    fn the_words_of_sites_own_scripts() {
        let cray = call(&[
            "cray-shifter-prologue",
            "5.s",
            "alice",
            "g",
            "3148",
            "20-23,40",
        ]);
        assert_eq!(cray.reservation.as_deref(), Some("3148"));
        assert_eq!(cray.nids.as_deref(), Some("20-23,40"));
        let old = call(&[
            "udiRoot-prologue",
            "5",
            "alice",
            "docker",
            "ubuntu:24.04",
            "-v",
            "/a:/b",
            "-m",
            "alps",
            "-n",
            "20-21",
            "-N",
            "16",
            "-v",
            "/c:/d",
        ]);
        let direct = old.direct.unwrap();
        assert_eq!(direct.image, "docker:ubuntu:24.04");
        assert_eq!(direct.volumes, ["/a:/b", "/c:/d"]);
        assert_eq!(
            (direct.nodes.as_deref(), direct.alps),
            (Some("20-21"), Some(true))
        );
        assert_eq!(
            call(&["udiRoot-epilogue", "5", "alice", "-m", "alps"]).direct,
            None
        );
    }

    #[test]
    fn what_no_batch_system_says_is_refused() {
        let table: [&[&str]; 16] = [
            &["prologue"],
            &["prologue", "1"],
            &["prologue", "$(reboot)", "alice"],
            &["prologue", "1;id", "alice"],
            &["prologue", "../1", "alice"],
            &["prologue", "1\n2", "alice"],
            &["prologue", "1", "$(id)\n"],
            &["prologue", "1", "al ice"],
            &["prologue", "1", "-x"],
            &["prologue", "1", ""],
            &["prologue", "1", "alice", "a:b"],
            &["prologue", "--what", "1", "alice"],
            &["prologue", "--as=x", "1", "alice"],
            &["udiRoot-prologue", "1", "alice", "docker"],
            &["udiRoot-prologue", "1", "alice", "docker", "x", "-v"],
            &[
                "udiRoot-prologue",
                "1",
                "alice",
                "docker",
                "x",
                "-m",
                "$(id)",
            ],
        ];
        for of in table {
            assert!(parse(&words(of), Role::Prologue).is_err(), "{of:?}");
        }
    }
}
