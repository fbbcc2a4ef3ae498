//! Tables and properties of image metadata.

use proptest::prelude::*;

use super::*;

fn strings(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|s| s.as_bytes().to_vec()).collect()
}

fn pair(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.into(), value.into())
}

fn sample() -> ImageMeta {
    ImageMeta {
        format: "squashfs".into(),
        entry: Some(strings(&["/bin/sh", "-c", "it's \"x\"\n"])),
        cmd: Some(Vec::new()),
        workdir: Some(b"/work dir".to_vec()),
        env: vec![
            pair("PATH", "/usr/bin:/bin"),
            pair("EMPTY", ""),
            pair("A", " b=c: d "),
        ],
        volumes: strings(&["/data", "/x y"]),
        user: Some(b"nobody:nogroup".to_vec()),
        user_acl: vec![1000, 0],
        group_acl: vec![100],
    }
}

#[test]
fn writes_what_the_c_shifter_reads() {
    let text = "FORMAT: squashfs\n\
                USERACL: 1000,0\n\
                GROUPACL: 100\n\
                ENTRY: [\"/bin/sh\", \"-c\", \"it's \\\"x\\\"\\n\"]\n\
                CMD: []\n\
                WORKDIR: /work dir\n\
                ENV: PATH=/usr/bin:/bin\n\
                ENV: EMPTY=\n\
                ENV: A= b=c: d \n\
                VOLUME: /data\n\
                VOLUME: /x y\n\
                USER: nobody:nogroup\n";
    let bytes = sample().to_bytes().unwrap();
    assert_eq!(String::from_utf8(bytes.clone()).unwrap(), text);
    assert_eq!(ImageMeta::parse(&bytes).unwrap(), sample());
}

#[test]
fn reads_what_gateways_wrote() {
    let text = b"FORMAT: squashfs\n\
                 ENTRY: [u'/bin/sh', u'-c', u'caf\\xe9 \\u65e5']\n\
                 CMD: ['a b', \"it's\", 'x\\\\y\\n']\n\
                 WORKDIR: None\n\
                 USERACL: 1000, 1001\n\
                 GROUPACL: \n\
                 ENV: A=b\n\
                 ENV: NO_VALUE\n\
                 ENV: =x\n\
                 ENV: None\n\
                 ENV: RAW=\xff\xfe\n\
                 LABELS: {'a': 'b'}\n\
                 a line without a key\n\
                 USER: {meta['user']}\n\
                 \n";
    let meta = ImageMeta::parse(text).unwrap();
    assert_eq!(meta.entry, Some(strings(&["/bin/sh", "-c", "café 日"])));
    assert_eq!(meta.cmd, Some(strings(&["a b", "it's", "x\\y\n"])));
    assert_eq!(
        (meta.workdir, meta.user_acl, meta.group_acl),
        (None, vec![1000, 1001], vec![])
    );
    assert_eq!(
        meta.env,
        [pair("A", "b"), (b"RAW".to_vec(), b"\xff\xfe".to_vec())]
    );

    let meta = ImageMeta::parse(b"FORMAT:ext4\nENTRY: /bin/my app\nCMD: None").unwrap();
    assert_eq!((meta.format.as_str(), meta.cmd), ("ext4", None));
    assert_eq!(meta.entry, Some(strings(&["/bin/my app"])));
}

#[test]
fn lists_of_arguments() {
    let good: &[(&str, &[&str])] = &[
        ("[]", &[]),
        (" [ ] ", &[]),
        ("[\"\"]", &[""]),
        ("[\"a\",\"b\"]", &["a", "b"]),
        ("[ 'a' , u\"b\" ]", &["a", "b"]),
        ("[b'a']", &["a"]),
        (
            "[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"]",
            &["\"\\/\u{8}\u{c}\n\r\té"],
        ),
        ("[\"\\ud83d\\ude00\"]", &["😀"]),
        ("['\\U0001f600\\'\\a\\v\\x41']", &["😀'\u{7}\u{b}A"]),
        ("[\"a, 'b'] \"]", &["a, 'b'] "]),
    ];
    for (text, expected) in good {
        assert_eq!(
            list::parse(text.as_bytes()),
            Some(strings(expected)),
            "{text}"
        );
    }
    let bad = [
        "",
        "[",
        "]",
        "[\"a\"",
        "[\"a",
        "[\"a\",]",
        "[,\"a\"]",
        "[\"a\" \"b\"]",
        "[1]",
        "[null]",
        "[\"a\"]x",
        "[[\"a\"]]",
        "[\"\\q\"]",
        "[\"\\u12\"]",
        "[\"\\ud83d\"]",
        "[\"\\ud83d\\n\"]",
        "[\"\\udc00\"]",
        "['\\U00110000']",
        "[\"\\u0000\"]",
        "['\\x00']",
        "[uu'a']",
        "{\"a\":1}",
        "[\"\\ud83d\\u0041\"]",
        "['\\Uffffffff']",
    ];
    for text in bad {
        assert_eq!(list::parse(text.as_bytes()), None, "{text}");
    }
    // A byte that is not UTF-8, as Python names it and as it is.
    assert_eq!(
        list::parse(b"['\\udcff', \"\xff\"]"),
        Some(vec![vec![0xff], vec![0xff]])
    );
}

