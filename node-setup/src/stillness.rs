//! Telling a process that waits in vain from one that merely is slow.
//!
//! Slow is not stopped: what counts is the time of one single wait. A process that was woken up
//! since has got an answer, and as many slow answers as there are may follow.

use rustix::event::Timespec;
use rustix::process::Pid;

use crate::process::read_record;

/// How often is looked within the time that a wait may take.
const LOOKS: u32 = 4;

/// Returns the time between two looks, where one wait may take so many seconds.
pub fn interval(seconds: u32) -> Timespec {
    Timespec {
        tv_sec: i64::from(seconds / LOOKS),
        tv_nsec: i64::from(seconds % LOOKS) * (1_000_000_000 / i64::from(LOOKS)),
    }
}

/// For how many looks a process has been in the same wait.
#[derive(Debug, Default)]
pub struct Stillness {
    seen: Option<u64>,
    looks: u32,
}

impl Stillness {
    /// Looks at the process and tells whether it has waited long enough.
    pub fn is_long(&mut self, process: Pid) -> bool {
        let now = waits(process);
        if now != self.seen {
            self.seen = now;
            self.looks = 0;
            return false;
        }
        self.looks += 1;
        self.looks == LOOKS
    }
}

/// How often a process has waited for something: it is in the same wait as long as that stays.
fn waits(process: Pid) -> Option<u64> {
    let path = format!("/proc/{}/status", process.as_raw_nonzero());
    let status = read_record(path).ok()?;
    let status = String::from_utf8_lossy(&status);
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use rustix::process::getpid;

    use super::*;

    #[test]
    fn a_process_that_gets_on_is_seen_to() {
        let before = waits(getpid()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        // Of its first thread, which is not this one, so it may also stay.
        assert!(waits(getpid()).unwrap() >= before);
        assert_eq!(waits(Pid::from_raw(i32::MAX).unwrap()), None);
    }

    #[test]
    fn the_looks_of_one_wait_take_its_time() {
        for (seconds, expected) in [(1, (0, 250_000_000)), (60, (15, 0)), (7, (1, 750_000_000))] {
            let Timespec { tv_sec, tv_nsec } = interval(seconds);
            assert_eq!((tv_sec, tv_nsec), expected, "{seconds}");
        }
    }
}
