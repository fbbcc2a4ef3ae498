//! Running programs: as whom, on which node, for how long, and what came of it.
//!
//! Never interprets a shell string unless the caller names a shell.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::product::PREFIX;
use crate::world::User;

/// Seconds after which a program is killed unless the call says otherwise.
const PATIENCE_SECS: u64 = 120;

/// A program that is about to be run.
#[derive(Clone, Debug)]
pub struct Call {
    argv: Vec<String>,
    user: Option<User>,
    node_pid: Option<u32>,
    has_own_pids: bool,
    env: Vec<(String, String)>,
    cwd: Option<PathBuf>,
    input: Vec<u8>,
    timeout_secs: u64,
}

/// What a program left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// The exit status; 128+N after signal N.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Call {
    /// Prepares to run a program as root.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            user: None,
            node_pid: None,
            has_own_pids: false,
            env: Vec::new(),
            cwd: None,
            input: Vec::new(),
            timeout_secs: PATIENCE_SECS,
        }
    }

    /// Prepares to run a shell script as root.
    pub fn shell(script: &str) -> Self {
        Self::new(["bash", "-c", script])
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.argv.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(Into::into));
        self
    }

    /// Runs it as a user, with the user's groups and a login's environment, in the user's scratch
    /// directory.
    pub fn by(mut self, user: User) -> Self {
        self.cwd.get_or_insert_with(|| user.scratch());
        self.user = Some(user);
        self
    }

    /// Runs it in the namespaces of the process `pid`.
    pub fn in_namespaces_of(mut self, pid: u32) -> Self {
        self.node_pid = Some(pid);
        self
    }

    /// Does the same where these include a namespace of process ids.
    pub fn in_machine_of(mut self, pid: u32) -> Self {
        self.has_own_pids = true;
        self.in_namespaces_of(pid)
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets its working directory.
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Gives it something to read; otherwise it reads nothing.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Kills it after `secs` seconds.
    pub fn timeout(mut self, secs: u64) -> Self {
        self.timeout_secs = secs;
        self
    }

    /// Runs it to its end.
    pub fn output(&self) -> Result<Output> {
        let began = Instant::now();
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.line()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program may end without reading what it was given.
            let _ = stdin.write_all(&self.input);
        }
        let done = child.wait_with_output()?;
        let output = Output {
            command: self.line(),
            code: code(done.status),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
            took: began.elapsed(),
        };
        if output.code == 124 {
            bail!("still running after {} s: {output}", self.timeout_secs);
        }
        Ok(output)
    }

    /// Runs it to its end and returns its standard output; fails if it fails.
    pub fn ok(&self) -> Result<String> {
        Ok(self.output()?.success()?.stdout)
    }

    /// Starts it with its output in a file.
    pub fn start(&self, log: &str) -> Result<Child> {
        let file = File::create(log).with_context(|| format!("cannot write {log}"))?;
        self.command()
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot run {}", self.line()))
    }

    fn line(&self) -> String {
        self.argv.join(" ")
    }

    fn command(&self) -> Command {
        let mut argv: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| argv.extend(words.iter().map(|word| (*word).to_owned()));
        if self.timeout_secs > 0 {
            add(&[
                "timeout",
                "--foreground",
                "-k",
                "5",
                &self.timeout_secs.to_string(),
            ]);
        }
        if let Some(pid) = self.node_pid {
            add(&["nsenter", "-t", &pid.to_string(), "-m", "-u", "-n"]);
            add(if self.has_own_pids {
                &["-p", "--"]
            } else {
                &["--"]
            });
        }
        if let Some(user) = self.user {
            let (uid, gid) = (user.uid().to_string(), user.gid().to_string());
            add(&[
                "setpriv",
                "--reuid",
                &uid,
                "--regid",
                &gid,
                "--init-groups",
                "--reset-env",
            ]);
        }
        add(&["env"]);
        if let Some(cwd) = &self.cwd {
            add(&["-C", &cwd.to_string_lossy()]);
        }
        if self.user.is_some() {
            add(&[&format!("PATH={PREFIX}/bin:/usr/local/bin:/usr/bin:/bin")]);
        }
        for (name, value) in &self.env {
            add(&[&format!("{name}={value}")]);
        }
        argv.extend(self.argv.iter().cloned());
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]);
        command
    }
}

impl Output {
    /// Fails unless the program succeeded.
    pub fn success(self) -> Result<Self> {
        if self.code != 0 {
            bail!("failed: {self}");
        }
        Ok(self)
    }
}

impl Output {
    /// True if a signal ended the program.
    pub fn died(&self) -> bool {
        (129..=192).contains(&self.code)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {}", self.command, self.code)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.is_empty() {
                write!(f, "\n--- {name}\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// Waits until `done` returns something, asking again every 20 ms.
pub fn wait_for<T>(
    what: &str,
    secs: u64,
    mut done: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(secs);
    loop {
        if let Some(found) = done()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {secs} s in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
