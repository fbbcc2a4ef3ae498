//! Specifications as vendors' programs write them, and as they must not be.

use proptest::prelude::*;

use super::*;

/// In the form of nvidia-ctk, shortened.
const VENDOR: &str = r#"---
cdiVersion: 0.5.0
kind: vendor.example/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/fake0
              major: 195
              minor: 0
              fileMode: 438
              permissions: rwm
    - name: GPU-6cf00fa7-59ac-16f2-3e83-d24ccdc56f84
      containerEdits:
        deviceNodes:
            - path: /dev/fake0
    - name: all
      containerEdits:
        deviceNodes:
            - path: /dev/fake0
            - path: /dev/dri/card1
              hostPath: /dev/dri/card7
              type: c
        hooks:
            - hookName: createContainer
              path: /usr/bin/fake-cdi-hook
              args: [fake-cdi-hook, chmod, --mode, "755", --path, /dev/dri]
        additionalGids: [0, 44]
containerEdits:
    env:
        - FAKE_VISIBLE_DEVICES=void
    deviceNodes:
        - path: /dev/fakectl
    hooks:
        - hookName: createContainer
          path: /usr/bin/fake-cdi-hook
          args:
            - fake-cdi-hook
            - create-symlinks
            - --link
            - libfake.so.1::/usr/lib64/libfake.so
            - --link
            - ../libfake-alloc.so.1::/usr/lib64/gbm/fake_gbm.so
          env:
            - FAKE_DEBUG=false
        - hookName: createContainer
          path: /usr/bin/fake-cdi-hook
          args:
            - fake-cdi-hook
            - update-ldcache
            - --folder
            - /usr/lib64
            - --folder=/usr/lib64/vdpau
    mounts:
        - hostPath: /run/driver/lib64/libfake.so.550.1
          containerPath: /usr/lib64/libfake.so.550.1
          options:
            - ro
            - nosuid
            - nodev
            - rbind
            - rprivate
        - hostPath: /tmp/size
          containerPath: /dev/shm/x
          type: tmpfs
"#;

fn specs(list: &[(usize, &str, &str)]) -> Specs {
    let mut specs = Specs::default();
    for (rank, origin, text) in list {
        let spec = Spec::parse(text.as_bytes(), text.starts_with('{')).unwrap();
        specs.add(*rank, (*origin).to_owned(), spec);
    }
    specs
}

fn select(specs: &Specs, devices: &[&str]) -> Result<Edits, String> {
    let devices: Vec<String> = devices
        .iter()
        .map(|d| format!("vendor.example/gpu={d}"))
        .collect();
    specs.select(&devices).map_err(|error| error.to_string())
}

#[test]
fn a_vendors_file_is_understood() {
    let specs = specs(&[(0, "/etc/cdi/vendor.yaml", VENDOR)]);
    let edits = select(&specs, &["0", "all"]).unwrap();
    assert_eq!(edits.env, [("FAKE_VISIBLE_DEVICES".into(), "void".into())]);
    let nodes: Vec<_> = edits
        .nodes
        .iter()
        .map(|node| (node.path.as_str(), node.number))
        .collect();
    // What every device needs comes first.
    let expected = [
        ("/dev/fakectl", None),
        ("/dev/fake0", Some((195, 0))),
        ("/dev/fake0", None),
        ("/dev/dri/card1", None),
    ];
    assert_eq!(nodes, expected);
    assert_eq!(
        (edits.nodes[3].host_path.as_str(), edits.nodes[3].is_block),
        ("/dev/dri/card7", Some(false))
    );
    assert_eq!(edits.mounts.len(), 1);
    assert_eq!(
        edits.mounts[0].container_path,
        "/usr/lib64/libfake.so.550.1"
    );
    assert!(edits.mounts[0].is_recursive);
    assert_eq!(edits.library_dirs, ["/usr/lib64", "/usr/lib64/vdpau"]);
    let links: Vec<_> = edits
        .links
        .iter()
        .map(|link| (link.path.as_str(), link.target.as_str()))
        .collect();
    let expected = [
        ("/usr/lib64/libfake.so", "/usr/lib64/libfake.so.1"),
        (
            "/usr/lib64/gbm/fake_gbm.so",
            "/usr/lib64/libfake-alloc.so.1",
        ),
    ];
    assert_eq!(links, expected);
    let expected = [
        "mount of type 'tmpfs' at '/dev/shm/x'",
        "createContainer hook 'fake-cdi-hook chmod'",
        "additional groups",
    ];
    assert_eq!(edits.ignored, expected);
}

