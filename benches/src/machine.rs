//! The machine that is measured: what it is, and whether it is quiet enough.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::report;

/// The load average above which figures mean little.
const QUIET: f64 = 1.0;

/// How long to wait for it: what built the bench a moment ago still counts.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until the machine is quiet, and fails if it does not become so; not if `is_noisy`.
pub fn wait_until_quiet(is_noisy: bool) -> Result<()> {
    if is_noisy {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let load = load()?;
        if load <= QUIET {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the load average is {load}, above {QUIET}: figures would mean little (--noisy \
             measures nevertheless)"
        );
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// Prints machine, kernel, load and the versions of the peers.
pub fn describe() -> Result<()> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let memory = value(&fs::read_to_string("/proc/meminfo")?, "MemTotal");
    let count = cpus.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    report::line(&format!(
        "{count} × {}, {memory}, Linux {}",
        value(&cpus, "model name"),
        kernel.trim()
    ));
    let versions = "date -u +%F; bwrap --version; USER=root ch-run --version 2>&1 | sed 's/^/ch-run /'; \
                    crun --version | head -1; podman --version";
    let output = Call::shell(versions).output()?.stdout;
    report::line(&output.lines().collect::<Vec<_>>().join(", "));
    describe_load()
}

/// Prints the load average.
pub fn describe_load() -> Result<()> {
    let load = load()?;
    let noisy = if load > QUIET { " (noisy)" } else { "" };
    report::line(&format!("load average {load}{noisy}"));
    Ok(())
}

fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let first = text.split(' ').next().context("/proc/loadavg is empty")?;
    Ok(first.parse()?)
}
