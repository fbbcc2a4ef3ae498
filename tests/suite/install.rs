//! `make install` and the sample files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};
use shifter_core::config::Config;
use shifter_tests::call::Call;
use shifter_tests::world;

use crate::bench::turn;

#[test]
fn install_puts_everything_where_an_administrator_expects_it() -> Result<()> {
    let _turn = turn()?;
    let install = |prefix: &str| {
        let make = [
            "make",
            "--silent",
            "install",
            "DESTDIR=/tmp/dest",
            "SYSCONFDIR=/etc",
        ];
        Call::new(make)
            .arg(format!("PREFIX={prefix}"))
            .cwd(world::checkout())
            .ok()
    };
    install("/apps/shifter")?;
    let expected = [
        ("apps/shifter/bin/shifter", 0o4755),
        ("apps/shifter/bin/shifterimg", 0o755),
        ("apps/shifter/sbin/setupRoot", 0o700),
        ("apps/shifter/sbin/unsetupRoot", 0o700),
        ("apps/shifter/sbin/shifter-config", 0o755),
        ("apps/shifter/lib/shifter/shifter-doctor", 0o755),
        ("apps/shifter/lib/shifter/shifter-identity", 0o700),
        ("apps/shifter/lib/shifter/shifter-ps", 0o755),
        ("apps/shifter/lib/shifter/shifter-ssh-keys", 0o755),
        ("apps/shifter/lib/shifter/udiImage/bin/ssh", 0o755),
        ("apps/shifter/lib/shifter/udiImage/etc/ssh_config", 0o777),
        ("apps/shifter/lib/shifter/udiImage/sbin/shifter-ps", 0o755),
        ("apps/shifter/lib/shifter/udiImage/sbin/sshd", 0o755),
        ("apps/shifter/sbin/startSshd", 0o700),
        ("apps/shifter/lib/shifter/shifter_slurm.so", 0o755),
        ("apps/shifter/lib/shifter/udiImage/bin/shifter", 0o755),
        (
            "apps/shifter/share/bash-completion/completions/shifter",
            0o777,
        ),
        (
            "apps/shifter/share/bash-completion/completions/shifterimg",
            0o644,
        ),
        ("apps/shifter/share/shifter/registries.toml", 0o644),
        ("apps/shifter/share/shifter/shifter.toml", 0o644),
        ("apps/shifter/share/shifter/job_submit.lua", 0o644),
        ("apps/shifter/share/shifter/modules/gpu.toml", 0o644),
        ("apps/shifter/share/shifter/modules/mpich.toml", 0o644),
        ("apps/shifter/share/shifter/modules/slurm.toml", 0o644),
        (
            "apps/shifter/share/shifter/plugstack.conf.d/shifter.conf",
            0o644,
        ),
        ("apps/shifter/share/shifter/sudoers.d/shifter", 0o644),
        ("apps/shifter/sbin/shifter-prologue", 0o755),
        ("apps/shifter/sbin/shifter-epilogue", 0o755),
        ("apps/shifter/sbin/shifter-node-service", 0o755),
        ("apps/shifter/sbin/shifter-node-clean", 0o755),
        ("apps/shifter/bin/shifter-submit-filter", 0o755),
        ("apps/shifter/bin/shiftrun", 0o755),
        ("apps/shifter/lib/shifter/shifter-node", 0o700),
        ("apps/shifter/lib/shifter/torque/prologue", 0o777),
        ("apps/shifter/lib/shifter/torque/prologue.parallel", 0o777),
        (
            "apps/shifter/lib/shifter/torque/cray-shifter-prologue",
            0o777,
        ),
        ("apps/shifter/lib/shifter/torque/udiRoot-prologue", 0o777),
        ("apps/shifter/lib/shifter/torque/epilogue", 0o777),
        ("apps/shifter/lib/shifter/torque/epilogue.parallel", 0o777),
        ("apps/shifter/lib/shifter/torque/epilogue.precancel", 0o777),
        (
            "apps/shifter/lib/shifter/torque/cray-shifter-epilogue",
            0o777,
        ),
        ("apps/shifter/lib/shifter/torque/udiRoot-epilogue", 0o777),
        (
            "apps/shifter/lib/systemd/system/shifter-node-clean.service",
            0o644,
        ),
        ("apps/shifter/share/shifter/torque/execjob.py", 0o644),
        ("apps/shifter/share/shifter/torque/nscd.conf", 0o644),
        ("apps/shifter/share/shifter/torque/roots.conf", 0o644),
        ("etc/shifter/shifter.toml", 0o644),
    ];
    let mut found = BTreeMap::new();
    collect(Path::new("/tmp/dest"), &mut found)?;
    found.retain(|path, _| !path.contains("/share/man/"));
    let expected: BTreeMap<String, u32> = expected
        .into_iter()
        .map(|(path, mode)| (format!("/tmp/dest/{path}"), mode))
        .collect();
    ensure!(found == expected, "{found:?}");

    // The samples name the prefix, and an administrator's configuration is never replaced.
    for path in found.keys().filter(|path| {
        ["/share/", "/etc/", "/systemd/"]
            .iter()
            .any(|part| path.contains(part))
    }) {
        let text = fs::read_to_string(path)?;
        ensure!(
            !text.contains("/usr/bin/shifter") && !text.contains("/usr/lib/shifter"),
            "{path}"
        );
        ensure!(!text.contains("/usr/sbin/shifter"), "{path}");
    }
    fs::write("/tmp/dest/etc/shifter/shifter.toml", "system = 'mine'\n")?;
    install("/apps/shifter")?;
    ensure!(fs::read_to_string("/tmp/dest/etc/shifter/shifter.toml")? == "system = 'mine'\n");
    Call::new([
        "visudo",
        "-cf",
        "/tmp/dest/apps/shifter/share/shifter/sudoers.d/shifter",
    ])
    .ok()?;
    Ok(())
}

