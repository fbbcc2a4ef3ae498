//! What a registry must not get a client to do: show a login, or connect to the wrong place.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod dialect;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use dialect::{
    OCI_MANIFEST, Reply, Server, certificates, chain, client, descriptor, digest, error_of, fetch,
    manifest_with, noise, patience, plain, reference,
};
use image_manager::registry::{Checked, Client, Logins, Proxies, RegistryError, Rules};
use serde_json::json;
use shifter_core::config::{Registries, Registry};

/// alice:topsecret
const BASIC: &str = "Basic YWxpY2U6dG9wc2VjcmV0";

/// Logins of alice for these registries, in a home that lives as long as the value.
fn alice(registries: &[&str]) -> (tempfile::TempDir, Logins) {
    let home = tempfile::tempdir().unwrap();
    let auths: BTreeMap<&str, _> = registries
        .iter()
        .map(|name| (*name, json!({"auth": &BASIC[6..]})))
        .collect();
    fs::create_dir(home.path().join(".docker")).unwrap();
    let text = json!({"auths": auths}).to_string();
    fs::write(home.path().join(".docker/config.json"), text).unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let logins = Logins::of_home(home.path(), uid);
    (home, logins)
}

fn rules(text: &str) -> Rules {
    let file = Registries::parse(text, Path::new("/registries.toml")).unwrap();
    Rules::of_site(BTreeMap::new(), file).unwrap()
}

fn plain_rules(names: &[&str]) -> Rules {
    let entries = names.iter().map(|name| (name.to_string(), plain()));
    Rules::from(entries.collect::<BTreeMap<String, Registry>>())
}

/// A listener that must not hear of anybody.
struct Stranger(TcpListener);

impl Stranger {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    fn assert_silence(&self, what: &str) {
        std::thread::sleep(Duration::from_millis(20));
        let error = self.0.accept().expect_err(what);
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{what}");
    }
}

