//! Per-node caches: whose they are, what they are refused for, and that nothing of them is left.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shifter_tests::call::{Call, Output, wait_for};
use shifter_tests::product::CONFIG;
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::User::{self, Alice, Bob};

use super::join::Step;
use super::kill::kill_everywhere;
use super::{Site, ensure_refused, manifest};

mod squash;

/// Where caches are made, and where a file system can be mounted on which they are made.
const CACHES: &str = "/scratch/.caches";
const DISK: &str = "/scratch/disk";

/// A site with caches for the directory `of`, whose files `owner` makes.
fn site_with(of: &str, dir: &str, owner: u32, more: &str) -> Result<Site> {
    let site = Site::prepare()?;
    Call::new(["rm", "-rf", dir]).ok()?;
    let owner_text = owner.to_string();
    Call::new(["install", "-d", "-m", "0700", "-o", &owner_text, dir]).ok()?;
    site.product.configure(&format!(
        "[per_node_cache.'{of}']\ndir = '{dir}'\nowner = {owner}\n{more}"
    ))?;
    Ok(site)
}

/// The same on an ext4 of 64 MB at [`DISK`].
fn site_with_disk(owner: u32) -> Result<Site> {
    Call::shell(&format!(
        "mkdir -p {DISK} && truncate -s 64m /tmp/disk && mkfs.ext4 -q -F -m 0 /tmp/disk &&
        mount -o loop /tmp/disk {DISK} && rmdir {DISK}/lost+found"
    ))
    .ok()?;
    let site = site_with(DISK, &format!("{DISK}/.caches"), owner, "")?;
    Ok(Site {
        clean: Snapshot::take(None)?,
        ..site
    })
}

fn remove_disk() -> Result<()> {
    Call::new(["umount", DISK]).ok()?;
    fs::remove_file("/tmp/disk")?;
    Ok(())
}

fn with_volumes(job: &str, volumes: &[&str]) -> Value {
    let mut manifest = manifest(job);
    manifest["volumes"] = volumes.into();
    manifest
}

/// Runs a script in a job's pinned root as a user who did not come in by `shifter`.
pub(super) fn inside(job: &str, uid: u32, script: &str) -> Result<Output> {
    let pin = format!("--mount=/run/shifter/jobs/{job}/roots/job/mnt");
    let uid = uid.to_string();
    let enter = ["nsenter", &*pin, "-S", &*uid, "-G", &*uid];
    Call::new([&enter[..], &["/bin/sh", "-c", script]].concat()).output()
}

/// Returns the blocks in use where a directory is.
fn used(dir: &str) -> Result<String> {
    Call::new(["df", "--output=used", dir]).ok()
}

fn ensure_freed(dir: &str, before: &str) -> Result<()> {
    wait_for("the space of the caches", 5, || {
        Ok((used(dir)? == before).then_some(()))
    })
}

