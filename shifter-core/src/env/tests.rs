//! Tables and properties of the environment rules.

use proptest::prelude::*;

use super::*;

fn pairs(list: &[(&str, &str)]) -> Vec<Pair> {
    list.iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect()
}

fn map(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn rules(changes: EnvChanges) -> SiteEnv {
    SiteEnv {
        changes,
        ..SiteEnv::default()
    }
}

fn nothing(site: &SiteEnv) -> EnvSources<'_> {
    EnvSources {
        clear: false,
        image: &[],
        file: &[],
        options: &[],
        modules: &[],
        site,
        always: &[],
    }
}

#[test]
fn a_site_says_what_enters() {
    let enters = |pass: &[&str], drop: &[&str], name: &str| {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let site = SiteEnv {
            pass: owned(pass),
            drop: owned(drop),
            changes: EnvChanges::default(),
        };
        let env = compose(vec![(name.into(), b"/x".to_vec())], &nothing(&site));
        !env.is_empty()
    };
    assert!(enters(&["*"], &[], "HOME") && !enters(&["*"], &["HOME"], "HOME"));
    assert!(enters(&["SLURM_*"], &[], "SLURM_JOB_ID") && !enters(&["SLURM_*"], &[], "HOME"));
    assert!(!enters(&["SLURM_*"], &["SLURM_J*"], "SLURM_JOB_ID"));
    assert!(!enters(&["*"], &[], "LESSOPEN") && enters(&["*", "LESSOPEN"], &[], "LESSOPEN"));
    assert!(!enters(&["LD_PRELOAD"], &[], "LD_PRELOAD") && !enters(&[], &[], "HOME"));
}

#[test]
fn each_source_wins_over_those_before() {
    // Every source sets its own variable and all that the later ones set as well.
    let layer = |from: usize, value: &str| -> Vec<Pair> {
        (from..8)
            .map(|n| (format!("V{n}").into_bytes(), value.into()))
            .collect()
    };
    let changes = |from: usize, value: &str| EnvChanges {
        set: (from..8)
            .map(|n| (format!("V{n}"), value.to_owned()))
            .collect(),
        ..EnvChanges::default()
    };
    let (image, file, options) = (layer(1, "image"), layer(2, "file"), layer(3, "option"));
    let (first, second) = (changes(4, "module1"), changes(5, "module2"));
    let (site, always) = (rules(changes(6, "site")), layer(7, "always"));
    let sources = EnvSources {
        clear: false,
        image: &image,
        file: &file,
        options: &options,
        modules: &[&first, &second],
        site: &site,
        always: &always,
    };
    let expected = [
        ("V0", "caller"),
        ("V1", "image"),
        ("V2", "file"),
        ("V3", "option"),
        ("V4", "module1"),
        ("V5", "module2"),
        ("V6", "site"),
        ("V7", "always"),
    ];
    assert_eq!(compose(layer(0, "caller"), &sources), pairs(&expected));
    let cleared = EnvSources {
        clear: true,
        ..sources
    };
    assert_eq!(compose(layer(0, "caller"), &cleared), pairs(&expected[1..]));
}

#[test]
fn changes_set_append_prepend_and_unset_in_order() {
    let module = EnvChanges {
        set: map(&[("NEW", "n"), ("GONE", "set")]),
        append: map(&[
            ("PATH", "/m/bin"),
            ("NEW", "a"),
            ("ONLY_A", "a"),
            ("EMPTY", "e"),
        ]),
        prepend: map(&[
            ("PATH", "/m/first"),
            ("NEW", "p"),
            ("ONLY_P", "p"),
            ("EMPTY", ""),
        ]),
        unset: vec!["GONE".into(), "HOME".into(), "NEVER_THERE".into()],
    };
    let site = rules(EnvChanges {
        set: map(&[("GONE", "back")]),
        append: map(&[("PATH", "/s")]),
        prepend: map(&[("LD_LIBRARY_PATH", "/opt/udiImage/lib")]),
        unset: vec!["NEW".into()],
    });
    let caller = pairs(&[("PATH", "/bin"), ("HOME", "/home/a"), ("EMPTY", "")]);
    let sources = EnvSources {
        modules: &[&module],
        ..nothing(&site)
    };
    let expected = [
        ("EMPTY", "e"),
        ("GONE", "back"),
        ("LD_LIBRARY_PATH", "/opt/udiImage/lib"),
        ("ONLY_A", "a"),
        ("ONLY_P", "p"),
        ("PATH", "/m/first:/bin:/m/bin:/s"),
    ];
    assert_eq!(compose(caller, &sources), pairs(&expected));
}

