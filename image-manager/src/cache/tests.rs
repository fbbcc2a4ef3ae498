//! Blobs that arrive, break off, are wrong or damaged, and are wanted by several at once.

mod keep;

use std::io::Read;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::folder::Names;
use super::*;
use crate::hash::sha256_hex;

struct Bench {
    _home: tempfile::TempDir,
    store: Store,
}

fn bench() -> Bench {
    let home = tempfile::tempdir().unwrap();
    let store = Store::create_user(home.path()).unwrap();
    Bench { _home: home, store }
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    let digest = Digest::parse(&format!("sha256:{}", sha256_hex(bytes))).unwrap();
    Descriptor::new(String::new(), digest, bytes.len() as u64)
}

impl Bench {
    fn cache(&self) -> BlobCache {
        BlobCache::of_store(&self.store).unwrap()
    }
}

/// Bytes that look different everywhere.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(99);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn read(reader: &mut BlobReader) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map(|_| bytes)
}

fn broken() -> RegistryError {
    RegistryError::Stalled {
        address: "x".into(),
        waited: "long".into(),
    }
}

impl BlobCache {
    /// Has a blob that everybody may have.
    fn get(
        &self,
        blob: &Descriptor,
        watch: &(dyn Fn(Progress<'_>) + Sync),
        source: &download::Source<'_>,
    ) -> Result<(), CacheError> {
        self.get_from("x", blob, watch, source)
    }

    fn get_from(
        &self,
        registry: &str,
        blob: &Descriptor,
        watch: &(dyn Fn(Progress<'_>) + Sync),
        source: &download::Source<'_>,
    ) -> Result<(), CacheError> {
        let origin = Origin {
            name: "x",
            registry,
            scope: &|| Scope::Public,
            source,
        };
        self.obtain(blob, watch, &origin)
    }

    fn public(&self) -> OwnedFd {
        let digest = descriptor(b"").digest;
        Scope::Public.make(&self.dir, &digest).unwrap()
    }
}

/// What a registry's client says of a blob that it got from its first byte on.
fn forged() -> RegistryError {
    RegistryError::Forged {
        what: "the blob",
        address: "x".into(),
        reason: "its digest is another".into(),
    }
}

fn quiet(_: Progress<'_>) {}

fn blob_error(error: &io::Error) -> &BlobError {
    error.get_ref().unwrap().downcast_ref().unwrap()
}

#[test]
fn a_reader_follows_the_download() {
    let (bench, bytes) = (bench(), noise(5 << 20));
    let (cache, blob) = (bench.cache(), descriptor(&bytes));
    let (step, steps) = std::sync::mpsc::sync_channel::<()>(0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut reader, mut found) = (cache.reader(&blob), vec![0; 1 << 20]);
            reader.read_exact(&mut found).unwrap();
            // Only now the rest may arrive.
            drop(step);
            found.extend(read(&mut reader).unwrap());
            found
        });
        let done = cache.get(&blob, &quiet, &|offset, sink| {
            assert_eq!(offset, 0);
            sink(&bytes[..2 << 20]).unwrap();
            assert!(steps.recv().is_err(), "the reader has read what is there");
            for part in bytes[2 << 20..].chunks(70_000) {
                sink(part).unwrap();
            }
            Ok(())
        });
        done.unwrap();
        assert!(reading.join().unwrap() == bytes);
    });
    // Another pull finds it and does not ask.
    let again = bench.cache();
    let count = AtomicUsize::new(0);
    again
        .get(
            &blob,
            &|progress| match progress {
                Progress::Present(n) => _ = count.fetch_add(n as usize, Ordering::SeqCst),
                other => panic!("{other:?}"),
            },
            &|_, _| panic!("nothing is to be downloaded"),
        )
        .unwrap();
    assert_eq!(count.into_inner(), bytes.len());
    for _ in 0..2 {
        assert!(read(&mut again.reader(&blob)).unwrap() == bytes);
    }
}

/// Whoever runs a registry can name any blob, and give it as slowly as they like.
#[test]
fn a_slow_registry_holds_up_no_other() {
    let (bench, bytes) = (bench(), noise(300_000));
    let (slow, quick, blob) = (bench.cache(), bench.cache(), descriptor(&bytes));
    let (begun, begins) = std::sync::mpsc::channel();
    let (step, steps) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (cache, bytes, blob) = (&slow, &bytes, &blob);
        let waits = scope.spawn(move || {
            cache.get_from("slow", blob, &quiet, &|_, sink| {
                sink(&bytes[..1000]).unwrap();
                begun.send(()).unwrap();
                let _ = steps.recv();
                sink(&bytes[1000..]).unwrap();
                Ok(())
            })
        });
        begins.recv().unwrap();
        let offsets = Mutex::new(Vec::new());
        let got = quick.get_from("quick", blob, &quiet, &|offset, sink| {
            offsets.lock().unwrap().push(offset);
            sink(bytes).map_err(RegistryError::Write)
        });
        got.unwrap();
        assert_eq!(offsets.into_inner().unwrap(), [0]);
        assert!(read(&mut quick.reader(blob)).unwrap() == *bytes);
        drop(step);
        waits.join().unwrap().unwrap();
        assert!(read(&mut slow.reader(blob)).unwrap() == *bytes);
    });
    let left = files::names(bench.cache().public()).unwrap();
    assert_eq!(left, [blob.digest.hex()]);
}

