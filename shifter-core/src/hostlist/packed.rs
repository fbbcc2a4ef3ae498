//! A job's hosts in a form that grows with the runs among their names and not with the hosts:
//! `{"name": "nid[00020-00023]", "slots": 16}` stands for four.
//!
//! Every node of a job reads all of the job's hosts, so the long form costs shared storage the square
//! of the job's size. No host's name has a bracket, and the long form is read as it ever was.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{HOST_LIMIT, HostError, HostSlots, digits, expand};

/// Writes hosts in the short form.
pub fn serialize<S: Serializer>(hosts: &[HostSlots], serializer: S) -> Result<S::Ok, S::Error> {
    pack(hosts).serialize(serializer)
}

/// Reads hosts in either form, at most [`HOST_LIMIT`]; names without a bracket are not judged.
pub fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<HostSlots>, D::Error> {
    unpack(Vec::deserialize(source)?).map_err(D::Error::custom)
}

/// Puts together neighbours whose numbers follow each other and that have as many slots.
fn pack(hosts: &[HostSlots]) -> Vec<HostSlots> {
    let mut packed = Vec::new();
    let mut rest = hosts;
    while let Some((first, others)) = rest.split_first() {
        let numbered = Numbered::of(&first.name);
        let follows = |(host, step): &(&HostSlots, u64)| {
            let next = numbered.as_ref().map(|numbered| numbered.name(*step));
            host.slots == first.slots && next.is_some_and(|next| next == host.name)
        };
        let more = others.iter().zip(1..).take_while(follows).count();
        let name = match &numbered {
            Some(numbered) if more > 0 => numbered.range(more as u64),
            _ => first.name.clone(),
        };
        let slots = first.slots;
        packed.push(HostSlots { name, slots });
        rest = &others[more..];
    }
    packed
}

fn unpack(packed: Vec<HostSlots>) -> Result<Vec<HostSlots>, HostError> {
    let mut hosts = Vec::with_capacity(packed.len());
    for HostSlots { name, slots } in packed {
        let room = HOST_LIMIT.saturating_sub(hosts.len());
        if name.contains('[') {
            let names = expand(&name, room)?;
            hosts.extend(names.into_iter().map(|name| HostSlots { name, slots }));
        } else if room > 0 {
            hosts.push(HostSlots { name, slots });
        } else {
            return Err(HostError::TooMany { limit: HOST_LIMIT });
        }
    }
    Ok(hosts)
}

/// A name whose first label ends with a number.
struct Numbered<'a> {
    before: &'a str,
    number: u64,
    width: usize,
    after: &'a str,
}

impl<'a> Numbered<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (label, after) = name.split_at(name.find('.').unwrap_or(name.len()));
        let before = label.trim_end_matches(|c: char| c.is_ascii_digit());
        let text = &label[before.len()..];
        // One digit less than `expand` takes: the last of a run may have one more.
        let is_short = text.len() < 18;
        Some(Self {
            before,
            number: digits(text).filter(|_| is_short)?,
            width: text.len(),
            after,
        })
    }

    /// Returns the name that comes so many steps later.
    fn name(&self, step: u64) -> String {
        self.between(&self.digits(step))
    }

    /// Returns this name and as many that come after it, as [`expand`] reads them.
    fn range(&self, more: u64) -> String {
        self.between(&format!("[{}-{}]", self.digits(0), self.digits(more)))
    }

    fn digits(&self, step: u64) -> String {
        let (number, width) = (self.number + step, self.width);
        format!("{number:0width$}")
    }

    fn between(&self, middle: &str) -> String {
        format!("{}{middle}{}", self.before, self.after)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::slots;
    use super::*;

    /// Names and slots.
    type Hosts = [(&'static str, u32)];

    #[test]
    fn neighbours_become_ranges() {
        let table: &[(&Hosts, &Hosts)] = &[
            (&[], &[]),
            (&[("n1", 2)], &[("n1", 2)]),
            (&[("n1", 2), ("n2", 2)], &[("n[1-2]", 2)]),
            (&[("n9", 1), ("n10", 1), ("n11", 1)], &[("n[9-11]", 1)]),
            (&[("n09", 1), ("n10", 1)], &[("n[09-10]", 1)]),
            (&[("n9", 1), ("n010", 1)], &[("n9", 1), ("n010", 1)]),
            (&[("n1", 1), ("n2", 3)], &[("n1", 1), ("n2", 3)]),
            (&[("n2", 1), ("n1", 1)], &[("n2", 1), ("n1", 1)]),
            (&[("n1", 1), ("n1", 1)], &[("n1", 1), ("n1", 1)]),
            (&[("1", 1), ("2", 1)], &[("[1-2]", 1)]),
            (
                &[("999999999999999999", 1), ("1000000000000000000", 1)],
                &[("999999999999999999", 1), ("1000000000000000000", 1)],
            ),
            (
                &[("n1.a2", 1), ("n2.a2", 1), ("n3.a3", 1), ("login", 1)],
                &[("n[1-2].a2", 1), ("n3.a3", 1), ("login", 1)],
            ),
        ];
        for (hosts, packed) in table {
            let hosts = slots(hosts);
            assert_eq!(pack(&hosts), slots(packed));
            assert_eq!(unpack(slots(packed)), Ok(hosts));
        }
        let job: Vec<_> = (0..8192)
            .map(|number| HostSlots {
                name: format!("nid{number:05}"),
                slots: 32,
            })
            .collect();
        assert_eq!(pack(&job), slots(&[("nid[00000-08191]", 32)]));
    }

    #[test]
    fn more_hosts_than_a_job_has_cost_nothing() {
        for packed in [
            &[("n[0-4000000000]", 1)][..],
            &[("n[0-65535]", 1), ("m", 1)],
            &[("n[0-65535]", 1), ("m[1-1]", 1)],
            &[("n[1-2", 1)],
            &[("n[2-1]", 1)],
        ] {
            assert!(unpack(slots(packed)).is_err(), "{packed:?}");
        }
        assert_eq!(unpack(slots(&[("n[0-65535]", 1)])).unwrap().len(), 1 << 16);
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            pairs in prop::collection::vec(("[ab]{0,1}[0-9]{1,2}(\\.[a1]{1,2})?", 1u32..3), 0..40)
        ) {
            let hosts: Vec<HostSlots> =
                pairs.into_iter().map(|(name, slots)| HostSlots { name, slots }).collect();
            prop_assert_eq!(unpack(pack(&hosts)), Ok(hosts));
        }
    }
}
