//! What a registry must not get a client to do: believe something else than was asked for, take too
//! much, or write on a terminal.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod dialect;

use std::time::{Duration, Instant};

use dialect::{
    OCI_INDEX, OCI_MANIFEST, Reply, Server, chain, client, descriptor, digest, error_of, fetch,
    manifest_with, noise, patience, reference,
};
use image_manager::registry::{Patience, RegistryError};
use serde_json::json;

#[test]
fn s64_documents_that_are_not_what_was_asked_for() {
    let config = b"{}".to_vec();
    let layer = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": digest(b"x").to_string(), "size": 1,
    });
    let good = manifest_with(layer, &config);
    let with = |from: &str, to: &str| good.replace(from, to);
    let layer_digest = digest(b"x").to_string();
    let both = with("\"layers\":", "\"manifests\":[],\"layers\":");
    let table = [
        (
            with(&layer_digest, "sha256:../../x"),
            "a digest in it is not acceptable",
        ),
        (
            with(&layer_digest, "md5:d41d8cd98f00b204e9800998ecf8427e"),
            "a digest in it",
        ),
        (with(&layer_digest, "sh:rm -rf"), "a digest in it"),
        (
            with(&layer_digest, &layer_digest.to_uppercase()),
            "a digest in it",
        ),
        (with("\"size\":1", "\"size\":-1"), "not a valid document"),
        (with("\"size\":1", "\"size\":1e30"), "not a valid document"),
        (both, "ambiguous"),
        (
            with("layer.v1.tar+gzip", "layer.v1.tar+brotli"),
            "not a file system but",
        ),
        (good[..good.len() - 1].to_owned(), "not a valid document"),
    ];
    for (text, reason) in table {
        let server =
            Server::start(move |_| Reply::ok(text.clone()).header("Content-Type", OCI_MANIFEST));
        let (_, error) = error_of(&client(&[&server.address]), &server.address);
        assert!(error.contains(reason), "{reason}: {error}");
        assert_eq!(server.requests().len(), 1, "what it is like is no accident");
    }
    // Digests that do not fit: once again, and then no more.
    let zeros = format!("sha256:{}", "0".repeat(64));
    let announced = good.clone();
    let header = zeros.clone();
    let server = Server::start(move |_| {
        Reply::ok(announced.clone())
            .header("Content-Type", OCI_MANIFEST)
            .header("Docker-Content-Digest", &header)
    });
    let (error, text) = error_of(&client(&[&server.address]), &server.address);
    assert!(matches!(error, RegistryError::Forged { .. }), "{text}");
    assert_eq!(server.requests().len(), 2);
    let by_digest = reference(&format!("{}/x:tag@{zeros}", server.address));
    let client = client(&[&server.address]);
    let repository = client.repository(&by_digest).unwrap();
    let error = repository.resolve(&by_digest).unwrap_err();
    assert!(matches!(error, RegistryError::Forged { .. }), "{error}");
    let last = server.paths().pop().unwrap();
    assert_eq!(
        last,
        format!("/v2/x/manifests/{zeros}"),
        "the digest counts, not the tag"
    );
}

