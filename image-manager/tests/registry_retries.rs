//! Busy, slow and broken registries: what is tried again, how often, and what is not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod dialect;

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dialect::{Counter, Reply, Request, Server, chain, client, descriptor, fetch, noise, patience};
use dialect::{digest, reference};
use image_manager::registry::{Client, Event, Patience, RegistryError};

/// Gets a blob of `x` through a client.
fn get(client: &Client, server: &Server, blob: &[u8]) -> (Vec<u8>, Result<(), RegistryError>) {
    let reference = reference(&format!("{}/x", server.address));
    fetch(
        &client.repository(&reference).unwrap(),
        &descriptor(blob),
        0,
    )
}

/// A server that fails `count` times before it gives the blob.
fn fails(count: u64, blob: &[u8], failure: Reply) -> Server {
    let (blob, counter) = (blob.to_vec(), Counter::default());
    Server::start(move |request| match counter.next() < count {
        true => failure.clone(),
        false => Reply::range(&blob, request.header("range")),
    })
}

#[test]
fn passing_failures_are_tried_again() {
    let blob = noise(1000);
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let server = fails(5, &blob, Reply::status(status));
        let (bytes, result) = get(&client(&[&server.address]), &server, &blob);
        result.unwrap_or_else(|error| panic!("{status}: {}", chain(&error)));
        assert!(bytes == blob, "{status}");
        assert_eq!(server.requests().len(), 6, "{status}");

        let server = fails(6, &blob, Reply::status(status));
        let (_, result) = get(&client(&[&server.address]), &server, &blob);
        let error = chain(&result.unwrap_err());
        assert!(error.contains(&format!("answered {status}")), "{error}");
        assert_eq!(server.requests().len(), 6, "one and five more: {status}");
    }
}

#[test]
fn refusals_are_not_tried_again() {
    for status in [400, 401, 403, 404, 405, 410, 451, 501] {
        let server = Server::start(move |_| Reply::status(status));
        let (_, result) = get(&client(&[&server.address]), &server, b"x");
        assert!(result.is_err(), "{status}");
        assert_eq!(server.requests().len(), 1, "{status}");
    }
}

#[test]
fn what_the_server_asks_for_is_kept() {
    let blob = noise(1000);
    let busy = Reply::status(429).header("Retry-After", "1");
    let server = fails(1, &blob, busy);
    let begin = Instant::now();
    get(&client(&[&server.address]), &server, &blob).1.unwrap();
    let waited = begin.elapsed();
    assert!((1.0..1.9).contains(&waited.as_secs_f64()), "{waited:?}");

    // An hour is not waited for.
    let busy = Reply::new(
        429,
        r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#,
    );
    let server = fails(9, &blob, busy.header("Retry-After", "3600"));
    let (_, result) = get(&client(&[&server.address]), &server, &blob);
    let error = result.unwrap_err();
    assert!(chain(&error).contains("answered 429: slow down"), "{error}");
    assert!(error.hint().unwrap().contains("limits"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn connections_that_cannot_be_made() {
    // Nobody listens there, and a while later somebody does; no other test uses this address.
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let blob = noise(1000);
    let late = (address.clone(), blob.clone());
    let server = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(60));
        Server::start_at(&late.0, move |_| Reply::ok(late.1.clone()))
    });
    let client = client(&[&address]).with_patience(Patience {
        retries: 40,
        ..patience()
    });
    let reference = reference(&format!("{address}/x"));
    let repository = client.repository(&reference).unwrap();
    let (bytes, result) = fetch(&repository, &descriptor(&blob), 0);
    result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(bytes == blob);
    server.join().unwrap();
}

