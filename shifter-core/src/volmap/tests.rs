//! Tables and properties of volume maps.

use proptest::prelude::*;

use super::*;

const USER: Origin = Origin::User;
const SITE: Origin = Origin::Site;

const MIB: u64 = 1 << 20;

#[test]
fn s33_signature_of_the_c_shifter() {
    let map = "/d:/c;/a:/b;/q:/r;/a:/c:rec:perNodeCache=size=100M:ro";
    let signature = "/a:/b;\
                     /a:/c:ro:rec:perNodeCache=size=104857600,bs=1048576,method=loop,fstype=xfs;\
                     /d:/c;/q:/r";
    let parsed = VolumeMap::parse(map, SITE).unwrap();
    assert_eq!(parsed.signature(), signature);
    assert_eq!(
        VolumeMap::parse(signature, SITE).unwrap().signature(),
        signature
    );
    let order: Vec<&str> = parsed.entries().iter().map(|v| v.from.as_str()).collect();
    assert_eq!(order, ["/d", "/a", "/q", "/a"]);
}

#[test]
fn s33_s34_accepted_maps() {
    let cache = "perNodeCache=size=1048576,bs=1048576,method=loop,fstype=xfs";
    let table: &[(Origin, &str, &str)] = &[
        (USER, "", ""),
        (USER, ";", ""),
        (USER, ";;/a:/b;;;/c:/d;", "/a:/b;/c:/d"),
        (USER, "/a:/b", "/a:/b"),
        (USER, "/a:/b:ro", "/a:/b:ro"),
        (USER, "/a:/b:RO", "/a:/b:ro"),
        (USER, "\"/a:/b\"", "/a:/b"),
        (USER, "\"/a:/b:ro\";/c:/d", "/a:/b:ro;/c:/d"),
        (USER, "\"/a:/b;/c:/d\"", "/a:/b;/c:/d"),
        (USER, "\"/a:/b\";\"/c:/d\"", "/a:/b;/c:/d"),
        (USER, "\"\"", ""),
        (USER, "/c:/d;/a:/b", "/a:/b;/c:/d"),
        (USER, "//a///b/:/x//y/", "/a/b:/x/y"),
        (USER, "/./a/./b/.:/./c", "/a/b:/c"),
        (USER, "/:/host", "/:/host"),
        (USER, "/a:/data/", "/a:/data"),
        (USER, "/a:/var/tmp", "/a:/var/tmp"),
        (USER, "/a:/var/tmp/", "/a:/var/tmp"),
        (USER, "/a:/var//tmp/x", "/a:/var/tmp/x"),
        (USER, "/a:/opt/my", "/a:/opt/my"),
        (USER, "/a:/opt/udiImage2", "/a:/opt/udiImage2"),
        (USER, "/a:/opt/udiimage", "/a:/opt/udiimage"),
        (USER, "/a:/etcetera", "/a:/etcetera"),
        (USER, "/a:/variable", "/a:/variable"),
        (USER, "/a:/process", "/a:/process"),
        (USER, "/a:/devices", "/a:/devices"),
        (USER, "/a:/system", "/a:/system"),
        (USER, "/a:/mnt/etc", "/a:/mnt/etc"),
        (USER, "/a:/tmp", "/a:/tmp"),
        (USER, "/a:/tmp/x", "/a:/tmp/x"),
        (USER, "/a:/usr/local", "/a:/usr/local"),
        (USER, "/a b:/größe/日本", "/a b:/größe/日本"),
        (USER, "/a..b:/c..", "/a..b:/c.."),
        (USER, "/$HOME,x=1:/'*?\\", "/$HOME,x=1:/'*?\\"),
        (USER, "/a:/b;/a:/c", "/a:/b;/a:/c"),
        (USER, "/a:/b/c;/a:/b", "/a:/b;/a:/b/c"),
        (
            USER,
            "/a:/b:perNodeCache=size=1m",
            &format!("/a:/b:{cache}"),
        ),
        (
            USER,
            "/a:/b:PERNODECACHE=SIZE=1M,FS=XFS",
            &format!("/a:/b:{cache}"),
        ),
        (
            USER,
            "/a:/b:perNodeCache=size=1m,bs=1m,method=loop",
            &format!("/a:/b:{cache}"),
        ),
        (
            USER,
            "/a:/b:perNodeCache=fstype=xfs,size=1024k:ro",
            &format!("/a:/b:ro:{cache}"),
        ),
        (
            USER,
            "/a:/b:perNodeCache=size=1,bs=2,fs=ext4",
            "/a:/b:perNodeCache=size=1,bs=2,method=loop,fstype=ext4",
        ),
        (SITE, "/scratch", "/scratch:/scratch"),
        (SITE, "/scratch/;/home", "/home:/home;/scratch:/scratch"),
        (SITE, "/a:/b:private", "/a:/b:private"),
        (SITE, "/a:/b:slave:rec:ro", "/a:/b:ro:rec:slave"),
        (SITE, "/a:/b:Rec:SLAVE", "/a:/b:rec:slave"),
        (
            SITE,
            "/none:/tmp:perNodeCache=size=1M:ro",
            &format!("/none:/tmp:ro:{cache}"),
        ),
        (
            SITE,
            "/var/spool/slurmd",
            "/var/spool/slurmd:/var/spool/slurmd",
        ),
        (SITE, "/x:/etc/opt/cray", "/x:/etc/opt/cray"),
        (SITE, "/x:/opt/udiImage/lib", "/x:/opt/udiImage/lib"),
        (SITE, "/x:/dev/shm", "/x:/dev/shm"),
        (SITE, "/a:/c;/d:/c", "/a:/c;/d:/c"),
    ];
    for (origin, text, signature) in table {
        let map = VolumeMap::parse(text, *origin).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(map.signature(), *signature, "{text}");
        assert_eq!(map.is_empty(), signature.is_empty(), "{text}");
    }
}

