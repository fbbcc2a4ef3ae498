//! Tables and properties of image references.

use proptest::prelude::*;

use super::*;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn parse(text: &str) -> Result<ImageRef, RefError> {
    parse_as(text, "docker")
}

fn parse_as(text: &str, default_type: &str) -> Result<ImageRef, RefError> {
    let site_types = ["gitlab".to_owned(), "docker".to_owned()];
    ImageRef::parse(
        text,
        &TypeRules {
            default_type,
            site_types: &site_types,
        },
    )
}

#[test]
fn canonical_forms() {
    let digest = format!("sha256:{HEX}");
    let long = format!("sha512:{HEX}{HEX}");
    let table: &[(&str, &str)] = &[
        ("ubuntu", "docker:ubuntu:latest"),
        ("ubuntu:24.04", "docker:ubuntu:24.04"),
        ("ubuntu:24.04_RC-1", "docker:ubuntu:24.04_RC-1"),
        ("ubuntu:_x", "docker:ubuntu:_x"),
        ("library/ubuntu", "docker:ubuntu:latest"),
        ("docker.io/ubuntu", "docker:ubuntu:latest"),
        ("docker.io/library/ubuntu", "docker:ubuntu:latest"),
        ("index.docker.io/library/ubuntu:1", "docker:ubuntu:1"),
        ("Index.Docker.IO/ubuntu", "docker:ubuntu:latest"),
        ("docker:ubuntu", "docker:ubuntu:latest"),
        ("docker:docker:dind", "docker:docker:dind"),
        ("docker:dind", "docker:dind:latest"),
        ("docker://ubuntu", "docker:ubuntu:latest"),
        ("docker://ghcr.io/o/i:1", "docker:ghcr.io/o/i:1"),
        (
            "biocontainers/samtools:1.9",
            "docker:biocontainers/samtools:1.9",
        ),
        ("library/a/b", "docker:library/a/b:latest"),
        ("library/library", "docker:library:latest"),
        (
            "docker.io/foo.bar/baz",
            "docker:docker.io/foo.bar/baz:latest",
        ),
        (
            "docker.io/localhost/baz",
            "docker:docker.io/localhost/baz:latest",
        ),
        ("foo.bar", "docker:foo.bar:latest"),
        ("library/foo.bar", "docker:foo.bar:latest"),
        ("ghcr.io/owner/image", "docker:ghcr.io/owner/image:latest"),
        ("GHCR.io/owner/image:Tag", "docker:ghcr.io/owner/image:Tag"),
        ("quay.io/a/b/c/d:1", "docker:quay.io/a/b/c/d:1"),
        ("localhost/x", "docker:localhost/x:latest"),
        ("localhost:5000/x", "docker:localhost:5000/x:latest"),
        ("localhost:5000", "docker:localhost:5000"),
        ("private:5000/repo:tag", "docker:private:5000/repo:tag"),
        (
            "127.0.0.1:5000/sample",
            "docker:127.0.0.1:5000/sample:latest",
        ),
        ("127.0.0.1/sample", "docker:127.0.0.1/sample:latest"),
        ("[::1]:5000/sample:1", "docker:[::1]:5000/sample:1"),
        ("[2001:DB8:0:0::1]/a/b", "docker:[2001:db8::1]/a/b:latest"),
        (
            "registry-1.example.org:65535/x",
            "docker:registry-1.example.org:65535/x:latest",
        ),
        ("docker.io:443/x", "docker:docker.io:443/x:latest"),
        (
            "a/b_c/d__e/f-g/h--i/j.k",
            "docker:a/b_c/d__e/f-g/h--i/j.k:latest",
        ),
        ("0ad/1---2", "docker:0ad/1---2:latest"),
        ("docker:image.sqsh", "docker:image.sqsh:latest"),
        ("image.sqsh:1", "docker:image.sqsh:1"),
        (
            &format!("ubuntu@{digest}"),
            &format!("docker:ubuntu@{digest}"),
        ),
        (
            &format!("ubuntu:1@{digest}"),
            &format!("docker:ubuntu:1@{digest}"),
        ),
        (
            &format!("ghcr.io/o/i:latest@{digest}"),
            &format!("docker:ghcr.io/o/i:latest@{digest}"),
        ),
        (
            &format!("ghcr.io/o/i@{long}"),
            &format!("docker:ghcr.io/o/i@{long}"),
        ),
        (&format!("id:{HEX}"), &format!("id:{HEX}")),
        ("local:/", "local:/"),
        ("local:/images/a", "local:/images/a"),
        ("local://images/./a/", "local:/images/a"),
        ("local:/a:b@c", "local:/a:b@c"),
        ("local:sl6", "local:sl6"),
        ("local:CentOS_6.5+x", "local:CentOS_6.5+x"),
        ("./a.sqsh", "file:./a.sqsh"),
        ("../A:b@c", "file:../A:b@c"),
        ("/images//a.squashfs", "file:/images//a.squashfs"),
        ("file:/a/../b", "file:/a/../b"),
        ("custom:name", "custom:name:latest"),
        ("custom:a.b/name:1", "custom:a.b/name:1"),
        ("gitlab:group/name:1", "gitlab:group/name:1"),
        ("gitlab:localhost/name", "gitlab:localhost/name:latest"),
        ("gitlabs:1", "docker:gitlabs:1"),
    ];
    for (text, canonical) in table {
        let image = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(image.canonical(), *canonical, "{text}");
        assert_eq!(image.to_string(), *canonical, "{text}");
        assert_eq!(parse(canonical).as_ref(), Ok(&image), "{text}");
        assert_eq!(
            format!("{}:{}", image.image_type(), image.name()),
            *canonical,
            "{text}"
        );
    }
}