#[test]
fn refused() {
    let table: &[(&[u8], &str)] = &[
        (b"", "has no FORMAT"),
        (b"ENV: A=b\n", "has no FORMAT"),
        (b" FORMAT: squashfs\n", "has no FORMAT"),
        (b"FORMAT: ../x\n", "format '../x' is not"),
        (b"FORMAT: \n", "format '' is not"),
        (b"FORMAT: squashfs \n", "format 'squashfs ' is not"),
        (b"FORMAT: \xff\n", "is not 1 to 16"),
        (
            b"FORMAT: squashfs\nFORMAT: xfs\n",
            "line 2 of the image's metadata is a second FORMAT",
        ),
        (b"FORMAT: a\nUSERACL: 1\nENV: A=b\nUSERACL: 2\n", "line 4"),
        (b"FORMAT: a\nGROUPACL: 1\nGROUPACL: \n", "a second GROUPACL"),
        (
            b"FORMAT: a\nUSERACL: 1,x\n",
            "USERACL '1,x' in the image's metadata is not a list",
        ),
        (b"FORMAT: a\nUSERACL: 1,,2\n", "not a list of numbers"),
        (b"FORMAT: a\nUSERACL: -1\n", "not a list of numbers"),
        (b"FORMAT: a\nUSERACL: +1\n", "not a list of numbers"),
        (b"FORMAT: a\nUSERACL: None\n", "not a list of numbers"),
        (b"FORMAT: a\nUSERACL: [1]\n", "not a list of numbers"),
        (
            b"FORMAT: a\nGROUPACL: 4294967295\n",
            "not a list of numbers",
        ),
        (
            b"FORMAT: a\nGROUPACL: 4294967296\n",
            "not a list of numbers",
        ),
        (b"FORMAT: a\nUSERACL: \n", "access lists are empty"),
        (
            b"FORMAT: a\nUSERACL:\nGROUPACL: \n",
            "access lists are empty",
        ),
        (
            b"FORMAT: a\nENV: A=\0\n",
            "line 2 of the image's metadata contains a NUL",
        ),
        (
            b"FORMAT: a\nENTRY: [oops\n",
            "ENTRY '[oops' in the image's metadata is not a list",
        ),
        (b"FORMAT: a\nCMD: [\"a\", 1]\n", "CMD"),
    ];
    for (bytes, message) in table {
        let error = ImageMeta::parse(bytes)
            .expect_err(&sanitize::bytes(bytes))
            .to_string();
        assert!(
            error.contains(message),
            "{}: {error}",
            sanitize::bytes(bytes)
        );
    }
}

#[test]
fn no_value_forges_a_line() {
    let forged = b"x\nUSERACL: 1".to_vec();
    let unwritable: [fn(&mut ImageMeta, Vec<u8>); 8] = [
        |meta, value| meta.workdir = Some(value),
        |meta, value| meta.user = Some(value),
        |meta, value| meta.volumes.push(value),
        |meta, value| meta.env.push((b"A".to_vec(), value)),
        |meta, value| meta.env.push((value, b"x".to_vec())),
        |meta, _| meta.env.push((Vec::new(), b"x".to_vec())),
        |meta, _| meta.env.push((b"A=B".to_vec(), b"x".to_vec())),
        |meta, _| meta.cmd = Some(vec![b"a\0b".to_vec()]),
    ];
    for (index, change) in unwritable.iter().enumerate() {
        for value in [forged.clone(), b"a\0b".to_vec()] {
            let mut meta = sample();
            change(&mut meta, value);
            assert!(
                matches!(meta.to_bytes(), Err(MetaError::Unwritable { .. })),
                "{index}"
            );
        }
    }
    let mut meta = sample();
    meta.entry = Some(vec![forged.clone()]);
    assert_eq!(ImageMeta::parse(&meta.to_bytes().unwrap()).unwrap(), meta);
    meta.format = "a\nUSERACL: 1".into();
    assert!(matches!(meta.to_bytes(), Err(MetaError::Format(_))));
    let meta = ImageMeta {
        user_acl: vec![u32::MAX],
        ..sample()
    };
    assert!(matches!(meta.to_bytes(), Err(MetaError::Acl { .. })));
}

