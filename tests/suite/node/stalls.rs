//! File systems that stop to answer: whose fault that is, and how it ends.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use shifter_tests::call::{Call, Output, wait_for};
use shifter_tests::product::STORE;
use shifter_tests::world::User::Alice;

use super::secure::Guard;
use super::{image_id, manifest};

const LOG: &str = "/tmp/stall.log";
const MANIFEST: &str = "/root/stall.manifest";
pub(super) const NOTE: &str = "/run/shifter/jobs/17/failure";

/// A FUSE file system that shows another directory, until it is stopped.
pub(super) struct Stalling {
    at: String,
    daemon: Child,
    tracer: Option<Child>,
}

impl Stalling {
    /// Shows `low` at `at`, for everybody.
    pub(super) fn mount(low: &str, at: &str) -> Result<Self> {
        fs::create_dir_all(low)?;
        fs::create_dir_all(at)?;
        let daemon = Call::new(["bindfs", "-f", low, at]).timeout(0);
        let daemon = daemon.start("/tmp/bindfs.log")?;
        let mounted = || {
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            Ok(mounts.contains(&format!(" {at} ")).then_some(()))
        };
        wait_for("the file system", 5, mounted)?;
        Ok(Self {
            at: at.to_owned(),
            daemon,
            tracer: None,
        })
    }

    pub(super) fn signal(&self, name: &str) -> Result<Output> {
        Call::new(["kill", name, &self.daemon.id().to_string()]).output()
    }

    /// Stops it now.
    pub(super) fn stop(&self) -> Result<()> {
        self.signal("-STOP")?.success()?;
        let status = format!("/proc/{}/status", self.daemon.id());
        let stopped = || {
            Ok(fs::read_to_string(&status)?
                .contains("State:\tT")
                .then_some(()))
        };
        wait_for("the stop", 5, stopped)
    }

    /// Stops it before it reads this file, which is one of what it shows, for the `read`th time.
    pub(super) fn stop_at(&mut self, file: &str, read: usize) -> Result<()> {
        let inject = format!("--inject=pread64:signal=STOP:when={read}");
        self.trace(&["-P", file, &inject])
    }

    fn trace(&mut self, options: &[&str]) -> Result<()> {
        let pid = self.daemon.id().to_string();
        let strace = Call::new(["strace", "-f", "-o", LOG, "-p", &pid]);
        let strace = strace.args(options.iter().copied()).timeout(0);
        self.tracer = Some(strace.start("/tmp/strace.log")?);
        let attached = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            Ok((!status.contains("TracerPid:\t0\n")).then_some(()))
        };
        wait_for("strace", 5, attached)
    }

    /// Lets it go on, as if nothing had ever been.
    pub(super) fn resume(&mut self) -> Result<()> {
        if let Some(mut tracer) = self.tracer.take() {
            Call::new(["kill", &tracer.id().to_string()]).ok()?;
            tracer.wait()?;
        }
        self.signal("-CONT")?.success().map(drop)
    }

    /// Makes each of its answers take this long.
    pub(super) fn slow_down(&mut self, millis: usize) -> Result<()> {
        let delay = format!("--inject=writev:delay_enter={millis}000");
        self.trace(&["-e", "trace=writev", &delay])
    }

    /// True once it has stopped.
    pub(super) fn has_stopped(&self) -> Result<bool> {
        Ok(fs::read_to_string(LOG)?.contains("stopped by"))
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        let _ = self.resume();
        let _ = Call::new(["umount", "-l", &self.at]).output();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Starts setupRoot on a manifest, to run beside the test.
pub(super) fn set_up(guard: &Guard, manifest: &Value) -> Result<Child> {
    fs::write(MANIFEST, manifest.to_string())?;
    let program = guard.site.product.path("sbin/setupRoot");
    let file = format!("--manifest={MANIFEST}");
    let call = Call::new([&*program, &*file, "--expect-uid=2001", "--expect-job=17"]);
    call.timeout(0).start("/tmp/setup.log")
}

pub(super) fn with_volumes() -> Value {
    let mut job = manifest("17");
    job["volumes"] = [
        "/scratch/alice:/fine",
        "/scratch/hung:/usr/share/x",
        "/tmp:/mnt",
    ]
    .map(Value::from)
    .to_vec()
    .into();
    job
}

impl Guard {
    /// Moves the store away, to be shown in its place; returns where to.
    fn put_aside(&self) -> Result<&'static str> {
        let low = "/var/lib/shifter/low";
        fs::rename(STORE, low)?;
        Ok(low)
    }

    /// Moves the store away and shows it in its place through a file system that can stop; returns
    /// where to.
    pub(super) fn put_behind_stalling(&mut self) -> Result<(&'static str, Stalling)> {
        let low = self.put_aside()?;
        let store = Stalling::mount(low, STORE)?;
        self.rebase()?;
        Ok((low, store))
    }

    pub(super) fn put_back(&mut self, low: &str) -> Result<()> {
        fs::remove_dir(STORE)?;
        fs::rename(low, STORE)?;
        self.rebase()
    }

    /// Fails unless a start was ended because of what does not answer, and nothing of it is left.
    fn ended(&self, output: &Output, what: &str) -> Result<()> {
        let line = format!("shifter: no answer from {what} in 1 s\n");
        ensure!(
            (output.code, &*output.stderr) == (5, &*line) && output.stdout.is_empty(),
            "'{line}' expected: {output}"
        );
        ensure!(output.took < Duration::from_secs(4), "{:?}", output.took);
        Ok(())
    }
}

