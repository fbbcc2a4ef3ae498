//! Where images come from: mirrors, lists, platforms, and the logins of files and helpers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod dialect;
mod site;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dialect::{Reply, Request, Server, chain, client, fetch, patience, reference};
use image_manager::registry::{
    Access, Client, Event, Logins, Proxies, RegistryError, Rules, User, Wanted,
};
use serde_json::json;
use shifter_core::config::Registries;
use site::image::{self, Blob, Image, Packing, image, index, layer, small};
use site::{Site, run};

/// The answers of a registry that has `image` as `repository:latest`.
fn has(repository: &str, image: &Image) -> BTreeMap<String, Blob> {
    let mut blobs = BTreeMap::new();
    for name in ["latest".to_owned(), image.manifest.digest()] {
        let path = format!("/v2/{repository}/manifests/{name}");
        blobs.insert(path, image.manifest.clone());
    }
    for blob in image.blobs() {
        blobs.insert(
            format!("/v2/{repository}/blobs/{}", blob.digest()),
            blob.clone(),
        );
    }
    blobs
}

fn answer(blobs: &BTreeMap<String, Blob>, request: &Request) -> Reply {
    match blobs.get(&request.path) {
        Some(blob) => Reply::ok(blob.bytes.clone()).header("Content-Type", &blob.media_type),
        None => Reply::status(404),
    }
}

fn serve(repository: &str, image: &Image) -> Server {
    let blobs = has(repository, image);
    Server::start(move |request| answer(&blobs, request))
}

/// Rules for `upstream.test` with these mirrors; everything is plain http.
fn mirrored(mirrors: &[&str], more: &str) -> Rules {
    let list: Vec<String> = mirrors
        .iter()
        .map(|mirror| format!("\"{mirror}\""))
        .collect();
    let mut text = format!(
        "[registry.\"upstream.test\"]\nplain_http = true\nmirrors = [{}]\n{more}\n",
        list.join(", ")
    );
    for mirror in mirrors {
        let host = mirror.split('/').next().unwrap();
        text.push_str(&format!("[registry.\"{host}\"]\nplain_http = true\n"));
    }
    let file = Registries::parse(&text, Path::new("/r")).unwrap();
    Rules::of_site(BTreeMap::new(), file).unwrap()
}

/// Resolves `upstream.test/a/b` and fetches its layer; the server is the proxy to `upstream.test`.
fn pull(rules: Rules, upstream: &Server) -> (Result<(), RegistryError>, Vec<String>) {
    let proxy = format!("http://{}", upstream.address);
    let proxies = Proxies::from_env(|name| (name == "http_proxy").then(|| proxy.clone()));
    let events: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = Arc::clone(&events);
    let client = Client::new(rules, Logins::default(), proxies)
        .with_patience(patience())
        .with_watch(move |event| {
            if let Event::NextSource { next, .. } = event {
                record.lock().unwrap().push((*next).to_owned());
            }
        });
    let reference = reference("upstream.test/a/b");
    let repository = client.repository(&reference).unwrap();
    let result = repository.resolve(&reference).and_then(|resolved| {
        assert_eq!(resolved.access, Access::Public);
        fetch(&repository, &resolved.manifest.layers[0], 0).1
    });
    let events = events.lock().unwrap().clone();
    (result, events)
}

/// The registry itself, behind a proxy.
fn upstream(image: &Image) -> Server {
    let blobs = has("a/b", image);
    Server::start(move |request| answer(&blobs, request))
}

#[test]
fn s72_mirrors_in_their_order() {
    let content = small("mirrored");
    let first = serve("cache/a/b", &content);
    let second = serve("a/b", &content);
    let origin = upstream(&content);
    let place = format!("{}/cache", first.address);
    let (result, events) = pull(mirrored(&[&place, &second.address], ""), &origin);
    result.unwrap();
    assert!(events.is_empty(), "{events:?}");
    assert_eq!(first.requests().len(), 3);
    assert!(second.requests().is_empty() && origin.requests().is_empty());

    // What the first does not have the second gives, and then it is asked first for the rest.
    let empty = Server::start(|_| Reply::status(404));
    let (result, events) = pull(mirrored(&[&empty.address, &second.address], ""), &origin);
    result.unwrap();
    assert_eq!(events, std::slice::from_ref(&second.address));
    assert_eq!((empty.requests().len(), second.requests().len()), (1, 3));
    assert!(origin.requests().is_empty());
}