#[test]
fn json_and_nulls_are_the_same() {
    let json = r#"{"cdiVersion": "1.0.0", "kind": "vendor.example/gpu", "annotations": {"a": "b"},
        "devices": [{"name": "x", "containerEdits": {"env": null, "deviceNodes":
            [{"path": "/dev/null", "major": 1, "minor": 3, "uid": 0}], "hooks": []}}],
        "containerEdits": {"additionalGIDs": [0], "unknown": 1}}"#;
    let edits = select(&specs(&[(0, "a", json)]), &["x"]).unwrap();
    assert_eq!(edits.nodes[0].number, Some((1, 3)));
    assert!(edits.ignored.is_empty());
    // YAML is a superset of JSON, but for the size of numbers and the like.
    assert_eq!(
        Spec::parse(json.as_bytes(), false).unwrap(),
        Spec::parse(json.as_bytes(), true).unwrap()
    );
}

#[test]
fn a_later_directory_wins_and_equals_conflict() {
    let device = |env: &str| {
        format!(
            "cdiVersion: 0.3.0\nkind: vendor.example/gpu\ndevices:\n- name: x\n  containerEdits:\n    env: [{env}]\n"
        )
    };
    let (one, two, three) = (device("A=1"), device("A=2"), device("A=3"));
    let both = specs(&[(1, "late", &two), (0, "early", &one)]);
    assert_eq!(select(&both, &["x"]).unwrap().env[0].1, "2");
    let all = specs(&[(1, "late", &two), (0, "early", &one), (1, "later", &three)]);
    assert_eq!(
        select(&all, &["x"]).unwrap_err(),
        "device 'vendor.example/gpu=x' is in 'late' and in 'later'"
    );
    assert!(both.have_kind_of("vendor.example/gpu=y") && !both.have_kind_of("vendor.example/g=x"));
    let missing = select(&both, &["y"]).unwrap_err();
    assert_eq!(
        missing,
        "there is no specification of device 'vendor.example/gpu=y'"
    );
}

#[test]
fn what_is_not_well_formed_is_refused() {
    let table = [
        ("cdiVersion: 0.5.0", "cdiVersion: 0.2.0", "version '0.2.0'"),
        ("cdiVersion: 0.5.0", "cdiVersion: 2.0.0", "version '2.0.0'"),
        ("cdiVersion: 0.5.0", "version: 0.5.0", "not a specification"),
        ("vendor.example/gpu", "gpu", "kind 'gpu'"),
        ("name: all", "name: a/b", "device name 'a/b'"),
        ("name: all", "name: \"0\"", "device name '0'"),
        ("FAKE_VISIBLE_DEVICES=void", "FAKE", "variable 'FAKE'"),
        (
            "path: /dev/fakectl",
            "path: dev/fakectl",
            "device node 'dev/fakectl'",
        ),
        (
            "path: /dev/fakectl",
            "path: /dev/../etc/shadow",
            "device node '/dev/../etc/shadow'",
        ),
        (
            "containerPath: /usr/lib64/",
            "containerPath: /usr/../",
            "container path",
        ),
        (
            "containerPath: /usr/lib64/libfake.so.550.1",
            "containerPath: /",
            "container path '/'",
        ),
        ("major: 195", "major: -1", "device number"),
        ("type: c", "type: p", "kind of device 'p'"),
        ("devices:", "devices: &x", "cannot be read"),
        ("env:", "env: text", "not a specification"),
    ];
    for (from, to, expected) in table {
        let text = VENDOR.replacen(from, to, 1);
        assert_ne!(text, VENDOR, "{from}");
        let error = Spec::parse(text.as_bytes(), false).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
    assert!(matches!(Spec::parse(b"\xff", true), Err(CdiError::NotText)));
}

proptest! {
    /// Whatever is in a file: no mount and no node but at absolute paths without '..'.
    #[test]
    fn paths_are_absolute(path in "[./a]{0,12}", host in "[./a]{0,12}") {
        let text = VENDOR
            .replace("/run/driver/lib64/libfake.so.550.1", &host)
            .replace("/dev/fakectl", &path);
        if let Ok(spec) = Spec::parse(text.as_bytes(), false) {
            let nodes = spec.edits.nodes.iter().flat_map(|n| [&n.path, &n.host_path]);
            let mounts = spec.edits.mounts.iter().flat_map(|m| [&m.container_path, &m.host_path]);
            for path in nodes.chain(mounts) {
                prop_assert!(path.starts_with('/') && path != "/" && !path.contains("//"));
                prop_assert!(!path.split('/').any(|part| part == ".." || part == "."));
            }
        }
    }
}
