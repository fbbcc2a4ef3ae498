//! What is in a root, what it shares, and what it must not change.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::image::Recipe;
use shifter_tests::product::{CONFIG, STORE};
use shifter_tests::world::User::{Alice, Bob};

use super::{Site, ensure_refused, image_id, manifest, store_image};

fn loops() -> Result<usize> {
    let file = format!("{STORE}/{}.squashfs", image_id());
    Ok(Call::new(["losetup", "-n", "-j", &*file])
        .ok()?
        .lines()
        .count())
}

/// Runs a program of the image in a job's pinned root, as root, to look at it from outside.
pub fn look(job: &str, script: &str) -> Result<String> {
    let pin = format!("--mount=/run/shifter/jobs/{job}/roots/job/mnt");
    Call::new(["nsenter", &*pin, "/bin/sh", "-c", script]).ok()
}

#[test]
fn privileged_root_holds_accounts_hosts_and_mounts() -> Result<()> {
    let site = Site::prepare()?;
    let mut job = manifest("17");
    job["volumes"] = ["/scratch/alice:/a/b:ro", "/scratch/alice:/usr/share/x"]
        .as_slice()
        .into();
    site.set_up(&job)?.success()?;
    ensure!(look("17", "cat /var/hostsfile")? == "n1\nn1\nn2\n");
    ensure!(look("17", "cat /etc/shadow; stat -c %a /etc/shadow")? == "600\n");
    let passwd = look("17", "cat /etc/passwd")?;
    ensure!(
        passwd.contains("alice:x:2001:2001:") && !passwd.contains("bob"),
        "{passwd}"
    );
    let group = look("17", "cat /etc/group")?;
    ensure!(
        group.contains("proj:x:2100:alice\n") && !group.contains("bob"),
        "{group}"
    );
    ensure!(look("17", "readlink /etc/mtab; cat /etc/nsswitch.conf")?.contains("passwd: files"));
    ensure!(look("17", "cat /etc/hosts")? == fs::read_to_string("/etc/hosts")?);
    ensure!(look("17", "cat /etc/host.conf")? == "order bind,hosts\nmulti on\n");
    ensure!(
        look("17", "cat /etc/marker")? == "tiny\n",
        "the image's own /etc"
    );
    let given = look(
        "17",
        "cat /var/shifterSlurm.jobid; cd /var; stat -c ' %n %a %u %F' empty run spool \\
         shifterExtern.complete /etc/udiImage; cmp /etc/group /etc/group.orig",
    )?;
    ensure!(
        given
            == "17 empty 700 0 directory\n run 755 0 directory\n spool 755 0 directory\n \
                shifterExtern.complete 644 0 regular empty file\n /etc/udiImage 755 0 directory\n",
        "{given}"
    );
    let config = look("17", "cat /var/shifterConfig.json")?;
    let config: serde_json::Value = serde_json::from_str(&config)?;
    let expected = serde_json::json!({
        "identifier": image_id(), "user": "alice", "modules": "",
        "volMap": "/scratch/alice:/a/b:ro;/scratch/alice:/usr/share/x",
    });
    ensure!(config == expected, "{config}");

    // Every mount: nosuid; nodev but for /dev; writable only where the host's are.
    let mounts = look("17", "cat /proc/self/mountinfo")?;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (at, options) = (fields[4], fields[5]);
        ensure!(options.contains("nosuid"), "{line}");
        ensure!(
            options.contains("nodev") || at.starts_with("/dev") && options.contains("noexec"),
            "{line}"
        );
        let host = [
            "/proc",
            "/sys",
            "/dev",
            "/tmp",
            "/var/tmp",
            "/scratch",
            "/home",
            "/usr/share/x",
        ];
        let is_hosts = host
            .iter()
            .any(|dir| at == *dir || at.starts_with(&format!("{dir}/")));
        ensure!(options.starts_with("ro") || is_hosts, "{line}");
        ensure!(
            !line.contains("shared:") && !line.contains("master:"),
            "{line}"
        );
    }
    ensure!(!mounts.contains("/run/shifter"), "{mounts}");
    site.tear_down("17")?.success()?;
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_containers_of_one_image_share_one_loop_device() -> Result<()> {
    let site = Site::prepare()?;
    for job in ["1", "2", "3"] {
        site.set_up(&manifest(job))?.success()?;
    }
    ensure!(loops()? == 1);
    let starts = "for i in $(seq 24); do shifter --image=tiny true & pids=\"$pids $!\"; done
                  for pid in $pids; do wait $pid || exit 1; done";
    Call::shell(starts).by(Alice).ok()?;
    ensure!(loops()? == 1);
    let devices = look("1", "stat -c %d /bin")? == look("2", "stat -c %d /bin")?;
    ensure!(devices, "one superblock");
    for job in ["1", "2", "3"] {
        ensure!(loops()? == 1, "before the teardown of {job}");
        site.tear_down(job)?.success()?;
    }
    site.clean.ensure_restored(None)?;
    ensure!(loops()? == 0);
    // And at once from nothing.
    Call::shell(starts).by(Alice).ok()?;
    wait_for("no loop device", 5, || Ok((loops()? == 0).then_some(())))
}

