//! Lists of hosts as batch systems write them.
//!
//! ```text
//! n[1-2,5]m[01-04],login      Slurm: one number set per pair of brackets, zero padding is kept
//! 2(x3),1                     Slurm: a number for each host, with repetition
//! login1/16+20/0-15+21/0,2    Torque and PBS exec_host: slots by index; `/0*4` is four of them
//! one name per line           PBS_NODEFILE: a line for each slot
//! 20-23,40  nid000[20-23]     Cray node numbers
//! ```
//!
//! Each function takes the number of results it may make at most and counts before it allocates,
//! so that `[0-4000000000]` costs nothing. A name is 1 to 255 of `A-Z a-z 0-9 . _ -` and does not
//! start with `.` or `-`: it becomes an argument of other programs.

pub mod packed;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::sanitize::text as safe;

/// Bytes that the name of a host may have.
pub const NAME_LIMIT: usize = 255;

/// Hosts that a job may have.
pub const HOST_LIMIT: usize = 1 << 16;

/// Slots that one host may have.
pub const SLOT_LIMIT: u32 = 1 << 16;

/// A host and how many tasks of the job it takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSlots {
    /// The host as the batch system names it.
    pub name: String,
    /// Tasks or processors of the job on it.
    pub slots: u32,
}

/// Says which part of a host list was refused, and why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum HostError {
    /// The list has no host.
    #[error("the host list is empty")]
    Empty,
    /// The list would have more entries than the caller accepts.
    #[error("the host list has more than {limit} entries")]
    TooMany {
        /// Entries it may have.
        limit: usize,
    },
    /// A name has a character or length that no host name has.
    #[error("'{}' is not the name of a host", safe(.name))]
    Name {
        /// The name.
        name: String,
    },
    /// Brackets do not pair up, or are nested.
    #[error("the brackets of '{}' do not pair up", safe(.text))]
    Brackets {
        /// The part of the list.
        text: String,
    },
    /// A number or a range is not one.
    #[error("'{}' is not a number or an ascending range", safe(.text))]
    Range {
        /// The part of the list.
        text: String,
    },
    /// The number of slots is not one, or more than [`SLOT_LIMIT`].
    #[error("'{}' is not a number of slots up to {SLOT_LIMIT}", safe(.text))]
    Slots {
        /// The part of the list.
        text: String,
    },
    /// There are more or fewer numbers of slots than hosts.
    #[error("there are {hosts} hosts and {counts} numbers of slots")]
    Mismatch {
        /// Hosts in the list.
        hosts: usize,
        /// Numbers in the other list.
        counts: usize,
    },
}

/// Expands a Slurm host list; the order is kept, and so is a host that is named twice.
pub fn expand(text: &str, cap: usize) -> Result<Vec<String>, HostError> {
    let mut hosts = Vec::new();
    for element in elements(text)? {
        let pattern = Pattern::parse(element)?;
        if pattern.count() > (cap - hosts.len()) as u64 {
            return Err(HostError::TooMany { limit: cap });
        }
        hosts.extend(pattern.names()?);
    }
    Ok(hosts)
}

/// Expands Slurm's numbers for each host: `2(x3),1` is 2, 2, 2, 1.
pub fn counts(text: &str, cap: usize) -> Result<Vec<u32>, HostError> {
    let mut counts = Vec::new();
    for element in elements(text)? {
        let refused = || HostError::Slots {
            text: element.to_owned(),
        };
        let (number, times) = match element.split_once("(x") {
            Some((number, rest)) => (number, rest.strip_suffix(')').ok_or_else(refused)?),
            None => (element, "1"),
        };
        let times = digits(times)
            .filter(|times| *times > 0)
            .ok_or_else(refused)?;
        let slots = slots(number).ok_or_else(refused)?;
        if times > (cap - counts.len()) as u64 {
            return Err(HostError::TooMany { limit: cap });
        }
        counts.extend((0..times).map(|_| slots));
    }
    Ok(counts)
}

/// Joins Slurm's list of hosts and its numbers for each host.
pub fn with_slots(hosts: &str, counts: &str, cap: usize) -> Result<Vec<HostSlots>, HostError> {
    let hosts = expand(hosts, cap)?;
    let counts = self::counts(counts, cap)?;
    if hosts.len() != counts.len() {
        return Err(HostError::Mismatch {
            hosts: hosts.len(),
            counts: counts.len(),
        });
    }
    Ok(hosts
        .into_iter()
        .zip(counts)
        .map(|(name, slots)| HostSlots { name, slots })
        .collect())
}

