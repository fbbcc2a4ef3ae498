//! S21, S22, S25–S27: what an image's file, its metadata or its tree may try.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::product::STORE;

use super::secure::{Guard, compile, is_long, kernel_troubles};
use super::{image_id, manifest};

/// Says why each of its arguments cannot be opened, and tries to be root.
const PROBE: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    printf("%d %d %s\n", getuid(), geteuid(), setuid(0) ? "no" : "ROOT");
    for (int n = 1; n < argc; n++)
        printf("%s %s\n", argv[n], open(argv[n], O_RDONLY | O_NONBLOCK) < 0 ? strerror(errno) : "OPEN");
    return 0;
}
"#;

fn of_store(name: &str) -> String {
    format!("{STORE}/{}.{name}", image_id())
}

#[test]
fn privileged_s21_the_kernel_is_given_no_other_file_system() -> Result<()> {
    let guard = Guard::prepare()?;
    let meta = of_store("meta");
    let sound = fs::read_to_string(&meta)?;
    for format in [
        "ext4",
        "xfs",
        "cramfs",
        "VFS",
        "EROFS",
        "SQUASHFS",
        "squashfs\0",
        "",
        "invalid",
    ] {
        let text = sound.replace("FORMAT: squashfs", &format!("FORMAT: {format}"));
        fs::write(&meta, text)?;
        let output = guard.site.shifter(&["--image=tiny", "true"])?;
        guard
            .refused(&output, 4, "cannot use image")
            .map_err(|e| e.context(format))?;
        let output = guard.site.set_up(&manifest("17"))?;
        guard
            .refused(&output, 4, "cannot use image")
            .map_err(|e| e.context(format))?;
    }
    // Erofs only where the site wants it.
    let (file, other) = (of_store("squashfs"), of_store("erofs"));
    let tree = "/var/lib/shifter/layouts/tiny/tree";
    Call::new(["mkfs.erofs", "--quiet", &*other, tree]).ok()?;
    fs::write(&meta, sound.replace("FORMAT: squashfs", "FORMAT: erofs"))?;
    Call::new(["chown", "shifter:", &*other]).ok()?;
    let unwanted = "this site mounts no erofs images";
    let output = guard.site.shifter(&["--image=tiny", "true"])?;
    guard.refused(&output, 4, unwanted)?;
    guard.refused(&guard.site.set_up(&manifest("17"))?, 4, unwanted)?;
    for wanted in ["mount_erofs = true", "format = 'erofs'"] {
        guard.site.configure_store(wanted)?;
        let kind = guard.site.script(&[], "stat -f -c %t /bin")?;
        ensure!(kind == "e0f5e1e2\n", "{wanted}: {kind}");
    }
    // Whatever the metadata says: a file of another kind is not tried as what it is.
    fs::remove_file(&other)?;
    fs::hard_link(&file, &other)?;
    let output = guard.site.shifter(&["--image=tiny", "true"])?;
    guard.refused(&output, 4, "cannot use image")?;
    fs::remove_file(&other)?;
    fs::write(&meta, &sound)?;
    guard.site.product.configure("")?;
    Call::shell(&format!(
        "mv {file} /tmp/kept; truncate -s 32M {file} && mkfs.ext4 -q {file} && chown shifter: {file}"
    ))
    .ok()?;
    let output = guard.site.shifter(&["--image=tiny", "true"])?;
    guard.refused(&output, 4, "cannot use image")?;
    Call::shell(&format!(
        "rm {file}; mv /tmp/kept {file}; chown shifter: {file}"
    ))
    .ok()?;
    guard.site.script(&[], "true")?;
    guard.finish()
}

#[test]
fn privileged_s22_files_of_the_store_that_others_could_write_are_refused() -> Result<()> {
    let guard = Guard::prepare()?;
    let index = format!("{STORE}/index/docker/tiny%3Alatest");
    for path in [&of_store("squashfs"), &of_store("meta"), &index] {
        for (spoil, mend) in [
            (
                format!("chown alice {path}"),
                format!("chown shifter {path}"),
            ),
            (
                format!("chgrp proj {path}; chmod g+w {path}"),
                format!("chmod g-w {path}"),
            ),
            (format!("chmod o+w {path}"), format!("chmod o-w {path}")),
            (
                format!("mv {path} /tmp/x; ln -s /tmp/x {path}"),
                format!("rm {path}; mv /tmp/x {path}"),
            ),
            (
                format!("mv {path} /tmp/x; mkfifo {path}"),
                format!("rm {path}; mv /tmp/x {path}"),
            ),
            (
                format!("mv {path} /tmp/x; mkdir {path}"),
                format!("rmdir {path}; mv /tmp/x {path}"),
            ),
            (
                format!("mv {path} /tmp/x; ln -s /root/canary {path}"),
                format!("rm {path}; mv /tmp/x {path}"),
            ),
        ] {
            Call::shell(&spoil).ok()?;
            let output = guard.site.shifter(&["--image=tiny", "true"]);
            Call::shell(&mend).ok()?;
            guard
                .refused_somehow(&output?)
                .map_err(|error| error.context(spoil))?;
        }
    }
    guard.site.script(&[], "true")?;
    guard.finish()
}

