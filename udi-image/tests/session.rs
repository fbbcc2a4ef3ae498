//! Server and client with each other, on this machine and as whoever runs the test.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use russh::client::{Config, Handle, Handler, Msg, connect_stream};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg};
use rustix::process::{Pid, test_kill_process};
use udi_image::client::{self, ClientError, FAILED};
use udi_image::options::Options;
use udi_image::terms::Terms;
use udi_image::{keys, server};

/// A server with its keys, which serves for as long as the runtime does.
struct Site {
    dir: tempfile::TempDir,
    port: u16,
}

impl Site {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["user", "host"] {
            let key = keys::generate("").unwrap();
            std::fs::write(dir.path().join(name), key.private).unwrap();
            std::fs::write(dir.path().join(format!("{name}.pub")), key.public).unwrap();
        }
        let word = |option: &str, name: &str| {
            let path = dir.path().join(name);
            format!("--{option}={}", path.display()).into()
        };
        let words = [
            "--user=alice".into(),
            word("key", "user.pub"),
            word("host-key", "host"),
        ];
        let terms = Terms::parse(words).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(server::serve(listener, terms));
        Self { dir, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What root places in a container, after what users have for every host.
    fn config(&self, of_user: &str) -> PathBuf {
        let host_key = std::fs::read_to_string(self.path("host.pub")).unwrap();
        std::fs::write(self.path("known"), format!("job {host_key}\n")).unwrap();
        let (key, known) = (self.path("user"), self.path("known"));
        let text = format!(
            "Host *\n{of_user}\nHost n1\nHostName 127.0.0.1\nPort {}\nUser alice\nIdentityFile {}\n\
             UserKnownHostsFile {}\nHostKeyAlias job\n",
            self.port,
            key.display(),
            known.display()
        );
        let path = self.path("config");
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn ssh(&self, of_user: &str, command: &str) -> Result<u8, ClientError> {
        let config = self.config(of_user).display().to_string();
        let words = ["-n", "-F", &config, "n1", command].map(String::from);
        client::run(&Options::parse(words).unwrap()).await
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(work)
}

#[test]
fn what_users_have_for_every_host_does_not_hide_the_jobs_key() {
    block_on(async {
        let site = Site::start();
        let other = keys::generate("").unwrap();
        std::fs::write(site.path("other"), other.private).unwrap();
        let of_user = format!(
            "IdentityFile ~/.ssh/id_rsa\nIdentityFile {}\nUserKnownHostsFile /dev/null",
            site.path("other").display()
        );
        assert_eq!(site.ssh(&of_user, "exit 7").await.unwrap(), 7);
    });
}

#[test]
fn what_is_not_started_and_what_breaks_is_told() {
    block_on(async {
        let site = Site::start();
        let refused = site.ssh("", &"x".repeat(200 << 10)).await.unwrap_err();
        assert!(matches!(refused, ClientError::Refused(_)), "{refused}");
        let killed = site.ssh("", "kill -9 $$").await.unwrap();
        assert_eq!(killed, FAILED);
    });
}

struct Anybody;

impl Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// Enters, and returns the connection too.
async fn enter(site: &Site) -> (Handle<Anybody>, TcpStream) {
    // Little room, so that a program that says much soon waits for it.
    let config = Config {
        window_size: 8 << 10,
        channel_buffer_size: 1,
        ..Config::default()
    };
    let cable = TcpStream::connect(("127.0.0.1", site.port)).unwrap();
    cable.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(cable.try_clone().unwrap()).unwrap();
    let session = connect_stream(Arc::new(config), stream, Anybody).await;
    let mut session = session.unwrap();
    let key = keys::read_private(&site.path("user")).unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    let answer = session.authenticate_publickey("alice", key).await.unwrap();
    assert!(answer.success());
    (session, cable)
}

/// Starts a command on a terminal.
async fn on_terminal(session: &Handle<Anybody>, command: &str) -> Channel<Msg> {
    let channel = session.channel_open_session().await.unwrap();
    let pty = channel.request_pty(false, "dumb", 80, 24, 0, 0, &[]);
    pty.await.unwrap();
    channel.exec(true, command).await.unwrap();
    channel
}

/// Bytes that a process has written.
fn written(pid: Pid) -> Option<String> {
    let path = format!("/proc/{}/io", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(Path::new(&path)).ok()?;
    let line = text.lines().find(|line| line.starts_with("wchar"))?;
    Some(line.to_owned())
}

#[test]
fn a_program_does_not_wait_for_a_client_that_has_gone() {
    block_on(async {
        let site = Site::start();
        let (session, cable) = enter(&site).await;
        let mut channel = session.channel_open_session().await.unwrap();
        channel.exec(true, "echo $$; exec yes").await.unwrap();
        let mut said = String::new();
        while !said.contains('\n') {
            if let Some(ChannelMsg::Data { data }) = channel.wait().await {
                said.push_str(&String::from_utf8_lossy(&data));
            }
        }
        let pid = said.lines().next().unwrap().parse().unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        // Nobody takes what it says, until it waits for that.
        let (mut before, mut pause) = (None, 0);
        while pause < 5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = written(pid);
            pause = if now == before { pause + 1 } else { 0 };
            before = now;
        }
        // As if the client was killed: it says nothing more.
        cable.shutdown(Shutdown::Both).unwrap();
        let gone = async {
            while test_kill_process(pid).is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
        assert!(gone.is_ok(), "process {pid:?} waits for ever");
    });
}

#[test]
fn a_slow_client_gets_all_that_was_written_on_a_terminal() {
    const BYTES: usize = 40_000;
    block_on(async {
        let site = Site::start();
        let (session, _cable) = enter(&site).await;
        let command = format!("head -c {BYTES} /dev/zero | tr '\\0' x");
        let mut channel = on_terminal(&session, &command).await;
        let mut count = 0;
        loop {
            // Longer than a program that has ended would be waited for.
            let is_near_the_end = count + 16_384 > BYTES;
            tokio::time::sleep(Duration::from_millis(if is_near_the_end { 300 } else { 0 })).await;
            match channel.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    count += data.iter().filter(|byte| **byte == b'x').count();
                }
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            }
        }
        assert_eq!(count, BYTES);
    });
}

#[test]
fn a_terminal_that_others_write_to_does_not_outlive_its_program() {
    block_on(async {
        let site = Site::start();
        let (session, _cable) = enter(&site).await;
        // It ignores that the terminal hangs up, and goes on until nobody has the other end.
        let mut channel = on_terminal(&session, "trap '' HUP; yes & exit 3").await;
        let mut code = None;
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
                ChannelMsg::Close => break,
                _ => {}
            }
        }
        assert_eq!(code, Some(3));
    });
}
