//! The system calls between `shifter` and the command: what a start asks of the kernel does not
//! depend on how busy the machine is.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use shifter_tests::report;

use crate::job::{JOB, Manifest, end_job, in_job};
use crate::peers;
use crate::program::Program;
use crate::site::{SHIFTER, Site};
use crate::table::{Goal, Heading, Row, finish, row};

const JOIN: &str = "shifter, joining the job's root";

const TRACE: &str = "/tmp/bench/trace";

/// Counts them.
pub fn measure(site: &Site, _rounds: usize) -> Result<Vec<Row>> {
    let private = site.private(&site.image);
    let mut holder = Program::of_user(&private).hold(&["/usr/local/bin/floor", "hold"])?;
    holder.wait_until_ready()?;
    let command = |words: &[&str]| -> Vec<String> {
        let all = words.iter().chain(&["/bin/true"]);
        all.map(|word| (*word).to_owned()).collect()
    };
    let built = trace(&command(&private))?;
    // With the groups that strace gives its command: it is to be like what is traced.
    let like = ["setpriv", "--reuid=alice", "--regid=alice", "--init-groups"];
    let like = [&like[..], &private].concat();
    let mut twin = Program::of_root(&like).hold(&["/usr/local/bin/floor", "hold"])?;
    twin.wait_until_ready()?;
    let calls = trace(&command(&private))?;
    let mut rows = vec![
        row(
            "shifter --image, image mounted already",
            Goal::Most(150.0),
            vec![total(&built)],
        ),
        row(
            "shifter --image, and one like it runs",
            Goal::Most(150.0),
            vec![total(&calls)],
        ),
    ];
    let job = Manifest::write(site, JOB)?;
    job.set_up()?;
    let joined = in_job(|| trace(&command(&[SHIFTER])))?;
    job.tear_down()?;
    end_job()?;
    rows.push(row(JOIN, Goal::None, vec![total(&joined)]));
    for peer in peers::light()? {
        let call = peer.program.command(&["/bin/true"])?;
        let words = std::iter::once(call.get_program()).chain(call.get_args());
        let words: Vec<String> = words
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        rows.push(row(peer.name, Goal::None, vec![total(&trace(&words)?)]));
    }
    let title = "System calls from the program's execve to the command's, helpers included";
    let heading = Heading {
        title,
        unit: "",
        base: peers::BWRAP,
    };
    let rows = finish(heading, rows);
    report::line(&format!("of the first of these: {}", by_name(built)));
    report::line(&format!("of the second: {}", by_name(calls)));
    report::line(&format!("of the one that joins: {}", by_name(joined)));
    peers::settle()?;
    Ok(rows)
}

/// Lists them, the most frequent first.
fn by_name(calls: BTreeMap<String, usize>) -> String {
    let mut calls: Vec<(String, usize)> = calls.into_iter().collect();
    calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let shown = calls.iter().map(|(name, count)| format!("{name} {count}"));
    shown.collect::<Vec<_>>().join(", ")
}

fn total(calls: &BTreeMap<String, usize>) -> f64 {
    calls.values().sum::<usize>() as f64
}

/// Runs a program as alice, traced by root so that setuid counts, and returns its calls by name up
/// to the one that executes /bin/true.
fn trace(words: &[String]) -> Result<BTreeMap<String, usize>> {
    let status = Command::new("strace")
        .args(["-f", "-u", "alice", "-o", TRACE])
        .args(words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("USER", "alice")
        .current_dir("/tmp")
        .status()
        .context("cannot run strace")?;
    ensure!(status.success(), "{}: {status}", words.join(" "));
    let text = fs::read_to_string(TRACE)?;
    let mut calls = BTreeMap::new();
    for line in text.lines() {
        let call = line
            .split_once(' ')
            .map_or("", |(_, call)| call.trim_start());
        // Signals, ends of processes, and second halves of calls that others interrupted.
        if ["---", "+++", "<..."]
            .iter()
            .any(|other| call.starts_with(other))
        {
            continue;
        }
        let (name, rest) = call.split_once('(').with_context(|| format!("'{line}'"))?;
        *calls.entry(name.to_owned()).or_default() += 1;
        if name == "execve" && rest.starts_with("\"/bin/true\"") {
            return Ok(calls);
        }
    }
    anyhow::bail!("{} never executed /bin/true", words.join(" "))
}