#[test]
fn privileged_s29_nothing_reaches_a_shared_host_tree() -> Result<()> {
    let site = Site::prepare()?;
    Call::new(["mount", "--make-rshared", "/"]).ok()?;
    let before = fs::read_to_string("/proc/self/mountinfo")?;
    site.script(&["--volume=/scratch/alice:/a/b"], "true")?;
    site.set_up(&manifest("17"))?.success()?;
    let during = fs::read_to_string("/proc/self/mountinfo")?;
    let new: Vec<&str> = during
        .lines()
        .filter(|line| !before.contains(line))
        .collect();
    ensure!(
        new.iter().all(|line| line.contains(" /run/shifter")),
        "{new:?}"
    );
    site.tear_down("17")?.success()?;
    Call::new(["mount", "--make-rprivate", "/"]).ok()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_hidepid_of_the_host_holds_inside() -> Result<()> {
    let site = Site::prepare()?;
    let count = "ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm 2>/dev/null || echo hidden";
    ensure!(!site.script(&[], count)?.contains("hidden"));
    Call::new(["mount", "-o", "remount,hidepid=2", "/proc"]).ok()?;
    let hidden = site.script(&[], count);
    Call::new(["mount", "-o", "remount,hidepid=0", "/proc"]).ok()?;
    ensure!(hidden?.contains("hidden"));
    Ok(())
}

#[test]
fn privileged_devices_and_scratch_are_usable() -> Result<()> {
    let site = Site::prepare()?;
    let script =
        "echo x >/dev/null && head -c 4 /dev/urandom | wc -c && echo y >/tmp/y && cat /tmp/y
                  echo z >/var/tmp/z && cat /var/tmp/z && echo s >/scratch/alice/s && ls /home";
    ensure!(site.script(&[], script)? == "4\ny\nz\nalice\nbob\n");
    ensure!(fs::read_to_string("/scratch/alice/s")? == "s\n");
    for script in [
        "touch /x",
        "touch /etc/x",
        "touch /usr/x",
        "mkdir /var/x",
        "echo >/etc/passwd",
    ] {
        let output = site.shifter(&["--image=tiny", "sh", "-c", script])?;
        ensure!(
            output.code != 0 && output.stderr.contains("Read-only"),
            "{output}"
        );
    }
    Ok(())
}

#[test]
fn privileged_environment_directory_and_command() -> Result<()> {
    let site = Site::prepare()?;
    let run = |args: &[&str]| -> Result<String> {
        let output = site
            .product
            .shifter([&["--image=tiny"], args].concat())
            .by(Alice)
            .env("MINE", "1");
        Ok(output.output()?.success()?.stdout)
    };
    let echo = ["sh", "-c", "echo $COLOUR,$MINE,$A"];
    ensure!(run(&echo)? == "green,1,\n");
    let caller = site
        .product
        .shifter([&["--image=tiny"][..], &echo].concat());
    let caller = caller.by(Alice).env("COLOUR", "the caller's").ok()?;
    ensure!(caller == "green,,\n", "the image's wins: {caller}");
    ensure!(run(&[&["-E"][..], &echo].concat())? == "green,,\n");
    fs::write("/scratch/alice/env", "# comment\nA=from file\nCOLOUR=red\n")?;
    ensure!(run(&[&["--env-file=/scratch/alice/env"][..], &echo].concat())? == "red,1,from file\n");
    let both = ["--env-file=/scratch/alice/env", "-e", "A=option"];
    ensure!(run(&[&both[..], &echo].concat())? == "red,1,option\n");
    // What is still being written, as by <(...), is waited for; too much is told and not cut off.
    let late = "shifter --image=tiny --env-file=<(sleep 0.3; echo A=late) sh -c 'echo $A'";
    ensure!(Call::shell(late).by(Alice).ok()? == "late\n");
    fs::write("/scratch/alice/env", "A=1234567\n".repeat(104_858))?;
    let large = ["--image=tiny", "--env-file=/scratch/alice/env", "true"];
    ensure_refused(&site.shifter(&large)?, 2, "larger than")?;
    for (option, words) in [
        ("--env=NAME", "hint: write NAME=value"),
        ("--env-file=/etc/marker", "hint: each line is NAME=value"),
    ] {
        let output = site.shifter(&["--image=tiny", option, "true"])?;
        ensure_refused(&output, 2, "has no '='")?;
        ensure!(output.stderr.contains(words), "{output}");
    }
    ensure!(run(&["--entrypoint"])? == "entry cmd\n");
    ensure!(run(&["--entrypoint", "mine"])? == "entry mine\n");
    ensure!(run(&["--entrypoint=/bin/echo", "other"])? == "other\n");
    ensure!(run(&["pwd"])? == "/scratch/alice\n");
    ensure!(run(&["--workdir", "pwd"])? == "/usr\n");
    ensure!(run(&["--workdir=/tmp", "pwd"])? == "/tmp\n");
    let form = site
        .product
        .shifter(["run", "tiny", "echo", "form"])
        .by(Alice)
        .ok()?;
    ensure!(form == "form\n");
    // What describes a job has other names where Slurm alone sets it, in the shell of salloc.
    let spank = |name: &'static str, value| {
        let start = site.product.shifter(["cat", "/etc/marker"]).by(Alice);
        let start = start.env("SLURM_SPANK_SHIFTER_IMAGETYPE", "docker");
        let start = start.env("SLURM_SPANK_SHIFTER_IMAGE", "tiny");
        start.env(name, value).output()
    };
    ensure!(spank("SLURM_SPANK_SHIFTER_VOLUME", "/scratch:/s")?.stdout == "tiny\n");
    ensure_refused(
        &spank("SLURM_SPANK_SHIFTER_VOLUME", "/scratch:/etc")?,
        3,
        "/etc",
    )?;
    ensure_refused(&spank("SHIFTER_IMAGE", "other")?, 4, "docker:other:latest")?;
    let table = [
        (&["nosuch"][..], 127),
        (&["/etc/passwd"], 126),
        (&["/etc"], 126),
        (&["false"], 1),
    ];
    for (command, code) in table {
        let output = site.shifter(&[&["--image=tiny"], command].concat())?;
        ensure!(output.code == code, "{output}");
    }
    fs::write("/scratch/alice/orphan", "#!/no/such/interpreter\n")?;
    Call::new(["chmod", "0755", "/scratch/alice/orphan"]).ok()?;
    let orphan = site.shifter(&["--image=tiny", "/scratch/alice/orphan"])?;
    fs::remove_file("/scratch/alice/orphan")?;
    ensure_refused(&orphan, 126, "the interpreter or loader that it names")?;
    let elsewhere = site
        .product
        .shifter(["--image=tiny", "pwd"])
        .by(Alice)
        .cwd("/var/lib")
        .output()?;
    ensure!(
        elsewhere.stdout == "/\n" && elsewhere.stderr.contains("'/var/lib'"),
        "{elsewhere}"
    );
    Ok(())
}