/// A proxy that is the registry `registry.test` itself, and a client that goes through it.
fn behind_proxy(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> (Server, Client) {
    let server = Server::start(move |request| answer(request.bare()));
    let proxy = format!("http://{}", server.address);
    let proxies = Proxies::from_env(|name| (name == "http_proxy").then(|| proxy.clone()));
    let client = Client::new(plain_rules(&["registry.test"]), Logins::default(), proxies);
    (server, client.with_patience(patience()))
}

#[test]
fn s62_nothing_leads_to_this_machine_or_its_networks() {
    let stranger = Stranger::new();
    let port = stranger.port();
    let places = [
        format!("https://127.0.0.1:{port}/x"),
        format!("https://localhost:{port}/x"),
        format!("https://[::1]:{port}/x"),
        format!("https://[::ffff:127.0.0.1]:{port}/x"),
        format!("https://0.0.0.0:{port}/x"),
        "https://169.254.169.254/latest/meta-data".to_owned(),
        "https://10.0.0.1/x".to_owned(),
        "https://192.168.0.1:8443/x".to_owned(),
        "https://[fd00::1]/x".to_owned(),
        "https://[fe80::1]/x".to_owned(),
        format!("http://127.0.0.1:{port}/x"),
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1:70/x".to_owned(),
    ];
    for place in places {
        let to = place.clone();
        let (_server, client) = behind_proxy(move |_| Reply::redirect(&to));
        let (error, text) = error_of(&client, "registry.test");
        assert!(!text.contains("cannot reach"), "{place}: {text}");
        let is_refusal = matches!(
            error,
            RegistryError::Forbidden { .. } | RegistryError::Redirect { .. }
        );
        assert!(is_refusal, "redirect to {place}: {text}");

        let realm = format!("Bearer realm=\"{place}\",service=\"s\"");
        let (_server, client) = behind_proxy(move |_| Reply::challenge(&realm));
        let (error, text) = error_of(&client, "registry.test");
        let is_refusal = matches!(
            error,
            RegistryError::Forbidden { .. } | RegistryError::Login { .. }
        );
        assert!(is_refusal, "realm {place}: {text}");
        stranger.assert_silence(&place);
    }
}

#[test]
fn s62_a_registry_may_lead_to_its_own_kind_of_place() {
    // On this machine itself: another port of it, where plain http is configured.
    let blob = noise(1000);
    let served = blob.clone();
    let cdn = Server::start(move |_| Reply::ok(served.clone()));
    let target = format!("http://{}/data", cdn.address);
    let server = Server::start(move |_| Reply::redirect(&target));
    let get = |names: &[&str]| {
        let client = client(names);
        let reference = reference(&format!("{}/x", server.address));
        fetch(
            &client.repository(&reference).unwrap(),
            &descriptor(&blob),
            0,
        )
        .1
    };
    get(&[&server.address, &cdn.address]).unwrap();
    let error = chain(&get(&[&server.address]).unwrap_err());
    assert!(error.contains("plain http is not configured"), "{error}");
    assert_eq!(cdn.requests().len(), 1);
    // The link and private networks are other kinds of place.
    for place in [
        "https://169.254.169.254/x",
        "https://10.0.0.1/x",
        "https://[fe80::1]/",
    ] {
        let server = Server::start(move |_| Reply::redirect(place));
        let (error, text) = error_of(&client(&[&server.address]), &server.address);
        assert!(matches!(error, RegistryError::Forbidden { .. }), "{text}");
        assert!(error.hint().unwrap().contains("registries.toml"));
    }
}

#[test]
fn s63_foreign_layers_come_without_a_login_and_from_public_places_only() {
    let blob = noise(5000);
    let dir = tempfile::tempdir().unwrap();
    certificates::make(dir.path(), "IP:127.0.0.1", 2);
    let (served, stranger) = (blob.clone(), Stranger::new());
    let elsewhere = Server::tls(dir.path(), move |request| {
        Reply::range(&served, request.header("range"))
    });
    let config = b"{}".to_vec();
    let urls = json!([
        format!("http://127.0.0.1:{}/x", stranger.port()),
        format!("https://10.0.0.1:{}/x", stranger.port()),
        format!("https://{}/layer?sig=1", elsewhere.address),
    ]);
    let layer = json!({
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest(&blob).to_string(), "size": blob.len(), "urls": urls,
    });
    let (manifest, served) = (manifest_with(layer, &config), config.clone());
    let path = format!("/v2/x/blobs/{}", digest(&config));
    let server = Server::start(move |request| match request.authorization() {
        Some(BASIC) if request.path.contains("/manifests/") => {
            Reply::ok(manifest.clone()).header("Content-Type", OCI_MANIFEST)
        }
        Some(BASIC) if request.path == path => Reply::ok(served.clone()),
        Some(BASIC) => Reply::status(404),
        _ => Reply::challenge("Basic realm=\"x\""),
    });
    let known = |ca: &str| {
        let text = format!(
            "[registry.\"{}\"]\nplain_http = true\n[registry.\"{}\"]\nca_file = \"{ca}\"\n",
            server.address, elsewhere.address
        );
        let (home, logins) = alice(&[&server.address, &elsewhere.address]);
        let client = Client::new(rules(&text), logins, Proxies::default());
        (home, client.with_patience(patience()))
    };
    let (_home, client) = known(&dir.path().join("ca.pem").display().to_string());
    let reference = reference(&format!("{}/x", server.address));
    let repository = client.repository(&reference).unwrap();
    let resolved = repository.resolve(&reference).unwrap();
    let (bytes, result) = fetch(&repository, &resolved.manifest.layers[0], 0);
    result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(bytes == blob);
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].path, "/layer?sig=1");
    assert_eq!(seen[0].authorization(), None);
    stranger.assert_silence("neither by plain http nor in a private network");
    // From the middle on, too.
    let (bytes, result) = fetch(&repository, &resolved.manifest.layers[0], 4000);
    result.unwrap();
    assert!(bytes == blob[4000..]);
}

