//! Publishing, reading, removing and sweeping, without a network.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::cancel::Cancel;

const RULES: TypeRules<'static> = TypeRules {
    default_type: "docker",
    site_types: &[],
};

struct Bench {
    temp: tempfile::TempDir,
    store: Store,
}

fn bench() -> Bench {
    let temp = tempfile::tempdir().unwrap();
    let me = rustix::process::geteuid().as_raw();
    let store = Store::create_site(&temp.path().join("store"), me).unwrap();
    Bench { temp, store }
}

fn reference(text: &str) -> ImageRef {
    ImageRef::parse(text, &RULES).unwrap()
}

fn id(digit: &str) -> ImageId {
    ImageId::parse(&digit.repeat(64)).unwrap()
}

fn meta(user_acl: &[u32]) -> ImageMeta {
    ImageMeta {
        format: "squashfs".into(),
        user_acl: user_acl.to_vec(),
        ..ImageMeta::default()
    }
}

/// Nobody in particular: an owner of nothing.
fn viewer(uid: u32) -> Viewer {
    Viewer {
        uid,
        gids: vec![uid],
    }
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join("store").join(name)
    }

    fn publish(&self, id: &ImageId, content: &[u8], meta: &ImageMeta) {
        let workshop = self.workshop(id, "here");
        let mut file = workshop.begin().unwrap();
        file.write_all(content).unwrap();
        let lock = self.store.lock(id, &Waiting::QUIET).unwrap();
        let image = workshop.seal(&file).unwrap();
        lock.publish(&image, meta, ImageRecord::default()).unwrap();
        // A tag keeps the image when the lock is dropped; tests move it away as they need.
        self.tag(&format!("keep:{}", &id.as_str()[..1]), id);
    }

    fn workshop(&self, id: &ImageId, source: &str) -> Workshop<'_> {
        self.store.workshop(id, source, &Waiting::QUIET).unwrap()
    }

    fn tag(&self, name: &str, id: &ImageId) {
        let reference = reference(name);
        let entry = IndexEntry {
            reference: reference.canonical(),
            id: id.clone(),
            digest: None,
            pulled: 1,
            size: 3,
        };
        self.store.tag(&reference, &entry, &Waiting::QUIET).unwrap();
    }

    fn names(&self) -> Vec<String> {
        files::names(&self.store.dir).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        std::fs::metadata(self.path(name)).unwrap().mode() & 0o7777
    }
}

#[test]
fn a_published_image_is_found_by_tag_and_by_id() {
    let bench = bench();
    bench.publish(&id("a"), b"img", &meta(&[]));
    bench.tag("ubuntu:24.04", &id("a"));
    let found = bench
        .store
        .lookup(&reference("ubuntu:24.04"), &viewer(7))
        .unwrap()
        .unwrap();
    assert_eq!((found.id, found.size), (id("a"), 3));
    assert_eq!(found.reference.as_deref(), Some("docker:ubuntu:24.04"));
    assert_eq!(std::fs::read(found.path).unwrap(), b"img");
    let by_id = bench
        .store
        .lookup(&reference(&format!("id:{}", id("a"))), &viewer(7))
        .unwrap();
    assert_eq!(by_id.unwrap().reference, None);
    assert!(
        bench
            .store
            .lookup(&reference("ubuntu"), &viewer(7))
            .unwrap()
            .is_none()
    );
    let names = bench.names();
    let expect = [
        format!("{}.json", id("a")),
        format!("{}.meta", id("a")),
        format!("{}.squashfs", id("a")),
        "index".into(),
    ];
    assert_eq!(names, expect);
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    let bench = bench();
    bench.publish(&id("a"), b"img", &meta(&[]));
    bench.publish(&id("b"), b"img", &meta(&[42]));
    let (public, private) = (id("a"), id("b"));
    for (name, mode) in [
        (".".to_owned(), 0o755),
        ("index".into(), 0o755),
        ("index/docker".into(), 0o755),
        ("index/docker/keep%3Aa".into(), 0o644),
        (format!("{public}.squashfs"), 0o644),
        (format!("{public}.meta"), 0o644),
        (format!("{private}.squashfs"), 0o600),
        (format!("{private}.meta"), 0o600),
    ] {
        assert_eq!(bench.mode(&name), mode, "{name}");
    }
    let home = tempfile::tempdir().unwrap();
    let own = Store::create_user(home.path()).unwrap();
    own.lock(&id("a"), &Waiting::QUIET).unwrap();
    assert_eq!(
        std::fs::metadata(home.path().join(".shifter"))
            .unwrap()
            .mode()
            & 0o7777,
        0o700
    );
}

