//! Imports of honest and hostile files into a store of their own.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;
use shifter_core::reference::TypeRules;

use super::*;
use crate::hash::sha256_hex;
use crate::layer::samples::{Sample, archive, gzip, zstd};

struct Site {
    _home: tempfile::TempDir,
    dir: PathBuf,
    store: Store,
}

impl Site {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        Self {
            store: Store::create_user(home.path()).unwrap(),
            dir: home.path().to_owned(),
            _home: home,
        }
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.join("image");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, path: &Path, format: Option<SourceFormat>) -> Result<Archive, ImportError> {
        let request = Request {
            path,
            format,
            select: None,
            wanted: &Wanted::parse("linux/amd64").unwrap(),
            is_squashfs_allowed: true,
        };
        Archive::open(&request, &self.store, &Cancel::default())
    }

    fn import(&self, bytes: &[u8]) -> Result<Imported, ImportError> {
        let archive = self.open(&self.file(bytes), None)?;
        self.import_number(&archive, 0, "docker:x:1")
    }

    fn import_number(
        &self,
        archive: &Archive,
        number: usize,
        name: &str,
    ) -> Result<Imported, ImportError> {
        let target = Target {
            names: vec![reference(name)],
            ..Target::default()
        };
        archive.import(number, &self.store, &target, &Cancel::default(), &|_| ())
    }

    /// What is wrong with an import, as one line; nothing may be left of it.
    fn fault(&self, bytes: &[u8]) -> String {
        let error = self.import(bytes).unwrap_err();
        let left: Vec<String> = files_of(&self.dir.join(".shifter"));
        assert_eq!(left, Vec::<String>::new(), "{error}");
        shifter_core::chain::line(&error)
    }
}

/// The files of a store, but those of its empty index and locks.
fn files_of(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| !["cache", "index"].contains(&&**name))
        .collect()
}

fn reference(text: &str) -> ImageRef {
    let rules = TypeRules {
        default_type: "docker",
        site_types: &[],
    };
    ImageRef::parse(text, &rules).unwrap()
}

fn layer(name: &str) -> Vec<u8> {
    archive(&[
        Sample::dir("etc"),
        Sample::file(format!("etc/{name}"), name),
    ])
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256_hex(layer)))
        .collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    serde_json::to_vec(&config).unwrap()
}

/// An archive as `docker save` writes it, with one image for each pair of a tag and layers.
fn docker_archive(images: &[(&str, &[&[u8]])], more: Vec<Sample>) -> Vec<u8> {
    let (mut samples, mut list) = (Vec::new(), Vec::new());
    for (tag, layers) in images {
        let config = config(layers);
        let config_name = format!("{}.json", sha256_hex(&config));
        samples.push(Sample::file(&config_name, &config));
        let mut names = Vec::new();
        for layer in *layers {
            let name = format!("{}/layer.tar", sha256_hex(layer));
            // Images share layers.
            if !samples
                .iter()
                .any(|sample: &Sample| sample.name == name.as_bytes())
            {
                samples.push(Sample::file(&name, layer));
            }
            names.push(name);
        }
        list.push(json!({"Config": config_name, "RepoTags": [tag], "Layers": names}));
    }
    samples.extend(more);
    samples.push(Sample::file(
        "manifest.json",
        serde_json::to_vec(&list).unwrap(),
    ));
    archive(&samples)
}

/// The files of an OCI layout with one image.
fn layout(layer: &[u8], media_type: &str, name: Option<&str>) -> Vec<(String, Vec<u8>)> {
    let kind = |kind: &str| format!("application/vnd.oci.image.{kind}");
    let mut files = Vec::new();
    let mut blob = |bytes: &[u8], media_type: String| {
        let digest = sha256_hex(bytes);
        files.push((format!("blobs/sha256/{digest}"), bytes.to_vec()));
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let mut plain = Vec::new();
    match media_type {
        "layer.v1.tar+gzip" => {
            std::io::copy(&mut flate2::read::GzDecoder::new(layer), &mut plain).unwrap();
        }
        _ => plain = layer.to_vec(),
    }
    let config = blob(&config(&[&plain]), kind("config.v1+json"));
    let layer = blob(layer, kind(media_type));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind("manifest.v1+json"),
        "config": config, "layers": [layer],
    });
    let mut manifest = blob(
        &serde_json::to_vec(&manifest).unwrap(),
        kind("manifest.v1+json"),
    );
    if let Some(name) = name {
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    files.push(("index.json".into(), serde_json::to_vec(&index).unwrap()));
    files.push((
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    ));
    files
}

