//! Containers without privilege: a user namespace takes root's place, squashfuse the kernel's.
//!
//! ```text
//! user namespace, with the user's own ids alone ─▶ squashfuse, waiting ─▶ mount namespace
//!    ─▶ FUSE mount ─▶ the root as ever ─▶ capabilities of the namespace given up
//! ```
//!
//! This is how `shifter` works where it is not installed setuid root, and where a site has users'
//! own images read by squashfuse: then [`restart`] gives every privilege up first and starts the
//! program anew, so that nothing of what follows, not even its memory, was ever root's.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, FileType};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, geteuid, set_dumpable_behavior};
use shifter_core::config::{Config, Hooks};
use shifter_core::layout::RUN_DIR;

use crate::caller::Caller;
use crate::drop::become_user;
use crate::error::{Context, Error, Result};
use crate::host_image::clone_tree;
use crate::image::{Image, Source};
use crate::process::CallersProcess;
use crate::squashfuse::Squashfuse;
use crate::{filesystem, launch, mnt, sys};

const SELF: &str = "/proc/self/exe";

/// Directories over which a root may be built: nothing in them is ever mounted into a container.
/// One that users cannot look into will do.
const PLACES: [&str; 4] = [RUN_DIR, "/root", "/boot", "/lost+found"];

/// How the process can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Footing {
    /// As root.
    Root,
    /// As the user it is.
    User,
    /// As the user, after giving up privileges that are not wanted.
    TooHigh,
}

/// Decides how the process goes on. A program that is installed setuid and was not started so
/// is not meant to go on, unless that is asked for.
pub fn footing(is_asked: bool) -> Result<Footing> {
    if geteuid().is_root() {
        return Ok(if is_asked {
            Footing::TooHigh
        } else {
            Footing::Root
        });
    }
    let stat = rustix::fs::stat(SELF).step("examine", SELF)?;
    let is_setuid = stat.st_mode & libc::S_ISUID != 0;
    Ok(if is_setuid && !is_asked {
        Footing::Root // Which will say what is missing.
    } else {
        Footing::User
    })
}

/// Gives up every privilege and starts the program anew, with `--rootless` and `more` before the
/// options that were given.
///
/// # Errors
/// Returns only an error.
pub fn restart(
    callers: &CallersProcess,
    caller: &Caller,
    words: &[OsString],
    more: Vec<OsString>,
) -> Result<Infallible> {
    callers.restore()?;
    // With no_new_privs: the setuid bit of the program means nothing any more.
    become_user(caller)?;
    callers.restore_stack();
    callers.restore_signals()?;
    let is_run = words.first().is_some_and(|word| word == "run");
    let (head, tail) = words.split_at(usize::from(is_run));
    let mut all: Vec<OsString> = vec!["shifter".into()];
    all.extend(head.iter().cloned());
    all.push("--rootless".into());
    all.extend(more);
    all.extend(tail.iter().cloned());
    let nul = |_| Error::Usage("a word of the command line contains a NUL byte".into());
    let strings = |list: Vec<Vec<u8>>| -> std::result::Result<Vec<CString>, _> {
        list.into_iter().map(CString::new).collect()
    };
    let args = strings(all.into_iter().map(OsString::into_vec).collect()).map_err(nul)?;
    let pairs = launch::own_environment().into_iter();
    let pairs = pairs.map(|(name, value)| [&*name, b"=", &*value].concat());
    let env = strings(pairs.collect()).map_err(nul)?;
    Err(sys::execve(c"/proc/self/exe", &args, &env)).step("start anew", "shifter")
}

/// Moves the process into namespaces of its user's own and mounts the image there.
///
/// # Errors
/// [`Error::Rootless`] names what the machine lacks or forbids.
pub fn prepare(image: &mut Image, caller: &Caller) -> Result<()> {
    enter_user_namespace(caller)?;
    let unshare = || match sys::unshare_mounts() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(lacks(
            "the kernel gives no capabilities in user namespaces \
             (kernel.apparmor_restrict_unprivileged_userns)",
        )),
        done => done.step("unshare", "mount namespace"),
    };
    let mount = match &image.source {
        Source::SiteFile(_) if image.meta.format == filesystem::EROFS => {
            return Err(Error::BadImage {
                image: image.reference.clone(),
                reason: "only the kernel mounts erofs images, which it does not without privilege"
                    .to_owned(),
            });
        }
        Source::SiteFile(file) | Source::UserFile(file) => {
            let squashfuse = Squashfuse::start(file)?;
            unshare()?;
            squashfuse.mount(caller, &image.reference)?
        }
        Source::Tree(dir) => {
            unshare()?;
            // With what is mounted in it, which the kernel does not let a user uncover.
            clone_tree(&reopen(dir)?, true)?
        }
        // The host itself is for jobs, whose set-up is root's.
        Source::Mounted(_) | Source::Host => return Ok(()),
    };
    image.source = Source::Mounted(mount);
    Ok(())
}