#[test]
fn missing_values_are_not_written() {
    let none = || Some(b"None".to_vec());
    let (workdir, user, volumes) = (none(), Some(Vec::new()), vec![Vec::new()]);
    let meta = ImageMeta {
        format: "a".into(),
        workdir,
        user,
        volumes,
        ..ImageMeta::default()
    };
    assert_eq!(meta.to_bytes().unwrap(), b"FORMAT: a\n");
}

#[test]
fn unwritable_variables_can_be_removed() {
    let mut meta = sample();
    meta.env.insert(0, pair("MULTI", "a\nb"));
    meta.env.push(pair("NUL\0", "a"));
    assert_eq!(
        meta.remove_unwritable(),
        [b"MULTI".to_vec(), b"NUL\0".to_vec()]
    );
    assert_eq!(meta, sample());
}

#[test]
fn limits() {
    let line = "ENV: A=b\n";
    let lines = |count: usize| format!("FORMAT: a\n{}", line.repeat(count)).into_bytes();
    assert!(ImageMeta::parse(&lines(LINE_LIMIT - 2)).is_ok());
    assert_eq!(
        ImageMeta::parse(&lines(LINE_LIMIT - 1)),
        Err(MetaError::TooManyLines)
    );
    let env = |count: usize| ImageMeta {
        env: vec![pair("A", "b"); count],
        ..sample()
    };
    assert_eq!(env(LINE_LIMIT).to_bytes(), Err(MetaError::TooManyLines));

    let mut large = ImageMeta {
        workdir: Some(vec![b'x'; SIZE_LIMIT]),
        ..sample()
    };
    assert_eq!(large.to_bytes(), Err(MetaError::TooLarge));
    large.workdir = Some(vec![b'x'; SIZE_LIMIT / 2]);
    assert_eq!(ImageMeta::parse(&large.to_bytes().unwrap()).unwrap(), large);
    assert_eq!(
        ImageMeta::parse(&vec![b'\n'; SIZE_LIMIT + 1]),
        Err(MetaError::TooLarge)
    );
}

#[test]
fn access() {
    let meta = |users: &[u32], groups: &[u32]| ImageMeta {
        user_acl: users.to_vec(),
        group_acl: groups.to_vec(),
        ..sample()
    };
    let table = [
        (meta(&[], &[]), 1000, &[100][..], None, true),
        (meta(&[1000], &[]), 1000, &[], None, true),
        (meta(&[1000], &[]), 1001, &[1000], None, false),
        (meta(&[1000], &[]), 0, &[0], None, false),
        (meta(&[], &[100]), 1000, &[7, 100], None, true),
        (meta(&[], &[100]), 100, &[7], None, false),
        (meta(&[], &[100]), 1000, &[], None, false),
        (meta(&[1], &[2]), 1000, &[3], Some(1000), true),
        (meta(&[1], &[2]), 1000, &[3], Some(1001), false),
    ];
    for (meta, uid, gids, owner, expected) in table {
        assert_eq!(
            meta.permits(uid, gids, owner),
            expected,
            "{uid} {gids:?} {owner:?}"
        );
    }
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(
        prop_oneof![Just(b'\n'), Just(b' '), Just(b'='), any::<u8>()],
        0..12,
    )
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_panic(
        bytes in any::<Vec<u8>>(),
        near in "((FORMAT|ENV|ENTRY|CMD|USERACL|GROUPACL|WORKDIR|USER|VOLUME): ?[a1,='\"\\[\\] \\\\u]{0,9}\n){0,6}",
    ) {
        let near = format!("FORMAT: a\n{near}");
        for bytes in [bytes.as_slice(), near.as_bytes()] {
            if let Ok(meta) = ImageMeta::parse(bytes) {
                let written = meta.to_bytes().unwrap();
                prop_assert_eq!(ImageMeta::parse(&written).unwrap(), meta);
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        entry in proptest::option::of(proptest::collection::vec(value(), 0..4)),
        workdir in proptest::option::of(value()),
        env in proptest::collection::vec((value(), value()), 0..6),
        volumes in proptest::collection::vec(value(), 0..3),
        user_acl in proptest::collection::vec(any::<u32>(), 0..4),
    ) {
        let format = "xfs".to_owned();
        let workdir = workdir.filter(|value| !value.is_empty());
        let volumes = volumes.into_iter().filter(|value| !value.is_empty()).collect();
        let (cmd, user, group_acl) = (None, None, Vec::new());
        let mut meta =
            ImageMeta { format, entry, cmd, workdir, env, volumes, user, user_acl, group_acl };
        for _ in 0..2 {
            if let Ok(bytes) = meta.to_bytes() {
                prop_assert_eq!(&ImageMeta::parse(&bytes).unwrap(), &meta);
                prop_assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(),
                    1 + usize::from(meta.entry.is_some()) + usize::from(meta.workdir.is_some())
                    + meta.env.len() + meta.volumes.len() + usize::from(!meta.user_acl.is_empty()));
            }
            meta.remove_unwritable();
        }
    }
}