/// Reads `exec_host` of Torque and PBS: hosts in order of first mention, with the sum of their
/// slots.
pub fn from_exec_host(text: &str, cap: usize) -> Result<Vec<HostSlots>, HostError> {
    let mut sum = Sum::new(cap);
    for element in text.split('+').filter(|_| !text.is_empty()) {
        let (name, indices) = element.split_once('/').unwrap_or((element, "0"));
        let refused = || HostError::Slots {
            text: element.to_owned(),
        };
        let slots = exec_slots(indices).ok_or_else(refused)?;
        sum.add(name, slots)?;
    }
    sum.finish()
}

/// Reads PBS_NODEFILE, which names a host once for each of its slots; empty lines are skipped.
pub fn from_nodefile(text: &str, cap: usize) -> Result<Vec<HostSlots>, HostError> {
    let mut sum = Sum::new(cap);
    for name in text.lines().filter(|line| !line.is_empty()) {
        sum.add(name, 1)?;
    }
    sum.finish()
}

/// Expands Cray node numbers, `20-23,40` or the hosts' names `nid000[20-23]`; the order is kept.
pub fn nids(text: &str, cap: usize) -> Result<Vec<u32>, HostError> {
    let mut nids = Vec::new();
    for element in elements(text)? {
        let refused = || HostError::Range {
            text: element.to_owned(),
        };
        let room = cap - nids.len();
        if element.starts_with("nid") {
            for name in expand(element, room).map_err(|error| with_limit(error, cap))? {
                let number = name.strip_prefix("nid").and_then(digits);
                nids.push(
                    number
                        .and_then(|n| u32::try_from(n).ok())
                        .ok_or_else(refused)?,
                );
            }
            continue;
        }
        let range = Range::parse(element)?;
        let last = u32::try_from(range.last).map_err(|_| refused())?;
        if range.count() > room as u64 {
            return Err(HostError::TooMany { limit: cap });
        }
        let first = u32::try_from(range.first).map_err(|_| refused())?;
        nids.extend(first..=last);
    }
    Ok(nids)
}

/// Writes node numbers in the short form that [`nids`] reads, in ascending order, each once.
pub fn compress_nids(nids: &[u32]) -> String {
    let mut sorted = nids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let runs = sorted.chunk_by(|a, b| a + 1 == *b);
    let texts = runs.filter_map(|run| match run {
        [] => None,
        [one] => Some(one.to_string()),
        [first, .., last] => Some(format!("{first}-{last}")),
    });
    texts.collect::<Vec<_>>().join(",")
}

/// Splits at the commas outside brackets; an empty element is an error later on.
fn elements(text: &str) -> Result<impl Iterator<Item = &str>, HostError> {
    if text.is_empty() {
        return Err(HostError::Empty);
    }
    let mut is_inside = false;
    Ok(text.split(move |c| {
        is_inside = match c {
            '[' => true,
            ']' => false,
            _ => is_inside,
        };
        c == ',' && !is_inside
    }))
}

/// One number or range, with the width to which its numbers are padded.
struct Range {
    first: u64,
    last: u64,
    width: usize,
}