#[test]
fn what_broke_off_is_resumed() {
    let (bench, bytes) = (bench(), noise(3_000_000));
    let blob = descriptor(&bytes);
    let cut = 1_234_567;
    let first = bench.cache().get(&blob, &quiet, &|_, sink| {
        sink(&bytes[..cut]).unwrap();
        Err(broken())
    });
    assert!(matches!(
        first,
        Err(CacheError::Registry(RegistryError::Stalled { .. }))
    ));
    let cache = bench.cache();
    let seen = Mutex::new((0, 0));
    cache
        .get(
            &blob,
            &|progress| match progress {
                Progress::Present(n) => seen.lock().unwrap().0 += n,
                Progress::Received(n) => seen.lock().unwrap().1 += n,
                other => panic!("{other:?}"),
            },
            &|offset, sink| {
                assert_eq!(offset, cut as u64);
                sink(&bytes[cut..]).unwrap();
                Ok(())
            },
        )
        .unwrap();
    let all = bytes.len() as u64;
    assert_eq!(seen.into_inner().unwrap(), (cut as u64, all - cut as u64));
    assert!(read(&mut cache.reader(&blob)).unwrap() == bytes);
}

#[test]
fn a_wrong_digest_is_fetched_again_once() {
    let (bench, bytes) = (bench(), noise(2 << 20));
    let blob = descriptor(&bytes);
    let mut wrong = bytes.clone();
    wrong[7] ^= 1;
    // A part whose beginning is wrong is begun again, and who read it is told.
    let cache = bench.cache();
    let tries = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(&mut cache.reader(&blob)));
        let (tries, cache) = (&tries, &cache);
        let obtained = cache.get(&blob, &quiet, &|offset, sink| {
            assert_eq!(offset, 0);
            let is_first = tries.fetch_add(1, Ordering::SeqCst) == 0;
            sink(if is_first { &wrong } else { &bytes }).unwrap();
            if is_first { Err(forged()) } else { Ok(()) }
        });
        obtained.unwrap();
        // It either read the wrong bytes and is told, or began after them.
        match reading.join().unwrap() {
            Ok(found) => assert!(found == bytes),
            Err(error) => assert!(matches!(blob_error(&error), BlobError::Restarted(_))),
        }
    });
    assert_eq!(tries.into_inner(), 2);
    assert!(cache.recover().unwrap(), "a second build may succeed");

    let other = bench.cache();
    other.remove(&blob.digest).unwrap();
    let tries = AtomicUsize::new(0);
    let refused = other.get(&blob, &quiet, &|_, sink| {
        tries.fetch_add(1, Ordering::SeqCst);
        sink(&wrong).unwrap();
        Err(forged())
    });
    assert!(matches!(
        refused,
        Err(CacheError::Registry(RegistryError::Forged { .. }))
    ));
    assert_eq!(tries.into_inner(), 2);
    let failed = read(&mut other.reader(&blob)).unwrap_err();
    assert!(matches!(blob_error(&failed), BlobError::Failed(_)));
    let dir = other.public();
    assert!(files::names(dir).unwrap().is_empty(), "nothing wrong stays");
}

