//! A step's view of its job's root: what its tasks are told, or why they cannot run.
//!
//! Read once, in slurmstepd before it forks, where the host's mounts are still in view; the
//! tasks only repeat the verdict. A step must not run on the host in silence when its job asked
//! for an image.

use std::io::ErrorKind;
use std::path::Path;

use shifter_core::ids::JobId;
use shifter_core::layout::{self, FAILURE_LIMIT, JOB_ROOT};
use shifter_core::manifest::{self, JobManifest};
use shifter_core::sanitize;
use shifter_core::trusted::{self, TrustError};

use crate::pins::{self, Pins};
use crate::report;

/// What the node knows about a job.
#[derive(Debug, Default)]
pub struct NodeState {
    /// The user's mistake that the prolog recorded.
    failure: Option<Vec<u8>>,
    /// The manifest that the root was built from.
    manifest: Option<Vec<u8>>,
    /// True if the root is there to be joined.
    has_root: bool,
    /// A file that is there and cannot be used.
    broken: Option<String>,
}

/// What becomes of a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Variables for the tasks; those without a value are to be removed.
    pub env: Vec<(&'static str, Option<String>)>,
    /// What the step's root was built from, where there is one.
    pub pins: Option<Pins>,
    /// The lines with which the tasks fail; they run if there are none.
    pub refusal: Vec<String>,
}

impl NodeState {
    /// Reads what is there; nothing in it is there for most jobs.
    pub fn read(job: &JobId) -> Self {
        let mut state = Self::default();
        if !layout::job_dir(job).exists() {
            return state;
        }
        state.failure = state.file(&layout::failure_file(job), FAILURE_LIMIT);
        state.manifest = state.file(&layout::manifest_file(job), manifest::SIZE_LIMIT);
        state.has_root = layout::job_dir(job)
            .join("roots")
            .join(JOB_ROOT)
            .join("mnt")
            .exists();
        state
    }

    /// True if the node knows nothing of the job.
    pub fn is_empty(&self) -> bool {
        self.failure.is_none() && self.manifest.is_none() && self.broken.is_none() && !self.has_root
    }

    fn file(&mut self, path: &Path, limit: u64) -> Option<Vec<u8>> {
        match trusted::read(path, limit) {
            Ok(bytes) => Some(bytes),
            Err(TrustError::Unreadable { source, .. }) if source.kind() == ErrorKind::NotFound => {
                None
            }
            Err(error) => {
                self.broken = Some(report::chain(&error));
                None
            }
        }
    }
}

/// Judges a step of user `uid`; `asked` says whether its job or the step itself asked for an image.
pub fn judge(state: &NodeState, job: &JobId, uid: u32, asked: bool) -> Step {
    match (&state.failure, &state.manifest, &state.broken) {
        (_, _, Some(reason)) => refuse(&format!("cannot read the state of job {job}: {reason}")),
        (Some(message), ..) => Step {
            refusal: recorded(message),
            ..Step::default()
        },
        (None, Some(bytes), None) => match usable(bytes, job, uid) {
            Ok(_) if !state.has_root => refuse(&format!("the container of job {job} is gone")),
            Ok(pins) => Step::of(pins),
            Err(reason) => refuse(&format!("cannot use the container of job {job}: {reason}")),
        },
        (None, None, None) if asked => {
            let mut step = refuse(&format!(
                "job {job} has no container on this node: it was started without --image, \
                 or its prolog did not run"
            ));
            let hint =
                "hint: give --image to sbatch, salloc or srun; if it had one, submit it again";
            step.refusal.push(hint.to_owned());
            step
        }
        (None, None, None) => Step::default(),
    }
}

/// The verdict where judging itself failed: only jobs of ours may suffer from it.
pub fn judge_blindly(state: &NodeState, job: &JobId, asked: bool) -> Step {
    let ours = asked || state.failure.is_some() || state.manifest.is_some() || state.has_root;
    if ours {
        refuse(&format!("cannot prepare this step of job {job}"))
    } else {
        Step::default()
    }
}

impl Step {
    /// Lets tasks run that know of this root.
    pub fn of(pins: Pins) -> Self {
        Self {
            env: pins.to_env().into(),
            pins: Some(pins),
            refusal: Vec::new(),
        }
    }

    /// Returns whether the image's entry point starts the step's commands, which the step may have
    /// been told otherwise than its job, and lets its tasks know.
    pub fn given_entrypoint(&mut self, given: Option<bool>) -> bool {
        let Some(pins) = self.pins.as_mut().filter(|pins| !pins.modes.ccm) else {
            return false;
        };
        pins.modes.entrypoint = given.unwrap_or(pins.modes.entrypoint);
        self.env = pins.to_env().into();
        // Its job's is there under Slurm's name for it.
        if given == Some(false) {
            self.env.push((pins::ENTRYPOINT, Some("0".to_owned())));
        }
        pins.modes.entrypoint
    }

    /// Refuses tasks with these lines.
    pub fn refused(refusal: Vec<String>) -> Self {
        Self {
            refusal,
            ..Self::default()
        }
    }
}

fn refuse(message: &str) -> Step {
    Step::refused(vec![format!("shifter: {}", sanitize::text(message))])
}

/// Shows what was recorded: the message and, where there is one, the way out.
fn recorded(message: &[u8]) -> Vec<String> {
    let mut lines = message
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let message = lines
        .next()
        .map_or("cannot prepare the job".into(), sanitize::bytes);
    let hint = lines
        .next()
        .map(sanitize::bytes)
        .filter(|line| line.starts_with("hint: "));
    std::iter::once(format!("shifter: {message}"))
        .chain(hint)
        .collect()
}

