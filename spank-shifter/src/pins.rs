//! What the submit side decided about a job, as it travels in the job's environment.
//!
//! ```text
//! SHIFTER_IMAGE         64 hexadecimal digits: the content, resolved once
//! SHIFTER_IMAGETYPE     id
//! SHIFTER_IMAGEREQUEST  docker:ubuntu:24.04          only shown and compared
//! SHIFTER_VOLUME        /a:/b;/c:/d:ro               absent if there are none
//! SHIFTER_SSHD          1                            ssh between the nodes; 0: none, whatever the site
//!                                                    does; absent if it decides
//! SHIFTER_MODULE        name,name                    none: not even the site's default ones;
//!                                                    absent if there are none
//! SHIFTER_AUTOSHIFT     1                            tasks run inside; absent if they do not
//! SHIFTER_CCM           1                            the host's own environment; the id is no image's
//! SHIFTER_ENTRYPOINT    1                            commands are started by the image's entry point; 0: those
//!                                                    of this step are not; absent if the job's are not
//! ```
//!
//! `sbatch` sets them for the job; Slurm shows them to a node's prolog as `SPANK_SHIFTER_…`, to
//! batch jobs and allocations as `SLURM_SPANK_SHIFTER_…`. A user can write all of these, so
//! whoever reads them gets only what is well-formed, and judges it again.

use shifter_core::ids::{IdError, ImageId};
use shifter_core::manifest::Modes;
use shifter_core::sanitize;
use shifter_core::volmap::{Origin, VolumeError, VolumeMap};
use thiserror::Error;

use crate::options::LIMIT;

/// The variable that makes a job ours.
pub const IMAGE: &str = "SHIFTER_IMAGE";
const IMAGE_TYPE: &str = "SHIFTER_IMAGETYPE";
const REQUEST: &str = "SHIFTER_IMAGEREQUEST";
const VOLUME: &str = "SHIFTER_VOLUME";
const MODULE: &str = "SHIFTER_MODULE";
const AUTOSHIFT: &str = "SHIFTER_AUTOSHIFT";
const CCM: &str = "SHIFTER_CCM";
const SSHD: &str = "SHIFTER_SSHD";
/// Whether commands are started by the image's entry point.
pub const ENTRYPOINT: &str = "SHIFTER_ENTRYPOINT";

/// All of them.
pub const NAMES: [&str; 9] = [
    IMAGE, IMAGE_TYPE, REQUEST, VOLUME, MODULE, AUTOSHIFT, CCM, SSHD, ENTRYPOINT,
];

/// Returns the name under which srun tells a step of its own what in a job it was given: Slurm keeps
/// variables of such names whatever `--export` says.
pub fn of_step(name: &str) -> String {
    format!("SLURM_STEP_{name}")
}

/// The name that means no module.
pub const NO_MODULE: &str = "none";

/// Modules that one job may name.
const MODULE_LIMIT: usize = 64;

/// Bytes that the canonical form of a reference may have.
const REQUEST_LIMIT: usize = 512;