#[test]
fn an_image_that_is_not_permitted_looks_like_a_missing_one() {
    let bench = bench();
    bench.publish(&id("b"), b"img", &meta(&[42]));
    let find = |uid| {
        bench
            .store
            .lookup(&reference("keep:b"), &viewer(uid))
            .unwrap()
    };
    assert!(find(42).is_some());
    assert!(find(43).is_none());
    assert!(bench.store.list(&RULES, &viewer(43)).unwrap().0.is_empty());
    assert_eq!(bench.store.list(&RULES, &viewer(42)).unwrap().0.len(), 1);
}

#[test]
fn access_only_ever_grows() {
    let table: [(&[u32], &[u32], &[u32]); 4] = [
        (&[1], &[2], &[1, 2]),
        (&[1], &[1], &[1]),
        (&[1], &[], &[]),
        (&[], &[2], &[]),
    ];
    for (found, wanted, expect) in table {
        let bench = bench();
        bench.publish(&id("a"), b"img", &meta(found));
        let lock = bench.store.lock(&id("a"), &Waiting::QUIET).unwrap();
        let found = lock.complete().unwrap().unwrap();
        lock.widen(&found, &meta(wanted)).unwrap();
        assert_eq!(lock.complete().unwrap().unwrap().user_acl, expect);
        drop(lock);
        let mode = if expect.is_empty() { 0o644 } else { 0o600 };
        assert_eq!(bench.mode(&format!("{}.squashfs", id("a"))), mode);
        assert_eq!(bench.mode(&format!("{}.meta", id("a"))), mode);
    }
}

#[test]
fn the_last_tag_takes_the_image_with_it() {
    let bench = bench();
    bench.publish(&id("a"), b"img", &meta(&[]));
    bench.tag("x", &id("a"));
    let remove = |name: &str| bench.store.remove(&reference(name), &Waiting::QUIET);
    let by_id = format!("id:{}", id("a"));
    assert!(matches!(remove(&by_id), Err(StoreError::HasTags { .. })));
    assert_eq!(
        remove("x").unwrap(),
        Some(Removed {
            id: id("a"),
            image_removed: false
        })
    );
    assert_eq!(remove("x").unwrap(), None);
    assert_eq!(
        remove("keep:a").unwrap(),
        Some(Removed {
            id: id("a"),
            image_removed: true
        })
    );
    assert_eq!(bench.names(), ["index"]);
    assert_eq!(remove(&by_id).unwrap(), None);
}

#[test]
fn a_moved_tag_leaves_the_old_image_for_queued_jobs() {
    let bench = bench();
    bench.publish(&id("a"), b"img", &meta(&[]));
    bench.publish(&id("b"), b"img", &meta(&[]));
    bench.tag("keep:a", &id("b"));
    bench.store.sweep().unwrap();
    let by_id = reference(&format!("id:{}", id("a")));
    assert!(bench.store.lookup(&by_id, &viewer(7)).unwrap().is_some());
    let (images, problems) = bench.store.list(&RULES, &viewer(7)).unwrap();
    let tags: Vec<_> = images
        .iter()
        .map(|image| image.reference.as_deref())
        .collect();
    assert_eq!(tags, [Some("docker:keep:a"), Some("docker:keep:b"), None]);
    assert!(problems.is_empty());
    // Pulled again by nobody, it goes by its id.
    assert!(
        bench
            .store
            .remove(&by_id, &Waiting::QUIET)
            .unwrap()
            .unwrap()
            .image_removed
    );
}