impl Range {
    fn parse(text: &str) -> Result<Range, HostError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (digits(first), digits(last)) {
            (Some(low), Some(high)) if low <= high => Ok(Range {
                first: low,
                last: high,
                width: first.len(),
            }),
            _ => Err(HostError::Range {
                text: text.to_owned(),
            }),
        }
    }

    fn count(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// One element of a Slurm host list: literal text and sets of numbers in turn.
struct Pattern<'a> {
    parts: Vec<(&'a str, Vec<Range>)>,
    tail: &'a str,
}

impl<'a> Pattern<'a> {
    fn parse(element: &'a str) -> Result<Pattern<'a>, HostError> {
        let refused = || HostError::Brackets {
            text: element.to_owned(),
        };
        let mut parts = Vec::new();
        let mut tail = element;
        while let Some((literal, rest)) = tail.split_once('[') {
            let (set, rest) = rest.split_once(']').ok_or_else(refused)?;
            if literal.contains(']') || set.contains('[') {
                return Err(refused());
            }
            let ranges = set
                .split(',')
                .map(Range::parse)
                .collect::<Result<Vec<_>, _>>()?;
            parts.push((literal, ranges));
            tail = rest;
        }
        if tail.contains(']') {
            return Err(refused());
        }
        Ok(Pattern { parts, tail })
    }

    /// Returns how many names there are; `u64::MAX` stands for any larger number.
    fn count(&self) -> u64 {
        let size =
            |ranges: &Vec<Range>| ranges.iter().map(Range::count).fold(0, u64::saturating_add);
        self.parts
            .iter()
            .map(|(_, ranges)| size(ranges))
            .fold(1, u64::saturating_mul)
    }

    /// Makes the names, of which the last set's numbers vary fastest; the caller has counted them.
    fn names(&self) -> Result<Vec<String>, HostError> {
        let mut names = vec![String::new()];
        for (literal, ranges) in &self.parts {
            let mut longer = Vec::new();
            for name in &names {
                for Range { first, last, width } in ranges {
                    for number in *first..=*last {
                        longer.push(limited(format!("{name}{literal}{number:0width$}"))?);
                    }
                }
            }
            names = longer;
        }
        names
            .into_iter()
            .map(|name| checked_name(name + self.tail))
            .collect()
    }
}

/// Adds up slots by host, in order of first mention.
struct Sum<'a> {
    cap: usize,
    places: HashMap<&'a str, usize>,
    hosts: Vec<HostSlots>,
}

impl<'a> Sum<'a> {
    fn new(cap: usize) -> Self {
        Sum {
            cap,
            places: HashMap::new(),
            hosts: Vec::new(),
        }
    }

    fn add(&mut self, name: &'a str, slots: u32) -> Result<(), HostError> {
        let place = match self.places.get(name) {
            Some(place) => *place,
            None if self.hosts.len() == self.cap => {
                return Err(HostError::TooMany { limit: self.cap });
            }
            None => {
                let name = checked_name(name.to_owned())?;
                self.hosts.push(HostSlots { name, slots: 0 });
                self.hosts.len() - 1
            }
        };
        self.places.insert(name, place);
        let host = &mut self.hosts[place];
        let sum = host.slots + slots;
        if sum > SLOT_LIMIT {
            return Err(HostError::Slots {
                text: host.name.clone(),
            });
        }
        host.slots = sum;
        Ok(())
    }

    fn finish(self) -> Result<Vec<HostSlots>, HostError> {
        if self.hosts.is_empty() {
            Err(HostError::Empty)
        } else {
            Ok(self.hosts)
        }
    }
}

/// Counts the slots of `0-15`, `0,2` or `0*4`.
fn exec_slots(indices: &str) -> Option<u32> {
    if let Some((index, number)) = indices.split_once('*') {
        digits(index)?;
        return slots(number);
    }
    let ranges = indices.split(',').map(|text| Range::parse(text).ok());
    let total = ranges.map(|range| range.as_ref().map(Range::count));
    let total = total.sum::<Option<u64>>()?;
    u32::try_from(total)
        .ok()
        .filter(|total| *total <= SLOT_LIMIT)
}

fn slots(text: &str) -> Option<u32> {
    u32::try_from(digits(text)?)
        .ok()
        .filter(|slots| *slots <= SLOT_LIMIT)
}

/// Parses 1 to 18 decimal digits, which always fit.
fn digits(text: &str) -> Option<u64> {
    let plain = (1..=18).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Stops a name from growing before it is copied for every number that follows.
fn limited(name: String) -> Result<String, HostError> {
    if name.len() <= NAME_LIMIT {
        Ok(name)
    } else {
        Err(HostError::Name { name })
    }
}

/// True for what may name a host; also for names that come from elsewhere than a list.
pub fn is_host_name(name: &str) -> bool {
    (1..=NAME_LIMIT).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !name.starts_with(['.', '-'])
}

fn checked_name(name: String) -> Result<String, HostError> {
    if is_host_name(&name) {
        Ok(name)
    } else {
        Err(HostError::Name { name })
    }
}

fn with_limit(error: HostError, limit: usize) -> HostError {
    match error {
        HostError::TooMany { .. } => HostError::TooMany { limit },
        other => other,
    }
}
