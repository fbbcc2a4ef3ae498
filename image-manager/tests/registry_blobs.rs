//! Blobs from registries on bad days: cut connections, servers that know no ranges, wrong lengths.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod dialect;

use std::sync::Arc;

use dialect::{Counter, Reply, Server, chain, client, descriptor, fetch, noise, reference};
use image_manager::registry::RegistryError;

/// A server with one blob, and what it answers to a request with this `Range`.
fn serve(answer: impl Fn(Option<&str>) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request| answer(request.header("range")))
}

/// Fetches a blob of `x` from a server.
fn get(server: &Server, blob: &[u8], offset: u64) -> (Vec<u8>, Result<(), RegistryError>) {
    let client = client(&[&server.address]);
    let reference = reference(&format!("{}/x", server.address));
    let repository = client.repository(&reference).unwrap();
    fetch(&repository, &descriptor(blob), offset)
}

#[test]
fn a_blob_from_the_middle() {
    let blob = noise(300_000);
    let served = blob.clone();
    let server = serve(move |range| Reply::range(&served, range));
    for offset in [0, 1, 65_536, 299_999, 300_000] {
        let (bytes, result) = get(&server, &blob, offset as u64);
        result.unwrap();
        assert!(bytes == blob[offset..], "from {offset}");
    }
    let ranges: Vec<Option<String>> = server
        .requests()
        .iter()
        .map(|r| r.header("range").map(str::to_owned))
        .collect();
    let expect = [
        None,
        Some("bytes=1-"),
        Some("bytes=65536-"),
        Some("bytes=299999-"),
    ];
    assert_eq!(ranges, expect.map(|text| text.map(str::to_owned)));
    let (_, result) = get(&server, &blob, 300_001);
    assert!(matches!(result, Err(RegistryError::Forged { .. })));
}

#[test]
fn addresses_of_ipv6() {
    let blob = noise(1000);
    let served = blob.clone();
    let server = Server::start_at("[::1]:0", move |_| Reply::ok(served.clone()));
    let (bytes, result) = get(&server, &blob, 0);
    result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(bytes == blob);
    let host = server.requests()[0].header("host").map(str::to_owned);
    assert_eq!(host.as_deref(), Some(server.address.as_str()));
}

#[test]
fn a_server_without_ranges_sends_it_again() {
    let blob = noise(300_000);
    let served = blob.clone();
    let server = serve(move |_| Reply::ok(served.clone()));
    let (bytes, result) = get(&server, &blob, 200_001);
    result.unwrap();
    assert!(bytes == blob[200_001..]);
    assert_eq!(server.requests().len(), 1, "no second request is needed");
}

#[test]
fn ranges_that_are_answered_wrongly() {
    let blob = noise(100_000);
    let size = blob.len();
    let part = |first: usize, header: String| {
        let bytes = blob[first..].to_vec();
        Reply::new(206, bytes).header("Content-Range", &header)
    };
    let table = [
        part(40_000, format!("bytes 40000-{}/{size}", size - 1)),
        part(50_000, format!("bytes 49999-{}/{size}", size - 1)),
        part(50_000, format!("bytes 50000-{size}/{size}")),
        part(50_000, "chunks 5".into()),
        Reply::new(206, blob[50_000..].to_vec()),
        Reply::status(416),
        Reply::status(416).header("Content-Range", &format!("bytes */{size}")),
    ];
    for reply in table {
        let (served, first) = (blob.clone(), reply.clone());
        let server = serve(move |range| match range {
            Some(_) => first.clone(),
            None => Reply::ok(served.clone()),
        });
        let (bytes, result) = get(&server, &blob, 50_000);
        result.unwrap();
        assert!(bytes == blob[50_000..], "{:?}", reply.headers);
        assert_eq!(server.requests().len(), 2, "{:?}", reply.headers);
    }
    // Another length is another blob, and nobody asked for a part.
    let other = part(50_000, format!("bytes 50000-{}/{}", size - 1, size + 1));
    let whole = part(0, format!("bytes 0-{}/{size}", size - 1));
    for (reply, offset, reason) in [
        (other, 50_000, "the registry has 100001"),
        (whole, 0, "answered 206"),
        (Reply::status(416), 0, "answered 416"),
    ] {
        let server = serve(move |_| reply.clone());
        let (bytes, result) = get(&server, &blob, offset);
        let error = chain(&result.unwrap_err());
        assert!(error.contains(reason), "{error}");
        assert!(bytes.is_empty());
    }
}

#[test]
fn a_connection_cut_at_every_64_kib() {
    const STEP: usize = 65_536;
    let blob = noise(10 * STEP + 12_345);
    // Once at each multiple of 64 KiB, with a length and with chunks.
    for cut in (0..=blob.len()).step_by(STEP) {
        for chunked in [false, true] {
            let (served, count) = (blob.clone(), Arc::new(Counter::default()));
            let server = serve(move |range| {
                let reply = Reply::range(&served, range);
                let reply = if chunked { reply.chunked() } else { reply };
                match count.next() {
                    0 => reply.cut(cut),
                    _ => reply,
                }
            });
            let (bytes, result) = get(&server, &blob, 0);
            result.unwrap_or_else(|error| panic!("cut at {cut}: {}", chain(&error)));
            assert!(bytes == blob, "cut at {cut}");
            let again = server
                .requests()
                .last()
                .unwrap()
                .header("range")
                .map(str::to_owned);
            let expect = (cut > 0).then(|| format!("bytes={cut}-"));
            assert_eq!(again, expect, "only what is missing is asked for");
        }
    }
    // After each 64 KiB, more often than a server may fail: each answer brought something.
    for knows_ranges in [true, false] {
        let (served, count) = (blob.clone(), Counter::default());
        let server = serve(move |range| {
            let cut = match knows_ranges {
                true => STEP,
                false => STEP * (1 + count.next() as usize),
            };
            Reply::range(&served, range.filter(|_| knows_ranges)).cut(cut)
        });
        let (bytes, result) = get(&server, &blob, 0);
        result.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(bytes == blob, "{knows_ranges}");
        assert_eq!(server.requests().len(), 11);
    }
}