fn as_archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let samples = files.iter().map(|(name, bytes)| Sample::file(name, bytes));
    archive(&samples.collect::<Vec<_>>())
}

fn write_layout(dir: &Path, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn every_form_of_an_image_gives_the_same_image() {
    let site = Site::new();
    let plain = layer("one");
    let docker = docker_archive(&[("x:1", &[&plain])], Vec::new());
    let first = site.import(&docker).unwrap();
    assert_eq!(first.id.as_str(), sha256_hex(&config(&[&plain])));
    assert!(first.is_new && first.digest.is_none());
    let bytes = std::fs::read(&first.path).unwrap();
    assert!(bytes.starts_with(b"hsqs"));

    let oci = layout(&plain, "layer.v1.tar", None);
    let dir = site.dir.join("layout");
    write_layout(&dir, &oci);
    let forms = [
        docker.clone(),
        gzip(&docker),
        zstd(&docker),
        as_archive(&oci),
    ];
    for form in forms {
        let again = site.import(&form).unwrap();
        assert_eq!((again.id, again.is_new), (first.id.clone(), false));
    }
    let archive = site.open(&dir, None).unwrap();
    let again = site.import_number(&archive, 0, "docker:y:1").unwrap();
    assert_eq!(again.id, first.id);
    assert!(again.digest.is_some());
    // Layers that are compressed make the same files, and so the same id.
    let packed = layout(&gzip(&plain), "layer.v1.tar+gzip", None);
    assert_eq!(site.import(&as_archive(&packed)).unwrap().id, first.id);
}

#[test]
fn archives_of_several_images_are_listed_and_chosen_from() {
    let site = Site::new();
    let (one, two) = (layer("one"), layer("two"));
    let both: [(&str, &[&[u8]]); 2] = [("x:1", &[&one]), ("y:latest", &[&one, &two])];
    let path = site.file(&docker_archive(&both, Vec::new()));
    let archive = site.open(&path, None).unwrap();
    assert_eq!(
        archive.names(),
        [vec!["x:1".to_owned()], vec!["y:latest".into()]]
    );
    let second = site.import_number(&archive, 1, "docker:second:1").unwrap();
    assert_eq!(second.id.as_str(), sha256_hex(&config(&[&one, &two])));
    let select = |name| {
        let request = Request {
            path: &path,
            format: None,
            select: Some(name),
            wanted: &Wanted::parse("linux/amd64").unwrap(),
            is_squashfs_allowed: true,
        };
        Archive::open(&request, &site.store, &Cancel::default()).map(|archive| archive.names())
    };
    assert_eq!(select("y").unwrap(), [vec!["y:latest".to_owned()]]);
    let error = select("z").unwrap_err().to_string();
    assert_eq!(error, "it has no image 'z', but 'x:1', 'y:latest'");
}

#[test]
fn layers_may_be_links_within_the_archive() {
    let site = Site::new();
    let one = layer("one");
    let digest = sha256_hex(&one);
    let other = "b".repeat(64);
    let config = config(&[&one, &one]);
    let name = format!("{}.json", sha256_hex(&config));
    let list = |second: &str| {
        let layers = [format!("{digest}/layer.tar"), second.to_owned()];
        json!([{"Config": name, "RepoTags": null, "Layers": layers}]).to_string()
    };
    let build = |target: &str| {
        archive(&[
            Sample::file(&name, &config),
            Sample::file(format!("{digest}/layer.tar"), &one),
            Sample::symlink(format!("{other}/layer.tar"), target),
            Sample::file("manifest.json", list(&format!("{other}/layer.tar"))),
        ])
    };
    site.import(&build(&format!("../{digest}/layer.tar")))
        .unwrap();
    let site = Site::new();
    let target = "is a link that leads out of the archive";
    assert!(site.fault(&build("../../../etc/passwd")).contains(target));
    assert!(site.fault(&build("/etc/passwd")).contains(target));
    let itself = format!("../{other}/layer.tar");
    assert!(site.fault(&build(&itself)).contains("is a link to a link"));
}

#[test]
fn root_file_systems_and_squashfs_files() {
    let site = Site::new();
    let tar = archive(&[
        Sample::dir("./"),
        Sample::dir("./bin"),
        Sample::file("./bin/sh", b"x"),
    ]);
    let plain = site.import(&tar).unwrap();
    // Neither the compression nor the time makes another image.
    assert_eq!(site.import(&gzip(&tar)).unwrap().id, plain.id);
    assert_eq!(site.import(&zstd(&tar)).unwrap().id, plain.id);

    let squashfs = std::fs::read(&plain.path).unwrap();
    let copy = site.import(&squashfs).unwrap();
    assert_eq!(copy.id.as_str(), sha256_hex(&squashfs));
    assert_eq!(std::fs::read(&copy.path).unwrap(), squashfs);
    let request = Request {
        path: &site.file(&squashfs),
        format: None,
        select: None,
        wanted: &Wanted::parse("linux/amd64").unwrap(),
        is_squashfs_allowed: false,
    };
    let denied = Archive::open(&request, &site.store, &Cancel::default());
    assert!(matches!(denied, Err(ImportError::SquashfsDenied)));
}

#[test]
fn what_is_no_image_is_named() {
    let site = Site::new();
    let tar = archive(&[Sample::file("bin", b"x")]);
    let squashfs = b"hsqs\x01\x02".repeat(30);
    let mut sif = vec![0; 64];
    sif[32..41].copy_from_slice(b"SIF_MAGIC");
    let nested = archive(&[Sample::file("image.tar", &tar)]);
    let table: [(Vec<u8>, &str); 10] = [
        (vec![], "it is empty"),
        (b"hello".repeat(200), "it is neither an image archive"),
        (
            gzip(b"hello"),
            "it is compressed, and what is compressed is no archive",
        ),
        (
            gzip(&gzip(&tar)),
            "it is compressed, and what is compressed is no archive",
        ),
        (b"\xfd7zXZ\0rest".to_vec(), "it is compressed with xz"),
        (b"BZh91AY".to_vec(), "it is compressed with bzip2"),
        (sif, "it is an image of Singularity's"),
        (squashfs, "it is not a complete squashfs 4.0 file"),
        (nested, "it is an archive with another archive in it"),
        (archive(&[]), "there is no image in it"),
    ];
    for (bytes, expect) in table {
        let found = site.fault(&bytes);
        assert!(found.starts_with(expect), "{found}");
    }
    let directory = site.open(&site.dir, None).map(drop).unwrap_err();
    assert!(directory.to_string().starts_with("it is a directory"));
    let missing = site.open(Path::new("/no/such"), None).map(drop);
    assert!(matches!(missing, Err(ImportError::Open { .. })));
    let tar = site.file(&tar);
    for format in [SourceFormat::Squashfs, SourceFormat::OciLayout] {
        let error = site.open(&tar, Some(format)).map(drop).unwrap_err();
        assert!(matches!(error, ImportError::NotThat(_)), "{error}");
    }
}

#[test]
fn hostile_archives_of_docker() {
    let site = Site::new();
    let one = layer("one");
    let good = config(&[&one]);
    let name = format!("{}.json", sha256_hex(&good));
    let layer_name = format!("{}/layer.tar", sha256_hex(&one));
    let with = |manifest: serde_json::Value| {
        archive(&[
            Sample::file(&name, &good),
            Sample::file(&layer_name, &one),
            Sample::file("manifest.json", manifest.to_string()),
        ])
    };
    let image = |config: &str, layers: &[&str]| json!([{"Config": config, "RepoTags": ["x:1"], "Layers": layers}]);
    let twice = archive(&[
        Sample::file(&name, &good),
        Sample::file(&layer_name, &one),
        Sample::file(&layer_name, &one),
        Sample::file("manifest.json", image(&name, &[&layer_name]).to_string()),
    ]);
    let other = archive(&[
        Sample::file(&name, b"{}"),
        Sample::file("manifest.json", image(&name, &[]).to_string()),
    ]);
    let wrong_layer = archive(&[
        Sample::file(&name, &good),
        Sample::file(&layer_name, layer("two")),
        Sample::file("manifest.json", image(&name, &[&layer_name]).to_string()),
    ]);
    let large = archive(&[
        Sample::file(&name, &good),
        Sample::file("manifest.json", vec![b' '; MANIFEST_LIMIT as usize + 1]),
    ]);
    let many = json!(vec![json!({"Config": name}); IMAGE_LIMIT + 1]);
    let mut cut = docker_archive(&[("x:1", &[&one])], Vec::new());
    cut.truncate(3000);
    let table: [(Vec<u8>, &str); 12] = [
        (
            with(image("../../etc/passwd", &[])),
            "'../../etc/passwd' in it leads out of the archive",
        ),
        (
            with(image("/etc/passwd", &[])),
            "'/etc/passwd' in it leads out of the archive",
        ),
        (
            with(image(&name, &["../../etc/shadow"])),
            "'../../etc/shadow' in it leads out",
        ),
        (
            with(image(&name, &["a/layer.tar"])),
            "it has no 'a/layer.tar'",
        ),
        (
            with(image(&name, &[&layer_name, &layer_name])),
            "the manifest has 2 layers and",
        ),
        (with(json!({"a": 1})), "'manifest.json' in it is not valid"),
        (
            with(many),
            "'manifest.json' in it lists more than 1000 images",
        ),
        (with(json!([])), "there is no image in it"),
        (twice, &format!("'{layer_name}' in it is there twice")),
        (other, &format!("'{name}' in it is not what its name says")),
        (
            wrong_layer,
            "cannot build the image: layer 1 has the diff_id",
        ),
        (large, "'manifest.json' in it has more than"),
    ]
    .map(|(bytes, text)| (bytes, Box::leak(text.to_owned().into_boxed_str()) as &str));
    for (bytes, expect) in table {
        let found = site.fault(&bytes);
        assert!(found.starts_with(expect), "{found}");
    }
    assert!(site.fault(&cut).contains("the archive ends in it"));
    // What is printed obeys nobody.
    let escape = with(image("\x1b[2J", &[]));
    assert_eq!(site.fault(&escape), "it has no '\\u{1b}[2J'");
}

#[test]
fn hostile_layouts() {
    let plain = layer("one");
    let files = layout(&plain, "layer.v1.tar", Some("x:1"));
    let site = Site::new();
    let change = |number: usize, bytes: &[u8]| {
        let mut files = files.clone();
        files[number].1 = bytes.to_vec();
        as_archive(&files)
    };
    let mut longer = plain.clone();
    longer.extend([0; 512]);
    let mut flipped = plain.clone();
    flipped[600] ^= 1;
    let table = [
        (change(0, b"{}"), "bytes and not"),
        (change(1, &longer), "bytes and not"),
        (change(1, &flipped), "cannot build the image"),
        (change(3, b"{\"manifests\":[]}"), "there is no image in it"),
        (change(3, b"[1]"), "'index.json' in it "),
        (as_archive(&files[1..]), "it has no 'blobs/sha256/"),
    ];
    for (bytes, expect) in table {
        let found = site.fault(&bytes);
        assert!(found.contains(expect), "{found}");
    }
    let dir = site.dir.join("links");
    write_layout(&dir, &files);
    let blob = dir.join(&files[1].0);
    std::fs::rename(&blob, dir.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.join("elsewhere"), &blob).unwrap();
    let archive = site.open(&dir, None).unwrap();
    let error = site.import_number(&archive, 0, "x:1").unwrap_err();
    assert!(
        error.to_string().ends_with("behind a symbolic link"),
        "{error}"
    );
}

#[test]
fn a_digest_in_the_name_is_compared() {
    let site = Site::new();
    let files = layout(&layer("one"), "layer.v1.tar", None);
    let digest = sha256_hex(&files[2].1);
    let archive = site.open(&site.file(&as_archive(&files)), None).unwrap();
    let name = |digest: &str| format!("x@sha256:{digest}");
    let wrong = site.import_number(&archive, 0, &name(&"0".repeat(64)));
    assert!(matches!(wrong, Err(ImportError::Digest { .. })));
    let right = site.import_number(&archive, 0, &name(&digest)).unwrap();
    assert_eq!(right.digest.unwrap().hex(), digest);
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let site = Site::new();
    let archive = site
        .open(
            &site.file(&docker_archive(&[("x:1", &[&layer("one")])], vec![])),
            None,
        )
        .unwrap();
    let cancel = Cancel::default();
    let target = Target {
        names: vec![reference("x:1")],
        ..Target::default()
    };
    let watch = |step: ImportStep<'_>| {
        assert_eq!(step, ImportStep::Building);
        cancel.cancel();
    };
    let stopped = archive.import(0, &site.store, &target, &cancel, &watch);
    assert!(matches!(stopped, Err(ImportError::Cancelled(_))));
    assert_eq!(files_of(&site.dir.join(".shifter")), Vec::<String>::new());
}

#[test]
fn a_file_that_changes_meanwhile_is_noticed() {
    let site = Site::new();
    let path = site.file(&archive(&[Sample::file("bin", b"x")]));
    let opened = site.open(&path, None).unwrap();
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    file.write_all(&[0; 512]).unwrap();
    let error = site.import_number(&opened, 0, "x:1").unwrap_err();
    assert!(matches!(error, ImportError::Changed), "{error}");
}
