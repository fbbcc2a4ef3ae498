//! A step with an image of its own: a root beside its job's, for as long as the step lasts.
//!
//! slurmstepd makes it before it forks, where the host's mounts are in view, in a program with a
//! deadline, and removes it when the last task has ended. Where slurmstepd is killed, the job's next
//! step with an image of its own finds that it is dead and removes the root, and its epilog at the
//! latest. Nothing here fails a callback: what goes wrong refuses the tasks.

use std::process::Command;

use node_setup::supervised::{self, Subject};
use shifter_core::config::{Config, SshJobs};
use shifter_core::ids::JobId;
use shifter_core::layout::{self, Program};
use shifter_core::manifest::{self, JobManifest, ResolvedImage};
use shifter_core::{sanitize, trusted};

use crate::child::{self, Terms};
use crate::epilog;
use crate::pins::Pins;
use crate::prolog::{self, Facts, NodeError};
use crate::report;
use crate::settings::Settings;
use crate::submit::SubmitError;

/// Steps with numbers above are Slurm's own (SLURM_MAX_NORMAL_STEP_ID).
const LAST_STEP: u32 = 0xffff_fff0;

/// Seconds for a step's teardown.
const SECONDS: u32 = 60;

/// True if the job's root, which was built from `job`, is what the step's pins ask for.
pub fn is_jobs(job: &Pins, own: &Pins, config: &Config) -> bool {
    // The manifest has the modules that no name stands for; pins may have none.
    let named = |pins: &Pins| node_setup::modules::requested(config, &pins.modules);
    job.id == own.id
        && job.volumes.signature() == own.volumes.signature()
        && (job.modules == named(own) || named(job) == named(own))
}

/// Returns why a step cannot have in its job what it asks for. Where srun knows the job it says so
/// itself.
pub fn misfit(job: Option<&Pins>, own: &Pins, config: &Config) -> Option<SubmitError> {
    let has_ccm = job.is_some_and(|job| job.modes.ccm);
    let is_always = config.ssh.enable == SshJobs::Always;
    let has_ssh = job.is_some_and(|job| job.modes.ssh.unwrap_or(is_always));
    if own.modes.ccm && !has_ccm {
        Some(SubmitError::CcmStep)
    } else if own.modes.ssh == Some(true) && !has_ssh {
        Some(SubmitError::NoSshInJob)
    } else {
        None
    }
}

/// Makes the root of a step and returns its name.
///
/// # Errors
/// The lines with which the step's tasks are to fail.
pub fn set_up(
    facts: Facts,
    step: u32,
    mut pins: Pins,
    settings: &Settings,
    ready: fn(Command) -> Command,
) -> Result<String, Vec<String>> {
    // That is for whole jobs, and their nodes have been looked at.
    pins.modes.ccm = false;
    let image = sanitize::text(&pins.request);
    let failed = |reason: &dyn std::error::Error| {
        let reason = report::chain(reason);
        vec![format!(
            "shifter: cannot prepare image '{image}' for this step: {reason}"
        )]
    };
    if step > LAST_STEP {
        let reason = "it has no number".to_owned();
        return Err(vec![format!(
            "shifter: cannot prepare image '{image}' for this step: {reason}"
        )]);
    }
    let name = layout::step_root(step);
    let run = || -> Result<Result<child::Finished, Vec<String>>, NodeError> {
        let config = Config::open_trusted(settings.config())?;
        let node = facts.slurm.node.as_deref();
        let mut command = child::privileged(&Program::SetupRoot.path(&config.prefix))?;
        command.args(settings.config_args());
        command.args([
            "--root",
            &name,
            "--spool-dir",
            &prolog::spool_dir(&config, node),
        ]);
        command.args(["--expect-uid", &facts.uid.to_string()]);
        command.args(["--expect-job", facts.job.as_str(), "--manifest", "-"]);
        let manifest = match describe(&facts, pins, &config)? {
            Ok(manifest) => manifest,
            Err(mistake) => return Ok(Err(report::lines(&mistake, None))),
        };
        let terms = Terms {
            seconds: config.slurm.setup_timeout_secs,
            own_group: true,
            shows_stderr: false,
        };
        let command = ready(command);
        let subject = Subject {
            job: &facts.job,
            root: &name,
            manifest: &manifest,
        };
        Ok(Ok(supervised::run(command, subject, terms, &config)?))
    };
    let finished = run().map_err(|error| failed(&error))??;
    if finished.status.success() {
        return Ok(name);
    }
    let lines = finished.messages(2);
    let told = lines
        .iter()
        .map(|line| match line.strip_prefix("setupRoot: ") {
            Some(message) => format!("shifter: {message}"),
            None => line.clone(),
        });
    let told: Vec<String> = told.collect();
    Err(if told.is_empty() {
        failed(&NodeError::program("setupRoot", &finished))
    } else {
        told
    })
}

