//! What the test bench tells its reader: the only place that writes to standard output.

use std::io::Write;
use std::time::Duration;

/// Prints one line; a closed pipe is the reader's choice and no error.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints one step of a longer story: what, how long, and what came of it.
pub fn step(what: &str, took: Duration, result: &str) {
    timed(what, &seconds(took), result);
}

/// Prints one step whose time somebody else took.
pub fn timed(what: &str, time: &str, result: &str) {
    line(&format!("  {what:<32} {time:>7}   {result}"));
}

/// Prints a program's output, set off from what the bench says itself.
pub fn quote(text: &str) {
    for part in text.trim_end().lines() {
        line(&format!("    | {part}"));
    }
}

/// Shows a duration with a unit that fits.
pub fn seconds(took: Duration) -> String {
    let ms = took.as_secs_f64() * 1000.0;
    if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1000.0)
    }
}
