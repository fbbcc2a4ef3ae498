//! Who may have an image of the site's store: whom the registry gave it, and whom they named.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod site;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use image_manager::build::BuildOptions;
use image_manager::cancel::Cancel;
use image_manager::pull::{PullError, Pulled, Request, pull};
use image_manager::registry::{Client, Logins, Proxies, Wanted};
use image_manager::store::{Audience, Store, Viewer};
use serde_json::json;
use shifter_core::config::Registry;
use shifter_core::meta::ImageMeta;
use shifter_core::reference::{ImageRef, TypeRules};
use site::image::{Image, Packing, image, layer, noise};
use site::mock::{Mock, Reply, honest};
use site::walk;

const RULES: TypeRules<'static> = TypeRules {
    default_type: "docker",
    site_types: &[],
};

/// alice:secret
const LOGIN: &str = "YWxpY2U6c2VjcmV0";

struct Bench {
    temp: tempfile::TempDir,
    store: Store,
}

/// Two layers of noise: what is in them cannot be guessed.
fn secret() -> Image {
    let layers = [1, 2].map(|seed| {
        let name = format!("data/{seed}");
        layer(Packing::Gzip, &[(name.as_str(), &noise(seed, 50_000))])
    });
    let process = json!({"Labels": {"maintainer": "alice", "bell": "\u{7}"}});
    image("amd64", process, &layers)
}

/// A registry that gives nothing to who has no login.
fn private(image: &Image) -> Mock {
    let replies = honest(image);
    Mock::start(move |request| match &request.authorization {
        Some(value) if *value == format!("Basic {LOGIN}") => replies
            .get(&request.path)
            .cloned()
            .unwrap_or_else(|| Reply::status(404)),
        _ => Reply::challenge("Basic realm=\"x\""),
    })
}

fn bench() -> Bench {
    let temp = tempfile::tempdir().unwrap();
    let me = rustix::process::geteuid().as_raw();
    let store = Store::create_site(&temp.path().join("store"), me).unwrap();
    Bench { temp, store }
}

fn viewer(uid: u32, gids: &[u32]) -> Viewer {
    Viewer {
        uid,
        gids: gids.to_vec(),
    }
}

impl Bench {
    fn pull(&self, mock: &Mock, has_login: bool, audience: &Audience) -> Result<Pulled, PullError> {
        let me = rustix::process::geteuid().as_raw();
        let home = self.temp.path().join(format!("home{has_login}"));
        fs::create_dir_all(home.join(".docker")).unwrap();
        if has_login {
            let login = json!({"auths": {&mock.address: {"auth": LOGIN}}}).to_string();
            fs::write(home.join(".docker/config.json"), login).unwrap();
        }
        let plain = Registry {
            plain_http: true,
            ..Registry::default()
        };
        let registries = BTreeMap::from([(mock.address.clone(), plain)]);
        let logins = Logins::of_home(&home, me);
        let client = Client::new(registries, logins, Proxies::default());
        pull(&Request {
            client: &client,
            store: &self.store,
            reference: &reference(mock),
            wanted: &Wanted::default(),
            audience,
            options: &BuildOptions::default(),
            cancel: &Cancel::default(),
            watch: &|_| (),
        })
    }

    fn sees(&self, reference: &ImageRef, viewer: &Viewer) -> bool {
        let by_tag = self.store.lookup(reference, viewer).unwrap().is_some();
        let (listed, problems) = self.store.list(&RULES, viewer).unwrap();
        assert!(problems.is_empty());
        assert_eq!(by_tag, !listed.is_empty(), "list and lookup agree");
        by_tag
    }

    fn meta(&self) -> ImageMeta {
        let meta = |path: &PathBuf| path.extension().is_some_and(|e| e == "meta");
        let paths = walk(&self.temp.path().join("store"));
        let found: Vec<&PathBuf> = paths.iter().filter(|path| meta(path)).collect();
        assert_eq!(found.len(), 1);
        ImageMeta::parse(&fs::read(found[0]).unwrap()).unwrap()
    }
}

fn reference(mock: &Mock) -> ImageRef {
    ImageRef::parse(&format!("{}/x", mock.address), &RULES).unwrap()
}