/// Whoever writes a manifest for a public registry is not trusted as the site's own mirror is.
#[test]
fn s62_a_mirror_in_the_private_network_lends_its_place_to_no_layer() {
    let (config, blob, stranger) = (b"{}".to_vec(), noise(5000), Stranger::new());
    let layer = json!({
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest(&blob).to_string(), "size": blob.len(),
        "urls": [format!("https://127.0.0.1:{}/x", stranger.port())],
    });
    let manifest = manifest_with(layer, &config);
    let path = format!("/v2/evil/x/blobs/{}", digest(&config));
    let mirror = Server::start(move |request| match request.path.as_str() {
        found if found == path => Reply::ok(config.clone()),
        found if found.contains("/manifests/") => {
            Reply::ok(manifest.clone()).header("Content-Type", OCI_MANIFEST)
        }
        _ => Reply::status(404),
    });
    let text = format!(
        "[registry.\"docker.io\"]\nmirrors = [\"{0}\"]\nmirrors_only = true\n\
         [registry.\"{0}\"]\nplain_http = true\n",
        mirror.address
    );
    let client = Client::new(rules(&text), Logins::default(), Proxies::default());
    let client = client.with_patience(patience());
    let reference = reference("evil/x");
    let repository = client.repository(&reference).unwrap();
    assert_eq!(repository.source(), "docker.io/evil/x");
    let resolved = repository.resolve(&reference).unwrap();
    let (_, refused) = fetch(&repository, &resolved.manifest.layers[0], 0);
    assert!(
        matches!(refused, Err(RegistryError::Forbidden { .. })),
        "{refused:?}"
    );
    stranger.assert_silence("what a mirror passes on");
}

#[test]
fn s63_logins_and_tokens_stay_with_their_registry() {
    let blob = noise(5000);
    let served = blob.clone();
    let cdn = Server::start(move |_| Reply::ok(served.clone()));
    let away = format!("http://{}/data?sig=1", cdn.address);
    // Away and back again: what has left the origin does not get the login back.
    let back = Server::with_address(move |address, request| match request.path.as_str() {
        _ if request.authorization().is_none() && request.path.starts_with("/v2/") => {
            Reply::challenge(&format!("Bearer realm=\"http://{address}/token\""))
        }
        path if path.starts_with("/token") => Reply::json(r#"{"token":"T"}"#),
        _ => Reply::redirect(&away),
    });
    let (_home, logins) = alice(&[&back.address]);
    let rules = plain_rules(&[&back.address, &cdn.address]);
    let client = Client::new(rules, logins, Proxies::default()).with_patience(patience());
    let reference = reference(&format!("{}/x", back.address));
    let repository = client.repository(&reference).unwrap();
    fetch(&repository, &descriptor(&blob), 0).1.unwrap();
    let seen = cdn.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].authorization(), None);
    assert_eq!(seen[0].header("cookie"), None);

    // A token server at a host that nobody named does not see the login, by https either.
    let stranger = Stranger::new();
    for realm in [
        "https://auth.elsewhere.example/token".to_owned(),
        format!("https://localhost:{}/t", stranger.port()),
    ] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        let server = Server::start(move |_| {
            Reply::challenge(&challenge).header("WWW-Authenticate", "Negotiate")
        });
        let client = Client::new(
            plain_rules(&[&server.address]),
            Logins::default(),
            Proxies::default(),
        )
        .with_patience(patience());
        let error = client.check_login(&server.address, "alice", "topsecret");
        let is_refusal = matches!(error, Err(RegistryError::TokenServer { .. }));
        assert!(is_refusal, "{realm}: {error:?}");
        stranger.assert_silence(&realm);
        let seen = server.requests();
        assert!(seen.iter().all(|request| request.authorization().is_none()));
    }
}

