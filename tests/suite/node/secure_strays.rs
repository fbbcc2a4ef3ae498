//! Processes that want to outlive their job: teardown finds and ends them, however they hide.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::world::User::{Alice, Bob};

use super::manifest;
use super::secure::{Guard, Step, compile};

/// Becomes as many as it may, and none of them heeds a signal that it can ignore.
const BOMB: &str = "#include <signal.h>\n#include <unistd.h>\n\
    int main(void) { signal(SIGTERM, SIG_IGN); for (;;) if (fork() < 0) usleep(1000); }";

/// Counts a user's processes, zombies aside.
fn processes_of(user: &str) -> Result<usize> {
    let list = Call::new(["ps", "-o", "stat=", "-u", user]).output()?;
    Ok(list
        .stdout
        .lines()
        .filter(|state| !state.starts_with('Z'))
        .count())
}

fn ended(children: &mut [Child]) -> Result<()> {
    for child in children {
        let status = wait_for("the stray's end", 5, || Ok(child.try_wait()?))?;
        ensure!(!status.success(), "it ended by itself");
    }
    Ok(())
}

/// In namespaces of their own, several deep, with a name of something else, deaf and stopped.
#[test]
fn privileged_strays_in_nested_namespaces_are_ended() -> Result<()> {
    let guard = Guard::prepare()?;
    guard.site.set_up(&manifest("17"))?.success()?;
    let step = Step::new("17")?;
    let mut bystander = Call::new(["sleep", "1000"])
        .by(Bob)
        .timeout(0)
        .start("/dev/null")?;
    let mut children = Vec::new();
    for script in [
        "exec unshare -Urm sleep 1000",
        "exec unshare -Urm sh -c 'exec unshare -Um sh -c \"exec unshare -Urm sleep 1000\"'",
        "exec unshare -Urmpf --mount-proc sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1; done'",
        "exec unshare -Urm sh -c 'mkdir /tmp/new; mount -t tmpfs x /tmp/new; cd /tmp/new; exec sleep 1000'",
        "trap '' TERM; kill -STOP $$; sleep 1000",
        "exec setsid -w sh -c 'exec -a slurmstepd sleep 1000'",
    ] {
        let start = step.call(["shifter", "sh", "-c", script]).timeout(0);
        children.push(start.start("/tmp/stray")?);
    }
    std::thread::sleep(Duration::from_millis(400));
    let alive = processes_of("alice")?;
    guard.site.tear_down("17")?.success()?;
    let outcome = ended(&mut children);
    let innocent = bystander.try_wait()?.is_none();
    bystander.kill()?;
    bystander.wait()?;
    Call::shell("rm -rf /tmp/new").ok()?;
    ensure!(
        alive >= 6,
        "only {alive} were running: {}",
        fs::read_to_string("/tmp/stray")?
    );
    outcome?;
    ensure!(innocent, "another user's process was ended");
    ensure!(processes_of("alice")? == 0, "something of alice's is left");
    drop(step);
    guard.finish()
}

/// What a sandbox takes along of a root tells that it is the job's, where the batch system has no
/// cgroups: its programs may all be of its own.
#[test]
fn privileged_a_sandbox_with_a_part_of_a_root_ends_with_the_job() -> Result<()> {
    let guard = Guard::prepare()?;
    guard.site.set_up(&manifest("17.server"))?.success()?;
    let script = "exec unshare -Urm sh -c 'new=/tmp/sandbox; mkdir -p $new; mount -t tmpfs x $new
        mkdir $new/etc $new/old; cp /bin/busybox $new/; mount --rbind /etc $new/etc
        cd $new; /busybox true 2>/dev/null; /bin/busybox pivot_root . old
        /busybox umount -l /old; exec /busybox sleep 1717'";
    let sandbox = guard.site.product.shifter(["sh", "-c", script]).by(Alice);
    let sandbox = sandbox.env("PBS_JOBID", "17.server").timeout(0);
    let mut sandbox = sandbox.start("/tmp/stray")?;
    let shown = wait_for("the sandbox", 10, || {
        let pid = Call::new(["pgrep", "-f", "^/busybox sleep 171[7]"]).output()?;
        let pid = pid.stdout.trim().to_owned();
        Ok((!pid.is_empty()).then_some(pid))
    });
    let mounts = shown.and_then(|pid| Ok(fs::read_to_string(format!("/proc/{pid}/mountinfo"))?));
    let output = guard.site.tear_down("17.server");
    let outcome = ended(std::slice::from_mut(&mut sandbox));
    Call::shell("rm -rf /tmp/sandbox; rm -f /tmp/stray").ok()?;
    let mounts = mounts?;
    ensure!(
        mounts.lines().count() == 2 && mounts.contains(" /etc /etc "),
        "{mounts}"
    );
    output?.success()?;
    outcome?;
    ensure!(processes_of("alice")? == 0, "something of alice's is left");
    guard.finish()
}

