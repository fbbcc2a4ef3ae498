//! The floor: the least that starts a command in an image, by bare system calls.
//!
//! ```text
//! floor mount IMAGE DIR COMMAND…   own namespace, loop device, squashfs at DIR, then as chroot
//! floor chroot DIR COMMAND…        changes the root, becomes the user, runs the command
//! floor node NAME COMMAND…         as a node of that name: see `node`
//! ```
//!
//! It judges nothing, gives nothing and isolates nothing; it is what every container runtime pays
//! at least. Linked statically, as the runtime beside it is. Copied into the images of the bench,
//! it is also the program that runs there:
//!
//! ```text
//! floor walk DIR                   stats and reads every file three times; the better of the last two
//! floor hold                       says 'ready', then waits for the end of its input
//! floor read DIR                   as hold, but reads every file first
//! floor resident DIR               which device, and how much of it lies in the page cache
//! floor now                        microseconds since 1970
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount,
};
use rustix::thread::{Gid, Uid};

mod node;
mod sys;
mod walk;

/// Alice, whose commands the bench runs.
const USER: u32 = 2001;

fn main() -> Result<()> {
    let mut words: Vec<String> = std::env::args().collect();
    let own = std::path::PathBuf::from(words.remove(0));
    if own.file_name().is_some_and(|name| name != "floor") {
        return node::act_as(&own, &words);
    }
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["mount", image, dir, ref command @ ..] => mount(image, dir, command),
        ["chroot", dir, ref command @ ..] => chroot(dir, command),
        ["node", name, ref command @ ..] => node::run_on(name, command),
        ["walk", dir] => {
            let (seen, micros) = walk::best_of(2, Path::new(dir))?;
            say(&format!("{} {} {micros}", seen.files, seen.bytes))
        }
        ["hold"] => hold(),
        ["read", dir] => walk::walk(Path::new(dir)).and_then(|_| hold()),
        ["resident", dir] => say(&walk::resident(Path::new(dir))?),
        ["now"] => say(&SystemTime::now()
            .duration_since(UNIX_EPOCH)?
            .as_micros()
            .to_string()),
        _ => bail!("usage: floor mount|chroot|node|walk|hold|read|resident|now …"),
    }
}

/// Mounts the image in a namespace of its own and runs the command in it.
fn mount(image: &str, dir: &str, command: &[&str]) -> Result<()> {
    let file = rustix::fs::open(image, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let (path, device) = sys::attach_loop(&file).context("cannot attach the image")?;
    sys::unshare_mounts()?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    let context = fsopen("squashfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", &path)?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mounted, "", CWD, dir, flags)?;
    drop((context, mounted, device));
    chroot(dir, command)
}

/// Changes the root, becomes the user and runs the command.
fn chroot(dir: &str, command: &[&str]) -> Result<()> {
    rustix::process::chroot(dir)?;
    rustix::process::chdir("/")?;
    let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
    rustix::thread::set_thread_groups(&[gid])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let [program, arguments @ ..] = command else {
        bail!("no command");
    };
    Err(Command::new(program).args(arguments).exec().into())
}

fn hold() -> Result<()> {
    say("ready")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Opens a file to read it.
fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}