#[test]
fn mirrors_that_fail_are_passed_over() {
    let content = small("mirrored");
    let origin = upstream(&content);
    let forged = content.manifest.bytes.clone();
    let failures = [
        Reply::status(503),
        Reply::status(401),
        Reply::status(403),
        Reply::redirect("http://elsewhere.test/"),
        Reply::ok("<html>"),
        Reply::ok(forged).header(
            "Docker-Content-Digest",
            &format!("sha256:{}", "0".repeat(64)),
        ),
    ];
    for failure in failures {
        let shown = format!("{failure:?}");
        let mirror = Server::start(move |_| failure.clone());
        let before = origin.requests().len();
        let (result, events) = pull(mirrored(&[&mirror.address], ""), &origin);
        result.unwrap_or_else(|error| panic!("{shown}: {}", chain(&error)));
        assert!(events.iter().all(|next| next == "upstream.test") && !events.is_empty());
        assert!(origin.requests().len() > before);
        // Never asked for long: once more where it may pass, per document.
        assert!(
            mirror.requests().len() <= 2,
            "{shown}: {}",
            mirror.requests().len()
        );
    }
    // Nobody listens at all.
    let (result, _) = pull(mirrored(&["127.0.0.1:1"], ""), &origin);
    result.unwrap();
    // A mirror that breaks off in the middle of the layer: the rest comes from the registry.
    let blobs = has("a/b", &content);
    let layer = format!("/v2/a/b/blobs/{}", content.layers[0].blob.digest());
    let path = layer.clone();
    let mirror = Server::start(move |request| match request.path == path {
        true => answer(&blobs, request).cut(20),
        false => answer(&blobs, request),
    });
    let (result, _) = pull(mirrored(&[&mirror.address], ""), &origin);
    result.unwrap();
    assert!(mirror.count(&layer) > 0);
    // And one that gives wrong bytes: the next try begins with the registry.
    let mut blobs = has("a/b", &content);
    blobs.get_mut(&layer).unwrap().bytes[20] ^= 1;
    let mirror = Server::start(move |request| answer(&blobs, request));
    let (result, _) = pull(mirrored(&[&mirror.address], ""), &origin);
    assert!(matches!(result, Err(RegistryError::Forged { .. })));
}

#[test]
fn after_a_forged_layer_the_next_source_is_asked() {
    let content = small("mirrored");
    let origin = serve("a/b", &content);
    let mut blobs = has("a/b", &content);
    let layer = &content.layers[0].blob;
    let path = format!("/v2/a/b/blobs/{}", layer.digest());
    blobs.get_mut(&path).unwrap().bytes[20] ^= 1;
    let mirror = Server::start(move |request| answer(&blobs, request));
    let text = format!(
        "[registry.\"{0}\"]\nplain_http = true\nmirrors = [\"{1}\"]\n\
         [registry.\"{1}\"]\nplain_http = true\n",
        origin.address, mirror.address
    );
    let rules = Rules::of_site(
        BTreeMap::new(),
        Registries::parse(&text, Path::new("/r")).unwrap(),
    );
    let client = Client::new(rules.unwrap(), Logins::default(), Proxies::default());
    let reference = reference(&format!("{}/a/b", origin.address));
    let repository = client.repository(&reference).unwrap();
    let resolved = repository.resolve(&reference).unwrap();
    let get = || fetch(&repository, &resolved.manifest.layers[0], 0);
    let (_, result) = get();
    assert!(matches!(result, Err(RegistryError::Forged { .. })));
    let (bytes, result) = get();
    result.unwrap();
    assert!(bytes == layer.bytes);
    assert_eq!((mirror.count(&path), origin.count(&path)), (1, 1));
}

#[test]
fn a_mirror_sees_no_login_of_the_registry() {
    let mirror = Server::start(|request| match request.bare() {
        "/token" => Reply::json(r#"{"token":"anonymous"}"#),
        _ => Reply::challenge("Basic realm=\"x\""),
    });
    let origin = Server::start(|_| Reply::challenge("Basic realm=\"x\""));
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".docker")).unwrap();
    let text = json!({"auths": {"upstream.test": {"username": "u", "password": "p"}}});
    fs::write(home.path().join(".docker/config.json"), text.to_string()).unwrap();
    let logins = Logins::of_home(home.path(), rustix::process::geteuid().as_raw());
    let proxy = format!("http://{}", origin.address);
    let proxies = Proxies::from_env(|name| (name == "http_proxy").then(|| proxy.clone()));
    let client = Client::new(mirrored(&[&mirror.address], ""), logins, proxies);
    let reference = reference("upstream.test/a/b");
    let repository = client.repository(&reference).unwrap();
    let error = repository.resolve(&reference).unwrap_err();
    assert!(
        matches!(
            error,
            RegistryError::Denied {
                with_login: true,
                ..
            }
        ),
        "{error}"
    );
    let logins = |server: &Server| {
        let seen = server.requests();
        seen.iter().filter(|r| r.authorization().is_some()).count()
    };
    assert_eq!((logins(&mirror), logins(&origin)), (0, 1));
}