/// Without a command: the entry point if it is asked for, the user's shell if the image has it, else
/// /bin/sh; whatever SHELL says.
#[test]
fn privileged_without_a_command_a_shell_starts() -> Result<()> {
    let site = Site::prepare()?;
    let shells = Recipe::tiny("shells").build()?.layout().join("tree");
    let own = shells.join("bin/bash");
    fs::write(&own, "#!/bin/sh\necho \"alice's own: $0\"\n")?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
    store_image(&shells, &"8".repeat(64), "shells")?;
    let start = |words: &[&str]| {
        let start = site.product.shifter(words.iter().copied()).by(Alice);
        start.env("SHELL", "/bin/cat").input("echo $0 $#").ok()
    };
    for (words, expected) in [
        (&["--image=tiny"][..], "/bin/sh 0\n"),
        (&["run", "tiny"], "/bin/sh 0\n"),
        (&["--image=tiny", "--"], "/bin/sh 0\n"),
        (&["--image=shells"], "alice's own: /bin/bash\n"),
        (&["--image=shells", "--entrypoint"], "entry cmd\n"),
        (&["--image=tiny", "--entrypoint=/bin/sh"], "/bin/sh 0\n"),
    ] {
        let said = start(words)?;
        ensure!(said == expected, "{words:?}: {said}");
    }
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_the_program_says_what_it_is_and_does() -> Result<()> {
    let site = Site::prepare()?;
    for (word, first) in [
        ("--help", "Usage: shifter [OPTIONS] "),
        ("-h", "Usage: shifter [OPTIONS] "),
        ("--version", "shifter "),
    ] {
        let output = site.shifter(&[word])?.success()?;
        ensure!(
            output.stdout.starts_with(first) && output.stderr.is_empty(),
            "{output}"
        );
    }
    for verbose in ["-v", "--verbose"] {
        let output = site.shifter(&[verbose, "--image=tiny", "echo", "data"])?;
        let told = "shifter: image docker:tiny:latest ready in ";
        ensure!(
            output.stdout == "data\n"
                && output.stderr.starts_with(told)
                && output.stderr.lines().count() == 1,
            "{output}"
        );
    }
    let silent = site.shifter(&["--image=tiny", "echo", "data"])?;
    ensure!(silent.stderr.is_empty(), "{silent}");
    // What the site lets in of the caller's variables.
    site.product
        .configure("[env]\npass = ['KEEP*', 'LESSOPEN']\ndrop = ['KEEP_OUT*']")?;
    let script = "echo $KEEP_THIS,$KEEP_OUT_A,$OTHER,$LESSOPEN,$BASH_ENV,$COLOUR";
    let mut call = site
        .product
        .shifter(["--image=tiny", "sh", "-c", script])
        .by(Alice);
    for name in ["KEEP_THIS", "KEEP_OUT_A", "OTHER", "LESSOPEN", "BASH_ENV"] {
        call = call.env(name, "1");
    }
    let seen = call.ok()?;
    ensure!(seen == "1,,,1,,green\n", "{seen}");
    site.product.configure("")?;
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

/// What shows who a process is and what it may do.
pub const STATUS: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status";

/// Fails unless that shows alice and nothing more.
pub fn ensure_only_alice(status: &str) -> Result<()> {
    for line in status.lines() {
        let (key, values) = line.split_once(':').unwrap_or_default();
        let values: Vec<&str> = values.split_whitespace().collect();
        let expected: &[&str] = match key {
            "Uid" | "Gid" => &["2001"; 4],
            "Groups" => &["2001", "2100"],
            "NoNewPrivs" => &["1"],
            _ => &["0000000000000000"],
        };
        ensure!(values == expected, "{line}");
    }
    ensure!(status.lines().count() == 9, "{status}");
    Ok(())
}

#[test]
fn privileged_s14_the_task_is_its_user_and_nothing_more() -> Result<()> {
    let site = Site::prepare()?;
    ensure_only_alice(&site.script(&[], STATUS)?)?;
    let canary = "cat /proc/1/root/etc/shadow /proc/self/root/../etc/shadow 2>&1; ls /run/shifter 2>&1; true";
    let seen = site.script(&[], canary)?;
    ensure!(
        !seen.contains("alice:") && !seen.contains("root:"),
        "{seen}"
    );
    Ok(())
}

/// S03, S02, S08: descriptors, mask and limits of the caller reach the command, ours do not.
#[test]
fn privileged_s02_s03_s08_descriptors_masks_and_limits_are_the_callers() -> Result<()> {
    let site = Site::prepare()?;
    let show = "ls /proc/self/fd; umask; ulimit -n; ulimit -f";
    let script = |what: &str| format!("exec 9</dev/null; umask 027; ulimit -n 77; {what}");
    let bare = Call::shell(&script(&format!("busybox sh -c '{show}'")))
        .by(Alice)
        .ok()?;
    let inside = format!("shifter --image=tiny sh -c '{show}'");
    let inside = Call::shell(&script(&inside)).by(Alice).ok()?;
    ensure!(
        bare.contains("9\n0027\n77\n") && inside == bare,
        "{bare}{inside}"
    );
    for closed in [
        "<&-",
        ">&-",
        "2>&-",
        "<&- >&-",
        "<&- 2>&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
    ] {
        // Each is open inside, and none is a file of the program's own.
        let test = "for fd in 0 1 2; do test -e /dev/fd/$fd || exit 1; done
            ls -l /proc/self/fd >&9; cat /etc/passwd >&9";
        let script =
            format!("exec 9>/scratch/alice/out; shifter --image=tiny sh -c '{test}' {closed}");
        Call::shell(&script).by(Alice).ok()?;
        ensure!(
            fs::read_to_string("/scratch/alice/out")?.contains("alice:"),
            "{closed}"
        );
    }
    for limit in [
        "-f 0",
        "-n 6",
        "-v 49152",
        "-u 1",
        "-s unlimited",
        "-c unlimited",
    ] {
        let script = format!("ulimit {limit}; shifter --image=tiny cat /etc/passwd");
        let output = Call::shell(&script).by(Alice).output()?;
        let whole = output.stdout.contains("alice:") && output.stdout.contains("nobody:");
        ensure!(output.code != 0 || whole, "{limit}: {output}");
    }
    site.tear_down("1")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_strays_are_ended_and_strangers_are_not() -> Result<()> {
    let site = Site::prepare()?;
    site.set_up(&manifest("17"))?.success()?;
    let pin = "--mount=/run/shifter/jobs/17/roots/job/mnt";
    let inside = |command: &[&str]| {
        let enter = [
            "nsenter",
            pin,
            "--setuid=2001",
            "--setgid=2001",
            "/bin/busybox",
        ];
        Call::new([&enter, command].concat())
            .timeout(0)
            .start("/tmp/stray")
    };
    let mut deaf = inside(&["sh", "-c", "trap '' TERM HUP; while :; do sleep 0.1; done"])?;
    let mut hidden = inside(&["unshare", "-Urm", "/bin/busybox", "sleep", "1000"])?;
    let mut stranger = Call::new(["sleep", "1000"])
        .by(Bob)
        .timeout(0)
        .start("/dev/null")?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    let they_run = deaf.try_wait()?.is_none() && hidden.try_wait()?.is_none();
    ensure!(they_run, "{}", fs::read_to_string("/tmp/stray")?);
    let output = site.tear_down("17")?;
    ensure!(output.code == 0, "{output}");
    ensure!(!deaf.wait()?.success() && !hidden.wait()?.success());
    ensure!(stranger.try_wait()?.is_none(), "a stranger was ended");
    stranger.kill()?;
    stranger.wait()?;
    site.clean.ensure_restored(None)
}

/// A volume from an automounted directory: the host's daemon mounts it when the user asks, whether
/// the host's mounts are shared, as systemd has them, or private.
#[test]
fn privileged_sources_are_automounted() -> Result<()> {
    let site = Site::prepare()?;
    let usual = fs::read_to_string(CONFIG)?;
    let with_net = usual.replace(
        "['/scratch', '/home']",
        "['/scratch', '/net:/net:rec:slave']",
    );
    site.product.configure_with(&with_net)?;
    Call::shell(
        "mkdir -p /net /srv/auto; echo automounted >/srv/auto/file; chown -R alice /srv/auto
        echo 'data -fstype=bind :/srv/auto' >/etc/auto.test
        echo '/net /etc/auto.test' >/etc/auto.master.test",
    )
    .ok()?;
    for propagation in ["private", "shared"] {
        let start = format!(
            "mount --make-r{propagation} /; setsid automount -f -p /run/automount.pid /etc/auto.master.test >/dev/null 2>&1 & \
            for i in $(seq 100); do grep -q ' /net .* autofs ' /proc/self/mountinfo && exit 0; sleep 0.05; done; exit 1"
        );
        Call::shell(&start).ok()?;
        let seen = site.script(&["--volume=/net/data:/mnt"], "cat /mnt/file");
        let direct = (propagation == "shared").then(|| site.script(&[], "cat /net/data/file"));
        Call::shell(
            "kill $(cat /run/automount.pid)
            for i in $(seq 100); do grep -q ' /net .* autofs ' /proc/self/mountinfo || exit 0; sleep 0.05; done; exit 1",
        )
        .ok()?;
        ensure!(seen? == "automounted\n");
        ensure!(
            direct
                .transpose()?
                .is_none_or(|seen| seen == "automounted\n")
        );
    }
    Call::shell("mount --make-rprivate /").ok()?;
    site.product.configure("")?;
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}
