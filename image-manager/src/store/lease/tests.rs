//! Holders that live, die, wake up too late, and live on other machines.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

struct Bench {
    temp: tempfile::TempDir,
    dir: OwnedFd,
}

fn bench() -> Bench {
    let temp = tempfile::tempdir().unwrap();
    let dir = files::open_dir(temp.path(), false).unwrap();
    Bench { temp, dir }
}

const QUICK: Timing = Timing {
    stale: Duration::from_millis(300),
    watched: Duration::from_millis(100),
    abandoned: Duration::from_secs(3600),
};

impl Bench {
    /// Somebody on a machine of that name, which shares the directory and nothing else.
    fn on(&self, host: &str) -> Contender<'_> {
        let mut contender = Contender::new(&self.dir, "lock").unwrap();
        contender.identity.host = host.into();
        contender.identity.boot = host.into();
        contender.timing = QUICK;
        // NFS has no O_TMPFILE.
        contender.has_unnamed_files = false;
        contender
    }

    fn names(&self) -> Vec<String> {
        files::names(&self.dir).unwrap()
    }
}

impl Attempt {
    fn held(self) -> Lease {
        match self {
            Self::Held(lease) => lease,
            Self::Busy(owner) => panic!("{} has it", owner.describe()),
        }
    }

    fn busy(self) -> Owner {
        match self {
            Self::Busy(owner) => owner,
            Self::Held(_) => panic!("it was free"),
        }
    }
}