#[test]
fn parts() {
    let digest = format!("sha256:{HEX}");
    let image = parse(&format!("ghcr.io:8443/o/i@{digest}")).unwrap();
    assert_eq!(image.image_type(), &ImageType::Docker);
    assert_eq!(image.registry(), Some("ghcr.io:8443"));
    assert_eq!((image.repository(), image.tag()), ("o/i", None));
    let parsed = image.digest().unwrap();
    assert_eq!((parsed.algorithm(), parsed.hex()), ("sha256", HEX));
    assert_eq!(parsed.to_string(), digest);

    let image = parse("ubuntu").unwrap();
    assert_eq!(image.registry(), Some("docker.io"));
    assert_eq!(
        (image.repository(), image.tag()),
        ("library/ubuntu", Some("latest"))
    );
    assert_eq!((image.digest(), image.image_id()), (None, None));

    let image = parse(&format!("id:{HEX}")).unwrap();
    assert_eq!(image.image_id().map(ImageId::as_str), Some(HEX));
    assert_eq!((image.registry(), image.tag()), (None, None));
    assert_eq!((image.name(), image.repository()), (HEX.to_owned(), HEX));

    let image = parse("local:/a/").unwrap();
    assert_eq!((image.repository(), image.registry()), ("/a", None));
    assert_eq!(
        (image.tree(), image.image_type().is_stored()),
        (None, false)
    );
    assert_eq!(parse("local:sl6").unwrap().tree(), Some("sl6"));
    let image = parse("./a").unwrap();
    assert_eq!(image.image_type(), &ImageType::File);
    assert_eq!((image.repository(), image.tree()), ("./a", None));
    assert!(!image.image_type().is_stored());

    let image = parse("gitlab:g/n").unwrap();
    assert_eq!(image.image_type(), &ImageType::Site("gitlab".into()));
    assert_eq!(
        (image.repository(), image.registry(), image.tag()),
        ("g/n", None, Some("latest"))
    );
}

#[test]
fn default_types() {
    let table = [
        (HEX, "id", format!("id:{HEX}")),
        ("/a/b", "local", "local:/a/b".to_owned()),
        ("./a", "local", "file:./a".to_owned()),
        ("/a/b", "custom", "file:/a/b".to_owned()),
        ("name:1", "custom", "custom:name:1".to_owned()),
        ("name:1", "gitlab", "gitlab:name:1".to_owned()),
        ("docker:name:1", "custom", "docker:name:1".to_owned()),
        ("id", "docker", "docker:id:latest".to_owned()),
    ];
    for (text, default, canonical) in table {
        assert_eq!(
            parse_as(text, default).unwrap().canonical(),
            canonical,
            "{text}"
        );
    }
    assert_eq!(
        parse_as("x", "rkt"),
        Err(RefError::Type { name: "rkt".into() })
    );
    assert!(parse_as("ubuntu", "id").is_err());
    assert!(parse_as("ubuntu:1", "local").is_err());
}

