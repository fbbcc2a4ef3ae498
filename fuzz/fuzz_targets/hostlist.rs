//! No host list makes more entries than the caller accepts, and a list written out is itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shifter_core::hostlist;

const CAP: usize = 100;

fuzz_target!(|text: &str| {
    if let Ok(hosts) = hostlist::expand(text, CAP) {
        assert!((1..=CAP).contains(&hosts.len()));
        assert_eq!(hostlist::expand(&hosts.join(","), CAP), Ok(hosts));
    }
    if let Ok(mut nids) = hostlist::nids(text, CAP) {
        let short = hostlist::compress_nids(&nids);
        nids.sort_unstable();
        nids.dedup();
        assert_eq!(hostlist::nids(&short, CAP), Ok(nids));
    }
    if let Ok(counts) = hostlist::counts(text, CAP) {
        assert!((1..=CAP).contains(&counts.len()));
    }
    let lists = [
        hostlist::from_exec_host(text, CAP),
        hostlist::from_nodefile(text, CAP),
    ];
    for list in lists.into_iter().flatten() {
        assert!((1..=CAP).contains(&list.len()));
    }
    if let Some((hosts, counts)) = text.split_once(' ') {
        let _ = hostlist::with_slots(hosts, counts, CAP);
    }
});
