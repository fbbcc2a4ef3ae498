//! What stays in a cache, what goes, and who decides.

use super::*;

/// Blobs that were used so many days ago.
fn fill(cache: &BlobCache, ages: &[(&Descriptor, u64)]) {
    for (blob, days) in ages {
        let mut file = files::create(cache.public(), blob.digest.hex()).unwrap();
        io::Write::write_all(&mut file, &vec![1; usize::try_from(blob.size).unwrap()]).unwrap();
        let age = Duration::from_secs(days * 24 * 3600);
        file.set_modified(std::time::SystemTime::now() - age)
            .unwrap();
    }
}

#[test]
fn the_longest_unused_goes_first_and_what_is_needed_stays() {
    let bench = bench();
    let blobs: Vec<Descriptor> = (1..=4u8).map(|n| descriptor(&[n; 100_000])).collect();
    let cache = bench.cache();
    let ages: Vec<(&Descriptor, u64)> = blobs.iter().zip([4, 3, 2, 1]).collect();
    fill(&cache, &ages);
    let have = || {
        let names = files::names(cache.public()).unwrap();
        let is_here = |blob: &&Descriptor| names.contains(&blob.digest.hex().to_owned());
        blobs.iter().map(|blob| is_here(&blob)).collect::<Vec<_>>()
    };
    assert_eq!(cache.trim(450_000).unwrap().removed, 0);
    // Another pull needs the oldest.
    let other = bench.cache();
    other.reserve(&[&blobs[0]]).unwrap();
    let trimmed = cache.trim(250_000).unwrap();
    assert_eq!(have(), [true, false, false, true]);
    assert_eq!(trimmed.removed, 2);
    assert!(trimmed.kept_bytes >= 200_000 && trimmed.kept_bytes < 250_000);
    assert_eq!(cache.usage().unwrap().blobs, 2);
    // Somebody is at it already.
    let lease =
        crate::store::lease::acquire(&cache.dir, folder::TRIM_LOCK, &crate::store::Waiting::QUIET)
            .unwrap();
    assert_eq!(cache.trim(0).unwrap().removed, 0);
    drop(lease);
    // Use counts, not age.
    cache.get(&blobs[0], &quiet, &|_, _| Err(broken())).unwrap();
    other.release();
    cache.trim(150_000).unwrap();
    assert_eq!(have(), [true, false, false, false]);
    cache.trim(0).unwrap();
    assert_eq!(have(), [false; 4]);
    assert_eq!(files::names(&cache.dir).unwrap(), ["sha256"]);
}

/// Whoever writes a manifest can promise any size.
#[test]
fn promises_that_cannot_be_kept_clear_no_cache() {
    let bench = bench();
    let blobs: Vec<Descriptor> = (1..=3u8).map(|n| descriptor(&[n; 1000])).collect();
    let cache = bench.cache();
    let ages: Vec<(&Descriptor, u64)> = blobs.iter().zip([3, 2, 1]).collect();
    fill(&cache, &ages);
    let endless = |blob: &Descriptor| Descriptor::new("", blob.digest.clone(), u64::MAX);
    let table = [
        ("one that is nowhere", endless(&descriptor(b"x")), false),
        ("one that is here", endless(&blobs[0]), true),
    ];
    for (what, blob, fits) in table {
        let pull = bench.cache();
        let reserved = pull.reserve(&[&blob, &blobs[1]]);
        assert_eq!(reserved.is_ok(), fits, "{what}: {reserved:?}");
        assert_eq!(cache.usage().unwrap().blobs, 3, "{what}");
    }
}

/// A pull that comes between the choice of a victim and its removal.
#[test]
fn who_comes_in_the_middle_of_a_removal_keeps_the_blob() {
    let bench = bench();
    let bytes = noise(100_000);
    let blob = descriptor(&bytes);
    let whole = |_: u64, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
        sink(&bytes).map_err(RegistryError::Write)
    };
    bench.cache().get(&blob, &quiet, &whole).unwrap();
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let trimming = scope.spawn(|| {
            let cache = bench.cache();
            while !finished.load(Ordering::SeqCst) {
                cache.trim(0).unwrap();
            }
        });
        for _ in 0..200 {
            let cache = bench.cache();
            cache.reserve(&[&blob]).unwrap();
            cache.get(&blob, &quiet, &whole).unwrap();
            // From here on it stays.
            let names = files::names(cache.public()).unwrap();
            let stays = [
                blob.digest.hex().to_owned(),
                format!("{}.trim", blob.digest.hex()),
            ];
            assert!(names.iter().any(|name| stays.contains(name)), "{names:?}");
            assert!(read(&mut cache.reader(&blob)).unwrap() == bytes);
        }
        finished.store(true, Ordering::SeqCst);
        trimming.join().unwrap();
    });
}

#[test]
fn what_the_dead_left_goes_and_what_may_be_resumed_stays() {
    let bench = bench();
    let cache = bench.cache();
    let blobs: Vec<Descriptor> = (1..=3u8).map(|n| descriptor(&[n; 1000])).collect();
    for (at, days) in [(0, 8), (1, 6)] {
        let file = files::create(cache.public(), &Names::shared(&blobs[at]).part).unwrap();
        let age = Duration::from_secs(days * 24 * 3600);
        file.set_modified(std::time::SystemTime::now() - age)
            .unwrap();
    }
    files::create(cache.public(), &format!("{}.trim", blobs[2].digest.hex())).unwrap();
    let lease = |name: &str| {
        crate::store::lease::acquire(&cache.public(), name, &crate::store::Waiting::QUIET).unwrap()
    };
    lease(&Names::shared(&blobs[0]).lock).die();
    let living = lease(&Names::shared(&blobs[2]).lock);
    let announce = || crate::store::lease::announce(&cache.dir, ".use-", vec!["x".into()]).unwrap();
    announce().die();
    crate::store::lease::acquire(&cache.dir, folder::TRIM_LOCK, &crate::store::Waiting::QUIET)
        .unwrap()
        .die();
    let used = announce();
    cache.sweep().unwrap();
    let expect = [Names::shared(&blobs[1]).part, Names::shared(&blobs[2]).lock];
    let mut names = files::names(cache.public()).unwrap();
    names.sort_by_key(|name| name.ends_with(".lock"));
    assert_eq!(names, expect);
    assert_eq!(
        files::names(&cache.dir).unwrap().len(),
        2,
        "the folder and the living"
    );
    drop((used, living));
    assert_eq!(files::names(&cache.dir).unwrap(), ["sha256"]);
}

#[test]
fn verifying_removes_what_is_damaged() {
    let (bench, bytes) = (bench(), noise(1000));
    let (cache, good) = (bench.cache(), descriptor(&bytes));
    cache
        .get(&good, &quiet, &|_, sink| {
            sink(&bytes).map_err(RegistryError::Write)
        })
        .unwrap();
    let bad = descriptor(&[7; 1000]);
    fill(&cache, &[(&bad, 0)]);
    assert_eq!(cache.verify().unwrap(), [bad.digest]);
    assert_eq!(cache.verify().unwrap(), []);
    assert_eq!(cache.usage().unwrap().blobs, 1);
}