fn usable(bytes: &[u8], job: &JobId, uid: u32) -> Result<Pins, String> {
    let manifest = JobManifest::parse(bytes).map_err(|error| report::chain(&error))?;
    manifest
        .expect(uid, job)
        .map_err(|error| error.to_string())?;
    let volumes = manifest.volumes.iter().map(String::as_str);
    let volumes = pins::parse_volumes(volumes).map_err(|error| error.to_string())?;
    let JobManifest {
        image,
        modules,
        modes,
        ..
    } = manifest;
    Ok(Pins {
        id: image.id,
        request: image.reference,
        volumes,
        modules,
        modes,
    })
}

#[cfg(test)]
mod tests {
    use shifter_core::hostlist::HostSlots;
    use shifter_core::identity::Identity;
    use shifter_core::manifest::{ResolvedImage, SCHEMA};

    use super::*;
    use crate::pins::tests::sample;

    fn job() -> JobId {
        JobId::parse("17").unwrap()
    }

    fn ready() -> NodeState {
        let pins = sample();
        let user = Identity::from_passwd_line("alice:x:2001:2001::/home/alice:/bin/sh", 2001);
        let manifest = JobManifest {
            schema: SCHEMA,
            cluster: "mini".into(),
            job: job(),
            restart: 0,
            user: user.unwrap(),
            image: ResolvedImage {
                id: pins.id,
                reference: pins.request,
            },
            volumes: vec![pins.volumes.signature()],
            modules: pins.modules,
            hosts: vec![HostSlots {
                name: "n1".into(),
                slots: 1,
            }],
            created: 1,
            modes: pins.modes,
            ssh: None,
        };
        let manifest = Some(manifest.to_bytes().unwrap());
        NodeState {
            manifest,
            has_root: true,
            ..NodeState::default()
        }
    }

    fn refusal(state: &NodeState, asked: bool) -> String {
        let step = judge(state, &job(), 2001, asked);
        assert!(step.env.is_empty(), "{step:?}");
        step.refusal.join("|")
    }

    #[test]
    fn tasks_of_a_ready_job_know_their_image() {
        for asked in [true, false] {
            let step = judge(&ready(), &job(), 2001, asked);
            assert_eq!(step.env, Vec::from(sample().to_env()));
            assert!(step.pins.is_some() && step.refusal.is_empty(), "{step:?}");
        }
    }

    #[test]
    fn a_step_can_do_without_its_jobs_entry_point() {
        let table = [
            (None, true, "1"),
            (Some(true), true, "1"),
            (Some(false), false, "0"),
        ];
        for (given, expected, told) in table {
            let mut step = Step::of(sample());
            assert_eq!(step.given_entrypoint(given), expected, "{given:?}");
            let mut known = step.env.iter().rev();
            let known = known.find(|(name, _)| *name == pins::ENTRYPOINT);
            assert_eq!(known, Some(&(pins::ENTRYPOINT, Some(told.to_owned()))));
        }
        assert!(!Step::default().given_entrypoint(Some(true)));
        let mut host = Step::of(Pins::of_host().unwrap());
        assert!(!host.given_entrypoint(Some(true)));
    }

    #[test]
    fn a_job_that_never_asked_is_left_alone() {
        assert_eq!(
            judge(&NodeState::default(), &job(), 2001, false),
            Step::default()
        );
        assert_eq!(
            judge_blindly(&NodeState::default(), &job(), false),
            Step::default()
        );
    }

    #[test]
    fn a_recorded_mistake_is_told() {
        let failed = |text: &[u8]| NodeState {
            failure: Some(text.to_vec()),
            ..ready()
        };
        let table: [(&[u8], &str); 4] = [
            (b"cannot find image 'x'", "shifter: cannot find image 'x'"),
            (b"no\nhint: yes\nmore", "shifter: no|hint: yes"),
            (b"a\x1b[2J\nroot# ", "shifter: a\\u{1b}[2J"),
            (b"", "shifter: cannot prepare the job"),
        ];
        for (text, expected) in table {
            assert_eq!(refusal(&failed(text), false), expected);
        }
    }

    #[test]
    fn never_on_the_host_in_silence() {
        let none = NodeState::default();
        assert!(refusal(&none, true).contains("job 17 has no container on this node"));
        let gone = NodeState {
            has_root: false,
            ..ready()
        };
        assert!(refusal(&gone, false).contains("the container of job 17 is gone"));
        let broken = NodeState {
            broken: Some("not trusted".into()),
            ..ready()
        };
        assert!(refusal(&broken, false).contains("cannot read the state of job 17: not trusted"));
        let garbled = NodeState {
            manifest: Some(b"{".to_vec()),
            ..ready()
        };
        assert!(refusal(&garbled, false).contains("cannot use the container of job 17: "));
        assert!(!judge_blindly(&ready(), &job(), false).refusal.is_empty());
        assert!(!judge_blindly(&none, &job(), true).refusal.is_empty());
    }

    #[test]
    fn a_container_of_somebody_else_is_refused() {
        assert!(!judge(&ready(), &job(), 2002, true).refusal.is_empty());
        let other = JobId::parse("18").unwrap();
        assert!(!judge(&ready(), &other, 2001, true).refusal.is_empty());
    }
}
