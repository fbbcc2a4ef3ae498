//! The job manifest: everything a batch system knows about a job, as one value.
//!
//! Each batch system's adaptor produces it; `setupRoot` alone consumes it. On the wire it is
//! one JSON object of at most 1 MiB. What in it came from a user is judged again by the reader:
//! deserialising proves form, never permission.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::hostlist::{self, HostSlots, is_host_name};
use crate::identity::Identity;
use crate::ids::{ImageId, JobId};
use crate::ssh::JobKeys;
use crate::volmap::{Origin, VolumeError, VolumeMap};

/// The schema this version writes: 2 since hosts are written as ranges.
pub const SCHEMA: u32 = 2;

/// The oldest schema this version reads: jobs that began before an update end after it.
const OLDEST_SCHEMA: u32 = 1;

/// Bytes a manifest may have.
pub const SIZE_LIMIT: u64 = 1 << 20;

/// Task slots of all nodes together: each is a line of the container's host file.
pub const SLOT_LIMIT: u64 = 1 << 20;

/// Says why a manifest is refused.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It is larger than [`SIZE_LIMIT`].
    #[error("the job manifest is larger than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// It is not JSON of the expected shape.
    #[error("the job manifest cannot be read")]
    Malformed(#[from] serde_json::Error),
    /// A newer version wrote it.
    #[error(
        "the job manifest was written by a newer version of shifter: it has schema {0}, and this \
         program reads {OLDEST_SCHEMA} to {SCHEMA}"
    )]
    Newer(u32),
    /// A field is not what it must be.
    #[error("the job manifest's {field} is not well-formed")]
    Field {
        /// The field's name.
        field: &'static str,
    },
    /// A volume is refused.
    #[error("cannot use the job's volumes")]
    Volume(#[from] VolumeError),
    /// It disagrees with what the batch system itself says.
    #[error("the job manifest is for {what} {found} and the batch system says {expected}")]
    Mismatch {
        /// The thing compared: "uid" or "job".
        what: &'static str,
        /// The manifest's value.
        found: String,
        /// The batch system's value.
        expected: String,
    },
}

/// The image of a job, resolved once on the submit side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedImage {
    /// The id that pins the content.
    pub id: ImageId,
    /// What the user asked for, in canonical form; only shown and compared, never resolved.
    pub reference: String,
}

/// How a job's processes meet its root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Modes {
    /// The batch script and the steps' tasks run inside without saying so.
    pub autoshift: bool,
    /// The host's own environment takes the place of an image.
    pub ccm: bool,
    /// Whether the job's nodes are to reach one another by ssh; nothing leaves it to the site.
    pub ssh: Option<bool>,
    /// Commands are started by the image's entry point.
    pub entrypoint: bool,
}

/// What a job is, and what its root must contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobManifest {
    /// [`SCHEMA`], also where an older one was read.
    pub schema: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// The batch system's id of the job.
    pub job: JobId,
    /// How often the job was started before.
    pub restart: u32,
    /// The job's owner, as the batch system and the name service know them.
    pub user: Identity,
    /// The image.
    pub image: ResolvedImage,
    /// The user's volumes, in the volume grammar.
    pub volumes: Vec<String>,
    /// Names of the modules, in the order given.
    pub modules: Vec<String>,
    /// The job's nodes with their task slots; runs of names are written as ranges.
    #[serde(with = "hostlist::packed")]
    pub hosts: Vec<HostSlots>,
    /// When the manifest was written, in seconds since 1970.
    pub created: u64,
    /// How its processes meet the root.
    #[serde(default)]
    pub modes: Modes,
    /// The keys with which the job's nodes reach one another, if they do. Secret: whoever reads
    /// the manifest can be the job's user on each of them.
    #[serde(default)]
    pub ssh: Option<JobKeys>,
}

/// One start of a job. Batch systems start a job again under its id, and one that was set up anew
/// gives ids out again. As text `UID:RESTART:CREATED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The job's owner.
    pub uid: u32,
    /// How often the job was started before.
    pub restart: u32,
    /// When it was prepared, in seconds since 1970.
    pub created: u64,
}