#[test]
fn s33_s34_refused_maps() {
    let table: &[(Origin, &str, &str)] = &[
        (USER, "/a", "volume '/a': it names no target"),
        (USER, "/a:ro", "it names no target"),
        (USER, "/a:perNodeCache=size=1m", "it names no target"),
        (SITE, "/a:rec", "it names no target"),
        (USER, "/a:", "target '': it is empty"),
        (SITE, "/a::ro", "target '': it is empty"),
        (USER, ":/b", "source '': it is empty"),
        (USER, "a:/b", "source 'a': it is not absolute"),
        (USER, "./a:/b", "source './a': it is not absolute"),
        (USER, "~/a:/b", "source '~/a': it is not absolute"),
        (USER, "/a:b", "target 'b': it is not absolute"),
        (USER, "/a:a/b", "target 'a/b': it is not absolute"),
        (USER, "/a:/b:/c", "flag '/c' is not known"),
        (USER, "/a:/b:", "flag '' is not known"),
        (USER, "/a:/b::ro", "flag '' is not known"),
        (USER, "/a:/b: ro", "flag ' ro' is not known"),
        (USER, "/a:/b:rw", "flag 'rw' is not known"),
        (USER, "/a:/b:ro,rec", "flag 'ro,rec' is not known"),
        (USER, "/a/../b:/c", "source '/a/../b': it contains '..'"),
        (USER, "/a:/a/../etc", "target '/a/../etc': it contains '..'"),
        (USER, "/a:/..", "it contains '..'"),
        (
            USER,
            "/a\nb:/c",
            "source '/a\\u{a}b': character 3 is '\\n', which is not accepted",
        ),
        (USER, "/a:/b\0", "character 3 is '\\0'"),
        (USER, "/a:/b\u{85}c", "character 3 is '\\u{85}'"),
        (USER, "\"/a:/b", "source '\"/a': character 1 is '\\\"'"),
        (USER, "/a:/b\"", "target '/b\"': character 3 is '\\\"'"),
        (USER, "\"/a\":\"/b\"", "character 1 is '\\\"'"),
        (USER, "\"/a;/b\":/c", "is '\\\"'"),
        (USER, "/a:/", "target '/' is reserved"),
        (USER, "/a://", "target '/' is reserved"),
        (USER, "/a:/.", "target '/' is reserved"),
        (USER, "/a:/etc", "target '/etc' is reserved"),
        (USER, "/a:/etc/", "target '/etc' is reserved"),
        (USER, "/a:/./etc", "target '/etc' is reserved"),
        (
            USER,
            "/a://etc//passwd",
            "target '/etc/passwd' is at or below '/etc/passwd'",
        ),
        (USER, "/a:/opt", "target '/opt' is reserved"),
        (USER, "/a:/opt/", "target '/opt' is reserved"),
        (USER, "/a:/opt/udiImage", "at or below '/opt/udiImage'"),
        (USER, "/a:/opt/udiImage/x", "at or below '/opt/udiImage'"),
        (USER, "/a:/var", "at or below '/var'"),
        (USER, "/a:/var/run", "at or below '/var'"),
        (USER, "/a:/var/tmpfile", "at or below '/var'"),
        (USER, "/a:/proc", "at or below '/proc'"),
        (USER, "/a:/proc/self", "at or below '/proc'"),
        (USER, "/a:/dev", "at or below '/dev'"),
        (USER, "/a:/dev/shm", "at or below '/dev'"),
        (USER, "/a:/sys", "at or below '/sys'"),
        (USER, "/a:/sys/fs/cgroup", "at or below '/sys'"),
        (USER, "/a:/b:rec", "flag 'rec' is reserved for the site"),
        (USER, "/a:/b:SLAVE", "flag 'slave' is reserved for the site"),
        (
            USER,
            "/a:/b:private",
            "flag 'private' is reserved for the site",
        ),
        (USER, "/a:/b:ro:RO", "flag 'ro' is given twice"),
        (SITE, "/a:/proc", "target '/proc' is reserved"),
        (SITE, "/a:/b:rec:rec", "flag 'rec' is given twice"),
        (SITE, "/a:/b:slave:private", "exclude each other"),
        (SITE, "/a:/b:private:rec:slave", "exclude each other"),
        (USER, "/a:/b:ro=1", "flag 'ro' takes no value"),
        (
            SITE,
            "/a:/b:rec=key1=value1,key2=value2",
            "flag 'rec' takes no value",
        ),
        (SITE, "/", "target '/' is reserved"),
        (SITE, "/a:/opt", "target '/opt' is reserved"),
        (SITE, "/a:/etc", "target '/etc' is reserved"),
        (SITE, "/a:/var", "target '/var' is reserved"),
        (SITE, "/a:/etc/passwd", "target '/etc/passwd' is reserved"),
        (SITE, "/a:/etc/./group", "target '/etc/group' is reserved"),
        (
            SITE,
            "/a:/etc/nsswitch.conf",
            "target '/etc/nsswitch.conf' is reserved",
        ),
        (USER, "/a:/b;/c:/b", "two volumes have the target '/b'"),
        (
            USER,
            "/a:/b;/c:/d;/c://b/",
            "two volumes have the target '/b'",
        ),
        (USER, "/x:/y;/a:/etc", "volume '/a:/etc': target"),
    ];
    for (origin, text, message) in table {
        let error = VolumeMap::parse(text, *origin).expect_err(text).to_string();
        assert!(error.contains(message), "{text}: {error}");
        assert!(!error.chars().any(char::is_control), "{text}: {error}");
    }
}

