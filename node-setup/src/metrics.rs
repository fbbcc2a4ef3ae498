//! Counters for Prometheus, in a file that node_exporter's textfile collector reads.
//!
//! ```text
//! <textfile>/shifter.prom           replaced as a whole after each event
//! <textfile>/.shifter.prom.new      being written; who writes holds the lock
//! <textfile>/.shifter.lock
//! ```
//!
//! The file is its own memory: the next event reads it, counts, and writes it anew.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use shifter_core::trusted;

use crate::error::{Context, Error, Result};
use crate::record::{Event, Record};

const FILE: &str = "shifter.prom";
const NEW: &str = ".shifter.prom.new";
const LOCK: &str = ".shifter.lock";

/// Bytes that are read of what is there.
const SIZE_LIMIT: u64 = 64 << 10;

/// How long others that count are waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// Counts an event in the directory that the site has named, which is root's alone.
pub fn count(dir: &Path, record: &Record) -> Result<()> {
    let dir = trusted::audit(dir, &[0]).map_err(Error::Untrusted)?;
    let path = dir.join(LOCK);
    let lock = open(&path, 0o600).step("open", &path)?;
    wait_for(&lock).step("lock", &path)?;
    let file = dir.join(FILE);
    let before = read(&file).step("read", &file)?;
    let seconds = record.took.as_secs_f64();
    let after = counted(&before, record.event, record.outcome.name(), seconds);
    let new = dir.join(NEW);
    let write = || -> io::Result<()> {
        let mut out = open(&new, 0o644)?;
        out.set_len(0)?;
        out.write_all(after.as_bytes())?;
        // The collector runs as a user of its own.
        out.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        fs::rename(&new, &file)
    };
    write().step("write", &file)
}

fn open(path: &Path, mode: u32) -> io::Result<File> {
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(mode);
    options.custom_flags(nofollow).open(path)
}

fn wait_for(lock: &File) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return Ok(other?),
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(SIZE_LIMIT).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the text with one event more. Lines that are none of ours are dropped.
fn counted(text: &str, event: Event, outcome: &str, seconds: f64) -> String {
    let mut values: BTreeMap<(Event, String), (u64, f64)> = BTreeMap::new();
    for (series, value) in text.lines().filter_map(|line| line.rsplit_once(' ')) {
        for known in [Event::Setup, Event::Teardown] {
            let labelled = |prefix: String| {
                let rest = series.strip_prefix(&prefix)?.strip_prefix("{outcome=\"")?;
                Some(rest.strip_suffix("\"}")?.to_owned())
            };
            if let Some(outcome) = labelled(total(known)) {
                let entry = values.entry((known, outcome)).or_default();
                entry.0 = value.parse().unwrap_or(0);
            } else if let Some(outcome) = labelled(last(known)) {
                let entry = values.entry((known, outcome)).or_default();
                entry.1 = value.parse().unwrap_or(0.0);
            }
        }
    }
    let own = values.entry((event, outcome.to_owned())).or_default();
    *own = (own.0.saturating_add(1), seconds);
    let mut text = String::new();
    for known in [Event::Setup, Event::Teardown] {
        let of_it: Vec<_> = values
            .iter()
            .filter(|((event, _), _)| *event == known)
            .collect();
        if of_it.is_empty() {
            continue;
        }
        let name = total(known);
        text += &format!(
            "# HELP {name} Containers of jobs, by what came of their {}.\n",
            known.name()
        );
        text += &format!("# TYPE {name} counter\n");
        for ((_, outcome), (count, _)) in &of_it {
            text += &format!("{name}{{outcome=\"{outcome}\"}} {count}\n");
        }
        let name = last(known);
        text += &format!("# HELP {name} How long the last {} took.\n", known.name());
        text += &format!("# TYPE {name} gauge\n");
        for ((_, outcome), (_, seconds)) in &of_it {
            text += &format!("{name}{{outcome=\"{outcome}\"}} {seconds:.6}\n");
        }
    }
    text
}

fn total(event: Event) -> String {
    format!("shifter_{}s_total", event.name())
}

fn last(event: Event) -> String {
    format!("shifter_{}_last_seconds", event.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_event_and_outcome() {
        let mut text = String::new();
        for (event, outcome, seconds) in [
            (Event::Setup, "done", 0.5),
            (Event::Setup, "mistake", 0.25),
            (Event::Setup, "done", 0.125),
            (Event::Teardown, "done", 1.0),
        ] {
            text = counted(&text, event, outcome, seconds);
        }
        assert_eq!(
            text,
            "# HELP shifter_setups_total Containers of jobs, by what came of their setup.\n\
             # TYPE shifter_setups_total counter\n\
             shifter_setups_total{outcome=\"done\"} 2\n\
             shifter_setups_total{outcome=\"mistake\"} 1\n\
             # HELP shifter_setup_last_seconds How long the last setup took.\n\
             # TYPE shifter_setup_last_seconds gauge\n\
             shifter_setup_last_seconds{outcome=\"done\"} 0.125000\n\
             shifter_setup_last_seconds{outcome=\"mistake\"} 0.250000\n\
             # HELP shifter_teardowns_total Containers of jobs, by what came of their teardown.\n\
             # TYPE shifter_teardowns_total counter\n\
             shifter_teardowns_total{outcome=\"done\"} 1\n\
             # HELP shifter_teardown_last_seconds How long the last teardown took.\n\
             # TYPE shifter_teardown_last_seconds gauge\n\
             shifter_teardown_last_seconds{outcome=\"done\"} 1.000000\n"
        );
    }

    #[test]
    fn strange_text_counts_from_the_beginning() {
        for text in [
            "",
            "x\n",
            "shifter_setups_total{outcome=\"done\"} many\n",
            "\u{fffd} 1 2\n",
        ] {
            let text = counted(text, Event::Setup, "done", 0.0);
            assert!(
                text.contains("\nshifter_setups_total{outcome=\"done\"} 1\n"),
                "{text}"
            );
        }
    }
}
