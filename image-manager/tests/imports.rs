//! Images from files: archives that other programs made, trees and squashfs files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod site;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use site::image::{gzip, labelled, small};
use site::registry::Registry;
use site::{Site, with_input};

/// Writes the file that skopeo makes of an image in a registry.
fn archive(site: &Site, format: &str, reference: &str, name: &str) -> PathBuf {
    let path = site.root().join(format!("{format}-{}", name.len()));
    let _ = fs::remove_file(&path);
    let status = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
        .arg(format!("docker://{reference}"))
        .arg(format!("{format}:{}:{name}", path.display()))
        .status()
        .unwrap();
    assert!(status.success());
    path
}

#[test]
fn archives_of_other_programs_are_imported() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let reference = registry.push("group/one:1.0", &labelled("one"));
    site.ok(&["pull", &reference]);
    let id = site.id(&reference);

    let docker = archive(&site, "docker-archive", &reference, "made:1");
    let run = site.ok(&["import", docker.to_str().unwrap()]);
    assert!(
        run.stderr.starts_with("imported docker:made:1 (id "),
        "{run:?}"
    );
    // The same digests: the same image.
    assert_eq!(site.id("made:1"), id);
    site.ok(&["load", docker.to_str().unwrap(), "custom:named:1"]);
    assert_eq!(site.id("custom:named:1"), id);
    let oci = archive(&site, "oci-archive", &reference, "made:22");
    with_input(&site, &["import", "-", "streamed"], &oci);
    assert_eq!(site.id("streamed"), id);
    let dir = archive(&site, "oci", &reference, "made:333");
    let run = site.ok(&["import", "--json", dir.to_str().unwrap(), "layout:1"]);
    let done = site::done(&run.stdout);
    assert_eq!(
        (&done["id"], &done["reference"]),
        (&json!(id), &json!("docker:layout:1"))
    );
    assert!(done["digest"].as_str().unwrap().starts_with("sha256:"));

    // All of it without the registry.
    drop(registry);
    for name in [
        "made:1",
        "custom:named:1",
        "streamed",
        "layout:1",
        &reference,
    ] {
        site.ok(&["rmi", name]);
    }
    assert_eq!(site.image_count(), 0);
    let packed = site.root().join("packed");
    let tar = fs::read(&docker).unwrap();
    fs::write(&packed, zstd::encode_all(&tar[..], 1).unwrap()).unwrap();
    let run = with_input(&site, &["import", "-"], &packed);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(site.read("made:1", "etc/motd"), "one");
    assert_eq!(site.id("made:1"), id);
    let known = site.ok(&[
        "inspect",
        "--format={{.record.source}} {{.labels.team}}",
        "made:1",
    ]);
    assert_eq!(known.stdout, "import:docker-archive climate\n");
    site.assert_tidy();
}

#[test]
fn a_tree_and_a_squashfs_file_are_imported() {
    let site = Site::new(&[]);
    let tree = site.root().join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/motd"), "tree").unwrap();
    let tar = site.root().join("tree.tar.gz");
    let made = Command::new("tar")
        .args([
            "-czf",
            tar.to_str().unwrap(),
            "-C",
            tree.to_str().unwrap(),
            ".",
        ])
        .status()
        .unwrap();
    assert!(made.success());
    let run = with_input(&site, &["import", "-", "custom:tree"], &tar);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(site.read("custom:tree", "etc/motd"), "tree");
    let path = site
        .store()
        .join(format!("{}.squashfs", site.id("custom:tree")));
    let copy = site.root().join("copy.sqsh");
    fs::copy(path, &copy).unwrap();
    site.ok(&["import", copy.to_str().unwrap(), "custom:copy:1"]);
    assert_eq!(site.read("custom:copy:1", "etc/motd"), "tree");
    site.ok(&["verify", "--quiet"]);

    let text = site.root().join("text");
    fs::write(&text, "no image\n").unwrap();
    let text = text.to_str().unwrap();
    let table: [(&[&str], i32, &str); 9] = [
        (&["import", text, "x"], 4, "it is neither an image archive"),
        (&["import", "/no/such/file", "x"], 2, "No such file"),
        (
            &["import", tree.to_str().unwrap(), "x"],
            4,
            "it is a directory and no OCI layout",
        ),
        (
            &["import", tar.to_str().unwrap()],
            2,
            "the image in it has no name",
        ),
        (
            &[
                "import",
                "--source-format=squashfs",
                tar.to_str().unwrap(),
                "x",
            ],
            4,
            "it is not a squashfs",
        ),
        (
            &["import", "--source-format=tgz", text, "x"],
            2,
            "--source-format is ",
        ),
        (
            &["import", "--select=a", tar.to_str().unwrap(), "x"],
            4,
            "it has no names to select by",
        ),
        (
            &["import", text, "local:/x"],
            2,
            "images of the type 'local'",
        ),
        (
            &[
                "import",
                "--user=no-such-user-here",
                tar.to_str().unwrap(),
                "x",
            ],
            2,
            "no user 'no-such",
        ),
    ];
    for (args, code, reason) in table {
        site.fails(args, code, reason);
    }
}