fn templates() -> Result<Vec<String>> {
    let list = Call::shell("ls /run/shifter/templates 2>/dev/null; true").ok()?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// S42: what a cache is, whose it is, and that nobody reaches the file under it.
#[test]
fn privileged_s42_a_cache_is_its_users_alone_and_goes_with_the_job() -> Result<()> {
    let site = site_with_disk(2900)?;
    let before = used(DISK)?;
    let dir = format!("{DISK}:/mnt:perNodeCache=size=320m");
    let small = format!("{DISK}:/c:perNodeCache=size=2m,fs=ext4,bs=64k");
    site.set_up(&with_volumes("17", &[&dir, &small]))?
        .success()?;

    let seen = inside("17", 2001, "stat -c '%u %g %a' /mnt /c; ls -A /mnt /c")?;
    ensure!(
        seen.stdout == "2001 2001 700\n2001 2001 700\n/c:\n\n/mnt:\n",
        "{seen}"
    );
    let mounts = inside("17", 2001, "cat /proc/self/mountinfo")?.stdout;
    for (at, kind) in [(" / /mnt ", " - xfs "), (" / /c ", " - ext4 ")] {
        let line = mounts.lines().find(|line| line.contains(at));
        let line = line.context("no cache")?;
        ensure!(
            line.contains(" rw,nosuid,nodev") && line.contains(kind),
            "{line}"
        );
        ensure!(!line.contains("shared:"), "{line}");
    }
    for at in ["/mnt", "/c"] {
        let script = format!("cd {at}; mkdir d; echo x >d/a; mv d/a b; cat b; ln -s b c; cat c");
        let output = inside("17", 2001, &script)?;
        ensure!(output.code == 0 && output.stdout == "x\nx\n", "{output}");
        let others = format!("ls {at}; cat {at}/b; echo y >{at}/b; cd {at}");
        let output = inside("17", 2002, &others)?;
        ensure!(output.code != 0 && output.stdout.is_empty(), "{output}");
    }
    let fill = inside("17", 2001, "dd if=/dev/zero of=/c/big bs=64k count=64")?;
    ensure!(
        fill.code != 0 && fill.stderr.contains("No space left"),
        "{fill}"
    );

    // The file below has no name, and is the storage owner's.
    let listed = fs::read_dir(format!("{DISK}/.caches"))?.count();
    ensure!(listed == 0, "{listed} names");
    let loops = Call::new(["losetup", "-n", "-O", "BACK-INO,BACK-FILE,AUTOCLEAR,RO"]).ok()?;
    let ours: Vec<&str> = loops.lines().filter(|l| l.contains(".caches/")).collect();
    ensure!(!ours.is_empty(), "{loops}");
    let disk = Call::new(["findmnt", "-n", "-o", "SOURCE", DISK]).ok()?;
    Call::new(["sync", "-f", DISK]).ok()?;
    let mut found = 0;
    for line in ours {
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(line.contains("(deleted)"), "{line}");
        ensure!(words.ends_with(&["1", "0"]), "{line}");
        let ask = format!("stat <{}>", words[0]);
        let inode = Call::new(["debugfs", "-R", &ask, disk.trim()]).ok()?;
        // Another world may have caches, too.
        if inode.contains("User:  2900") {
            ensure!(inode.contains("Mode:  0600"), "{inode}");
            ensure!(inode.contains("Links: 0"), "{inode}");
            found += 1;
        }
    }
    ensure!(found == 2, "{found} of 2 files");

    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)?;
    ensure_freed(DISK, &before)?;
    remove_disk()
}

/// A cache lives as long as its container: through every step of a job, and for each container
/// there is another one.
#[test]
fn privileged_a_cache_lives_through_steps_and_is_not_shared() -> Result<()> {
    let site = site_with("/scratch", CACHES, 0, "")?;
    let before = used("/scratch")?;
    let volume = "/scratch/alice:/mnt:perNodeCache=size=300m";
    site.set_up(&with_volumes("17", &[volume]))?.success()?;
    let step = Step::of(Alice, "17")?;
    for (command, expected) in [
        ("echo one >/mnt/a; ls /mnt", "a\n"),
        ("echo two >>/mnt/a; cat /mnt/a", "one\ntwo\n"),
        ("cat /mnt/a; ls -l /proc/self/fd | grep -c -v pipe", "one\n"),
    ] {
        let output = step.run(Alice, &format!("shifter sh -c '{command}'"))?;
        ensure!(output.stdout.starts_with(expected), "{output}");
    }
    // A volume map that asks for something else gets a container, and a cache, of its own.
    let other = "--volume=/scratch/alice:/mnt:perNodeCache=size=301m";
    let output = step.run(Alice, &format!("shifter {other} ls -A /mnt"))?;
    ensure!(output.code == 0 && output.stdout.is_empty(), "{output}");
    drop(step);
    site.tear_down("17")?.success()?;

    // Two users, at once, from one template.
    let script = "for i in 1 2 3; do (shifter --image=tiny \
        --volume=/scratch:/mnt:perNodeCache=size=300m sh -c \
        'ls -A /mnt; echo $$ >/mnt/a; sleep 0.3; cat /mnt/a; echo $$') & done; wait";
    let run = |user: User| Call::shell(script).by(user).output();
    let (alice, bob) = std::thread::scope(|scope| {
        let alice = scope.spawn(|| run(Alice));
        (alice.join(), run(Bob))
    });
    let alice = alice.map_err(|_| anyhow::anyhow!("a thread died"))??;
    for output in [alice, bob?] {
        let lines = output.stdout.lines().count();
        ensure!(
            output.code == 0 && output.stderr.is_empty() && lines == 6,
            "{output}"
        );
        let mut lines: Vec<&str> = output.stdout.lines().collect();
        lines.sort_unstable();
        // Each container read back what it had written.
        ensure!(lines.chunks(2).all(|pair| pair[0] == pair[1]), "{output}");
    }
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)?;
    ensure_freed("/scratch", &before)
}