/// Who is asked twice may take it for the order to drop everything (as MPI's launchers do).
#[test]
fn privileged_a_stray_is_asked_to_end_once_and_then_made_to() -> Result<()> {
    let guard = Guard::prepare()?;
    guard.site.set_up(&manifest("17"))?.success()?;
    let step = Step::new("17")?;
    let script = "trap '' TERM; echo deaf; exec sleep 1000";
    let mut deaf = step
        .call(["shifter", "sh", "-c", script])
        .timeout(0)
        .start("/tmp/deaf")?;
    wait_for("the deaf process", 10, || {
        let sleeps = Call::new(["pgrep", "-u", "alice", "-x", "sleep"]).output()?;
        Ok((sleeps.code == 0).then_some(()))
    })?;
    let program = guard.site.product.path("sbin/unsetupRoot");
    let strace = [
        "strace",
        "-o",
        "/tmp/trace",
        "-e",
        "trace=pidfd_send_signal",
    ];
    Call::new([&strace[..], &[&*program, "17"]].concat())
        .output()?
        .success()?;
    ended(std::slice::from_mut(&mut deaf))?;
    let trace = fs::read_to_string("/tmp/trace")?;
    let sent: Vec<&str> = ["SIGTERM", "SIGSTOP", "SIGKILL"]
        .into_iter()
        .filter(|signal| trace.contains(signal))
        .collect();
    ensure!(sent.len() == 3, "{trace}");
    ensure!(trace.matches("SIGTERM").count() == 1, "{trace}");
    drop(step);
    guard.finish()
}

/// As many processes as alice may have, each busy making others.
#[test]
fn privileged_a_fork_bomb_is_ended() -> Result<()> {
    let guard = Guard::prepare()?;
    guard.site.set_up(&manifest("17"))?.success()?;
    let step = Step::new("17")?;
    compile("bomb", BOMB)?;
    // The limit counts the user's processes on the whole machine; other worlds have few.
    let script = "ulimit -u 250; exec shifter /tmp/bomb";
    let mut bomb = step
        .call(["bash", "-c", script])
        .timeout(0)
        .start("/dev/null")?;
    let grown = wait_for("the bomb", 10, || {
        Ok((processes_of("alice")? > 60).then_some(()))
    });
    let began = Instant::now();
    let output = guard.site.tear_down("17");
    let took = began.elapsed();
    let left = processes_of("alice");
    Call::new(["pkill", "-KILL", "-u", "alice"]).output()?;
    bomb.wait()?;
    grown?;
    output?.success()?;
    ensure!(left? == 0, "processes are left");
    ensure!(took < Duration::from_secs(10), "{took:?}");
    drop(step);
    guard.finish()
}

/// A container of her own that alice makes within a job belongs to the job: with an image of the
/// job's and without one, and also nested.
#[test]
fn privileged_private_containers_of_a_job_end_with_it() -> Result<()> {
    let guard = Guard::prepare()?;
    guard.image("other", |_| Ok(()))?;
    for has_root in [true, false] {
        if has_root {
            guard.site.set_up(&manifest("17"))?.success()?;
        }
        let (mine, another) = (Step::new("17")?, Step::new("18")?);
        let start = |step: &Step, words: &[&str]| {
            let command = ["shifter", "--image=other"].iter().chain(words).copied();
            step.call(command).timeout(0).start("/tmp/private")
        };
        let mut children = vec![
            start(&mine, &["sleep", "1000"])?,
            start(
                &mine,
                &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"],
            )?,
            start(&mine, &["unshare", "-Urm", "sleep", "1000"])?,
        ];
        // A job of hers beside it, a container outside of any job, and a process of the job's that is in
        // none are not this teardown's.
        let mut others = vec![
            start(&another, &["sleep", "1000"])?,
            guard
                .site
                .product
                .shifter(["--image=other", "sleep", "1000"])
                .by(Alice)
                .timeout(0)
                .start("/dev/null")?,
            mine.call(["sleep", "1000"]).timeout(0).start("/dev/null")?,
        ];
        std::thread::sleep(Duration::from_millis(400));
        let running = processes_of("alice")?;
        guard.site.tear_down("17")?.success()?;
        let outcome = ended(&mut children);
        let mut alive = Vec::new();
        for other in &mut others {
            alive.push(other.try_wait()?.is_none());
            other.kill()?;
            other.wait()?;
        }
        Call::new(["pkill", "-KILL", "-u", "alice"]).output()?;
        ensure!(
            running >= 6,
            "only {running} ran: {}",
            fs::read_to_string("/tmp/private")?
        );
        outcome.map_err(|error| error.context(format!("with a root: {has_root}")))?;
        ensure!(
            alive == [true; 3],
            "with a root: {has_root}: others alive: {alive:?}"
        );
        wait_for("the cgroups to be empty", 5, || {
            Ok((processes_of("alice")? == 0).then_some(()))
        })?;
    }
    guard.finish()
}