/// Says what in a job's environment is not as we write it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PinError {
    /// The image id is not one.
    #[error(transparent)]
    Image(#[from] IdError),
    /// The kind of image is not `id`, so it is not pinned.
    #[error("image type '{}' is not 'id'", sanitize::text(.0))]
    Unpinned(String),
    /// The name of the image is too long or has control characters.
    #[error("image name '{}' is not well-formed", sanitize::text(.0))]
    Request(String),
    /// The volumes are refused.
    #[error("cannot use the job's volumes")]
    Volume(#[from] VolumeError),
    /// The text cannot be the name of a module.
    #[error("'{}' is not the name of a module", sanitize::text(.0))]
    Module(String),
    /// More names than any site has modules.
    #[error("a job can use at most {MODULE_LIMIT} modules")]
    TooManyModules,
    /// What is either there or not has a value that we never write.
    #[error("{name} is '{}' and not 1", sanitize::text(.value))]
    Switch {
        /// The variable.
        name: &'static str,
        /// What it says.
        value: String,
    },
    /// A value is longer than anything we write.
    #[error("the value of {0} is longer than {LIMIT} bytes")]
    TooLong(&'static str),
}

/// The decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// The image's id.
    pub id: ImageId,
    /// What the user asked for, in canonical form.
    pub request: String,
    /// The volumes.
    pub volumes: VolumeMap,
    /// The modules, in the order given.
    pub modules: Vec<String>,
    /// How the job's tasks meet its root.
    pub modes: Modes,
}

impl Pins {
    /// True if a job's root, with these pins, is word for word what a step's pins ask for.
    pub fn is_same(&self, step: &Self) -> bool {
        let has_modes = (self.modes.ccm || !step.modes.ccm)
            && (self.modes.ssh == Some(true) || step.modes.ssh != Some(true));
        has_modes
            && self.id == step.id
            && self.modules == step.modules
            && self.volumes.signature() == step.volumes.signature()
    }

    /// Pins the host's own environment: an id that no image has, and no module.
    pub fn of_host() -> Option<Self> {
        Some(Self {
            id: ImageId::of_tree("ccm")?,
            request: "local:/".into(),
            volumes: VolumeMap::default(),
            modules: vec![NO_MODULE.to_owned()],
            modes: Modes {
                ccm: true,
                ..Modes::default()
            },
        })
    }

    /// Returns every variable with its value; those without one are to be removed.
    pub fn to_env(&self) -> [(&'static str, Option<String>); NAMES.len()] {
        let some = |text: String| (!text.is_empty()).then_some(text);
        [
            (IMAGE, Some(self.id.to_string())),
            (IMAGE_TYPE, Some("id".to_owned())),
            (REQUEST, Some(self.request.clone())),
            (VOLUME, some(self.volumes.signature())),
            (MODULE, some(self.modules.join(","))),
            (AUTOSHIFT, on(self.modes.autoshift)),
            (CCM, on(self.modes.ccm)),
            (SSHD, self.modes.ssh.map(|on| u8::from(on).to_string())),
            (ENTRYPOINT, on(self.modes.entrypoint)),
        ]
    }

    /// Reads the variables through `get`; nothing if there is no image.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, PinError> {
        let value = |name: &'static str| match get(name) {
            Some(text) if text.len() > LIMIT => Err(PinError::TooLong(name)),
            text => Ok(text.unwrap_or_default()),
        };
        if get(IMAGE).is_none() {
            return Ok(None);
        }
        let image_type = value(IMAGE_TYPE)?;
        if image_type != "id" {
            return Err(PinError::Unpinned(image_type));
        }
        let request = value(REQUEST)?;
        let plain = request.len() <= REQUEST_LIMIT && !request.chars().any(char::is_control);
        if !plain {
            return Err(PinError::Request(request));
        }
        let switch = |name| match value(name)?.as_str() {
            "" => Ok(false),
            "1" => Ok(true),
            other => Err(PinError::Switch {
                name,
                value: other.to_owned(),
            }),
        };
        let modes = Modes {
            autoshift: switch(AUTOSHIFT)?,
            ccm: switch(CCM)?,
            ssh: match value(SSHD)?.as_str() {
                "" => None,
                "0" => Some(false),
                _ => Some(switch(SSHD)?),
            },
            // 0 is what a step is told that does without its job's.
            entrypoint: value(ENTRYPOINT)? != "0" && switch(ENTRYPOINT)?,
        };
        let modules = value(MODULE)?;
        Ok(Some(Self {
            id: ImageId::parse(&value(IMAGE)?)?,
            request,
            volumes: parse_volumes(Some(value(VOLUME)?.as_str()).filter(|text| !text.is_empty()))?,
            modules: parse_modules(Some(modules.as_str()).filter(|text| !text.is_empty()))?,
            modes,
        }))
    }
}

/// Returns the value of a variable that is there or not.
fn on(is_on: bool) -> Option<String> {
    is_on.then(|| "1".to_owned())
}

/// Reads a user's volume maps.
pub fn parse_volumes<'a>(
    maps: impl IntoIterator<Item = &'a str>,
) -> Result<VolumeMap, VolumeError> {
    VolumeMap::parse_many(maps, Origin::User)
}