/// S42: everything that is the user's mistake is told with its reason and leaves the node alone.
#[test]
fn privileged_s42_caches_against_the_rules_are_refused() -> Result<()> {
    let more = "size_limit = '1g'\n[per_node_cache.'/home']\ndir = '/scratch/.caches'\n\
                fs_types = ['xfs']\n";
    let site = site_with("/scratch/alice", CACHES, 0, more)?;
    Call::shell(
        "install -d -m 0700 -o bob /scratch/bob/private; install -d -o alice /home/alice/d
        install -o alice /dev/null /scratch/alice/file",
    )
    .ok()?;
    let alices = |flags: &str| format!("/scratch/alice:/mnt:perNodeCache={flags}");
    let malformed = [
        (alices("size=0"), "is zero"),
        (alices("size=-1"), "not a whole number"),
        (alices("size=inf"), "not a whole number"),
        (alices("size=nan"), "not a whole number"),
        (alices("size=1e30"), "not a whole number"),
        (alices("size=0x10"), "not a whole number"),
        (alices("size=9E"), "too large"),
        (alices("size=1g,bs=0"), "is zero"),
        (alices("size=1g,method=x"), "is not loop"),
        (alices("size=1g,fs=btrfs"), "neither xfs nor ext4"),
    ];
    let refused = [
        (alices("size=1025m"), "larger than the site's limit of 1g"),
        (
            alices("size=1M"),
            "xfs needs a perNodeCache of at least 300m",
        ),
        (alices("size=314572799"), "at least 300m"),
        (
            alices("size=100k,fs=ext4"),
            "ext4 needs a perNodeCache of at least 1m",
        ),
        (
            alices("size=1g:ro"),
            "a read-only perNodeCache would stay empty",
        ),
    ];
    let others = [
        (
            "/home/alice:/mnt:perNodeCache=size=1g,fs=ext4",
            "does not allow ext4",
        ),
        (
            "/scratch/bob:/mnt:perNodeCache=size=1g",
            "no per-node caches on the source",
        ),
        (
            "/scratch/alice/file:/mnt:perNodeCache=size=1g",
            "is a directory",
        ),
        (
            "/scratch/bob/private:/mnt:perNodeCache=size=1g",
            "Permission denied",
        ),
        ("/etc:/mnt:perNodeCache=size=1g", "not within a site mount"),
        (
            "/scratch/alice/none:/mnt:perNodeCache=size=1g",
            "No such file",
        ),
        ("/scratch/alice:/dev/shm:perNodeCache=size=1g", "/dev"),
    ];
    let refused = refused
        .into_iter()
        .chain(others.map(|(volume, words)| (volume.to_owned(), words)));
    let table = malformed.into_iter().map(|case| (2, case));
    for (code, (volume, words)) in table.chain(refused.map(|case| (3, case))) {
        let output = site.set_up(&with_volumes("17", &[&volume]))?;
        ensure_refused(&output, 3, words).map_err(|error| error.context(volume.clone()))?;
        let output = site.shifter(&["--image=tiny", &format!("--volume={volume}"), "true"])?;
        ensure_refused(&output, code, words).map_err(|error| error.context(volume))?;
    }
    let many: Vec<String> = (0..33)
        .map(|n| format!("/scratch/alice:/c{n}:perNodeCache=size=1m,fs=ext4"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let output = site.set_up(&with_volumes("17", &many))?;
    ensure_refused(&output, 3, "32")?;
    site.set_up(&with_volumes("17", &many[..32]))?.success()?;
    let count = inside(
        "17",
        2001,
        "grep -c ' - ext4 /dev/loop' /proc/self/mountinfo",
    )?;
    ensure!(count.stdout == "32\n", "{count}");
    site.tear_down("17")?.success()?;

    site.product.configure("")?;
    let output = site.set_up(&with_volumes("17", &[&alices("size=1g")]))?;
    ensure_refused(&output, 3, "no per-node caches")?;
    ensure!(
        output.stderr.contains("hint: the site offers none"),
        "{output}"
    );
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)
}

/// S42: a directory for the files that others could use is not used, and that is the node's failure.
#[test]
fn privileged_s42_directories_that_others_reach_are_not_used() -> Result<()> {
    let site = site_with("/scratch", CACHES, 0, "")?;
    let volume = ["/scratch/alice:/mnt:perNodeCache=size=1m,fs=ext4"];
    for (spoil, rule, code) in [
        ("chmod 0755 $d", "its mode is 0755 and must be 0700", 1),
        ("chmod 0777 $d", "its mode 0777 lets others write", 1),
        ("chmod 1777 $d", "its mode 1777 lets others write", 1),
        (
            "chown alice $d",
            "it belongs to uid 2001 and must belong to root",
            1,
        ),
        (
            "rmdir $d; ln -s /root $d",
            "it must be a directory and not a link",
            1,
        ),
        (
            "rmdir $d; : >$d; chmod 0700 $d",
            "it must be a directory",
            1,
        ),
        ("chmod o+w /scratch", "'/scratch' is not trusted", 1),
        ("rmdir $d", "No such file or directory", 1),
        (
            "cd /usr/sbin; mv mkfs.ext4 mkfs.away",
            "cannot find 'mkfs.ext4'",
            5,
        ),
        ("chmod o+w /usr/sbin", "'/usr/sbin' is not trusted", 1),
    ] {
        let spoil = format!("d={CACHES}; {spoil}");
        Call::shell(&spoil).ok()?;
        let output = site.set_up(&with_volumes("17", &volume))?;
        ensure_refused(&output, code, rule).map_err(|error| error.context(spoil))?;
        Call::shell(&format!(
            "rm -rf {CACHES}; install -d -m 0700 {CACHES}; chmod o-w /scratch /usr/sbin
            cd /usr/sbin; [ ! -L mkfs.away ] || mv mkfs.away mkfs.ext4"
        ))
        .ok()?;
    }
    let text = fs::read_to_string(CONFIG)?.replace("owner = 0", "owner = 2900");
    site.product.configure_with(&text)?;
    let output = site.set_up(&with_volumes("17", &volume))?;
    ensure_refused(&output, 1, "uid 0 and must belong to uid 2900")?;
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)
}

