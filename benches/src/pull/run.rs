//! One run of a program: what it took, and what it needed.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;

use super::disk::{AT, Disk};

const TIMES: &str = "/tmp/bench/times";
const LOG: &str = "/tmp/bench/pull.log";

/// Shell scripts around the one that is measured.
pub struct Run<'a> {
    /// What must be there before.
    pub prepare: &'a str,
    /// What is measured.
    pub script: &'a str,
    /// Prints the path of the squashfs file that it made; nothing if it makes none.
    pub output: &'a str,
    /// Removes everything.
    pub tidy: &'a str,
}

/// Seconds, and megabytes (10^6 bytes).
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// From fork to wait.
    pub wall: f64,
    /// User and system time of all processes that were waited for.
    pub cpu: f64,
    /// The resident memory of the largest of them.
    pub memory: f64,
    /// What was in use at most.
    pub disk: f64,
    /// The size of the image.
    pub output: f64,
    /// What came over the loopback interface.
    pub network: f64,
}

impl Run<'_> {
    /// Runs it.
    pub fn measure(&self, disk: &Disk) -> Result<Figures> {
        shell(self.prepare)?;
        disk.settle()?;
        let earlier = received()?;
        let (wall, most) = disk.watch(|| {
            let log = fs::File::create(LOG)?;
            let mut command = Command::new("/usr/bin/time");
            command
                .args(["-f", "%U %S %M", "-o", TIMES])
                .args(["/bin/bash", "-ec", self.script])
                .env_clear()
                // Not another python3 than Debian's.
                .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
                .env("HOME", format!("{AT}/home"))
                .env("USER", "root")
                .current_dir(AT)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log);
            let began = Instant::now();
            let status = command.status().context("time")?;
            let took = began.elapsed().as_secs_f64();
            ensure!(status.success(), "{status}: {}", last_lines()?);
            Ok(took)
        })?;
        let network = (received()? - earlier) / 1e6;
        let times = fs::read_to_string(TIMES)?;
        let times: Vec<f64> = times
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [user, system, kilobytes] = times[..] else {
            anyhow::bail!("{TIMES}: {times:?}");
        };
        let output = match self.output {
            "" => 0.0,
            script => size_of_image(Call::shell(script).ok()?.trim())?,
        };
        shell(self.tidy)?;
        Ok(Figures {
            wall,
            cpu: user + system,
            memory: kilobytes * 1024.0 / 1e6,
            disk: most as f64 / 1e6,
            output,
            network,
        })
    }
}

fn shell(script: &str) -> Result<()> {
    Call::shell(script).timeout(900).ok().map(drop)
}

/// Fails unless the file is an image with something in it.
fn size_of_image(path: &str) -> Result<f64> {
    let text = Call::new(["unsquashfs", "-s", path]).ok()?;
    let inodes = text
        .lines()
        .find_map(|line| line.strip_prefix("Number of inodes "))
        .with_context(|| format!("no inodes in {path}"))?;
    ensure!(
        inodes.trim().parse::<u64>()? > 1000,
        "{path}: {inodes} inodes"
    );
    Ok(fs::metadata(path)?.len() as f64 / 1e6)
}

fn last_lines() -> Result<String> {
    let log = fs::read_to_string(LOG)?;
    let lines: Vec<&str> = log.lines().collect();
    Ok(lines[lines.len().saturating_sub(5)..].join("\n"))
}

/// Returns the bytes that the loopback interface has received; each world has one of its own.
fn received() -> Result<f64> {
    let text = fs::read_to_string("/proc/net/dev")?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"));
    let first = line.and_then(|line| line.split_whitespace().next());
    Ok(first.context("no lo in /proc/net/dev")?.parse()?)
}