/// Takes out of the configuration what only root can do for a container.
pub fn leave_out_roots(config: &mut Config) {
    config.hooks = Hooks::default();
    config.per_node_cache.clear();
}

/// Refuses modules that need root: their hooks run as root, and only as root.
///
/// # Errors
/// [`Error::Denied`].
pub fn check_modules(config: &Config, names: &[String]) -> Result<()> {
    let needs_root = |name: &&String| {
        let module = config.module.get(*name);
        module.is_some_and(|module| !module.root_hook.is_empty())
    };
    match names.iter().find(needs_root) {
        None => Ok(()),
        Some(name) => Err(Error::Denied {
            what: format!("module '{name}' cannot be used in a container without privilege"),
            hint: Some("leave it out with --module, or use an image of the site store"),
        }),
    }
}

/// Says what an error of building a root means where the kernel lets users build less than root.
pub fn explain(error: Error) -> Error {
    match error {
        Error::Step { object, source, .. }
            if object == "overlay" && source.raw_os_error() == Some(libc::EPERM) =>
        {
            lacks("the kernel has no overlays in user namespaces (Linux 5.11 and newer have)")
        }
        // The kernel lets no user lay an overlay over what hides something.
        Error::Step { object, source, .. }
            if object == "overlay" && source.raw_os_error() == Some(libc::EINVAL) =>
        {
            lacks("the directory has something mounted in it, which only root can leave out")
        }
        other => other,
    }
}

/// Returns a directory over which a root can be built.
pub fn place() -> Result<&'static str> {
    let is_dir = |path: &&&str| {
        let stat = rustix::fs::statat(CWD, **path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    let found = PLACES.iter().find(is_dir).copied();
    found.ok_or(Errno::NOENT).step("find", RUN_DIR)
}

/// Makes a user namespace in which the user's own uid and gid are themselves and nobody else is.
fn enter_user_namespace(caller: &Caller) -> Result<()> {
    sys::unshare_users().map_err(|error| lacks(&forbidden(&error)))?;
    // The files of /proc/self belong to root where the program's own file cannot be read.
    set_dumpable_behavior(DumpableBehavior::Dumpable).step("open", "/proc/self")?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{0} {0} 1", caller.uid)),
        ("gid_map", format!("{0} {0} 1", caller.gid)),
    ];
    for (name, text) in maps {
        let path = format!("/proc/self/{name}");
        fs::write(&path, text).step("write", &*path)?;
    }
    Ok(())
}

fn forbidden(error: &std::io::Error) -> String {
    let setting = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    let limit = "user.max_user_namespaces";
    match error.raw_os_error() {
        Some(libc::ENOSPC) if setting("user/max_user_namespaces").trim() == "0" => {
            format!("user namespaces are disabled ({limit} is 0)")
        }
        Some(libc::ENOSPC | libc::EUSERS) => {
            format!("there are too many user namespaces ({limit})")
        }
        Some(libc::EPERM) if setting("kernel/unprivileged_userns_clone").trim() == "0" => {
            "user namespaces are disabled (kernel.unprivileged_userns_clone is 0)".to_owned()
        }
        Some(libc::EINVAL) => "the kernel has no user namespaces".to_owned(),
        _ => format!("the kernel refuses a user namespace: {error}"),
    }
}

fn lacks(what: &str) -> Error {
    Error::Rootless(what.to_owned())
}

/// Opens a directory again in a mount namespace that was made since.
fn reopen(dir: &OwnedFd) -> Result<OwnedFd> {
    let path = mnt::path_of(dir.as_fd());
    let again = mnt::open_host(&path).step("open", &*path)?;
    let identity = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    if identity(&again) == identity(dir) {
        Ok(again)
    } else {
        Err(Errno::STALE).step("open", &*path)
    }
}
