//! Where the hooks say something: syslog, the job's comment, standard error.

use std::io::Write;
use std::os::unix::net::UnixDatagram;

use shifter_core::config::Torque;
use shifter_core::ids::JobId;
use shifter_core::sanitize;

use crate::outside;

/// Seconds that qalter may take.
const QALTER_SECS: u32 = 10;

/// Characters that a job's comment may have.
const COMMENT_LIMIT: usize = 400;

/// How much a line matters (syslog(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Something failed.
    Error = 3,
    /// Something is not as it should be.
    Warning = 4,
    /// For the record.
    Info = 6,
}

/// LOG_DAEMON.
const FACILITY: u8 = 3 << 3;

/// Writes a line to syslog; a machine without one goes without.
pub fn log(weight: Weight, line: &str) {
    let Ok(socket) = UnixDatagram::unbound() else {
        return;
    };
    // A log that nobody empties must not hold a job up.
    let _ = socket.set_nonblocking(true);
    let priority = FACILITY | weight as u8;
    let text = format!(
        "<{priority}>{}[{}]: {}",
        own_name(),
        std::process::id(),
        line.replace('\n', "; ")
    );
    let _ = socket.send_to(text.as_bytes(), "/dev/log");
}

/// Returns what the log calls this program: the name of its file, whatever it was called as.
fn own_name() -> String {
    let file = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    // One that was replaced meanwhile has ` (deleted)` behind it.
    let name = name.split(' ').next().unwrap_or_default();
    match name {
        "" => "shifter-torque".to_owned(),
        name => sanitize::text(name),
    }
}

/// Writes a line for whoever reads the job's standard error; a hint belongs to the line before it.
pub fn tell(line: &str) {
    let name = if line.starts_with("hint: ") {
        ""
    } else {
        "shifter: "
    };
    let _ = writeln!(std::io::stderr().lock(), "{name}{line}");
}

/// Sets the job's comment, if the site wants that.
pub fn comment(torque: &Torque, job: &JobId, text: &str) {
    if !torque.comment {
        return;
    }
    let attribute = format!("comment={}", comment_text(text));
    let arguments = ["-W", &attribute, job.as_str()];
    if let Err(error) = outside::ask(&torque.qalter, &arguments, QALTER_SECS) {
        let reason = shifter_core::chain::line(&error);
        log(
            Weight::Warning,
            &format!("job {job}: cannot set its comment: {reason}"),
        );
    }
}

/// Takes out what qalter reads as the beginning of something else: it splits its argument at
/// commas, and at what looks like a name before `=`, and takes quotes off.
fn comment_text(text: &str) -> String {
    let replaced = text.chars().map(|c| match c {
        ',' => ';',
        '=' => ':',
        '"' | '\'' | '`' => ' ',
        '\\' => '/',
        c if c.is_control() => ' ',
        c => c,
    });
    let text: String = replaced.take(COMMENT_LIMIT).collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    format!("shifter: {}", sanitize::text(&words.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_one_attribute() {
        let table = [
            (
                "0 of 1 nodes ready; n1: no",
                "shifter: 0 of 1 nodes ready; n1: no",
            ),
            (
                "cannot find 'x', depend=afterok:1\nhint: \"a\"",
                "shifter: cannot find x ; depend:afterok:1 hint: a",
            ),
            ("a\\nb", "shifter: a/nb"),
        ];
        for (text, expected) in table {
            assert_eq!(comment_text(text), expected);
        }
        let long = comment_text(&"x,".repeat(1000));
        assert!(long.len() < 450 && !long.contains(','), "{long}");
    }
}