#[test]
fn s63_a_token_server_elsewhere_must_be_named() {
    let tokens = Server::start(|request| match request.authorization() {
        Some(BASIC) => Reply::json(r#"{"token":"T"}"#),
        _ => Reply::status(401),
    });
    // The same server by another name is another host.
    let port = tokens.address.rsplit(':').next().unwrap().to_owned();
    let realm = format!("http://localhost:{port}/token");
    let server = Server::start(move |request| match request.authorization() {
        Some("Bearer T") => Reply::ok("{}"),
        _ => Reply::challenge(&format!("Bearer realm=\"{realm}\"")),
    });
    let check = |extra: &str| {
        let text = format!(
            "[registry.\"localhost:{port}\"]\nplain_http = true\n\
             [registry.\"{}\"]\nplain_http = true\n{extra}",
            server.address
        );
        Client::new(rules(&text), Logins::default(), Proxies::default())
            .with_patience(patience())
            .check_login(&server.address, "alice", "topsecret")
    };
    let error = check("").unwrap_err();
    let is_refusal = matches!(error, RegistryError::TokenServer { .. });
    assert!(is_refusal, "{error}");
    assert!(error.hint().unwrap().contains("token_server"), "{error}");
    assert!(!format!("{error:?}").contains("topsecret"));
    assert!(tokens.requests().is_empty());
    let named = check(&format!("token_server = \"localhost:{port}\"\n"));
    assert_eq!(named.unwrap(), Checked::Accepted);
}

#[test]
fn s63_a_proxys_password_is_for_the_proxy() {
    let blob = noise(3000);
    let served = blob.clone();
    let server = Server::start(move |request| match request.method.as_str() {
        "CONNECT" => Reply::status(502),
        _ => Reply::ok(served.clone()),
    });
    let address = server.address.clone();
    let proxies = Proxies::from_env(move |name| {
        ["HTTP_PROXY", "https_proxy"]
            .contains(&name)
            .then(|| format!("http://bob:proxysecret@{address}"))
    });
    let client = Client::new(plain_rules(&["registry.test"]), Logins::default(), proxies);
    let client = client.with_patience(patience());
    let plain = reference("registry.test/x");
    let repository = client.repository(&plain).unwrap();
    fetch(&repository, &descriptor(&blob), 0).1.unwrap();
    // A tunnel is for TLS: what is plain goes to the proxy whole, as everybody sends it there.
    let encrypted = reference("elsewhere.test/x");
    let repository = client.repository(&encrypted).unwrap();
    assert!(repository.resolve(&encrypted).is_err());
    let seen = server.requests();
    let whole = seen
        .iter()
        .filter(|r| r.origin.as_deref() == Some("http://registry.test"));
    let tunnels = seen.iter().filter(|r| r.method == "CONNECT");
    let counts = (whole.count(), tunnels.count());
    assert!(counts.0 >= 1 && counts.1 >= 1, "{seen:?}");
    assert_eq!(counts.0 + counts.1, seen.len(), "{seen:?}");
    for request in seen {
        // bob:proxysecret
        let login = request.header("proxy-authorization");
        assert_eq!(login, Some("Basic Ym9iOnByb3h5c2VjcmV0"), "{request:?}");
        assert_eq!(request.authorization(), None);
    }
}

#[test]
fn redirects_end() {
    let turning = |to: fn(&str) -> String| {
        Server::with_address(move |address, request| {
            Reply::redirect(&format!("http://{address}{}", to(&request.path)))
        })
    };
    for server in [turning(str::to_owned), turning(|path| format!("{path}x"))] {
        let (error, text) = error_of(&client(&[&server.address]), &server.address);
        assert!(matches!(error, RegistryError::Redirect { .. }), "{text}");
        assert!(text.contains("too many redirects"), "{text}");
        assert_eq!(server.requests().len(), 6);
    }
    for reply in [
        Reply::status(302),
        Reply::redirect("http://user:topsecret@h/x?signature=topsecret"),
    ] {
        let server = Server::start(move |_| reply.clone());
        let (_, text) = error_of(&client(&[&server.address]), &server.address);
        assert!(text.contains("not an http or https address"), "{text}");
        assert!(!text.contains("topsecret"), "{text}");
    }
}

#[test]
fn s71_certificates() {
    let temp = tempfile::tempdir().unwrap();
    let dir = |name: &str| {
        let dir = temp.path().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    let (good, wrong, old, own) = (dir("good"), dir("wrong"), dir("old"), dir("own"));
    certificates::make(&good, "IP:127.0.0.1", 2);
    certificates::make(&wrong, "DNS:elsewhere.example", 2);
    certificates::make(&old, "IP:127.0.0.1", -1);
    certificates::make_own(&own, "IP:127.0.0.1");
    let all = dir("all");
    fs::copy(good.join("ca.pem"), all.join("good.crt")).unwrap();
    fs::copy(wrong.join("ca.pem"), all.join("wrong.pem")).unwrap();
    fs::copy(good.join("key.pem"), all.join("other.key")).unwrap();
    let ask = |server: &Server, ca: Option<&Path>| {
        let line = ca.map_or(String::new(), |ca| {
            format!("ca_file = \"{}\"\n", ca.display())
        });
        let text = format!("[registry.\"{}\"]\n{line}", server.address);
        let client = Client::new(rules(&text), Logins::default(), Proxies::default());
        let client = client.with_patience(patience());
        client
            .check_login(&server.address, "u", "p")
            .map_err(|error| chain(&error))
    };
    let start = |dir: &Path| Server::tls(dir, |_| Reply::ok("{}"));
    let server = start(&good);
    assert_eq!(
        ask(&server, Some(&good.join("ca.pem"))),
        Ok(Checked::NotAsked)
    );
    assert_eq!(
        ask(&server, Some(&all)),
        Ok(Checked::NotAsked),
        "a directory"
    );
    let seen = server.requests().len();
    for (ca, reason) in [
        (None, "UnknownIssuer"),
        (Some(wrong.join("ca.pem")), "certificate"),
        (Some(temp.path().join("missing")), "cannot use"),
        (Some(good.join("key.pem")), "no certificate in PEM"),
        (Some(dir("empty")), "no certificate in PEM"),
    ] {
        let error = ask(&server, ca.as_deref()).unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    for (dir, ca, reason) in [
        (&wrong, wrong.join("ca.pem"), "not valid for name"),
        (&old, old.join("ca.pem"), "Expired"),
        (&own, good.join("ca.pem"), "certificate"),
    ] {
        let server = start(dir);
        let error = ask(&server, Some(&ca)).unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(server.requests().is_empty(), "{reason}");
    }
    assert_eq!(
        server.requests().len(),
        seen,
        "nothing was sent, and nothing tried again"
    );
}

#[test]
fn s71_https_never_leads_to_plain_http() {
    let dir = tempfile::tempdir().unwrap();
    certificates::make(dir.path(), "IP:127.0.0.1", 2);
    let weak = Server::start(|_| Reply::json(r#"{"token":"T"}"#));
    for is_realm in [false, true] {
        let target = format!("http://{}/x", weak.address);
        let server = Server::tls(dir.path(), move |_| match is_realm {
            true => Reply::challenge(&format!("Bearer realm=\"{target}\"")),
            false => Reply::redirect(&target),
        });
        // Even where plain http is configured for the other one.
        let text = format!(
            "[registry.\"{}\"]\nca_file = \"{}\"\n[registry.\"{}\"]\nplain_http = true\n",
            server.address,
            dir.path().join("ca.pem").display(),
            weak.address
        );
        let client = Client::new(rules(&text), Logins::default(), Proxies::default());
        let (_, error) = error_of(&client.with_patience(patience()), &server.address);
        let reason = if is_realm {
            "does not use https"
        } else {
            "never leads to plain http"
        };
        assert!(error.contains(reason), "{error}");
    }
    assert!(weak.requests().is_empty());
}

#[test]
fn logins_are_checked_at_the_registry() {
    let server = Server::start(|request| match request.authorization() {
        Some(BASIC) => Reply::ok("{}"),
        _ => Reply::challenge("Basic realm=\"x\""),
    });
    let check = |server: &Server, secret: &str| {
        let client = client(&[&server.address]);
        let address = format!("https://{}/v2/", server.address);
        client.check_login(&address, "alice", secret)
    };
    assert_eq!(check(&server, "topsecret").unwrap(), Checked::Accepted);
    let error = check(&server, "wrongsecret").unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    let text = format!("{} {error:?} {:?}", chain(&error), error.hint());
    assert!(!text.contains("wrongsecret"), "{text}");
    let open = Server::start(|_| Reply::ok("{}"));
    assert_eq!(check(&open, "x").unwrap(), Checked::NotAsked);
    let none = Server::start(|_| Reply::status(404));
    assert!(matches!(
        check(&none, "x"),
        Err(RegistryError::NotFound { .. })
    ));
    // A token server that takes any login, and a registry that does not take its tokens.
    let server = Server::with_address(|address, request| match request.bare() {
        "/token" => Reply::json(r#"{"token":"T"}"#),
        _ => Reply::challenge(&format!(
            "Bearer realm=\"http://{address}/token\",service=\"s\""
        )),
    });
    assert!(matches!(
        check(&server, "x"),
        Err(RegistryError::Denied { .. })
    ));
    let asked = server.requests();
    let asked = asked.iter().find(|r| r.bare() == "/token").unwrap();
    assert_eq!(asked.path, "/token?service=s", "no scope");
}