#[test]
fn privileged_a_volume_is_blamed_while_it_is_waited_for_and_no_longer() -> Result<()> {
    let mut guard = Guard::prepare()?;
    let volume = Stalling::mount("/tmp/low", "/scratch/hung")?;
    guard.rebase()?;
    guard.site.set_up(&with_volumes())?.success()?;
    ensure!(fs::metadata(NOTE).is_err(), "the note outlived the set-up");
    guard.site.tear_down("17")?.success()?;
    volume.stop()?;
    let mut setup = set_up(&guard, &with_volumes())?;
    let noted = wait_for("a note", 5, || Ok(fs::read_to_string(NOTE).ok()));
    setup.kill()?;
    setup.wait()?;
    drop(volume);
    let noted = noted?;
    ensure!(
        noted == "no answer from the source of a volume: '/scratch/hung'",
        "{noted}"
    );
    guard.site.tear_down("17")?.success()?;
    fs::remove_dir("/scratch/hung")?;
    guard.rebase()?;
    guard.finish()
}

#[test]
fn privileged_a_store_that_stops_is_no_fault_of_a_volume() -> Result<()> {
    let mut guard = Guard::prepare()?;
    fs::create_dir_all("/scratch/hung")?;
    let low = guard.put_aside()?;
    // The image's file is found and opened: what does not come is its content, first as it is
    // mounted and then as the root is made of it.
    let mut stops = 0;
    let outcome = (1..=8).try_for_each(|read| {
        let mut store = Stalling::mount(low, STORE)?;
        store.stop_at(&format!("{low}/{}.squashfs", image_id()), read)?;
        let mut setup = set_up(&guard, &with_volumes())?;
        let stopped = wait_for("an end or a stop", 10, || {
            Ok(match setup.try_wait()? {
                Some(_) => Some(false),
                None => store.has_stopped()?.then_some(true),
            })
        })?;
        stops += usize::from(stopped);
        if stopped {
            // There is nothing to wait for but time in which a note could come.
            std::thread::sleep(Duration::from_millis(100));
        }
        let is_noted = fs::metadata(NOTE).is_ok();
        store.signal("-CONT")?;
        let ended = setup.wait()?;
        guard.site.tear_down("17")?.success()?;
        ensure!(!is_noted, "read {read}: a volume is blamed");
        ensure!(ended.success(), "{}", fs::read_to_string("/tmp/setup.log")?);
        Ok(())
    });
    guard.put_back(low)?;
    outcome?;
    ensure!(stops > 1, "it was held up {stops} times");
    guard.finish()
}

