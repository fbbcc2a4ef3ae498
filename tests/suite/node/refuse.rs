//! What must be refused, how, and that nothing is left of it.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use serde_json::json;
use shifter_tests::call::Call;
use shifter_tests::product::{CONFIG, STORE};
use shifter_tests::world::User::Alice;

use super::{Site, ensure_refused, image_id, manifest};

#[test]
fn privileged_manifests_that_disagree_or_overreach_are_refused() -> Result<()> {
    let site = Site::prepare()?;
    let program = site.product.path("sbin/setupRoot");
    let call = |uid: &str, job: &str, text: String| {
        let (uid, job) = (format!("--expect-uid={uid}"), format!("--expect-job={job}"));
        Call::new([&*program, "--manifest=-", &*uid, &*job])
            .input(text)
            .output()
    };
    let good = manifest("17").to_string();
    ensure_refused(&call("2002", "17", good.clone())?, 3, "for uid 2001")?;
    ensure_refused(&call("2001", "18", good.clone())?, 3, "for job 17")?;
    ensure_refused(&call("2001", "../17", good.clone())?, 2, "not a job id")?;
    for flag in ["--verbose", "--record-failure"] {
        let output = Call::new([&*program, &format!("{flag}=x")]).output()?;
        ensure_refused(&output, 2, &format!("option '{flag}' takes no value"))?;
    }
    let unset = site.product.path("sbin/unsetupRoot");
    for (words, said) in [
        (&[&*program, "17"][..], "unexpected word '17'"),
        (&[&unset], "one job id is needed"),
        (&[&unset, "--uid=x", "17"], "'x' is not a uid"),
        (&[&unset, "--uid", "x", "17"], "'x' is not a uid"),
        (&[&unset, "--bogus=1", "17"], "unknown option '--bogus'"),
        (&[&unset, "--uid"], "option '--uid' needs a value"),
    ] {
        let output = Call::new(words.iter().copied()).output()?;
        ensure_refused(&output, 2, said)?;
    }
    ensure_refused(&call("2001", "17", "{".into())?, 2, "manifest")?;
    ensure_refused(&call("2001", "17", " ".repeat(2 << 20))?, 2, "larger than")?;
    let table = [
        ("volumes", json!(["/scratch:/etc"]), 3, "/etc"),
        ("volumes", json!(["/etc:/x"]), 3, "not within a site mount"),
        (
            "volumes",
            json!(["/scratch/bob/private:/x"]),
            3,
            "Permission denied",
        ),
        ("modules", json!(["nosuch"]), 3, "'nosuch' does not exist"),
        (
            "image",
            json!({"id": "6".repeat(64), "reference": "docker:gone:latest"}),
            4,
            "docker:gone:latest",
        ),
        ("schema", json!(3), 1, "a newer version of shifter"),
    ];
    Call::new([
        "install",
        "-d",
        "-o",
        "bob",
        "-m",
        "0700",
        "/scratch/bob/private",
    ])
    .ok()?;
    for (key, value, code, words) in table {
        let mut bad = manifest("17");
        bad[key] = value;
        let output = site.set_up(&bad)?;
        ensure_refused(&output, code, words)
            .map_err(|error| error.context(bad[key].to_string()))?;
        site.clean.ensure_restored(None)?;
    }
    fs::write("/scratch/alice/manifest", &good)?;
    let forged = [
        &*program,
        "--manifest=/scratch/alice/manifest",
        "--expect-uid=2001",
        "--expect-job=17",
    ];
    Call::new(["chown", "alice", "/scratch/alice/manifest"]).ok()?;
    ensure_refused(&Call::new(forged).output()?, 1, "not trusted")?;
    let as_alice = Call::new([
        "setpriv",
        "--reuid=2001",
        "--clear-groups",
        &*program,
        "--manifest=-",
    ]);
    ensure!(as_alice.output()?.code != 0, "a user ran setupRoot");
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_a_failure_is_recorded_for_the_tasks_and_removed() -> Result<()> {
    let site = Site::prepare()?;
    let mut bad = manifest("17");
    bad["image"]["id"] = "6".repeat(64).into();
    let program = site.product.path("sbin/setupRoot");
    let args = [
        "--manifest=-",
        "--expect-uid=2001",
        "--expect-job=17",
        "--record-failure",
    ];
    let output = Call::new([&*program])
        .args(args)
        .input(bad.to_string())
        .output()?;
    ensure_refused(&output, 4, "cannot find image 'docker:tiny:latest'")?;
    let kept = fs::read_to_string("/run/shifter/jobs/17/failure")?;
    ensure!(
        kept.starts_with("cannot find image 'docker:tiny:latest'"),
        "{kept}"
    );
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)
}