#[test]
fn callers_variables_that_never_enter() {
    let site = SiteEnv::default();
    let dropped = [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "LD_",
        "RTLD_X",
        "TMPDIR",
        "GCONV_PATH",
        "GLIBC_TUNABLES",
        "LOCPATH",
        "HOSTALIASES",
        "RES_OPTIONS",
        "TZDIR",
        "MALLOC_TRACE",
        "LESSOPEN",
        "LESSCLOSE",
        "BASH_ENV",
        "PROMPT_COMMAND",
        "SSH_ASKPASS",
    ];
    let kept = [
        "LDFLAGS",
        "LD",
        "TMP",
        "TMPDIR_",
        "LESS",
        "MALLOC_CONF",
        "TZ",
        "ld_preload",
        "BASH_ENVX",
    ];
    for name in dropped {
        assert_eq!(
            compose(pairs(&[(name, "x")]), &nothing(&site)),
            [],
            "{name}"
        );
        // Everyone else may set it.
        let given = pairs(&[(name, "x")]);
        for sources in [
            EnvSources {
                image: &given,
                ..nothing(&site)
            },
            EnvSources {
                file: &given,
                ..nothing(&site)
            },
            EnvSources {
                options: &given,
                ..nothing(&site)
            },
        ] {
            assert_eq!(
                compose(pairs(&[(name, "caller")]), &sources),
                given,
                "{name}"
            );
        }
    }
    for name in kept {
        let caller = pairs(&[(name, "x")]);
        assert_eq!(compose(caller.clone(), &nothing(&site)), caller, "{name}");
    }
    let caller = pairs(&[("ENV", "/usr/share/init.sh")]);
    assert_eq!(compose(caller, &nothing(&site)), []);
    let caller = pairs(&[("ENV", "production")]);
    assert_eq!(compose(caller.clone(), &nothing(&site)), caller);
}

#[test]
fn odd_variables() {
    let site = SiteEnv::default();
    let caller = pairs(&[
        ("", "x"),
        ("A=B", "x"),
        ("N\0", "x"),
        ("V", "a\0b"),
        ("A", "1"),
        ("A", "2"),
    ]);
    let image = pairs(&[("I", "1"), ("I", "2"), ("", "x")]);
    let sources = EnvSources {
        image: &image,
        ..nothing(&site)
    };
    assert_eq!(compose(caller, &sources), pairs(&[("A", "1"), ("I", "2")]));
    // The first of two counts even where it is dropped.
    let caller = pairs(&[("ENV", "/x"), ("ENV", "production")]);
    assert_eq!(compose(caller, &nothing(&site)), []);
    let raw = vec![(b"\xff".to_vec(), b"\xfe\n".to_vec())];
    assert_eq!(compose(raw.clone(), &nothing(&site)), raw);
}

#[test]
fn files() {
    let text =
        b"# comment\n\n  \t\nA=1\n  B= 2 \nC=\n\t# another\nD=\"x y\" 'z'\r\nE=a=b#c\nF=\xff";
    let mut expected = pairs(&[
        ("A", "1"),
        ("B", " 2 "),
        ("C", ""),
        ("D", "\"x y\" 'z'"),
        ("E", "a=b#c"),
    ]);
    expected.push((b"F".to_vec(), b"\xff".to_vec()));
    assert_eq!(parse_file(text), Ok(expected));
    assert_eq!(parse_file(b""), Ok(Vec::new()));

    let table: [(&[u8], usize, &str); 6] = [
        (b"A=1\nB\n", 2, "has no '='"),
        (b"export A=1", 1, "has a space"),
        (b"=x", 1, "has no name"),
        (b"A=1\n\n#\nA=\0", 4, "contains a NUL"),
        (b"A=1\n  B = 2", 2, "has a space"),
        (b"SECRET", 1, "has no '='"),
    ];
    for (bytes, line, rule) in table {
        let error = parse_file(bytes).expect_err(rule).to_string();
        assert!(
            error.contains(&format!("line {line} ")) && error.contains(rule),
            "{error}"
        );
        assert!(!error.contains("SECRET"), "{error}");
    }
    assert_eq!(
        parse_file(&vec![b'\n'; FILE_LIMIT + 1]),
        Err(EnvError::FileTooLarge)
    );
    assert!(parse_file(&vec![b'\n'; FILE_LIMIT]).is_ok());
}