#[test]
fn imported_images_are_everybodys_unless_said_otherwise() {
    let registry = Registry::start();
    let site = Site::new(&[&registry.address]);
    let reference = registry.push("x:1", &small("x"));
    let file = archive(&site, "docker-archive", &reference, "x:1");
    let file = file.to_str().unwrap();
    let meta = |name: &str| {
        let path = site.store().join(format!("{}.meta", site.id(name)));
        (
            fs::read_to_string(&path).unwrap(),
            fs::metadata(path).unwrap().mode() & 0o777,
        )
    };
    site.ok(&[
        "import",
        "--group",
        "0,root",
        "--user=4242",
        file,
        "custom:mine",
    ]);
    let me = rustix::process::geteuid().as_raw();
    let mut users = [4242, me];
    users.sort_unstable();
    let (text, mode) = meta("custom:mine");
    assert!(
        text.contains(&format!("USERACL: {},{}\n", users[0], users[1])),
        "{text}"
    );
    assert!(
        text.contains("GROUPACL: 0\n") && mode == 0o600,
        "{text} {mode:o}"
    );
    site.ok(&["import", file, "custom:ours"]);
    let (text, mode) = meta("custom:ours");
    assert!(!text.contains("ACL") && mode == 0o644, "{text} {mode:o}");
}

/// Writes an archive of images that have no name.
fn nameless(site: &Site, names: [&str; 2]) -> PathBuf {
    let tree = site.root().join("nameless");
    fs::create_dir(&tree).unwrap();
    let mut list = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let image = labelled(&at.to_string());
        let (config, layer) = (format!("{at}.json"), format!("{at}.tar"));
        fs::write(tree.join(&config), &image.config.bytes).unwrap();
        fs::write(tree.join(&layer), &image.layers[0].blob.bytes).unwrap();
        let tags = Some(name).filter(|name| !name.is_empty());
        list.push(json!({"Config": config, "Layers": [layer], "RepoTags": tags.map(|tag| [tag])}));
    }
    fs::write(tree.join("manifest.json"), json!(list).to_string()).unwrap();
    let path = site.root().join("nameless.tar");
    let made = Command::new("tar")
        .args(["-cf", path.to_str().unwrap(), "-C", tree.to_str().unwrap()])
        .args(["manifest.json", "0.json", "1.json", "0.tar", "1.tar"])
        .status()
        .unwrap();
    assert!(made.success());
    path
}

#[test]
fn images_without_a_name_are_counted_and_told_of() {
    let site = Site::new(&[]);
    let file = nameless(&site, ["", "named:1"]);
    let file = file.to_str().unwrap();
    let reason = "it holds 2 images: 'named:1'";
    site.fails(&["import", file, "x"], 2, reason);
    let run = site.run(&["import", "--json", "--quiet", file]);
    assert_eq!(run.code, 2, "{run:?}");
    let events = site::events(&run.stdout);
    let error = events.iter().find(|event| event["event"] == "error");
    let error = error.unwrap_or_else(|| panic!("{run:?}"));
    assert!(error["reference"].is_null(), "{run:?}");
    assert_eq!(site::done(&run.stdout)["reference"], "docker:named:1");

    // A stream that breaks off is the image's fault, not the machine's.
    let packed = site.root().join("broken");
    let whole = gzip(&fs::read(file).unwrap());
    fs::write(&packed, &whole[..whole.len() - 9]).unwrap();
    let words = [
        "import",
        "--source-format=docker-archive",
        packed.to_str().unwrap(),
    ];
    site.fails(&words, 4, "cannot read it");
}
