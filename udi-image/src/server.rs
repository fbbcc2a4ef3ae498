//! Accepting connections: how many, and how long each may take to say who it is.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown, TcpListener as StdListener, TcpStream as StdStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::keys::Algorithm;
use russh::server::{self, Config, run_stream};
use russh::{MethodKind, MethodSet, Preferred, SshId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use crate::connection::Connection;
use crate::terms::Terms;

/// Time that a client has to prove who it is.
const GRACE: Duration = Duration::from_secs(20);

/// Connections that may be waiting to be let in, in all and from one address; further ones are
/// closed at once. Who fills the places of one node keeps nobody out who comes from another.
const STRANGERS: usize = 128;
const STRANGERS_FROM_ONE: usize = 32;

/// Keys that one connection may try.
const ATTEMPTS: usize = 6;

/// After three such times without a word from the client the connection is closed.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Bytes of a channel that may be on their way.
const WINDOW: u32 = 1 << 20;

/// Messages of a channel that may wait for the program.
const CHANNEL_MESSAGES: usize = 32;

/// Connections whose clients have not proved who they are, by address.
#[derive(Debug, Default)]
struct Strangers(Mutex<HashMap<IpAddr, usize>>);

/// One of them.
#[derive(Debug)]
struct Stranger {
    all: Arc<Strangers>,
    from: IpAddr,
}

impl Strangers {
    /// Counts one more unless there are too many.
    fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Stranger> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.values().sum::<usize>() >= STRANGERS {
            return None;
        }
        let count = counts.entry(from).or_default();
        if *count >= STRANGERS_FROM_ONE {
            return None;
        }
        *count += 1;
        let all = self.clone();
        Some(Stranger { all, from })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

/// Returns what the protocol is told.
fn config(terms: &Terms) -> Config {
    Config {
        // The version alone: clients work around the faults of servers that they know by name.
        server_id: SshId::Standard("SSH-2.0-Shifter".into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_secs(1),
        // The first question of every client is which methods there are.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![terms.host_key.clone()],
        window_size: WINDOW,
        channel_buffer_size: CHANNEL_MESSAGES,
        max_auth_attempts: ATTEMPTS,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        nodelay: true,
        preferred: Preferred {
            key: vec![Algorithm::Ed25519].into(),
            // Nodes of one job are near each other, and zlib is no friend of hostile input.
            compression: vec![russh::compression::NONE].into(),
            ..Preferred::default()
        },
        ..Config::default()
    }
}

/// Serves until the process is killed.
pub async fn serve(listener: StdListener, terms: Terms) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let config = Arc::new(config(&terms));
    let places = Arc::new(Semaphore::new(terms.connections));
    let strangers = Arc::new(Strangers::default());
    let terms = Arc::new(terms);
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors or memory: what is open must end first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(stranger) = strangers.admit(peer.ip()) else {
            continue;
        };
        let (config, terms, places) = (config.clone(), terms.clone(), places.clone());
        tokio::spawn(async move {
            // How a connection ends is the client's business.
            let _ = attend(stream, config, terms, places, stranger).await;
        });
    }
}

/// Serves one client.
async fn attend(
    stream: TcpStream,
    config: Arc<Config>,
    terms: Arc<Terms>,
    places: Arc<Semaphore>,
    stranger: Stranger,
) -> Result<(), russh::Error> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    let hook = stream.try_clone()?;
    let stream = TcpStream::from_std(stream)?;
    let (letting_in, let_in) = oneshot::channel();
    let connection = Connection::new(terms, &stream, places, letting_in);
    tokio::spawn(end_stranger(hook, let_in, stranger));
    let session: server::RunningSession<Connection> =
        run_stream(config, stream, connection).await?;
    session.await
}

/// Closes a connection whose client does not prove in time who it is: under the protocol's feet,
/// which is the one way to stop whatever it waits for.
async fn end_stranger(hook: StdStream, let_in: oneshot::Receiver<()>, _stranger: Stranger) {
    // It is let in, or its connection has ended.
    if tokio::time::timeout(GRACE, let_in).await.is_err() {
        let _ = hook.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fills_one_address_keeps_nobody_else_out() {
        let strangers = Arc::new(Strangers::default());
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let mut there: Vec<_> = (0..100)
            .filter_map(|_| strangers.admit(address(1)))
            .collect();
        assert_eq!(there.len(), STRANGERS_FROM_ONE);
        assert!(strangers.admit(address(2)).is_some());
        for last in 2..100 {
            there.extend((0..100).filter_map(|_| strangers.admit(address(last))));
        }
        assert_eq!(there.len(), STRANGERS);
        there.truncate(1);
        assert!(strangers.admit(address(2)).is_some());
        drop(there);
        assert!(strangers.0.lock().unwrap().is_empty());
    }
}
