//! S09, S10, S12: signals, debuggers and directories against a program in the middle of its work.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::world::User::Alice;

use super::manifest;
use super::secure::{Guard, is_long, python};

const SHIFTER: &str = "/opt/shifter/bin/shifter";

/// S09: signals at random moments reach the program when it has no privileges yet or any more;
/// in between nothing can stop it half way.
#[test]
fn privileged_s09_signals_at_random_moments_leave_nothing() -> Result<()> {
    let guard = Guard::prepare()?;
    let rounds = if is_long() { 300 } else { 45 };
    let script = format!(
        "import os, random, signal, subprocess, time
random.seed(9)
for n in range({rounds}):
    child = subprocess.Popen(['{SHIFTER}', '--image=tiny', '--volume=/scratch/alice:/a/b', 'sleep', '0.01'],
        stderr=subprocess.DEVNULL)
    time.sleep(random.random() * random.choice([0.08, 0.01]))
    for number in [[signal.SIGKILL], [signal.SIGTERM], [signal.SIGSTOP, signal.SIGCONT]][n % 3]:
        try: child.send_signal(number)
        except PermissionError: pass
    child.wait(10)"
    );
    python(&script).by(Alice).output()?.success()?;
    guard.unchanged()?;
    let bystander = guard.site.shifter(&["--image=tiny", "true"])?;
    ensure!(bystander.code == 0, "{bystander}");
    guard.finish()
}

/// S09: what the caller has done to signals neither stops the program nor is lost on the way.
#[test]
fn privileged_s09_dispositions_masks_and_timers_are_the_callers() -> Result<()> {
    let guard = Guard::prepare()?;
    let run = |prepare: &str, command: &[&str]| {
        // A group without a name: a child is run and waited for.
        let script = format!(
            "import os, signal, sys
os.setgroups([2100, 7777]); os.setgid(2001); os.setuid(2001)
{prepare}
os.execv(sys.argv[1], sys.argv[1:])"
        );
        python(&script)
            .args(command.iter().copied())
            .cwd("/tmp")
            .timeout(20)
            .output()
    };
    let show = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status";
    for prepare in [
        "pass",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
        "[signal.signal(n, signal.SIG_IGN) for n in range(1, 65) if n not in (9, 19, 32, 33)]",
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL); signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)",
    ] {
        let bare = run(prepare, &["/bin/busybox", "sh", "-c", show])?.success()?;
        let inside = run(prepare, &[SHIFTER, "--image=tiny", "sh", "-c", show])?;
        ensure!(
            inside.code == 0 && inside.stdout == bare.stdout,
            "{prepare}: {inside}{bare}"
        );
        guard.unchanged()?;
    }
    // A timer's signal is the command's; the set-up before it is done whole or not at all.
    for timer in [
        "ITIMER_REAL, 0.004",
        "ITIMER_REAL, 0.02",
        "ITIMER_PROF, 0.001",
        "ITIMER_VIRTUAL, 0.001",
    ] {
        let prepare =
            format!("signal.setitimer(signal.{timer}); signal.alarm(0) if False else None");
        let output = run(&prepare, &[SHIFTER, "--image=tiny", "sleep", "0.2"])?;
        ensure!(output.code == 0 || output.died(), "{timer}: {output}");
        guard.unchanged()?;
    }
    guard.finish()
}

/// S10: while the program works for her, alice can neither look into it nor steer it.
#[test]
fn privileged_s10_a_program_at_work_is_out_of_its_users_reach() -> Result<()> {
    let guard = Guard::prepare()?;
    guard.site.set_up(&manifest("1"))?.success()?;
    // Somebody is about to write the image's hint, and the program waits a moment for it, as root.
    let hint =
        Call::shell("echo /run/shifter/images/*; truncate -s 0 /run/shifter/images/*").ok()?;
    let mut holder = Call::new(["flock", "--exclusive", hint.trim(), "sleep", "1000"])
        .timeout(0)
        .start("/dev/null")?;
    std::thread::sleep(Duration::from_millis(100));
    let mut start = guard
        .site
        .product
        .shifter(["--image=tiny", "true"])
        .by(Alice)
        .timeout(0);
    start = start.env("SECRET_OF_ALICE", "1");
    let mut running = start.start("/tmp/start")?;
    let pid = running.id();
    let is_root = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let is_it = status.starts_with("Name:\tshifter\n");
        Ok((is_it && status.contains("\nUid:\t0\t0\t0\t0\n")).then_some(()))
    };
    let tried = wait_for("the program to become root", 3, is_root).and_then(|()| {
        Call::new(["kill", "-STOP", &pid.to_string()]).ok()?;
        let mut allowed = Vec::new();
        for attempt in [
            "gdb -batch -nx -ex 'info registers' -p $0 2>&1 | grep -q '^r.x'",
            "cat /proc/$0/mem",
            "cat /proc/$0/environ | grep -q SECRET",
            "cat /proc/$0/maps",
            "ls /proc/$0/fd/",
            "ls /proc/$0/task/$0/fd/",
            "readlink /proc/$0/exe",
            "readlink /proc/$0/cwd",
            "ls /proc/$0/root/",
            "cat /proc/$0/stack",
            "cat /proc/$0/auxv | grep -q .",
            "echo 1 >/proc/$0/clear_refs",
            "echo 500 >/proc/$0/oom_score_adj",
            "kill -KILL $0",
            "prlimit --pid $0 --nofile=1",
            "renice -n 5 -p $0",
            "taskset -p 1 $0",
            "strace -qq -p $0 -o /dev/null",
        ] {
            let output = Call::new(["timeout", "2", "sh", "-c", attempt, &pid.to_string()])
                .by(Alice)
                .output();
            // `timeout` says 124: it got somewhere and was still there.
            if !output.is_ok_and(|output| ![0, 124].contains(&output.code)) {
                allowed.push(attempt);
            }
        }
        ensure!(allowed.is_empty(), "alice was allowed: {allowed:?}");
        Ok(())
    });
    Call::shell(&format!("kill -CONT {pid}; pkill -P {}", holder.id())).output()?;
    holder.wait()?;
    let ended = running.wait()?;
    tried?;
    ensure!(ended.success(), "{}", fs::read_to_string("/tmp/start")?);
    guard.site.tear_down("1")?.success()?;
    guard.finish()
}

/// S12: a working directory that is gone, that is another's, or that answers no more.
#[test]
fn privileged_s12_odd_working_directories_end_at_the_root_with_one_warning() -> Result<()> {
    let guard = Guard::prepare()?;
    let gone = "mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone";
    let another = "cd /home/bob/private";
    let alice = "setpriv --reuid 2001 --regid 2001 --init-groups";
    for prepare in [gone, another] {
        let script =
            format!("{prepare}; exec {alice} {SHIFTER} --image=tiny sh -c 'pwd; ls -d bin'");
        let output = Call::shell(&script).output()?.success()?;
        ensure!(output.stdout == "/\nbin\n", "{output}");
        ensure!(
            output.stderr.lines().count() == 1 && output.stderr.contains("starting in '/'"),
            "{output}"
        );
        guard.well_spoken(&output)?;
    }
    guard.finish()
}