/// What were set up or removed in another namespace nobody would see in the host's.
#[test]
fn privileged_root_of_another_namespace_sets_up_and_removes_nothing() -> Result<()> {
    let site = Site::prepare()?;
    site.set_up(&manifest("1"))?.success()?;
    let programs = ["sbin/setupRoot", "sbin/unsetupRoot"].map(|name| site.product.path(name));
    let [set_up, remove] = &programs;
    let set_up = [
        &**set_up,
        "--manifest=-",
        "--expect-uid=2001",
        "--expect-job=17",
    ];
    for (before, words) in [
        (
            &["unshare", "--mount"][..],
            "not the host's mount namespace",
        ),
        (
            &["unshare", "--user", "--map-root-user"],
            "not root of the machine",
        ),
    ] {
        for command in [&set_up[..], &[&**remove, "1"]] {
            let call = Call::new([before, command].concat());
            let output = call.input(manifest("17").to_string()).output()?;
            ensure_refused(&output, 6, words)?;
        }
    }
    ensure!(fs::exists("/run/shifter/jobs/1/roots/job/meta")?);
    ensure!(!fs::exists("/run/shifter/jobs/17")?);
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// A kernel that lacks a call that roots are built with is the node's failure, and told so.
#[test]
fn privileged_a_call_that_the_kernel_lacks_is_named() -> Result<()> {
    let site = Site::prepare()?;
    let program = site.product.path("sbin/setupRoot");
    for call in [
        "open_tree",
        "move_mount",
        "fsopen",
        "fsconfig",
        "fsmount",
        "mount_setattr",
        "openat2",
    ] {
        let without = format!("--inject={call}:error=ENOSYS");
        let strace = [
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            &*without,
            &*program,
        ];
        let args = ["--manifest=-", "--expect-uid=2001", "--expect-job=17"];
        let output = Call::new([&strace[..], &args].concat())
            .input(manifest("17").to_string())
            .output()?;
        ensure_refused(&output, 5, "Function not implemented")?;
        let hint = format!("\nhint: this kernel has no {call}(2): Linux 5.14 or newer is needed\n");
        ensure!(output.stderr.ends_with(&hint), "{output}");
        site.tear_down("17")?.success()?;
        site.clean.ensure_restored(None)?;
    }
    Ok(())
}

/// S35-S38: where volumes come from and where they may go.
#[test]
fn privileged_s35_s38_volumes_are_judged_where_they_really_are() -> Result<()> {
    let site = Site::prepare()?;
    Call::new([
        "install",
        "-d",
        "-o",
        "bob",
        "-m",
        "0700",
        "/scratch/bob/private",
    ])
    .ok()?;
    Call::new([
        "install",
        "-d",
        "-g",
        "proj",
        "-m",
        "0750",
        "/scratch/bob/proj",
    ])
    .ok()?;
    Call::shell(
        "install -d -m 0700 /scratch/bob/roots; install -d -g bob -m 0750 /scratch/bob/group",
    )
    .ok()?;
    symlink("/scratch/bob/private", "/scratch/alice/to-bob")?;
    Call::new(["install", "-o", "alice", "/dev/null", "/scratch/alice/f"]).ok()?;
    symlink("/etc", "/scratch/alice/to-etc")?;
    symlink("/proc/self/root/etc", "/scratch/alice/to-proc")?;
    let table = [
        ("/etc:/x", 3, "not within a site mount"),
        ("/:/x", 3, ""),
        ("/root:/x", 3, "Permission denied"),
        ("/run/shifter:/x", 3, ""),
        ("/var/lib/shifter/images:/x", 3, "not within a site mount"),
        ("/proc/1/root:/x", 3, ""),
        ("/proc/self/root:/x", 3, ""),
        ("/proc/self/fd/3:/x", 3, ""),
        ("/sys/fs/cgroup:/x", 3, "not within a site mount"),
        ("/dev:/x", 3, "not within a site mount"),
        ("/scratch/alice/to-bob:/x", 3, "Permission denied"),
        ("/scratch/alice/to-etc:/x", 3, "not within a site mount"),
        ("/scratch/alice/to-proc:/x", 3, ""),
        ("/scratch/bob/private:/x", 3, "Permission denied"),
        ("/scratch/bob/roots:/x", 3, "Permission denied"),
        ("/scratch/bob/group:/x", 3, "Permission denied"),
        ("/scratch/nosuch:/x", 3, "No such file"),
        ("/scratch/alice:/data", 3, "leads to '/etc'"),
        (
            "/scratch/alice/f:/data/marker",
            3,
            "image has its own '/etc/marker'",
        ),
        (
            "/scratch/alice/f:/etc/marker",
            3,
            "image has its own '/etc/marker'",
        ),
        ("/scratch/alice:/dangling/x", 3, "leads nowhere"),
        ("/scratch/alice:/scratch", 3, "hide the site's '/scratch'"),
        ("/scratch/alice:/etc/passwd/x", 3, "/etc"),
        ("/scratch/alice:/etc/marker", 3, "/etc"),
        ("/scratch/alice:/etc/hosts", 3, "/etc/hosts"),
        ("/scratch/alice:/bin/busybox", 3, ""),
        (
            "/scratch/alice:/x:perNodeCache=size=1G",
            3,
            "no per-node caches",
        ),
    ];
    for (volume, code, words) in table {
        let output = site.shifter(&["--image=tiny", &format!("--volume={volume}"), "ls", "/x"])?;
        ensure_refused(&output, code, words).map_err(|error| error.context(volume))?;
        let way_out = "\nhint: volumes can be taken from /scratch, /home, /tmp, /var/tmp\n";
        let is_outside = output.stderr.contains("not within a site mount");
        ensure!(
            !is_outside || output.stderr.contains(way_out),
            "{volume}: {output}"
        );
    }
    for volume in [
        "/scratch/bob/proj:/x",
        "/scratch/alice:/mnt/deep/er",
        "/scratch/alice:/etc/mine/deep/er",
        "/scratch/alice:/data/sub",
        "/tmp:/x",
        "/scratch/alice:/scratch/bob/proj",
    ] {
        let output = site.shifter(&["--image=tiny", &format!("--volume={volume}"), "true"])?;
        ensure!(output.code == 0, "{volume}: {output}");
    }
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// S36: a source that changes between directory and link never shows what the user cannot read.
#[test]
fn privileged_site_mounts_that_exclude_each_other_say_so() -> Result<()> {
    let site = Site::prepare()?;
    fs::create_dir_all("/scratch/site/dir")?;
    fs::write("/scratch/site/file", "")?;
    let both = "a directory and a file are to be there, both the site's";
    for (mounts, reason) in [
        ("'/scratch/site/dir:/x', '/scratch/site/file:/x'", both),
        ("'/scratch/site/file:/x', '/scratch/site/dir:/x'", both),
        (
            "'/scratch/site/file:/x', '/scratch/site/dir:/x/y'",
            "another of its mounts is '/x', a file",
        ),
    ] {
        let lines = format!("site_mounts = [{mounts}]");
        site.configure_root(&lines)?;
        let output = site.shifter(&["--image=tiny", "true"])?;
        ensure_refused(&output, 5, "cannot mount the site's '/x")?;
        ensure!(output.stderr.contains(reason), "{output}");
    }
    // Two of a kind are none too many: the later one is seen.
    site.configure_root("site_mounts = ['/scratch:/x', '/scratch/site:/x']")?;
    ensure!(site.script(&[], "ls /x")? == "dir\nfile\n");
    fs::remove_dir_all("/scratch/site")?;
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_s36_a_racing_source_never_leads_out() -> Result<()> {
    let site = Site::prepare()?;
    fs::create_dir_all("/root/canary-dir")?;
    let rounds = if std::env::var_os("SHIFTER_LONG_TESTS").is_some() {
        5000
    } else {
        300
    };
    let script = format!(
        "cd /scratch/alice; mkdir -p real; ln -sfn /root link; ln -sfn /etc elsewhere
        (while :; do mv -T real d; mv -T d real; cp -P link d; rm -f d; cp -P elsewhere d; rm -f d; done) 2>/dev/null &
        racer=$!
        for i in $(seq {rounds}); do shifter --image=tiny --volume=/scratch/alice/d:/mnt ls -a /mnt 2>/dev/null; done
        kill $racer"
    );
    let seen = Call::shell(&script).by(Alice).timeout(900).output()?;
    ensure!(
        seen.stdout.contains(".\n"),
        "no start ever succeeded: {seen}"
    );
    for secret in ["canary-dir", "passwd", "shadow"] {
        ensure!(!seen.stdout.contains(secret), "'{secret}' was seen");
    }
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// S16, S19, S22: what steers the programs must be in root's hands.
#[test]
fn privileged_s16_s19_s22_untrusted_files_are_refused() -> Result<()> {
    let site = Site::prepare()?;
    let run = |words: &str, code: i32| -> Result<()> {
        ensure_refused(&site.shifter(&["--image=tiny", "true"])?, code, words)?;
        ensure!(site.set_up(&manifest("17"))?.code != 0);
        site.clean.ensure_restored(None)
    };
    let image = format!("{STORE}/{}.squashfs", image_id());
    for (spoil, mend, words, code) in [
        (
            format!("chown alice {CONFIG}"),
            format!("chown root {CONFIG}"),
            "not trusted",
            1,
        ),
        (
            format!("chmod g+w {CONFIG}"),
            format!("chmod g-w {CONFIG}"),
            "not trusted",
            1,
        ),
        (
            "chmod o+w /etc/shifter".into(),
            "chmod o-w /etc/shifter".into(),
            "not trusted",
            1,
        ),
        (
            format!("chown alice {image}"),
            format!("chown shifter {image}"),
            "does not belong",
            4,
        ),
        (
            format!("chmod o+w {image}"),
            format!("chmod o-w {image}"),
            "written by others",
            4,
        ),
        (
            format!("chmod o+w {STORE}"),
            format!("chmod o-w {STORE}"),
            "not trusted",
            5,
        ),
        (
            format!("mv {STORE}/index {STORE}/i"),
            format!("mv {STORE}/i {STORE}/index"),
            "index",
            5,
        ),
        (
            format!("mv {image} /tmp/x; ln -s /tmp/x {image}"),
            format!("mv /tmp/x {image}"),
            "",
            5,
        ),
    ] {
        Call::shell(&spoil).ok()?;
        let result = run(words, code);
        Call::shell(&mend).ok()?;
        result.map_err(|error| error.context(spoil))?;
    }
    let other = site.product.shifter(["--image=tiny", "true"]).by(Alice);
    let other = other
        .env("SHIFTER_CONFIG", "/scratch/alice/own.toml")
        .env("UDIROOT_CONF", "/x");
    ensure!(
        other.output()?.code == 0,
        "the environment steered the configuration"
    );
    ensure_refused(
        &site.shifter(&["--config=/x", "--image=tiny", "true"])?,
        2,
        "--config",
    )
}

/// S13, S15: the program runs for users, and only with the privilege it needs.
#[test]
fn privileged_s13_s15_root_and_powerless_callers_are_refused() -> Result<()> {
    let site = Site::prepare()?;
    let shifter = site.product.path("bin/shifter");
    let run = |before: &[&str]| {
        Call::new(
            before
                .iter()
                .chain(&[&*shifter, "--image=tiny", "true"])
                .copied(),
        )
        .output()
    };
    ensure_refused(&run(&[])?, 3, "not for root")?;
    ensure_refused(
        &run(&["setpriv", "--reuid=2001", "--regid=0", "--clear-groups"])?,
        3,
        "group root",
    )?;
    let alice = ["setpriv", "--reuid=2001", "--regid=2001", "--clear-groups"];
    let powerless = run(&[&alice[..], &["--no-new-privs"]].concat())?;
    ensure_refused(&powerless, 6, "root's privileges")?;
    ensure!(
        powerless.stderr.contains("hint: with --rootless"),
        "{powerless}"
    );
    ensure_refused(
        &run(&[&alice[..], &["unshare", "-Ur"]].concat())?,
        3,
        "not for root",
    )?;
    let zero = ["setpriv", "--reuid=2001", "--regid=2001", "--groups=0,2100"];
    let args = [
        &zero[..],
        &[
            &*shifter,
            "--image=tiny",
            "grep",
            "Groups",
            "/proc/self/status",
        ],
    ]
    .concat();
    let groups = Call::new(args).ok()?;
    ensure!(
        groups.split_whitespace().eq(["Groups:", "2100"]),
        "{groups}"
    );
    Ok(())
}