/// Splits lists of module names at their commas; a name given twice counts once.
pub fn parse_modules<'a>(
    lists: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<String>, PinError> {
    let mut names: Vec<String> = Vec::new();
    for name in lists.into_iter().flat_map(|list| list.split(',')) {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(ok) || name.starts_with(['.', '-'])
        {
            return Err(PinError::Module(name.to_owned()));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    if names.len() > MODULE_LIMIT {
        Err(PinError::TooManyModules)
    } else {
        Ok(names)
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    pub fn sample() -> Pins {
        Pins {
            id: ImageId::parse(&"a".repeat(64)).unwrap(),
            request: "docker:ubuntu:24.04".into(),
            volumes: parse_volumes(["/scratch:/mnt", "/data:/data2:ro"]).unwrap(),
            modules: vec!["mpi".into(), "gpu".into()],
            modes: Modes {
                autoshift: true,
                ssh: Some(true),
                entrypoint: true,
                ..Modes::default()
            },
        }
    }

    fn read(env: &BTreeMap<&str, String>) -> Result<Option<Pins>, PinError> {
        Pins::from_env(|name| env.get(name).cloned())
    }

    fn written(pins: &Pins) -> BTreeMap<&'static str, String> {
        let set = pins.to_env().into_iter();
        set.filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let full = sample();
        assert_eq!(
            written(&full)["SHIFTER_VOLUME"],
            "/data:/data2:ro;/scratch:/mnt"
        );
        assert_eq!(written(&full)["SHIFTER_MODULE"], "mpi,gpu");
        assert_eq!(
            read(&written(&full)).unwrap().unwrap().to_env(),
            full.to_env()
        );
        let bare = Pins {
            volumes: VolumeMap::default(),
            modules: Vec::new(),
            modes: Modes::default(),
            ..sample()
        };
        assert_eq!(written(&bare).len(), 3);
        assert_eq!(read(&written(&bare)), Ok(Some(bare)));
    }

    #[test]
    fn no_image_is_no_job_of_ours() {
        let mut env = written(&sample());
        env.remove(IMAGE);
        assert_eq!(read(&env), Ok(None));
    }

    #[test]
    fn forged_values_are_refused() {
        let table = [
            (IMAGE, ""),
            (IMAGE, "../../etc/passwd"),
            (IMAGE, "AAAA"),
            (IMAGE_TYPE, "docker"),
            (IMAGE_TYPE, ""),
            (REQUEST, "a\nb"),
            (VOLUME, "/etc:/etc"),
            (VOLUME, "/a:/b:rec"),
            (VOLUME, "/a"),
            (MODULE, "a,,b"),
            (MODULE, "a b"),
            (MODULE, "-x"),
            (MODULE, "$(reboot)"),
            (AUTOSHIFT, "0"),
            (CCM, "yes"),
            (ENTRYPOINT, "/bin/sh"),
        ];
        for (name, value) in table {
            let mut env = written(&sample());
            env.insert(name, value.to_owned());
            assert!(read(&env).is_err(), "{name}={value}");
        }
        for name in [REQUEST, VOLUME, MODULE] {
            let mut env = written(&sample());
            env.insert(name, "a".repeat(LIMIT + 1));
            assert_eq!(read(&env), Err(PinError::TooLong(name)));
        }
    }

    #[test]
    fn module_lists_are_joined() {
        assert_eq!(parse_modules(["a,b", "c", "b"]).unwrap(), ["a", "b", "c"]);
        assert!(parse_modules([]).unwrap().is_empty());
        let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
        let many = parse_modules(many.iter().map(String::as_str));
        assert_eq!(many, Err(PinError::TooManyModules));
    }

    proptest! {
        #[test]
        fn reading_is_total(image in "\\PC{0,70}", volume in "\\PC{0,40}", module in "\\PC{0,20}") {
            let env = BTreeMap::from([
                (IMAGE, image), (IMAGE_TYPE, "id".into()), (VOLUME, volume), (MODULE, module),
            ]);
            if let Ok(Some(pins)) = read(&env) {
                prop_assert_eq!(read(&written(&pins)), Ok(Some(pins)));
            }
        }
    }
}
