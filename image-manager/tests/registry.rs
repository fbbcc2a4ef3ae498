//! Pulls from a real registry, run as the program is run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod site;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use site::Site;
use site::image::{self, Blob, Packing, image, index, layer, small};
use site::registry::Registry;

#[test]
fn every_kind_of_layer_and_manifest() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let file = |name: &'static str, text: &'static str| [(name, text.as_bytes())];
    let layers = [
        layer(Packing::Gzip, &file("etc/base", "base")),
        layer(Packing::Zstd, &file("etc/upper", "upper")),
        layer(Packing::Plain, &file("etc/base", "changed")),
    ];
    let process = json!({
        "Env": ["PATH=/usr/bin", "A=b=c", "BAD=line\nbreak"], "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["date"], "WorkingDir": "/work", "User": "nobody", "Labels": {"x": "y"},
    });
    let oci = image("amd64", process, &layers);
    let reference = registry.push("mixed:1", &oci);
    let run = site.ok(&["pull", "--json", &reference]);
    let record = site::done(&run.stdout);
    assert_eq!(record["reference"], format!("docker:{reference}"));
    assert_eq!(record["digest"], oci.manifest.digest());
    assert_eq!(record["id"], oci.config.digest()[7..]);
    assert_eq!(record["new"], true);
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(
        lines[0].contains("variable 'BAD' contains a line break"),
        "{run:?}"
    );
    assert!(
        lines[1].starts_with(&format!("pulled docker:{reference} (id ")),
        "{run:?}"
    );
    // What is left may be a warning of where the test has its store.
    let progress = lines.iter().find(|line| line.starts_with("docker:"));
    assert_eq!(progress, None, "without a terminal there is none");
    assert_eq!(site.read(&reference, "etc/base"), "changed");
    assert_eq!(site.read(&reference, "etc/upper"), "upper");
    site.assert_tidy();

    let record: Value =
        serde_json::from_str(&site.ok(&["lookup", "--json", &reference]).stdout).unwrap();
    assert_eq!(record["type"], "docker");
    assert_eq!(record["store"], "site");
    assert_eq!(record["entrypoint"], json!(["/bin/sh", "-c"]));
    assert_eq!(record["cmd"], json!(["date"]));
    assert_eq!(record["workdir"], "/work");
    assert_eq!(record["env"], json!(["PATH=/usr/bin", "A=b=c"]));
    let path = record["path"].as_str().unwrap();
    assert_eq!(record["size"], fs::metadata(path).unwrap().len());
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o644);

    let docker = registry.push("docker:2", &small("docker").into_docker());
    site.ok(&["pull", "--quiet", &docker]);
    assert_eq!(site.read(&docker, "etc/motd"), "docker");
}

#[test]
fn indexes_give_the_image_for_this_machine() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let for_arch = |architecture: &str| {
        let files = [("etc/arch", architecture.as_bytes())];
        image(architecture, json!({}), &[layer(Packing::Gzip, &files)])
    };
    let here = image_manager::registry::host_architecture();
    let other = if here == "s390x" { "arm64" } else { "s390x" };
    for (name, media_type) in [("oci:1", image::OCI_INDEX), ("list:1", image::DOCKER_LIST)] {
        let images = [for_arch(other), for_arch(here)];
        let images = match media_type {
            image::OCI_INDEX => images,
            _ => images.map(image::Image::into_docker),
        };
        let platforms = [format!("linux/{other}"), format!("linux/{here}")];
        let blob = index(
            media_type,
            &[
                (&images[0], platforms[0].as_str()),
                (&images[1], platforms[1].as_str()),
            ],
        );
        let reference = registry.push_index(name, &blob, &[&images[0], &images[1]]);
        let run = site.ok(&["pull", "--json", &reference]);
        let record = site::done(&run.stdout);
        assert_eq!(record["digest"], blob.digest(), "the digest is the index's");
        assert_eq!(site.read(&reference, "etc/arch"), here);

        let only = index(media_type, &[(&images[0], platforms[0].as_str())]);
        let reference = registry.push_manifest(&name.replace(":1", ":foreign"), &only);
        let expect = format!("does not exist for linux/{here}, only for linux/{other}");
        site.fails(&["pull", &reference], 4, &expect);
    }
    let foreign = registry.push("single:1", &for_arch(other));
    let expect = format!("the image is for linux/{other}, and linux/{here} is wanted");
    site.fails(&["pull", &foreign], 4, &expect);
}

