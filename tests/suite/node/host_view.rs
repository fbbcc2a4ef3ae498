//! Roots that the host sees too, for launchers that change root, and jobs of batch systems that make
//! no cgroups.

use std::fs;
use std::process::Child;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::world::User::{Alice, Bob};

use super::{Site, ensure_refused, manifest};

const PLACE: &str = "/var/udiMount";

/// The id of a job of Torque's.
const JOB: &str = "17.server";

fn visible() -> Result<Site> {
    let mut site = Site::prepare()?;
    site.product.configure("visibility = 'host'")?;
    fs::create_dir_all(PLACE)?;
    site.clean = shifter_tests::snapshot::Snapshot::take(None)?;
    Ok(site)
}

/// Starts a program with another root, as aprun does: root changes it, then becomes the user.
fn aprun(uid: u32, root: &str, script: &str) -> Call {
    let user = format!("--userspec={uid}:{uid}");
    Call::new(["chroot", &*user, root, "/bin/sh", "-c", script])
}

fn mounted() -> Result<usize> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let at = |line: &&str| {
        line.split(' ')
            .nth(4)
            .is_some_and(|at| at.starts_with(PLACE))
    };
    Ok(mounts.lines().filter(at).count())
}

fn finish(site: &Site) -> Result<()> {
    ensure!(mounted()? == 0, "something is still mounted");
    fs::remove_dir(PLACE)?;
    site.product.configure("")
}

fn runs(child: &mut Child) -> Result<bool> {
    Ok(child.try_wait()?.is_none())
}

#[test]
fn privileged_the_host_sees_a_root_until_the_job_is_over() -> Result<()> {
    let site = visible()?;
    site.set_up(&manifest(JOB))?.success()?;
    let marker = aprun(
        2001,
        PLACE,
        "cat /etc/marker; id -un; echo x > /usr/x || echo sealed",
    );
    let said = marker.ok()?;
    ensure!(said == "tiny\nalice\nsealed\n", "{said}");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines().filter(|line| line.contains(PLACE)) {
        let options = line.split(' ').nth(5).unwrap_or_default();
        ensure!(options.contains("nosuid"), "{line}");
    }
    // It is the same one that tasks join.
    let joined = site
        .product
        .shifter(["cat", "/etc/marker"])
        .env("PBS_JOBID", JOB)
        .by(Alice)
        .ok()?;
    ensure!(joined == "tiny\n", "{joined}");

    // The place is one job's at a time, and the other one leaves nothing.
    let before = mounted()?;
    ensure_refused(&site.set_up(&manifest("18.server"))?, 5, PLACE)?;
    ensure!(mounted()? == before, "the first job's root");
    site.tear_down("18.server")?.success()?;
    ensure!(marker.ok()? == said, "the first job's root was taken away");

    // Set up anew, as for a job that was put back into the queue.
    site.set_up(&manifest(JOB))?.success()?;
    ensure!(marker.ok()? == said);
    site.tear_down(JOB)?.success()?;
    site.tear_down(JOB)?.success()?;
    finish(&site)
}

#[test]
fn privileged_processes_that_changed_root_are_ended_with_their_job() -> Result<()> {
    let site = visible()?;
    site.set_up(&manifest(JOB))?.success()?;
    let start = |call: Call| call.timeout(0).start("/dev/null");
    let below = format!("{PLACE}/usr");
    let mut strays = [
        start(aprun(2001, PLACE, "trap '' TERM; sleep 1000; :"))?,
        start(aprun(2001, PLACE, "exec sleep 1000"))?,
    ];
    let mut others = [
        // Not the job's user, not in the root, and root himself who looks around.
        start(aprun(2002, PLACE, "sleep 1000; :"))?,
        start(Call::new(["sleep", "1000"]).by(Alice).cwd(PLACE))?,
        start(aprun(0, PLACE, "sleep 1000; :"))?,
    ];
    wait_for("the programs", 5, || {
        let list = Call::new(["pgrep", "-c", "-x", "sleep"]).output()?.stdout;
        Ok((list.trim() == "5").then_some(()))
    })?;
    ensure!(fs::metadata(below)?.is_dir());
    site.tear_down(JOB)?.success()?;
    for stray in &mut strays {
        wait_for("the stray's end", 5, || Ok(stray.try_wait()?))?;
    }
    let mut left = Vec::new();
    for other in &mut others {
        left.push(runs(other)?);
        other.kill()?;
        other.wait()?;
    }
    Call::new(["pkill", "-KILL", "-x", "sleep"]).output()?;
    ensure!(left == [true, true, true], "{left:?}");
    finish(&site)
}

