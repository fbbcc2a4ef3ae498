//! How long to wait for a server, how often to ask again, and how long to pause in between.
//!
//! Exponential back-off with full jitter: a thousand nodes that lost the same server at the same
//! moment must not come back at the same moment. What a server asks for in `Retry-After` is kept
//! up to a limit. Whether a failure is worth another try is [`RegistryError::is_passing`]'s to say.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use super::error::RegistryError;

/// How patient a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Time for a name to be resolved, and for a connection to be made.
    pub connect: Duration,
    /// Time in which something must arrive.
    pub progress: Duration,
    /// What must have arrived in that time: a server that trickles is as good as dead.
    pub bytes: u64,
    /// Tries after the first one. A transfer that got on since the last try starts to count anew.
    pub retries: u32,
    /// The longest pause before the first of them; it doubles with each.
    pub pause: Duration,
    /// The longest pause of all.
    pub pause_limit: Duration,
    /// The longest pause that a server may ask for; if it asks for more, it is not waited for.
    pub asked_limit: Duration,
    /// Time for one request with all its tries, or for one document with all its parts.
    pub overall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            progress: Duration::from_secs(60),
            bytes: 16 << 10,
            retries: 5,
            pause: Duration::from_millis(250),
            pause_limit: Duration::from_secs(20),
            asked_limit: Duration::from_secs(120),
            overall: Duration::from_secs(12 * 3600),
        }
    }
}

/// Counts the tries of one request.
pub(super) struct Tries {
    patience: Patience,
    since: Instant,
    failed: u32,
}

impl Tries {
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            since: Instant::now(),
            failed: 0,
        }
    }

    /// Something arrived: what failed before does not count.
    pub fn got_on(&mut self) {
        self.failed = 0;
    }

    /// Returns the pause before the next try, or nothing if there is none.
    pub fn pause(&mut self, error: &RegistryError) -> Option<Duration> {
        if !error.is_passing() || self.failed >= self.patience.retries {
            return None;
        }
        let most = self
            .patience
            .pause
            .saturating_mul(1 << self.failed.min(16))
            .min(self.patience.pause_limit);
        self.failed += 1;
        let pause = match error.asked_pause() {
            Some(asked) if asked > self.patience.asked_limit => return None,
            // The crowd that was told the same number must not come back as one.
            Some(asked) => asked + jitter(self.patience.pause),
            None => jitter(most),
        };
        (self.since.elapsed() + pause < self.patience.overall).then_some(pause)
    }

    /// True if the time for everything is over.
    pub fn is_over(&self) -> bool {
        self.since.elapsed() >= self.patience.overall
    }
}

/// Returns some duration between nothing and `most`.
fn jitter(most: Duration) -> Duration {
    // The standard library's own source of randomness, seeded by the kernel once per thread.
    let random = RandomState::new().hash_one(0u8) >> 11;
    most.mul_f64(random as f64 / (1u64 << 53) as f64)
}

/// Reads a `Retry-After` header: seconds, or a date as in RFC 9110.
pub(super) fn asked(header: &str, now: u64) -> Option<Duration> {
    let text = header.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = date(text)?;
    Some(Duration::from_secs(then.saturating_sub(now)))
}

/// Reads a date like `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since 1970.
fn date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':');
    let mut part = |most: u64| {
        let value = clock.next()?.parse().ok()?;
        (value <= most).then_some(value)
    };
    let (hour, minute, second): (u64, u64, u64) = (part(23)?, part(59)?, part(60)?);
    if !(1..=31).contains(&day) || !(1970..=9999).contains(&year) || words.next()? != "GMT" {
        return None;
    }
    // Days of the Gregorian calendar, with years that begin in March.
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    // 719468: the days from March of the year 0 to January of 1970.
    Some((days.checked_sub(719_468)?) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(asked: Option<Duration>) -> RegistryError {
        RegistryError::Refused {
            address: "x".into(),
            status: 429,
            message: String::new(),
            asked,
        }
    }

    #[test]
    fn pauses_grow_and_differ() {
        let patience = Patience {
            retries: 4,
            pause: Duration::from_secs(1),
            pause_limit: Duration::from_secs(3),
            ..Patience::default()
        };
        let mut most = [Duration::ZERO; 4];
        for _ in 0..500 {
            let mut tries = Tries::new(patience);
            for longest in &mut most {
                *longest = tries.pause(&failure(None)).unwrap().max(*longest);
            }
            assert_eq!(tries.pause(&failure(None)), None, "after 4 retries");
            tries.got_on();
            assert!(tries.pause(&failure(None)).is_some());
        }
        for (found, limit) in most.iter().zip([1, 2, 3, 3]) {
            let limit = Duration::from_secs(limit);
            assert!(*found <= limit && *found > limit.mul_f64(0.9), "{most:?}");
        }
    }

    #[test]
    fn what_a_server_asks_for() {
        let patience = Patience::default();
        let pause =
            |seconds| Tries::new(patience).pause(&failure(Some(Duration::from_secs(seconds))));
        let kept = pause(7).unwrap();
        assert!((7..8).contains(&kept.as_secs()), "{kept:?}");
        assert_eq!(pause(121), None);
        let denied = RegistryError::NotFound {
            registry: "x".into(),
            message: String::new(),
        };
        assert_eq!(Tries::new(patience).pause(&denied), None);
        let mut short = Tries::new(Patience {
            overall: Duration::from_secs(5),
            ..patience
        });
        assert_eq!(short.pause(&failure(Some(Duration::from_secs(7)))), None);
    }

    #[test]
    fn headers() {
        let now = 784_111_777;
        let table = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:00 GMT", Some(23)),
            ("Tue, 29 Feb 2000 00:00:00 GMT", Some(951_782_400 - now)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Nov 94 08:49:37 GMT", None),
            ("soon", None),
            ("-1", None),
            ("", None),
        ];
        for (text, expect) in table {
            let expect = expect.map(Duration::from_secs);
            assert_eq!(asked(text, now), expect, "{text}");
        }
    }
}
