//! The top level of a root: what an image has there is there, whatever it is called, and what it may
//! not have is the image's fault.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::product::STORE;

use super::roots::look;
use super::{Site, ensure_refused, manifest, store_image};

const ID: char = '8';

/// Puts an image into the store that has more than most in its top level.
fn store_odd(more: usize) -> Result<PathBuf> {
    let tree = Recipe::tiny("odd").build()?.layout().join("tree");
    for dir in ["layer/in", "root/in", "lower", "app/bin", "empty"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    let strange = tree.join(OsStr::from_bytes(b"str\xff nge"));
    fs::create_dir(&strange)?;
    fs::write(strange.join("in"), "strange\n")?;
    fs::write(tree.join("root/in/file"), "root\n")?;
    fs::write(tree.join(".hidden"), "hidden\n")?;
    fs::write(tree.join("script.sh"), "#!/bin/sh\necho script\n")?;
    fs::set_permissions(tree.join("script.sh"), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o1777))?;
    fs::set_permissions(tree.join("lower"), fs::Permissions::from_mode(0o750))?;
    for (target, link) in [
        ("/", "up"),
        ("app", "to-app"),
        ("nowhere", "dangling"),
        ("usr/x y\n", "odd"),
    ] {
        symlink(target, tree.join(link))?;
    }
    for number in 0..more {
        fs::write(tree.join(format!("file{number}")), "")?;
    }
    store_image(&tree, &ID.to_string().repeat(64), "odd")?;
    Ok(tree)
}

/// Tells names, kinds, modes, owners and targets of the top level but of what the site places there.
const LIST: &str = "cd /; for f in * .hidden; do case $f in dev|proc|sys|tmp|etc|var|opt|scratch|home) ;;
    *) stat -c '%n %a %u %g %F' \"$f\"; readlink \"$f\"; esac; done; ls -d * | wc -l
    cat /str*/in /root/in/file /.hidden; /script.sh; touch /x 2>&1 | grep -c Read-only; touch /empty/x 2>&1 | grep -c Read-only";

#[test]
fn privileged_what_an_image_has_in_its_top_level_is_there() -> Result<()> {
    let site = Site::prepare()?;
    let mut seen = Vec::new();
    // Beyond the limit, at the limit of what has a root of its own, and below.
    for more in [120, 40, 0] {
        store_odd(more)?;
        let mut job = manifest("17");
        job["image"]["id"] = ID.to_string().repeat(64).into();
        site.set_up(&job)?.success()?;
        let joined = look("17", LIST)?;
        // The first on the node, and one beside it.
        let private = site
            .shifter(&["--image=odd", "sh", "-c", LIST])?
            .success()?
            .stdout;
        site.tear_down("17")?.success()?;
        let first = site
            .shifter(&["--image=odd", "sh", "-c", LIST])?
            .success()?
            .stdout;
        let strip = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with("file"));
            lines.map(|line| format!("{line}\n")).collect::<String>()
        };
        ensure!(
            strip(&joined).ends_with("strange\nroot\nhidden\nscript\n1\n1\n"),
            "{joined}"
        );
        ensure!(joined.contains("empty 1777 0 0 directory\n"), "{joined}");
        ensure!(joined.contains("lower 750 0 0 directory\n"), "{joined}");
        ensure!(
            joined.contains("odd 777 0 0 symbolic link\nusr/x y\n"),
            "{joined}"
        );
        ensure!(
            private == joined && first == joined,
            "{joined}\n{private}\n{first}"
        );
        let is_own = look("17", "true").is_err();
        ensure!(is_own, "the root is left");
        seen.push(
            strip(&joined)
                .lines()
                .filter(|line| line.parse::<u32>().is_err())
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        );
    }
    ensure!(seen[0] == seen[1] && seen[1] == seen[2], "{seen:?}");
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_volumes_in_the_top_level_go_where_they_lead() -> Result<()> {
    let site = Site::prepare()?;
    store_odd(0)?;
    Call::shell("cd /scratch/alice; echo a >a; echo b >b; mkdir d; echo d >d/in; chown -R alice .")
        .ok()?;
    let mut job = manifest("17");
    job["image"]["id"] = ID.to_string().repeat(64).into();
    // The second file goes to the first one's place by another way.
    for (volumes, script, expected) in [
        (
            vec!["/scratch/alice/a:/new", "/scratch/alice/b:/up/new"],
            "cat /new",
            "b\n",
        ),
        (vec!["/scratch/alice/a:/script.sh"], "cat /script.sh", "a\n"),
        (
            vec!["/scratch/alice/d:/root", "/scratch/alice/d:/made"],
            "cat /root/in /made/in",
            "d\nd\n",
        ),
        (
            vec!["/scratch/alice/d:/root", "/scratch/alice/b:/root/in"],
            "cat /root/in",
            "b\n",
        ),
        (
            vec![
                "/scratch/alice/d:/to-app/bin",
                "/scratch/alice/d:/layer/deep/er",
            ],
            "cat /app/bin/in /layer/deep/er/in",
            "d\nd\n",
        ),
    ] {
        job["volumes"] = volumes.as_slice().into();
        site.set_up(&job)?
            .success()
            .with_context(|| format!("{volumes:?}"))?;
        let seen = look("17", script)?;
        ensure!(seen == expected, "{volumes:?}: {seen}");
        site.tear_down("17")?.success()?;
    }
    site.clean.ensure_restored(None)
}

