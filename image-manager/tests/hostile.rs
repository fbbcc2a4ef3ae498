//! Pulls from registries that lie. Nothing may come of it: no image, no file outside the cache, no
//! credentials for strangers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod site;

use std::collections::BTreeMap;
use std::fs;

use serde_json::json;
use site::Site;
use site::image::{self, Blob, Image, Layer, Packing, small};
use site::mock::{Mock, Reply, honest};

const SECRET: &str = "Basic YWxpY2U6c2VjcmV0";

/// A server with one answer changed, and a site that knows it.
fn with(path: &str, reply: Reply) -> (Mock, Site, String) {
    let mut replies = honest(&small("x"));
    assert!(replies.insert(path.to_owned(), reply).is_some(), "{path}");
    serve(replies)
}

fn serve(replies: BTreeMap<String, Reply>) -> (Mock, Site, String) {
    let mock = Mock::paths(replies);
    let site = Site::new(&[&mock.address]);
    let reference = format!("{}/x", mock.address);
    (mock, site, reference)
}

fn log_in(site: &Site, registry: &str) {
    fs::create_dir(site.home().join(".docker")).unwrap();
    let text = json!({"auths": {registry: {"auth": &SECRET[6..]}}}).to_string();
    fs::write(site.home().join(".docker/config.json"), text).unwrap();
}

fn layer_path(image: &Image) -> String {
    format!("/v2/x/blobs/{}", image.layers[0].blob.digest())
}

fn config_path(image: &Image) -> String {
    format!("/v2/x/blobs/{}", image.config.digest())
}

const MANIFEST: &str = "/v2/x/manifests/latest";

#[test]
fn an_honest_server_is_believed() {
    let (mock, site, reference) = serve(honest(&small("x")));
    site.ok(&["pull", &reference]);
    assert_eq!(site.read(&reference, "etc/motd"), "x");
    assert!(
        mock.requests()
            .iter()
            .all(|request| request.authorization.is_none())
    );
    // Also without lengths: a chunked or closed answer is checked by its digest.
    let unmeasured = |reply: Reply| match reply {
        Reply::Full(status, headers, body) => Reply::Unmeasured(status, headers, body),
        other => other,
    };
    let replies = honest(&small("x"))
        .into_iter()
        .map(|(path, reply)| (path, unmeasured(reply)));
    let (_mock, site, reference) = serve(replies.collect());
    site.ok(&["pull", &reference]);
}

#[test]
fn blobs_that_are_not_what_was_promised() {
    let image = small("x");
    let blob = image.layers[0].blob.bytes.clone();
    let mut flipped = blob.clone();
    flipped[20] ^= 1;
    let mut longer = blob.clone();
    longer.push(0);
    let octets = |bytes: &[u8]| Reply::ok(&Blob::new("application/octet-stream", bytes));
    let length = blob.len() as u64;
    let table = [
        (octets(&flipped), "its digest is sha256:"),
        (octets(&longer), "promises"),
        (octets(&blob[1..]), "promises"),
        (octets(b""), "promises"),
        (
            Reply::Unmeasured(200, Vec::new(), longer.clone()),
            "the registry sends more",
        ),
        (
            Reply::Unmeasured(200, Vec::new(), blob[1..].to_vec()),
            "the registry sent",
        ),
        (Reply::Endless, "the registry sends more"),
        (Reply::Announced(length + 1, blob.clone()), "promises"),
        (Reply::Cut(length, blob[..9].to_vec()), "broke off"),
        (Reply::status(500), "answered 500"),
        (Reply::status(404), "not found in the registry"),
    ];
    for (reply, reason) in table {
        let code = if reason.starts_with("not found") {
            4
        } else {
            7
        };
        let (_mock, site, reference) = with(&layer_path(&image), reply.clone());
        site.fails(&["pull", &reference], code, reason);
        assert_eq!(site.image_count(), 0, "{reason}");
        let (_mock, site, reference) = with(&config_path(&image), reply);
        site.fails(&["pull", &reference], code, "");
        assert_eq!(site.image_count(), 0, "{reason}");
    }
}

