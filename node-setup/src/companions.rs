//! The programs beside `shifter` that it becomes, without any privilege.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use shifter_core::config::{Config, DEFAULT_PATH};
use shifter_core::layout::Program;
use shifter_core::trusted;

use crate::caller::Caller;
use crate::drop::become_caller;
use crate::error::{Error, Result};

/// Becomes the image manager, without any privilege.
pub fn manage_images(words: &[OsString]) -> Result<Infallible> {
    drop_set_user_id()?;
    let config = Config::open_trusted(Path::new(DEFAULT_PATH))?;
    execute(&Program::Shifterimg.path(&config.prefix), words)
}

/// Becomes another program, without any privilege: the one installed with this one, for a broken
/// configuration, or one that names another prefix, is what `doctor` is asked about.
pub fn become_tool(program: Program, words: &[OsString]) -> Result<Infallible> {
    drop_set_user_id()?;
    let beside = own_prefix().map(|prefix| program.path(&prefix));
    match beside.filter(|path| path.is_file()) {
        Some(path) => execute(&path, words),
        None => {
            let config = Config::open_trusted(Path::new(DEFAULT_PATH))?;
            execute(&program.path(&config.prefix), words)
        }
    }
}

/// Gives up what the set-user-id bit gave, for good.
fn drop_set_user_id() -> Result<()> {
    let caller = Caller::identify_any()?;
    if rustix::process::geteuid().is_root() && caller.uid != 0 {
        become_caller(&caller)?;
    }
    Ok(())
}

/// Returns the prefix of which this program is `bin/shifter`; only for a process that has no
/// privilege, for it may be a link of a user's making.
fn own_prefix() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    Some(program.parent()?.parent()?.to_owned())
}

fn execute(program: &Path, words: &[OsString]) -> Result<Infallible> {
    // It runs as whoever calls: nobody else may have put it there.
    let own = rustix::process::getuid().as_raw();
    trusted::audit(program, &[0, own]).map_err(Error::Untrusted)?;
    let source = Command::new(program).args(words).exec();
    Err(Error::Step {
        step: "run",
        object: program.to_string_lossy().into_owned(),
        source,
    })
}
