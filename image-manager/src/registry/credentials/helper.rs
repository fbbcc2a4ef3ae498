//! Credential helpers: `docker-credential-NAME get|store|erase`, run as the user.
//!
//! The protocol is docker's: the server's name, or a document, on stdin; a document or a message on
//! stdout. The helper has a deadline and may say only so much; it and what it started is ended then.
//! What a helper says on success is never shown.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use shifter_core::sanitize;

use super::Login;

/// Bytes that a helper may say.
const LIMIT: u64 = 1 << 20;

/// Time that a helper has; some ask a server of their own.
const DEADLINE: Duration = Duration::from_secs(30);

/// Letters of a message that are shown.
const MESSAGE: usize = 200;

/// A helper that was found.
#[derive(Debug)]
pub(super) struct Helper {
    program: PathBuf,
    deadline: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(rename = "ServerURL")]
    server_url: &'a str,
    username: &'a str,
    secret: &'a str,
}

impl Helper {
    /// Finds `docker-credential-NAME` in absolute directories of a search path.
    pub fn new(name: &str, search: &OsStr) -> Result<Self, String> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if name.is_empty() || name.len() > 100 || !name.bytes().all(is_plain) {
            return Err("that is not the name of a helper".into());
        }
        let file = format!("docker-credential-{name}");
        let is_program = |path: &PathBuf| {
            let meta = path.metadata();
            meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let dirs = search.as_bytes().split(|byte| *byte == b':');
        let program = dirs
            .map(|dir| Path::new(OsStr::from_bytes(dir)))
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(&file))
            .find(is_program)
            .ok_or("there is no such program in PATH")?;
        Ok(Self {
            program,
            deadline: DEADLINE,
        })
    }

    /// Asks for the login of a server; none if the helper has none.
    pub fn get(&self, server: &str) -> Result<Option<Login>, String> {
        let (succeeded, said) = self.run("get", server.as_bytes())?;
        if !succeeded {
            // The words are the protocol's.
            let text = String::from_utf8_lossy(&said);
            return match text.contains("credentials not found") {
                true => Ok(None),
                false => Err(message(&text)),
            };
        }
        let answer: Answer =
            serde_json::from_slice(&said).map_err(|_| "its answer is not a login".to_owned())?;
        let is_empty = answer.username.is_empty() || answer.secret.is_empty();
        Ok((!is_empty).then(|| Login::new(answer.username, answer.secret)))
    }

    /// Gives a login to the helper to keep.
    pub fn store(&self, server: &str, login: &Login) -> Result<(), String> {
        let entry = Entry {
            server_url: server,
            username: login.user(),
            secret: login.secret(),
        };
        let text = serde_json::to_vec(&entry).map_err(|_| "the login is not text".to_owned())?;
        match self.run("store", &text)? {
            (true, _) => Ok(()),
            (false, said) => Err(message(&String::from_utf8_lossy(&said))),
        }
    }

    /// Tells the helper to forget a login; false if it has none.
    pub fn erase(&self, server: &str) -> Result<bool, String> {
        let (succeeded, said) = self.run("erase", server.as_bytes())?;
        let text = String::from_utf8_lossy(&said);
        match succeeded {
            true => Ok(true),
            false if text.contains("credentials not found") => Ok(false),
            false => Err(message(&text)),
        }
    }

    fn run(&self, action: &str, input: &[u8]) -> Result<(bool, Vec<u8>), String> {
        let mut child = Command::new(&self.program)
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own: the whole of it is ended at the deadline.
            .process_group(0)
            .spawn()
            .map_err(|error| error.to_string())?;
        let (sender, receiver) = mpsc::channel();
        if let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) {
            let input = input.to_vec();
            let reply = sender.clone();
            let started = std::thread::Builder::new().spawn(move || {
                // A helper that does not read what it is told says so by its exit code.
                let _ = stdin.write_all(&input);
                drop(stdin);
                let mut said = Vec::new();
                let read = stdout.take(LIMIT + 1).read_to_end(&mut said);
                let _ = reply.send(read.map(|_| said));
            });
            if let Err(error) = started {
                let _ = sender.send(Err(error));
            }
        }
        let heard = receiver.recv_timeout(self.deadline);
        let said = match heard {
            Ok(Ok(said)) if said.len() as u64 <= LIMIT => said,
            Ok(Ok(_)) => {
                end(&mut child);
                return Err(format!("it says more than {LIMIT} bytes"));
            }
            Ok(Err(error)) => {
                end(&mut child);
                return Err(error.to_string());
            }
            Err(_) => {
                end(&mut child);
                let seconds = self.deadline.as_secs();
                return Err(format!("it did not answer within {seconds} s"));
            }
        };
        // Its output is closed: it has said all, and is given a moment to go.
        for _ in 0..100 {
            match child.try_wait() {
                Ok(Some(status)) => return Ok((status.success(), said)),
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => return Err(error.to_string()),
            }
        }
        end(&mut child);
        Err("it closed its output and did not end".into())
    }
}