#[test]
fn slow_and_silent_servers_are_given_up() {
    let blob = noise(100_000);
    let drip = Reply::ok(blob.clone()).drip(Duration::from_millis(10));
    let silent = Reply::ok(blob.clone()).drip(Duration::from_secs(5));
    for reply in [drip, silent] {
        let server = Server::start(move |_| reply.clone());
        let client = client(&[&server.address]).with_patience(Patience {
            retries: 1,
            ..patience()
        });
        let begin = Instant::now();
        let (_, result) = get(&client, &server, &blob);
        let error = result.unwrap_err();
        assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
        assert_eq!(server.requests().len(), 2);
        assert!(begin.elapsed() < Duration::from_secs(3));
    }
    // Nor does one that always sends a little keep the client for ever.
    let (served, fast) = (blob.clone(), Duration::from_millis(1));
    let server = Server::start(move |_| Reply::ok(served.clone()).drip(fast));
    let client = client(&[&server.address]).with_patience(Patience {
        bytes: 1,
        overall: Duration::from_millis(500),
        ..patience()
    });
    let begin = Instant::now();
    let (_, result) = get(&client, &server, &blob);
    let error = result.unwrap_err();
    assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[test]
fn retries_are_reported_and_can_be_stopped() {
    let blob = noise(1000);
    let server = fails(2, &blob, Reply::status(503));
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = Arc::clone(&seen);
    let watching = client(&[&server.address]).with_watch(move |event| {
        if let Event::Retry { error, pause } = event {
            assert!(*pause <= Duration::from_millis(20));
            record.lock().unwrap().push(error.to_string());
        }
    });
    get(&watching, &server, &blob).1.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen[0].contains("answered 503"), "{seen:?}");

    let server = fails(99, &blob, Reply::status(503));
    let begin = Instant::now();
    let stopping = client(&[&server.address])
        .with_patience(Patience {
            pause: Duration::from_secs(60),
            pause_limit: Duration::from_secs(60),
            ..patience()
        })
        .with_stop(move || begin.elapsed() > Duration::from_millis(100));
    let (_, result) = get(&stopping, &server, &blob);
    assert!(matches!(result, Err(RegistryError::Interrupted)));
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(server.requests().len() <= 2);
}

#[test]
fn connections_are_used_again() {
    let blob = noise(50_000);
    let served = blob.clone();
    let server = Server::start(move |_| Reply::ok(served.clone()));
    let client = client(&[&server.address]);
    for _ in 0..5 {
        get(&client, &server, &blob).1.unwrap();
    }
    let connections: Vec<usize> = server.requests().iter().map(|r| r.connection).collect();
    assert_eq!(connections, [0; 5]);
}

#[test]
fn servers_without_keep_alive() {
    let blob = noise(50_000);
    type Make = fn(Vec<u8>) -> Reply;
    let makes: [(&str, Make); 5] = [
        ("close", |blob| Reply::ok(blob).close()),
        ("1.0", |blob| Reply::ok(blob).old()),
        ("1.0 without a length", |blob| {
            Reply::ok(blob).unmeasured().old()
        }),
        ("no length", |blob| {
            Reply::ok(blob).unmeasured().header("Connection", "close")
        }),
        ("chunks", |blob| Reply::ok(blob).chunked().close()),
    ];
    for (name, make) in makes {
        let served = blob.clone();
        let server = Server::start(move |_| make(served.clone()));
        let client = client(&[&server.address]);
        for _ in 0..2 {
            let (bytes, result) = get(&client, &server, &blob);
            result.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
            assert!(bytes == blob, "{name}");
        }
        let connections: Vec<usize> = server.requests().iter().map(|r| r.connection).collect();
        assert_eq!(connections, [0, 1], "{name}");
    }
    // One that says it keeps the connection and does not.
    let (served, silent) = (blob.clone(), Counter::default());
    let server = Server::start(move |_| {
        silent.next();
        let mut reply = Reply::ok(served.clone());
        reply.keeps = false;
        reply
    });
    let client = client(&[&server.address]);
    for _ in 0..3 {
        get(&client, &server, &blob).1.unwrap();
    }
}

