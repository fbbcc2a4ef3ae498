//! Users against the node: what one of them does must neither harm the others nor take the node
//! out of service.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;
use shifter_tests::call::Call;
use shifter_tests::product::{CONFIG, STORE};
use shifter_tests::world::User::{Alice, Bob};

use super::{Site, ensure_refused, image_id, manifest, store_image};

/// Puts an image with hostile links into the store; `change` works on its tree.
fn hostile(site: &Site, change: impl FnOnce(&Path) -> Result<()>) -> Result<String> {
    let tree = Path::new("/tmp/hostile");
    Call::shell("rm -rf /tmp/hostile; cp -a /var/lib/shifter/layouts/tiny/tree /tmp/hostile")
        .ok()?;
    fs::create_dir_all(tree.join("usr/share/doc"))?;
    change(tree)?;
    let id = "7".repeat(64);
    store_image(tree, &id, "hostile")?;
    // The loop device of an earlier image under this name must not count as a leftover.
    site.tear_down("0")?.success()?;
    Ok(id)
}

fn with_volumes(id: &str, volumes: &[&str]) -> Value {
    let mut job = manifest("17");
    job["image"]["id"] = id.into();
    job["volumes"] = volumes.into();
    job
}

/// Kills a set-up just before it pins the root, which is its last move_mount.
fn die_before_the_pin(site: &Site, job: &str) -> Result<()> {
    let program = site.product.path("sbin/setupRoot");
    let job_option = format!("--expect-job={job}");
    let args = [&*program, "--manifest=-", "--expect-uid=2001", &job_option];
    let run = |tracer: &[&str]| {
        Call::new([tracer, &args].concat())
            .input(manifest(job).to_string())
            .output()
    };
    let trace = run(&["strace", "-o", "/tmp/moves", "-e", "trace=move_mount"])?;
    trace.success()?;
    let moves = fs::read_to_string("/tmp/moves")?
        .lines()
        .filter(|line| line.starts_with("move_mount"))
        .count();
    site.tear_down(job)?.success()?;
    // The state's own mount is there already this time, held by another job.
    site.set_up(&manifest("1"))?.success()?;
    let inject = format!("--inject=move_mount:signal=KILL:when={}", moves - 1);
    run(&["strace", "-qq", "-o", "/dev/null", &inject])?;
    site.tear_down("1")?.success()?;
    let root = format!("/run/shifter/jobs/{job}/roots/job");
    ensure!(Path::new(&format!("{root}/journal")).exists(), "too early");
    let pin = Call::new(["stat", "-f", "-c", "%T", &format!("{root}/mnt")]).ok()?;
    ensure!(!pin.contains("nsfs"), "too late");
    Ok(())
}

/// Everything that only the image or the volumes decide is the user's mistake: the node stays in
/// service.
#[test]
fn privileged_no_image_and_no_volume_takes_a_node_out_of_service() -> Result<()> {
    let site = Site::prepare()?;
    Call::new(["install", "-o", "alice", "/dev/null", "/scratch/alice/file"]).ok()?;
    let id = hostile(&site, |tree| {
        symlink("usr/share", tree.join("share"))?;
        symlink("proc", tree.join("to-proc"))?;
        symlink("tmp", tree.join("to-tmp"))?;
        symlink("etc/hosts", tree.join("to-hosts"))?;
        let _ = fs::remove_file(tree.join("etc/hosts"));
        fs::create_dir(tree.join("etc/hosts"))?;
        let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"odd\xff");
        fs::create_dir(tree.join(odd))?;
        Ok(symlink(odd, tree.join("to-odd"))?)
    })?;
    let long = format!("/scratch/alice:/{}", "z".repeat(256));
    let long_below = format!("/scratch/alice:/usr/{}/x", "z".repeat(256));
    for (volumes, code) in [
        (&[&*long][..], 3),
        (&[&*long_below], 3),
        (
            &[
                "/scratch/alice/file:/share/z",
                "/scratch/alice:/usr/share/z",
            ],
            3,
        ),
        (
            &[
                "/scratch/alice/file:/share/z",
                "/scratch/alice:/usr/share/z/y",
            ],
            3,
        ),
        (&["/scratch/alice:/to-proc/y"], 3),
        (&["/scratch/alice:/to-tmp/y"], 3),
        (&["/scratch/alice:/to-hosts/y"], 3),
        (&["/scratch/alice:/to-odd/y"], 3),
    ] {
        let output = site.set_up(&with_volumes(&id, volumes))?;
        ensure_refused(&output, code, "cannot ").map_err(|e| e.context(volumes.join(" ")))?;
    }
    // The place of the site's own mount is a link of the image's.
    let id = hostile(&site, |tree| {
        let _ = fs::remove_dir(tree.join("scratch"));
        fs::create_dir_all(tree.join("dev/none"))?;
        Ok(symlink("dev/none", tree.join("scratch"))?)
    })?;
    ensure_refused(&site.set_up(&with_volumes(&id, &[]))?, 4, "'/scratch'")?;
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)
}