/// Pulls an image of one layer whose blob is answered by `answers` in turn, the last one for good.
/// Its requests tell how often.
fn in_turn(image: &Image, answers: Vec<Vec<u8>>) -> (Mock, Site, String) {
    let (replies, path) = (honest(image), layer_path(image));
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let mock = Mock::start(move |request| {
        if request.path != path {
            let reply = replies.get(&request.path).cloned();
            return reply.unwrap_or_else(|| Reply::status(404));
        }
        let turn = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let answer = &answers[turn.min(answers.len() - 1)];
        Reply::ok(&Blob::new("application/octet-stream", answer.as_slice()))
    });
    let site = Site::new(&[&mock.address]);
    let reference = format!("{}/x", mock.address);
    (mock, site, reference)
}

/// A wrong blob may break the decoder long before its last byte, and is a wrong blob all the same;
/// a right one that is damaged is the image's own fault, and is not fetched again.
#[test]
fn a_blob_is_judged_by_its_digest_before_its_content() {
    let (usual, megabyte) = (Packing::Gzip, 1 << 20);
    let table = [
        (usual, 40_000),
        (usual, megabyte + megabyte / 4),
        (usual, 3 * megabyte),
        (Packing::Zstd, 40_000),
        (Packing::Zstd, 3 * megabyte),
    ];
    for (packing, size) in table {
        // Of few different bytes, so that there is something to decode.
        let mut noise = image::noise(7, 2 * size);
        noise.iter_mut().for_each(|byte| *byte &= 0xf);
        let files = [("data", noise.as_slice()), ("etc/motd", b"whole")];
        let image = image::image("amd64", json!({}), &[image::layer(packing, &files)]);
        let right = image.layers[0].blob.bytes.clone();
        let mut wrong = right.clone();
        wrong[20_000..20_512].fill(0xff);
        let case = format!("{packing:?} of {size} bytes");
        let times = |mock: &Mock| {
            let path = layer_path(&image);
            let requests = mock.requests();
            requests.iter().filter(|r| r.path == path).count()
        };

        let (mock, site, reference) = in_turn(&image, vec![wrong.clone(), right]);
        site.ok(&["pull", &reference]);
        assert_eq!(site.read(&reference, "etc/motd"), "whole", "{case}");
        assert_eq!(times(&mock), 2, "{case}");

        let (mock, site, reference) = in_turn(&image, vec![wrong.clone()]);
        site.fails(&["pull", &reference], 7, "its digest is sha256:");
        assert_eq!((times(&mock), site.image_count()), (2, 0), "{case}");

        let layer = image.layers[0].clone();
        let blob = Blob::new(&layer.blob.media_type, wrong);
        let diff_id = layer.diff_id;
        let damaged = image::image("amd64", json!({}), &[Layer { blob, diff_id }]);
        let (mock, site, reference) = serve(honest(&damaged));
        site.fails(&["pull", &reference], 4, "layer 1");
        let path = layer_path(&damaged);
        let requests = mock.requests();
        let asked = requests.iter().filter(|r| r.path == path).count();
        assert_eq!((asked, site.image_count()), (1, 0), "{case}");
    }
}

