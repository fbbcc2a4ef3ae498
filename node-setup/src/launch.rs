//! From inside a container, as the user: environment, working directory, command.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{chdir, getcwd};
use shifter_core::config::Config;
use shifter_core::env::{self, EnvSources, Pair};
use shifter_core::exit::ExitCode;
use shifter_core::meta::ImageMeta;
use shifter_core::sanitize;

use crate::error::{Context, Error, Result};
use crate::options::RunOptions;
use crate::watch::{Awaited, Watch};
use crate::{modules, patience, ssh, sys};

/// Searched when the environment has no PATH, as by the C library.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

const ENV_FILE_LIMIT: u64 = 1 << 20;

/// What is known of a container when a command is to run in it.
pub struct Container<'a> {
    /// The site's configuration.
    pub config: &'a Config,
    /// The image's metadata.
    pub meta: &'a ImageMeta,
    /// The image's id.
    pub id: &'a str,
    /// How the user named the image.
    pub reference: &'a str,
    /// The modules in use.
    pub modules: &'a [String],
    /// The user's login shell.
    pub shell: &'a str,
    /// True of a job's container, which may have the job's keys.
    pub is_jobs: bool,
    /// True if the image's entry point starts commands although no option says so.
    pub starts_by_entry: bool,
}

/// Composes the container's environment from the caller's and all that changes it.
pub fn environment(
    container: &Container<'_>,
    options: &RunOptions,
    caller: Vec<Pair>,
) -> Result<Vec<Pair>> {
    let file = match &options.env_file {
        Some(path) => env_file(path)?,
        None => Vec::new(),
    };
    let selected = modules::selected(container.config, container.modules)?;
    let brought = if selected.is_empty() {
        BTreeMap::new()
    } else {
        modules::place::environment()
    };
    let mut changes = Vec::new();
    for (name, module) in container.modules.iter().zip(selected) {
        changes.push(&module.env);
        changes.extend(brought.get(name));
    }
    let always = [
        (b"SHIFTER_IMAGE".to_vec(), container.id.as_bytes().to_vec()),
        (
            b"SHIFTER_IMAGEREQUEST".to_vec(),
            container.reference.as_bytes().to_vec(),
        ),
    ];
    let sources = EnvSources {
        clear: options.clear_env,
        image: &container.meta.env,
        file: &file,
        options: &options.env,
        modules: &changes,
        site: &container.config.env,
        always: &always,
    };
    let mut composed = env::compose(caller, &sources);
    if container.is_jobs {
        ssh::complete_environment(&mut composed);
    }
    Ok(composed)
}

/// Reads the caller's environment.
pub fn own_environment() -> Vec<Pair> {
    std::env::vars_os()
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .collect()
}