#[test]
fn s60_a_private_image_is_its_pullers_alone() {
    let (bench, image) = (bench(), secret());
    let mock = private(&image);
    let pulled = bench.pull(&mock, true, &Audience::only(1001)).unwrap();
    let by_id = ImageRef::parse(&format!("id:{}", pulled.id), &RULES).unwrap();
    for (uid, sees) in [(1001, true), (1002, false)] {
        let viewer = viewer(uid, &[uid, 100]);
        assert_eq!(bench.sees(&reference(&mock), &viewer), sees, "{uid}");
        let found = bench.store.lookup(&by_id, &viewer).unwrap();
        assert_eq!(found.is_some(), sees, "{uid} by id");
    }
    // Again, without and with rights.
    let before = bench.meta();
    let refused = bench.pull(&mock, false, &Audience::only(1002));
    assert!(
        matches!(refused, Err(PullError::Registry(_))),
        "{refused:?}"
    );
    assert_eq!(bench.meta(), before);
    assert!(!bench.sees(&reference(&mock), &viewer(1002, &[])));
    let again = bench.pull(&mock, true, &Audience::only(1002)).unwrap();
    assert!(!again.is_new, "nothing is built twice");
    for (uid, sees) in [(1001, true), (1002, true), (1003, false)] {
        let viewer = viewer(uid, &[100]);
        assert_eq!(bench.sees(&reference(&mock), &viewer), sees, "{uid}");
    }
}

/// Some registries show everybody what they give only to some.
#[test]
fn s60_a_login_that_only_a_layer_needs_makes_the_image_private() {
    let (bench, image) = (bench(), secret());
    let (replies, top) = (honest(&image), image.layers[1].blob.digest());
    let mock = Mock::start(move |request| {
        let has_login = request.authorization.as_deref() == Some(&format!("Basic {LOGIN}"));
        match replies.get(&request.path) {
            Some(_) if request.path.contains(&top) && !has_login => {
                Reply::challenge("Basic realm=\"x\"")
            }
            Some(reply) => reply.clone(),
            None => Reply::status(404),
        }
    });
    bench.pull(&mock, true, &Audience::only(1001)).unwrap();
    assert_eq!(bench.meta().user_acl, [1001]);
    assert!(!bench.sees(&reference(&mock), &viewer(1002, &[])));
    // Who is shown the manifest has not got the image.
    let before = bench.meta();
    let refused = bench.pull(&mock, false, &Audience::only(1002));
    assert!(
        matches!(refused, Err(PullError::Registry(_))),
        "{refused:?}"
    );
    assert_eq!(bench.meta(), before);
    // The layer lies where no other repository's pulls find it.
    let public = bench.temp.path().join("store/.cache/sha256");
    let hex = image.layers[1].blob.digest().replace("sha256:", "");
    assert!(!public.join(hex).exists());
}

#[test]
fn s60_pullers_name_others() {
    let (bench, image) = (bench(), secret());
    let mock = private(&image);
    let audience = Audience {
        puller: 1001,
        users: vec![1005],
        groups: vec![500],
    };
    bench.pull(&mock, true, &audience).unwrap();
    let table = [
        (1001, 1, true),
        (1005, 1, true),
        (1006, 500, true),
        (1006, 501, false),
        (500, 1, false),
    ];
    for (uid, gid, sees) in table {
        let viewer = viewer(uid, &[gid]);
        assert_eq!(bench.sees(&reference(&mock), &viewer), sees, "{uid}/{gid}");
    }
}