#[test]
fn refused() {
    let upper = HEX.to_uppercase();
    let table: &[(&str, &str)] = &[
        ("", "the image reference is empty"),
        ("docker:", "repository '' is not well-formed"),
        ("docker://", "repository '' is not well-formed"),
        (":24.04", "repository '' is not well-formed"),
        ("ubuntu 24.04", "contains ' ' as character 7"),
        (" ubuntu", "contains ' ' as character 1"),
        ("ubuntu\n", "contains '\\n' as character 7"),
        ("ubuntu\u{a0}x", "contains '\\u{a0}'"),
        ("ubu\0ntu", "contains '\\0'"),
        ("ubu\x1b[2Jntu", "contains '\\u{1b}'"),
        ("Ubuntu", "repository 'Ubuntu' contains upper-case letters"),
        ("Library/ubuntu", "contains upper-case letters"),
        (
            "ghcr.io/Owner/image",
            "repository 'Owner/image' contains upper-case letters",
        ),
        ("custom:Name", "contains upper-case letters"),
        (
            "übuntu",
            "repository 'übuntu' is not well-formed at 'übuntu'",
        ),
        ("a/../b", "not well-formed at '..'"),
        ("a/./b", "not well-formed at '.'"),
        ("a//b", "not well-formed at ''"),
        ("a/", "not well-formed at ''"),
        ("ghcr.io/", "repository '' is not well-formed"),
        ("docker:/a", "not well-formed at ''"),
        ("docker:///a", "not well-formed at ''"),
        (".a", "not well-formed at '.a'"),
        ("a.", "not well-formed at 'a.'"),
        ("a..b", "not well-formed at 'a..b'"),
        ("a___b", "not well-formed at 'a___b'"),
        ("a_-b", "not well-formed at 'a_-b'"),
        ("-a", "not well-formed at '-a'"),
        ("a$b", "not well-formed at 'a$b'"),
        ("a%2fb", "not well-formed at 'a%2fb'"),
        ("a?b", "not well-formed"),
        ("a\\b", "not well-formed"),
        ("a#b", "not well-formed"),
        ("ubuntu:", "tag '' is not"),
        ("ubuntu:.a", "tag '.a' is not"),
        ("ubuntu:-a", "tag '-a' is not"),
        ("ubuntu:a:b", "tag 'a:b' is not"),
        ("ubuntu:ä", "tag 'ä' is not"),
        ("ubuntu:../x", "registry 'ubuntu:..' has no port number"),
        ("ghcr.io/o/i:a/b", "tag 'a/b' is not"),
        ("ubuntu@", "digest '' is not"),
        ("ubuntu@sha256:", "digest 'sha256:' is not"),
        ("ubuntu@sha256:abc", "digest 'sha256:abc' is not"),
        (&format!("ubuntu@sha256:{upper}"), "is not sha256: with 64"),
        (&format!("ubuntu@sha256:{HEX}0"), "is not sha256: with 64"),
        (&format!("ubuntu@SHA256:{HEX}"), "is not sha256: with 64"),
        (&format!("ubuntu@sha512:{HEX}"), "is not sha256: with 64"),
        (&format!("ubuntu@sha384:{HEX}"), "is not sha256: with 64"),
        (&format!("ubuntu@{HEX}"), "is not sha256: with 64"),
        (
            &format!("ubuntu@sha256:{HEX}@sha256:{HEX}"),
            "is not sha256: with 64",
        ),
        (
            "ubuntu@md5:d41d8cd98f00b204e9800998ecf8427e",
            "is not sha256: with 64",
        ),
        ("ubuntu@sha256:../../etc/passwd", "is not sha256: with 64"),
        ("image.sqsh", "'image.sqsh' is the name of a file"),
        ("dir/image.squashfs", "is the name of a file"),
        ("IMAGE.SIF", "is the name of a file"),
        ("~/a", "is the name of a file"),
        (".", "is the name of a file"),
        (
            "https://ghcr.io/o/i",
            "'https://' is not a part of an image reference",
        ),
        ("docker:https://ghcr.io/o/i", "'https://' is not a part"),
        ("oci://x", "'oci://' is not a part"),
        ("ghcr.io:/o/i", "registry 'ghcr.io:' has no port number"),
        ("ghcr.io:0/o/i", "has no port number"),
        ("ghcr.io:65536/o/i", "has no port number"),
        ("ghcr.io:080/o/i", "has no port number"),
        ("ghcr.io:+80/o/i", "has no port number"),
        ("ghcr.io:80:80/o/i", "has no port number"),
        ("ghcr..io/o/i", "registry 'ghcr..io' is not a host name"),
        (".io/o/i", "is not a host name"),
        ("ghcr.io./o/i", "is not a host name"),
        ("-a.io/o/i", "is not a host name"),
        ("a_b.io/o/i", "is not a host name"),
        ("user@ghcr.io/o/i", "digest 'ghcr.io/o/i'"),
        ("user:pass@ghcr.io/o/i", "digest 'ghcr.io/o/i'"),
        ("127.1/x", "registry '127.1' is not an IPv4 address"),
        ("1.2.3.256/x", "is not an IPv4 address"),
        ("127.0.0.01/x", "is not an IPv4 address"),
        ("127.0.0.0x1/x", "is not an IPv4 address"),
        ("2130706433:80/x", "is not an IPv4 address"),
        ("[::1/x", "registry '[::1' has no ']'"),
        ("[::1]5000/x", "has no colon before its port"),
        ("[::1]:/x", "has no port number"),
        ("[::1%25eth0]/x", "is not an IPv6 address"),
        ("[x:]/x", "is not an IPv6 address"),
        ("[]:1/x", "is not an IPv6 address"),
        ("id:", "image id '' is not 64"),
        ("id:abc", "image id 'abc' is not 64"),
        (&format!("id:{upper}"), "is not 64"),
        (&format!("id:sha256:{HEX}"), "is not 64"),
        ("id:../../etc", "is not 64"),
        ("local:", "local image '': it is empty"),
        ("local:a/b", "local image 'a/b': it is not absolute"),
        ("local:-a", "local image '-a': it is not absolute"),
        ("file:a.sqsh", "'a.sqsh' is the name of a file"),
        ("file:", "the image reference is empty"),
        ("local:./a", "it is not absolute"),
        ("local:/a/../b", "it contains '..'"),
        ("custom:", "repository '' is not well-formed"),
        ("custom:/a", "not well-formed at ''"),
        ("custom:a:b:c", "tag 'b:c' is not"),
        (
            &format!("custom:a@sha256:{HEX}"),
            "type 'custom' cannot be named by digest",
        ),
        ("gitlab:a@b", "type 'gitlab' cannot be named by digest"),
    ];
    for (text, message) in table {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(message), "{text}: {error}");
        assert!(!error.chars().any(char::is_control), "{text}: {error}");
    }
}