/// A kernel without squashfs is the node's failure, not the user's.
#[test]
fn privileged_a_missing_file_system_is_the_nodes_failure() -> Result<()> {
    let site = Site::prepare()?;
    let program = site.product.path("sbin/setupRoot");
    site.set_up(&manifest("1"))?.success()?; // The state's own tmpfs is there already.
    let args = ["--manifest=-", "--expect-uid=2001", "--expect-job=17"];
    let inject = "--inject=fsopen:error=ENODEV:when=1";
    let output = Call::new(["strace", "-f", "-qq", "-o", "/dev/null", inject, &*program])
        .args(args)
        .input(manifest("17").to_string())
        .output()?;
    ensure_refused(&output, 5, "squashfs")?;
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// What lies in directories that the user cannot search is not told, not even whether it exists.
#[test]
fn privileged_targets_do_not_tell_what_others_have() -> Result<()> {
    let site = Site::prepare()?;
    Call::shell(
        "install -d -o bob -m 0700 /scratch/bob/private; install -d -o bob /scratch/bob/private/dir
        install -o bob /dev/null /scratch/bob/private/file",
    )
    .ok()?;
    let mut said = Vec::new();
    for name in ["dir", "file", "none"] {
        let volume = format!("--volume=/scratch/alice:/scratch/bob/private/{name}");
        let output = site.shifter(&["--image=tiny", &volume, "true"])?;
        ensure_refused(&output, 3, "Permission denied")?;
        said.push(output.stderr.replace(name, "X"));
    }
    ensure!(said.iter().all(|text| *text == said[0]), "{said:?}");
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// A name of the image's cannot write to the user's terminal.
#[test]
fn privileged_names_in_images_are_shown_harmless() -> Result<()> {
    let site = Site::prepare()?;
    let name = "a\x1b[31mred\nsecond line";
    hostile(&site, |tree| {
        fs::create_dir(tree.join("etc").join(name))?;
        Ok(symlink(Path::new("etc").join(name), tree.join("to-etc"))?)
    })?;
    let output = site.shifter(&["--image=hostile", "--volume=/scratch/alice:/to-etc", "true"])?;
    ensure_refused(&output, 3, "it leads to '/etc/a\\u{1b}[31mred\\u{a}second")?;
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// The kernel gives up a look-up of '..' when anything is renamed anywhere (EAGAIN).
#[test]
fn privileged_renames_by_others_fail_no_start() -> Result<()> {
    let site = Site::prepare()?;
    hostile(&site, |tree| Ok(symlink("../usr/share", tree.join("up"))?))?;
    fs::write(
        "/tmp/storm.py",
        "import os\nos.mkdir('s1')\nwhile True:\n  os.rename('s1', 's2'); os.rename('s2', 's1')\n",
    )?;
    let mut storm = Call::new(["python3", "/tmp/storm.py"])
        .by(Bob)
        .timeout(0)
        .start("/dev/null")?;
    let starts = "for i in $(seq 120); do
        shifter --image=hostile --volume=/scratch/alice:/up/doc true || exit 1; done";
    let output = Call::shell(starts).by(Alice).output();
    storm.kill()?;
    storm.wait()?;
    output?.success()?;
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// The numbers of a namespace that died before it was pinned belong to the next one.
#[test]
fn privileged_a_dead_setups_journal_marks_nobody() -> Result<()> {
    let site = Site::prepare()?;
    // Somebody else on the machine may get the number first.
    let mut is_hit = false;
    for _ in 0..8 {
        is_hit = is_hit || dead_setups_number_comes_back(&site)?;
    }
    ensure!(
        is_hit,
        "the number did not come back, so nothing was tested"
    );
    site.clean.ensure_restored(None)
}

/// Removes what a dead set-up has left, and makes sure that others live on; true if one of them had
/// its number.
fn dead_setups_number_comes_back(site: &Site) -> Result<bool> {
    die_before_the_pin(site, "17")?;
    // As many namespaces as it takes to get the dead one's number.
    let journal = fs::read_to_string("/run/shifter/jobs/17/roots/job/journal")?;
    let journal: Value = serde_json::from_str(&journal)?;
    let mut innocents = Vec::new();
    let mut is_hit = false;
    for job in ["21", "22", "23", "24"] {
        site.set_up(&manifest(job))?.success()?;
        let pin = format!("/run/shifter/jobs/{job}/roots/job/mnt");
        let number = Call::new(["stat", "-c", "%i", &*pin]).ok()?;
        is_hit |= journal["namespace"] == number.trim().parse::<u64>()?;
        let enter = [
            "nsenter",
            &format!("--mount={pin}"),
            "--setuid=2001",
            "--setgid=2001",
        ];
        let sleep = ["/bin/busybox", "sleep", "1000"];
        innocents.push(
            Call::new([&enter[..], &sleep].concat())
                .timeout(0)
                .start("/dev/null")?,
        );
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    site.tear_down("17")?.success()?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    let mut alive = Vec::new();
    for innocent in &mut innocents {
        alive.push(innocent.try_wait()?.is_none());
    }
    for job in ["21", "22", "23", "24"] {
        site.tear_down(job)?.success()?;
    }
    for innocent in &mut innocents {
        innocent.wait()?;
    }
    ensure!(alive.iter().all(|alive| *alive), "ended: {alive:?}");
    Ok(is_hit)
}

/// A user can freeze a program while it holds a lock (cgroup.freeze of a delegated cgroup).
#[test]
fn privileged_a_frozen_start_does_not_stop_the_others() -> Result<()> {
    let site = Site::prepare()?;
    site.set_up(&manifest("1"))?.success()?;
    let hint = Call::shell("echo /run/shifter/images/*").ok()?;
    let mut holder = Call::new(["flock", "--exclusive", hint.trim(), "sleep", "1000"])
        .timeout(0)
        .start("/dev/null")?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    let output = site
        .product
        .shifter(["--image=tiny", "true"])
        .by(Bob)
        .timeout(30)
        .output();
    Call::new(["pkill", "-P", &holder.id().to_string()]).ok()?;
    holder.wait()?;
    output?.success()?;
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_two_teardowns_at_once_both_succeed() -> Result<()> {
    let site = Site::prepare()?;
    let program = site.product.path("sbin/unsetupRoot");
    site.set_up(&manifest("17"))?.success()?;
    // Every removal of the first takes long enough for the second to come in between.
    let inject = "--inject=unlinkat:delay_enter=100000";
    let mut first = Call::new(["strace", "-qq", "-o", "/dev/null", inject, &*program, "17"])
        .start("/tmp/first")?;
    let mut output = Vec::new();
    while first.try_wait()?.is_none() {
        output.push(site.tear_down("17")?);
    }
    ensure!(
        first.wait()?.success(),
        "{}",
        fs::read_to_string("/tmp/first")?
    );
    for output in output {
        output.success()?;
    }
    site.clean.ensure_restored(None)
}

/// The command that pulls for the site may be sudo, which no_new_privs would stop.
#[test]
fn privileged_pulling_goes_through_sudo() -> Result<()> {
    let site = Site::prepare()?;
    let output = site.shifter(&["pull", "127.0.0.1:5000/none:1"])?;
    ensure!(
        output.code == 7 && !output.stderr.contains("sudo"),
        "{output}"
    );
    Ok(())
}

/// What the site shows read-only cannot be had writable as a volume.
#[test]
fn privileged_volumes_keep_the_sites_read_only() -> Result<()> {
    let site = Site::prepare()?;
    let text = fs::read_to_string(CONFIG)?.replace("'/scratch'", "'/scratch:/scratch:ro'");
    site.product.configure_with(&text)?;
    let script = "touch /mnt/x && echo written";
    let args = [
        "--image=tiny",
        "--volume=/scratch/alice:/mnt",
        "sh",
        "-c",
        script,
    ];
    let output = site.shifter(&args)?;
    ensure!(
        output.code != 0 && output.stderr.contains("Read-only"),
        "{output}"
    );
    site.product.configure("")?;
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// Slurm's job_container/tmpfs gives a job's tasks a mount namespace of their own, without pins.
#[test]
fn privileged_a_job_with_a_private_tmp_joins_its_root() -> Result<()> {
    let site = Site::prepare()?;
    site.set_up(&manifest("17"))?.success()?;
    let group = "/sys/fs/cgroup/freezer/slurm/uid_2001/job_17/step_0";
    fs::create_dir_all(group)?;
    let script = format!(
        "echo $$ >{group}/cgroup.procs; exec unshare --mount --propagation private setpriv \
         --reuid 2001 --regid 2001 --init-groups env PATH=/opt/shifter/bin:/bin \"$@\""
    );
    for args in [
        &["shifter", "true"][..],
        &["shifter", "--image=hostile", "true"],
    ] {
        hostile(&site, |_| Ok(()))?;
        let call = Call::new([&["bash", "-c", &*script, "step"], args].concat()).cwd("/tmp");
        call.output()?.success()?;
    }
    site.tear_down("17")?.success()?;
    Call::shell(&format!(
        "cd /sys/fs/cgroup/freezer && rmdir -p {}",
        &group[23..]
    ))
    .ok()?;
    site.clean.ensure_restored(None)
}

/// The first start on a node, in a namespace whose mounts reach the host, must not keep the
/// host's own programs out.
#[test]
fn privileged_a_start_in_a_shared_namespace_does_not_take_the_state() -> Result<()> {
    let site = Site::prepare()?;
    Call::new(["mount", "--make-rshared", "/"]).ok()?;
    let alice = ["setpriv", "--reuid=2001", "--regid=2001", "--init-groups"];
    let shifter = site.product.path("bin/shifter");
    let run = ["unshare", "--mount", "--propagation", "shared"];
    let start = [&run[..], &alice, &[&*shifter, "--image=tiny", "true"]].concat();
    Call::new(start).output()?;
    let result = site.set_up(&manifest("17"))?;
    let removed = site.tear_down("17")?;
    Call::shell("umount /run/shifter; mount --make-rprivate /").output()?;
    result.success()?;
    removed.success()?;
    site.clean.ensure_restored(None)
}

/// Where slurmd has a namespace of its own and no job has an image yet, nothing is at /run/shifter.
#[test]
fn privileged_a_first_start_in_a_private_namespace_needs_no_state() -> Result<()> {
    let site = Site::prepare()?;
    Call::shell("rmdir /run/shifter 2>/dev/null; test ! -e /run/shifter").ok()?;
    let alice = ["setpriv", "--reuid=2001", "--regid=2001", "--init-groups"];
    let shifter = site.product.path("bin/shifter");
    let start = [
        &["unshare", "--mount"][..],
        &alice,
        &[&*shifter, "--image=tiny", "true"],
    ];
    Call::new(start.concat()).output()?.success()?;
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// One user's many jobs of an image with long metadata must leave room for the others'.
#[test]
fn privileged_long_metadata_does_not_fill_the_state() -> Result<()> {
    let site = Site::prepare()?;
    let meta = format!("{STORE}/{}.meta", image_id());
    let filler = (0..900).map(|n| format!("ENV: X{n}={}\n", "x".repeat(1000)));
    let text = fs::read_to_string(&meta)?;
    fs::write(&meta, text.clone() + &filler.collect::<String>())?;
    let jobs: Vec<String> = (100..180).map(|n| n.to_string()).collect();
    let all = jobs.iter().map(|job| site.set_up(&manifest(job)));
    let codes = all.collect::<Result<Vec<_>>>()?;
    fs::write(&meta, text)?;
    for job in &jobs {
        site.tear_down(job)?.success()?;
    }
    ensure!(
        codes.iter().all(|output| output.code == 0),
        "a set-up failed"
    );
    site.clean.ensure_restored(None)
}

/// A start that has opened the pin when teardown takes it away.
#[test]
fn privileged_no_start_joins_a_root_during_its_teardown() -> Result<()> {
    let site = Site::prepare()?;
    site.set_up(&manifest("17"))?.success()?;
    let group = "/sys/fs/cgroup/freezer/slurm/uid_2001/job_17/step_0";
    fs::create_dir_all(group)?;
    let script = format!(
        "echo $$ >{group}/cgroup.procs; exec strace -qq -o /dev/null -u alice \
         --inject=setns:delay_enter=1500000 /opt/shifter/bin/shifter sleep 3"
    );
    let mut late = Call::shell(&script).cwd("/tmp").start("/dev/null")?;
    std::thread::sleep(std::time::Duration::from_millis(700));
    site.tear_down("17")?.success()?;
    ensure!(
        !late.wait()?.success(),
        "it ran in a root that had been removed"
    );
    // It still had the loop device when the teardown swept.
    site.tear_down("1")?.success()?;
    Call::shell("cd /sys/fs/cgroup/freezer && rmdir -p slurm/uid_2001/job_17/step_0").ok()?;
    site.clean.ensure_restored(None)
}
