//! Images that are in no store: directory trees of the host, squashfs files by path; and users' own
//! stores, as far as the site lets them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shifter_core::ids::ImageId;
use shifter_tests::call::{Call, Output, wait_for};
use shifter_tests::product::STORE;
use shifter_tests::world::User::{self, Alice, Bob};

use super::join::Step;
use super::secure::kernel_troubles;
use super::{
    COPY, FuseDevice, Site, ensure_refused, image_id, manifest, squashfs_file, store_image,
};

/// What ELOOP is called by glibc and by musl, and what both have in common.
const LOOPS: [&str; 2] = ["Too many levels of symbolic links", "Symbolic link loop"];
const LOOP: &str = "ymbolic link";

/// As [`ensure_refused`]; a link too many is called exactly as one of the C libraries does.
fn ensure_says(output: &Output, code: i32, words: &str) -> Result<()> {
    ensure_refused(output, code, words)?;
    let is_named = words != LOOP || LOOPS.iter().any(|text| output.stderr.contains(text));
    ensure!(is_named, "{output}");
    Ok(())
}

/// Runs a program in an image, by the setuid program or by the copy that is not.
fn run(program: &str, user: User, image: &str, command: &[&str]) -> Result<Output> {
    let image = format!("--image={image}");
    Call::new([&[program, &*image], command].concat())
        .by(user)
        .output()
}

fn marker(program: &str, user: User, image: &str) -> Result<Output> {
    run(program, user, image, &["cat", "/etc/marker"])
}

const PROGRAMS: [&str; 2] = ["shifter", COPY];

/// A tree at `path`, of `owner`'s, with `marker` in its /etc/marker.
fn tree(path: &str, owner: &str, marker: &str) -> Result<()> {
    let make = format!(
        "umount -q {path}/own/mnt; rm -rf {path}; mkdir -p $(dirname {path}); cp -a /var/lib/shifter/layouts/tiny/tree {path}
        echo {marker} >{path}/etc/marker; chown -R {owner}: {path}"
    );
    Call::shell(&make).ok().map(drop)
}

