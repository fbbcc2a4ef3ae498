//! Starting a job's ssh server on this node: from within Slurm's extern step, in the job's
//! cgroups, in its root, as its user.
//!
//! ```text
//! startSshd ─▶ the job's root and keys ─▶ is the node the job's alone? ─▶ join the cgroups
//!    ─▶ fork ─▶ enter the root ─▶ drop everything, verified ─▶ bind the port ─▶ exec sshd
//! ```

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use shifter_core::config::Config;
use shifter_core::env::Pair;
use shifter_core::ids::JobId;
use shifter_core::layout;
use shifter_core::meta::ImageMeta;
use shifter_core::trusted;

use super::cgroup::Member;
use super::{HOST_KEY, PUBLIC_KEY};
use crate::caller::Caller;
use crate::drop::become_user;
use crate::error::{Context, Error, Result};
use crate::launch::{self, Container};
use crate::options::RunOptions;
use crate::prepared::Prepared;
use crate::process::CallersProcess;
use crate::state::{self, JobDir, RunDir};
use crate::{image, sys};

/// Bytes of what the server's process says before it is the server.
const MESSAGE_LIMIT: u64 = 1024;

/// In a job's directory: what came of its server. See [`layout::ssh_file`].
const SSH: &str = "ssh";

/// Nobody else has reason to hold a job's lock while it starts.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Starts the server of a job; false if the job has none to be started.
///
/// # Errors
/// [`Error::Ssh`] where another job is on the node or the port is not free.
pub fn start(config: &Config, job: &JobId, uid: u32, callers: &CallersProcess) -> Result<bool> {
    let Some(prepared) = Prepared::find(job, None)?.filter(|found| found.manifest.ssh.is_some())
    else {
        return Ok(false);
    };
    prepared.manifest.expect(uid, job)?;
    let program = layout::udi_image(&config.prefix).join("sbin/sshd");
    let program = trusted::audit(&program, &[0]).map_err(Error::Untrusted)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let program = rustix::fs::open(&program, flags, Mode::empty()).step("open", &program)?;

    let member = Member::of_extern_step(job, uid)?;
    if let Some(other) = member.other_job(job)? {
        return Err(Error::Ssh(format!("job {other} is on this node too")));
    }
    member.join()?;
    // slurmstepd protects itself; what it starts is a user's.
    let score = "/proc/self/oom_score_adj";
    std::fs::write(score, "0").step("write", score)?;

    let (report, its_end) = pipe_with(PipeFlags::CLOEXEC).step("make", "pipe")?;
    if sys::fork().step("fork", "server")?.is_none() {
        let error = become_server(config, &prepared, &program, callers);
        let _ = File::from(its_end).write_all(error.chain().as_bytes());
        sys::exit(1);
    }
    drop(its_end);
    // The end comes when the server's program runs, or with a reason why it does not.
    let mut message = String::new();
    let mut report = File::from(report).take(MESSAGE_LIMIT);
    report.read_to_string(&mut message).step("read", "pipe")?;
    if message.is_empty() {
        Ok(true)
    } else {
        Err(Error::Ssh(message))
    }
}

/// Keeps what came of a job's server for its steps to tell.
///
/// # Errors
/// Those of the state; the server is there or not nevertheless.
pub fn note(job: &JobId, started: &Result<bool>) -> Result<()> {
    let text = match started {
        Ok(true) => String::new(),
        Ok(false) => return Ok(()),
        Err(error) => error.chain(),
    };
    // The step may have a copy of the host's mounts.
    let Some(run) = RunDir::open_unchecked()? else {
        return Ok(());
    };
    if !JobDir::exists(&run, job)? {
        return Ok(());
    }
    let dir = JobDir::lock(&run, job, LOCK_PATIENCE)?;
    state::write_file(dir.dir(), SSH, text.as_bytes())
}

/// Turns the process into the server; returns only the reason why it could not.
fn become_server(
    config: &Config,
    prepared: &Prepared,
    program: &OwnedFd,
    callers: &CallersProcess,
) -> Error {
    let prepare = || {
        rustix::process::setsid().step("start", "session")?;
        prepared.join()?;
        let user = &prepared.manifest.user;
        let mut groups = user.gids();
        groups.retain(|gid| *gid != 0);
        let caller = Caller {
            uid: user.uid,
            gid: user.gid,
            groups,
        };
        callers.restore()?;
        become_user(&caller)?;
        prepared.still_lets_in()?;
        let environment = environment(config, prepared)?;
        let listener = bind(config.ssh.port)?;
        rustix::stdio::dup2_stdin(&listener).step("pass on", "port")?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty());
        let null = null.step("open", "/dev/null")?;
        rustix::stdio::dup2_stdout(&null).step("replace", "stdout")?;
        rustix::stdio::dup2_stderr(&null).step("replace", "stderr")?;
        sys::close_on_exec().step("close", "descriptors")?;
        callers.restore_signals()?;
        Ok(environment)
    };
    let environment = match prepare() {
        Ok(environment) => environment,
        Err(error) => return error,
    };
    let text = |text: String| CString::new(text).unwrap_or_default();
    let args: Vec<CString> = arguments(config, prepared).into_iter().map(text).collect();
    let variable = |(name, value): &Pair| [&**name, b"=", &**value].concat();
    let env = environment.iter().map(variable);
    let env: Vec<CString> = env.filter_map(|text| CString::new(text).ok()).collect();
    // What the image or the site has at that place does not count.
    let path = text(format!("/proc/self/fd/{}", program.as_raw_fd()));
    let source = sys::execve(&path, &args, &env);
    Error::Step {
        step: "run",
        object: "sshd".into(),
        source,
    }
}

fn arguments(config: &Config, prepared: &Prepared) -> Vec<String> {
    let (user, ssh) = (&prepared.manifest.user, &config.ssh);
    let mut words = vec![
        format!("sshd: job {}", prepared.manifest.job),
        format!("--user={}", user.name),
        format!("--key={PUBLIC_KEY}"),
        format!("--host-key={HOST_KEY}"),
        format!("--shell={}", user.shell),
        format!("--connections={}", ssh.max_connections),
    ];
    let accepted = ssh.accept_env.iter();
    words.extend(accepted.map(|name| format!("--accept-env={name}")));
    if ssh.tcp_forwarding {
        words.push("--tcp-forwarding".into());
    }
    words
}

/// Composes what every session starts with: that of a command in the container, of a user who
/// comes from nowhere.
fn environment(config: &Config, prepared: &Prepared) -> Result<Vec<Pair>> {
    let manifest = &prepared.manifest;
    let user = &manifest.user;
    let reference = &manifest.image.reference;
    let meta = ImageMeta::parse(&prepared.meta).map_err(|error| Error::BadImage {
        image: reference.clone(),
        reason: error.to_string(),
    })?;
    let container = Container {
        config,
        meta: &meta,
        id: &image::id_in_job(&manifest.image),
        reference,
        modules: &manifest.modules,
        shell: &user.shell,
        is_jobs: true,
        starts_by_entry: false,
    };
    let login = [
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
    ];
    let login = login.map(|(name, value)| (name.into(), value.clone().into_bytes()));
    let mut environment = login.to_vec();
    environment.push(("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()));
    launch::environment(&container, &RunOptions::default(), environment)
}

/// Listens on every address of the node.
fn bind(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|error| match error.raw_os_error() {
            // A kernel without IPv6.
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            }
            _ => Err(error),
        })
        .step("listen on", Path::new(&format!("port {port}")))
}