#[test]
fn one_at_a_time_whatever_the_file_system_has() {
    for has_unnamed_files in [true, false] {
        let bench = bench();
        let (inside, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for machine in 0..8 {
                let (bench, inside, turns) = (&bench, &inside, &turns);
                scope.spawn(move || {
                    for _ in 0..25 {
                        // Two to a machine.
                        let mut contender = bench.on(&format!("n{}", machine / 2));
                        contender.timing = Timing::USUAL;
                        contender.has_unnamed_files = has_unnamed_files;
                        let lease = loop {
                            match contender.attempt().unwrap() {
                                Attempt::Held(lease) => break lease,
                                Attempt::Busy(_) => std::thread::sleep(Duration::from_millis(1)),
                            }
                        };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        turns.fetch_add(1, Ordering::SeqCst);
                        lease.check().unwrap();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(turns.into_inner(), 200);
        assert_eq!(bench.names(), Vec::<String>::new());
    }
}

#[test]
fn the_dead_of_this_machine_are_known_at_once() {
    let bench = bench();
    let lease = acquire(&bench.dir, "lock", &Waiting::QUIET).unwrap();
    assert!(try_acquire(&bench.dir, "lock").unwrap().is_none());
    lease.die();
    let next = try_acquire(&bench.dir, "lock")
        .unwrap()
        .expect("it is free");
    assert_eq!(bench.names().len(), 2, "the lease and the claim");
    drop(next);
    assert_eq!(bench.names(), Vec::<String>::new());
}

/// Ctrl-Z at one's terminal stops a pull through sudo, too.
#[test]
fn who_lives_on_this_machine_and_is_stopped_loses_the_lease_in_time() {
    let bench = bench();
    // No heart beats for this one.
    let stopped = Contender::new(&bench.dir, "lock").unwrap();
    let ready = stopped.prepare().unwrap();
    assert!(stopped.place(&ready, "lock").unwrap());
    let mut next = Contender::new(&bench.dir, "lock").unwrap();
    next.timing = QUICK;
    let begin = Instant::now();
    while let Attempt::Busy(_) = next.attempt().unwrap() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(begin.elapsed() >= QUICK.stale, "{:?}", begin.elapsed());
    drop(ready);
}

/// Without flock the pid says it, together with the time at which the process began.
#[test]
fn the_dead_are_known_by_their_pids() {
    let bench = bench();
    let identity = Identity::current().unwrap();
    let mut owner = identity.owner().unwrap();
    let mut child = std::process::Command::new("/bin/sleep")
        .arg("100")
        .spawn()
        .unwrap();
    let write = |owner: &Owner| {
        let file = files::create(&bench.dir, "lock").unwrap();
        record::write(&file, owner).unwrap();
    };
    owner.pid = child.id();
    owner.start = record::start_time(&child.id().to_string()).unwrap();
    write(&owner);
    assert!(try_acquire(&bench.dir, "lock").unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
    let lease = try_acquire(&bench.dir, "lock").unwrap();
    drop(lease.expect("its holder is dead"));
    // A pid that is somebody else's now.
    owner.pid = std::process::id();
    owner.start += 1;
    write(&owner);
    assert!(try_acquire(&bench.dir, "lock").unwrap().is_some());
}

#[test]
fn the_dead_of_other_machines_are_known_by_their_silence() {
    let bench = bench();
    bench.on("far").attempt().unwrap().held().die();
    let begin = Instant::now();
    let mut here = bench.on("here");
    let owner = here.attempt().unwrap().busy();
    assert!(owner.describe().contains("'far'"), "{}", owner.describe());
    let lease = loop {
        match here.attempt().unwrap() {
            Attempt::Held(lease) => break lease,
            Attempt::Busy(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(begin.elapsed() >= QUICK.stale, "{:?}", begin.elapsed());
    assert_eq!(bench.names().len(), 2, "the lease and the claim");
    lease.check().unwrap();

    // One that has been silent for long is watched for a shorter time.
    lease.die();
    let long_ago = SystemTime::now() - Duration::from_secs(60);
    for name in bench.names() {
        let record = File::open(bench.temp.path().join(name)).unwrap();
        record.set_modified(long_ago).unwrap();
    }
    let (mut other, begin) = (bench.on("other"), Instant::now());
    other.attempt().unwrap().busy();
    while let Attempt::Busy(_) = other.attempt().unwrap() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = begin.elapsed();
    assert!(took >= QUICK.watched && took < QUICK.stale, "{took:?}");
}

#[test]
fn a_sign_of_life_keeps_a_lease() {
    let bench = bench();
    let lease = bench.on("far").attempt().unwrap().held();
    let mut here = bench.on("here");
    here.timing.stale = heart::INTERVAL + Duration::from_secs(1);
    let begin = Instant::now();
    while begin.elapsed() < here.timing.stale + Duration::from_millis(1500) {
        here.attempt().unwrap().busy();
        std::thread::sleep(Duration::from_millis(50));
    }
    lease.check().unwrap();
}

/// Many see one death; one takes over, and only then the next.
#[test]
fn one_of_many_takes_over() {
    for _ in 0..5 {
        let bench = bench();
        bench.on("far").attempt().unwrap().held().die();
        let (inside, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for machine in 0..8 {
                let (bench, inside, turns) = (&bench, &inside, &turns);
                scope.spawn(move || {
                    let mut contender = bench.on(&format!("n{machine}"));
                    let lease = loop {
                        match contender.attempt().unwrap() {
                            Attempt::Held(lease) => break lease,
                            Attempt::Busy(_) => std::thread::sleep(Duration::from_millis(1)),
                        }
                    };
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    std::thread::sleep(Duration::from_millis(10));
                    lease.check().unwrap();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    turns.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(turns.into_inner(), 8);
        assert_eq!(bench.names(), Vec::<String>::new());
    }
}

/// Whoever takes over may die at it, too.
#[test]
fn a_chain_of_the_dead_is_followed() {
    let bench = bench();
    bench.on("a").attempt().unwrap().held().die();
    let first = record::read(&files::open(&bench.dir, "lock").unwrap().unwrap()).unwrap();
    // Killed after the claim.
    let second = bench.on("b");
    let ready = second.prepare().unwrap();
    assert!(second.place(&ready, &second.claim(&first)).unwrap());
    second.clear(&ready).unwrap();
    flock(&ready.file, FlockOperation::Unlock).unwrap();
    assert_eq!(bench.names().len(), 2);
    let mut third = bench.on("c");
    while let Attempt::Busy(_) = third.attempt().unwrap() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(bench.names(), Vec::<String>::new(), "taken, and given back");
}

/// A claim that comes too late, because somebody has taken over and is at work, changes nothing.
#[test]
fn a_late_claim_is_withdrawn() {
    let bench = bench();
    bench.on("a").attempt().unwrap().held().die();
    let late = bench.on("late");
    let dead = late.follow().unwrap().unwrap();
    let mut quick = bench.on("b");
    let lease = loop {
        match quick.attempt().unwrap() {
            Attempt::Held(lease) => break lease,
            Attempt::Busy(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(
        late.take_over(dead).unwrap().is_none(),
        "its claim is there"
    );
    lease.check().unwrap();
    // And when that holder has given it back, and another has it.
    let dead = late.follow().unwrap().unwrap();
    drop(lease);
    let lease = bench.on("d").attempt().unwrap().held();
    assert!(late.take_over(dead).unwrap().is_none());
    assert_eq!(bench.names(), ["lock"]);
    lease.check().unwrap();
}

/// What leads to a holder stays, however dead it is; what leads nowhere goes.
#[test]
fn sweeping_leaves_a_chain_alone() {
    let bench = bench();
    let take = || loop {
        if let Some(lease) = try_acquire(&bench.dir, "lock").unwrap() {
            break lease;
        }
    };
    take().die();
    take().die();
    let holder = take();
    let names = bench.names();
    assert_eq!(names.len(), 3);
    for name in &names[1..] {
        assert!(is_leftover(name));
        sweep(&bench.dir, name).unwrap();
    }
    assert_eq!(bench.names(), names);
    assert!(try_acquire(&bench.dir, "lock").unwrap().is_none());
    holder.check().unwrap();
    // Killed after it gave the lease back, before its claims.
    files::remove(&bench.dir, "lock").unwrap();
    holder.die();
    for name in &names[1..] {
        sweep(&bench.dir, name).unwrap();
    }
    assert_eq!(bench.names(), Vec::<String>::new());
}

#[test]
fn who_wakes_up_too_late_is_told() {
    let bench = bench();
    let sleeper = bench.on("a").attempt().unwrap().held();
    let mut next = bench.on("b");
    next.timing.stale = Duration::from_millis(50);
    next.timing.watched = Duration::ZERO;
    let lease = loop {
        match next.attempt().unwrap() {
            Attempt::Held(lease) => break lease,
            Attempt::Busy(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(sleeper.check().is_err());
    drop(sleeper);
    lease.check().unwrap();
    assert_eq!(
        bench.names().len(),
        2,
        "what is not one's own is left alone"
    );
    drop(lease);
    assert_eq!(bench.names(), Vec::<String>::new());
}

#[test]
fn what_the_dead_left_is_swept() {
    let bench = bench();
    let here = |name: &str| {
        let contender = Contender::new(&bench.dir, "lock").unwrap();
        let ready = contender.prepare().unwrap();
        assert!(contender.place(&ready, name).unwrap());
        ready.file
    };
    let nonce = "12345678-1234-1234-1234-123456789abc";
    let names = [
        format!(".lease-{nonce}"),
        format!("x.lock.{nonce}"),
        format!(".lock-index.{nonce}"),
    ];
    let files: Vec<File> = names.iter().map(|name| here(name)).collect();
    for name in &names {
        assert!(is_leftover(name), "{name}");
        sweep(&bench.dir, name).unwrap();
    }
    assert_eq!(bench.names().len(), 3, "the living are left alone");
    drop(files);
    for name in &names {
        sweep(&bench.dir, name).unwrap();
    }
    assert_eq!(bench.names(), Vec::<String>::new());
    for name in ["x.lock", ".lock-index", ".lease-", "index"] {
        assert!(!is_leftover(name), "{name}");
    }
}

#[test]
fn what_is_no_record_is_nobodys_and_goes_in_time() {
    let bench = bench();
    for content in ["", "new\n", r#"{"nonce":"../../x"}"#, r#"{"nonce":"a"}"#] {
        std::fs::write(bench.temp.path().join("lock"), content).unwrap();
        let mut contender = bench.on("here");
        assert_eq!(
            contender.attempt().unwrap().busy().describe(),
            "another process"
        );
        while let Attempt::Busy(_) = contender.attempt().unwrap() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let path = bench.temp.path().join("lock");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(
        bench.on("here").attempt().is_err(),
        "and a FIFO hangs nobody"
    );
}