#[test]
fn manifests_that_are_not_what_was_promised() {
    let image = small("x");
    let text = String::from_utf8(image.manifest.bytes.clone()).unwrap();
    let layer = image.layers[0].blob.digest();
    let manifest = |text: String| Reply::ok(&Blob::new(image::OCI_MANIFEST, text));
    let with_header = |name: &str, value: &str| match manifest(text.clone()) {
        Reply::Full(status, mut headers, body) => {
            headers.push((name.into(), value.into()));
            Reply::Full(status, headers, body)
        }
        other => other,
    };
    let zeros = format!("sha256:{}", "0".repeat(64));
    let huge = vec![b' '; 200 << 20];
    let both = text.replace("\"layers\":", "\"manifests\":[],\"layers\":");
    let table = [
        (manifest(both), 7, "it is ambiguous"),
        (
            manifest(text.replace(&layer, "sha256:../../x")),
            7,
            "'sha256:../../x'",
        ),
        (
            manifest(text.replace(&layer, "md5:d41d8cd98f00b204e9800998ecf8427e")),
            7,
            "'md5:",
        ),
        (
            manifest(text.replace(&layer, &layer.to_uppercase())),
            7,
            "a digest in it",
        ),
        (
            Reply::ok(&Blob::new(image::OCI_MANIFEST, huge)),
            7,
            "is larger than 4194304 bytes",
        ),
        (Reply::Endless, 7, "is larger than 4194304 bytes"),
        (
            Reply::Announced(1 << 40, text.clone().into()),
            7,
            "is larger than 4194304 bytes",
        ),
        (
            with_header("Docker-Content-Digest", &zeros),
            7,
            "its digest is not sha256:0000",
        ),
        (
            with_header("Docker-Content-Digest", "md5:abc"),
            7,
            "'md5:abc' is not acceptable",
        ),
        (Reply::json("{}"), 4, "not a container image"),
        (Reply::json("<html>"), 7, "not a valid document"),
        (
            Reply::json(r#"{"schemaVersion":1,"fsLayers":[]}"#),
            4,
            "schema 1",
        ),
        (
            Reply::ok(&Blob::new(
                image::OCI_MANIFEST,
                text.replace(image::OCI_MANIFEST, image::OCI_INDEX),
            )),
            7,
            "it is ambiguous",
        ),
        (
            Reply::ok(&Blob::new(image::OCI_INDEX, "{\"manifests\":[]}")),
            4,
            "does not exist for",
        ),
    ];
    for (reply, code, reason) in table {
        let (_mock, site, reference) = with(MANIFEST, reply);
        site.fails(&["pull", &reference], code, reason);
        assert_eq!(site.image_count(), 0);
    }

    // By digest, the body is compared with what was asked for.
    let other = zeros;
    let mut replies = honest(&image);
    replies.insert(format!("/v2/x/manifests/{other}"), manifest(text));
    let (_mock, site, reference) = serve(replies);
    site.fails(
        &["pull", &format!("{reference}@{other}")],
        7,
        "its digest is not sha256:0000",
    );
}

#[test]
fn indexes_that_are_not_what_was_promised() {
    let image = small("x");
    let here = image_manager::registry::host_architecture();
    let index = image::index(image::OCI_INDEX, &[(&image, &format!("linux/{here}"))]);
    let text = String::from_utf8(index.bytes).unwrap();
    let size = format!("\"size\":{}", image.manifest.bytes.len());
    let loops = Blob::new(image::OCI_INDEX, text.clone());
    let table = [
        (
            text.replace(&size, "\"size\":7"),
            "the index promises 7 bytes",
        ),
        (
            text.replacen(image::OCI_MANIFEST, image::OCI_INDEX, 1),
            "the index promises a 'application/vnd.oci.image.index.v1+json'",
        ),
        (
            text.replacen("sha256:", "sha1:", 1),
            "a digest in it is not acceptable",
        ),
    ];
    for (text, reason) in table {
        let reply = Reply::ok(&Blob::new(image::OCI_INDEX, text));
        let (_mock, site, reference) = with(MANIFEST, reply);
        site.fails(&["pull", &reference], 7, reason);
    }
    let (_mock, site, reference) = with(MANIFEST, Reply::ok(&loops));
    site.ok(&["pull", &reference]);
}

#[test]
fn a_configuration_cannot_be_replayed_with_other_layers() {
    let (good, evil) = (small("good"), small("evil"));
    let text = String::from_utf8(good.manifest.bytes.clone()).unwrap();
    let size = |image: &Image| format!("\"size\":{}}}]", image.layers[0].blob.bytes.len());
    let text = text
        .replace(&good.layers[0].blob.digest(), &evil.layers[0].blob.digest())
        .replace(&size(&good), &size(&evil));
    let forged = Image {
        manifest: Blob::new(image::OCI_MANIFEST, text),
        config: good.config,
        layers: evil.layers,
    };
    let (_mock, site, reference) = serve(honest(&forged));
    site.fails(&["pull", &reference], 4, "cannot build the image");
    assert_eq!(site.image_count(), 0);
}

#[test]
fn redirects_never_carry_the_login_elsewhere() {
    let image = small("x");
    let blob = image.layers[0].blob.clone();
    let elsewhere = Mock::start({
        let blob = blob.clone();
        move |_| Reply::ok(&blob)
    });
    let mut replies = honest(&image);
    let target = format!("http://{}/cdn?signature=1", elsewhere.address);
    replies.insert(layer_path(&image), Reply::redirect(&target));
    let mock = Mock::start(move |request| match request.authorization.as_deref() {
        Some(SECRET) => replies
            .get(&request.path)
            .cloned()
            .unwrap_or(Reply::status(404)),
        _ => Reply::challenge("Basic realm=\"x\""),
    });
    let site = Site::new(&[&mock.address, &elsewhere.address]);
    log_in(&site, &mock.address);
    let reference = format!("{}/x", mock.address);
    site.ok(&["pull", &reference]);
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].path, "/cdn?signature=1");
    assert!(
        seen.iter().all(|request| request.authorization.is_none()),
        "{seen:?}"
    );
    assert!(
        mock.requests()
            .iter()
            .any(|request| request.authorization.is_some())
    );
}

