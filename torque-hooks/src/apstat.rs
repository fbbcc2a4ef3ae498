//! What ALPS says of reservations: the text of `apstat`.
//!
//! ```text
//! apstat -r                  ResId  ApId From  Arch PEs N d Memory State
//!                             3147  1234 batch:5176 XT 32 ...     column 1, `batch:ID `
//!                           A 3147  ...                           an application, not counted
//! apstat -rvvv -R RES        PE 0 ... field 6 is the node's number
//! ```

use std::collections::HashSet;

use shifter_core::ids::JobId;

/// Finds the reservation of a batch job; `batch:` may be followed by the whole id or by its number.
pub fn reservation(text: &str, job: &JobId) -> Option<String> {
    let whole = job.as_str();
    let number = whole.split('.').next().unwrap_or(whole);
    let mut lines = text.lines().filter(|line| !line.starts_with('A'));
    let line = lines.find(|line| {
        let owner = line
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix("batch:"));
        owner.is_some_and(|id| id == whole || id == number)
    })?;
    let reservation = line.split_ascii_whitespace().next()?;
    is_reservation(reservation).then(|| reservation.to_owned())
}

/// True for what may be a reservation's number.
pub fn is_reservation(text: &str) -> bool {
    (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lists the nodes of a reservation, each once, in the order of the text.
pub fn nodes(text: &str) -> Vec<u32> {
    let mut nodes: Vec<u32> = Vec::new();
    let mut seen: HashSet<u32> = HashSet::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("PE") {
            continue;
        }
        let number: Option<u32> = words.nth(4).and_then(|word| word.parse().ok());
        nodes.extend(number.filter(|number| seen.insert(*number)));
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
  ResId   ApId From       Arch PEs N d Memory State
   3147   1234 batch:51     XT  32 16 1   2000 conf,claim
A  3147   1235 batch:5176   XT  32 16 1   2000 conf,claim
   3148   1236 batch:5176   XT  32 16 1   2000 conf,claim
   3149   1237 batch:0.server XT 32 16 1  2000 NID list,conf
   x;id   1237 batch:77     XT 32 16 1  2000 conf
";

    #[test]
    fn the_jobs_reservation_is_found() {
        let table = [
            ("5176.server", Some("3148")),
            ("5176", Some("3148")),
            ("51.server", Some("3147")),
            ("0.server", Some("3149")),
            ("517.server", None),
            ("77.server", None),
        ];
        for (job, expected) in table {
            let job = JobId::parse(job).unwrap();
            assert_eq!(reservation(LIST, &job).as_deref(), expected, "{job}");
        }
    }

    #[test]
    fn nodes_are_in_field_six() {
        let text = "  ResId\n PE 0 a b c 20 x\nPE 1 a b c 20 x\nPE 2 a b c 21\nPE 3 a b c\nPEx 1 2 3 4 5\n";
        assert_eq!(nodes(text), [20, 21]);
    }
}
