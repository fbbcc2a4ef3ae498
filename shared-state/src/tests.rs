//! What readers, writers and sweepers make of each other's work, done and half done.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use shifter_core::config;
use shifter_core::ids::JobId;
use tempfile::TempDir;

use crate::stamp::tests::key;
use crate::state::Published;
use crate::{Answer, Contents, Error, Key, Rule, SharedState, Source, Stream};

/// A directory as a site makes it; the process's user is the owner.
pub(crate) struct Site {
    temp: TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), Permissions::from_mode(0o700)).unwrap();
        Self { temp }
    }

    /// Opens it as another node does.
    pub(crate) fn node(&self) -> SharedState {
        let config = config::SharedState {
            owner: rustix::process::geteuid().as_raw(),
            wait_secs: 1,
            ..config::SharedState::default()
        };
        let path = self.temp.path();
        let mut state = SharedState::new(&config, path, File::open(path).unwrap().into()).unwrap();
        state.silence = Duration::from_millis(100);
        state
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join("mini").join(below)
    }

    /// Lists what the cluster's directory has.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("")).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<String> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort_unstable();
        names
    }

    /// Makes everything there look as if nothing had happened for this long.
    pub(crate) fn let_pass(&self, seconds: u64) {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        for name in self.names() {
            let file = File::open(self.path(&name)).unwrap();
            file.set_modified(then).unwrap();
        }
        if let Ok(file) = File::open(self.temp.path().join(".swept")) {
            file.set_modified(then).unwrap();
        }
    }
}

fn contents(text: &str) -> Contents {
    let mut contents = Contents::new();
    for name in ["passwd", "group", "manifest"] {
        contents.set(name, format!("{name} {text}\n")).unwrap();
    }
    contents
}

fn rule(result: crate::Result<Option<Contents>>) -> Rule {
    match result {
        Err(Error::Refused { rule, .. }) => rule,
        other => panic!("{other:?}"),
    }
}

/// Asks as the node of this rank does, and answers with the rank.
fn ask(state: &SharedState, rank: usize) -> Answer {
    let make = || Ok::<_, Error>(contents(&format!("of rank {rank}")));
    state.get_or_write(&key(), rank, make).unwrap()
}

#[test]
fn what_one_node_writes_others_read_until_it_is_removed() {
    let site = Site::new();
    let (writer, reader) = (site.node(), site.node());
    assert_eq!(reader.read(&key()).unwrap(), None);
    reader.remove(&key()).unwrap();
    writer.write(&key(), &contents("a")).unwrap();
    assert_eq!(reader.read(&key()).unwrap(), Some(contents("a")));
    writer.write(&key(), &contents("b")).unwrap();
    assert_eq!(reader.read(&key()).unwrap(), Some(contents("b")));
    assert_eq!(site.names(), ["17.0"]);
    let mode = |below| fs::metadata(site.path(below)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode(""), mode("17.0"), mode("17.0/passwd")),
        (0o700, 0o700, 0o600)
    );
    reader.remove(&key()).unwrap();
    assert_eq!(reader.read(&key()).unwrap(), None);
    assert!(site.names().is_empty());
}

#[test]
fn one_file_is_read_and_judged_without_the_others() {
    let site = Site::new();
    let state = site.node();
    assert_eq!(state.read_file(&key(), "manifest").unwrap(), None);
    assert!(!state.has(&key()).unwrap());
    state.write(&key(), &contents("a")).unwrap();
    let manifest = Some(b"manifest a\n".to_vec());
    assert_eq!(state.read_file(&key(), "manifest").unwrap(), manifest);
    assert_eq!(state.read_file(&key(), "other").unwrap(), None);
    assert!(state.has(&key()).unwrap());
    // What another file is like does not matter; its own stamp does.
    fs::write(site.path("17.0/group"), "nonsense").unwrap();
    assert_eq!(state.read_file(&key(), "manifest").unwrap(), manifest);
    fs::copy(site.path("17.0/passwd"), site.path("17.0/manifest")).unwrap();
    let part = |name| rule(state.read_file(&key(), name).map(|_| None));
    assert!(matches!(
        part("manifest"),
        Rule::Mismatch { what: "file", .. }
    ));
    let mode = Permissions::from_mode(0o640);
    fs::set_permissions(site.path("17.0/passwd"), mode).unwrap();
    assert_eq!(part("passwd"), Rule::Mode(0o640));
    state.remove(&key()).unwrap();
    assert!(!state.has(&key()).unwrap());
}