/// S42: where there is no room the job is told so; the node is not to blame.
#[test]
fn privileged_s42_a_full_directory_is_told() -> Result<()> {
    let site = site_with_disk(0)?;
    Call::shell(&format!(
        "dd if=/dev/zero of={DISK}/fill bs=64k 2>/dev/null; true"
    ))
    .ok()?;
    let volume = format!("{DISK}:/mnt:perNodeCache=size=400m");
    let output = site.set_up(&with_volumes("17", &[&volume]))?;
    let words = format!("no room for the perNodeCache in '{DISK}/.caches': No space left");
    ensure_refused(&output, 3, &words)?;
    // More than a file of the file system can have.
    fs::remove_file(format!("{DISK}/fill"))?;
    let text = fs::read_to_string(CONFIG)?.replace("owner = 0", "owner = 0\nsize_limit = '1p'");
    site.product.configure_with(&text)?;
    let volume = format!("{DISK}:/mnt:perNodeCache=size=17t");
    let output = site.set_up(&with_volumes("17", &[&volume]))?;
    ensure_refused(&output, 3, "File too large")?;
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)?;
    remove_disk()
}

/// Wherever a set-up dies, the kernel frees its caches.
#[test]
fn privileged_a_cache_of_a_killed_setup_leaves_nothing() -> Result<()> {
    let site = site_with("/scratch", CACHES, 0, "")?;
    let before = used("/scratch")?;
    let volumes = ["/scratch/alice:/mnt:perNodeCache=size=1m,fs=ext4"];
    let text = with_volumes("17", &volumes).to_string();
    let program = site.product.path("sbin/setupRoot");
    let args = ["--manifest=-", "--expect-uid=2001", "--expect-job=17"];
    // The calls of mkfs, which runs to its end anyway, are not counted.
    let call = |tracer: &[&str]| {
        let tracer = tracer.iter().flat_map(|word| match *word {
            "-f" => vec!["-f", "-b", "execve"],
            word => vec![word],
        });
        Call::new(tracer.chain([&*program]).chain(args)).input(text.clone())
    };
    let deaths = kill_everywhere(
        &call,
        || Ok(()),
        |when| {
            // While the kernel unmounts what a dead set-up had, its loop devices are in use and the
            // teardown leaves the hints to the next one.
            wait_for(when, 10, || {
                let output = site.tear_down("17")?;
                ensure!(output.code == 0, "{when}: {output}");
                Ok((!Path::new("/run/shifter/images").exists()).then_some(()))
            })?;
            let freed = site.clean.ensure_restored(None);
            let freed = freed.and_then(|()| ensure_freed("/scratch", &before));
            freed.map_err(|error| error.context(when.to_owned()))
        },
    )?;
    ensure!(deaths > 700, "only {deaths} kills hit");
    Ok(())
}