#[test]
fn redirects_that_are_not_followed() {
    let image = small("x");
    let stranger = Mock::start(|_| Reply::status(200));
    let to_stranger = format!("http://{}/secret?signature=1", stranger.address);
    let table = [
        (to_stranger.as_str(), "plain http is not configured for it"),
        (MANIFEST, "too many redirects"),
        ("file:///etc/passwd", "not an http or https address"),
        ("gopher://127.0.0.1/x", "not an http or https address"),
        ("http://user:pw@127.0.0.1/x", "not an http or https address"),
        ("//[", "not an http or https address"),
    ];
    for (target, reason) in table {
        for path in [MANIFEST.to_owned(), layer_path(&image)] {
            // A layer's redirect to itself is the loop there.
            let target = if target == MANIFEST {
                path.as_str()
            } else {
                target
            };
            let (mock, site, reference) = with(&path, Reply::redirect(target));
            let run = site.fails(&["pull", &reference], 7, reason);
            assert!(!run.stderr.contains("signature"), "{run:?}");
            assert!(mock.requests().len() <= 10, "{}", mock.requests().len());
        }
    }
    assert!(stranger.requests().is_empty(), "{:?}", stranger.requests());
}

/// A registry with a token server on the same address; the token for `login` is `good`.
fn token_registry(login: Option<&'static str>, answer: &'static str) -> Mock {
    let replies = honest(&small("x"));
    let address = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let mock = Mock::start({
        let address = std::sync::Arc::clone(&address);
        move |request| {
            if request.path.starts_with("/token?") {
                return match request.authorization.as_deref() == login {
                    true => Reply::json(answer),
                    false => Reply::status(401),
                };
            }
            match request.authorization.as_deref() {
                Some("Bearer good") => replies
                    .get(&request.path)
                    .cloned()
                    .unwrap_or(Reply::status(404)),
                _ => Reply::challenge(&format!(
                    "Bearer realm=\"http://{}/token\",service=\"a b\",scope=\"repository:x:pull\"",
                    address.get().unwrap()
                )),
            }
        }
    });
    address.set(mock.address.clone()).unwrap();
    mock
}

