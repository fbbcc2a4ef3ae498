//! A compute node in the place of a real one, for a fan-out over more nodes than there are: a host
//! name, and for one in 64 a mount table and a `/run` of its own.
//!
//! Called `setupRoot` or `unsetupRoot`, this program is what such a node has under that name: the
//! real one on that one in 64, beside it as `NAME.real`, and on others one that reads the manifest
//! and does nothing.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::sys;

/// Becomes the node of that name and runs the command there.
pub fn run_on(name: &str, command: &[&str]) -> Result<()> {
    sys::unshare_host_name()?;
    rustix::system::sethostname(name.as_bytes())?;
    if is_full(name.as_bytes()) {
        sys::unshare_mounts()?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)?;
        let none = MountFlags::empty();
        mount("tmpfs", "/run", "tmpfs", none, c"mode=0755")?;
    }
    let [program, arguments @ ..] = command else {
        bail!("no command");
    };
    Err(Command::new(program).args(arguments).exec().into())
}

/// Does what the program of this path does on the node where it is called.
pub fn act_as(program: &Path, arguments: &[String]) -> Result<()> {
    if is_full(rustix::system::uname().nodename().to_bytes()) {
        let real = program.with_extension("real");
        return Err(Command::new(real).args(arguments).exec().into());
    }
    let mut arguments = arguments.iter();
    let manifest = arguments.find_map(|word| match word.strip_prefix("--manifest") {
        Some("") => Some("-"),
        Some(value) => value.strip_prefix('='),
        None => None,
    });
    match manifest {
        Some("-") => {
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
        Some(file) => drop(std::fs::read(file).with_context(|| file.to_owned())?),
        None => {}
    }
    Ok(())
}

/// True for one node in 64, by its number.
fn is_full(name: &[u8]) -> bool {
    let digits = name.iter().filter(|byte| byte.is_ascii_digit());
    let number = digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    number % 64 == 1
}