/// What is broken in a copy of the image's file.
type Damage = (String, Change);

/// Changes the file, whose size is given too.
type Change = Box<dyn Fn(&mut fs::File, u64) -> Result<()>>;

fn overwrite(at: u64, bytes: &'static [u8]) -> Change {
    Box::new(move |file, _| {
        file.seek(SeekFrom::Start(at))?;
        Ok(file.write_all(bytes)?)
    })
}

fn damages(size: u64) -> Vec<Damage> {
    let mut all: Vec<Damage> = Vec::new();
    for length in [0, 1, 95, 96, size / 2, size - 4096, size - 1] {
        all.push((
            format!("cut at {length}"),
            Box::new(move |file, _| Ok(file.set_len(length)?)),
        ));
    }
    // Fields of the superblock (Documentation/filesystems/squashfs.rst).
    for (what, at, bytes) in [
        ("inode count", 4, &[0xff; 4][..]),
        ("block size 0", 12, &[0; 4]),
        ("block size 2^31", 12, &[0, 0, 0, 0x80]),
        ("fragment count", 16, &[0xff; 4]),
        ("compression 9", 20, &[9, 0]),
        ("block log 31", 22, &[31, 0]),
        ("id count 0", 26, &[0, 0]),
        ("version", 28, &[9, 9]),
        ("root inode", 32, &[0xff; 8]),
        ("16 TiB used", 40, &[0, 0, 0, 0, 0, 16, 0, 0]),
        ("id table", 48, &[0xff; 7]),
        ("xattr table", 56, &[0x60, 0, 0, 0, 0, 0, 0, 0]),
        ("inode table", 64, &[0x60, 0, 0, 0, 0, 0, 0, 0]),
        ("directory table", 72, &[0xff, 0xff, 0, 0, 0, 0, 0, 0]),
        ("fragment table", 80, &[0; 8]),
        ("export table", 88, &[0; 8]),
    ] {
        all.push((what.to_owned(), overwrite(at, bytes)));
    }
    // Single bits of the superblock, and of the tables at the end.
    let mut random = 25_u64;
    for number in 0..if is_long() { 1000 } else { 40 } {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at = if number % 2 == 0 {
            (random >> 33) % 96
        } else {
            size - 1 - (random >> 33) % 3000
        };
        let bit = 1 << (random >> 20 & 7);
        let flip: Damage = (
            format!("bit {bit} of byte {at}"),
            Box::new(move |file, _| {
                let mut byte = [0];
                file.seek(SeekFrom::Start(at))?;
                file.read_exact(&mut byte)?;
                file.seek(SeekFrom::Start(at))?;
                Ok(file.write_all(&[byte[0] ^ bit])?)
            }),
        );
        all.push(flip);
    }
    all
}

/// S25: the store's own file, broken on its disk: the user's command fails, the node does not.
#[test]
fn privileged_s25_broken_images_fail_cleanly() -> Result<()> {
    let guard = Guard::prepare()?;
    let before = kernel_troubles()?;
    let file = of_store("squashfs");
    let sound = format!("{file}.sound");
    fs::rename(&file, &sound)?;
    let size = fs::metadata(&sound)?.len();
    let (mut refused, mut ran) = (0, 0);
    for (what, damage) in damages(size) {
        // A new inode each time, as a pull makes one.
        let _ = fs::remove_file(&file);
        Call::new(["cp", "-p", &*sound, &*file]).ok()?;
        damage(
            &mut fs::OpenOptions::new().read(true).write(true).open(&file)?,
            size,
        )?;
        let output = guard
            .site
            .shifter(&["--image=tiny", "cat", "/etc/marker"])?;
        let context = || format!("{what}: {output}");
        // 4: the image's fault. The rest: it could be mounted, and the command met the damage.
        let from_inside = [0, 1, 126, 127].contains(&output.code) || output.died();
        ensure!(output.code == 4 || from_inside, "{}", context());
        ensure!(!output.stderr.contains("panicked"), "{}", context());
        match output.code {
            4 => refused += 1,
            0 => ran += 1,
            _ => {}
        }
        if output.code == 4 {
            guard
                .refused_somehow(&output)
                .map_err(|error| error.context(context()))?;
        }
    }
    fs::remove_file(&file)?;
    fs::rename(&sound, &file)?;
    ensure!(refused > 20, "only {refused} were refused, and {ran} ran");
    ensure!(kernel_troubles()? <= before, "the kernel complains: dmesg");
    guard.site.script(&[], "true")?;
    guard.unchanged()?;
    guard.finish()
}