impl Start {
    /// Reads the text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let start = Self {
            uid: parts.next()?.parse().ok()?,
            restart: parts.next()?.parse().ok()?,
            created: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(start)
    }

    /// True if this may be a later start than the other. Clocks of two launch nodes may differ,
    /// and the count begins anew with another job: either of them is enough.
    pub fn is_after(&self, other: &Self) -> bool {
        self.created > other.created || (self.uid == other.uid && self.restart > other.restart)
    }
}

impl fmt::Display for Start {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}", self.uid, self.restart, self.created)
    }
}

impl JobManifest {
    /// Returns which start of the job this is about.
    pub fn start(&self) -> Start {
        Start {
            uid: self.user.uid,
            restart: self.restart,
            created: self.created,
        }
    }

    /// Reads a manifest and checks its form.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > SIZE_LIMIT {
            return Err(ManifestError::TooLarge);
        }
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        let head: Head = serde_json::from_slice(bytes)?;
        match head.schema {
            OLDEST_SCHEMA..=SCHEMA => {}
            0 => return Err(ManifestError::Field { field: "schema" }),
            newer => return Err(ManifestError::Newer(newer)),
        }
        let manifest = Self {
            schema: SCHEMA,
            ..serde_json::from_slice(bytes)?
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Writes the manifest as it is read by [`JobManifest::parse`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() as u64 > SIZE_LIMIT {
            return Err(ManifestError::TooLarge);
        }
        Ok(bytes)
    }

    /// Refuses a manifest that is not for the job and user the batch system names.
    pub fn expect(&self, uid: u32, job: &JobId) -> Result<(), ManifestError> {
        if self.user.uid != uid {
            return Err(ManifestError::Mismatch {
                what: "uid",
                found: self.user.uid.to_string(),
                expected: uid.to_string(),
            });
        }
        if self.job != *job {
            return Err(ManifestError::Mismatch {
                what: "job",
                found: self.job.to_string(),
                expected: job.to_string(),
            });
        }
        Ok(())
    }

    /// Judges the user's volumes by the policy for users.
    pub fn volume_map(&self) -> Result<VolumeMap, ManifestError> {
        let texts = self.volumes.iter().map(String::as_str);
        Ok(VolumeMap::parse_many(texts, Origin::User)?)
    }

    fn slots(&self) -> u64 {
        self.hosts.iter().map(|host| u64::from(host.slots)).sum()
    }

    fn check(&self) -> Result<(), ManifestError> {
        let plain = |text: &str| text.len() <= 512 && !text.chars().any(char::is_control);
        let hosts = self.hosts.iter().map(|host| host.name.as_str());
        let rules = [
            ("cluster", JobId::parse(&self.cluster).is_ok()),
            ("user", self.user.is_well_formed()),
            ("image", plain(&self.image.reference)),
            (
                "modules",
                self.modules.len() <= 256 && self.modules.iter().all(|m| plain(m)),
            ),
            ("ssh", self.ssh.as_ref().is_none_or(JobKeys::is_well_formed)),
            (
                "hosts",
                hosts.into_iter().all(is_host_name) && self.slots() <= SLOT_LIMIT,
            ),
        ];
        match rules.into_iter().find(|(_, holds)| !holds) {
            Some((field, _)) => Err(ManifestError::Field { field }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::tests::sample as sample_keys;

    fn sample() -> JobManifest {
        JobManifest {
            schema: SCHEMA,
            cluster: "mini".into(),
            job: JobId::parse("17").unwrap(),
            restart: 0,
            user: Identity::from_passwd_line("alice:x:2001:2001::/home/alice:/bin/sh", 2001)
                .unwrap(),
            image: ResolvedImage {
                id: ImageId::parse(&"a".repeat(64)).unwrap(),
                reference: "docker:ubuntu:24.04".into(),
            },
            volumes: vec!["/scratch:/mnt".into()],
            modules: Vec::new(),
            hosts: vec![HostSlots {
                name: "n1".into(),
                slots: 2,
            }],
            created: 1,
            modes: Modes {
                autoshift: true,
                ccm: false,
                ssh: Some(true),
                entrypoint: true,
            },
            ssh: Some(sample_keys()),
        }
    }

    #[test]
    fn round_trips() {
        let manifest = sample();
        let read = JobManifest::parse(&manifest.to_bytes().unwrap()).unwrap();
        assert_eq!(read, manifest);
        assert_eq!(read.volume_map().unwrap().entries()[0].to, "/mnt");
    }

    #[test]
    fn starts_of_a_job_have_an_order() {
        let start = |text| Start::parse(text).unwrap();
        let first = start("2001:1:100");
        assert_eq!(first.to_string(), "2001:1:100");
        // Again; at once; with a clock behind; another job, of the same user and of another's.
        for later in ["2001:2:200", "2001:2:100", "2001:2:90", "2001:0:200"] {
            assert!(start(later).is_after(&first), "{later}");
        }
        assert!(start("2002:0:200").is_after(&first));
        for other in ["2001:1:100", "2001:0:90", "2002:2:90", "2002:2:100"] {
            assert!(!start(other).is_after(&first), "{other}");
        }
        for text in ["", "1:1", "1:1:1:1", "a:1:1", "1:-1:1", "1:1:"] {
            assert_eq!(Start::parse(text), None, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_well_formed() {
        let text = String::from_utf8(sample().to_bytes().unwrap()).unwrap();
        let table = [
            ("\"schema\":2", "\"schema\":0"),
            ("\"job\":\"17\"", "\"job\":\"../17\""),
            ("\"cluster\":\"mini\"", "\"cluster\":\"a/b\""),
            ("aaaaaaaa", "AAAAAAAA"),
            ("\"name\":\"alice\"", "\"name\":\"al:ice\""),
            ("\"restart\":0", "\"restart\":-1"),
            ("ssh-ed25519", "command=x ssh-ed25519"),
            ("\"restart\":0", "\"restart\":0,\"more\":1"),
            ("\"name\":\"n1\"", "\"name\":\"n1\\nroot\""),
            ("\"name\":\"n1\"", "\"name\":\"-o[1-2]\""),
            ("\"name\":\"n1\"", "\"name\":\"n[1-65537]\""),
        ];
        for (from, to) in table {
            let forged = text.replacen(from, to, 1);
            assert_ne!(forged, text, "{from}");
            assert!(JobManifest::parse(forged.as_bytes()).is_err(), "{to}");
        }
        assert!(matches!(
            JobManifest::parse(&vec![b' '; SIZE_LIMIT as usize + 1]),
            Err(ManifestError::TooLarge)
        ));
    }

    #[test]
    fn a_run_of_hosts_takes_the_room_of_one() {
        let mut manifest = sample();
        let alone = manifest.to_bytes().unwrap().len();
        manifest.hosts = (1..=8192)
            .map(|number| HostSlots {
                name: format!("nid{number:05}"),
                slots: 16,
            })
            .collect();
        let bytes = manifest.to_bytes().unwrap();
        assert!(bytes.len() < alone + 40, "{}", bytes.len());
        assert_eq!(JobManifest::parse(&bytes).unwrap(), manifest);
    }

    #[test]
    fn is_read_as_an_older_version_wrote_it_and_refused_as_a_newer_one_s() {
        let text = String::from_utf8(sample().to_bytes().unwrap()).unwrap();
        let of_schema = |number: u32| {
            let other = text.replacen("\"schema\":2", &format!("\"schema\":{number}"), 1);
            JobManifest::parse(other.as_bytes())
        };
        assert_eq!(of_schema(1).unwrap(), sample());
        let message = of_schema(3).unwrap_err().to_string();
        assert!(message.contains("a newer version"), "{message}");
        // What else is in it is not looked at.
        let newer = br#"{"schema":3,"hosts":{"first":"n1"}}"#;
        let refused = JobManifest::parse(newer);
        assert!(matches!(refused, Err(ManifestError::Newer(3))));
    }

    #[test]
    fn what_an_older_version_left_out_has_a_default() {
        let mut text: serde_json::Value =
            serde_json::from_slice(&sample().to_bytes().unwrap()).unwrap();
        let fields = text.as_object_mut().unwrap();
        fields.remove("modes");
        fields.remove("ssh");
        let read = JobManifest::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!((read.modes, read.ssh), (Modes::default(), None));
    }

    #[test]
    fn must_agree_with_the_batch_system() {
        let manifest = sample();
        let job = JobId::parse("17").unwrap();
        assert!(manifest.expect(2001, &job).is_ok());
        assert!(manifest.expect(0, &job).is_err());
        assert!(manifest.expect(2001, &JobId::parse("18").unwrap()).is_err());
        let mut forged = sample();
        forged.volumes = vec!["/scratch:/etc".into()];
        assert!(forged.volume_map().is_err());
    }
}
