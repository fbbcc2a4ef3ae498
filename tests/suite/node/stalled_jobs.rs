//! File systems that take a request and do not answer, so that not even death ends a wait: jobs' set-up
//! and teardown leave such a wait behind and hold no lock.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, Output, wait_for};

use super::node_cache::inside;
use super::secure::Guard;
use super::stalls::{NOTE, Stalling, set_up, with_volumes};
use super::{image_id, manifest};

/// Longer than any test runs.
const FOR_EVER: usize = 1_000_000;

/// Fails unless the program said just this line, with this code, soon after the second that one wait
/// may take.
fn ensure_ended(output: &Output, code: i32, line: &str) -> Result<()> {
    ensure!(
        output.code == code && output.stdout.is_empty() && output.stderr == line,
        "'{line}' expected: {output}"
    );
    ensure!(output.took < Duration::from_secs(10), "{:?}", output.took);
    Ok(())
}

/// What was left behind ends as soon as it gets its answer.
fn ensure_nobody_waits() -> Result<()> {
    wait_for("the end of what waited", 10, || {
        let found = Call::new(["pgrep", "-x", "setupRoot|unsetupRoot"]).output()?;
        Ok((found.code != 0).then_some(()))
    })
}

#[test]
fn privileged_a_volume_that_takes_a_request_and_stops_holds_no_lock() -> Result<()> {
    let mut guard = Guard::prepare()?;
    guard.site.product.configure("answer_timeout_secs = 1")?;
    let mut volume = Stalling::mount("/tmp/low", "/scratch/hung")?;
    guard.rebase()?;
    volume.slow_down(FOR_EVER)?;
    let ended = guard.site.set_up(&with_volumes())?;
    let again = guard.site.tear_down("17")?;
    // Where no time is set it can be killed, as by a batch system's own deadline.
    guard.site.product.configure("answer_timeout_secs = 0")?;
    let mut setup = set_up(&guard, &with_volumes())?;
    let noted = wait_for("a note", 5, || Ok(fs::read_to_string(NOTE).ok()));
    setup.kill()?;
    setup.wait()?;
    let killed = guard.site.tear_down("17")?;
    // And others are not held up.
    let others = guard.site.set_up(&manifest("18"))?;
    guard.site.tear_down("18")?.success()?;
    volume.resume()?;
    ensure_nobody_waits()?;
    drop(volume);
    let what = "no answer from the source of a volume: '/scratch/hung'";
    ensure_ended(&ended, 3, &format!("setupRoot: {what} in 1 s\n"))?;
    ensure!(noted? == what);
    for teardown in [again, killed, others] {
        ensure!(
            teardown.took < Duration::from_secs(10),
            "{:?}",
            teardown.took
        );
        teardown.success()?;
    }
    fs::remove_dir("/scratch/hung")?;
    guard.rebase()?;
    guard.finish()
}

#[test]
fn privileged_a_store_that_stops_under_a_loop_device_ends_a_set_up_in_time() -> Result<()> {
    let mut guard = Guard::prepare()?;
    guard.site.product.configure("answer_timeout_secs = 1")?;
    let (low, mut store) = guard.put_behind_stalling()?;
    store.stop_at(&format!("{low}/{}.squashfs", image_id()), 1)?;
    let ended = guard.site.set_up(&manifest("17"))?;
    let was_stopped = store.has_stopped()?;
    let teardown = guard.site.tear_down("17")?;
    store.signal("-CONT")?;
    ensure_nobody_waits()?;
    drop(store);
    guard.put_back(low)?;
    ensure!(was_stopped, "nothing was read");
    let line = "setupRoot: no answer from image 'docker:tiny:latest' in 1 s\n";
    ensure_ended(&ended, 5, line)?;
    ensure_ended(&teardown, 0, "")?;
    guard.finish()
}

#[test]
fn privileged_a_cache_whose_storage_stops_is_left_to_the_kernel() -> Result<()> {
    let mut guard = Guard::prepare()?;
    let at = "/scratch/hung";
    let mut storage = Stalling::mount("/tmp/low", at)?;
    Call::shell("install -d -m 0700 -o shifter /tmp/low/.caches").ok()?;
    guard.site.product.configure(&format!(
        "answer_timeout_secs = 1\n[per_node_cache.'{at}']\ndir = '{at}/.caches'\nowner = 2900"
    ))?;
    guard.rebase()?;
    let mut job = manifest("17");
    job["volumes"] = [format!("{at}:/mnt:perNodeCache=size=2m,fs=ext4")][..].into();
    guard.site.set_up(&job)?.success()?;
    inside("17", 2001, "echo x >/mnt/file")?.success()?;
    storage.slow_down(FOR_EVER)?;
    let ended = guard.site.tear_down("17")?;
    let is_forgotten = fs::metadata("/run/shifter/jobs/17").is_err();
    storage.resume()?;
    ensure_nobody_waits()?;
    guard.site.tear_down("17")?.success()?;
    guard.unchanged()?;
    drop(storage);
    let line = "unsetupRoot: cannot remove everything of job 17: no answer from the file systems of \
        root 'job' in 1 s\n";
    ensure_ended(&ended, 1, line)?;
    ensure!(is_forgotten, "the job's state is still there");
    fs::remove_dir(at)?;
    guard.site.product.configure("")?;
    guard.rebase()?;
    guard.finish()
}

#[test]
fn privileged_a_process_that_waits_for_a_stopped_volume_is_told() -> Result<()> {
    let mut guard = Guard::prepare()?;
    let mut volume = Stalling::mount("/tmp/low", "/scratch/hung")?;
    guard.rebase()?;
    guard.site.set_up(&with_volumes())?.success()?;
    volume.slow_down(FOR_EVER)?;
    let pin = "--mount=/run/shifter/jobs/17/roots/job/mnt";
    let reader = ["nsenter", pin, "-S2001", "-G2001", "ls", "/usr/share/x"];
    let mut reader = Call::new(reader).timeout(0).start("/tmp/reader")?;
    let waits = format!("/proc/{}/stat", reader.id());
    wait_for("the reader", 5, || {
        Ok(fs::read_to_string(&waits)?.contains("(ls) S").then_some(()))
    })?;
    let teardown = guard.site.tear_down("17")?;
    volume.resume()?;
    reader.wait()?;
    let again = guard.site.tear_down("17")?;
    drop(volume);
    let line = format!(
        "unsetupRoot: cannot remove everything of job 17: processes [{}] do not end: they wait for a \
         file system or device that does not answer\n",
        reader.id()
    );
    ensure!(teardown.stderr == line, "{teardown}");
    ensure!(
        teardown.took < Duration::from_secs(20),
        "{:?}",
        teardown.took
    );
    again.success()?;
    fs::remove_dir("/scratch/hung")?;
    guard.rebase()?;
    guard.finish()
}