#[test]
fn a_requeued_job_and_another_cluster_have_nothing_in_common() {
    let site = Site::new();
    let state = site.node();
    state.write(&key(), &contents("a")).unwrap();
    let requeued = Key {
        restart: 1,
        ..key()
    };
    let cluster = JobId::parse("maxi").unwrap();
    let elsewhere = Key { cluster, ..key() };
    for other in [&requeued, &elsewhere] {
        assert_eq!(state.read(other).unwrap(), None);
        state.write(other, &contents("b")).unwrap();
    }
    state.remove(&requeued).unwrap();
    assert_eq!(state.read(&key()).unwrap(), Some(contents("a")));
    assert_eq!(state.read(&elsewhere).unwrap(), Some(contents("b")));
}

#[test]
fn an_id_that_comes_again_with_another_user_is_another_job() {
    let site = Site::new();
    let state = site.node();
    for (uid, gid, what) in [(2002, 2001, "uid"), (2001, 2002, "gid")] {
        let earlier = Key { uid, gid, ..key() };
        state.write(&earlier, &contents("earlier")).unwrap();
        match rule(state.read(&key())) {
            Rule::Mismatch { what: field, .. } => assert_eq!(field, what),
            other => panic!("{other}"),
        }
        // The first node replaces it, whatever rank 0 of the earlier job left.
        let answer = ask(&state, 0);
        assert_eq!(answer.source, Source::Written);
        assert!(matches!(answer.complaint, Some(Error::Refused { .. })));
        assert_eq!(state.read(&key()).unwrap(), Some(contents("of rank 0")));
    }
}

