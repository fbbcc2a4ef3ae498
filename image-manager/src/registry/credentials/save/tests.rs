//! Logins that are kept and forgotten, with files as users have them and with helpers.

use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A home and the file in it.
fn home() -> (tempfile::TempDir, LoginFile) {
    let temp = tempfile::tempdir().unwrap();
    let user = User {
        home: Some(temp.path()),
        uid: me(),
        variable: &|_| None,
    };
    let file = LoginFile::of_user(&user).unwrap();
    (temp, file)
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

fn found(file: &LoginFile, registry: &str) -> Option<(String, String)> {
    let read = AuthFile::read(file.path(), me()).unwrap()?;
    match read.find(registry, "x") {
        Found::Login(login) => Some((login.user().to_owned(), login.secret().to_owned())),
        _ => None,
    }
}

fn pair(user: &str, secret: &str) -> Option<(String, String)> {
    Some((user.into(), secret.into()))
}

#[test]
fn s70_a_login_is_the_owners_alone() {
    let (temp, file) = home();
    let kept = file.store("h:5000", &Login::new("alice", "p:w")).unwrap();
    assert_eq!(kept, Kept::File(file.path().to_owned()));
    assert_eq!(found(&file, "h:5000"), pair("alice", "p:w"));
    assert_eq!(mode(file.path()), 0o600);
    assert_eq!(mode(&temp.path().join(".docker")), 0o700);
    // A file that everybody could read is replaced by one that nobody else can.
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
    file.store("docker.io", &Login::new("bob", "x")).unwrap();
    assert_eq!(mode(file.path()), 0o600);
    assert_eq!(found(&file, "docker.io"), pair("bob", "x"));
    let text = fs::read_to_string(file.path()).unwrap();
    assert!(text.contains("https://index.docker.io/v1/"), "{text}");
    assert!(file.erase("h:5000").unwrap() && !file.erase("h:5000").unwrap());
    assert_eq!(found(&file, "h:5000"), None);
    assert_eq!(found(&file, "docker.io"), pair("bob", "x"));
    let names: Vec<_> = fs::read_dir(temp.path().join(".docker")).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing else is left");
}

#[test]
fn what_others_wrote_stays() {
    let (_temp, file) = home();
    let dir = file.path().parent().unwrap().to_owned();
    fs::create_dir(&dir).unwrap();
    let before = json!({
        "auths": {"other": {"auth": "YTpi", "email": "x"}, "https://H:5000/v2/": {"auth": "YTpi"}},
        "HttpHeaders": {"X": "y"}, "detachKeys": "ctrl-e,e", "currentContext": 7, "psFormat": null,
    });
    fs::write(file.path(), before.to_string()).unwrap();
    file.store("h:5000", &Login::new("u", "s")).unwrap();
    let text = fs::read_to_string(file.path()).unwrap();
    let after: Value = serde_json::from_str(&text).unwrap();
    let mut expect = before;
    let auths = expect["auths"].as_object_mut().unwrap();
    auths.remove("https://H:5000/v2/");
    auths.insert("h:5000".into(), json!({"auth": "dTpz"}));
    assert_eq!(
        after, expect,
        "one entry for the registry, the rest as it was"
    );
    file.erase("h:5000").unwrap();
    let text = fs::read_to_string(file.path()).unwrap();
    let after: Value = serde_json::from_str(&text).unwrap();
    expect["auths"].as_object_mut().unwrap().remove("h:5000");
    assert_eq!(after, expect);
}

#[test]
fn files_that_are_not_ours_to_write() {
    let login = Login::new("user", "topsecret");
    let refused = |file: &LoginFile, reason: &str| {
        let error = file.store("h", &login).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains("topsecret"), "{error}");
    };
    let (_temp, file) = home();
    let dir = file.path().parent().unwrap().to_owned();
    fs::create_dir(&dir).unwrap();
    for (text, reason) in [
        ("{", "it is not valid at line 1"),
        ("[]", "it is not an object"),
        (r#"{"auths":[]}"#, "it is not valid at line 1"),
    ] {
        fs::write(file.path(), text).unwrap();
        refused(&file, reason);
        assert_eq!(fs::read_to_string(file.path()).unwrap(), text, "untouched");
    }
    fs::remove_file(file.path()).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    refused(&file, "nobody else may write there");
    assert!(!file.path().exists());
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/no/such", file.path()).unwrap();
    refused(&file, "a link that leads nowhere");
}

#[test]
fn a_link_is_kept_and_its_file_replaced() {
    let (temp, file) = home();
    let (dir, dots) = (file.path().parent().unwrap(), temp.path().join("dotfiles"));
    fs::create_dir(dir).unwrap();
    fs::create_dir(&dots).unwrap();
    fs::write(dots.join("docker.json"), "{\"a\":1}").unwrap();
    symlink("../dotfiles/docker.json", file.path()).unwrap();
    file.store("h", &Login::new("u", "s")).unwrap();
    assert!(file.path().is_symlink());
    assert_eq!(found(&file, "h"), pair("u", "s"));
    assert_eq!(mode(&dots.join("docker.json")), 0o600);
    // The link's target is in a directory that others can write: refused.
    let open = temp.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(open.join("x"), "{}").unwrap();
    fs::remove_file(file.path()).unwrap();
    symlink(open.join("x"), file.path()).unwrap();
    assert!(file.store("h", &Login::new("u", "s")).is_err());
    assert_eq!(fs::read_to_string(open.join("x")).unwrap(), "{}");
}

#[test]
fn a_helper_keeps_it_instead() {
    let (temp, mut file) = home();
    let dir = file.path().parent().unwrap();
    fs::create_dir(dir).unwrap();
    fs::write(
        file.path(),
        r#"{"credHelpers":{"h":"test"},"auths":{"g":{"auth":"YTpi"}}}"#,
    )
    .unwrap();
    let error = file.store("h", &Login::new("u", "topsecret")).unwrap_err();
    assert!(error.to_string().contains("no such program"), "{error}");
    let program = temp.path().join("docker-credential-test");
    let log = temp.path().join("log");
    let script = format!("#!/bin/sh\n(echo \"$1\"; cat; echo) >>{}\n", log.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    file.search = format!("{}:/usr/bin:/bin", temp.path().display()).into();
    let kept = file.store("h", &Login::new("u", "topsecret")).unwrap();
    assert_eq!(kept, Kept::Helper("test".into()));
    assert!(file.erase("h").unwrap());
    let text = fs::read_to_string(log).unwrap();
    let expect =
        "store\n{\"ServerURL\":\"h\",\"Username\":\"u\",\"Secret\":\"topsecret\"}\nerase\nh\n";
    assert_eq!(text, expect);
    let text = fs::read_to_string(file.path()).unwrap();
    assert!(
        !text.contains("topsecret") && text.contains("YTpi"),
        "{text}"
    );
}