/// What is resumed is compared here: only here are all of its bytes.
#[test]
fn a_wrong_beginning_is_noticed_when_the_rest_has_come() {
    let (bench, bytes) = (bench(), noise(300_000));
    let (cache, blob) = (bench.cache(), descriptor(&bytes));
    let mut wrong = bytes.clone();
    wrong[7] ^= 1;
    let part = Names::shared(&blob).part;
    let mut file = files::create(cache.public(), &part).unwrap();
    io::Write::write_all(&mut file, &wrong[..100_000]).unwrap();
    let offsets = Mutex::new(Vec::new());
    cache
        .get(&blob, &quiet, &|offset, sink| {
            offsets.lock().unwrap().push(offset);
            sink(&bytes[usize::try_from(offset).unwrap()..]).unwrap();
            Ok(())
        })
        .unwrap();
    assert_eq!(offsets.into_inner().unwrap(), [100_000, 0]);
    assert!(read(&mut cache.reader(&blob)).unwrap() == bytes);
    // A part that is longer than the blob, and one that is all of it.
    for length in [300_001, 300_000] {
        cache.remove(&blob.digest).unwrap();
        let mut file = files::create(cache.public(), &part).unwrap();
        let mut whole = bytes.clone();
        whole.resize(length, 0);
        io::Write::write_all(&mut file, &whole).unwrap();
        let cache = bench.cache();
        let is_asked = Mutex::new(false);
        cache
            .get(&blob, &quiet, &|offset, sink| {
                assert_eq!(offset, 0);
                *is_asked.lock().unwrap() = true;
                sink(&bytes).unwrap();
                Ok(())
            })
            .unwrap();
        assert_eq!(is_asked.into_inner().unwrap(), length > bytes.len());
        assert!(read(&mut cache.reader(&blob)).unwrap() == bytes);
    }
    let names = files::names(cache.public()).unwrap();
    assert_eq!(names, [blob.digest.hex()]);
}

/// Of an empty blob nothing arrives, and it is compared all the same.
#[test]
fn empty_blobs() {
    let (bench, blob) = (bench(), descriptor(b""));
    let cache = bench.cache();
    cache
        .get(&blob, &quiet, &|_, _| panic!("there is nothing to ask for"))
        .unwrap();
    assert_eq!(read(&mut cache.reader(&blob)).unwrap(), b"");
    let liar = Descriptor::new(String::new(), descriptor(b"x").digest, 0);
    let refused = cache.get(&liar, &quiet, &|_, _| Ok(()));
    assert!(refused.is_err());
}

#[test]
fn blobs_of_private_images_serve_only_where_they_came_from() {
    let (bench, bytes) = (bench(), noise(2 << 20));
    let blob = descriptor(&bytes);
    let whole = |_: u64, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
        sink(&bytes).map_err(RegistryError::Write)
    };
    let get = |source: Option<&str>, offer: &download::Source<'_>| {
        let scope = || source.map_or(Scope::Public, |source| Scope::Private(source.into()));
        let origin = Origin {
            name: "x",
            registry: "x",
            scope: &scope,
            source: offer,
        };
        bench.cache().obtain(&blob, &quiet, &origin)
    };
    let never = |_: u64, _: &mut dyn FnMut(&[u8]) -> io::Result<()>| Err(broken());
    get(Some("quay.io/a"), &whole).unwrap();
    get(Some("quay.io/a"), &never).unwrap();
    for stranger in [None, Some("quay.io/b"), Some("evil.org/a")] {
        let refused = get(stranger, &never);
        assert!(
            matches!(refused, Err(CacheError::Registry(_))),
            "{stranger:?}"
        );
    }
    // What everybody may have serves everybody.
    get(None, &whole).unwrap();
    get(Some("quay.io/b"), &never).unwrap();
    assert_eq!(bench.cache().usage().unwrap().blobs, 2);
}