#[test]
fn whatever_is_not_as_it_was_written_is_refused_and_replaced() {
    type Spoil = (&'static str, fn(&Site), fn(&Rule) -> bool);
    let table: [Spoil; 14] = [
        (
            "old",
            |s| restamp(s, "passwd", 3700),
            |r| matches!(r, Rule::Age { .. }),
        ),
        (
            "of tomorrow",
            |s| restamp(s, "group", -3700),
            |r| matches!(r, Rule::Age { .. }),
        ),
        (
            "open to others",
            |s| mode(s, "17.0/group", 0o640),
            |r| *r == Rule::Mode(0o640),
        ),
        (
            "in an open directory",
            |s| mode(s, "17.0", 0o711),
            |r| *r == Rule::Mode(0o711),
        ),
        (
            "in an open cluster",
            |s| mode(s, "", 0o755),
            |r| *r == Rule::Mode(0o755),
        ),
        (
            "a link",
            |s| link(s, "17.0/passwd"),
            |r| matches!(r, Rule::Kind(_)),
        ),
        (
            "in a linked directory",
            |s| link(s, "17.0"),
            |r| matches!(r, Rule::Kind(_)),
        ),
        (
            "a directory",
            |s| directory(s, "17.0/passwd"),
            |r| matches!(r, Rule::Kind(_)),
        ),
        (
            "no directory",
            |s| file(s, "17.0"),
            |r| matches!(r, Rule::Kind(_)),
        ),
        ("a FIFO", fifo, |r| matches!(r, Rule::Kind(_))),
        (
            "too large",
            |s| enlarge(s, "17.0/manifest"),
            |r| *r == Rule::Size,
        ),
        (
            "cut short",
            |s| cut(s, "17.0/group"),
            |r| *r == Rule::Incomplete,
        ),
        (
            "not all there",
            |s| remove(s, "17.0/manifest"),
            |r| *r == Rule::Incomplete,
        ),
        (
            "one too many",
            |s| file(s, "17.0/key"),
            |r| matches!(r, Rule::Stamp | Rule::Incomplete),
        ),
    ];
    for (name, spoil, expected) in table {
        let site = Site::new();
        let state = site.node();
        state.write(&key(), &contents("a")).unwrap();
        spoil(&site);
        let rule = rule(state.read(&key()));
        assert!(expected(&rule), "{name}: {rule}");
        let answer = ask(&state, 0);
        assert_eq!(answer.contents, contents("of rank 0"), "{name}");
        if name == "in an open cluster" {
            // Nothing below can be trusted, nor put right by us.
            assert_eq!(answer.source, Source::Alone);
        } else {
            assert_eq!(answer.source, Source::Written, "{name}");
            assert_eq!(
                state.read(&key()).unwrap(),
                Some(contents("of rank 0")),
                "{name}"
            );
            assert_eq!(site.names(), ["17.0"], "{name}");
        }
        assert!(answer.complaint.is_some(), "{name}");
    }
}

/// Moves the time in a file's stamp.
fn restamp(site: &Site, name: &str, seconds_ago: i64) {
    let path = site.path("17.0").join(name);
    let text = fs::read_to_string(&path).unwrap();
    let (line, body) = text.split_once('\n').unwrap();
    let mut fields: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let time: i64 = fields[9].parse().unwrap();
    fields[9] = (time - seconds_ago).to_string();
    fs::write(path, format!("{}\n{body}", fields.join(" "))).unwrap();
}

fn mode(site: &Site, below: &str, mode: u32) {
    fs::set_permissions(site.path(below), Permissions::from_mode(mode)).unwrap();
}

fn link(site: &Site, below: &str) {
    let real = site.temp.path().join("real");
    fs::rename(site.path(below), &real).unwrap();
    symlink(real, site.path(below)).unwrap();
}

fn directory(site: &Site, below: &str) {
    remove(site, below);
    fs::create_dir(site.path(below)).unwrap();
}

fn file(site: &Site, below: &str) {
    let _ = fs::remove_dir_all(site.path(below));
    fs::write(site.path(below), "").unwrap();
    mode(site, below, 0o600);
}

fn fifo(site: &Site) {
    let path = site.path("17.0/passwd");
    fs::remove_file(&path).unwrap();
    let kind = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
}

fn enlarge(site: &Site, below: &str) {
    let file = File::options().write(true).open(site.path(below));
    file.unwrap().set_len(2 << 20).unwrap();
}

fn cut(site: &Site, below: &str) {
    let length = fs::metadata(site.path(below)).unwrap().len();
    let file = File::options().write(true).open(site.path(below));
    file.unwrap().set_len(length - 1).unwrap();
}

fn remove(site: &Site, below: &str) {
    fs::remove_file(site.path(below)).unwrap();
}

#[test]
fn one_of_many_nodes_asks() {
    let site = Site::new();
    let calls = AtomicUsize::new(0);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let node = |rank| {
            let (mut state, calls) = (site.node(), &calls);
            state.silence = Duration::from_secs(60);
            state.wait = Duration::from_secs(60);
            scope.spawn(move || {
                let make = || {
                    calls.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(50));
                    Ok::<_, Error>(contents(&format!("of rank {rank}")))
                };
                state.get_or_write(&key(), rank, make).unwrap()
            })
        };
        let nodes: Vec<_> = (0..16).rev().map(node).collect();
        nodes.into_iter().map(|node| node.join().unwrap()).collect()
    });
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    for answer in &answers {
        assert_eq!(answer.contents, contents("of rank 0"));
        assert!(answer.complaint.is_none());
    }
    assert_eq!(site.names(), ["17.0"]);
}