/// Writes the step's manifest: what its job's says of user and nodes, if there is one, so that
/// nobody is looked up again.
fn describe(
    facts: &Facts,
    pins: Pins,
    config: &Config,
) -> Result<Result<Vec<u8>, prolog::Mistake>, NodeError> {
    let file = layout::manifest_file(&facts.job);
    let jobs = trusted::read(&file, manifest::SIZE_LIMIT).ok();
    let jobs = jobs.and_then(|bytes| JobManifest::parse(&bytes).ok());
    let Some(mut manifest) = jobs.filter(|jobs| jobs.expect(facts.uid, &facts.job).is_ok()) else {
        return prolog::describe(facts, Ok(pins), config);
    };
    let volumes = pins.volumes.signature();
    manifest.image = ResolvedImage {
        id: pins.id,
        reference: pins.request,
    };
    manifest.volumes = Some(volumes)
        .filter(|text| !text.is_empty())
        .into_iter()
        .collect();
    manifest.modules = pins.modules;
    manifest.modes = pins.modes;
    Ok(manifest.to_bytes().map_err(prolog::Mistake::from))
}

/// Removes the root of a step.
///
/// # Errors
/// What it leaves is found by the job's epilog.
pub fn tear_down(
    job: &JobId,
    name: &str,
    settings: &Settings,
    ready: fn(Command) -> Command,
) -> Result<(), NodeError> {
    epilog::unsetup(&[job.as_str(), name], SECONDS, settings, ready)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pins::tests::sample;

    #[test]
    fn a_root_serves_every_step_that_asks_for_the_same() {
        let text = "default_modules = ['gpu']\n[module.gpu]\n[module.mpi]\n";
        let config = Config::parse(text, Path::new("/x")).unwrap();
        let with = |modules: &[&str]| Pins {
            modules: modules.iter().map(|name| (*name).to_owned()).collect(),
            ..sample()
        };
        assert!(is_jobs(&sample(), &sample(), &config));
        // What a manifest has after set-up, and what a job asked for before.
        assert!(is_jobs(&with(&["gpu"]), &with(&[]), &config));
        assert!(is_jobs(&with(&[]), &with(&["none"]), &config));
        assert!(!is_jobs(&with(&["gpu"]), &with(&["mpi"]), &config));
        let other = Pins {
            volumes: crate::pins::parse_volumes(["/a:/b"]).unwrap(),
            ..sample()
        };
        assert!(!is_jobs(&sample(), &other, &config));
        assert!(sample().is_same(&sample()) && !sample().is_same(&other));
        assert!(!sample().is_same(&with(&["gpu"])));
    }

    #[test]
    fn a_step_cannot_make_its_job_another() {
        let with = |ccm: bool, ssh: Option<bool>| {
            let mut pins = sample();
            (pins.modes.ccm, pins.modes.ssh) = (ccm, ssh);
            pins
        };
        let plain = with(false, None);
        for (job, own, enable, fits) in [
            (Some(&plain), with(false, None), "ask", true),
            (None, with(false, None), "ask", true),
            (Some(&plain), with(true, None), "ask", false),
            (Some(&with(true, None)), with(true, None), "ask", true),
            (Some(&plain), with(false, Some(true)), "ask", false),
            (Some(&plain), with(false, Some(true)), "always", true),
            (Some(&plain), with(false, Some(false)), "ask", true),
            (
                Some(&with(false, Some(true))),
                with(false, Some(true)),
                "ask",
                true,
            ),
            (None, with(false, Some(true)), "always", false),
        ] {
            let config = Config::parse(&format!("[ssh]\nenable = '{enable}'"), Path::new("/x"));
            let found = misfit(job, &own, &config.unwrap());
            assert_eq!(found.is_none(), fits, "{job:?} {own:?} {enable}");
        }
    }
}