/// Ends a helper and everything in its group.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have gone by itself.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// Returns a helper's message as one short line, and nothing that may be a login.
fn message(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    if line.is_empty() || line.starts_with(['{', '[']) {
        return "it failed without a message".into();
    }
    sanitize::text(&line.chars().take(MESSAGE).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Writes a helper and returns the search path that has it.
    fn helper(script: &str) -> (tempfile::TempDir, Helper) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker-credential-test");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let search = format!("relative:/no/such:{}", dir.path().display());
        let helper = Helper::new("test", OsStr::new(&search)).unwrap();
        (dir, helper)
    }

    #[test]
    fn names_are_checked() {
        for bad in ["", "../x", "a/b", "a b", "a\n", &"x".repeat(101)] {
            let error = Helper::new(bad, OsStr::new("/usr/bin")).unwrap_err();
            assert_eq!(error, "that is not the name of a helper", "{bad}");
        }
        let (dir, _helper) = helper("true");
        for search in ["relative", "", "/no/such"] {
            assert!(Helper::new("test", OsStr::new(search)).is_err(), "{search}");
        }
        let program = dir.path().join("docker-credential-test");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Helper::new("test", dir.path().as_os_str()).is_err());
    }

    #[test]
    fn logins_of_a_helper() {
        let script = r#"read server; [ "$1" = get ] && [ "$server" = h:5000 ] &&
            echo '{"ServerURL":"h","Username":"alice","Secret":"pw"}'"#;
        let (_dir, helper) = helper(script);
        let login = helper.get("h:5000").unwrap().unwrap();
        assert_eq!((login.user(), login.secret()), ("alice", "pw"));
        let error = helper.get("other").err().unwrap();
        assert_eq!(error, "it failed without a message");
    }

    #[test]
    fn failures_are_one_line() {
        let table = [
            (
                "echo 'credentials not found in native keychain'; exit 1",
                "",
            ),
            ("echo 'no agent'; echo more; exit 1", "no agent"),
            ("printf 'a\\033[2Jb'; exit 1", "a\\u{1b}[2Jb"),
            (
                "echo '{\"Secret\":\"pw\"}'; exit 1",
                "it failed without a message",
            ),
            ("echo '{\"Secret\":'", "its answer is not a login"),
            ("exit 0", "its answer is not a login"),
            (
                "head -c 2000000 /dev/zero",
                "it says more than 1048576 bytes",
            ),
        ];
        for (script, expect) in table {
            let (_dir, helper) = helper(script);
            let found = helper.get("h").err().unwrap_or_default();
            assert_eq!(found, expect, "{script}");
        }
        let (_dir, helper) = helper("echo '{}'");
        assert!(helper.get("h").unwrap().is_none());
    }

    #[test]
    fn a_helper_that_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("sleep 300 & echo $! >{}/pid; wait", dir.path().display());
        let (_dir, mut helper) = helper(&script);
        helper.deadline = Duration::from_millis(300);
        let begin = Instant::now();
        let error = helper.get("h").err().unwrap();
        assert!(error.contains("did not answer"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        let status = format!("/proc/{}/stat", pid.trim());
        let gone = || std::fs::read_to_string(&status).map_or(true, |text| text.contains(") Z "));
        let until = Instant::now() + Duration::from_secs(2);
        while !gone() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(gone());
    }
}