#[test]
fn privileged_a_start_does_not_wait_for_ever() -> Result<()> {
    let mut guard = Guard::prepare()?;
    guard.site.product.configure("answer_timeout_secs = 1")?;
    let volume = Stalling::mount("/tmp/low", "/tmp/hung")?;
    fs::create_dir_all("/tmp/low/dir")?;
    fs::copy(format!("{STORE}/{}.squashfs", image_id()), "/tmp/low/image")?;
    guard.rebase()?;
    volume.stop()?;
    let table = [
        (
            &["--image=tiny", "-V/scratch:/a", "-V/tmp/hung:/b", "true"][..],
            "the source of a volume: '/tmp/hung'",
        ),
        (
            &["--image=/tmp/hung/image", "true"],
            "image '/tmp/hung/image'",
        ),
        (
            &["--image=tiny", "--workdir=/tmp/hung/dir", "true"],
            "working directory '/tmp/hung/dir'",
        ),
    ];
    let outcome = table
        .iter()
        .try_for_each(|(words, what)| guard.ended(&guard.site.shifter(words)?, what));
    // Nobody reads what it says: it does not end, but its user can kill it.
    let line =
        "mkfifo /tmp/full; exec 3<>/tmp/full; dd if=/dev/zero bs=4096 count=16 status=none >&3
        timeout -s KILL 2 shifter --image=tiny --volume=/tmp/hung:/b true 2>&3; echo $?";
    let full = Call::shell(line).by(Alice).timeout(8).output();
    drop(volume);
    guard.rebase()?;
    outcome?;
    ensure!(full?.stdout == "137\n");
    fs::remove_dir("/tmp/hung")?;
    Call::shell("rm -rf /tmp/low /tmp/full").ok()?;

    let (low, mut store) = guard.put_behind_stalling()?;
    // It takes requests and answers none: not even death ends a wait for that.
    store.slow_down(1_000_000)?;
    let stopped = guard.site.shifter(&["--image=tiny", "true"])?;
    store.resume()?;
    // Slower than the deadline altogether, but each answer comes.
    store.slow_down(40)?;
    let script = "trap '' CHLD; exec shifter --image=tiny sh -c \
        'read child </proc/$$/task/$$/children; echo \"($child)\"'";
    let slow = Call::shell(script).by(Alice).output()?;
    drop(store);
    guard.put_back(low)?;
    guard.ended(&stopped, &format!("image store '{STORE}'"))?;
    ensure!(slow.took > Duration::from_millis(1100), "{:?}", slow.took);
    // The command has no children but its own.
    ensure!(slow.success()?.stdout == "()\n");
    guard.finish()
}

#[test]
fn privileged_what_the_kernel_does_not_let_go_of_is_told_all_the_same() -> Result<()> {
    let mut guard = Guard::prepare()?;
    guard.site.product.configure("answer_timeout_secs = 1")?;
    let (low, mut store) = guard.put_behind_stalling()?;
    // A loop device waits for its file, and whoever waits for the loop device cannot be killed.
    store.stop_at(&format!("{low}/{}.squashfs", image_id()), 1)?;
    let start = Call::new(["shifter", "--image=tiny", "true"]).by(Alice);
    let mut running = start.start("/tmp/running")?;
    let told = wait_for("a message", 5, || {
        let said = fs::read_to_string("/tmp/running")?;
        Ok((!said.is_empty()).then_some(said))
    });
    store.signal("-CONT")?;
    let ended = running.wait()?;
    drop(store);
    guard.put_back(low)?;
    let told = told?;
    ensure!(
        told == "shifter: no answer from image 'docker:tiny:latest' in 1 s\n",
        "{told}"
    );
    ensure!(ended.signal() == Some(9), "{ended}");
    guard.finish()
}

/// Whoever asks whether a node is fit hears of it, health checks included, and does not wait for ever.
#[test]
fn privileged_doctor_names_a_store_that_does_not_answer() -> Result<()> {
    let mut guard = Guard::prepare()?;
    guard.site.product.configure("answer_timeout_secs = 2")?;
    let low = guard.put_aside()?;
    let store = Stalling::mount(low, STORE)?;
    store.stop()?;
    let ask = |form: &[&str]| {
        let doctor = guard.site.product.shifter([&["doctor"], form].concat());
        doctor.timeout(20).output()
    };
    let (report, nhc) = (ask(&[]), ask(&["--nhc"]));
    drop(store);
    guard.put_back(low)?;
    let said = format!("doctor: no answer from '{STORE}' in 2 s");
    let report = report?;
    ensure!(
        report.code == 1 && report.stdout.contains(&format!("error    {said}\nhint: ")),
        "{report}"
    );
    // What is on the node's own disks was looked at before.
    ensure!(
        report.stdout.contains("ok       program.setupRoot: "),
        "{report}"
    );
    let nhc = nhc?;
    ensure!(
        nhc.code == 1
            && nhc.stdout.starts_with("ERROR shifter: ")
            && nhc.stdout.ends_with(&format!("{said}\n")),
        "{nhc}"
    );
    guard.finish()
}
