//! Kernel modules on this machine's own kernel, as far as that goes: what it has is left alone.
//! Loading is tested with another kernel (`kernel_*`).

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use shifter_tests::call::Call;

use super::{Site, ensure_refused, manifest};

/// Traces a set-up and returns its system calls that look for modules.
fn calls_for_modules(site: &Site) -> Result<Vec<String>> {
    let trace = "/tmp/trace";
    let program = site.product.path("sbin/setupRoot");
    Call::new(["strace", "-o", trace, &*program, "--manifest=-"])
        .args(["--expect-uid=2001", "--expect-job=5"])
        .input(manifest("5").to_string())
        .ok()?;
    site.tear_down("5")?.success()?;
    let words = [
        "/sys/module",
        "/proc/filesystems",
        "/proc/modules",
        "/lib/modules",
        "init_module(",
    ];
    let text = fs::read_to_string(trace)?;
    let calls = text
        .lines()
        .filter(|line| words.iter().any(|word| line.contains(word)));
    Ok(calls.map(str::to_owned).collect())
}

#[test]
fn privileged_modules_that_are_there_are_only_looked_at() -> Result<()> {
    let site = Site::prepare()?;
    let calls = calls_for_modules(&site)?;
    ensure!(calls.is_empty(), "not configured: {calls:#?}");
    // One that can be seen in /sys/module on every kernel, and one that cannot where it is built in.
    site.product
        .configure("[kernel]\npreload = ['printk', 'squashfs']\nkmod_base_path = '/nowhere'")?;
    let calls = calls_for_modules(&site)?;
    ensure!((2..=7).contains(&calls.len()), "{calls:#?}");
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_a_missing_module_is_the_nodes_failure() -> Result<()> {
    let site = Site::prepare()?;
    let program = site.product.path("sbin/setupRoot");
    let set_up = || {
        Call::new([&*program, "--manifest=-", "--record-failure"])
            .args(["--expect-uid=2001", "--expect-job=5"])
            .input(manifest("5").to_string())
            .output()
    };
    site.product
        .configure("[kernel]\npreload = ['squashfs', 'no_such']")?;
    let output = set_up()?;
    ensure_refused(&output, 5, "cannot load kernel module 'no_such'")?;
    ensure!(output.stderr.contains("kernel.preload"), "{output}");
    // One that is no module, on a kernel that may take none either.
    let release = Call::new(["uname", "-r"]).ok()?;
    let dir = format!("/opt/modules/{}", release.trim());
    fs::create_dir_all(&dir)?;
    fs::write(format!("{dir}/modules.dep"), "no-such.ko:\n")?;
    fs::write(format!("{dir}/no-such.ko"), "no module\n")?;
    site.product
        .configure("[kernel]\npreload = ['no_such']\nkmod_base_path = '/opt/modules'")?;
    let why = match Path::new("/proc/modules").exists() {
        true => "no-such.ko' is no module for this kernel",
        false => "it is not built in, and this kernel takes no modules",
    };
    ensure_refused(&set_up()?, 5, why)?;
    fs::remove_dir_all("/opt/modules")?;
    // Not a failure for the job's tasks to report, and nothing was begun.
    site.clean.ensure_restored(None)?;
    // A user's own container needs nothing of this.
    ensure!(site.script(&[], "echo started")? == "started\n");
    site.tear_down("5")?.success()?;
    site.clean.ensure_restored(None)
}