#[test]
fn s72_every_command_resolves_alike_and_the_hub_is_not_asked() {
    let content = small("site");
    let mirror = serve("hub/library/ubuntu", &content);
    let site = Site::with_config("", "");
    site.registries(&format!(
        "retries = 0\n[registry.\"docker.io\"]\nmirrors = [\"{0}/hub\"]\nmirrors_only = true\n\
         [registry.\"{0}\"]\nplain_http = true\n",
        mirror.address
    ));
    // Whoever asks for Docker Hub asks this proxy.
    let hub = Server::start(|_| Reply::status(502));
    let command = |args: &[&str]| {
        let mut command = site.command(args);
        for name in ["https_proxy", "http_proxy", "all_proxy"] {
            command.env(name, format!("http://{}", hub.address));
        }
        run(&mut command)
    };
    let pulled = command(&["pull", "--json", "ubuntu"]);
    assert_eq!(pulled.code, 0, "{pulled:?}");
    let record = site::done(&pulled.stdout);
    assert_eq!(
        record["reference"], "docker:ubuntu:latest",
        "a mirror changes no name"
    );
    for name in [
        "ubuntu",
        "docker.io/ubuntu",
        "index.docker.io/library/ubuntu:latest",
    ] {
        let found = command(&["lookup", name]);
        assert_eq!(
            found.stdout.trim(),
            record["id"].as_str().unwrap(),
            "{found:?}"
        );
    }
    let seen = mirror.requests().len();
    let missing = command(&["pull", "debian"]);
    assert_eq!(missing.code, 4, "{missing:?}");
    assert!(mirror.requests().len() > seen);
    assert!(hub.requests().is_empty(), "{:?}", hub.requests());
    // The user's own file does not bring the Hub back.
    let own = site.home().join(".config/shifter");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("registries.toml"), "[registry.\"docker.io\"]\n").unwrap();
    let again = command(&["pull", "debian"]);
    assert_eq!(again.code, 4, "{again:?}");
    assert!(
        again
            .stderr
            .contains("the site says how 'docker.io' is reached"),
        "{again:?}"
    );
    assert!(hub.requests().is_empty());
}

#[test]
fn lists_and_files_of_the_user() {
    let content = small("x");
    let server = serve("x", &content);
    let site = Site::with_config("", "");
    let reference = format!("{}/x", server.address);
    let own = site.home().join(".config/shifter");
    fs::create_dir_all(&own).unwrap();
    let user = |text: &str| fs::write(own.join("registries.toml"), text).unwrap();
    user(&format!(
        "[registry.\"{}\"]\nplain_http = true\n",
        server.address
    ));
    site.ok(&["pull", &reference]);
    site.registries("user_registries = false\nretries = 0\n");
    let refused = site.run(&["pull", &reference]);
    assert_eq!(refused.code, 7, "{refused:?}");
    assert!(
        refused.stderr.contains("does not count at this site"),
        "{refused:?}"
    );
    site.registries("block = [\"*.example.org\", \"docker.io\"]\n");
    site.fails(&["pull", "ubuntu"], 3, "'docker.io' is blocked");
    site.registries("allow = [\"quay.io\"]\n");
    site.fails(&["pull", "ubuntu"], 3, "only 'quay.io' may be used");
    site.registries("allow = [\"quay.io\"\n");
    site.fails(&["pull", "ubuntu"], 2, "registries.toml:");
    site.registries("");
    user("x = 1\n");
    site.fails(&["pull", "ubuntu"], 2, "unknown field");
    assert!(server.requests().len() <= 3);
}

#[test]
fn s68_names_are_judged_before_anything_is_sent() {
    let server = Server::start(|_| Reply::status(404));
    let site = Site::new(&[&server.address]);
    let long = "a".repeat(4096);
    for name in [
        "%2e%2e/x",
        "../x",
        "x/../y",
        "x//y",
        "x/%00",
        "x%0d%0aX: y",
        "x\r\nX: y",
        &long,
        "x:\u{202e}",
        "x:$ne",
        "x:{\"$ne\":1}",
        "X/y",
        "x:a:b",
        "x@sha256:../../x",
        "x?y=z",
        "x#y",
    ] {
        let reference = format!("{}/{name}", server.address);
        let run = site.run(&["pull", &reference]);
        assert_eq!(run.code, 2, "{name}: {run:?}");
    }
    assert!(server.requests().is_empty(), "{:?}", server.paths());
}