#[test]
fn s66_there_are_limits_to_everything() {
    let index_of = |count: usize| {
        let entry = json!({
            "mediaType": OCI_MANIFEST, "digest": digest(b"x").to_string(), "size": 1,
            "platform": {"os": "plan9", "architecture": "mips"},
        });
        json!({"schemaVersion": 2, "manifests": vec![entry; count]}).to_string()
    };
    let layers_of = |count: usize| {
        let layer = json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest(b"x").to_string(), "size": 1,
        });
        let text = manifest_with(layer.clone(), b"{}");
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["layers"] = json!(vec![layer; count]);
        value.to_string()
    };
    let manifest = |text: String| Reply::ok(text).header("Content-Type", OCI_MANIFEST);
    let deep = "[".repeat(200_000);
    let table = [
        (
            manifest("x".into()).endless().announce(1 << 40),
            "larger than 4194304",
        ),
        (
            manifest(" ".repeat(60_000)).unmeasured().endless(),
            "larger than 4194304",
        ),
        (
            manifest(" ".repeat(60_000)).chunked().endless(),
            "larger than 4194304",
        ),
        (manifest(layers_of(10_000)), "10000 layers, more than"),
        (
            Reply::ok(index_of(10_000)).header("Content-Type", OCI_INDEX),
            "10000 images, more than",
        ),
        (manifest(deep), "not a valid document"),
        (
            Reply::new(500, vec![b'x'; 60_000]).unmeasured().endless(),
            "answered 500",
        ),
        (
            Reply::ok("").header("X", &"y".repeat(1 << 20)),
            "cannot reach",
        ),
    ];
    for (reply, reason) in table {
        let server = Server::start(move |_| reply.clone());
        let client = client(&[&server.address]).with_patience(Patience {
            retries: 0,
            ..patience()
        });
        let begin = Instant::now();
        let (_, error) = error_of(&client, &server.address);
        let error = error.chars().take(500).collect::<String>();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{reason}");
    }
    // A token and a blob have limits, too.
    let server = Server::with_address(|address, request| match request.bare() {
        "/token" => Reply::json(vec![b' '; 60_000]).unmeasured().endless(),
        _ => Reply::challenge(&format!("Bearer realm=\"http://{address}/token\"")),
    });
    let (_, error) = error_of(&client(&[&server.address]), &server.address);
    assert!(error.contains("the token from"), "{error}");
    let blob = noise(1000);
    let endless = Reply::ok("").unmeasured().endless();
    let server = Server::start(move |_| endless.clone());
    let one = client(&[&server.address]);
    let name = reference(&format!("{}/x", server.address));
    let repository = one.repository(&name).unwrap();
    let (bytes, result) = fetch(&repository, &descriptor(&blob), 0);
    assert!(result.is_err() && bytes.len() <= blob.len());
    // Indexes that lead to themselves, or wide and deep.
    let server = Server::start(move |request| {
        let depth = request.path.len();
        let next =
            json!({"mediaType": OCI_INDEX, "digest": digest(b"x").to_string(), "size": depth});
        let text = json!({"schemaVersion": 2, "manifests": [next]}).to_string();
        Reply::ok(text).header("Content-Type", OCI_INDEX)
    });
    let (error, text) = error_of(&client(&[&server.address]), &server.address);
    assert!(matches!(error, RegistryError::Forged { .. }), "{text}");
    assert!(server.requests().len() <= 4);
}

#[test]
fn s76_what_a_registry_says_is_harmless_on_a_terminal() {
    let evil = "\u{1b}[2J\u{202e}evil\u{7}\u{9b}\u{2066}";
    let escaped = json!(evil).to_string();
    let escaped = escaped.trim_matches('"');
    let manifest = |text: &str, kind: &str| Reply::ok(text).header("Content-Type", kind);
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": digest(b"x").to_string(), "size": 1,
        "platform": {"os": evil, "architecture": evil, "variant": evil},
    }]});
    let kind = format!(r#"{{"mediaType":"{escaped}"}}"#);
    let errors = format!(r#"{{"errors":[{{"message":"{escaped}\nsecond"}}]}}"#);
    let layer = json!({"mediaType": evil, "digest": digest(b"x").to_string(), "size": 1});
    let digests = json!({"mediaType": OCI_MANIFEST, "digest": evil, "size": 1});
    let table = [
        Reply::new(404, errors.clone()),
        Reply::new(401, errors.clone()),
        Reply::new(403, evil),
        Reply::new(500, errors.clone()),
        Reply::new(418, format!("<{evil}>\n")),
        manifest(&index.to_string(), OCI_INDEX),
        manifest(&kind, "application/json"),
        manifest("{}", &format!("text/{evil}")),
        manifest(&manifest_with(layer, b"{}"), OCI_MANIFEST),
        manifest(&json!({"manifests": [digests]}).to_string(), OCI_INDEX),
        manifest("{}", OCI_MANIFEST).header("Docker-Content-Digest", "sha256:\u{202e}\u{9b}"),
        Reply::redirect("https://a/\u{1b}[2J"),
        Reply::redirect("gopher://\u{202e}"),
        Reply::challenge("Bearer realm=\"\u{1b}[2J\u{202e}\""),
        Reply::challenge("Bearer realm=\"http://127.0.0.1:1/\u{202e}?x\""),
    ];
    for reply in table {
        let shown = format!("{reply:?}").chars().take(300).collect::<String>();
        let server = Server::start(move |_| reply.clone());
        let client = client(&[&server.address]).with_patience(Patience {
            retries: 0,
            ..patience()
        });
        let (error, _) = error_of(&client, &server.address);
        let text = format!("{}{}", chain(&error), error.hint().unwrap_or_default());
        let is_harmless = |c: char| {
            !c.is_control() && !matches!(c, '\u{200e}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        assert!(text.chars().all(is_harmless), "{shown}: {text:?}");
        assert!(text.len() < 4096, "{shown}: {} bytes", text.len());
    }
}
