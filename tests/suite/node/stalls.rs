//! File systems that stop to answer: whose fault that is, and how it ends.

use std::fs;
use std::process::Child;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use shifter_tests::call::{Call, Output, wait_for};
use shifter_tests::product::STORE;

use super::secure::Guard;
use super::{image_id, manifest};

const LOG: &str = "/tmp/stall.log";
const MANIFEST: &str = "/root/stall.manifest";
const NOTE: &str = "/run/shifter/jobs/17/failure";

/// A FUSE file system that shows another directory, until it is stopped.
struct Stalling {
    at: String,
    daemon: Child,
    tracer: Option<Child>,
}

impl Stalling {
    /// Shows `low` at `at`, for everybody.
    fn mount(low: &str, at: &str) -> Result<Self> {
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

    fn signal(&self, name: &str) -> Result<Output> {
        Call::new(["kill", name, &self.daemon.id().to_string()]).output()
    }

    /// Stops it now.
    fn stop(&self) -> Result<()> {
        self.signal("-STOP")?.success().map(drop)
    }

    /// Stops it before it reads this file, which is one of what it shows, for the `read`th time.
    fn stop_at(&mut self, file: &str, read: usize) -> Result<()> {
        let pid = self.daemon.id().to_string();
        let inject = format!("--inject=pread64:signal=STOP:when={read}");
        let strace = Call::new(["strace", "-f", "-o", LOG, "-P", file, &inject, "-p", &pid]);
        self.tracer = Some(strace.timeout(0).start("/tmp/strace.log")?);
        let attached = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            Ok((!status.contains("TracerPid:\t0\n")).then_some(()))
        };
        wait_for("strace", 5, attached)
    }

    /// True once it has stopped.
    fn has_stopped(&self) -> Result<bool> {
        Ok(fs::read_to_string(LOG)?.contains("stopped by"))
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        let _ = self.signal("-CONT");
        if let Some(mut tracer) = self.tracer.take() {
            let _ = Call::new(["kill", &tracer.id().to_string()]).output();
            let _ = tracer.wait();
        }
        let _ = Call::new(["umount", "-l", &self.at]).output();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Starts setupRoot on a manifest, to run beside the test.
fn set_up(guard: &Guard, manifest: &Value) -> Result<Child> {
    fs::write(MANIFEST, manifest.to_string())?;
    let program = guard.site.product.path("sbin/setupRoot");
    let file = format!("--manifest={MANIFEST}");
    let call = Call::new([&*program, &*file, "--expect-uid=2001", "--expect-job=17"]);
    call.timeout(0).start("/tmp/setup.log")
}

fn with_volumes() -> Value {
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
    let low = "/var/lib/shifter/low";
    fs::rename(STORE, low)?;
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
    fs::remove_dir(STORE)?;
    fs::rename(low, STORE)?;
    guard.rebase()?;
    outcome?;
    ensure!(stops > 1, "it was held up {stops} times");
    guard.finish()
}