#[test]
fn lengths() {
    let path = |length: usize| "a".repeat(length);
    assert!(parse(&format!("ghcr.io/{}", path(NAME_LIMIT - 8))).is_ok());
    let too_long = Err(RefError::TooLong { limit: NAME_LIMIT });
    assert_eq!(
        parse(&format!("ghcr.io/{}", path(NAME_LIMIT - 7))),
        too_long
    );
    assert!(parse(&path(NAME_LIMIT - 18)).is_ok());
    assert_eq!(parse(&path(NAME_LIMIT - 17)), too_long);
    assert!(parse(&format!("custom:{}", path(NAME_LIMIT))).is_ok());
    assert_eq!(parse(&format!("custom:{}", path(NAME_LIMIT + 1))), too_long);
    assert!(parse(&format!("a:{}", path(128))).is_ok());
    assert!(parse(&format!("a:{}", path(129))).is_err());
    assert!(parse(&format!("{}.io/a", path(63))).is_ok());
    assert!(parse(&format!("{}.io/a", path(64))).is_err());
    let deep = |length: usize| "a/".repeat(length / 2) + &path(length % 2);
    assert!(parse(&format!("local:/{}", deep(4095))).is_ok());
    assert!(parse(&format!("local:/{}", deep(4097))).is_err());
    assert_eq!(
        parse(&path(TEXT_LIMIT + 1)),
        Err(RefError::TooLong { limit: TEXT_LIMIT })
    );
}