#[test]
fn options() {
    let good: [(&[u8], &[u8], &[u8]); 5] = [
        (b"A=b", b"A", b"b"),
        (b"A=", b"A", b""),
        (b"A==b=", b"A", b"=b="),
        (b"A= b\nc ", b"A", b" b\nc "),
        (b"\xff=\xfe", b"\xff", b"\xfe"),
    ];
    for (text, name, value) in good {
        assert_eq!(parse_option(text), Ok((name.to_vec(), value.to_vec())));
    }
    let bad: [(&[u8], &str); 6] = [
        (b"", "variable '' has no '='"),
        (b"A", "variable 'A' has no '='"),
        (b"=b", "variable '' has no name"),
        (b"=", "has no name"),
        (b"A\0=b", "variable 'A\\u{0}' contains a NUL byte"),
        (b"A=b\0", "variable 'A' contains a NUL byte"),
    ];
    for (text, message) in bad {
        let error = parse_option(text).expect_err(message);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.hint(), Some("write NAME=value"));
    }
}

#[test]
fn changes_of_a_configuration() {
    let text = "set = { A = '1' }\nappend = { PATH = '/x' }\nunset = ['B']\n";
    let changes: EnvChanges = toml::from_str(text).unwrap();
    assert_eq!(changes.set, map(&[("A", "1")]));
    assert_eq!(
        (changes.append, changes.unset),
        (map(&[("PATH", "/x")]), vec!["B".to_owned()])
    );
    assert_eq!(
        toml::from_str::<EnvChanges>("").unwrap(),
        EnvChanges::default()
    );
    let bad = [
        ("sett = {}", "unknown field"),
        ("set = { '' = 'x' }", "variable '' has no name"),
        (
            "set = { 'A=B' = 'x' }",
            "variable 'A=B' has '=' in its name",
        ),
        (
            "prepend = { A = \"a\\u0000\" }",
            "variable 'A' contains a NUL byte",
        ),
        ("unset = ['']", "variable '' has no name"),
        ("append = { A = 1 }", "invalid type"),
    ];
    for (text, message) in bad {
        let error = toml::from_str::<EnvChanges>(text)
            .expect_err(text)
            .to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

fn any_pairs() -> impl Strategy<Value = Vec<Pair>> {
    let name = prop_oneof!["[AB]", "LD_[AB]", "TMPDIR", any::<String>()];
    proptest::collection::vec((name, any::<Vec<u8>>()), 0..6)
        .prop_map(|list| list.into_iter().map(|(n, v)| (n.into_bytes(), v)).collect())
}

proptest! {
    #[test]
    fn composed_environments_are_well_formed(
        caller in any_pairs(), image in any_pairs(), options in any_pairs(), clear: bool,
        set in proptest::collection::btree_map("[ABC]", "[a:]{0,3}", 0..3),
        prepend in proptest::collection::btree_map("[ABC]", "[a:]{0,3}", 0..3),
        unset in proptest::collection::vec("[ABC]", 0..2),
    ) {
        let site = rules(EnvChanges { set, prepend, unset, ..EnvChanges::default() });
        let sources = EnvSources { clear, image: &image, options: &options, ..nothing(&site) };
        let env = compose(caller.clone(), &sources);
        prop_assert!(env.is_sorted_by(|a, b| a.0 < b.0));
        for (name, value) in &env {
            prop_assert!(check_pair(name, value).is_ok());
            let of_caller_only = !image.iter().chain(&options).any(|(other, _)| other == name)
                && !site.changes.set.keys().chain(site.changes.prepend.keys()).any(|other| other.as_bytes() == name);
            prop_assert!(!of_caller_only || (!clear && SiteEnv::default().lets_in(name, value)));
        }
        for name in &site.changes.unset {
            prop_assert!(env.iter().all(|(other, _)| other != name.as_bytes()));
        }
        // Composing is deterministic, and again with nothing to add changes nothing.
        prop_assert_eq!(&compose(caller, &sources), &env);
        let none = SiteEnv::default();
        let again = EnvSources { clear: true, image: &env, ..nothing(&none) };
        prop_assert_eq!(compose(Vec::new(), &again), env);
    }

    #[test]
    fn any_bytes_are_judged_without_panic(bytes in any::<Vec<u8>>(), near in "([AB #]{0,2}=?[a\"\r]{0,2}\n?){0,6}") {
        for bytes in [bytes.as_slice(), near.as_bytes()] {
            for (name, value) in parse_file(bytes).into_iter().flatten().chain(parse_option(bytes)) {
                prop_assert!(check_pair(&name, &value).is_ok());
            }
        }
    }
}
