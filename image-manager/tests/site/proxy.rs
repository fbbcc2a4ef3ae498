//! A line to a registry that counts what comes over it and may be slow.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A running proxy; its threads end with the process.
pub struct Proxy {
    pub address: String,
    received: Arc<AtomicU64>,
    /// Directions of connections that are open.
    open: Arc<AtomicU64>,
}

impl Proxy {
    /// Starts a proxy to `target` that rests for `pause` after every 64 KiB.
    pub fn start(target: &str, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (target, received) = (target.to_owned(), Arc::<AtomicU64>::default());
        let open = Arc::<AtomicU64>::default();
        let (count, lines) = (Arc::clone(&received), Arc::clone(&open));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&target) else {
                    continue;
                };
                let (to_server, to_client) = (
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                );
                let (count, line) = (Arc::clone(&count), Arc::clone(&lines));
                let other = Arc::clone(&lines);
                lines.fetch_add(2, Ordering::SeqCst);
                std::thread::spawn(move || {
                    carry(to_server, |_| ());
                    line.fetch_sub(1, Ordering::SeqCst);
                });
                std::thread::spawn(move || {
                    carry(to_client, |bytes| {
                        count.fetch_add(bytes as u64, Ordering::SeqCst);
                        std::thread::sleep(pause * u32::try_from(bytes).unwrap() / (64 << 10));
                    });
                    other.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            address,
            received,
            open,
        }
    }

    /// Waits until nobody is connected, and forgets what has come: a client that was killed still
    /// has some of what it had asked for sent to it.
    pub fn settle(&self) {
        let begin = Instant::now();
        while self.open.load(Ordering::SeqCst) > 0 {
            assert!(begin.elapsed() < Duration::from_secs(60), "somebody stays");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.received();
    }

    /// Returns the bytes that came from the registry since the last call.
    pub fn received(&self) -> u64 {
        self.received.swap(0, Ordering::SeqCst)
    }
}

fn carry((mut from, mut to): (TcpStream, TcpStream), pass: impl Fn(usize)) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        pass(count);
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
