//! Programs that a client starts: a command, a shell or the file server, behind pipes or on a
//! terminal.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pty_process::{OwnedReadPty, OwnedWritePty, Size};
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::mpsc;

use crate::terms::Terms;

/// The word with which the program starts itself as file server.
pub const SFTP_WORD: &str = "--sftp";

/// Bytes that are read from a program at a time.
const BLOCK: usize = 32 << 10;

/// Bytes that a terminal may hold of what a program wrote before its end, and the time in which they
/// come out of it.
const TERMINAL_BYTES: usize = 64 << 10;
const TERMINAL_REST: Duration = Duration::from_millis(200);

/// What a client asks to be run.
pub enum Program {
    /// The user's shell, as after a login.
    Shell,
    /// A command line for the user's shell.
    Command(Vec<u8>),
    /// The file server.
    Sftp,
}

/// A terminal's type and size.
pub struct Window {
    term: String,
    size: Size,
}

impl Window {
    /// Describes a terminal.
    pub fn new(term: &str, columns: u32, rows: u32) -> Self {
        Self {
            term: term.to_owned(),
            size: size(columns, rows),
        }
    }
}

fn size(columns: u32, rows: u32) -> Size {
    let cap = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Size::new(cap(rows), cap(columns))
}

/// A program that has been started and talks to nobody yet.
pub struct Started {
    child: Child,
    terminal: Option<(OwnedReadPty, OwnedWritePty)>,
}

/// What a connection knows of a program that talks to its client.
pub struct Running {
    group: Option<Pid>,
    resizes: Option<mpsc::UnboundedSender<Size>>,
}

impl Running {
    /// Tells the program that its window has another size.
    pub fn resize(&self, columns: u32, rows: u32) {
        if let Some(resizes) = &self.resizes {
            let _ = resizes.send(size(columns, rows));
        }
    }

    /// Sends a signal to the program's process group.
    pub fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, signal);
        }
    }
}

/// Starts a program.
///
/// # Errors
/// As for fork(2) and execve(2), and where there is no terminal to be had.
pub fn start(
    terms: &Terms,
    program: Program,
    env: Vec<(String, String)>,
    ends: &str,
    window: Option<Window>,
) -> io::Result<Started> {
    let shell = usable_shell(&terms.shell);
    let (path, arg0, args): (&Path, String, Vec<&OsStr>) = match &program {
        Program::Shell => {
            let name = shell.file_name().unwrap_or_default().to_string_lossy();
            (shell, format!("-{name}"), Vec::new())
        }
        Program::Command(command) => {
            let words = vec![OsStr::new("-c"), OsStr::from_bytes(command)];
            (shell, shell.to_string_lossy().into_owned(), words)
        }
        Program::Sftp => {
            let own = Path::new("/proc/self/exe");
            (own, "sftp-server".to_owned(), vec![OsStr::new(SFTP_WORD)])
        }
    };
    let words: Vec<&str> = ends.split(' ').collect();
    let mut vars = env;
    vars.push(("SSH_CONNECTION".into(), ends.to_owned()));
    if let [peer, peer_port, _, own_port] = words[..] {
        vars.push((
            "SSH_CLIENT".into(),
            format!("{peer} {peer_port} {own_port}"),
        ));
    }
    let home = std::env::var_os("HOME").filter(|home| Path::new(home).is_dir());
    let dir = home.unwrap_or_else(|| "/".into());
    let Some(Window { term, size }) = window else {
        let mut command = tokio::process::Command::new(path);
        let child = command
            .arg0(arg0)
            .args(args)
            .envs(vars)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let terminal = None;
        return Ok(Started { child, terminal });
    };
    vars.push(("TERM".into(), term));
    let (pty, pts) = pty_process::open().map_err(io::Error::other)?;
    pty.resize(size).map_err(io::Error::other)?;
    let command = pty_process::Command::new(path).arg0(arg0).args(args);
    let command = command.envs(vars).current_dir(dir);
    let child = command.spawn(pts).map_err(io::Error::other)?;
    let terminal = Some(pty.into_split());
    Ok(Started { child, terminal })
}

/// Returns the login shell if the image has it, else the one that every image has.
fn usable_shell(login: &Path) -> &Path {
    let executable = rustix::fs::Access::EXEC_OK;
    if login.is_absolute() && rustix::fs::access(login, executable).is_ok() {
        login
    } else {
        Path::new("/bin/sh")
    }
}

impl Started {
    /// Connects the program with its client.
    pub fn attach(self, channel: Channel<Msg>, handle: Handle) -> Running {
        let Self {
            mut child,
            terminal,
        } = self;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let group = pid.and_then(Pid::from_raw);
        let (input, output) = channel.split();
        let output = Arc::new(output);
        let Some((reader, writer)) = terminal else {
            let client = tokio::spawn(feed(input, child.stdin.take(), None));
            let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
            tokio::spawn(async move {
                let drains = async {
                    tokio::join!(
                        drain(stdout, output.make_writer()),
                        drain(stderr, output.make_writer_ext(Some(1)))
                    )
                };
                tokio::select! {
                    _ = drains => {}
                    // Who waits for room at a client that has gone would wait for ever, and the
                    // program with it.
                    _ = client => {}
                }
                finish(child, &output, &handle).await;
            });
            let resizes = None;
            return Running { group, resizes };
        };
        let (resizes, changes) = mpsc::unbounded_channel();
        let client = tokio::spawn(feed(input, Some(writer), Some(changes)));
        tokio::spawn(async move {
            tokio::select! {
                () = drain_terminal(reader, output.make_writer(), &mut child) => {}
                _ = client => {}
            }
            finish(child, &output, &handle).await;
        });
        Running {
            group,
            resizes: Some(resizes),
        }
    }
}

