//! The shared state as root uses it on storage that belongs to a service user.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use shared_state::{Answer, Contents, Error, Key, SharedState, Source};
use shifter_core::config;
use shifter_core::ids::JobId;
use shifter_core::trusted::TrustError;

/// The service user of the tests' world.
const OWNER: u32 = 2900;

fn key() -> Key {
    Key {
        cluster: JobId::parse("mini").unwrap(),
        job: JobId::parse("3[7].server").unwrap(),
        restart: 2,
        uid: 2001,
        gid: 2100,
    }
}

/// Makes the site's directory, where nobody but root could have put it.
fn site(name: &str) -> config::SharedState {
    // On the machine itself it would stay.
    let world = std::env::var_os("SHIFTER_WORLD");
    assert!(world.is_some(), "to be run in tests/world.sh");
    let path = Path::new("/var/lib").join(name);
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&path, Some(OWNER), Some(OWNER)).unwrap();
    config::SharedState {
        path: Some(path),
        owner: OWNER,
        ..config::SharedState::default()
    }
}

fn open(config: &config::SharedState) -> shared_state::Result<SharedState> {
    SharedState::open(config).map(|state| state.expect("configured"))
}

fn contents() -> Contents {
    let mut contents = Contents::new();
    contents.set("passwd", "alice\n").unwrap();
    contents
}

fn ask(state: &SharedState) -> Answer {
    state
        .get_or_write(&key(), 0, || Ok::<_, Error>(contents()))
        .unwrap()
}

fn status(field: &str) -> String {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.to_owned()
}

#[test]
fn privileged_everything_is_done_as_the_owner_and_root_is_root_again() {
    let config = site("state-owner");
    let path = config.path.clone().unwrap();
    let before = ["Uid:", "Gid:", "Groups:", "CapEff:"].map(status);
    let state = open(&config).unwrap();
    state.write(&key(), &contents()).unwrap();
    assert_eq!(state.read(&key()).unwrap(), Some(contents()));
    state.sweep().unwrap();
    let after = ["Uid:", "Gid:", "Groups:", "CapEff:"].map(status);
    assert_eq!(before, after);
    let below = [
        "mini",
        "mini/3[7].server.2",
        "mini/3[7].server.2/passwd",
        ".swept",
    ];
    for below in below {
        let meta = fs::symlink_metadata(path.join(below)).unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o077),
            (OWNER, OWNER, 0),
            "{below}"
        );
    }
    // A file of root's is not the owner's.
    chown(path.join(below[2]), Some(0), Some(0)).unwrap();
    assert!(matches!(
        state.read(&key()),
        Err(Error::Refused { .. } | Error::Step { .. })
    ));
    assert_eq!(ask(&state).source, Source::Written);
    state.remove(&key()).unwrap();
    assert_eq!(fs::read_dir(path.join("mini")).unwrap().count(), 0);
}

#[test]
fn privileged_a_directory_that_others_could_change_is_not_used() {
    let untrusted = |config: &config::SharedState| match open(config) {
        Err(Error::Untrusted(TrustError::Untrusted { rule, .. })) => rule,
        other => panic!("{other:?}"),
    };
    let config = site("state-trust");
    let path = config.path.clone().unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    assert_eq!(untrusted(&config), "its mode 0750 lets others in");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&path, Some(2001), None).unwrap();
    assert!(untrusted(&config).contains("belongs to uid 2001"));
    let in_users_hands = config::SharedState {
        path: Some("/tmp/state".into()),
        ..config.clone()
    };
    fs::create_dir("/tmp/state").unwrap();
    assert!(untrusted(&in_users_hands).contains("lets others write"));
    let missing = config::SharedState {
        path: Some("/var/lib/no-such".into()),
        ..config
    };
    assert!(matches!(
        open(&missing),
        Err(Error::Untrusted(TrustError::Unreadable { .. }))
    ));
    assert!(
        SharedState::open(&config::SharedState::default())
            .unwrap()
            .is_none()
    );
}

#[test]
fn privileged_storage_that_cannot_be_written_costs_nothing_but_the_look_up() {
    let mut table: Vec<(&str, PathBuf)> = Vec::new();
    let config = site("state-denied");
    let denied = config.path.unwrap();
    fs::set_permissions(&denied, fs::Permissions::from_mode(0o500)).unwrap();
    table.push(("Permission denied", denied));
    for (name, options, reason) in [
        ("state-full", "size=4k,nr_inodes=16", "No space left"),
        ("state-inodes", "nr_inodes=2", "No space left"),
        ("state-readonly", "ro", "Read-only file system"),
    ] {
        let path = site(name).path.unwrap();
        let options = format!("mode=0700,uid={OWNER},gid={OWNER},{options}");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path);
        assert!(mount.status().unwrap().success());
        table.push((reason, path));
    }
    for (reason, path) in table {
        let config = config::SharedState {
            path: Some(path.clone()),
            owner: OWNER,
            ..config::SharedState::default()
        };
        let state = open(&config).unwrap();
        let large = || {
            let mut large = contents();
            large.set("manifest", vec![b'x'; 64 << 10])?;
            Ok::<_, Error>(large)
        };
        let answer = state.get_or_write(&key(), 0, large).unwrap();
        assert_eq!(answer.source, Source::Alone, "{}", path.display());
        assert_eq!(answer.contents, large().unwrap());
        let complaint = answer.complaint.unwrap();
        let cause = std::error::Error::source(&complaint).unwrap().to_string();
        assert!(cause.starts_with(reason), "{complaint}: {cause}");
        assert!(!matches!(state.read(&key()), Ok(Some(_))));
    }
}
