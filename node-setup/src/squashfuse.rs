//! squashfuse: a squashfs file read by a process of the user's, not by the kernel.
//!
//! The mount is made here, on a FUSE descriptor that squashfuse inherits (libfuse takes it as the
//! mount point `/dev/fd/N`). So squashfuse stays outside of the container's mount namespace and
//! holds nothing of it: when the container's last process ends, the kernel takes the namespace and
//! with it the mount away, squashfuse's next read says so (ENODEV), and it ends. Nobody has to
//! find or kill it, and whoever dies before the mount is made closes the pipe it waits at.
//!
//! It is no child of the command, which may wait for all of its children, and has a session of its
//! own, so that no Ctrl-C takes the image away.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Access, Mode, OFlags};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, waitpid};
use shifter_core::sanitize;

use crate::caller::Caller;
use crate::error::{Context, Error, Result};
use crate::{mnt, sys};

/// Where a distribution puts it. The first one is the faster.
const PROGRAMS: [&CStr; 2] = [c"/usr/bin/squashfuse_ll", c"/usr/bin/squashfuse"];

const DEVICE: &str = "/dev/fuse";

/// Bytes of squashfuse's complaints that are read.
const COMPLAINT_LIMIT: u64 = 4096;

/// squashfuse, waiting for the mount.
pub struct Squashfuse {
    device: OwnedFd,
    go: OwnedFd,
    complaints: OwnedFd,
}

impl Squashfuse {
    /// Starts squashfuse on an open file. To be called in the user namespace of the mount to come,
    /// which must own the FUSE descriptor, and before the mount namespace is made.
    ///
    /// # Errors
    /// [`Error::Rootless`] names what the machine lacks.
    pub fn start(file: &OwnedFd) -> Result<Self> {
        let is_there = |path: &&&CStr| rustix::fs::access(**path, Access::EXEC_OK).is_ok();
        let program = PROGRAMS.iter().find(is_there);
        let program = program.ok_or_else(|| lacks("squashfuse is not installed"))?;
        let device = open_device()?;
        let pipe = || pipe_with(PipeFlags::CLOEXEC).step("make", "pipe");
        let (waiting, go) = pipe()?;
        let (complaints, stderr) = pipe()?;
        match sys::fork().step("start", "squashfuse")? {
            Some(child) => {
                // ECHILD: the caller has its children buried by the kernel.
                let ended = waitpid(Some(child), WaitOptions::empty());
                let code = ended.ok().flatten().and_then(|(_, end)| end.exit_status());
                if code.is_some_and(|code| code != 0) {
                    return Err(Errno::AGAIN).step("start", "squashfuse");
                }
                Ok(Self {
                    device,
                    go,
                    complaints,
                })
            }
            None => match sys::fork() {
                Ok(None) => {
                    drop((go, complaints));
                    serve(program, file, &device, waiting, &stderr)
                }
                Ok(Some(_)) => sys::exit(0),
                Err(_) => sys::exit(1),
            },
        }
    }

    /// Mounts the file; the mount is attached nowhere yet.
    ///
    /// # Errors
    /// [`Error::BadImage`] if squashfuse cannot read the file.
    pub fn mount(self, caller: &Caller, image: &str) -> Result<OwnedFd> {
        let Self {
            device,
            go,
            complaints,
        } = self;
        let (fd, uid) = (device.as_raw_fd().to_string(), caller.uid.to_string());
        let gid = caller.gid.to_string();
        let options = [
            ("source", Some("squashfuse")),
            ("subtype", Some("squashfuse")),
            ("fd", Some(&*fd)),
            ("rootmode", Some("40000")),
            ("user_id", Some(&*uid)),
            ("group_id", Some(&*gid)),
            // The modes in the image count, as when the kernel reads it; squashfuse asks nobody.
            ("default_permissions", None),
            ("ro", None),
        ];
        let mount = mnt::make("fuse", &options, mnt::SAFE_RO).map_err(|error| match error {
            Error::Step { source, .. } => lacks(&format!("the kernel mounts no FUSE: {source}")),
            other => other,
        })?;
        // Now squashfuse alone has it, and the mount notices if squashfuse ends.
        drop(device);
        // If squashfuse is gone, the mount says so at once.
        let _ = rustix::io::write(&go, b"!");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(&mount, ".", flags, Mode::empty()) {
            Ok(_) => Ok(mount),
            Err(error) => {
                // With the mount squashfuse ends, and with it its complaints.
                drop(mount);
                let said = first_line(complaints);
                let reason = said.unwrap_or_else(|| std::io::Error::from(error).to_string());
                Err(Error::BadImage {
                    image: image.to_owned(),
                    reason: format!("squashfuse cannot read it: {reason}"),
                })
            }
        }
    }
}

fn lacks(what: &str) -> Error {
    Error::Rootless(what.to_owned())
}

fn open_device() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|error| match error {
        Errno::ACCESS | Errno::PERM => lacks("users may not open '/dev/fuse' (usual mode: 0666)"),
        Errno::NOENT | Errno::NODEV | Errno::NXIO => lacks("there is no '/dev/fuse'"),
        error => lacks(&format!(
            "cannot open '/dev/fuse': {}",
            std::io::Error::from(error)
        )),
    })
}

/// The process that becomes squashfuse: waits for the mount and starts the program.
fn serve(
    program: &CStr,
    file: &OwnedFd,
    device: &OwnedFd,
    waiting: OwnedFd,
    stderr: &OwnedFd,
) -> ! {
    let mut byte = [0];
    if !matches!(rustix::io::read(&waiting, &mut byte), Ok(1)) {
        sys::exit(0);
    }
    let become_it = || -> std::io::Result<()> {
        rustix::process::setsid()?;
        rustix::process::chdir("/")?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(stderr)?;
        // What the caller handed down belongs to the command: a pipe must not stay open for it.
        sys::close_on_exec()?;
        fcntl_setfd(file, FdFlags::empty())?;
        fcntl_setfd(device, FdFlags::empty())?;
        let number = |fd: &OwnedFd| fd.as_raw_fd();
        let words = [
            "squashfuse".to_owned(),
            "-f".to_owned(),
            format!("/proc/self/fd/{}", number(file)),
            format!("/dev/fd/{}", number(device)),
        ];
        let words: Vec<CString> = words
            .into_iter()
            .map(CString::new)
            .collect::<std::result::Result<_, _>>()?;
        Err(sys::execve(program, &words, &[]))
    };
    if let Err(error) = become_it() {
        let _ = rustix::io::write(stderr, error.to_string().as_bytes());
    }
    sys::exit(127)
}

/// Reads what squashfuse said before it ended.
fn first_line(complaints: OwnedFd) -> Option<String> {
    let mut bytes = Vec::new();
    let read = File::from(complaints)
        .take(COMPLAINT_LIMIT)
        .read_to_end(&mut bytes);
    let text = read.ok().map(|_| String::from_utf8_lossy(&bytes));
    let mut lines = text.as_ref()?.lines().map(str::trim);
    let line = lines.find(|line| !line.is_empty())?;
    Some(sanitize::text(line.trim_end_matches('.')))
}
