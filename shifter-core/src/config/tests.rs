//! Whole configurations: what is accepted, what is refused, and in which words.

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/shifter/shifter.toml"))
        .map_err(|e| format!("{e} {}", e.hint().unwrap_or_default()))
}

#[test]
fn autoshift_is_for_the_images_that_the_site_lists() {
    let permits = |rule: &str, reference: &str| {
        let text = format!("[slurm]\nautoshift_list = ['docker:lab/*', 'docker:x:1']\n{rule}");
        let config = Config::parse(&text, Path::new("/x")).unwrap();
        config.slurm.permits_autoshift(reference)
    };
    assert!(permits("", "docker:any:1") && !permits("autoshift_images = 'off'", "docker:x:1"));
    let listed = |reference| permits("autoshift_images = 'listed'", reference);
    assert!(listed("docker:lab/a:1") && listed("docker:x:1"));
    assert!(!listed("docker:x:12") && !listed("docker:labs:1"));
}

#[test]
fn empty_file_is_the_default() {
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn errors_name_line_key_and_text() {
    let table = [
        (
            "system = 'x'\nsistem = 'y'\n",
            ":2: unknown field `sistem`",
            "sistem = 'y'",
        ),
        (
            "[store]\npath = 'images'",
            ":2: store.path: 'images' is not an absolute path",
            "path =",
        ),
        (
            "[root]\n\ntmpfs_size_mib = 0",
            ":3: root.tmpfs_size_mib: ",
            "tmpfs_size_mib = 0",
        ),
        (
            "[root]\nsite_mounts = ['/a:/etc']",
            ":2: root.site_mounts: ",
            "site_mounts",
        ),
        (
            "default_image_type = 'rkt'",
            ":1: default_image_type: 'rkt'",
            "",
        ),
        ("image_types = ['docker']", ":1: image_types: 'docker'", ""),
        (
            "[store]\nsite_pull_command = ['sudo']",
            ":2: store.site_pull_command: 'sudo'",
            "",
        ),
        (
            "[store]\nuser_images = 'yes'",
            ":2: unknown variant `yes`",
            "user_images",
        ),
        ("x = \n", ":1: ", "x ="),
        (
            "[shared_state]\npath = 'state'",
            ":2: shared_state.path: 'state' is not an absolute path",
            "path =",
        ),
        (
            "[shared_state]\nmax_age_secs = 59",
            ":2: shared_state.max_age_secs: ",
            "",
        ),
        (
            "[shared_state]\nwait_secs = 0",
            ":2: shared_state.wait_secs: ",
            "",
        ),
        (
            "[shared_state]\nanswer_timeout_secs = 61",
            ":2: shared_state.answer_timeout_secs: ",
            "",
        ),
        (
            "[root]\nsite_mounts = ['/a:/b:perNodeCache=size=1G']",
            ":2: root.site_mounts: '/b': a perNodeCache",
            "",
        ),
        (
            "[env]\npass = ['A*B']",
            ":1: variable 'A*B' is neither",
            "[env]",
        ),
        ("[hooks]\npre_mount = ['x']", ":2: hooks.pre_mount: 'x'", ""),
        (
            "[kernel]\npreload = ['loop', '../x']",
            ":2: kernel.preload: '../x': a kernel module's name",
            "preload",
        ),
        ("[module.none]", ":1: module.none: 'none'", ""),
        ("[module.a]\ncdi = ['gpu']", ":2: module.a.cdi: 'gpu'", ""),
        ("default_modules = ['a']", ":1: default_modules: ", ""),
        (
            "default_modules = ['a']\n[module.a]\nenabled = false",
            ":1: default_modules: module 'a' is not enabled",
            "",
        ),
        (
            "default_modules = ['a', 'b']\n[module.a]\n[module.b]\nconflicts = ['a']",
            ":1: default_modules: module 'b' cannot be used together with 'a'",
            "",
        ),
        (
            "[slurm]\nsetup_timeout_secs = 0",
            ":2: slurm.setup_timeout_secs: without any time",
            "",
        ),
        (
            "[per_node_cache.'/s']\ndir = '/s/c'\nsize_limit = '1x'",
            ":3: per_node_cache./s.size_limit: '1x' is not",
            "",
        ),
        (
            "[store]\ncompression = 'zstd:23'",
            ":2: store.compression: ",
            "",
        ),
        (
            "[store]\ncompression = 'lz4:1'",
            ":2: store.compression: ",
            "",
        ),
        (
            "[store]\ncompression = 'gzip:'",
            ":2: store.compression: ",
            "",
        ),
        (
            "[store]\ncompression = 'brotli'",
            ":2: store.compression: ",
            "",
        ),
        (
            "[store]\nformat = 'erofs'\ncompression = 'gzip'",
            ":3: store.compression: 'gzip': erofs images",
            "",
        ),
        ("[store]\nblock_size = '48k'", ":2: store.block_size: ", ""),
        ("[store]\nblock_size = '2m'", ":2: store.block_size: ", ""),
        (
            "[module.a]\nconflicts = ['b']",
            ":2: module.a.conflicts: module 'a'",
            "",
        ),
        // A key of this name in another table is not meant.
        (
            "[root]\nsite_mounts = ['/a']\n[module.a]\nsite_mounts = ['/b']\n\
             [module.'b'.env]\nset = {}\n[module.\"b\"]\n  site_mounts = ['/c:/etc']",
            ":8: module.b.site_mounts: ",
            "'/c:/etc'",
        ),
        (
            "[module.a]\nuser_hook = ['/x']\n[module]\nb.user_hook = ['y']",
            ":4: module.b.user_hook: 'y'",
            "b.user_hook",
        ),
        (
            "[module]\na = { user_hook = ['/x'] }\nb = { user_hook = ['y'] }",
            ":3: module.b.user_hook: 'y'",
            "b = {",
        ),
        (
            "[per_node_cache.'/s.1']\ndir = '/s/c'\n[per_node_cache.'/s.2']\n\
             dir = 'c'\n[store.trees]\nx = '/dir'",
            ":4: per_node_cache./s.2.dir: ",
            "dir = 'c'",
        ),
        (
            "[store]\ntrees = { x = 'y' }",
            ":2: store.trees.x: 'y'",
            "trees = {",
        ),
    ];
    for (text, expect, line) in table {
        let error = parse(text).unwrap_err();
        assert!(
            error.contains(expect) && error.contains(line),
            "{text}: {error}"
        );
    }
}
