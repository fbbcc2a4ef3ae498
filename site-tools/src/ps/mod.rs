//! `shifter ps`: the containers on this node, by the mount namespaces of processes.
//!
//! A process is in a container if its mount namespace is not ours, unless we are in one, and the file
//! system at its root is Shifter's. Users see their own, root sees everybody's. All of it comes from /proc, as it was
//! at one moment; a process that ends meanwhile is left out.

mod process;
mod table;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;

use lexopt::prelude::*;
use serde::Serialize;
use shifter_core::exit::ExitCode;
use shifter_core::sanitize;

use self::process::Process;
use crate::{look, output};

const PROGRAM: &str = "shifter ps";

const HELP: &str = "\
Usage: shifter ps [--json]

Lists your containers on this node, or, for root, those of all users: one line
for each, with its oldest command and the processes in it.

      --json     print one JSON array
  -h, --help     print this text

Exit status: 0 listed, also if there is none; 1 the list cannot be made; 2 wrong
usage.
";

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Container {
    /// Inode of its mount namespace.
    namespace: u64,
    /// Whose it is.
    uid: u32,
    /// The user's name, or the uid.
    user: String,
    /// The job it belongs to.
    job: Option<String>,
    /// The image, as the user named it where that is known.
    image: Option<String>,
    /// The command of its oldest process.
    command: String,
    /// When that began, in seconds since 1970.
    started: u64,
    /// The processes in it.
    pids: Vec<u32>,
}

/// Runs the program with the arguments after its name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let is_json = match parse(args) {
        Ok(Some(is_json)) => is_json,
        Ok(None) => return output::data(HELP),
        Err(error) => {
            let message = sanitize::text(&error.to_string());
            output::failure(PROGRAM, &message, Some("shifter ps --help"));
            return ExitCode::Usage;
        }
    };
    let Some(containers) = containers() else {
        output::failure(PROGRAM, "cannot read '/proc'", Some("mount it"));
        return ExitCode::Internal;
    };
    output::data(&if is_json {
        serde_json::to_string_pretty(&containers).unwrap_or_default() + "\n"
    } else {
        table::render(&containers, process::now())
    })
}

/// Returns whether JSON is wanted; nothing if help is.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<bool>, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut is_json = false;
    while let Some(arg) = parser.next()? {
        match arg {
            Short('h') | Long("help") => return Ok(None),
            Long("json") => is_json = true,
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(is_json))
}

/// Lists the containers that this process may see, the newest first.
fn containers() -> Option<Vec<Container>> {
    // Who looks from the host is in none, whatever root another process on the host has changed to.
    let outside = Some(process::namespace("self")?).filter(|_| !process::is_self_contained());
    let uid = look::own_uid();
    // Root's processes are set-ups that are not done, and administrators who look into one.
    let is_visible = |of: u32| of != 0 && (uid == 0 || of == uid);
    let mut groups: BTreeMap<u64, Vec<Process>> = BTreeMap::new();
    for pid in pids()? {
        if let Some(process) = Process::read(pid)
            && Some(process.namespace) != outside
            && is_visible(process.uid)
        {
            groups.entry(process.namespace).or_default().push(process);
        }
    }
    let passwd = look::text("/etc/passwd");
    let clock = process::Clock::read();
    let mut found: Vec<Container> = groups
        .into_values()
        // One that has changed its own root tells nothing; the others in its namespace do.
        .filter(|group| group.iter().any(Process::is_contained))
        .filter_map(|group| container(group, uid, &passwd, &clock))
        .collect();
    found.sort_by_key(|container| std::cmp::Reverse((container.started, container.namespace)));
    Some(found)
}

fn container(
    mut group: Vec<Process>,
    own_uid: u32,
    passwd: &str,
    clock: &process::Clock,
) -> Option<Container> {
    group.sort_by_key(|process| (process.start_ticks, process.pid));
    let oldest = group.first()?;
    let user = user_name(passwd, oldest.uid).unwrap_or_else(|| oldest.uid.to_string());
    // Before its environment: one that is just becoming its command has that with it.
    let command = oldest.command();
    Some(Container {
        namespace: oldest.namespace,
        uid: oldest.uid,
        user: sanitize::text(&user),
        job: oldest.job().map(|job| sanitize::text(&job)),
        image: group
            .iter()
            .find_map(|process| process.image(own_uid))
            .map(|image| sanitize::text(&image)),
        command: sanitize::text(&command),
        started: clock.seconds(oldest.start_ticks),
        pids: group.iter().map(|process| process.pid).collect(),
    })
}

fn pids() -> Option<Vec<u32>> {
    let entries = fs::read_dir("/proc").ok()?;
    let pid = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    Some(entries.filter_map(pid).collect())
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| fields[0].to_owned())
    })
}

/// Returns the jobs that have a process on this node.
pub(crate) fn jobs_with_processes() -> Vec<String> {
    let pids = pids().unwrap_or_default();
    pids.into_iter().filter_map(process::job).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let parse = |text: &str| parse(text.split_whitespace().map(OsString::from)).map_err(|_| ());
        assert_eq!(parse(""), Ok(Some(false)));
        assert_eq!(parse("--json"), Ok(Some(true)));
        assert_eq!(parse("--json -h"), Ok(None));
        assert_eq!(parse("-a"), Err(()));
        assert_eq!(parse("x"), Err(()));
    }

    #[test]
    fn names_of_users() {
        let passwd = "root:x:0:0::/:/bin/sh\nbad\nalice:x:2001:2001::/:/bin/sh\n";
        assert_eq!(user_name(passwd, 2001).as_deref(), Some("alice"));
        assert_eq!(user_name(passwd, 7), None);
    }
}