#[test]
fn privileged_s26_devices_and_setuid_files_of_an_image_are_powerless() -> Result<()> {
    let guard = Guard::prepare()?;
    let probe = compile("probe", PROBE)?;
    guard.image("nodes", |tree| {
        let tree = tree.display();
        Call::shell(&format!(
            "cp {probe} {tree}/bin/probe; cp {probe} {tree}/bin/suid; chmod 6755 {tree}/bin/suid
            mkdir {tree}/nodes; cd {tree}/nodes
            mknod null c 1 3; mknod mem c 1 1; mknod disk b 7 0; mknod tty c 5 1; mknod fuse c 10 229
            mkfifo pipe; chmod 0666 *
            python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'
            cp -a null {tree}/topnull; cp -a pipe {tree}/toppipe; cp -a disk {tree}/topdisk"
        ))
        .ok()
        .map(drop)
    })?;
    let script = "probe; suid; cd /nodes; probe null mem disk tty fuse /topnull /topdisk socket";
    let output = guard
        .site
        .shifter(&["--image=nodes", "sh", "-c", script])?
        .success()?;
    let mut lines = output.stdout.lines();
    for _ in 0..3 {
        ensure!(lines.next() == Some("2001 2001 no"), "{output}");
    }
    for name in ["null", "mem", "disk", "tty", "fuse", "/topnull", "/topdisk"] {
        ensure!(
            lines.next() == Some(&format!("{name} Permission denied")),
            "{output}"
        );
    }
    ensure!(
        lines.next() == Some("socket No such device or address"),
        "{output}"
    );
    guard.well_spoken(&output)?;
    guard.finish()
}

/// S27: places that the site uses, each as a link or a file in every hostile way.
#[test]
fn privileged_s27_hostile_places_in_an_image_keep_the_set_up_inside() -> Result<()> {
    let mut guard = Guard::prepare()?;
    Call::shell("mkdir -p /opt/udi; echo site >/opt/udi/marker").ok()?;
    guard.site.product.configure("udi_image = '/opt/udi'")?;
    guard.rebase()?;
    let places = [
        "etc",
        "var",
        "opt",
        "opt/udiImage",
        "proc",
        "sys",
        "dev",
        "tmp",
        "var/tmp",
        "usr/bin/ssh",
        "etc/ssh",
        "scratch",
        "home",
        "etc/passwd",
        "var/hostsfile",
        "etc/mtab",
    ];
    let (mut ran, mut refused) = (0, 0);
    for place in places {
        for kind in [
            "/root",
            "../../../../root",
            "loop",
            "each other",
            "file",
            "/proc/1/root/root",
        ] {
            // Each of these takes a moment to pack; links to /root, loops and files say most.
            if ["each other", "/proc/1/root/root"].contains(&kind) && place.contains('/') {
                continue;
            }
            guard.image("hostile", |tree| {
                let at = tree.join(place);
                Call::new(["rm", "-rf", &at.to_string_lossy()]).ok()?;
                fs::create_dir_all(at.parent().unwrap_or(tree))?;
                match kind {
                    "loop" => symlink(at.file_name().unwrap_or_default(), &at)?,
                    "file" => fs::write(&at, "not a directory")?,
                    "each other" => {
                        symlink("other", &at)?;
                        symlink(Path::new("/").join(place), at.with_file_name("other"))?;
                    }
                    target => symlink(target, &at)?,
                }
                Ok(())
            })?;
            let context = || format!("/{place}: {kind}");
            let script = "cat /etc/passwd /opt/udiImage/marker /root/canary 2>/dev/null; id -u; stat -f -c %T /proc";
            let output =
                guard
                    .site
                    .shifter(&["--image=hostile", "/bin/busybox", "sh", "-c", script])?;
            guard
                .done_or_refused(&output)
                .map_err(|error| error.context(context()))?;
            if output.code == 0 {
                ran += 1;
                let is_sound = output.stdout.contains("alice:x:2001:2001")
                    && output.stdout.ends_with("2001\nproc\n")
                    && output.stdout.contains("site\n");
                ensure!(is_sound, "{}: {output}", context());
            } else {
                refused += 1;
                // Never the node's failure.
                ensure!(output.code == 4, "{}: {output}", context());
            }
        }
    }
    ensure!(
        ran > 20 && refused > 20,
        "{ran} ran, {refused} were refused"
    );
    // A link that leads a mount of the site's over another thing of the site's, or the host's.
    for (place, target) in [
        ("opt/udiImage", "/etc"),
        ("opt/udiImage", "../opt"),
        ("opt/udiImage", "/dev/shm"),
        ("scratch", "tmp"),
        ("scratch", "usr/../var/tmp"),
        ("scratch", "."),
        ("home", "usr/../sys"),
    ] {
        guard.image("hostile", |tree| {
            fs::create_dir_all(tree.join("dev/shm"))?;
            Ok(symlink(target, tree.join(place))?)
        })?;
        let output = guard.site.shifter(&["--image=hostile", "true"])?;
        let words = format!("cannot place the site's '/{place}': the image's link leads to '/");
        guard
            .refused(&output, 4, &words)
            .map_err(|error| error.context(target))?;
    }
    guard.image("hostile", |tree| {
        fs::create_dir_all(tree.join("var/home"))?;
        Ok(symlink("var/home", tree.join("home"))?)
    })?;
    let output = guard.site.shifter(&["--image=hostile", "ls", "/home"])?;
    ensure!(output.stdout == "alice\nbob\n", "{output}");
    Call::shell("rm -r /opt/udi").ok()?;
    guard.site.product.configure("")?;
    guard.finish()
}
