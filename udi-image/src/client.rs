//! The client for images that have none: from one node of a job to another, with the job's key.
//!
//! It asks nothing, so that it works where nobody is there to answer, and goes nowhere it is not
//! told how to by the files that root has placed in the container.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use russh::client::{Config, Handle, Handler, Msg, connect};
use russh::keys::{PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use shifter_core::small;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use crate::client_config::HostSettings;
use crate::keys::{self, KeyError};
use crate::options::{Options, Terminal};

/// Where the settings are that root has placed.
const SYSTEM_CONFIG: &str = "/etc/ssh/ssh_config";

/// Bytes that a file of settings or of hosts' keys may have.
const FILE_LIMIT: u64 = 16 << 20;

/// Seconds that a connection may take.
const CONNECT_SECONDS: u64 = 60;

/// Bytes of input that are read at a time.
const BLOCK: usize = 32 << 10;

/// The exit code of everything that is not the command's own.
pub const FAILED: u8 = 255;

/// Says why there is no session.
#[derive(Debug, Error)]
pub enum ClientError {
    /// A file cannot be read.
    #[error("cannot read '{path}'")]
    File {
        /// The file.
        path: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Nothing says how the host is reached.
    #[error("'{0}' is no node of this job, and this image has no other ssh")]
    NoNode(String),
    /// The connection cannot be made.
    #[error("connect to host {host} port {port}: {reason}")]
    Connect {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why not.
        reason: String,
    },
    /// The host does not have the job's key.
    #[error("Host key verification failed.")]
    HostKey,
    /// The host does not let the user in.
    #[error("{user}@{host}: Permission denied (publickey).")]
    Denied {
        /// The user.
        user: String,
        /// The host.
        host: String,
    },
    /// The host does not start the program.
    #[error("'{0}' does not start this command")]
    Refused(String),
    /// What the program says cannot be passed on.
    #[error("cannot write the command's output")]
    Output(#[source] io::Error),
    /// The protocol was broken off.
    #[error("connection to {host} broke")]
    Broken {
        /// The host.
        host: String,
        /// How.
        source: russh::Error,
    },
}

/// Runs a session and returns the command's exit code.
pub async fn run(options: &Options) -> Result<u8, ClientError> {
    let host = &options.host;
    let settings = settings(options)?;
    let name = settings.alias.as_deref().unwrap_or(host);
    let keys = usable(&settings.identities, |file| Ok(keys::read_private(file)?));
    let known = usable(&settings.known_hosts, |file| host_keys(file, name));
    let (Some(keys), Some(known)) = (keys, known) else {
        return Err(ClientError::NoNode(host.clone()));
    };
    // The job's own key is in the file that is read last.
    let (keys, known) = (keys?.into_iter().rev(), known?.concat());
    let user = settings.user.clone().unwrap_or_else(user_name);
    let mut session = open(&settings, host, known).await?;
    for key in keys {
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
        let answer = session.authenticate_publickey(&user, key).await;
        if answer.map_err(|error| broken(host, error))?.success() {
            return converse(&session, options).await;
        }
    }
    let host = host.clone();
    Err(ClientError::Denied { user, host })
}

fn broken(host: &str, source: russh::Error) -> ClientError {
    let host = host.to_owned();
    ClientError::Broken { host, source }
}

/// Reads all files of a kind that can be used, and fails if none can; none if none is named.
fn usable<T>(
    files: &[PathBuf],
    read: impl Fn(&Path) -> Result<T, ClientError>,
) -> Option<Result<Vec<T>, ClientError>> {
    let (mut found, mut failed) = (Vec::new(), None);
    for file in files {
        match read(file) {
            Ok(content) => found.push(content),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if found.is_empty() => Some(Err(error)),
        None if found.is_empty() => None,
        _ => Some(Ok(found)),
    }
}

/// Gathers what is known of the host: from the command line, then from the file it names, or the
/// user's and the system's.
fn settings(options: &Options) -> Result<HostSettings, ClientError> {
    let mut settings = HostSettings::default();
    for (keyword, value) in &options.settings {
        settings.add(keyword, value);
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".ssh/config"));
    let files: Vec<PathBuf> = match &options.file {
        Some(file) if file == Path::new("none") => Vec::new(),
        Some(file) => vec![file.clone()],
        None => home.into_iter().chain([SYSTEM_CONFIG.into()]).collect(),
    };
    for file in files {
        match small::read(&file, FILE_LIMIT) {
            Ok(bytes) => settings.read(&String::from_utf8_lossy(&bytes), &options.host),
            Err(source) if options.file.is_some() => {
                let path = file.display().to_string();
                return Err(ClientError::File { path, source });
            }
            Err(_) => {}
        }
    }
    Ok(settings)
}

fn user_name() -> String {
    std::env::var("USER").unwrap_or_default()
}

/// Returns the keys under which a name is known.
fn host_keys(file: &Path, name: &str) -> Result<Vec<PublicKey>, ClientError> {
    let bytes = small::read(file, FILE_LIMIT).map_err(|source| ClientError::File {
        path: file.display().to_string(),
        source,
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let keys = text.lines().filter_map(|line| {
        let (names, key) = line.split_once(' ')?;
        let is_meant = names.split(',').any(|known| known == name);
        is_meant.then(|| keys::parse_public(key)).flatten()
    });
    Ok(keys.collect())
}

/// Knows the host by its key.
struct Verifier {
    known: Vec<PublicKey>,
}

impl Handler for Verifier {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        offered: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = offered else {
            return Ok(false);
        };
        Ok(self
            .known
            .iter()
            .any(|known| known.key_data() == key.key_data()))
    }
}

async fn open(
    settings: &HostSettings,
    host: &str,
    known: Vec<PublicKey>,
) -> Result<Handle<Verifier>, ClientError> {
    let port = settings.port.unwrap_or(22);
    let name = settings.host_name.as_deref().unwrap_or(host);
    let failed = |reason: String| ClientError::Connect {
        host: host.to_owned(),
        port,
        reason,
    };
    let config = Config {
        nodelay: true,
        keepalive_interval: Some(Duration::from_secs(60)),
        ..Config::default()
    };
    let connecting = connect(Arc::new(config), (name, port), Verifier { known });
    let seconds = settings.connect_timeout.unwrap_or(CONNECT_SECONDS);
    match tokio::time::timeout(Duration::from_secs(seconds.max(1)), connecting).await {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(russh::Error::UnknownKey)) => Err(ClientError::HostKey),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("Connection timed out".into())),
    }
}

/// Puts the terminal back as it was.
struct Raw(Termios);

impl Raw {
    fn begin() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Starts the program and passes on what both sides say; returns its exit code.
async fn converse(session: &Handle<Verifier>, options: &Options) -> Result<u8, ClientError> {
    let host = &options.host;
    let begun = begin(session, options).await;
    let (channel, wants_terminal) = begun.map_err(|error| broken(host, error))?;
    let _raw = (wants_terminal && io::stdin().is_terminal())
        .then(Raw::begin)
        .flatten();
    let (from, to) = channel.split();
    let to = Arc::new(to);
    tokio::spawn(send_input(to.clone(), options.is_silent));
    if wants_terminal && let Ok(changes) = signal(SignalKind::window_change()) {
        tokio::spawn(send_sizes(to, changes));
    }
    match show_output(from).await.map_err(ClientError::Output)? {
        End::Code(code) => Ok(code),
        End::Refused => Err(ClientError::Refused(host.clone())),
        End::Broken => Err(broken(host, russh::Error::Disconnect)),
    }
}

/// Asks for the program; also says whether it is to have a terminal.
async fn begin(
    session: &Handle<Verifier>,
    options: &Options,
) -> Result<(Channel<Msg>, bool), russh::Error> {
    let channel = session.channel_open_session().await?;
    let is_here = io::stdin().is_terminal();
    let wants_terminal = match options.terminal {
        Terminal::ForShell => is_here && options.command.is_none(),
        Terminal::IfHere => is_here,
        Terminal::Always => true,
        Terminal::Never => false,
    };
    if wants_terminal {
        let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".into());
        let (columns, rows) = window();
        channel
            .request_pty(false, &term, columns, rows, 0, 0, &[])
            .await?;
    }
    match &options.command {
        None => channel.request_shell(true).await?,
        Some(name) if options.is_subsystem => channel.request_subsystem(true, name).await?,
        Some(command) => channel.exec(true, command.as_bytes()).await?,
    }
    Ok((channel, wants_terminal))
}

/// Returns columns and rows of the terminal.
fn window() -> (u32, u32) {
    match tcgetwinsize(io::stdin()) {
        Ok(size) => (size.ws_col.into(), size.ws_row.into()),
        Err(_) => (80, 24),
    }
}

async fn send_input(to: Arc<ChannelWriteHalf<Msg>>, is_silent: bool) {
    if !is_silent {
        let mut stdin = tokio::io::stdin();
        let mut block = vec![0; BLOCK];
        while let Ok(count @ 1..) = stdin.read(&mut block).await {
            let data = block.get(..count).unwrap_or_default().to_vec();
            if to.data_bytes(data).await.is_err() {
                return;
            }
        }
    }
    let _ = to.eof().await;
}

async fn send_sizes(to: Arc<ChannelWriteHalf<Msg>>, mut changes: tokio::signal::unix::Signal) {
    while changes.recv().await.is_some() {
        let (columns, rows) = window();
        if to.window_change(columns, rows, 0, 0).await.is_err() {
            return;
        }
    }
}

/// How a session ends.
enum End {
    Code(u8),
    Refused,
    Broken,
}

async fn show_output(mut from: ChannelReadHalf) -> io::Result<End> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut code = None;
    while let Some(message) = from.wait().await {
        let written = match message {
            ChannelMsg::Data { data } => pass_on(&mut stdout, &data).await,
            ChannelMsg::ExtendedData { data, ext: 1 } => pass_on(&mut stderr, &data).await,
            ChannelMsg::ExitStatus { exit_status } => {
                code = Some(u8::try_from(exit_status).unwrap_or(FAILED));
                Ok(())
            }
            ChannelMsg::Failure => return Ok(End::Refused),
            // A program that is ended by a signal has no code of its own.
            ChannelMsg::Close => return Ok(End::Code(code.unwrap_or(FAILED))),
            _ => Ok(()),
        };
        match written {
            // Who read it has had enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(End::Code(FAILED));
            }
            written => written?,
        }
    }
    Ok(code.map_or(End::Broken, End::Code))
}

async fn pass_on(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> io::Result<()> {
    to.write_all(data).await?;
    to.flush().await
}