#[test]
fn hints_name_the_way_out() {
    let table = [
        ("Ubuntu:24.04", "did you mean 'ubuntu'?"),
        ("image.sqsh", "did you mean './image.sqsh'?"),
        ("file:image.sqsh", "did you mean './image.sqsh'?"),
        ("..", "local:/path"),
        ("~/a.sqsh", "write the path out"),
        ("https://x/y", "leave it out"),
        ("local:a/b", "an absolute path"),
        ("a//b", "such as 'ubuntu:24.04'"),
    ];
    for (text, hint) in table {
        let found = parse(text).unwrap_err().hint().unwrap_or_default();
        assert!(found.contains(hint), "{text}: {found}");
    }
}

#[test]
fn digests() {
    for bad in [
        "",
        ":",
        "sha256",
        "sha256:",
        "sh:x",
        "sha256:../../x",
        "sha1:0123",
    ] {
        assert!(Digest::parse(bad).is_err(), "{bad}");
    }
    assert!(Digest::parse(&format!("sha256:{HEX}\n")).is_err());
    let long = format!("sha512:{HEX}{HEX}");
    let digest = Digest::parse(&long).unwrap();
    assert_eq!((digest.algorithm(), digest.hex().len()), ("sha512", 128));
}

/// Every reference that parses must hold what the module promises.
fn check(image: &ImageRef) {
    let canonical = image.canonical();
    for default_type in ["docker", "id", "local", "file", "custom"] {
        assert_eq!(
            parse_as(&canonical, default_type).as_ref(),
            Ok(image),
            "{canonical}"
        );
    }
    assert!(
        !canonical
            .chars()
            .any(|c| c.is_control() || c.is_whitespace()),
        "{canonical}"
    );
    assert!(
        image.image_type() == &ImageType::File
            || !image.repository().split('/').any(|part| part == ".."),
        "{canonical}"
    );
    assert_eq!(
        image.registry().is_some(),
        image.image_type() == &ImageType::Docker
    );
    if image.image_type() == &ImageType::Docker {
        assert!(
            image.tag().is_some() || image.digest().is_some(),
            "{canonical}"
        );
    }
}

proptest! {
    #[test]
    fn any_text_is_judged_without_panic(text in "\\PC*", bytes in any::<Vec<u8>>()) {
        for default_type in ["docker", "local", "gitlab"] {
            for text in [text.as_str(), &String::from_utf8_lossy(&bytes)] {
                if let Ok(image) = parse_as(text, default_type) {
                    check(&image);
                }
            }
        }
    }

    #[test]
    fn texts_near_the_grammar_hold_the_promises(
        text in "(docker:|docker://|local:/|custom:|gitlab:)?\
                 (docker\\.io/|Index\\.docker\\.io/|localhost/|[a.-]{1,3}:?[0-9]{0,2}/|\\[[0:f]{1,5}\\](:[0-9])?/|library/){0,3}\
                 [ab._/-]{0,6}(:[a._-]{0,3})?(@sha256:[0-9a]{63,65})?"
    ) {
        if let Ok(image) = parse(&text) {
            check(&image);
        }
    }

    #[test]
    fn well_formed_references_keep_their_parts(
        host in "([a-z][a-z0-9]{0,5}\\.){1,3}[a-z]{2,4}",
        port in proptest::option::of(1..=u16::MAX),
        path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3}|/)[a-z0-9]{1,5}){0,4}",
        tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
    ) {
        let registry = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        let image = parse(&format!("{registry}/{path}:{tag}")).unwrap();
        prop_assert_eq!(image.registry(), Some(registry.as_str()));
        prop_assert_eq!((image.repository(), image.tag()), (path.as_str(), Some(tag.as_str())));
        check(&image);
    }
}