/// A login that is needed only for the blob: nothing of it stays where everybody's blobs are.
#[test]
fn a_blob_that_turns_out_to_be_private_is_kept_apart() {
    let (bench, bytes) = (bench(), noise(3 << 20));
    let (cache, blob) = (bench.cache(), descriptor(&bytes));
    let needs_login = AtomicBool::new(false);
    let scope = || match needs_login.load(Ordering::SeqCst) {
        true => Scope::Private("quay.io/a".into()),
        false => Scope::Public,
    };
    let origin = Origin {
        name: "x",
        registry: "x",
        scope: &scope,
        source: &|_, sink| {
            needs_login.store(true, Ordering::SeqCst);
            sink(&bytes).map_err(RegistryError::Write)
        },
    };
    cache.obtain(&blob, &quiet, &origin).unwrap();
    assert!(read(&mut cache.reader(&blob)).unwrap() == bytes);
    assert_eq!(files::names(cache.public()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_damaged_blob_is_noticed_removed_and_fetched_again() {
    let (bench, bytes) = (bench(), noise(300_000));
    let blob = descriptor(&bytes);
    let whole = |_: u64, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
        sink(&bytes).unwrap();
        Ok(())
    };
    bench.cache().get(&blob, &quiet, &whole).unwrap();
    for is_read in [true, false] {
        let cache = bench.cache();
        let dir = cache.public();
        let mut file = files::create(&dir, blob.digest.hex()).unwrap();
        let mut damaged = bytes.clone();
        damaged[200_000] ^= 1;
        io::Write::write_all(&mut file, &damaged).unwrap();
        cache
            .get(&blob, &quiet, &|_, _| panic!("it is there"))
            .unwrap();
        if is_read {
            let error = read(&mut cache.reader(&blob)).unwrap_err();
            assert!(matches!(blob_error(&error), BlobError::Damaged(_)));
        }
        assert!(cache.recover().unwrap());
        cache.get(&blob, &quiet, &whole).unwrap();
        assert!(read(&mut cache.reader(&blob)).unwrap() == bytes);
        assert!(!cache.recover().unwrap());
    }
}

#[test]
fn a_length_that_is_not_the_blobs_is_refused() {
    let (bench, bytes) = (bench(), noise(300_000));
    let (blob, mut liar) = (descriptor(&bytes), descriptor(&bytes));
    let whole = |_: u64, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
        sink(&bytes).unwrap();
        Ok(())
    };
    bench.cache().get(&blob, &quiet, &whole).unwrap();
    liar.size += 1;
    let refused = bench.cache().get(&liar, &quiet, &whole);
    assert!(matches!(
        refused,
        Err(CacheError::Registry(RegistryError::Forged { .. }))
    ));
    let untouched = bench.cache();
    untouched
        .get(&blob, &quiet, &|_, _| panic!("it is still there"))
        .unwrap();
}

#[test]
fn pulls_at_once_download_once() {
    let (bench, bytes) = (bench(), noise(4 << 20));
    let blob = descriptor(&bytes);
    let downloads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // A cache of its own, as in a process of its own; two threads in each.
                let cache = bench.cache();
                std::thread::scope(|inner| {
                    for _ in 0..2 {
                        inner.spawn(|| {
                            let obtained = cache.get(&blob, &quiet, &|offset, sink| {
                                downloads.fetch_add(1, Ordering::SeqCst);
                                assert_eq!(offset, 0);
                                for part in bytes.chunks(100_000) {
                                    sink(part).unwrap();
                                    std::thread::sleep(Duration::from_millis(2));
                                }
                                Ok(())
                            });
                            obtained.unwrap();
                        });
                    }
                    assert!(read(&mut cache.reader(&blob)).unwrap() == bytes);
                });
            });
        }
    });
    assert_eq!(downloads.into_inner(), 1);
}

#[test]
fn giving_up_ends_everything_that_waits() {
    let (bench, bytes) = (bench(), noise(2 << 20));
    let (cache, blob, other) = (bench.cache(), descriptor(&bytes), descriptor(b"other"));
    std::thread::scope(|scope| {
        let never = scope.spawn(|| read(&mut cache.reader(&other)));
        let cut = scope.spawn(|| read(&mut cache.reader(&blob)));
        let given_up = cache.get(&blob, &quiet, &|_, sink| {
            sink(&bytes[..1 << 20]).unwrap();
            cache.abandon();
            sink(&bytes[1 << 20..]).map_err(RegistryError::Write)
        });
        assert!(
            matches!(given_up, Err(CacheError::Abandoned)),
            "{given_up:?}"
        );
        for reading in [never, cut] {
            let error = reading.join().unwrap().unwrap_err();
            assert!(matches!(blob_error(&error), BlobError::Failed(_)));
        }
    });
    let late = read(&mut cache.reader(&descriptor(b"late"))).unwrap_err();
    assert!(matches!(blob_error(&late), BlobError::Failed(_)));
}