/// Whoever writes a squashfs by hand can say of an entry what it is not, or give it twice.
#[test]
fn privileged_a_listing_that_lies_is_the_images_fault() -> Result<()> {
    let site = Site::prepare()?;
    let tree = Recipe::tiny("lies").build()?.layout().join("tree");
    fs::create_dir_all(tree.join("liardir/in"))?;
    fs::write(tree.join("liarfile"), "x\n")?;
    fs::create_dir(tree.join("twofold1"))?;
    fs::create_dir(tree.join("twofold2"))?;
    let id = ID.to_string().repeat(64);
    store_image(&tree, &id, "lies")?;
    let file = format!("{STORE}/{id}.squashfs");
    // The listings as they are, to be changed.
    Call::new(["mksquashfs", &*tree.to_string_lossy(), &*file])
        .args([
            "-noappend",
            "-no-progress",
            "-quiet",
            "-all-root",
            "-noI",
            "-noId",
            "-noD",
            "-noF",
        ])
        .ok()?;
    let good = fs::read(&file)?;
    let mut job = manifest("17");
    job["image"]["id"] = id.clone().into();
    let changed = |name: &[u8], change: &dyn Fn(&mut [u8])| -> Result<()> {
        let mut bytes = good.clone();
        let size = u16::try_from(name.len() - 1)?.to_le_bytes();
        let entry = [&size[..], name].concat();
        let at = bytes
            .windows(entry.len())
            .position(|window| window == entry);
        let at = at.context("no such entry")?;
        // Two bytes of type come before the size of the name.
        change(&mut bytes[at - 2..at + entry.len()]);
        fs::write(&file, bytes)?;
        Ok(())
    };
    site.set_up(&job)?.success()?;
    site.tear_down("17")?.success()?;
    for (name, change) in [
        (
            &b"liardir"[..],
            &(|entry: &mut [u8]| entry[0] = 2) as &dyn Fn(&mut [u8]),
        ),
        (b"liarfile", &|entry: &mut [u8]| entry[0] = 1),
        (b"liarfile", &|entry: &mut [u8]| entry[0] = 3),
        (b"twofold2", &|entry: &mut [u8]| entry[11] = b'1'),
    ] {
        changed(name, change)?;
        let output = site.set_up(&job)?;
        ensure_refused(&output, 4, "docker:tiny:latest")?;
        site.tear_down("17")?.success()?;
    }
    site.clean.ensure_restored(None)
}