#[test]
fn of_writers_at_once_all_have_what_one_wrote() {
    for _ in 0..60 {
        let site = Site::new();
        // What is there must make way, which is where they could pass each other.
        let earlier = Key { uid: 1, ..key() };
        site.node().write(&earlier, &contents("earlier")).unwrap();
        let seen: Vec<Contents> = thread::scope(|scope| {
            let write = |number| {
                let state = site.node();
                scope.spawn(move || {
                    let own = contents(&format!("{number}"));
                    match state.publish(&key(), &own, false).unwrap() {
                        Published::Ours => own,
                        Published::Theirs(theirs) => theirs,
                    }
                })
            };
            let writers: Vec<_> = (0..4).map(write).collect();
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .collect()
        });
        let found = site.node().read(&key()).unwrap().unwrap();
        let different: BTreeSet<_> = seen.iter().map(|c| c.get("passwd").unwrap()).collect();
        assert_eq!(different.len(), 1, "{seen:?}");
        assert_eq!(seen[0], found);
        assert_eq!(site.names(), ["17.0"]);
    }
}

/// What a node left that died, and how.
type Death = (&'static str, fn(&Site));

/// How far a node came before it died.
const DEATHS: [Death; 9] = [
    ("nothing", |_| {}),
    ("the cluster's directory", |site| make_dir(site, "")),
    ("a claim", |site| {
        make_dir(site, "");
        file(site, ".claim-17.0-0");
    }),
    ("an empty new state", |site| {
        make_dir(site, "");
        file(site, ".claim-17.0-0");
        make_dir(site, ".new-1");
    }),
    ("a file cut short in a new state", |site| {
        make_dir(site, "");
        file(site, ".claim-17.0-0");
        make_dir(site, ".new-1");
        file(site, ".new-1/group");
    }),
    ("a new state that has not got its name", |site| {
        site.node().write(&key(), &contents("dead")).unwrap();
        fs::rename(site.path("17.0"), site.path(".new-1")).unwrap();
        file(site, ".claim-17.0-0");
    }),
    ("an old state moved aside", |site| {
        site.node()
            .write(&Key { uid: 1, ..key() }, &contents("old"))
            .unwrap();
        fs::rename(site.path("17.0"), site.path(".old-1")).unwrap();
        file(site, ".claim-17.0-0");
    }),
    ("a state being removed", |site| {
        site.node().write(&key(), &contents("dead")).unwrap();
        fs::rename(site.path("17.0"), site.path(".old-1")).unwrap();
        remove(site, ".old-1/group");
    }),
    ("two claims of two dead", |site| {
        make_dir(site, "");
        file(site, ".claim-17.0-0");
        file(site, ".claim-17.0-1");
    }),
];

fn make_dir(site: &Site, below: &str) {
    fs::create_dir(site.path(below)).unwrap();
    mode(site, below, 0o700);
}

#[test]
fn a_dead_writer_is_taken_over_from_and_swept() {
    for (left, die) in DEATHS {
        for rank in [0, 5] {
            let site = Site::new();
            die(&site);
            let state = site.node();
            assert_eq!(state.read(&key()).unwrap(), None, "{left}");
            let start = Instant::now();
            let answer = ask(&state, rank);
            assert_eq!(
                answer.contents,
                contents(&format!("of rank {rank}")),
                "{left}"
            );
            assert_eq!(answer.source, Source::Written, "{left}");
            assert!(start.elapsed() < Duration::from_millis(900), "{left}");
            assert_eq!(ask(&site.node(), 7).source, Source::Shared, "{left}");
            state.sweep().unwrap();
            site.let_pass(3700);
            state.sweep().unwrap();
            assert!(site.names().is_empty(), "{left}: {:?}", site.names());
        }
    }
}

#[test]
fn a_state_whose_writer_died_before_it_took_its_claim_back_is_read() {
    let site = Site::new();
    site.node().write(&key(), &contents("whole")).unwrap();
    file(&site, ".claim-17.0-0");
    for rank in [0, 5] {
        let answer = ask(&site.node(), rank);
        assert_eq!(
            (answer.source, answer.contents),
            (Source::Shared, contents("whole"))
        );
    }
    site.node().remove(&key()).unwrap();
    assert!(site.names().is_empty());
}

#[test]
fn nobody_waits_for_ever_for_those_who_keep_dying() {
    let site = Site::new();
    let mut state = site.node();
    state.silence = Duration::from_secs(60);
    file_in_new_cluster(&site, ".claim-17.0-0");
    let start = Instant::now();
    let answer = ask(&state, 3);
    assert_eq!(answer.source, Source::Alone);
    assert_eq!(answer.contents, contents("of rank 3"));
    let waited = start.elapsed();
    assert!((1.0..2.5).contains(&waited.as_secs_f64()), "{waited:?}");
    // And the one who claims it late finds nobody in the way.
    assert_eq!(ask(&site.node(), 0).source, Source::Written);
}

fn file_in_new_cluster(site: &Site, below: &str) {
    make_dir(site, "");
    file(site, below);
}

#[test]
fn a_failed_look_up_is_the_callers_and_leaves_the_claim_to_the_next() {
    let site = Site::new();
    let failed = site.node().get_or_write(&key(), 0, || Err("unknown"));
    assert_eq!(failed.unwrap_err(), "unknown");
    assert_eq!(ask(&site.node(), 1).source, Source::Written);
}

#[test]
fn only_what_is_old_is_swept_and_not_by_everybody() {
    let site = Site::new();
    let state = site.node();
    state.write(&key(), &contents("old")).unwrap();
    file(&site, ".claim-16.0-0");
    site.let_pass(3700);
    let young = Key {
        restart: 1,
        ..key()
    };
    state.write(&young, &contents("young")).unwrap();
    state.sweep().unwrap();
    assert_eq!(site.names(), ["17.1"]);
    // Somebody has just looked.
    state.write(&key(), &contents("old")).unwrap();
    File::open(site.path("17.0"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH)
        .unwrap();
    state.sweep().unwrap();
    assert_eq!(site.names(), ["17.0", "17.1"]);
}

#[test]
fn large_files_of_a_state_are_written_and_read_without_memory_for_them() {
    let site = Site::new();
    let (launch, node) = (site.node(), site.node());
    let length = 5 << 20;
    let write = |name: &str, length: usize, source: &mut dyn Read| {
        let stream = Stream {
            name,
            length,
            source,
        };
        launch.write_with(&key(), &contents("a"), &mut [stream])
    };
    write("cache", length, &mut std::io::repeat(7)).unwrap();
    let mut bytes = Vec::new();
    let mut found = node.open_file(&key(), "cache").unwrap().unwrap();
    assert_eq!(found.limit(), length as u64);
    found.read_to_end(&mut bytes).unwrap();
    assert!(bytes.len() == length && bytes.iter().all(|byte| *byte == 7));
    assert!(node.read_file(&key(), "passwd").unwrap().is_some());
    assert!(node.open_file(&key(), "other").unwrap().is_none());
    // Cut short; another run's; old.
    let path = site.path("17.0/cache");
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(length as u64).unwrap();
    assert!(node.open_file(&key(), "cache").unwrap_err().is_refusal());
    write("cache", 3, &mut &b"abc"[..]).unwrap();
    let other = Key { uid: 1, ..key() };
    assert!(node.open_file(&other, "cache").unwrap_err().is_refusal());
    // A source that ends early leaves what was there; so do names that are none.
    assert!(write("cache", 4, &mut &b"abc"[..]).is_err());
    assert!(write("../x", 1, &mut &b"a"[..]).is_err());
    assert!(write("passwd", 1, &mut &b"a"[..]).is_err());
    let mut text = String::new();
    let mut found = node.open_file(&key(), "cache").unwrap().unwrap();
    found.read_to_string(&mut text).unwrap();
    assert_eq!(text, "abc");
    assert_eq!(site.names(), ["17.0"]);
}
