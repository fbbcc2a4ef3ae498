//! The examination in a process of its own: a file system that does not answer holds up that one,
//! for good if need be, and is named.
//!
//! It says what it does as it goes, one JSON value a line: a text is a path that it looks at now, a
//! number the seconds that one look may take, an array what was found.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::finding::Finding;
use crate::output;

/// The word that makes the program that process.
pub(super) const WORD: &str = "--apart";

/// Seconds that one look may take: less than health checks give a program, which would not hear
/// what is wrong otherwise.
pub(super) const PATIENCE: u32 = 8;

const CHECK: &str = "doctor";

/// What is said on the way.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
enum News {
    /// This path is looked at now.
    At(String),
    /// One look may take so many seconds.
    Patience(u32),
    /// This was found.
    Found(Vec<Finding>),
}

/// Tells which path is looked at.
pub(super) fn at(path: &Path) {
    say(&News::At(path.display().to_string()));
}

/// Tells how long one look may take, in seconds.
pub(super) fn patience(seconds: u32) {
    say(&News::Patience(seconds));
}

/// Tells what was found.
pub(super) fn found(findings: Vec<Finding>) {
    say(&News::Found(findings));
}

fn say(news: &News) {
    if let Ok(line) = serde_json::to_string(news) {
        // Nobody to tell is nobody to look for.
        let _ = output::data(&(line + "\n"));
    }
}

/// Has another process examine the node and returns what it found, and what it waited for in vain.
pub(super) fn findings() -> Vec<Finding> {
    let started = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        command.arg(WORD).stdin(Stdio::null());
        command.stdout(Stdio::piped()).spawn()
    });
    match started {
        Ok(child) => listen(child),
        Err(error) => {
            let message = format!("cannot examine the node: {error}");
            vec![Finding::error(CHECK, message, "try it again")]
        }
    }
}

fn listen(mut child: Child) -> Vec<Finding> {
    let (sender, news) = mpsc::channel();
    if let Some(pipe) = child.stdout.take() {
        thread::spawn(move || {
            let lines = BufReader::new(pipe).lines().map_while(Result::ok);
            let news = lines.filter_map(|line| serde_json::from_str(&line).ok());
            // Whoever has stopped to listen knows enough.
            let _ = news.into_iter().try_for_each(|news| sender.send(news));
        });
    }
    let (mut findings, waits_for) = collect(&news);
    if let Some(fault) = waits_for {
        findings.push(fault);
        // What waits for the file system may be killed and still not end: it is not waited for.
        let _ = child.kill();
    } else if !child.wait().is_ok_and(|status| status.success()) {
        let message = "the examination broke off";
        findings.push(Finding::error(CHECK, message, "try it again"));
    }
    findings
}

/// Takes the news until there are no more, or none for too long: then with the fault.
fn collect(news: &Receiver<News>) -> (Vec<Finding>, Option<Finding>) {
    let (mut findings, mut place, mut patience) = (Vec::new(), String::new(), PATIENCE);
    loop {
        match news.recv_timeout(Duration::from_secs(patience.into())) {
            Ok(News::At(path)) => place = path,
            Ok(News::Patience(seconds)) => patience = seconds,
            Ok(News::Found(more)) => findings.extend(more),
            Err(RecvTimeoutError::Disconnected) => return (findings, None),
            Err(RecvTimeoutError::Timeout) => {
                let message = format!("no answer from '{place}' in {patience} s");
                let hint = "look at the file system it is on, and at its server; what comes after it \
                            was not checked";
                return (findings, Some(Finding::error(CHECK, message, hint)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_news_is_read_as_it_was_said() {
        for news in [
            News::At("/a \"b\"".into()),
            News::Patience(8),
            News::Found(Vec::new()),
            News::Found(vec![Finding::error("a", "b", "c"), Finding::ok("d", "e")]),
        ] {
            let line = serde_json::to_string(&news).unwrap();
            assert_eq!(serde_json::from_str::<News>(&line).unwrap(), news, "{line}");
        }
    }

    #[test]
    fn silence_is_blamed_on_the_last_place() {
        let (sender, news) = mpsc::channel();
        for one in [
            News::Found(vec![Finding::ok("kernel", "new")]),
            News::Patience(0),
            News::At("/usr".into()),
            News::At("/store".into()),
        ] {
            sender.send(one).unwrap();
        }
        let (findings, fault) = collect(&news);
        assert_eq!(findings.len(), 1);
        assert_eq!(fault.unwrap().message, "no answer from '/store' in 0 s");
        drop(sender);
        assert_eq!(collect(&news), (Vec::new(), None));
    }
}