/// What a pull that is killed at each step leaves, and what the next one makes of it.
#[test]
fn sweeping_after_a_kill() {
    let steps: [(&str, &[&str], bool); 6] = [
        ("lock only", &[], false),
        ("while building", &[".tmp-{}-0123.squashfs"], false),
        ("before the record", &["{}.squashfs", ".tmp-{}.json"], false),
        (
            "before the metadata",
            &["{}.squashfs", "{}.json", ".tmp-{}.meta"],
            false,
        ),
        (
            "before the tag",
            &["{}.squashfs", "{}.json", "{}.meta"],
            false,
        ),
        (
            "after the tag",
            &[
                "{}.squashfs",
                "{}.json",
                "{}.meta",
                "index/docker/x%3Alatest",
            ],
            true,
        ),
    ];
    for (step, left, stays) in steps {
        let bench = bench();
        bench.tag("other", &id("c"));
        let image = id("a").to_string();
        let locks = [image.clone(), format!("{image}-0123"), "index".into()];
        for name in locks.map(|name| format!(".lock-{name}")) {
            lease::acquire(&bench.store.dir, &name, &Waiting::QUIET)
                .unwrap()
                .die();
        }
        std::fs::write(bench.path(&format!(".new-{image}")), "").unwrap();
        std::fs::write(bench.path(".tmp-index"), "{").unwrap();
        for name in left {
            let name = name.replace("{}", &image);
            let content = match name.as_str() {
                _ if name.starts_with("index/") => format!(
                    r#"{{"reference":"docker:x:latest","id":"{image}","digest":null,"pulled":1,"size":3}}"#
                ),
                _ if name.ends_with(".meta") => "FORMAT: squashfs\n".into(),
                _ => "img".into(),
            };
            std::fs::write(bench.path(&name), content).unwrap();
        }
        bench.store.sweep().unwrap();
        let names = bench.names();
        assert!(
            !names.iter().any(|name| name.starts_with('.')),
            "{step}: {names:?}"
        );
        let expect: &[String] = match stays {
            true => &[
                format!("{image}.json"),
                format!("{image}.meta"),
                format!("{image}.squashfs"),
                "index".into(),
            ],
            false => &["index".into()],
        };
        assert_eq!(names, expect, "{step}");
    }
}

#[test]
fn sweeping_leaves_running_pulls_alone() {
    let bench = bench();
    let workshop = bench.workshop(&id("a"), "here");
    let file = workshop.begin().unwrap();
    bench.store.sweep().unwrap();
    let temporary = format!(".tmp-{}-", id("a"));
    let names = bench.names();
    assert!(
        names.iter().any(|name| name.starts_with(&temporary)),
        "{names:?}"
    );
    drop((file, workshop));
    assert_eq!(bench.names(), Vec::<String>::new());
}

/// Whoever runs a registry can name any image, and serve it as slowly as they like.
#[test]
fn only_builds_from_the_same_source_wait_for_each_other() {
    let bench = bench();
    let slow = bench.workshop(&id("a"), "registry.evil/x");
    slow.begin().unwrap();
    // Neither another source's build nor what is done with the image itself.
    bench.publish(&id("a"), b"img", &meta(&[]));
    let removed = bench.store.remove(&reference("keep:a"), &Waiting::QUIET);
    assert!(removed.unwrap().unwrap().image_removed);
    bench.publish(&id("a"), b"img", &meta(&[]));

    let (cancel, told) = (Cancel::default(), std::cell::RefCell::new(Vec::new()));
    let waiting = Waiting {
        cancel: Some(&cancel),
        tell: &|owner| {
            told.borrow_mut().push(owner.describe());
            cancel.cancel();
        },
    };
    let second = bench.store.workshop(&id("a"), "registry.evil/x", &waiting);
    let error = second.err().unwrap();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    let pid = format!("process {} on ", std::process::id());
    let told = told.into_inner();
    assert!(told.len() == 1 && told[0].starts_with(&pid), "{told:?}");
    drop(slow);
    bench.workshop(&id("a"), "registry.evil/x");
}

