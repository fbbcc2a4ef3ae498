//! The terminal: its width, questions, and passwords that are not shown.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};

use super::output;

/// Longest password and name that are read.
const LIMIT: u64 = 64 << 10;

/// Whether a question waits for its answer.
static ASKING: AtomicBool = AtomicBool::new(false);

/// The terminal as it was before its echo was turned off.
static HIDDEN: Mutex<Option<(File, Termios)>> = Mutex::new(None);

/// Returns columns and lines of the terminal that stderr is; none if it is not one that is drawn on.
pub(super) fn size() -> Option<(usize, usize)> {
    let stderr = io::stderr();
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    if is_dumb || !stderr.is_terminal() {
        return None;
    }
    match termios::tcgetwinsize(&stderr) {
        Ok(found) if found.ws_col > 0 => {
            Some((usize::from(found.ws_col), usize::from(found.ws_row).max(2)))
        }
        // A terminal without a size, as some serial ones are.
        _ => Some((80, 24)),
    }
}

/// Asks for a line on the terminal.
pub(super) fn ask(question: &str) -> io::Result<String> {
    let terminal = open()?;
    output::prompt(question);
    read_line(&terminal)
}

/// Asks for a line that is not shown while it is typed.
pub(super) fn ask_hidden(question: &str) -> io::Result<String> {
    let terminal = open()?;
    let before = termios::tcgetattr(&terminal)?;
    let mut without_echo = before.clone();
    without_echo.local_modes -= LocalModes::ECHO;
    without_echo.local_modes |= LocalModes::ECHONL;
    *hidden() = Some((terminal.try_clone()?, before));
    let answer = termios::tcsetattr(&terminal, OptionalActions::Flush, &without_echo)
        .map_err(io::Error::from)
        .and_then(|()| {
            output::prompt(question);
            read_line(&terminal)
        });
    show_again();
    answer
}

/// Leaves the terminal as it was, where a question ends with the program.
pub(super) fn restore() {
    if show_again() {
        output::prompt("\n");
    }
}

/// Shows again what is typed; false if that was not turned off.
fn show_again() -> bool {
    let Some((terminal, before)) = hidden().take() else {
        return false;
    };
    // There is nothing to be done for a terminal that has gone.
    let _ = termios::tcsetattr(&terminal, OptionalActions::Flush, &before);
    true
}

/// True while a question waits for its answer.
pub(super) fn is_asking() -> bool {
    ASKING.load(Ordering::SeqCst)
}

/// Reads a password from standard input: the first line, as `docker login` does.
pub(super) fn password_from_stdin() -> io::Result<String> {
    let mut text = String::new();
    io::stdin().lock().take(LIMIT).read_to_string(&mut text)?;
    let line = text.lines().next().unwrap_or_default();
    Ok(line.to_owned())
}

fn hidden() -> std::sync::MutexGuard<'static, Option<(File, Termios)>> {
    HIDDEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user's terminal, whatever standard input is.
fn open() -> io::Result<File> {
    let opened = File::options().read(true).write(true).open("/dev/tty");
    opened.map_err(|_| {
        io::Error::new(
            io::ErrorKind::NotConnected,
            "there is no terminal to ask on",
        )
    })
}

fn read_line(terminal: &File) -> io::Result<String> {
    let mut line = String::new();
    ASKING.store(true, Ordering::SeqCst);
    let read = BufReader::new(terminal.take(LIMIT)).read_line(&mut line);
    ASKING.store(false, Ordering::SeqCst);
    read?;
    if line.is_empty() {
        // What is said of it stands on a line of its own.
        output::prompt("\n");
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
