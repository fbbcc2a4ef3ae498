//! Whose root does `shifter` join? The one of the job it runs in, by the kernel's word.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, Output};
use shifter_tests::world::User::{self, Alice, Bob};

use super::{Site, ensure_refused, image_id, manifest};

/// A cgroup as Slurm's daemon makes it for a step of a job.
pub(super) struct Step(PathBuf);

impl Step {
    pub(super) fn of(user: User, job: &str) -> Result<Self> {
        let uid = user.uid();
        let dir = format!("/sys/fs/cgroup/freezer/slurm/uid_{uid}/job_{job}/step_0");
        fs::create_dir_all(&dir)?;
        Ok(Self(dir.into()))
    }

    /// Runs a script as a user within the step.
    pub(super) fn run(&self, user: User, script: &str) -> Result<Output> {
        let enter = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", self.0.display());
        let (uid, gid) = (user.uid().to_string(), user.gid().to_string());
        let become_user = [
            "setpriv",
            "--reuid",
            &uid,
            "--regid",
            &gid,
            "--init-groups",
            "--reset-env",
        ];
        let enter = ["bash", "-c", &*enter, "enter"];
        let command = [
            "env",
            "PATH=/opt/shifter/bin:/usr/bin:/bin",
            "bash",
            "-c",
            script,
        ];
        Call::new([&enter[..], &become_user, &command].concat())
            .cwd("/tmp")
            .output()
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        for dir in self.0.ancestors().take(4) {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The inode of the mount namespace a command sees itself in tells roots apart.
const WHERE: &str = "readlink /proc/self/ns/mnt";

fn pinned(job: &str) -> Result<String> {
    let pin = format!("/run/shifter/jobs/{job}/roots/job/mnt");
    let inode = Call::new(["stat", "-c", "mnt:[%i]", &*pin]).ok()?;
    Ok(inode)
}

#[test]
fn privileged_a_step_joins_its_own_job() -> Result<()> {
    let site = Site::prepare()?;
    let mut job = manifest("17");
    job["volumes"] = ["/scratch/alice:/a/b"].as_slice().into();
    site.set_up(&job)?.success()?;
    let step = Step::of(Alice, "17")?;
    let own = pinned("17")?;
    for options in [
        "",
        "--image=tiny",
        "--image=docker:tiny:latest",
        "--volume=/scratch/alice:/a/b/",
        "--module=none",
    ] {
        let output = step.run(Alice, &format!("shifter {options} {WHERE}"))?;
        ensure!(
            output.code == 0 && output.stdout == own,
            "{options}: {output}"
        );
    }
    for options in [
        "--volume=/scratch/alice:/other",
        "--image=tiny --volume=/tmp:/a/b",
    ] {
        let output = step.run(Alice, &format!("shifter {options} {WHERE}"))?;
        ensure!(
            output.code == 0 && output.stdout != own,
            "{options}: {output}"
        );
    }
    // Slurm's variables name the image by its id; the user's name for it is not lost by that.
    let private = format!(
        "SHIFTER_IMAGE={} SHIFTER_IMAGETYPE=id shifter --volume=/tmp:/a/b sh -c 'echo $SHIFTER_IMAGEREQUEST'",
        image_id()
    );
    let output = step.run(Alice, &private)?;
    ensure!(output.stdout == "docker:tiny:latest\n", "{output}");
    let image = step.run(
        Alice,
        "shifter sh -c 'cat /etc/marker; echo $COLOUR $SHIFTER_IMAGEREQUEST'",
    )?;
    ensure!(
        image.stdout == "tiny\ngreen docker:tiny:latest\n",
        "{image}"
    );
    site.tear_down("17")?.success()?;
    drop(step);
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_the_environment_cannot_name_another_job() -> Result<()> {
    let site = Site::prepare()?;
    site.set_up(&manifest("17"))?.success()?;
    site.set_up(&manifest("18"))?.success()?;
    let mut bobs = manifest("19");
    bobs["user"] = serde_json::json!({"name": "bob", "uid": 2002, "gid": 2002,
        "home": "/home/bob", "shell": "/bin/sh", "groups": []});
    site.set_up(&bobs)?.success()?;

    let claims = |job: &str| {
        format!(
            "export SLURM_JOB_ID={job} SLURM_JOBID={job} PBS_JOBID={job}; shifter --image=tiny {WHERE}"
        )
    };
    // In her own job 17, alice names another of hers, then bob's.
    let step = Step::of(Alice, "17")?;
    for job in ["18", "19"] {
        let output = step.run(Alice, &claims(job))?;
        ensure!(
            output.code == 0 && output.stdout == pinned("17")?,
            "{job}: {output}"
        );
    }
    // Outside of any job nothing she names is joined.
    for job in ["17", "18", "19"] {
        let output = Call::shell(&claims(job)).by(Alice).output()?;
        ensure!(
            output.code == 0 && output.stdout != pinned(job)?,
            "{job}: {output}"
        );
        let bare = Call::shell(&format!("SLURM_JOB_ID={job} shifter true"))
            .by(Alice)
            .output()?;
        ensure_refused(&bare, 2, "no image")?;
    }
    // A cgroup of the right name for the wrong user is no proof either.
    let foreign = Step::of(Bob, "17")?;
    let output = foreign.run(Bob, &format!("shifter --image=tiny {WHERE}"))?;
    ensure!(
        output.code == 0 && output.stdout != pinned("17")?,
        "{output}"
    );
    drop((step, foreign));
    for job in ["17", "18", "19"] {
        site.tear_down(job)?.success()?;
    }
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_a_root_that_is_gone_is_not_joined() -> Result<()> {
    let site = Site::prepare()?;
    site.set_up(&manifest("17"))?.success()?;
    let step = Step::of(Alice, "17")?;
    site.tear_down("17")?.success()?;
    ensure_refused(&step.run(Alice, "shifter true")?, 2, "no image")?;
    drop(step);
    site.clean.ensure_restored(None)
}
