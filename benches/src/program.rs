//! A way to start a command: by the product, the floor or a peer.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::peers::RUNTIME_DIR;
use crate::site::{MARKER, UID};

/// Prints what only a file of the image holds, then who it is.
const PROOF: [&str; 3] = ["/bin/sh", "-c", "cat /bench-marker && id -u"];

type Words<'a> = Box<dyn Fn(&[&str]) -> Result<Vec<String>> + 'a>;

/// A program that runs a command in a container.
pub struct Program<'a> {
    words: Words<'a>,
    is_users: bool,
}

impl<'a> Program<'a> {
    /// A program that alice calls.
    pub fn of_user(words: &'a [&'a str]) -> Self {
        Self {
            words: append_to(words),
            is_users: true,
        }
    }

    /// A program that root calls, and that becomes alice itself.
    pub fn of_root(words: &'a [&'a str]) -> Self {
        Self {
            words: append_to(words),
            is_users: false,
        }
    }

    /// A program that takes its command otherwise than at its end.
    pub fn with(words: impl Fn(&[&str]) -> Result<Vec<String>> + 'a, is_users: bool) -> Self {
        Self {
            words: Box::new(words),
            is_users,
        }
    }

    /// Prepares to run a command, in an environment that is the same for all.
    pub fn command(&self, command: &[&str]) -> Result<Command> {
        let words = (self.words)(command)?;
        let mut call = Command::new(&words[0]);
        call.args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env(
                "HOME",
                if self.is_users {
                    "/home/alice"
                } else {
                    "/root"
                },
            )
            .env("USER", if self.is_users { "alice" } else { "root" })
            .env("XDG_RUNTIME_DIR", RUNTIME_DIR)
            .current_dir("/tmp")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // Root's, too: who asks for no ids is started in another, faster way.
        let id = if self.is_users { UID } else { 0 };
        call.uid(id).gid(id);
        Ok(call)
    }

    /// Fails unless a command really runs in the image, as alice (as `uid` says, where a peer
    /// shows alice another one).
    pub fn prove(&self, uid: u32) -> Result<()> {
        let output = self.command(&PROOF)?.stderr(Stdio::piped()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && text == format!("{MARKER}\n{uid}\n"),
            "{}: {text} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Runs /bin/true and returns how long that took, from fork to wait.
    pub fn time(&self) -> Result<Duration> {
        time(&mut self.command(&["/bin/true"])?)
    }

    /// Starts `floor` in the container with something to do before it waits for the holder.
    pub fn hold(&self, command: &[&str]) -> Result<Held> {
        let mut call = self.command(command)?;
        let mut child = call.stdin(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        Ok(Held {
            child,
            output: BufReader::new(stdout),
        })
    }
}

fn append_to<'a>(words: &'a [&'a str]) -> Words<'a> {
    Box::new(move |command| {
        let all = words.iter().chain(command);
        Ok(all.map(|word| (*word).to_owned()).collect())
    })
}

/// Runs a program to its end and returns how long that took; fails if it fails.
pub fn time(command: &mut Command) -> Result<Duration> {
    command.stdout(Stdio::null());
    let began = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let took = began.elapsed();
    ensure!(
        status.success(),
        "{}: {status}",
        command.get_program().display()
    );
    Ok(took)
}

/// A container that stays until this is dropped.
pub struct Held {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Held {
    /// Waits until the command in the container says that it is ready.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line == "ready\n", "a container was not ready: '{line}'");
        Ok(())
    }

    /// Returns the process in the container.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Nothing can be done about one that has gone already.
        let _ = self.child.wait();
    }
}