#[test]
fn s42_refused_caches() {
    let table = [
        ("", "perNodeCache needs a size"),
        ("=", "perNodeCache needs a size"),
        ("=bs=1m", "perNodeCache needs a size"),
        ("=size", "size '' of perNodeCache is not a whole number"),
        ("=size=", "size '' of perNodeCache is not a whole number"),
        ("=size=0", "size '0' of perNodeCache is zero"),
        ("=size=0g", "size '0g' of perNodeCache is zero"),
        ("=size=-1", "not a whole number"),
        ("=size=+1", "not a whole number"),
        ("=size=inf", "not a whole number"),
        ("=size=nan", "not a whole number"),
        ("=size=1e30", "not a whole number"),
        ("=size=0x10", "not a whole number"),
        ("=size=1.5g", "not a whole number"),
        ("=size= 1g", "not a whole number"),
        ("=size=1gg", "not a whole number"),
        ("=size=1bb", "not a whole number"),
        ("=size=1٣", "not a whole number"),
        ("=size=8e", "size '8e' of perNodeCache is too large"),
        ("=size=9E", "too large"),
        ("=size=9223372036854775808", "too large"),
        ("=size=99999999999999999999999", "too large"),
        ("=size=1g,bs=0", "bs '0' of perNodeCache is zero"),
        (
            "=size=1g,fs=btrfs",
            "fs 'btrfs' of perNodeCache is neither xfs nor ext4",
        ),
        ("=size=1g,fs=", "neither xfs nor ext4"),
        (
            "=size=1g,method=file",
            "method 'file' of perNodeCache is not loop",
        ),
        ("=size=1g,colour=red", "perNodeCache has no key 'colour'"),
        ("=size=1g,", "perNodeCache has no key ''"),
        ("=size=1g,,bs=1m", "perNodeCache has no key ''"),
        (
            "=size=1g,size=1g",
            "key 'size' of perNodeCache is given twice",
        ),
        (
            "=size=1g,fs=xfs,fstype=xfs",
            "key 'fs' of perNodeCache is given twice",
        ),
        (
            "=size=1g:perNodeCache=size=1g",
            "flag 'perNodeCache' is given twice",
        ),
    ];
    for (flag, message) in table {
        let text = format!("/a:/b:perNodeCache{flag}");
        let error = VolumeMap::parse(&text, USER).expect_err(&text).to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn cache_sizes() {
    let table = [
        ("5", 5),
        ("5b", 5),
        ("5k", 5 << 10),
        ("500KB", 500 << 10),
        ("100M", 100 * MIB),
        ("3g", 3 << 30),
        ("4T", 4 << 40),
        ("1p", 1 << 50),
        ("7e", 7 << 60),
        ("007", 7),
        ("9223372036854775807", i64::MAX as u64),
    ];
    for (text, bytes) in table {
        let map = VolumeMap::parse(&format!("/a:/b:perNodeCache=size={text}"), USER).unwrap();
        let cache = map.entries()[0].flags.per_node_cache.unwrap();
        assert_eq!(
            cache,
            PerNodeCache {
                size: bytes,
                block_size: MIB,
                fs: CacheFs::Xfs
            },
            "{text}"
        );
    }
}

#[test]
fn s43_limits() {
    let many = |count: usize| (0..count).map(|n| format!("/a:/m{n}")).collect::<Vec<_>>();
    assert!(VolumeMap::parse(&many(ENTRY_LIMIT).join(";"), USER).is_ok());
    let error = VolumeMap::parse_many(many(10_000).iter().map(String::as_str), USER).unwrap_err();
    assert_eq!(error, VolumeError::TooManyEntries { limit: ENTRY_LIMIT });

    let caches = |count: usize| {
        let entries = (0..count).map(|n| format!("/a:/m{n}:perNodeCache=size=1g"));
        VolumeMap::parse(&entries.collect::<Vec<_>>().join(";"), USER)
    };
    assert!(caches(CACHE_LIMIT).is_ok());
    assert!(matches!(
        caches(CACHE_LIMIT + 1),
        Err(VolumeError::TooManyCaches { .. })
    ));

    let path = "/x".repeat(2048);
    assert!(VolumeMap::parse(&format!("{path}:{path}"), USER).is_ok());
    let error = VolumeMap::parse(&format!("{path}x:/b"), USER)
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("it is longer than 4096 bytes"), "{error}");
    let named = |name: String| VolumeMap::parse(&format!("/a:/b/{name}/c"), USER);
    assert!(named("x".repeat(255)).is_ok());
    let error = named("x".repeat(256)).unwrap_err().to_string();
    assert!(
        error.ends_with("a name in it is longer than 255 bytes"),
        "{error}"
    );

    let full = ";".repeat(MAP_LIMIT);
    assert!(VolumeMap::parse(&full, USER).is_ok());
    let long = [full.as_str(), ""];
    let error = VolumeMap::parse_many(long, USER).unwrap_err();
    assert_eq!(error, VolumeError::MapTooLong { limit: MAP_LIMIT });
}

#[test]
fn repeated_maps_are_one() {
    let map = VolumeMap::parse_many(["/a:/b;/c:/d", "", "/e:/f:ro"], USER).unwrap();
    assert_eq!(map.signature(), "/a:/b;/c:/d;/e:/f:ro");
    assert!(VolumeMap::parse_many(["/a:/b", "/c:/b/"], USER).is_err());
    assert!(VolumeMap::parse_many([], USER).unwrap().is_empty());
}

#[test]
fn containment_is_by_component() {
    let table = [
        ("/scratch", "/scratch", true),
        ("/scratch", "/scratch/x", true),
        ("/scratch/", "/scratch", true),
        ("/scratch", "//scratch/./x", true),
        ("/", "/anything", true),
        ("/", "/", true),
        ("/scratch", "/scratch2", false),
        ("/scratch/x", "/scratch", false),
        ("/scratch", "/", false),
        ("/scratch", "/scratch/../etc", false),
        ("/scratch/..", "/etc", false),
        ("scratch", "scratch/x", false),
        ("", "/x", false),
        ("/x", "", false),
    ];
    for (ancestor, path, expected) in table {
        assert_eq!(contains(ancestor, path), expected, "{ancestor} {path}");
    }
}

#[test]
fn s35_resolved_targets() {
    for good in ["/data", "/data/a:b", "/var/tmp/x", "/opt/x", "/data;x\"y"] {
        assert_eq!(judge_user_target(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "/",
        "data",
        "/etc",
        "/etc/../data",
        "/var/lib",
        "/proc/1/root",
        "/a\nb",
    ] {
        let error = judge_user_target(bad).expect_err(bad).to_string();
        assert!(error.starts_with("cannot place a volume at '"), "{error}");
    }
}

#[test]
fn hints_name_the_way_out() {
    let table = [
        ("/a", "write '/a:/mnt'"),
        ("/a:b", "FROM:TO"),
        ("/a:/etc", "another target"),
        ("/a:/b:rw", "leave it out"),
        ("/a:/b:slave", "users' flags are"),
        ("/a:/b:perNodeCache", "size=100g"),
        ("/a:/b;/c:/b", "a target of its own"),
    ];
    for (text, hint) in table {
        let found = VolumeMap::parse(text, USER)
            .unwrap_err()
            .hint()
            .unwrap_or_default();
        assert!(found.contains(hint), "{text}: {found}");
    }
}

#[test]
fn what_cannot_be_understood_is_told_from_what_is_not_allowed() {
    let many = "/a:/b;".repeat(ENTRY_LIMIT + 1);
    for (text, is_malformed) in [
        ("/a", true),
        ("a:/b", true),
        ("/a:/../b", true),
        ("/a:/b:x", true),
        ("/a:/b:ro:ro", true),
        ("/a:/b:ro=1", true),
        ("/a:/b:perNodeCache", true),
        ("/a:/b:perNodeCache=size=x", true),
        ("/a:/b:perNodeCache=size=1m,x=1", true),
        ("/a:/b:rec", false),
        ("/a:/etc", false),
        ("/a:/etc/passwd", false),
        ("/a:/b;/c:/b", false),
        (&many, false),
    ] {
        let error = VolumeMap::parse(text, USER).unwrap_err();
        assert_eq!(error.is_malformed(), is_malformed, "{text}: {error}");
    }
}

/// Every map that parses must hold what the module promises.
fn check(map: &VolumeMap, origin: Origin) {
    let signature = map.signature();
    let again = VolumeMap::parse(&signature, origin).expect(&signature);
    assert_eq!(again.signature(), signature);
    for volume in map.entries() {
        for path in [&volume.from, &volume.to] {
            assert_eq!(path::clean(path, &[':', ';', '"']).as_ref(), Ok(path));
            assert!(contains("/", path) && contains(path, path));
        }
        assert_ne!(volume.to, "/");
        if origin == USER {
            assert!(
                !["/etc/passwd", "/etc/group", "/proc", "/dev", "/sys"]
                    .iter()
                    .any(|no| contains(no, &volume.to))
            );
            assert!(!contains("/var", &volume.to) || contains("/var/tmp", &volume.to));
            assert!(!volume.flags.rec && !volume.flags.slave && !volume.flags.private);
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_judged_without_panic(text in "\\PC*", bytes in any::<Vec<u8>>()) {
        for origin in [USER, SITE] {
            for text in [text.as_str(), &String::from_utf8_lossy(&bytes)] {
                if let Ok(map) = VolumeMap::parse(text, origin) {
                    check(&map, origin);
                }
            }
        }
    }

    #[test]
    fn texts_near_the_grammar_hold_the_promises(
        text in "(\"?/[a.]{0,2}(/(etc|var|tmp|\\.\\.?|b)){0,3}[:;]?(:ro|:rec|:slave|:perNodeCache=size=1[kb]?|,fs=xfs)?[;\"]?){0,4}"
    ) {
        for origin in [USER, SITE] {
            if let Ok(map) = VolumeMap::parse(&text, origin) {
                check(&map, origin);
            }
        }
    }

    #[test]
    fn well_formed_entries_survive(
        from in "(/[^/:;\"\\pC.]{1,8}){1,4}",
        to in "/mnt(/[^/:;\"\\pC.]{1,8}){0,4}",
        ro: bool,
        size in proptest::option::of(1..=i64::MAX as u64),
    ) {
        let cache = size.map(|size| PerNodeCache { size, block_size: MIB, fs: CacheFs::Ext4 });
        let flags = VolumeFlags { ro, per_node_cache: cache, ..VolumeFlags::default() };
        let volume = Volume { from, to, flags };
        let map = VolumeMap::parse(&volume.to_string(), USER).unwrap();
        prop_assert_eq!(map.entries(), std::slice::from_ref(&volume));
        check(&map, USER);
    }
}