fn collect(dir: &Path, found: &mut BTreeMap<String, u32>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            collect(&path, found)?;
        } else {
            found.insert(path.to_string_lossy().into_owned(), meta.mode() & 0o7777);
        }
    }
    Ok(())
}

#[test]
fn install_setuid_program_is_static() -> Result<()> {
    let _turn = turn()?;
    shifter_tests::product::Product::install()?;
    for program in ["bin/shifter", "sbin/setupRoot", "sbin/unsetupRoot"] {
        let path = format!("{}/{program}", shifter_tests::product::PREFIX);
        let dynamic = Call::new(["readelf", "-Wdl", &path]).ok()?;
        ensure!(
            !dynamic.contains("NEEDED") && !dynamic.contains("INTERP"),
            "{program}: {dynamic}"
        );
        ensure!(
            dynamic.contains("GNU_RELRO") && dynamic.contains("PIE"),
            "{program}: {dynamic}"
        );
    }
    Ok(())
}

/// Uncommenting the sample must give the defaults, so that the sample cannot lie.
#[test]
fn install_sample_configuration_states_the_defaults() -> Result<()> {
    let path = world::checkout().join("conf/shifter.toml");
    let sample = fs::read_to_string(&path)?;
    ensure!(
        Config::parse(&sample, &path)? == Config::default(),
        "the sample sets something"
    );
    // A commented line that looks like TOML is a key or a table; what follows an example table
    // belongs to that example.
    let mut live = String::new();
    let mut example = false;
    for line in sample.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let key = bare.split_once(" = ").is_some_and(|(key, _)| {
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        });
        if bare.starts_with('[') {
            example = line.starts_with('#');
        }
        let is_default = !example && (key || bare.starts_with('['));
        // These have no default that could be written.
        let is_optional = [
            "udi_image",
            "cache_dir",
            "textfile",
            "path = \"/gpfs/shifter/state\"",
        ]
        .iter()
        .any(|key| bare.starts_with(key));
        if is_default && !is_optional {
            live += bare;
            live.push('\n');
        }
    }
    for key in [
        "prefix = ",
        "site_pull_command = ",
        "tmpfs_size_mib = ",
        "setup_timeout_secs = ",
    ] {
        ensure!(live.contains(key), "{key} is not in the sample:\n{live}");
    }
    ensure!(Config::parse(&live, &path)? == Config::default(), "{live}");
    Ok(())
}