#[test]
fn platforms_and_nested_indexes() {
    let of = |name: &str| {
        let files = [("etc/arch", name.as_bytes())];
        image(name, json!({}), &[layer(Packing::Gzip, &files)])
    };
    let (arm, power) = (of("arm64"), of("ppc64le"));
    let inner = index(image::OCI_INDEX, &[(&power, "linux/ppc64le")]);
    let mut outer: serde_json::Value =
        serde_json::from_slice(&index(image::DOCKER_LIST, &[(&arm, "linux/arm64")]).bytes).unwrap();
    let entries = outer["manifests"].as_array_mut().unwrap();
    entries.insert(
        0,
        json!({
            "mediaType": image::OCI_INDEX, "digest": inner.digest(), "size": inner.bytes.len(),
        }),
    );
    entries.push(json!({
        "mediaType": image::OCI_MANIFEST, "digest": arm.manifest.digest(), "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }));
    let outer = Blob::new(image::DOCKER_LIST, outer.to_string());
    let mut blobs = has("x", &arm);
    blobs.extend(has("x", &power));
    blobs.insert("/v2/x/manifests/latest".into(), outer.clone());
    blobs.insert(format!("/v2/x/manifests/{}", inner.digest()), inner);
    let server = Server::start(move |request| answer(&blobs, request));
    let client = client(&[&server.address]);
    let reference = reference(&format!("{}/x", server.address));
    let repository = client.repository(&reference).unwrap();
    let find =
        |platform: &str| repository.resolve_for(&reference, &Wanted::parse(platform).unwrap());
    for (platform, expect) in [
        ("linux/arm64", &arm),
        ("aarch64", &arm),
        ("linux/ppc64le", &power),
    ] {
        let found = find(platform).unwrap_or_else(|e| panic!("{platform}: {}", chain(&e)));
        assert_eq!(
            found.digest.to_string(),
            outer.digest(),
            "the digest is the outermost"
        );
        assert_eq!(found.config, expect.config.bytes, "{platform}");
    }
    let error = find("linux/s390x").unwrap_err();
    assert!(
        chain(&error).contains("for linux/s390x, only for"),
        "{}",
        chain(&error)
    );
    assert!(error.hint().unwrap().contains("--platform"));
}

#[test]
fn logins_of_helpers_and_failing_ones() {
    let content = small("secret");
    let blobs = has("x", &content);
    let server = Server::start(move |request| match request.authorization() {
        Some("Basic YWxpY2U6aGVscGVk") => answer(&blobs, request),
        _ => Reply::challenge("Basic realm=\"x\""),
    });
    let home = tempfile::tempdir().unwrap();
    let helper = home.path().join("docker-credential-test");
    let script = |text: &str| {
        fs::write(&helper, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    };
    fs::create_dir(home.path().join(".docker")).unwrap();
    let text = json!({"credHelpers": {&server.address: "test"}}).to_string();
    fs::write(home.path().join(".docker/config.json"), text).unwrap();
    let search = format!("{}:/usr/bin:/bin", home.path().display());
    let variable = |name: &str| (name == "PATH").then(|| search.clone().into());
    let user = User {
        home: Some(home.path()),
        uid: rustix::process::geteuid().as_raw(),
        variable: &variable,
    };
    let rules = || Rules::from(BTreeMap::from([(server.address.clone(), dialect::plain())]));
    let resolve = || {
        let client = Client::new(rules(), Logins::of_user(&user), Proxies::default());
        let reference = reference(&format!("{}/x", server.address));
        client
            .repository(&reference)
            .unwrap()
            .resolve(&reference)
            .map(|resolved| resolved.access)
    };
    script(r#"echo '{"Username":"alice","Secret":"helped"}'"#);
    assert_eq!(resolve().unwrap(), Access::Private);
    script("echo 'credentials not found in native keychain'; exit 1");
    let denied = resolve().unwrap_err();
    assert!(
        matches!(
            denied,
            RegistryError::Denied {
                with_login: false,
                ..
            }
        ),
        "{denied}"
    );
    script("echo 'the agent is locked'; exit 1");
    let error = resolve().unwrap_err();
    assert!(
        error.to_string().ends_with("the agent is locked"),
        "{error}"
    );
    // What is public needs no helper.
    let public = serve("x", &content);
    let text = json!({"credHelpers": {&public.address: "missing"}}).to_string();
    fs::write(home.path().join(".docker/config.json"), text).unwrap();
    let rules = Rules::from(BTreeMap::from([(public.address.clone(), dialect::plain())]));
    let client = Client::new(rules, Logins::of_user(&user), Proxies::default());
    let name = reference(&format!("{}/x", public.address));
    let resolved = client.repository(&name).unwrap().resolve(&name).unwrap();
    assert_eq!(resolved.access, Access::Public);
}