/// Who has read the metadata finds the file: the first of two formats stays.
#[test]
fn an_image_that_was_published_meanwhile_keeps_its_format() {
    let bench = bench();
    let workshop = bench.workshop(&id("a"), "slow");
    let file = workshop.begin().unwrap();
    bench.publish(&id("a"), b"img", &meta(&[1]));
    let image = workshop.seal(&file).unwrap();
    let lock = bench.store.lock(&id("a"), &Waiting::QUIET).unwrap();
    let erofs = ImageMeta {
        format: "erofs".into(),
        ..meta(&[2])
    };
    lock.publish(&image, &erofs, ImageRecord::default())
        .unwrap();
    let found = lock.complete().unwrap().unwrap();
    assert_eq!(
        (found.format.as_str(), found.user_acl),
        ("squashfs", vec![1, 2])
    );
    drop((lock, workshop));
    let names = bench.names();
    assert!(
        !names
            .iter()
            .any(|name| name.starts_with('.') || name.ends_with("erofs")),
        "{names:?}"
    );
}

#[test]
fn an_abandoned_build_leaves_nothing() {
    let bench = bench();
    let workshop = bench.workshop(&id("a"), "here");
    let file = workshop.begin().unwrap();
    let lock = bench.store.lock(&id("a"), &Waiting::QUIET).unwrap();
    let image = workshop.seal(&file).unwrap();
    lock.publish(&image, &meta(&[]), ImageRecord::default())
        .unwrap();
    drop((lock, workshop));
    assert_eq!(bench.names(), Vec::<String>::new(), "no tag was written");
}

#[test]
fn stores_that_others_could_fill_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let me = rustix::process::geteuid().as_raw();
    assert!(matches!(
        Store::create_site(&home.path().join("s"), me + 1),
        Err(StoreError::NotOwner { .. })
    ));
    assert!(Store::open_user(home.path()).unwrap().is_none());
    let path = home.path().join(".shifter");
    std::os::unix::fs::symlink(home.path(), &path).unwrap();
    assert!(Store::open_user(home.path()).is_err());
    assert!(Store::create_user(home.path()).is_err());
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(
        Store::open_user(home.path()),
        Err(StoreError::Untrusted { .. })
    ));
    // Only root can hand a directory to somebody else, and only then can this be shown.
    if me == 0 {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&path, Some(4242), None).unwrap();
        assert!(matches!(
            Store::open_user(home.path()),
            Err(StoreError::Untrusted { .. })
        ));
    }
}

#[test]
fn damaged_records_are_reported_and_nothing_else_suffers() {
    let bench = bench();
    bench.publish(&id("a"), b"img", &meta(&[]));
    bench.publish(&id("b"), b"img", &meta(&[]));
    std::fs::write(bench.path(&format!("{}.meta", id("b"))), "nonsense").unwrap();
    std::fs::write(bench.path("index/docker/forged%3Ax"), r#"{"reference":"#).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", bench.path("index/docker/link%3Ax")).unwrap();
    let (images, problems) = bench.store.list(&RULES, &viewer(7)).unwrap();
    assert_eq!((images.len(), problems.len()), (1, 1));
    assert!(matches!(
        bench.store.lookup(&reference("forged:x"), &viewer(7)),
        Err(StoreError::Record { .. })
    ));
    assert!(
        bench
            .store
            .lookup(&reference("link:x"), &viewer(7))
            .is_err()
    );
    assert!(matches!(
        bench.store.lookup(&reference("keep:b"), &viewer(7)),
        Err(StoreError::Meta { .. })
    ));
}
