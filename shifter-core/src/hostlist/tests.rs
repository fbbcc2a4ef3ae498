//! Tables and properties of host lists.

use proptest::prelude::*;

use super::*;

const CAP: usize = 10_000;

pub(super) fn slots(pairs: &[(&str, u32)]) -> Vec<HostSlots> {
    pairs
        .iter()
        .map(|(name, slots)| HostSlots {
            name: (*name).into(),
            slots: *slots,
        })
        .collect()
}

#[test]
fn slurm_lists() {
    let long = "n".repeat(NAME_LIMIT);
    let table: &[(&str, &[&str])] = &[
        ("n1", &["n1"]),
        ("n1,n2", &["n1", "n2"]),
        ("n2,n1,n2", &["n2", "n1", "n2"]),
        ("n[1-3]", &["n1", "n2", "n3"]),
        ("n[3]", &["n3"]),
        ("n[1,3-4,2]", &["n1", "n3", "n4", "n2"]),
        ("n[08-11]", &["n08", "n09", "n10", "n11"]),
        ("n[8-11]", &["n8", "n9", "n10", "n11"]),
        ("n[098-100]", &["n098", "n099", "n100"]),
        ("n[001-2]", &["n001", "n002"]),
        ("n[0-0]", &["n0"]),
        ("r[1-2]n[01-02]", &["r1n01", "r1n02", "r2n01", "r2n02"]),
        (
            "r[1-2]n[1,3].cluster",
            &[
                "r1n1.cluster",
                "r1n3.cluster",
                "r2n1.cluster",
                "r2n3.cluster",
            ],
        ),
        ("[1-2]x", &["1x", "2x"]),
        ("x[1-2][3-4]", &["x13", "x14", "x23", "x24"]),
        (
            "login,n[1-2],gpu-[1-2]_a",
            &["login", "n1", "n2", "gpu-1_a", "gpu-2_a"],
        ),
        (&long, &[&long]),
        ("n[999999999999999999]", &["n999999999999999999"]),
    ];
    for (text, hosts) in table {
        assert_eq!(
            expand(text, CAP).unwrap_or_else(|e| panic!("{text}: {e}")),
            *hosts,
            "{text}"
        );
        assert!(expand(text, hosts.len()).is_ok(), "{text}");
        let limit = hosts.len() - 1;
        assert_eq!(
            expand(text, limit),
            Err(HostError::TooMany { limit }),
            "{text}"
        );
    }
}

