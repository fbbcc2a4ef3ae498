//! Ctrl-C and its like: the first asks the work to stop, the second ends the program at once.
//!
//! Work that does not come to an end in time is left where it is: whatever it has on disk is made
//! so that a kill at any moment does no harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::Builder;
use std::time::Duration;

use shifter_core::exit::ExitCode;
use signal_hook::consts::{SIGABRT, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::terminal;
use crate::cancel::Cancel;

/// How long the work may take to give back what it holds.
const GRACE: Duration = Duration::from_millis(900);

static SEEN: AtomicI32 = AtomicI32::new(0);

/// Has the program end with a documented status where it would abort: when memory runs out, which has
/// been said then.
pub(super) fn expect_aborts() {
    let is_on = Arc::new(AtomicBool::new(true));
    let status = ExitCode::Internal.code().into();
    let _ = signal_hook::flag::register_conditional_shutdown(SIGABRT, status, is_on);
}

/// Starts to watch for signals; without the means for it they end the program as usual.
pub(super) fn watch(cancel: &Cancel) {
    let Ok(mut signals) = Signals::new([SIGHUP, SIGINT, SIGTERM]) else {
        return;
    };
    // A file that may not grow is an error to be told, not the end.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    let cancel = cancel.clone();
    let _detached = Builder::new().spawn(move || {
        for signal in signals.forever() {
            // While a question waits nothing is at work.
            if SEEN.swap(signal, Ordering::SeqCst) != 0 || terminal::is_asking() {
                end(signal);
            }
            cancel.cancel();
            let _detached = Builder::new().spawn(move || {
                std::thread::sleep(GRACE);
                end(signal);
            });
        }
    });
}

/// Ends the program by the signal it was sent, if it was: only then does a shell's loop end too.
pub(super) fn finish() {
    let signal = SEEN.load(Ordering::SeqCst);
    if signal != 0 {
        end(signal);
    }
}

/// Returns the exit status that goes with the signal, if there was one.
pub(super) fn status() -> Option<u8> {
    let signal = SEEN.load(Ordering::SeqCst);
    u8::try_from(128 + signal).ok().filter(|_| signal != 0)
}

fn end(signal: i32) -> ! {
    terminal::restore();
    // Ends the process; what follows is for the case that it is not allowed to.
    let _ = emulate_default_handler(signal);
    std::process::exit(128 + signal)
}