#[test]
fn token_servers() {
    for answer in [
        r#"{"token":"good"}"#,
        r#"{"access_token":"good","expires_in":60}"#,
    ] {
        let mock = token_registry(None, answer);
        let site = Site::new(&[&mock.address]);
        site.ok(&["pull", &format!("{}/x", mock.address)]);
        let tokens: Vec<_> = mock
            .requests()
            .into_iter()
            .filter(|r| r.path.starts_with("/token"))
            .collect();
        assert_eq!(tokens.len(), 1, "one token serves the whole pull");
        assert_eq!(
            tokens[0].path,
            "/token?service=a%20b&scope=repository:x:pull"
        );
    }
    let mock = token_registry(Some(SECRET), r#"{"token":"good"}"#);
    let site = Site::new(&[&mock.address]);
    let reference = format!("{}/x", mock.address);
    site.fails(&["pull", &reference], 3, "denied access (401)");
    log_in(&site, &mock.address);
    site.ok(&["pull", &reference]);
    let leaked = |r: &site::mock::Request| {
        r.authorization.as_deref() == Some(SECRET) && !r.path.starts_with("/token?")
    };
    assert!(
        !mock.requests().iter().any(leaked),
        "the login goes to the token server only"
    );

    for answer in ["{}", "<html>", r#"{"token":"a\r\nX: y"}"#] {
        let mock = token_registry(None, answer);
        let site = Site::new(&[&mock.address]);
        site.fails(
            &["pull", &format!("{}/x", mock.address)],
            7,
            "sent no usable token",
        );
    }
}

#[test]
fn refusals_end() {
    let stranger = Mock::start(|_| Reply::json(r#"{"token":"good"}"#));
    let realm = format!("Bearer realm=\"http://{}/token\"", stranger.address);
    let table = [
        ("Basic realm=\"x\"", 3, "denied access (401)"),
        ("Negotiate", 3, "denied access (401)"),
        ("", 3, "denied access (401)"),
        (realm.as_str(), 7, "does not use https"),
        (
            "Bearer realm=\"file:///etc/passwd\"",
            7,
            "is not an address",
        ),
        ("Bearer", 7, "is not an address"),
    ];
    for (challenge, code, reason) in table {
        let challenge = challenge.to_owned();
        let mock = Mock::start(move |_| Reply::challenge(&challenge));
        let site = Site::new(&[&mock.address]);
        log_in(&site, &mock.address);
        site.fails(&["pull", &format!("{}/x", mock.address)], code, reason);
        assert!(mock.requests().len() <= 8, "{}", mock.requests().len());
    }
    assert!(stranger.requests().is_empty());

    // A token server that always gives a token, and a registry that never takes it.
    let mock = token_registry(None, r#"{"token":"bad"}"#);
    let site = Site::new(&[&mock.address]);
    log_in(&site, &mock.address);
    site.fails(
        &["pull", &format!("{}/x", mock.address)],
        3,
        "denied access (401)",
    );
    assert!(mock.requests().len() <= 10, "{}", mock.requests().len());
}

#[test]
fn what_a_registry_says_is_harmless() {
    let message = "\u{1b}[2Jevil\u{202e}\nsecond line";
    let body = json!({"errors": [{"code": "X", "message": message}]}).to_string();
    let reply = Reply::Full(500, Vec::new(), body.into());
    let (_mock, site, reference) = with(MANIFEST, reply);
    let run = site.fails(
        &["pull", &reference],
        7,
        "answered 500: \\u{1b}[2Jevil\\u{202e}",
    );
    assert!(!run.stderr.contains('\u{1b}'), "{run:?}");
}

#[test]
fn proxies_of_the_environment() {
    let replies = honest(&small("x"));
    // It gets the whole address, as from curl: many open no tunnel to port 80.
    let proxy = Mock::start(move |request| {
        let path = request.path.strip_prefix("http://registry.test");
        let reply = path.and_then(|path| replies.get(path).cloned());
        reply.unwrap_or(Reply::status(404))
    });
    let site = Site::new(&["registry.test"]);
    let pull = |no_proxy: &str| {
        let mut command = site.command(&["pull", "--quiet", "registry.test/x"]);
        command
            .env("http_proxy", format!("http://{}", proxy.address))
            .env("no_proxy", no_proxy);
        site::run(&mut command)
    };
    let direct = pull(".test");
    assert_eq!(direct.code, 7, "there is no such host: {direct:?}");
    assert!(proxy.requests().is_empty());
    let through = pull("other.test");
    assert_eq!(through.code, 0, "{through:?}");
    assert_eq!(site.read("registry.test/x", "etc/motd"), "x");
}