#[test]
fn privileged_what_else_is_mounted_there_stays() -> Result<()> {
    let site = visible()?;
    Call::new(["mount", "-t", "tmpfs", "-o", "mode=0755", "mine", PLACE]).ok()?;
    ensure_refused(&site.set_up(&manifest(JOB))?, 5, PLACE)?;
    site.tear_down(JOB)?.success()?;
    ensure!(mounted()? == 1);
    Call::new(["umount", PLACE]).ok()?;
    // Put over a root: neither is taken for the other, and the next teardown comes to an end.
    site.set_up(&manifest(JOB))?.success()?;
    Call::new(["mount", "-t", "tmpfs", "-o", "mode=0755", "mine", PLACE]).ok()?;
    ensure_refused(&site.tear_down(JOB)?, 1, PLACE)?;
    Call::new(["umount", PLACE]).ok()?;
    site.tear_down(JOB)?.success()?;
    // A link of somebody else's is no place.
    fs::remove_dir(PLACE)?;
    std::os::unix::fs::symlink("/scratch/alice", PLACE)?;
    let refused = site.set_up(&manifest(JOB))?;
    fs::remove_file(PLACE)?;
    ensure_refused(&refused, 1, "/scratch/alice")?;
    fs::create_dir(PLACE)?;
    finish(&site)
}

#[test]
fn privileged_a_job_without_cgroups_is_joined_and_ended_by_its_own_user_alone() -> Result<()> {
    let site = Site::prepare()?;
    site.set_up(&manifest(JOB))?.success()?;
    let shifter = |user, job: &str, args: &[&str]| {
        let call = site.product.shifter(args.iter().copied());
        call.env("PBS_JOBID", job).by(user)
    };
    let joined = shifter(Alice, JOB, &["cat", "/etc/marker"]).ok()?;
    ensure!(joined == "tiny\n", "{joined}");
    let bobs = shifter(Bob, JOB, &["cat", "/etc/marker"]).output()?;
    ensure_refused(&bobs, 2, "no image")?;
    let other = shifter(Alice, "18.server", &["true"]).output()?;
    ensure_refused(&other, 2, "no image")?;

    let sleep = ["--image=tiny", "sleep", "1000"];
    let mut private = shifter(Alice, JOB, &sleep).timeout(0).start("/dev/null")?;
    let mut others = [
        shifter(Alice, "18.server", &sleep)
            .timeout(0)
            .start("/dev/null")?,
        shifter(Bob, JOB, &sleep).timeout(0).start("/dev/null")?,
    ];
    wait_for("the containers", 5, || {
        let list = Call::new(["pgrep", "-c", "-x", "sleep"]).output()?.stdout;
        Ok((list.trim() == "3").then_some(()))
    })?;
    site.tear_down(JOB)?.success()?;
    wait_for("the container's end", 5, || Ok(private.try_wait()?))?;
    let mut left = Vec::new();
    for other in &mut others {
        left.push(runs(other)?);
        other.kill()?;
        other.wait()?;
    }
    ensure!(left == [true, true], "{left:?}");

    // Without a root of its own the job's user has to be named.
    let script = ["--image=tiny", "sh", "-c", "echo up; exec sleep 1000"];
    let mut private = shifter(Alice, JOB, &script)
        .timeout(0)
        .start("/tmp/private")?;
    wait_for("the container", 5, || {
        let log = fs::read_to_string("/tmp/private")?;
        Ok(log.contains("up").then_some(()))
    })?;
    let program = site.product.path("sbin/unsetupRoot");
    Call::new([&*program, "--uid=2002", JOB]).ok()?;
    ensure!(runs(&mut private)?, "another user's uid ended it");
    Call::new([&*program, "--uid=2001", JOB]).ok()?;
    wait_for("the container's end", 5, || Ok(private.try_wait()?))?;
    Ok(())
}
