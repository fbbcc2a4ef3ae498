//! Ctrl-C and its like in the middle of a pull, at a registry that takes its time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod dialect;
mod site;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dialect::{Reply, Server};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use site::image::{Image, Packing, image, layer, noise};
use site::{Site, walk};

/// A registry with one image whose layer comes slowly, until it is told to hurry.
struct Slow {
    server: Server,
    hurry: Arc<AtomicBool>,
    image: Image,
}

impl Slow {
    fn start() -> Self {
        let data = noise(1, 4 << 20);
        let image = image(
            "amd64",
            json!({}),
            &[layer(
                Packing::Gzip,
                &[("data", &data), ("etc/motd", b"slow")],
            )],
        );
        let hurry = Arc::new(AtomicBool::new(false));
        let mut blobs: BTreeMap<String, (String, Vec<u8>)> = BTreeMap::new();
        let (kind, bytes) = (&image.manifest.media_type, &image.manifest.bytes);
        for name in ["latest".to_owned(), image.manifest.digest()] {
            blobs.insert(
                format!("/v2/x/manifests/{name}"),
                (kind.clone(), bytes.clone()),
            );
        }
        for blob in image.blobs() {
            let path = format!("/v2/x/blobs/{}", blob.digest());
            let kind = "application/octet-stream".to_owned();
            blobs.insert(path, (kind, blob.bytes.clone()));
        }
        let is_hurried = Arc::clone(&hurry);
        let server = Server::start(move |request| {
            let Some((kind, bytes)) = blobs.get(request.bare()) else {
                return Reply::status(404);
            };
            let reply = Reply::range(bytes, request.header("range")).header("Content-Type", kind);
            match bytes.len() > 1 << 20 && !is_hurried.load(Ordering::SeqCst) {
                true => reply.drip(Duration::from_millis(20)),
                false => reply,
            }
        });
        Self {
            server,
            hurry,
            image,
        }
    }

    fn reference(&self) -> String {
        format!("{}/x", self.server.address)
    }
}

/// Starts a pull and waits until a part of the layer is there.
fn start(site: &Site, slow: &Slow) -> Child {
    let mut command = site.command(&["pull", "--json", &slow.reference()]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while received(site) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing arrives");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

/// The bytes of the layer that are in the cache.
fn received(site: &Site) -> u64 {
    let parts = walk(&site.store().join(".cache"));
    let parts = parts
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "part"));
    parts
        .map(|path| path.metadata().map_or(0, |meta| meta.len()))
        .sum()
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_signal_leaves_a_cache_to_resume_from_and_nothing_else() {
    for (signal, number, code) in [(Signal::INT, 2, 130), (Signal::TERM, 15, 143)] {
        let slow = Slow::start();
        let site = Site::new(&[&slow.server.address]);
        let child = start(&site, &slow);
        let begin = Instant::now();
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(output.status.signal(), Some(number), "{output:?}");
        let last = String::from_utf8(output.stdout).unwrap();
        let last: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
        assert_eq!(
            (&last["event"], &last["code"]),
            (&json!("error"), &json!(code))
        );
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("': interrupted\nhint: "), "{text}");
        site.assert_tidy();
        assert_eq!(site.image_count(), 0);
        let kept = received(&site);
        assert!(kept > 0);

        // The next pull takes up where this one stopped.
        slow.hurry.store(true, Ordering::SeqCst);
        site.ok(&["pull", &slow.reference()]);
        assert_eq!(site.read(&slow.reference(), "etc/motd"), "slow");
        let digest = slow.image.layers[0].blob.digest();
        let asked = slow.server.requests();
        let asked: Vec<_> = asked
            .iter()
            .filter(|r| r.bare().ends_with(&digest))
            .collect();
        let range = asked.last().unwrap().header("range").unwrap_or_default();
        assert_eq!(range, format!("bytes={kept}-"));
    }
}

#[test]
fn the_second_signal_ends_it_at_once() {
    let slow = Slow::start();
    let site = Site::new(&[&slow.server.address]);
    let child = start(&site, &slow);
    send(&child, Signal::TERM);
    send(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.signal().is_some(), "{output:?}");
    slow.hurry.store(true, Ordering::SeqCst);
    // Whatever it left is in nobody's way.
    site.ok(&["pull", &slow.reference()]);
    site.assert_tidy();
}

/// Anybody's registry can name anybody's image and serve it slowly: who asks another registry does not
/// wait, and who asks the same one is told for whom, once, and may stop.
#[test]
fn a_slow_registry_holds_up_nobody_else() {
    let (slow, quick) = (Slow::start(), Slow::start());
    quick.hurry.store(true, Ordering::SeqCst);
    let site = Site::new(&[&slow.server.address, &quick.server.address]);
    let first = start(&site, &slow);
    let mut second = site.command(&["pull", &slow.reference()]);
    let mut second = second.stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(second.stderr.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    let holder = format!("waiting for process {} on '", first.id());
    assert!(lines.any(|line| line.contains(&holder)));
    send(&second, Signal::INT);
    let begin = Instant::now();
    assert_eq!(second.wait().unwrap().signal(), Some(2));
    assert!(begin.elapsed() < Duration::from_secs(1));
    let rest: Vec<String> = lines.collect();
    assert!(
        !rest.iter().any(|line| line.contains("waiting")) && rest[0].ends_with("': interrupted"),
        "{rest:?}"
    );

    site.ok(&["pull", &quick.reference()]);
    assert_eq!(site.read(&quick.reference(), "etc/motd"), "slow");
    // The image is there: nobody has to wait for the first any more.
    site.ok(&["pull", &slow.reference()]);
    send(&first, Signal::TERM);
    let output = first.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(15), "{output:?}");
    site.assert_tidy();
    assert_eq!(site.image_count(), 1);
}
