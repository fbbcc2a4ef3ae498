//! Configurations of C Shifters, whole ones and arbitrary ones.

use std::collections::BTreeSet;

use proptest::prelude::*;
use shifter_core::volmap::CacheFs;

use super::*;

const COMPLETE: &str = include_str!("../../testdata/udiRoot.conf");

fn import_text(text: &str) -> Imported {
    import(text.as_bytes(), "udiRoot.conf", &Options::default())
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn config(imported: &Imported) -> Config {
    Config::parse(&imported.toml, Path::new("x")).unwrap()
}

/// Lists the keys that remarks are about, each as often as there are remarks.
fn remarked(imported: &Imported) -> Vec<&str> {
    imported.remarks.iter().map(|r| r.key.as_str()).collect()
}

#[test]
fn a_complete_file_is_carried_over() {
    let imported = import_text(COMPLETE);
    let config = config(&imported);
    assert_eq!(config.system, "edison");
    assert_eq!(config.store.path, Path::new("/images"));
    assert_eq!(
        config.root.site_mounts,
        [
            "/home:/home:slave",
            "/scratch:/scratch:rec:private",
            "/var/opt/cray/alps:/var/opt/cray/alps:rec:slave",
            "/global/u1:/global/u1:slave",
        ]
    );
    assert_eq!(
        config.root.udi_image.as_deref(),
        Some(Path::new("/opt/shifter/udiImage"))
    );
    let env = &config.env.changes;
    assert_eq!(env.set["SITE"], "edison");
    assert_eq!(env.append["PATH"], "/opt/udiImage/bin:/opt/site/bin");
    assert_eq!(env.prepend["LD_LIBRARY_PATH"], "/b:/a");
    assert_eq!(env.unset, ["MODULEPATH", "LOADEDMODULES"]);
    assert_eq!(config.hooks.pre_mount, ["/etc/shifter/premount.sh"]);
    assert_eq!(config.hooks.post_mount, ["/etc/shifter/postmount.sh"]);
    assert_eq!(config.default_modules, ["mpich"]);
    let mpich = &config.module["mpich"];
    assert!(mpich.enabled && !config.module["openmpi"].enabled);
    assert_eq!(mpich.conflicts, ["openmpi"]);
    assert_eq!(mpich.site_mounts, ["/var/opt/cray:/var/opt/cray:slave"]);
    assert_eq!(
        mpich.copy_path.as_deref(),
        Some(Path::new("/usr/lib/shifter/modules/mpich"))
    );
    assert_eq!(mpich.root_hook, ["/etc/shifter/mpich.sh"]);
    assert_eq!(mpich.user_hook, ["/opt/udiImage/modules/mpich/bin/init.sh"]);
    assert_eq!(mpich.env.set["SHIFTER_MODULE_MPICH"], "1");
    assert_eq!(mpich.env.unset, ["MPICH_DIR"]);
    let cache = &config.per_node_cache["/"];
    assert_eq!(cache.dir, Path::new("/local/shifter"));
    assert_eq!(cache.size_limit_bytes(), 3 << 39);
    assert_eq!(cache.fs_types, [CacheFs::Xfs]);
    assert_eq!(
        config.kernel.preload,
        ["loop", "squashfs", "overlay", "xfs"]
    );
    assert!(
        imported.toml.contains("# imagePath, line 4\npath = "),
        "{}",
        imported.toml
    );
}

#[test]
fn what_is_not_carried_over_is_reported() {
    let imported = import_text(COMPLETE);
    let found: BTreeSet<&str> = remarked(&imported).into_iter().collect();
    let silent = [
        // Carried over as they are, or the same as what is done anyway.
        "rootfsType",
        "system",
        "defaultImageType",
        "siteEnvAppend",
        "siteEnvPrepend",
        "siteEnvUnset",
        "mountPropagationStyle",
        "autoLoadKernelModule",
        "kmodBasePath",
        // Empty in the file.
        "usersToImport",
        "nodeContextPrefix",
    ];
    for name in keys::all() {
        assert_eq!(found.contains(name), !silent.contains(&name), "{name}");
    }
    let said = |key: &str, words: &str| {
        let mut remarks = imported.remarks.iter();
        remarks.any(|remark| remark.key == key && remark.text.contains(words))
    };
    for (key, words) in [
        ("siteFs", "volume '/etc:/etc"),
        ("siteEnv", "'NOVALUE' is not NAME=value"),
        ("defaultModules", "no module 'gone'"),
        ("perNodeCacheAllowedFsType", "'btrfs'"),
        ("module_openmpi_conflict", "no module 'elsewhere'"),
    ] {
        assert!(said(key, words), "{key}: {:#?}", imported.remarks);
    }
    let lines: Vec<usize> = imported.remarks.iter().map(|r| r.line).collect();
    assert!(lines.is_sorted());
}

#[test]
fn default_modules_that_nobody_could_use_are_left_out() {
    let imported = import_text(
        "module_a_enabled = 0\nmodule_b_conflict = c\nmodule_c_siteEnv = A=1\n\
         module_d_conflict = d\ndefaultModules = a,b,c,d\n",
    );
    assert_eq!(config(&imported).default_modules, ["b"]);
    let said = remarked(&imported).join("\n");
    for words in [
        "module 'a' is not enabled",
        "module 'c' cannot be used together with 'b'",
        "module 'd' cannot be used together with 'd'",
    ] {
        let mut texts = imported.remarks.iter().map(|remark| &remark.text);
        assert!(texts.any(|text| text.contains(words)), "{words}: {said}");
    }
}

#[test]
fn the_fixture_has_every_key() {
    let text: Vec<&str> = COMPLETE.lines().collect();
    for name in keys::all() {
        let is_set = |line: &&str| line.split('=').next().map(str::trim) == Some(name);
        assert!(text.iter().any(is_set), "{name}");
    }
}

#[test]
fn single_settings() {
    let carried = [
        ("defaultImageType=vfs", "image_types = [\"vfs\"]\n"),
        ("defaultImageType=custom", "default_image_type = \"custom\""),
        ("siteFs=\"/a:/b:ro\"", "site_mounts = [\"/a:/b:ro\"]"),
        ("module_a.b_siteEnv=X=\"", "[module.\"a.b\".env]"),
        ("siteEnv=X=a=b", "set = { X = \"a=b\" }"),
        ("siteEnv=A=1\nsiteEnv=A=2", "set = { A = \"2\" }"),
        (
            "module_a_siteEnv=A=1\nmodule_a_siteEnv=B=2",
            "set = { B = \"2\" }",
        ),
        ("system=a\nsystem=b", "# system, line 2\nsystem = \"b\""),
        ("kmodBasePath=/opt/kmod", "kmod_base_path = \"/opt/kmod\""),
    ];
    for (text, expect) in carried {
        let toml = import_text(text).toml;
        assert!(toml.contains(expect), "{text}: {toml}");
    }
    let reported = [
        ("system=a\nsystem=b", "line 2 sets it again"),
        (
            "module_a_siteEnv=A=1\nmodule_a_siteEnv=B=2",
            "line 2 sets it again",
        ),
        ("imagePath=images", "'images' is not an absolute path"),
        ("sitePreMountHook=x.sh", "'x.sh' is not an absolute path"),
        ("defaultImageType=a b", "a type is lower-case letters"),
        ("module_none_enabled=1", "rename it"),
        ("module_ä_siteFs=/x", "rename it"),
        (
            "siteFs=/a:/b:perNodeCache=size=1G",
            "a perNodeCache belongs to",
        ),
        ("siteFs=home", "'home'"),
        ("siteFs=/a@b:/c", "took '/a@b:/c' for '/ab:/c'"),
        ("siteFs=/a:/b:wat", "flag 'wat' is not known"),
        ("perNodeCacheSizeLimit=1T", "no perNodeCachePath"),
        (
            "perNodeCachePath=/x\nperNodeCacheSizeLimit=much",
            "it is no size",
        ),
        ("mountPropagationStyle=shared", "neither"),
        ("rootfsType=ramfs", "always a tmpfs"),
        ("just words", "it is no setting"),
    ];
    for (text, expect) in reported {
        let imported = import_text(text);
        assert!(
            imported.remarks.iter().any(|r| r.text.contains(expect)),
            "{text}: {:#?}",
            imported.remarks
        );
    }
    for text in [
        "",
        "\n",
        "system=",
        "#",
        "siteFs= ; ;",
        "allowLocalChroot=0",
    ] {
        let imported = import_text(text);
        assert_eq!(remarked(&imported), [""; 0], "{text}");
        assert_eq!(config(&imported), Config::default(), "{text}");
    }
}

#[test]
fn unknown_keys_are_refused_unless_told_otherwise() {
    let text = "system=a\nsistem=b\n";
    let error = import(text.as_bytes(), "/etc/udiRoot.conf", &Options::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/etc/udiRoot.conf:2: unknown key 'sistem'"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("--ignore-unknown"))
    );
    let options = Options {
        ignores_unknown: true,
        prefix: Some("/opt/shifter".into()),
    };
    let imported = import(text.as_bytes(), "x", &options).unwrap();
    assert_eq!(remarked(&imported), ["sistem"]);
    assert_eq!(config(&imported).prefix, Path::new("/opt/shifter"));
}

#[test]
fn windows_lines_and_long_lines() {
    let windows = COMPLETE.replace('\n', "\r\n");
    let (one, other) = (import_text(COMPLETE), import_text(&windows));
    assert_eq!(one, other);
    assert_eq!(import_text(COMPLETE.trim_end()).toml, one.toml);

    let long = format!("siteFs={}", "/a".repeat(1 << 19));
    let imported = import_text(&long);
    assert_eq!(remarked(&imported), ["siteFs"]);
    assert!(imported.remarks[0].text.chars().count() < 600);
    let long = format!("siteEnv=A={}", "x".repeat(1 << 20));
    let error = import(long.as_bytes(), "x", &Options::default()).unwrap_err();
    assert_eq!(error, ImportError::TooLarge);
    let many = "A=b ".repeat(1 << 14);
    let imported = import_text(&format!("siteEnvPrepend={many}"));
    assert_eq!(
        config(&imported).env.changes.prepend["A"].len(),
        (2 << 14) - 1
    );
}

/// Text made of what a `udiRoot.conf` is made of, and of what it should not be made of.
fn likely_text() -> impl Strategy<Value = String> {
    let names: Vec<&str> = keys::all()
        .chain([
            "module_a_siteFs",
            "module_a_siteEnv",
            "module_b.c_conflict",
            "module_none_copyPath",
            "module_a_copyPath",
            "module_a_userhook",
            "x",
        ])
        .collect();
    let value = prop_oneof![
        "[ -~]{0,20}",
        "(/[a-z]{1,3}(:/[a-z]{1,3}(:(ro|rec|slave|private|perNodeCache=size=1g))?)?[ ;]?){0,4}",
        "([A-Z]{0,2}=?[^\\x00]{0,4} ){0,3}",
        "[0-9.]{0,4}[a-z]{0,2}",
        "[ab,. none]{0,8}",
        ".*",
    ];
    let line = (prop::sample::select(names), value, "( \\\\)?\r?\n");
    let lines = prop::collection::vec(line, 0..12);
    lines.prop_map(|lines| {
        let lines = lines
            .into_iter()
            .map(|(name, value, end)| format!("{name}={value}{end}"));
        lines.collect()
    })
}

fn is_sound(bytes: &[u8], ignores_unknown: bool) {
    let options = Options {
        ignores_unknown,
        prefix: None,
    };
    match import(bytes, "x", &options) {
        Ok(imported) => {
            Config::parse(&imported.toml, Path::new("x")).unwrap();
            for remark in &imported.remarks {
                assert!(!format!("{}{}", remark.key, remark.text).contains(char::is_control));
            }
        }
        Err(ImportError::Unverified(why)) => panic!("{why}"),
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        is_sound(&bytes, true);
    }

    #[test]
    fn whatever_is_accepted_is_a_configuration(text in likely_text(), ignores_unknown: bool) {
        is_sound(text.as_bytes(), ignores_unknown);
    }
}