#[test]
fn refused_slurm_lists() {
    let table = [
        ("", "the host list is empty"),
        (",", "'' is not the name of a host"),
        ("n1,", "'' is not the name"),
        ("n1,,n2", "'' is not the name"),
        ("n1 ", "'n1 ' is not the name"),
        ("n1\nroot", "'n1\\u{a}root' is not the name"),
        ("n/1", "is not the name"),
        ("$(x)", "is not the name"),
        ("ñ1", "is not the name"),
        ("-oProxyCommand", "is not the name"),
        (".n", "is not the name"),
        ("n[1", "the brackets of 'n[1' do not pair up"),
        ("n1]", "do not pair up"),
        ("n]1[", "do not pair up"),
        ("n[1[2]]", "do not pair up"),
        ("n[1-2]]", "do not pair up"),
        ("n[]", "'' is not a number"),
        ("n[1,]", "'' is not a number"),
        ("n[a-b]", "'a-b' is not a number"),
        ("n[2-1]", "'2-1' is not a number or an ascending range"),
        ("n[1-2-3]", "'1-2-3' is not a number"),
        ("n[-1]", "'-1' is not a number"),
        ("n[+1]", "'+1' is not a number"),
        ("n[1 -2]", "is not a number"),
        ("n[9999999999999999999]", "is not a number"),
        ("n[0-4000000000]", "more than 10000 entries"),
        (
            "n[0-999999999999999999]m[0-999999999999999999]",
            "more than 10000 entries",
        ),
        ("n[1-101][1-100]", "more than 10000 entries"),
    ];
    for (text, message) in table {
        let error = expand(text, CAP).expect_err(text).to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
    let long = "n".repeat(NAME_LIMIT);
    for text in [
        format!("{long}n"),
        format!("{long}[1-9]"),
        format!("[1-9]{long}"),
    ] {
        assert!(matches!(expand(&text, CAP), Err(HostError::Name { .. })));
    }
    // A long text before a set is not copied for each of its numbers.
    assert!(expand(&format!("{}[1-9999]", "n".repeat(1 << 20)), CAP).is_err());
    assert!(expand(&"[1]".repeat(1 << 18), CAP).is_err());
}

#[test]
fn slurm_counts() {
    let table: &[(&str, &[u32])] = &[
        ("1", &[1]),
        ("2(x3),1", &[2, 2, 2, 1]),
        ("0", &[0]),
        ("16(x2),8,16(x1)", &[16, 16, 8, 16]),
        ("65536", &[65536]),
    ];
    for (text, expected) in table {
        assert_eq!(counts(text, CAP).unwrap(), *expected, "{text}");
    }
    let bad = [
        "",
        ",",
        "1,",
        "x3",
        "2(x)",
        "2(x0)",
        "2(3)",
        "2(x3",
        "2(x3))",
        "2(x3)1",
        "(x3)",
        "-1",
        "+1",
        "1 ",
        "65537",
        "2(x-1)",
        "2(x10001)",
        "2(x99999999999999999999)",
    ];
    for text in bad {
        assert!(counts(text, CAP).is_err(), "{text}");
    }
    assert_eq!(
        counts("1(x4000000000)", 5),
        Err(HostError::TooMany { limit: 5 })
    );
}

#[test]
fn hosts_with_slots() {
    let joined = with_slots("n[1-2],m", "2(x2),1", CAP).unwrap();
    assert_eq!(joined, slots(&[("n1", 2), ("n2", 2), ("m", 1)]));
    let error = with_slots("n[1-3]", "2(x2)", CAP).unwrap_err();
    assert_eq!(
        error,
        HostError::Mismatch {
            hosts: 3,
            counts: 2
        }
    );
}

#[test]
fn exec_hosts() {
    let table: &[(&str, &[(&str, u32)])] = &[
        ("n1/0", &[("n1", 1)]),
        (
            "login1/16+20/0-15+21/0-15",
            &[("login1", 1), ("20", 16), ("21", 16)],
        ),
        ("n1/0+n1/1+n2/0+n1/2", &[("n1", 3), ("n2", 1)]),
        ("n1/0-1,4+n2/7", &[("n1", 3), ("n2", 1)]),
        ("n1/0*4+n2/1*8", &[("n1", 4), ("n2", 8)]),
        ("n1", &[("n1", 1)]),
    ];
    for (text, expected) in table {
        assert_eq!(
            from_exec_host(text, CAP).unwrap(),
            slots(expected),
            "{text}"
        );
    }
    let bad = [
        "",
        "+",
        "n1/",
        "/0",
        "n1/0+",
        "n1/a",
        "n1/3-1",
        "n1/0/1",
        "n1/0-",
        "n1/0*",
        "n1/*4",
        "n1/0-65536",
        "n1/0-4000000000",
        "n1/0*65537",
        "n 1/0",
        "n1/0-65535+n1/0",
    ];
    for text in bad {
        assert!(from_exec_host(text, CAP).is_err(), "{text}");
    }
    assert_eq!(
        from_exec_host("a/0+b/0+a/1+c/0", 2),
        Err(HostError::TooMany { limit: 2 })
    );
}

#[test]
fn nodefiles() {
    let text = "n1\nn1\n20\nn1\n20\n\nn2";
    assert_eq!(
        from_nodefile(text, CAP).unwrap(),
        slots(&[("n1", 3), ("20", 2), ("n2", 1)])
    );
    assert_eq!(from_nodefile("", CAP), Err(HostError::Empty));
    assert_eq!(from_nodefile("\n\n", CAP), Err(HostError::Empty));
    assert_eq!(
        from_nodefile("a\nb\nc\n", 2),
        Err(HostError::TooMany { limit: 2 })
    );
    for bad in ["n1 n2\n", " n1\n", "n1\t\n", "-x\n", "n1\0\n"] {
        assert!(
            matches!(from_nodefile(bad, CAP), Err(HostError::Name { .. })),
            "{bad}"
        );
    }
}

#[test]
fn node_numbers() {
    let table: &[(&str, &[u32])] = &[
        ("20", &[20]),
        ("20-23,40", &[20, 21, 22, 23, 40]),
        ("nid000[20-22]", &[20, 21, 22]),
        ("nid00020,nid000[40-41],7", &[20, 40, 41, 7]),
        ("nid[00020,00030]", &[20, 30]),
        ("00020", &[20]),
        ("4294967295", &[u32::MAX]),
    ];
    for (text, expected) in table {
        assert_eq!(nids(text, CAP).unwrap(), *expected, "{text}");
    }
    let bad = [
        "",
        ",",
        "20,",
        "23-20",
        "a",
        "n20",
        "nid",
        "nidx",
        "nid20x",
        "4294967296",
        "0-4294967296",
        "nid[4294967296]",
        "20-23-25",
        "-1",
        "[20-21]",
    ];
    for text in bad {
        assert!(nids(text, CAP).is_err(), "{text}");
    }
    for text in ["0-4000000000", "nid[0-4000000000]", "1-3,nid[1-3]", "1-6"] {
        assert_eq!(
            nids(text, 5),
            Err(HostError::TooMany { limit: 5 }),
            "{text}"
        );
    }
}

#[test]
fn node_numbers_compressed() {
    let table: &[(&[u32], &str)] = &[
        (&[], ""),
        (&[7], "7"),
        (&[23, 20, 40, 22, 21, 20], "20-23,40"),
        (
            &[1, 2, 4, u32::MAX, u32::MAX - 1],
            "1-2,4,4294967294-4294967295",
        ),
    ];
    for (numbers, text) in table {
        assert_eq!(compress_nids(numbers), *text);
    }
}

proptest! {
    #[test]
    fn any_text_is_judged_without_panic(text in "\\PC*|[n0-9a,+/*()x\\[\\]\\n-]{0,40}", cap in 0..50_usize) {
        if let Ok(hosts) = expand(&text, cap) {
            prop_assert!((1..=cap).contains(&hosts.len()));
            prop_assert!(hosts.iter().all(|name| is_host_name(name)));
            // A list that is written out expands to itself.
            prop_assert_eq!(expand(&hosts.join(","), cap).unwrap(), hosts);
        }
        if let Ok(counts) = counts(&text, cap) {
            prop_assert!((1..=cap).contains(&counts.len()));
        }
        if let Ok(nids) = nids(&text, cap) {
            prop_assert!((1..=cap).contains(&nids.len()));
        }
        for list in [from_exec_host(&text, cap), from_nodefile(&text, cap)].into_iter().flatten() {
            prop_assert!((1..=cap).contains(&list.len()));
            prop_assert!(list.iter().all(|host| host.slots <= SLOT_LIMIT));
        }
    }

    #[test]
    fn sets_count_as_they_expand(
        first in 0..50_u64, more in 0..30_u64, width in 1..5_usize, other in 0..20_u64,
    ) {
        let last = first + more;
        let text = format!("a[{first:0width$}-{last}]b[0-{other}]");
        let hosts = expand(&text, CAP).unwrap();
        prop_assert_eq!(hosts.len() as u64, (more + 1) * (other + 1));
        prop_assert_eq!(&hosts[0], &format!("a{first:0width$}b0"));
        prop_assert_eq!(hosts.last().unwrap(), &format!("a{last:0width$}b{other}"));
    }

    #[test]
    fn node_numbers_round_trip(mut numbers in proptest::collection::vec(0..300_u32, 1..60)) {
        let text = compress_nids(&numbers);
        numbers.sort_unstable();
        numbers.dedup();
        prop_assert_eq!(nids(&text, CAP).unwrap(), numbers);
    }
}
