//! One client: who it is, and what it asks for.
//!
//! A client is let in with one user name and one key. Everything else that the protocol knows,
//! such as passwords, agents, X11 or listening for others, is refused by not being here.

use std::collections::HashMap;
use std::sync::Arc;

use russh::keys::PublicKey;
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty, Sig};
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::session::{Program, Running, Window, start};
use crate::terms::Terms;

/// Channels that one client may have open.
const CHANNELS: usize = 32;

/// Variables that a client may set for one channel, and bytes of them all.
const VARIABLES: usize = 256;
const VARIABLE_BYTES: usize = 128 << 10;

/// Bytes of a command line.
const COMMAND_BYTES: usize = 128 << 10;

/// Bytes of the name of a terminal's type.
const TERM_BYTES: usize = 64;

/// A channel of a session.
struct Place {
    /// The channel until a program is started in it.
    channel: Option<Channel<Msg>>,
    /// What the client sets for the program.
    env: Vec<(String, String)>,
    /// The terminal, if it asked for one.
    window: Option<Window>,
    /// The program.
    running: Option<Running>,
}

/// A client.
pub struct Connection {
    terms: Arc<Terms>,
    /// Until the client has proved who it is: whom that is told.
    letting_in: Option<oneshot::Sender<()>>,
    /// Places for those who have, and this one's.
    free: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
    /// `SSH_CONNECTION`: addresses and ports of both sides.
    ends: String,
    places: HashMap<ChannelId, Place>,
}

impl Connection {
    /// Starts with a stranger.
    pub fn new(
        terms: Arc<Terms>,
        stream: &TcpStream,
        free: Arc<Semaphore>,
        letting_in: oneshot::Sender<()>,
    ) -> Self {
        let ends = match (stream.peer_addr(), stream.local_addr()) {
            (Ok(peer), Ok(own)) => format!(
                "{} {} {} {}",
                peer.ip().to_canonical(),
                peer.port(),
                own.ip().to_canonical(),
                own.port()
            ),
            _ => String::new(),
        };
        Self {
            terms,
            letting_in: Some(letting_in),
            free,
            place: None,
            ends,
            places: HashMap::new(),
        }
    }

    fn judge(&self, user: &str, key: &PublicKey) -> Auth {
        if user == self.terms.user && key.key_data() == self.terms.key.key_data() {
            Auth::Accept
        } else {
            Auth::reject()
        }
    }

    /// Starts a program in a channel, in which none was started before.
    fn run(
        &mut self,
        id: ChannelId,
        program: Program,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(place) = self.places.get_mut(&id) else {
            return session.channel_failure(id);
        };
        let Some(channel) = place.channel.take() else {
            return session.channel_failure(id);
        };
        let env = std::mem::take(&mut place.env);
        let handle = session.handle();
        match start(&self.terms, program, env, &self.ends, place.window.take()) {
            Ok(started) => {
                session.channel_success(id)?;
                place.running = Some(started.attach(channel, handle));
                Ok(())
            }
            Err(error) => {
                // The client shows it as if the program had said it.
                session.channel_success(id)?;
                let line = format!("sshd: cannot start a program: {error}\n");
                session.extended_data(id, 1, line.into_bytes())?;
                session.exit_status_request(id, 255)?;
                session.eof(id)?;
                session.close(id)
            }
        }
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.judge(user, offer.public_key))
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        let verdict = self.judge(user, key.public_key);
        if verdict == Auth::Accept {
            self.place = self.free.clone().try_acquire_owned().ok();
            if self.place.is_none() {
                return Ok(Auth::reject());
            }
        }
        Ok(verdict)
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        if let Some(letting_in) = self.letting_in.take() {
            let _ = letting_in.send(());
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let id = channel.id();
        if self.places.len() >= CHANNELS {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let place = Place {
            env: Vec::new(),
            window: None,
            running: None,
            channel: Some(channel),
        };
        self.places.insert(id, place);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (true, Ok(port)) = (self.terms.is_forwarding, u16::try_from(port)) else {
            reply
                .reject(ChannelOpenFailure::AdministrativelyProhibited)
                .await;
            return Ok(());
        };
        let host = host.to_owned();
        tokio::spawn(async move {
            match TcpStream::connect((host.as_str(), port)).await {
                Ok(mut stream) => {
                    reply.accept().await;
                    let mut channel = channel.into_stream();
                    let _ = tokio::io::copy_bidirectional(&mut channel, &mut stream).await;
                }
                Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_+.:".contains(&byte);
        let is_fit = term.len() <= TERM_BYTES && term.bytes().all(is_name);
        match self.places.get_mut(&id) {
            Some(place) if is_fit && place.channel.is_some() => {
                place.window = Some(Window::new(term, columns, rows));
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(place) = self.places.get_mut(&id) else {
            return session.channel_failure(id);
        };
        let size = |(name, value): &(String, String)| name.len() + value.len();
        let sizes = place.env.iter().map(size).sum::<usize>() + name.len() + value.len();
        let is_fit = self.terms.accepts(name) && !value.contains('\0');
        if !is_fit || place.env.len() >= VARIABLES || sizes > VARIABLE_BYTES {
            return session.channel_failure(id);
        }
        place.env.push((name.to_owned(), value.to_owned()));
        session.channel_success(id)
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.run(id, Program::Shell, session)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if command.len() > COMMAND_BYTES || command.contains(&0) {
            return session.channel_failure(id);
        }
        self.run(id, Program::Command(command.to_vec()), session)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if name == "sftp" {
            self.run(id, Program::Sftp, session)
        } else {
            session.channel_failure(id)
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _width: u32,
        _height: u32,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(running) = self.places.get(&id).and_then(|p| p.running.as_ref()) {
            running.resize(columns, rows);
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let running = self.places.get(&id).and_then(|p| p.running.as_ref());
        if let (Some(running), Some(signal)) = (running, number(&signal)) {
            running.signal(signal);
        }
        Ok(())
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.places.remove(&id);
        Ok(())
    }
}

/// Returns the signal of a name that the protocol knows (RFC 4254, 6.9).
fn number(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::HUP => Signal::HUP,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        _ => return None,
    })
}