/// What a program's input is: pipes have no size.
trait Sink: AsyncWrite + Unpin {
    fn resize(&self, _size: Size) {}
    /// What a client's end of input becomes.
    fn end(&self) -> &'static [u8] {
        b""
    }
}

impl Sink for tokio::process::ChildStdin {}

impl Sink for OwnedWritePty {
    fn resize(&self, size: Size) {
        let _ = Self::resize(self, size);
    }

    fn end(&self) -> &'static [u8] {
        // Ctrl-D, as OpenSSH's server does not: its clients on a terminal never send an end.
        b"\x04"
    }
}

/// Passes a client's input on, until either side has enough.
async fn feed(
    mut input: ChannelReadHalf,
    sink: Option<impl Sink>,
    changes: Option<mpsc::UnboundedReceiver<Size>>,
) {
    let mut sink = sink;
    let mut changes = changes;
    loop {
        let next = async {
            match &mut changes {
                Some(changes) => changes.recv().await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            message = input.wait() => message,
            size = next => {
                match (size, &sink) {
                    (Some(size), Some(sink)) => sink.resize(size),
                    // The connection has forgotten the program.
                    _ => changes = None,
                }
                continue;
            }
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                if let Some(open) = &mut sink
                    && open.write_all(&data).await.is_err()
                {
                    // The program does not read any more; the client need not know yet.
                    sink = None;
                }
            }
            Some(ChannelMsg::Eof) => {
                if let Some(mut open) = sink.take() {
                    let end = open.end();
                    if !end.is_empty() && open.write_all(end).await.is_ok() {
                        sink = Some(open);
                    }
                }
            }
            Some(ChannelMsg::Close) | None => return,
            Some(_) => {}
        }
    }
}

/// Passes a program's output on to its end; what nobody takes is the program's broken pipe.
async fn drain(source: Option<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) {
    let Some(mut source) = source else { return };
    let mut block = vec![0; BLOCK];
    // A terminal that nobody has open any more is an error to read.
    while let Ok(count @ 1..) = source.read(&mut block).await {
        let written = to.write_all(block.get(..count).unwrap_or_default()).await;
        if written.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

/// The same for a terminal, which has no end while anybody has it open: a shell's end is that of the
/// session, when what the terminal still holds has been passed on, however slow the client is.
async fn drain_terminal(
    mut source: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    child: &mut Child,
) {
    let mut block = vec![0; BLOCK];
    let (mut has_ended, mut left) = (false, TERMINAL_BYTES);
    while left > 0 {
        let count = tokio::select! {
            read = source.read(&mut block) => read,
            _ = child.wait(), if !has_ended => {
                has_ended = true;
                continue;
            }
            () = tokio::time::sleep(TERMINAL_REST), if has_ended => return,
        };
        let Ok(count @ 1..) = count else { return };
        let written = to.write_all(block.get(..count).unwrap_or_default()).await;
        if written.is_err() || to.flush().await.is_err() {
            return;
        }
        if has_ended {
            left = left.saturating_sub(count);
        }
    }
}

/// Tells the client how the program ended.
async fn finish(mut child: Child, output: &ChannelWriteHalf<Msg>, handle: &Handle) {
    let status = child.wait().await;
    let id = output.id();
    let _ = output.eof().await;
    match status.map(|status: ExitStatus| (status.code(), status.signal())) {
        Ok((Some(code), _)) => {
            let code = u32::try_from(code).unwrap_or(255);
            let _ = output.exit_status(code).await;
        }
        Ok((None, Some(signal))) => {
            let (name, text) = (name(signal), String::new());
            let _ = handle
                .exit_signal_request(id, name, false, text, String::new())
                .await;
        }
        _ => {}
    }
    let _ = output.close().await;
}

/// Returns the protocol's name of a signal.
fn name(signal: i32) -> Sig {
    match Signal::from_named_raw(signal) {
        Some(Signal::ABORT) => Sig::ABRT,
        Some(Signal::ALARM) => Sig::ALRM,
        Some(Signal::FPE) => Sig::FPE,
        Some(Signal::HUP) => Sig::HUP,
        Some(Signal::ILL) => Sig::ILL,
        Some(Signal::INT) => Sig::INT,
        Some(Signal::KILL) => Sig::KILL,
        Some(Signal::PIPE) => Sig::PIPE,
        Some(Signal::QUIT) => Sig::QUIT,
        Some(Signal::SEGV) => Sig::SEGV,
        Some(Signal::TERM) => Sig::TERM,
        Some(Signal::USR1) => Sig::USR1,
        Some(Signal::USR2) => Sig::Custom("USR2".into()),
        _ => Sig::Custom(format!("SIG{signal}@shifter")),
    }
}