#[test]
fn by_digest_and_again() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let image = small("one");
    let tag = registry.push("x/y:v1", &image);
    let name = tag.strip_suffix(":v1").unwrap();
    let digest = image.manifest.digest();
    let by_digest = format!("{name}@{digest}");
    let by_both = format!("{tag}@{digest}");
    for reference in [&by_digest, &by_both] {
        site.fails(&["lookup", reference], 4, "neither in the site store");
        site.ok(&["pull", reference]);
        assert_eq!(site.read(reference, "etc/motd"), "one");
    }
    site.fails(&["lookup", &tag], 4, "neither in the site store");
    let missing = format!("{name}@sha256:{}", "0".repeat(64));
    site.fails(&["pull", &missing], 4, "not found in the registry");

    // The tag moves; the old image stays for jobs that have its id, and goes with its last tag.
    let old = site.id(&by_digest);
    site.ok(&["pull", &tag]);
    registry.push("x/y:v1", &small("two"));
    site.ok(&["pull", &tag]);
    assert_eq!(site.read(&tag, "etc/motd"), "two");
    assert_eq!(site.id(&format!("id:{old}")), old);
    let listed = site.ok(&["images"]).stdout;
    assert_eq!(listed.lines().count(), 4, "{listed}");
    assert!(listed.starts_with("REPOSITORY"), "{listed}");
    site.ok(&["rmi", &by_digest, &by_both]);
    site.fails(&["lookup", &format!("id:{old}")], 4, "cannot find image");
    site.ok(&["rmi", &tag]);
    assert_eq!(site.image_count(), 0);
    site.fails(&["rmi", &tag], 4, "there is no such image");
    assert_eq!(site.ok(&["images", "--json"]).stdout, "");
}

#[test]
fn what_is_not_there() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let known = registry.push("x:1", &small("x"));
    let run = site.fails(
        &["pull", &known.replace(":1", ":2")],
        4,
        "not found in the registry",
    );
    assert!(
        run.stderr.contains("manifest unknown"),
        "the registry's own words: {run:?}"
    );
    assert!(run.stderr.contains("hint: "), "{run:?}");
    let nothing = format!("{}/nothing:1", registry.address);
    site.fails(&["pull", &nothing], 4, "not found in the registry");
    // The rest is pulled all the same, and the failure decides the exit code.
    let run = site.run(&["pull", &nothing, &known]);
    assert_eq!(run.code, 4);
    assert!(
        run.stderr.contains(&format!("pulled docker:{known}")),
        "{run:?}"
    );

    let dead = "127.0.0.1:1/x:1";
    let site = Site::new(&["127.0.0.1:1"]);
    site.fails(
        &["pull", dead],
        7,
        "cannot reach 'http://127.0.0.1:1/v2/x/manifests/1'",
    );
}

#[test]
fn a_login_makes_a_private_image() {
    let registry = Registry::with_login();
    let site = Site::new(&[&registry.address]);
    let reference = registry.push("secret:1", &small("secret"));
    let run = site.fails(&["pull", &reference], 3, "denied access (401)");
    assert!(
        run.stderr
            .contains(&format!("shifter login {}", registry.address)),
        "{run:?}"
    );

    let docker = site.home().join(".docker");
    fs::create_dir(&docker).unwrap();
    let config = |auth: &str| {
        let text = json!({"auths": {&registry.address: {"auth": auth}}}).to_string();
        fs::write(docker.join("config.json"), text).unwrap();
    };
    config("YWxpY2U6d3Jvbmc=");
    let run = site.fails(&["pull", &reference], 3, "denied access (401)");
    assert!(
        !run.stderr.contains("wrong") && !run.stderr.contains("YWxpY2U6"),
        "{run:?}"
    );

    config("YWxpY2U6c2VjcmV0");
    site.ok(&["pull", &reference]);
    assert_eq!(site.read(&reference, "etc/motd"), "secret");
    let id = site.id(&reference);
    for suffix in ["squashfs", "meta"] {
        let file = site.store().join(format!("{id}.{suffix}"));
        assert_eq!(fs::metadata(file).unwrap().mode() & 0o7777, 0o600);
    }
    let meta = fs::read_to_string(site.store().join(format!("{id}.meta"))).unwrap();
    let me = rustix::process::geteuid().as_raw();
    assert!(meta.contains(&format!("USERACL: {me}\n")), "{meta}");
}