#[test]
fn privileged_directories_run_where_the_site_allows_it() -> Result<()> {
    let site = Site::prepare()?;
    site.copy()?;
    tree("/scratch/trees/a", "alice", "a")?;
    tree("/scratch/trees/bobs", "bob", "bobs")?;
    tree("/scratch/trees2/a", "alice", "outside")?;
    fs::create_dir_all("/home/alice/trees")?;
    tree("/home/alice/trees/b", "alice", "b")?;
    let prepare = "chmod 0700 /scratch/trees/bobs; ln -sfn /scratch/trees2/a /scratch/trees/out
        ln -sfn ../trees2/a /scratch/trees/out2; ln -sfn a /scratch/trees/in
        ln -sfn /home/alice/trees /scratch/link; ln -sfn /proc/self/root/etc /scratch/trees/magic
        touch /scratch/trees/file; mkdir -p /scratch/trees/empty";
    Call::shell(prepare).ok()?;
    for program in PROGRAMS {
        site.configure_store("")?;
        let output = marker(program, Alice, "local:/scratch/trees/a")?;
        ensure_refused(&output, 3, "this site runs none")?;
        // The second is a link of the site's own.
        site.configure_store("local_dirs = ['/scratch/trees', '/scratch/link', '/nosuch']")?;
        for (path, expected) in [
            ("/scratch/trees/a", "a"),
            ("/scratch/trees/in", "a"),
            ("/scratch/trees2/../trees/a", ""),
            ("/home/alice/trees/b", "b"),
            ("/scratch/link/b", "b"),
        ] {
            let output = marker(program, Alice, &format!("local:{path}"))?;
            ensure!(output.stdout.trim() == expected, "{path}: {output}");
        }
        for (path, code, words) in [
            ("/scratch/trees2/a", 3, "not below /scratch/trees"),
            ("/scratch/trees/out", 3, "not below /scratch/trees"),
            ("/scratch/trees/out2", 3, "not below /scratch/trees"),
            ("/", 3, "not below"),
            ("/etc", 3, "not below"),
            ("/scratch/trees/magic", 4, LOOP),
            ("/scratch/trees/bobs", 4, "Permission denied"),
            ("/scratch/trees/file", 4, "Not a directory"),
            ("/scratch/trees/nosuch", 4, "No such file"),
            ("/root/x", 4, "Permission denied"),
        ] {
            let output = marker(program, Alice, &format!("local:{path}"))?;
            ensure_says(&output, code, words).with_context(|| format!("{program} {path}"))?;
        }
        let output = run(program, Alice, "local:/scratch/trees/empty", &["true"])?;
        ensure!(output.code == 127, "{output}");
        let output = marker(program, Bob, "local:/scratch/trees/bobs")?;
        ensure!(output.stdout == "bobs\n", "{output}");
    }
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// A tree is read-only and as harmless as an image, and what is mounted in it stays outside.
#[test]
fn privileged_a_directory_is_an_image_like_others() -> Result<()> {
    let site = Site::prepare()?;
    site.copy()?;
    site.configure_store("local_dirs = ['/scratch/trees']")?;
    tree("/scratch/trees/a", "alice", "a")?;
    let own = "cd /scratch/trees/a && mkdir own && cp bin/busybox own/id &&
        chown root own/id && chmod 4755 own/id && mknod own/null c 1 3 && chmod 666 own/null
        mkdir -p own/mnt && mount -t tmpfs tmpfs own/mnt && touch own/mnt/seen && chown -R alice own/mnt
        ln -s /etc/shadow shadow; mkfifo fifo";
    Call::shell(own).ok()?;
    let inside = "cat /etc/passwd | grep -c alice; ls /own/mnt; /own/id -u
        (echo >/own/null) 2>&1; (echo >/own/new) 2>&1; (echo >/etc/marker) 2>&1; cat /shadow
        ls -d /fifo 2>&1; echo $SHIFTER_IMAGE; ls /scratch/trees";
    for program in PROGRAMS {
        if program == COPY {
            // Only root can take a mount out of a copy of the tree.
            let output = run(program, Alice, "local:/scratch/trees/a", &["true"])?;
            ensure_refused(&output, 6, "has something mounted in it")?;
            Call::new(["umount", "/scratch/trees/a/own/mnt"]).ok()?;
        }
        let result = run(
            program,
            Alice,
            "local:/scratch/trees/a",
            &["sh", "-c", inside],
        )?;
        let seen = result.stdout.replace("seen\n", "");
        let lines: Vec<&str> = seen.lines().collect();
        ensure!(lines[..2] == ["1", "2001"], "{result}");
        ensure!(lines[2].contains("ermission denied"), "{result}");
        ensure!(
            lines[3..5].iter().all(|line| line.contains("ead-only")),
            "{result}"
        );
        ensure!(lines[5] == "/fifo", "{result}");
        ensure!(
            lines[6..] == ["local:/scratch/trees/a", "a"],
            "and no hash of the host's: {result}"
        );
        ensure!(!result.stdout.contains("seen\n"), "{result}");
    }
    // Volumes and overlays work on it as on any image.
    let volume = "--volume=/scratch/alice:/deep/mount/point";
    let image = [
        "shifter",
        "--image=local:/scratch/trees/a",
        volume,
        "ls",
        "/deep/mount",
    ];
    ensure!(Call::new(image).by(Alice).ok()? == "point\n");
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// A tree is no image that stands still: whatever its owner does to it meanwhile, a container of it
/// shows nothing that she could not see anyway, and neither loops nor crashes.
#[test]
fn privileged_a_tree_that_changes_never_leads_out() -> Result<()> {
    let site = Site::prepare()?;
    site.configure_store("local_dirs = ['/scratch/trees']")?;
    tree("/scratch/trees/race", "alice", "race")?;
    fs::create_dir_all("/root/canary-dir")?;
    let rounds = match std::env::var_os("SHIFTER_LONG_TESTS") {
        Some(_) => 3000,
        None => 200,
    };
    let script = format!(
        "cd /scratch/trees/race; mkdir -p sub/deep real/deep; ln -sfn /root link; ln -sfn /../../etc way
        (while :; do
            mv -T etc e; cp -P way etc; rm -f etc; cp -P link etc; rm -f etc; mv -T e etc
            mv -T sub/deep ../deep; mv -T ../deep sub/deep
            mv -T sub s; cp -P link sub; rm -f sub; mv -T s sub
        done) >/dev/null 2>&1 &
        racer=$!
        for i in $(seq {rounds}); do
            shifter --image=local:/scratch/trees/race --volume=/scratch/alice:/sub/deep/x/y \
                /bin/sh -c 'echo ran; cat /etc/shadow /etc/sudoers; ls -a /etc /sub /sub/deep' 2>&1
            echo code $?
        done
        kill $racer"
    );
    Call::shell("cp /etc/shadow /tmp/shadow.before").ok()?;
    let seen = Call::shell(&script).by(Alice).timeout(600).output()?;
    ensure!(seen.stdout.contains("ran\n"), "no start ever succeeded");
    for secret in [
        "canary-dir",
        "$y$",
        "alice:*",
        "NOPASSWD",
        "panicked",
        "code 101",
    ] {
        ensure!(!seen.stdout.contains(secret), "'{secret}' was seen");
    }
    Call::new(["cmp", "/etc/shadow", "/tmp/shadow.before"]).ok()?;
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_trees_of_the_site_run_by_name() -> Result<()> {
    let site = Site::prepare()?;
    site.copy()?;
    tree("/opt/chos/sl6", "root", "sl6")?;
    tree("/scratch/alice/own", "alice", "own")?;
    symlink("chos/sl6", "/opt/current").or_else(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    })?;
    site.configure_store(
        "trees = { sl6 = '/opt/chos/sl6', now = '/opt/current', bad = '/scratch/alice/own', \
         gone = '/opt/chos/gone' }",
    )?;
    for (program, user) in [("shifter", Alice), ("shifter", Bob), (COPY, Bob)] {
        for name in ["sl6", "now"] {
            let output = marker(program, user, &format!("local:{name}"))?;
            ensure!(output.stdout == "sl6\n", "{output}");
        }
        ensure_refused(
            &marker(program, user, "local:other")?,
            4,
            "no tree of this name",
        )?;
        ensure_refused(&marker(program, user, "local:bad")?, 1, "not trusted")?;
        ensure_refused(&marker(program, user, "local:gone")?, 1, "/opt/chos/gone")?;
    }
    // The image manager knows nothing of them.
    let lookup = site
        .product
        .shifterimg(["lookup", "local:sl6"])
        .by(Alice)
        .output()?;
    ensure!(
        lookup.code == 3 && lookup.stderr.contains("only images of a store"),
        "{lookup}"
    );
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// A job's image can be a tree of the site's: its id is the name, and the site's configuration on
/// the node says where it is.
#[test]
fn privileged_trees_of_the_site_are_images_of_jobs() -> Result<()> {
    let site = Site::prepare()?;
    tree("/opt/chos/sl6", "root", "sl6")?;
    site.configure_store("trees = { sl6 = '/opt/chos/sl6' }")?;
    let id = ImageId::of_tree("sl6").context("an id")?.to_string();
    let mut job = manifest("17");
    job["image"] = json!({"id": id, "reference": "local:sl6"});
    job["volumes"] = ["/scratch/alice:/a/b"].as_slice().into();
    site.set_up(&job)?.success()?;
    let step = Step::of(Alice, "17")?;
    let show =
        "cat /etc/marker; echo $SHIFTER_IMAGE $SHIFTER_IMAGEREQUEST; readlink /proc/self/ns/mnt";
    let inside = |options: &str| -> Result<String> {
        let script = format!("cd /scratch/alice; shifter {options} sh -c '{show}'");
        Ok(step.run(Alice, &script)?.success()?.stdout)
    };
    let joined = inside("")?;
    ensure!(joined.starts_with("sl6\nlocal:sl6 local:sl6\n"), "{joined}");
    for same in ["--image=local:sl6", &format!("--image=id:{id}")] {
        ensure!(inside(same)? == joined, "{same}");
    }
    let private = inside("--volume=/scratch:/other")?;
    ensure!(
        private.starts_with("sl6\nlocal:sl6 local:sl6\n") && private != joined,
        "{private}"
    );
    site.tear_down("17")?.success()?;
    drop(step);
    // A tree that this node has not is the user's mistake; one that others can change is the node's.
    for (name, code, words) in [
        ("other", 4, "no tree of this name"),
        ("bad", 1, "not trusted"),
    ] {
        site.configure_store("trees = { bad = '/scratch/alice' }")?;
        let id = ImageId::of_tree(name).context("an id")?.to_string();
        job["image"] = json!({"id": id, "reference": format!("local:{name}")});
        ensure_refused(&site.set_up(&job)?, code, words)?;
    }
    site.clean.ensure_restored(None)
}

/// S24: a file that the user names is opened with the user's eyes, whoever mounts it.
#[test]
fn privileged_s24_files_are_opened_as_the_user() -> Result<()> {
    let mut site = Site::prepare()?;
    let _fuse = FuseDevice::with_mode(&mut site, "0666")?;
    site.copy()?;
    squashfs_file("/scratch/alice/own.sqsh", "own")?;
    let prepare = "cd /scratch/alice; f() { install -D \"$@\"; }
        f -m 0600 own.sqsh /scratch/root/closed.sqsh
        f -m 0644 own.sqsh /scratch/root/dir/open.sqsh; chmod 0700 /scratch/root/dir
        f -m 0644 own.sqsh /scratch/root/public.sqsh
        f -o bob -m 0600 own.sqsh /scratch/bob/bobs.sqsh
        f -o bob -g proj -m 0640 own.sqsh /scratch/bob/proj.sqsh
        ln -sf /scratch/root/closed.sqsh to-closed; ln -sf /scratch/root/dir/open.sqsh to-hidden
        ln -sf /scratch/bob/bobs.sqsh to-bobs; ln -sf /scratch/bob/proj.sqsh to-proj
        ln -sf /proc/self/fd/0 magic; mkfifo -m 666 pipe.sqsh; mkdir -p dir.sqsh; touch empty.sqsh
        ln -sf own.sqsh relative";
    Call::shell(prepare).ok()?;
    for (policy, program) in [("kernel", "shifter"), ("fuse", "shifter"), ("fuse", COPY)] {
        site.configure_store(&format!("user_images = '{policy}'"))?;
        for path in [
            "./own.sqsh",
            "../alice/own.sqsh",
            "/scratch/alice/own.sqsh",
            "file:/scratch/alice/own.sqsh",
            "/scratch/root/public.sqsh",
            "/scratch/bob/proj.sqsh",
            "./to-proj",
            "./relative",
        ] {
            let output = marker(program, Alice, path)?;
            ensure!(
                output.stdout == "own\n",
                "{policy} {program} {path}: {output}"
            );
        }
        for (path, words) in [
            ("/scratch/root/closed.sqsh", "Permission denied"),
            ("/scratch/root/dir/open.sqsh", "Permission denied"),
            ("/scratch/bob/bobs.sqsh", "Permission denied"),
            ("./to-closed", "Permission denied"),
            ("./to-hidden", "Permission denied"),
            ("./to-bobs", "Permission denied"),
            ("./magic", LOOP),
            ("/proc/self/fd/0", LOOP),
            ("./pipe.sqsh", "not a regular file"),
            ("/dev/null", "not a regular file"),
            ("./dir.sqsh", "named 'local:./dir.sqsh'"),
            ("./empty.sqsh", "not a squashfs file"),
            ("./nosuch.sqsh", "No such file"),
        ] {
            let output = marker(program, Alice, path)?;
            ensure_says(&output, 4, words).with_context(|| format!("{policy} {program} {path}"))?;
        }
        let output = marker(program, Alice, "own.sqsh")?;
        ensure_refused(&output, 2, "is the name of a file")?;
        ensure!(
            output.stderr.contains("hint: did you mean './own.sqsh'?"),
            "{output}"
        );
    }
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// S25: what is no squashfs, or a damaged one, is refused in words and leaves nothing, whether the
/// kernel or squashfuse looks at it.
#[test]
fn privileged_s25_damaged_files_are_refused() -> Result<()> {
    let mut site = Site::prepare()?;
    let _fuse = FuseDevice::with_mode(&mut site, "0666")?;
    let dir = Path::new("/scratch/alice/damaged");
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir)?;
    squashfs_file("/scratch/alice/own.sqsh", "own")?;
    let whole = fs::read("/scratch/alice/own.sqsh")?;
    let used = u64::from_le_bytes(whole[40..48].try_into()?) as usize;
    let mut files = Vec::new();
    let mut add = |name: String, bytes: &[u8], words: &'static str| -> Result<()> {
        fs::write(dir.join(&name), bytes)?;
        files.push((name, words));
        Ok(())
    };
    for length in [0, 1, 3] {
        add(
            format!("cut{length}"),
            &whole[..length],
            "not a squashfs file",
        )?;
    }
    for length in [4, 95, 96, used / 2, used - 1] {
        add(format!("cut{length}"), &whole[..length], "it is truncated")?;
    }
    let mut change = |name: &str, at: usize, value: &[u8], words| {
        let mut bytes = whole.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        add(name.to_owned(), &bytes, words)
    };
    change("block-log", 22, &[31], "superblock is damaged")?;
    change(
        "bytes-used",
        40,
        &(1_u64 << 44).to_le_bytes(),
        "it is truncated",
    )?;
    change("version", 28, &[3], "not of squashfs version")?;
    change("inodes", 4, &(u32::MAX - 1).to_le_bytes(), "")?;
    change("no-ids", 26, &[0, 0], "")?;
    change("compressor", 20, &[99], "")?;
    change("root-inode", 32, &[0xff; 6], "")?;
    // Spread over the superblock and the tables, which are at the end; the same ones every time.
    let tables = u64::from_le_bytes(whole[64..72].try_into()?) as usize;
    for round in 0..64_usize {
        let at = match round % 4 {
            0 => round * 3 / 2 % 96,
            _ => tables + round * 7919 % (used - tables),
        };
        change(
            &format!("flip{at}"),
            at,
            &[whole[at] ^ (1 << (round % 8))],
            "",
        )?;
    }
    Call::shell("truncate -s 4M /tmp/ext4 && mkfs.ext4 -q /tmp/ext4").ok()?;
    add(
        "ext4.sqsh".into(),
        &fs::read("/tmp/ext4")?,
        "not a squashfs file",
    )?;
    Call::new(["chown", "-R", "alice", "/scratch/alice/damaged"]).ok()?;

    let before = kernel_troubles()?;
    for policy in ["kernel", "fuse"] {
        site.configure_store(&format!("user_images = '{policy}'"))?;
        for (name, words) in &files {
            let path = format!("--image=./damaged/{name}");
            let output = Call::new(["shifter", &*path, "cat", "/etc/marker"])
                .by(Alice)
                .timeout(20)
                .output()?;
            let refused = || ensure_refused(&output, 4, words);
            match output.code {
                // The damage is where nobody looks; or it shows when a file is read.
                0 | 1 | 126 | 127 if words.is_empty() => Ok(()),
                _ => refused(),
            }
            .with_context(|| format!("{policy} {name}"))?;
        }
        site.tear_down("1")?.success()?;
        site.clean
            .ensure_restored(None)
            .with_context(|| policy.to_owned())?;
    }
    ensure!(kernel_troubles()? <= before, "the kernel complains: dmesg");
    Ok(())
}

/// What a user's own store and files are good for under each policy. What she puts there under the
/// id of a site image never runs for anybody else, and never in its place.
#[test]
fn privileged_users_own_images_follow_the_policy() -> Result<()> {
    let mut site = Site::prepare()?;
    let _fuse = FuseDevice::with_mode(&mut site, "0666")?;
    site.copy()?;
    squashfs_file("/scratch/alice/own.sqsh", "own")?;
    let evil = Path::new("/tmp/kind");
    Call::shell("echo evil >/tmp/kind/etc/marker").ok()?;
    // Made in the store by the helper, then moved to where alice could have made them herself.
    store_image(evil, &"6".repeat(64), "evil")?;
    let own = "/home/alice/.shifter";
    let forge = format!(
        "rm -rf {own}; install -d -o alice {own} {own}/index {own}/index/docker
        cp {STORE}/{six}.squashfs {own}/{five}.squashfs; cp {STORE}/{six}.meta {own}/{five}.meta
        mv {STORE}/{six}.squashfs {STORE}/{six}.meta {own}/; mv {STORE}/index/docker/evil* {own}/index/docker/
        sed 's/evil/tiny/; s/6666*/{five}/' {own}/index/docker/evil* >{own}/index/docker/tiny%3Alatest
        chown -R alice {own}",
        six = "6".repeat(64),
        five = image_id()
    );
    Call::shell(&forge).ok()?;
    let by_id = format!("id:{}", image_id());
    let loops = |program: &str| run(program, Alice, "evil", &["cat", "/proc/self/mountinfo"]);
    for policy in ["no", "kernel", "fuse"] {
        site.configure_store(&format!("user_images = '{policy}'"))?;
        for (user, program) in [(Alice, "shifter"), (Bob, "shifter"), (Alice, COPY)] {
            for image in ["tiny", &*by_id] {
                let output = marker(program, user, image)?;
                ensure!(output.stdout == "tiny\n", "{policy}: {output}");
            }
        }
        ensure_refused(&marker("shifter", Bob, "evil")?, 4, "cannot find image")?;
        for (program, image, expected, words) in [
            ("shifter", "evil", "evil\n", "your own store"),
            (COPY, "evil", "evil\n", "your own store"),
            ("shifter", "./own.sqsh", "own\n", "none of users' own"),
            (COPY, "./own.sqsh", "own\n", "none of users' own"),
        ] {
            let output = marker(program, Alice, image)?;
            match policy {
                "no" => ensure_refused(&output, 3, words)?,
                _ => ensure!(output.stdout == expected, "{policy} {program}: {output}"),
            }
        }
        if policy != "no" {
            let mounts = loops("shifter")?.stdout;
            let by_kernel = mounts.contains(" squashfs /dev/loop");
            ensure!(by_kernel == (policy == "kernel"), "{policy}: {mounts}");
            ensure!(by_kernel != mounts.contains("fuse.squashfuse"), "{mounts}");
            if by_kernel {
                let shared = devices_of_two("/scratch/alice/own.sqsh")?;
                ensure!(shared[0] != shared[1], "alice's file is shared with bob");
            }
            ensure!(!loops(COPY)?.stdout.contains("/dev/loop"), "{policy}");
        }
        site.set_up(&manifest("17"))?.success()?;
        let pin = "--mount=/run/shifter/jobs/17/roots/job/mnt";
        ensure!(Call::new(["nsenter", pin, "/bin/cat", "/etc/marker"]).ok()? == "tiny\n");
        site.tear_down("17")?.success()?;
    }
    // Not hers in truth: one that others can write.
    Call::shell(&format!("chmod o+w {own}/{}.squashfs", "6".repeat(64))).ok()?;
    ensure_refused(&marker("shifter", Alice, "evil")?, 4, "written by others")?;
    for (spoil, reason) in [
        (format!("chmod g+w {own}"), "others can write it"),
        (
            format!("chmod 0755 {own}; chown bob {own}"),
            "it belongs to somebody else",
        ),
        (
            format!("mv {own} /scratch/alice/moved; ln -s /scratch/alice/moved {own}"),
            "it is not a directory",
        ),
    ] {
        Call::shell(&spoil).ok()?;
        for program in ["shifter", COPY] {
            let words = format!("your own store '{own}' is not used: {reason}");
            ensure_refused(&marker(program, Alice, "evil")?, 4, &words)?;
        }
        ensure!(marker("shifter", Alice, "tiny")?.stdout == "tiny\n");
    }
    Call::new(["rm", "-rf", own, "/scratch/alice/moved"]).ok()?;
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// Has alice and bob run a file at once, and says what device each of them has it from.
fn devices_of_two(file: &str) -> Result<[String; 2]> {
    let _ = fs::remove_file("/tmp/two");
    Call::new(["mkfifo", "-m", "0666", "/tmp/two"]).ok()?;
    let image = format!("--image={file}");
    let script = "stat -c %d /bin; cat /tmp/two";
    let mut first = Call::new(["shifter", &*image, "sh", "-c", script])
        .by(Alice)
        .timeout(0)
        .start("/tmp/first")?;
    let said = wait_for("alice's container", 10, || {
        let text = fs::read_to_string("/tmp/first")?;
        Ok(text.ends_with('\n').then_some(text))
    });
    let second = run("shifter", Bob, file, &["stat", "-c", "%d", "/bin"])?.success();
    Call::shell("echo >/tmp/two").ok()?;
    first.wait()?;
    fs::remove_file("/tmp/two")?;
    Ok([said?, second?.stdout])
}

/// In a job an image of the user's own has the job's volumes, as another image would.
#[test]
fn privileged_a_file_in_a_job_has_the_jobs_volumes() -> Result<()> {
    let mut site = Site::prepare()?;
    let _fuse = FuseDevice::with_mode(&mut site, "0666")?;
    squashfs_file("/scratch/alice/own.sqsh", "own")?;
    fs::write("/scratch/alice/in-a-volume", "")?;
    let mut job = manifest("17");
    job["volumes"] = ["/scratch/alice:/a b/c;x:ro"].as_slice().into();
    job["volumes"] = ["/scratch/alice:/a/b:ro"].as_slice().into();
    site.set_up(&job)?.success()?;
    let step = Step::of(Alice, "17")?;
    let script = "cd /scratch/alice && shifter run ./own.sqsh sh -c 'cat /etc/marker; ls /a/b'";
    let output = step.run(Alice, script)?;
    ensure!(
        output.stdout.starts_with("own\n") && output.stdout.contains("in-a-volume\n"),
        "{output}"
    );
    let other = script.replace("run ./own", "run --volume=/scratch/alice:/other ./own");
    let output = step.run(Alice, &other)?;
    ensure!(output.code == 1 && output.stdout == "own\n", "{output}");
    let joined = step.run(Alice, "shifter cat /etc/marker")?;
    ensure!(joined.stdout == "tiny\n", "{joined}");
    site.tear_down("17")?.success()?;
    drop(step);
    site.clean.ensure_restored(None)
}
