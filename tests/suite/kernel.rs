//! Another kernel than this machine's: Debian's own, whose file systems are modules, with cgroup v2,
//! in an emulated machine (`tests/kernel.sh`).
//!
//! The tests themselves are shell functions in `tests/kernel/`, which run in there; each says on the
//! console what came of it. Here it is judged that all of them ran, and well.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Result, bail, ensure};
use shifter_tests::call::Call;
use shifter_tests::report;
use shifter_tests::skip::skip;
use shifter_tests::world::{checkout, require, target};

/// Runs a script in the machine, and fails unless each of its cases ran and succeeded.
fn run(test: &str, script: &str) -> Result<()> {
    require()?;
    let cache = target().join("testbed");
    if !cache.join("kernel/release").exists() {
        let log = fs::read_to_string(cache.join("kernel.failed")).unwrap_or_default();
        let reason = log.lines().last().unwrap_or("call 'tests/kernel.sh fetch'");
        return skip(test, &format!("there is no kernel: {reason}"));
    }
    let text = fs::read_to_string(checkout().join(format!("tests/kernel/{script}.sh")))?;
    let cases: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("check "))
        .collect();
    ensure!(!cases.is_empty(), "no case in {script}.sh");
    let output = Call::new(["tests/kernel.sh", "run", script])
        .cwd(checkout())
        .timeout(200)
        .output()?;
    let verdicts = verdicts(&output.stdout);
    let mut failed = Vec::new();
    for case in &cases {
        let verdict = verdicts.get(case).copied().unwrap_or("did not run");
        report::line(&format!("  {script}: {case}: {verdict}"));
        if !verdict.starts_with("ok") {
            failed.push(format!("{case}: {verdict}"));
        }
    }
    if !failed.is_empty() {
        bail!("{}\n{output}", failed.join("\n"));
    }
    Ok(())
}

/// Reads `verdict ok CASE …` and `verdict failed CASE: …` from the console.
fn verdicts(console: &str) -> BTreeMap<&str, &str> {
    let mut found = BTreeMap::new();
    for line in console.lines() {
        let Some(verdict) = line.trim_end().strip_prefix("verdict ") else {
            continue;
        };
        let case = verdict.split([' ', ':']).nth(1).unwrap_or_default();
        found.insert(case, verdict);
    }
    found
}

#[test]
fn kernel_modules_are_loaded_by_the_first_job() -> Result<()> {
    run("kernel_modules_are_loaded_by_the_first_job", "modules")
}

#[test]
fn kernel_6_1_builds_joins_and_removes_roots() -> Result<()> {
    run("kernel_6_1_builds_joins_and_removes_roots", "roots")
}

#[test]
fn kernel_6_1_builds_roots_on_a_node_that_runs_from_its_initramfs() -> Result<()> {
    run(
        "kernel_6_1_builds_roots_on_a_node_that_runs_from_its_initramfs",
        "initramfs",
    )
}

#[test]
fn kernel_6_1_runs_slurm_with_cgroup_v2() -> Result<()> {
    run("kernel_6_1_runs_slurm_with_cgroup_v2", "slurm")
}