/// Reads a file of variables.
pub fn env_file(path: &OsString) -> Result<Vec<Pair>> {
    let shown = sanitize::bytes(path.as_bytes());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let bad =
        |error: io::Error| Error::Usage(format!("cannot use environment file '{shown}': {error}"));
    // Nobody waits for a pipe to be opened by its writer, but what one that is open says is waited
    // for: bash writes <(...) so.
    let open = rustix::fs::open(path, flags, Mode::empty())
        .and_then(|fd| rustix::fs::fcntl_setfl(&fd, OFlags::empty()).map(|()| fd));
    let mut bytes = Vec::new();
    // One more than there may be, which is refused.
    open.map_err(io::Error::from)
        .and_then(|fd| {
            File::from(fd)
                .take(ENV_FILE_LIMIT + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(bad)?;
    env::parse_file(&bytes).map_err(|source| Error::EnvFile {
        file: path.to_string_lossy().into_owned(),
        source,
    })
}

/// Enters the working directory; returns a warning if the caller's own does not exist inside.
///
/// # Errors
/// A directory that was asked for and cannot be entered is an error.
pub fn enter_directory(
    meta: &ImageMeta,
    options: &RunOptions,
    callers: Option<&[u8]>,
    watch: &dyn Watch,
) -> Result<Option<String>> {
    let asked = match &options.workdir {
        Some(Some(dir)) => Some(dir.as_bytes().to_vec()),
        Some(None) => Some(meta.workdir.clone().unwrap_or_else(|| b"/".to_vec())),
        None => None,
    };
    if let Some(dir) = asked {
        let shown = sanitize::bytes(&dir);
        let bad = |error: io::Error| {
            Error::Usage(format!(
                "cannot enter working directory '{shown}' in the container: {error}"
            ))
        };
        watch.on(Awaited::Directory(Path::new(OsStr::from_bytes(&dir))))?;
        chdir(dir.as_slice()).map_err(|error| bad(error.into()))?;
        watch.on(Awaited::Nothing)?;
        // /proc/self/fd/N may lead out of the container through an inherited descriptor.
        if !is_inside() {
            return Err(bad(io::ErrorKind::NotFound.into()));
        }
        return Ok(None);
    }
    let Some(dir) = callers else {
        return Ok(Some(
            "the working directory does not exist any more: starting in '/'".into(),
        ));
    };
    if !patience::answers(dir) {
        let dir = sanitize::bytes(dir);
        return Ok(Some(format!(
            "cannot enter '{dir}' in the container: it does not answer: starting in '/'"
        )));
    }
    match chdir(dir) {
        Ok(()) => Ok(None),
        Err(error) => {
            let reason = io::Error::from(error);
            let dir = sanitize::bytes(dir);
            Ok(Some(format!(
                "cannot enter '{dir}' in the container: {reason}: starting in '/'"
            )))
        }
    }
}

/// Goes to the root where the working directory lies outside of the container, as one does that was
/// entered by way of an inherited descriptor.
pub fn leave_outside() -> Result<()> {
    if is_inside() {
        Ok(())
    } else {
        chdir("/").step("change to", "/")
    }
}

fn is_inside() -> bool {
    getcwd(Vec::new()).is_ok_and(|cwd| cwd.as_bytes().starts_with(b"/"))
}

/// Decides what to run: entry point, command, or a shell.
pub fn command(container: &Container<'_>, options: &RunOptions) -> Vec<Vec<u8>> {
    let typed = || options.command.iter().map(|word| word.as_bytes().to_vec());
    let asked = options.entrypoint.as_ref();
    // As for Docker's users, an empty one is none, whatever the job has.
    let is_none = matches!(asked, Some(Some(command)) if command.is_empty());
    match asked.or(container.starts_by_entry.then_some(&None)) {
        Some(entrypoint) if !is_none => {
            let mut words = match entrypoint {
                Some(command) => vec![command.as_bytes().to_vec()],
                None => container.meta.entry.clone().unwrap_or_default(),
            };
            if options.command.is_empty() && entrypoint.is_none() {
                words.extend(container.meta.cmd.clone().unwrap_or_default());
            } else {
                words.extend(typed());
            }
            if words.is_empty() {
                shell(container.shell)
            } else {
                words
            }
        }
        _ if options.command.is_empty() => shell(container.shell),
        _ => typed().collect(),
    }
}

/// The user's shell if the image has it, else the one every image has.
fn shell(login: &str) -> Vec<Vec<u8>> {
    let found = !login.is_empty() && rustix::fs::access(login, rustix::fs::Access::EXEC_OK).is_ok();
    let shell = if found { login } else { "/bin/sh" };
    vec![shell.as_bytes().to_vec()]
}

/// Replaces the process by the command; returns only the reason why it could not.
pub fn execute(words: &[Vec<u8>], environment: &[Pair]) -> Error {
    let Some(command) = words.first() else {
        return Error::Usage("no command".into());
    };
    let nul = || not_run(command, "it contains a NUL byte", ExitCode::NotFound);
    let args: Option<Vec<CString>> = words
        .iter()
        .map(|word| CString::new(&**word).ok())
        .collect();
    let Some(args) = args else { return nul() };
    let strings = environment
        .iter()
        .map(|(name, value)| [&**name, b"=", &**value].concat());
    let env: Vec<CString> = strings
        .filter_map(|string| CString::new(string).ok())
        .collect();

    let (mut denied, mut is_orphan) = (false, false);
    for candidate in candidates(command, search_path(environment)) {
        let Ok(file) = CString::new(candidate) else {
            return nul();
        };
        let error = sys::execve(&file, &args, &env);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {
                is_orphan |= rustix::fs::access(&file, rustix::fs::Access::EXISTS).is_ok();
            }
            Some(libc::EACCES) => denied = true,
            // A script without an interpreter line: POSIX has execvp run it by sh.
            Some(libc::ENOEXEC) => {
                let mut script = vec![c"/bin/sh".to_owned(), file];
                script.extend(args.iter().skip(1).cloned());
                let error = sys::execve(c"/bin/sh", &script, &env);
                return not_run(command, &error.to_string(), ExitCode::NotExecutable);
            }
            _ => return not_run(command, &error.to_string(), ExitCode::NotExecutable),
        }
    }
    if denied {
        not_run(command, "permission denied", ExitCode::NotExecutable)
    } else if is_orphan {
        let reason = "the interpreter or loader that it names is not in the container";
        not_run(command, reason, ExitCode::NotExecutable)
    } else {
        not_run(command, "not found in the container", ExitCode::NotFound)
    }
}

/// True if a command is found by the environment's PATH, or is a path itself, and may be executed.
pub fn is_found(command: &[u8], environment: &[Pair]) -> bool {
    candidates(command, search_path(environment))
        .iter()
        .any(|file| rustix::fs::access(file.as_slice(), rustix::fs::Access::EXEC_OK).is_ok())
}

fn search_path(environment: &[Pair]) -> &[u8] {
    let path = environment.iter().find(|(name, _)| name == b"PATH");
    path.map_or(DEFAULT_PATH, |(_, value)| value.as_slice())
}

/// Returns the files that a command may be, in the order they are tried.
fn candidates(command: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if command.is_empty() {
        return Vec::new();
    }
    if command.contains(&b'/') {
        return vec![command.to_vec()];
    }
    // An empty element of PATH is the working directory.
    let dirs = path.split(|byte| *byte == b':');
    dirs.map(|dir| if dir.is_empty() { &b"."[..] } else { dir })
        .map(|dir| [dir, b"/", command].concat())
        .collect()
}

fn not_run(command: &[u8], reason: &str, code: ExitCode) -> Error {
    Error::Command {
        command: command.to_vec(),
        reason: reason.to_owned(),
        code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_search() {
        let found = |command: &str, path: &str| {
            let list = candidates(command.as_bytes(), path.as_bytes());
            list.into_iter()
                .map(|c| String::from_utf8(c).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(found("ls", "/a:/b"), ["/a/ls", "/b/ls"]);
        assert_eq!(found("./ls", "/a"), ["./ls"]);
        assert_eq!(found("ls", ":/b"), ["./ls", "/b/ls"]);
        assert!(found("", "/a").is_empty());
    }
}