#[test]
fn a_request_to_stop_ends_what_waits_for_others() {
    let (bench, blob) = (bench(), descriptor(b"x"));
    let cancel = Cancel::default();
    let cache = bench.cache().with_cancel(cancel.clone());
    let _theirs = crate::store::lease::acquire(
        &cache.public(),
        &Names::shared(&blob).lock,
        &crate::store::Waiting::QUIET,
    )
    .unwrap();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(&mut cache.reader(&blob)));
        let waiting = scope.spawn(|| cache.get(&blob, &quiet, &|_, _| Err(broken())));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!reading.is_finished() && !waiting.is_finished());
        cancel.cancel();
        assert!(reading.join().unwrap().is_err());
        assert!(matches!(
            waiting.join().unwrap(),
            Err(CacheError::Abandoned)
        ));
    });
}

/// What is no file of ours is not read, not followed, and hangs nobody.
#[test]
fn hostile_entries_are_refused() {
    let (bench, bytes) = (bench(), noise(1000));
    let blob = descriptor(&bytes);
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(outside.path(), "untouched").unwrap();
    let part = Names::shared(&blob).part;
    let lock = Names::shared(&blob).lock;
    for name in [blob.digest.hex(), &part, &lock] {
        for kind in ["link", "fifo", "directory"] {
            let cache = bench.cache();
            let dir = cache.public();
            let (file_type, mode) = (rustix::fs::FileType::Fifo, 0o600.into());
            match kind {
                "link" => rustix::fs::symlinkat(outside.path(), &dir, name).unwrap(),
                "fifo" => rustix::fs::mknodat(&dir, name, file_type, mode, 0).unwrap(),
                _ => rustix::fs::mkdirat(&dir, name, mode).unwrap(),
            }
            let refused = cache.get(&blob, &quiet, &|_, sink| {
                sink(&bytes).map_err(RegistryError::Write)
            });
            assert!(
                matches!(refused, Err(CacheError::Store(_))),
                "{name} {kind}: {refused:?}"
            );
            let flags = match kind {
                "directory" => rustix::fs::AtFlags::REMOVEDIR,
                _ => rustix::fs::AtFlags::empty(),
            };
            rustix::fs::unlinkat(&dir, name, flags).unwrap();
        }
    }
    assert_eq!(std::fs::read(outside.path()).unwrap(), b"untouched");
}

#[test]
fn images_of_very_many_layers() {
    let bench = bench();
    let cache = bench.cache();
    let contents: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let blobs: Vec<Descriptor> = contents.iter().map(|c| descriptor(c.as_bytes())).collect();
    let all: Vec<&Descriptor> = blobs.iter().collect();
    cache.reserve(&all).unwrap();
    for (blob, content) in blobs.iter().zip(&contents) {
        let bytes = content.as_bytes();
        cache
            .get(blob, &quiet, &|_, sink| {
                sink(bytes).map_err(RegistryError::Write)
            })
            .unwrap();
    }
    // Others see that all of them are needed.
    assert_eq!(bench.cache().trim(0).unwrap().removed, 0);
    for (blob, content) in blobs.iter().zip(&contents) {
        assert_eq!(read(&mut cache.reader(blob)).unwrap(), content.as_bytes());
    }
}

/// A cache that somebody else made is not written into.
#[test]
fn privileged_a_folder_of_somebody_elses_is_refused() {
    if !rustix::process::geteuid().is_root() {
        let _ = io::Write::write_all(&mut io::stderr(), b"skipped: needs root\n");
        return;
    }
    let (bench, blob) = (bench(), descriptor(b"x"));
    let cache = bench.cache();
    rustix::fs::fchown(cache.public(), Some(rustix::fs::Uid::from_raw(4242)), None).unwrap();
    let refused = cache.get(&blob, &quiet, &|_, sink| {
        sink(b"x").map_err(RegistryError::Write)
    });
    assert!(matches!(refused, Err(CacheError::Store(_))), "{refused:?}");
    rustix::fs::fchown(&cache.dir, Some(rustix::fs::Uid::from_raw(4242)), None).unwrap();
    assert!(BlobCache::of_store(&bench.store).is_err());
}