#[test]
fn plain_http_must_be_configured() {
    let registry = Registry::start();
    let reference = registry.push("x:1", &small("x"));
    let site = Site::new(&[]);
    let run = site.fails(&["pull", &reference], 7, "cannot reach 'https://");
    assert!(run.stderr.contains("plain_http = true"), "{run:?}");
}

/// Makes a certificate authority and a certificate for `names` with openssl.
fn certificate(dir: &Path, names: &str, days: &str) {
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl")
            .args(args)
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let mut ca = vec!["req", "-x509"];
    ca.extend(curve);
    ca.extend([
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=test ca",
        "-days",
        "2",
    ]);
    openssl(&ca);
    let mut request = vec!["req"];
    request.extend(curve);
    request.extend([
        "-keyout",
        "key.pem",
        "-out",
        "request.pem",
        "-subj",
        "/CN=test",
    ]);
    openssl(&request);
    fs::write(dir.join("extensions"), format!("subjectAltName={names}\n")).unwrap();
    openssl(&[
        "x509",
        "-req",
        "-in",
        "request.pem",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-out",
        "cert.pem",
        "-days",
        days,
        "-extfile",
        "extensions",
    ]);
}

#[test]
fn certificates_are_checked() {
    let temp = tempfile::tempdir().unwrap();
    let dir = |name: &str| {
        let dir = temp.path().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    let (good, wrong, old) = (dir("good"), dir("wrong"), dir("old"));
    certificate(&good, "IP:127.0.0.1", "2");
    certificate(&wrong, "DNS:elsewhere.example", "2");
    certificate(&old, "IP:127.0.0.1", "-1");
    let site_for = |registry: &Registry, ca: Option<&Path>| {
        let line = ca.map(|dir| format!("ca_file = \"{}/ca.pem\"", dir.display()));
        let section = format!(
            "[registry.\"{}\"]\n{}\n",
            registry.address,
            line.unwrap_or_default()
        );
        Site::with_config("", &section)
    };
    for (dir, reason) in [
        (&good, ""),
        (&wrong, "not valid for name"),
        (&old, "Expired"),
    ] {
        let registry = Registry::with_tls(&dir.join("cert.pem"), &dir.join("key.pem"));
        let reference = registry.push("x:1", &small("tls"));
        let site = site_for(&registry, Some(dir));
        if reason.is_empty() {
            site.ok(&["pull", &reference]);
            assert_eq!(site.read(&reference, "etc/motd"), "tls");
            let run = site_for(&registry, None).fails(&["pull", &reference], 7, "UnknownIssuer");
            assert!(run.stderr.contains("'ca_file'"), "{run:?}");
            site_for(&registry, Some(&wrong)).fails(&["pull", &reference], 7, "certificate");
            let missing = temp.path().join("missing");
            site_for(&registry, Some(&missing)).fails(&["pull", &reference], 1, "cannot use '");
        } else {
            site.fails(&["pull", &reference], 7, reason);
        }
    }
}

#[test]
fn schema_one_and_artifacts_are_named() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let mut chart = small("chart");
    let text = String::from_utf8(chart.manifest.bytes).unwrap();
    let text = text.replace(
        image::OCI_CONFIG,
        "application/vnd.cncf.helm.config.v1+json",
    );
    chart.manifest = Blob::new(image::OCI_MANIFEST, text);
    let reference = registry.push("chart:1", &chart);
    let expect = "not a container image but 'application/vnd.cncf.helm.config.v1+json'";
    site.fails(&["pull", &reference], 4, expect);
}

/// Builders make such images of nothing but variables.
#[test]
fn an_image_without_layers_is_refused_for_that() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let bare = image("amd64", json!({"Env": ["A=b"]}), &[]);
    let reference = registry.push("bare:1", &bare);
    site.fails(&["pull", &reference], 4, "the image has no layers");
}
