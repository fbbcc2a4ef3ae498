//! Archives of the programs that make layers, read back.
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use support::facts;
use support::run;

fn make_tree(at: &Path, long_names: bool) {
    let text = |name: &str, text: &[u8]| std::fs::write(at.join(name), text).unwrap();
    std::fs::create_dir_all(at.join("d/e")).unwrap();
    text("d/file", b"text");
    text("d/empty", b"");
    text("d/e/block", &[b'x'; 1024]);
    std::fs::hard_link(at.join("d/file"), at.join("linked")).unwrap();
    symlink("d/file", at.join("link")).unwrap();
    if long_names {
        let long = "n".repeat(200);
        let deep = format!("d/{long}/{long}");
        std::fs::create_dir_all(at.join(&deep)).unwrap();
        text(&format!("{deep}/file"), b"deep");
        std::fs::hard_link(at.join("d/e/block"), at.join(format!("{deep}/hard"))).unwrap();
        symlink("t".repeat(3000), at.join("long-link")).unwrap();
        std::fs::write(at.join("größe\n"), b"bytes").unwrap();
    }
    for (name, parts) in [("sparse", 3u64), ("sparser", 40)] {
        let file = File::create(at.join(name)).unwrap();
        for part in 0..parts {
            file.write_all_at(format!("part {part}").as_bytes(), part * 30_000 + 100)
                .unwrap();
        }
        file.set_len(parts * 30_000 + 9_999).unwrap();
    }
    let hole = File::create(at.join("hole")).unwrap();
    hole.set_len(1 << 18).unwrap();
}

#[test]
fn gnu_tar_in_every_format() {
    for (options, long_names) in [
        (&["--format=v7"][..], false),
        (&["--format=ustar"], false),
        (&["--format=oldgnu"], true),
        (&["--format=oldgnu", "--sparse"], true),
        (&["--format=gnu"], true),
        (&["--format=gnu", "--sparse"], true),
        (&["--format=posix"], true),
        (
            &["--format=posix", "--sparse", "--sparse-version=0.0"],
            true,
        ),
        (
            &["--format=posix", "--sparse", "--sparse-version=0.1"],
            true,
        ),
        (
            &["--format=posix", "--sparse", "--sparse-version=1.0"],
            true,
        ),
        (
            &[
                "--format=posix",
                "--xattrs",
                "--hard-dereference",
                "--owner=:4000000000",
            ],
            true,
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        make_tree(directory.path(), long_names);
        let mut want = facts::of_directory(directory.path());
        want.remove("");
        let at = directory.path().to_str().unwrap();
        let archive = run("tar", &[options, &["-C", at, "-cf", "-", "."]].concat()).stdout;
        let got = facts::of_tar(archive);
        if options.contains(&"--hard-dereference") {
            want.iter_mut()
                .for_each(|(path, facts)| facts.same_as = path.clone());
            facts::count_links(&mut want);
            want.values_mut()
                .for_each(|facts| facts.owner.0 = 4_000_000_000);
        }
        facts::assert_same(&got, &want, &options.join(" "));
    }
}
