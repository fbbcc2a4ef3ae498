//! Where a container can be written, and where its mount points are.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::product::STORE;

use super::{Site, ensure_refused, store_image};

/// Puts an image `work` into the store that has a directory for everybody, one with content, a
/// link, and top-level directories of every kind.
fn store_work(site: &Site) -> Result<()> {
    let tree = Recipe::tiny("work").build()?.layout().join("tree");
    for dir in [
        "open",
        "data/deep/er",
        "app/bin",
        "usr/local/lib",
        "usr/share",
    ] {
        fs::create_dir_all(tree.join(dir))?;
    }
    fs::set_permissions(tree.join("open"), fs::Permissions::from_mode(0o1777))?;
    fs::write(tree.join("open/theirs"), "image\n")?;
    fs::set_permissions(tree.join("open/theirs"), fs::Permissions::from_mode(0o666))?;
    // As many as a large distribution has in /usr/bin, and more.
    for number in 0..1500 {
        fs::write(tree.join(format!("data/deep/n{number}")), "")?;
        fs::write(tree.join(format!("usr/share/n{number}")), "")?;
    }
    fs::write(tree.join("data/deep/file"), "image\n")?;
    fs::copy(tree.join("bin/busybox"), tree.join("app/bin/busybox"))?;
    fs::copy(tree.join("bin/busybox"), tree.join("usr/share/busybox"))?;
    std::os::unix::fs::symlink("data", tree.join("to-data"))?;
    store_image(&tree, &"7".repeat(64), "work")?;
    ensure!(fs::exists(format!("{STORE}/{}.squashfs", "7".repeat(64)))?);
    site.product.configure("writable_tmpfs_size_mib = 4\n")
}

fn script(site: &Site, options: &[&str], script: &str) -> Result<String> {
    let args = [&["--image=work"], options, &["sh", "-c", script]].concat();
    Ok(site.shifter(&args)?.success()?.stdout)
}

#[test]
fn privileged_scratch_space_follows_the_images_modes() -> Result<()> {
    let site = Site::prepare()?;
    store_work(&site)?;
    let change = "cd /open; echo mine >new; mv new newer; echo more >>theirs; cat newer theirs
        ls; touch /etc/x /usr/x /x 2>&1 | grep -c 'Permission denied'";
    let seen = script(&site, &["--writable-tmpfs"], change)?;
    ensure!(seen == "mine\nimage\nmore\nnewer\ntheirs\n3\n", "{seen}");
    let again = script(&site, &["--writable-tmpfs"], "cat /open/*")?;
    ensure!(again == "image\n", "{again}");
    // Without the option nothing can be written, whatever the image's modes.
    let seen = script(&site, &[], "touch /open/x 2>&1 | grep -c 'Read-only'; true")?;
    ensure!(seen == "1\n", "{seen}");
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_scratch_space_ends_at_its_cap() -> Result<()> {
    let site = Site::prepare()?;
    store_work(&site)?;
    let fill = "cd /open; dd if=/dev/zero of=big bs=64k count=1000 2>&1 | grep -c 'No space left'
        rm big; echo small >file; cat file
        i=0; while [ $i -lt 2000 ]; do true >f$i || break; i=$((i+1)); done 2>/dev/null
        [ $i -gt 500 ] && [ $i -lt 1100 ] && echo bounded";
    let seen = script(&site, &["--writable-tmpfs"], fill)?;
    ensure!(seen == "1\nsmall\nbounded\n", "{seen}");
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_a_named_directory_becomes_the_users() -> Result<()> {
    let site = Site::prepare()?;
    store_work(&site)?;
    let change = "cd /data; echo a >new; echo b >deep/er/new; mkdir -p deep/x/y; mv new deep/moved
        rm deep/file; echo c >deep/file; cat deep/moved deep/er/new deep/file; stat -c %u . deep";
    let seen = script(&site, &["--writable-tmpfs=/data"], change)?;
    ensure!(seen == "a\nb\nc\n2001\n2001\n", "{seen}");
    let seen = script(
        &site,
        &["--writable-tmpfs=/my/own"],
        "echo x >/my/own/y; cat /my/own/y; stat -c %u /my; touch /data/z 2>&1 | grep -c denied",
    )?;
    ensure!(seen == "x\n0\n1\n", "{seen}");
    let volume = [
        "--writable-tmpfs=/data",
        "--mount=type=bind,src=/scratch/alice,dst=/data/vol,readonly",
    ];
    let seen = script(
        &site,
        &volume,
        "touch /data/vol/x 2>&1 | grep -c Read-only; echo 1 >/data/z; cat /data/z",
    )?;
    ensure!(seen == "1\n1\n", "{seen}");
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_scratch_space_is_refused_where_it_must_be() -> Result<()> {
    let site = Site::prepare()?;
    store_work(&site)?;
    for (path, code, words) in [
        ("/etc", 3, "/etc"),
        ("/", 3, "/"),
        ("/usr/../etc", 2, "'..'"),
        ("data", 2, "absolute"),
        ("/var/lib", 3, "/var"),
        ("/home/alice", 3, "another mount"),
        ("/tmp/x", 3, "another mount"),
        ("/to-data", 3, "is a link"),
        ("/to-data/deep", 3, "is a link"),
        ("/data/deep/file/x", 3, "not a directory"),
    ] {
        let option = format!("--writable-tmpfs={path}");
        let output = site.shifter(&["--image=work", &option, "true"])?;
        ensure_refused(&output, code, words).map_err(|e| e.context(path))?;
        let what = format!("shifter: '{path}' cannot be made writable: ");
        ensure!(output.stderr.starts_with(&what), "{output}");
    }
    site.product.configure("writable_tmpfs_size_mib = 0\n")?;
    let output = site.shifter(&["--image=work", "--writable-tmpfs", "true"])?;
    ensure_refused(&output, 3, "does not let users write")?;
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}

/// Programs are read from the image itself, also next to a mount point that was made for a user.
#[test]
fn privileged_no_overlay_lies_between_a_program_and_its_libraries() -> Result<()> {
    let site = Site::prepare()?;
    store_work(&site)?;
    let kind = "stat -f -c %t /app/bin /usr/share /usr/local/lib /usr/local /open /etc; /app/bin/busybox true";
    let seen = script(&site, &[], kind)?;
    let (squashfs, overlay) = ("73717368\n", "794c7630\n");
    let plain = squashfs.repeat(5) + overlay;
    ensure!(seen == plain, "{seen}");
    let volume = "--volume=/scratch/alice:/usr/local/mine";
    let seen = script(&site, &[volume], kind)?;
    let beside = squashfs.repeat(3) + overlay + squashfs + overlay;
    ensure!(seen == beside, "{seen}");
    Call::shell("echo here >/scratch/alice/file").ok()?;
    let mount = "--mount=type=bind,source=/scratch/alice/file,target=/usr/share/new/file";
    let seen = script(
        &site,
        &[mount, volume],
        "cat /usr/share/new/file /usr/local/mine/file",
    )?;
    ensure!(seen == "here\nhere\n", "{seen}");
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}