/// mkfs runs once for a size on a node; what it made is kept where only root can reach it, and
/// not for ever.
#[test]
fn privileged_templates_are_used_again_and_are_few() -> Result<()> {
    let site = site_with("/scratch", CACHES, 0, "")?;
    let program = site.product.path("sbin/setupRoot");
    let set_up = |job: &str, size: &str| -> Result<usize> {
        let volume = format!("/scratch/alice:/mnt:perNodeCache=size={size}");
        let expect = format!("--expect-job={job}");
        let tracer = ["strace", "-f", "-o", "/tmp/trace", "-e", "trace=execve"];
        let args = [&*program, "--manifest=-", "--expect-uid=2001", &*expect];
        let call = Call::new([&tracer[..], &args].concat());
        call.input(with_volumes(job, &[&volume]).to_string())
            .output()?
            .success()?;
        let trace = fs::read_to_string("/tmp/trace")?;
        Ok(trace.lines().filter(|line| line.contains("/mkfs.")).count())
    };
    ensure!(set_up("1", "1m,fs=ext4")? == 1);
    ensure!(set_up("2", "1m,fs=ext4")? == 0, "made again");
    ensure!(set_up("3", "300m")? == 1);
    ensure!(set_up("4", "300m")? == 0, "made again");
    for job in ["2", "4"] {
        let output = inside(job, 2001, "echo x >/mnt/a && cat /mnt/a")?;
        ensure!(output.stdout == "x\n", "{output}");
    }
    ensure!(
        templates()? == ["ext4-1048576", "xfs-314572800"],
        "{:?}",
        templates()?
    );
    let mode = Call::new([
        "stat",
        "-c",
        "%a %U",
        "/run/shifter",
        "/run/shifter/templates",
    ]);
    ensure!(mode.ok()? == "700 root\n700 root\n");
    // One that is not whole does not count.
    Call::shell(": >/run/shifter/templates/ext4-1048576").ok()?;
    ensure!(set_up("5", "1m,fs=ext4")? == 1);
    site.tear_down("5")?.success()?;
    ensure!(set_up("5", "1m,fs=ext4")? == 0, "not replaced");

    for number in 0..20 {
        set_up("6", &format!("{}k,fs=ext4", 1100 + 4 * number))?;
        site.tear_down("6")?.success()?;
    }
    ensure!(templates()?.len() == 16, "{:?}", templates()?);
    for job in ["1", "2", "3", "4", "5"] {
        site.tear_down(job)?.success()?;
    }
    ensure!(templates()?.is_empty(), "kept on an idle node");
    site.clean.ensure_restored(None)
}
