//! Death at every point: each program is killed before each of its system calls in turn, and
//! teardown must then bring the node back to where it was.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Result, ensure};
use serde_json::Value;
use shifter_tests::call::{Call, wait_for};

use super::{Site, manifest};

const TRACE: &str = "/tmp/trace";

const MANIFEST: &str = "/root/kill.manifest";

/// Counts by name the system calls of a program, which `strace` traces.
fn calls_of(call: &dyn Fn(&[&str]) -> Call, strace: &[&str]) -> Result<BTreeMap<String, usize>> {
    let strace = [strace, &["-o", TRACE]].concat();
    call(&strace).output()?.success()?;
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(TRACE)?.lines() {
        let words = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        let name: String = words
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if !name.is_empty() && words[name.len()..].starts_with('(') {
            *counts.entry(name).or_insert(0) += 1;
        }
    }
    Ok(counts)
}

/// Kills the program before its every system call, then itself or the copy of it that does part of its
/// work, whichever makes the call first; lets `check` judge what is left.
pub(super) fn kill_everywhere(
    call: &dyn Fn(&[&str]) -> Call,
    mut prepare: impl FnMut() -> Result<()>,
    mut check: impl FnMut(&str) -> Result<()>,
) -> Result<usize> {
    let mut deaths = 0;
    for strace in [&["strace"][..], &["strace", "-f"]] {
        prepare()?;
        let counts = calls_of(call, strace)?;
        check("after its last system call")?;
        for (name, count) in counts {
            for number in 1..=count {
                prepare()?;
                let inject = format!("--inject={name}:signal=KILL:when={number}");
                let strace = [strace, &["-qq", "-o", "/dev/null", &inject]].concat();
                let output = call(&strace).output()?;
                // Of a copy that was killed the program tells.
                let is_death = output.code == 137 || output.stderr.contains("got signal 9");
                deaths += usize::from(is_death);
                check(&format!("killed before {name} number {number}: {output}"))?;
            }
        }
    }
    Ok(deaths)
}

fn with_volume(job: &str) -> Value {
    let mut manifest = manifest(job);
    // Mount points in the root, in an overlay and in the image itself.
    manifest["volumes"] = [
        "/scratch/alice:/a/b",
        "/scratch/alice:/usr/share/x",
        "/scratch/alice:/mnt",
    ]
    .as_slice()
    .into();
    manifest
}

#[test]
fn privileged_setup_killed_before_each_system_call_leaves_nothing() -> Result<()> {
    let site = Site::prepare()?;
    let text = with_volume("17").to_string();
    let program = site.product.path("sbin/setupRoot");
    let call = |tracer: &[&str]| {
        let args = [
            &*program,
            "--manifest=-",
            "--expect-uid=2001",
            "--expect-job=17",
        ];
        Call::new(tracer.iter().chain(&args).copied()).input(text.clone())
    };
    let deaths = kill_everywhere(
        &call,
        || Ok(()),
        |when| {
            let output = site.tear_down("17")?;
            ensure!(output.code == 0, "{when}: {output}");
            site.clean
                .ensure_restored(None)
                .map_err(|error| error.context(when.to_owned()))
        },
    )?;
    ensure!(deaths > 800, "only {deaths} kills hit");
    Ok(())
}

#[test]
fn privileged_teardown_killed_before_each_system_call_is_finished_by_the_next() -> Result<()> {
    let site = Site::prepare()?;
    let program = site.product.path("sbin/unsetupRoot");
    let call = |tracer: &[&str]| Call::new(tracer.iter().chain(&[&*program, "17"]).copied());
    let prepare = || site.set_up(&with_volume("17"))?.success().map(drop);
    let deaths = kill_everywhere(&call, prepare, |when| {
        let output = site.tear_down("17")?;
        ensure!(output.code == 0, "{when}: {output}");
        site.clean
            .ensure_restored(None)
            .map_err(|error| error.context(when.to_owned()))
    })?;
    ensure!(deaths > 400, "only {deaths} kills hit");
    Ok(())
}

#[test]
fn privileged_setup_goes_on_after_a_teardown_that_was_killed() -> Result<()> {
    let site = Site::prepare()?;
    let program = site.product.path("sbin/unsetupRoot");
    for number in 1..=12 {
        site.set_up(&manifest("17"))?.success()?;
        let inject = format!("--inject=unlinkat:signal=KILL:when={number}");
        Call::new([
            "strace",
            "-qq",
            "-o",
            "/dev/null",
            &*inject,
            &*program,
            "17",
        ])
        .output()?;
        site.set_up(&manifest("17"))?.success()?;
        site.tear_down("17")?.success()?;
    }
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_a_steps_root_whose_maker_died_meanwhile_goes_with_the_next() -> Result<()> {
    let site = Site::prepare()?;
    fs::write(MANIFEST, manifest("17").to_string())?;
    let hook = "#!/bin/sh\ntouch /run/started; until [ -e /run/go ]; do sleep 0.05; done\n";
    fs::write("/opt/slow", hook)?;
    Call::new(["chmod", "0755", "/opt/slow"]).ok()?;
    site.product
        .configure("[hooks]\npre_mount = ['/opt/slow']")?;
    let program = site.product.path("sbin/setupRoot");
    let make = |step: &str| {
        format!("{program} --root={step} --manifest={MANIFEST} --expect-uid=2001 --expect-job=17")
    };
    let daemon = format!(
        "{} >/dev/null 2>&1 </dev/null & until [ -e /run/started ]; do sleep 0.05; done",
        make("step-1")
    );
    Call::shell(&daemon).ok()?;
    fs::write("/run/go", "")?;
    let roots = "/run/shifter/jobs/17/roots";
    wait_for("the root", 10, || {
        Ok(fs::exists(format!("{roots}/step-1/meta"))?.then_some(()))
    })?;
    Call::shell(&make("step-2")).ok()?;
    let left = Call::new(["ls", roots]).ok()?;
    site.tear_down("17")?.success()?;
    for file in ["/opt/slow", "/run/started", "/run/go", MANIFEST] {
        fs::remove_file(file)?;
    }
    site.product.configure("")?;
    ensure!(left == "step-2\n", "{left}");
    site.clean.ensure_restored(None)
}
