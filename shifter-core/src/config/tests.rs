use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/shifter/shifter.toml"))
        .map_err(|e| format!("{e} {}", e.hint().unwrap_or_default()))
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
            ":2: path: 'images' is not an absolute path",
            "path =",
        ),
        (
            "[root]\n\ntmpfs_size_mib = 0",
            ":3: tmpfs_size_mib: ",
            "tmpfs_size_mib = 0",
        ),
        (
            "[root]\nsite_mounts = ['/a:/etc']",
            ":2: site_mounts: ",
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
            ":2: site_pull_command: 'sudo'",
            "",
        ),
        (
            "[store]\nuser_images = 'yes'",
            ":2: unknown variant `yes`",
            "user_images",
        ),
        ("x = \n", ":1: ", "x ="),
        (
            "[root]\nsite_mounts = ['/a:/b:perNodeCache=size=1G']",
            ":2: site_mounts: '/b': a perNodeCache",
            "",
        ),
        (
            "[env]\npass = ['A*B']",
            ":1: variable 'A*B' is neither",
            "[env]",
        ),
        ("[hooks]\npre_mount = ['x']", ":2: pre_mount: 'x'", ""),
        (
            "[kernel]\npreload = ['loop', '../x']",
            ":2: preload: '../x': a kernel module's name",
            "preload",
        ),
        ("[module.none]", ":1: module: 'none'", ""),
        ("[module.a]\ncdi = ['gpu']", ":2: cdi: 'gpu'", ""),
        ("default_modules = ['a']", ":1: default_modules: ", ""),
        (
            "[per_node_cache.'/s']\ndir = '/s/c'\nsize_limit = '1x'",
            ":3: size_limit: '1x' is not",
            "",
        ),
        ("[store]\ncompression = 'zstd:23'", ":2: compression: ", ""),
        ("[store]\ncompression = 'lz4:1'", ":2: compression: ", ""),
        ("[store]\ncompression = 'gzip:'", ":2: compression: ", ""),
        ("[store]\ncompression = 'brotli'", ":2: compression: ", ""),
        ("[store]\nblock_size = '48k'", ":2: block_size: ", ""),
        ("[store]\nblock_size = '2m'", ":2: block_size: ", ""),
        (
            "[module.a]\nconflicts = ['b']",
            ":2: conflicts: module 'a'",
            "",
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