/// A registry whose tokens are good for so many requests each.
fn forgetful(blob: &[u8], uses: u64, cut: Option<usize>) -> Server {
    let (blob, state) = (blob.to_vec(), Mutex::new((0u64, 0u64)));
    Server::with_address(move |address, request| {
        let mut state = state.lock().unwrap();
        let (token, used) = *state;
        if request.bare() == "/token" {
            *state = (token + 1, 0);
            return Reply::json(format!(r#"{{"token":"T{}","expires_in":300}}"#, token + 1));
        }
        let good = format!("Bearer T{token}");
        if request.authorization() != Some(&good) || used >= uses {
            return Reply::challenge(&format!(
                "Bearer realm=\"http://{address}/token\",service=\"s\",scope=\"repository:x:pull\""
            ));
        }
        *state = (token, used + 1);
        let reply = Reply::range(&blob, request.header("range"));
        match cut {
            Some(bytes) => reply.cut(bytes),
            None => reply,
        }
    })
}

#[test]
fn a_token_that_ends_in_the_middle_is_renewed() {
    let blob = noise(400_000);
    // Each connection brings a part, and each token is good for one.
    let server = forgetful(&blob, 1, Some(100_000));
    let (bytes, result) = get(&client(&[&server.address]), &server, &blob);
    result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(bytes == blob);
    assert_eq!(server.count("/token"), 4, "{:?}", server.paths());
    let ranges: Vec<Option<String>> = server
        .requests()
        .iter()
        .filter(|r| r.path.contains("/blobs/"))
        .map(|r: &Request| r.header("range").map(str::to_owned))
        .collect();
    assert_eq!(
        ranges.iter().flatten().count(),
        6,
        "asked, refused, asked: {ranges:?}"
    );

    // A token that never helps is asked for once.
    let server = forgetful(&blob, 0, None);
    let (_, result) = get(&client(&[&server.address]), &server, &blob);
    assert!(matches!(result, Err(RegistryError::Denied { .. })));
    assert_eq!(server.count("/token"), 1);
}

#[test]
fn a_token_is_renewed_before_it_ends() {
    let blob = noise(1000);
    let (served, count) = (blob.clone(), Counter::default());
    let server = Server::with_address(move |address, request| match request.bare() {
        "/token" => Reply::json(format!(r#"{{"token":"T{}","expires_in":1}}"#, count.next())),
        _ if request.authorization().is_none() => {
            Reply::challenge(&format!("Bearer realm=\"http://{address}/token\""))
        }
        _ => Reply::ok(served.clone()),
    });
    let client = client(&[&server.address]);
    let reference = reference(&format!("{}/x", server.address));
    let repository = client.repository(&reference).unwrap();
    let fetch = || fetch(&repository, &descriptor(&blob), 0).1.unwrap();
    fetch();
    fetch();
    assert_eq!(server.count("/token"), 1);
    std::thread::sleep(Duration::from_millis(950));
    fetch();
    assert_eq!(server.count("/token"), 2);
    let seen: Vec<Option<String>> = server
        .requests()
        .iter()
        .map(|r| r.authorization().map(str::to_owned))
        .collect();
    let refused = seen.iter().filter(|value| value.is_none()).count();
    assert_eq!(refused, 3, "the first request and two for tokens: {seen:?}");
}

#[test]
fn a_token_that_was_taken_back_is_replaced() {
    let blob = noise(1000);
    // Good for one request: the client keeps it, and a second repository finds it useless.
    let server = forgetful(&blob, 1, None);
    let client = client(&[&server.address]);
    for _ in 0..3 {
        get(&client, &server, &blob).1.unwrap();
    }
    assert_eq!(server.count("/token"), 3);
}

#[test]
fn parallel_downloads_share_a_token() {
    let blob = noise(50_000);
    let server = forgetful(&blob, 1000, None);
    let client = client(&[&server.address]);
    let reference = reference(&format!("{}/x", server.address));
    let repository = client.repository(&reference).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| fetch(&repository, &descriptor(&blob), 0).1.unwrap());
        }
    });
    assert_eq!(server.count("/token"), 1);
    // Another repository object for the same thing needs no other.
    let again = client.repository(&reference).unwrap();
    fetch(&again, &descriptor(&blob), 0).1.unwrap();
    assert_eq!(server.count("/token"), 1);
}

#[test]
fn a_wrong_blob_is_fetched_again_once() {
    let good = br#"{"architecture":"amd64","os":"linux"}"#.to_vec();
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[]}}"#,
        digest(&good),
        good.len()
    );
    for (wrong, expect) in [(0, true), (1, true), (2, false), (9, false)] {
        let (good, manifest, count) = (good.clone(), manifest.clone(), Counter::default());
        let server = Server::start(move |request| {
            if request.path.contains("/manifests/") {
                let kind = "application/vnd.oci.image.manifest.v1+json";
                return Reply::ok(manifest.clone()).header("Content-Type", kind);
            }
            let mut bytes = good.clone();
            if count.next() < wrong {
                bytes[3] ^= 1;
            }
            Reply::ok(bytes)
        });
        let client = client(&[&server.address]);
        let reference = reference(&format!("{}/x", server.address));
        let result = client.repository(&reference).unwrap().resolve(&reference);
        assert_eq!(result.is_ok(), expect, "{wrong} wrong");
        let tries = (wrong as usize + 1).min(2);
        assert_eq!(server.count("/blobs/"), tries, "{wrong} wrong");
    }
}
