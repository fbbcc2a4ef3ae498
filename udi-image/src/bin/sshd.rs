//! `sshd`: lets the owner of a job from one of its nodes to another, and nobody else.
//!
//! Runs as the user, in the job's container. Its standard input is the listening socket, bound by
//! whoever started it; what it may do is on its command line.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::TcpListener;
use std::process::ExitCode;

use udi_image::session::SFTP_WORD;
use udi_image::terms::Terms;
use udi_image::{server, sftp};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = if words == [SFTP_WORD] {
        sftp::serve(&mut io::stdin().lock(), &mut io::stdout().lock())
    } else {
        listen(words)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "sshd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn listen(words: Vec<OsString>) -> io::Result<()> {
    // Root's files come to nobody by a mistake in this program.
    if rustix::process::geteuid().is_root() || rustix::process::getuid().is_root() {
        return Err(io::Error::other("refusing to run as root"));
    }
    let terms = Terms::parse(words).map_err(io::Error::other)?;
    // Programs that are started must find it neither there nor in its place: whoever has it can keep
    // the port when the server is gone.
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let listener = TcpListener::from(listener);
    listener.local_addr()?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(server::serve(listener, terms))
}