/// Whoever runs a registry can name any digest in it. That gives nobody what is in the store.
#[test]
fn s60_a_forged_registry_widens_nothing() {
    let (bench, image) = (bench(), secret());
    let mock = private(&image);
    bench.pull(&mock, true, &Audience::only(1001)).unwrap();
    let before = bench.meta();
    // It has the manifest and the configuration, which somebody may have seen, and not the layers.
    let mut replies = honest(&image);
    replies.retain(|path, _| {
        let is_layer = |layer: &site::image::Layer| path.contains(&layer.blob.digest());
        !image.layers.iter().any(is_layer)
    });
    let forged = Mock::paths(replies);
    let refused = bench.pull(&forged, false, &Audience::only(1002));
    assert!(
        matches!(refused, Err(PullError::Registry(_))),
        "{refused:?}"
    );
    assert_eq!(bench.meta(), before);
    assert!(!bench.sees(&reference(&forged), &viewer(1002, &[])));
    // Neither does an image of one's own that has such a layer.
    let mut own = image.clone();
    let config = String::from_utf8(own.config.bytes).unwrap();
    own.config.bytes = config.replace("alice", "mallory").into_bytes();
    let manifest = String::from_utf8(own.manifest.bytes).unwrap();
    own.manifest.bytes = manifest
        .replace(&image.config.digest(), &own.config.digest())
        .replace(
            &format!("\"size\":{}", image.config.bytes.len()),
            &format!("\"size\":{}", own.config.bytes.len()),
        )
        .into_bytes();
    let mut replies = honest(&own);
    replies.retain(|path, _| !image.layers.iter().any(|l| path.contains(&l.blob.digest())));
    let forged = Mock::paths(replies);
    let refused = bench.pull(&forged, false, &Audience::only(1002));
    assert!(
        matches!(refused, Err(PullError::Registry(_))),
        "{refused:?}"
    );
    assert!(!bench.sees(&reference(&forged), &viewer(1002, &[])));
    // Who does have the layers has proved that there is nothing to hide.
    let open = Mock::paths(honest(&image));
    let pulled = bench.pull(&open, false, &Audience::only(1002)).unwrap();
    assert!(pulled.is_new);
    assert!(bench.meta().is_public());
    assert!(bench.sees(&reference(&mock), &viewer(1003, &[])));
}

#[test]
fn s60_public_stays_public() {
    let (bench, image) = (bench(), secret());
    let open = Mock::paths(honest(&image));
    bench.pull(&open, false, &Audience::only(1001)).unwrap();
    let mock = private(&image);
    bench.pull(&mock, true, &Audience::only(1002)).unwrap();
    assert!(bench.meta().is_public());
    assert!(bench.sees(&reference(&mock), &viewer(1003, &[])));
}

#[test]
fn where_an_image_came_from_is_recorded_beside_it() {
    let (bench, image) = (bench(), secret());
    let mock = private(&image);
    let pulled = bench.pull(&mock, true, &Audience::only(1001)).unwrap();
    let record = bench.store.record(&pulled.id).unwrap().unwrap();
    assert_eq!(record.source, format!("{}/x", mock.address));
    assert!(record.is_private);
    assert_eq!(record.digest, Some(pulled.digest.to_string()));
    assert_eq!(record.platform.as_deref(), Some("linux/amd64"));
    assert_eq!((record.pulled_by, record.labels.len()), (Some(1001), 2));
    let layers: Vec<&str> = record.layers.iter().map(|l| l.digest.as_str()).collect();
    let expect: Vec<String> = image.layers.iter().map(|l| l.blob.digest()).collect();
    assert_eq!(layers, expect);
    let file = fs::read(&pulled.path).unwrap();
    let digest = blake3::hash(&file).to_hex().to_string();
    assert_eq!(record.blake3, Some(digest));
    // The C Shifter's file has nothing that the C Shifter does not know.
    let keys = fs::read_to_string(pulled.path.with_extension("meta")).unwrap();
    let known = [
        "FORMAT:",
        "USERACL:",
        "GROUPACL:",
        "ENTRY:",
        "CMD:",
        "WORKDIR:",
        "ENV:",
        "VOLUME:",
        "USER:",
    ];
    assert!(
        keys.lines()
            .all(|line| known.iter().any(|key| line.starts_with(key))),
        "{keys}"
    );
    // A lost or damaged record loses no image.
    let path = pulled.path.with_extension("json");
    let me = viewer(1001, &[]);
    for damage in ["", "{", "[1"] {
        fs::write(&path, damage).unwrap();
        assert!(bench.sees(&reference(&mock), &me));
        assert!(bench.store.record(&pulled.id).is_err());
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(bench.store.record(&pulled.id).unwrap(), None);
    assert!(bench.sees(&reference(&mock), &me));
    // And proves nothing any more: pulled again, it is built again, for both.
    let again = bench.pull(&mock, true, &Audience::only(1002)).unwrap();
    assert!(again.is_new);
    assert_eq!(bench.meta().user_acl, [1001, 1002]);
}
