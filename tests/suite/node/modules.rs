//! Modules of the site and hooks: what they change in a container, who they run as, and what is
//! left of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use serde_json::json;
use shifter_tests::call::{Call, wait_for};
use shifter_tests::world::User::Alice;

use super::join::Step;
use super::{Site, ensure_refused, manifest};

/// A directory that only root can write.
const DIR: &str = "/opt/site";

/// Writes a program of the site's.
fn program(name: &str, script: &str) -> Result<String> {
    fs::create_dir_all(DIR)?;
    let path = format!("{DIR}/{name}");
    fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Fails unless nothing is left but the hints of private containers, which a teardown sweeps.
fn ensure_clean(site: &Site) -> Result<()> {
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_modules_change_the_environment_in_the_order_of_their_names() -> Result<()> {
    let site = Site::prepare()?;
    site.product.configure(
        "[module.one]\nenv.set = { A = 'one', COLOUR = 'one' }\nenv.append = { LIST = 'one' }\n\
         env.unset = ['MINE']\n\
         [module.two]\nenv.set = { A = 'two' }\nenv.prepend = { LIST = 'two' }\n\
         env.append = { LIST = 'end' }\n",
    )?;
    let run = |options: &[&str]| -> Result<String> {
        let show = ["sh", "-c", "echo $A $COLOUR $LIST $MINE"];
        let args = [&["--image=tiny"], options, &show].concat();
        let call = site.product.shifter(args).by(Alice).env("MINE", "mine");
        call.env("LIST", "here").ok()
    };
    ensure!(run(&[])? == "green here mine\n");
    ensure!(run(&["--module=one"])? == "one one here:one\n");
    ensure!(run(&["--module=one,two"])? == "two one two:here:one:end\n");
    ensure!(run(&["-m", "two,one,two"])? == "one one two:here:end:one\n");
    // The user's own come before, the site's after them.
    ensure!(run(&["--module=one", "-e", "A=user"])? == "one one here:one\n");
    Ok(())
}

#[test]
fn privileged_default_modules_apply_unless_others_or_none_are_named() -> Result<()> {
    let modules = "[module.one]\nenv.set = { A = 'one' }\nconflicts = ['two']\n\
                   [module.two]\nenv.set = { B = 'two' }\n[module.off]\nenabled = false\n";
    let site = Site::prepare()?;
    // The list is a key of the first table.
    let text = fs::read_to_string(shifter_tests::product::CONFIG)?;
    let text = format!("default_modules = ['one']\n{text}{modules}");
    site.product.configure_with(&text)?;
    let show = "echo $A,$B; grep -o '\"modules\":.*' /var/shifterConfig.json";
    let run = |options: &[&str]| site.script(options, show);
    ensure!(run(&[])? == "one,\n\"modules\":\"one\"}\n");
    ensure!(run(&["--module=two"])? == ",two\n\"modules\":\"two\"}\n");
    ensure!(run(&["--module=none"])? == ",\n\"modules\":\"\"}\n");
    for (names, words) in [
        ("one,two", "'one' cannot be used together with 'two'"),
        ("off", "'off' does not exist"),
        ("x", "'x' does not exist"),
    ] {
        let output = site.shifter(&["--image=tiny", &format!("--module={names}"), "true"])?;
        ensure_refused(&output, 3, words)?;
    }
    // A job that names none has the default ones; one that wants none says so.
    for (names, expected) in [
        (json!([]), "one"),
        (json!(["none"]), ""),
        (json!(["two"]), "two"),
        (json!(["two", "none", "two"]), "two"),
    ] {
        let mut job = manifest("17");
        job["modules"] = names;
        site.set_up(&job)?.success()?;
        let pin = "--mount=/run/shifter/jobs/17/roots/job/mnt";
        let seen = Call::new(["nsenter", pin, "/bin/cat", "/var/shifterConfig.json"]).ok()?;
        ensure!(
            seen.contains(&format!("\"modules\":\"{expected}\"")),
            "{seen}"
        );
        let kept = fs::read_to_string("/run/shifter/jobs/17/manifest")?;
        let kept: serde_json::Value = serde_json::from_str(&kept)?;
        let kept: Vec<&str> = kept["modules"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|m| m.as_str())
            .collect();
        ensure!(kept.join(",") == expected, "{kept:?}");
        site.tear_down("17")?.success()?;
    }
    ensure_clean(&site)
}

#[test]
fn privileged_modules_bring_mounts_and_files() -> Result<()> {
    let site = Site::prepare()?;
    let script = format!(
        "mkdir -p {DIR}/data/sub {DIR}/copy/bin {DIR}/udi/bin && echo data >{DIR}/data/sub/file
         echo copied >{DIR}/copy/bin/tool; echo udi >{DIR}/udi/bin/sshd"
    );
    Call::shell(&script).ok()?;
    let module = format!(
        "[module.data]\nsite_mounts = ['{DIR}/data:/brought/here:ro', '{DIR}/data']\n\
         copy_path = '{DIR}/copy'\n[module.plain]\n"
    );
    for udi in ["", &format!("udi_image = '{DIR}/udi'\n")] {
        site.product.configure(&format!("{udi}{module}"))?;
        let show = "cat /brought/here/sub/file /opt/udiImage/modules/data/bin/tool /opt/udiImage/bin/sshd 2>&1
            for place in /brought/here/x /opt/udiImage/x /opt/udiImage/modules/x /opt/udiImage/modules/data/x
            do touch $place 2>/dev/null && echo writable $place; done; true";
        let seen = site.script(&["--module=plain,data"], show)?;
        let expected = if udi.is_empty() {
            "No such file"
        } else {
            "udi"
        };
        ensure!(
            seen.starts_with("data\ncopied\n") && seen.contains(expected),
            "{seen}"
        );
        ensure!(!seen.contains("writable"), "{seen}");
        let without = site.script(&[], "ls -d /brought /opt/udiImage/modules 2>&1; true")?;
        ensure!(without.matches("No such file").count() == 2, "{without}");
        // Its mounts are site mounts; what it copies is none.
        let volume = format!("--volume={DIR}/data/sub:/v");
        let seen = site.script(&["--module=data", &volume], "cat /v/file")?;
        ensure!(seen == "data\n", "{seen}");
        let volume = format!("--volume={DIR}/copy/bin:/v");
        let output = site.shifter(&["--image=tiny", "--module=data", &volume, "true"])?;
        ensure_refused(&output, 3, "not within a site mount")?;
        let output = site.shifter(&["--image=tiny", "--volume=/brought/here:/v", "true"])?;
        ensure_refused(&output, 3, "No such file")?;
    }
    // A job's container has it too, and so has who joins it.
    site.product.configure(&module)?;
    let mut job = manifest("17");
    job["modules"] = json!(["data"]);
    site.set_up(&job)?.success()?;
    let pin = "--mount=/run/shifter/jobs/17/roots/job/mnt";
    let seen = Call::new([
        "nsenter",
        pin,
        "/bin/cat",
        "/opt/udiImage/modules/data/bin/tool",
    ])
    .ok()?;
    ensure!(seen == "copied\n", "{seen}");
    site.tear_down("17")?.success()?;
    ensure_clean(&site)
}

/// S17: a program, directory or specification that others can write is not used.
#[test]
fn privileged_s17_what_others_can_write_is_refused_by_its_name() -> Result<()> {
    let site = Site::prepare()?;
    let hook = program("hook", "touch /run/hook-ran")?;
    Call::shell(&format!("mkdir -p {DIR}/copy {DIR}/loose /opt/loose && cp {hook} /opt/loose/hook
        mkdir -p /opt/cdi && cp /etc/hostname /opt/cdi/x.yaml; chmod 0777 {DIR}/loose /opt/loose /opt/cdi
        cp -P /usr/lib/x86_64-linux-gnu/libz.so.1* {DIR}/ && cp {DIR}/libz.so.1 /opt/loose/")).ok()?;
    let table = [
        (
            "[hooks]\npre_mount = ['/opt/loose/hook']",
            "'/opt/loose' is not trusted",
        ),
        (
            "[hooks]\npost_mount = ['/opt/loose/hook']",
            "'/opt/loose' is not trusted",
        ),
        (
            "[module.m]\nroot_hook = ['/opt/loose/hook']",
            "'/opt/loose' is not trusted",
        ),
        (
            "[module.m]\ncopy_path = '/opt/site/loose'",
            "'/opt/site/loose' is not trusted",
        ),
        (
            "[module.m]\nlibraries = ['/opt/loose/libz.so.1']",
            "'/opt/loose' is not trusted",
        ),
        (
            "[module.m]\nlibraries = ['/opt/loose/libz*']",
            "'/opt/loose' is not trusted",
        ),
        (
            "cdi_dirs = ['/opt/cdi']\n[module.m]\ncdi = ['v.example/c=x']",
            "'/opt/cdi' is not trusted",
        ),
        ("udi_image = '/opt/loose'", "'/opt/loose' is not trusted"),
    ];
    for (config, words) in table {
        site.product.configure(&format!(
            "{config}\n{}",
            if config.contains("module.m") {
                ""
            } else {
                "[module.m]\n"
            }
        ))?;
        let output = site.shifter(&["--image=tiny", "--module=m", "true"])?;
        ensure_refused(&output, 1, words).map_err(|error| error.context(config.to_owned()))?;
        let mut job = manifest("17");
        job["modules"] = json!(["m"]);
        ensure_refused(&site.set_up(&job)?, 1, words)?;
        ensure_clean(&site)?;
    }
    Call::new(["chown", "alice", &hook]).ok()?;
    site.product
        .configure(&format!("[hooks]\npre_mount = ['{hook}']"))?;
    let output = site.shifter(&["--image=tiny", "true"])?;
    ensure_refused(
        &output,
        1,
        "'/opt/site/hook' is not trusted: it belongs to uid 2001",
    )?;
    ensure!(!fs::exists("/run/hook-ran")?, "a hook ran");
    Ok(())
}

/// S05, S78: a root's hook sees nothing that its caller can choose.
#[test]
fn privileged_s05_s78_hooks_have_a_fixed_environment_and_nothing_of_the_callers() -> Result<()> {
    let site = Site::prepare()?;
    let report = "{ env | sort; echo \"args $*\"; pwd; id; ls /proc/self/fd | wc -l; readlink /proc/self/fd/0
        grep -E '^(Sig(Blk|Ign)|Umask|Groups)' /proc/self/status; cat /dev/tty 2>&1 | head -c 20
        } >/run/report.$SHIFTER_HOOK 2>&1";
    let hook = program("report", report)?;
    site.product.configure(&format!(
        "[hooks]\npre_mount = ['{hook}', 'a b', '$(id)']\n[module.m]\nroot_hook = ['{hook}']"
    ))?;
    let hostile = "trap '' CHLD TERM INT; exec 9</etc/hostname; umask 0; ulimit -n 64
        LD_PRELOAD=/scratch/alice/x.so BASH_ENV=/scratch/alice/x ENV=/scratch/alice/x IFS=/ TMPDIR=/scratch/alice \\
        RUST_BACKTRACE=1 SHIFTER_HOOK=forged SHIFTER_USER=root PATH=/scratch/alice:$PATH \\
        shifter --image=tiny --module=m true";
    Call::shell(hostile).by(Alice).ok()?;
    for (stage, module) in [("pre_mount", ""), ("root_hook", "SHIFTER_MODULE=m\n")] {
        let seen = fs::read_to_string(format!("/run/report.{stage}"))?;
        let id = super::image_id();
        let environment = format!(
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/run/shifter\nSHIFTER_GID=2001\n\
             SHIFTER_HOOK={stage}\nSHIFTER_IMAGE={id}\nSHIFTER_IMAGEREQUEST=docker:tiny:latest\n\
             {module}SHIFTER_ROOT=/run/shifter\nSHIFTER_UID=2001\nSHIFTER_USER=alice\nargs"
        );
        ensure!(seen.starts_with(&environment), "{seen}");
        let rest = &seen[environment.len()..];
        let args = if module.is_empty() { " a b $(id)" } else { " " };
        ensure!(
            rest.starts_with(&format!(
                "{args}\n/run/shifter\nuid=0(root) gid=0(root) groups=0(root)\n4\n/dev/null\n"
            )),
            "{seen}"
        );
        ensure!(
            rest.contains("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"),
            "{seen}"
        );
        ensure!(
            rest.contains("Umask:\t0022\n") && rest.contains("Groups:\t \n"),
            "{seen}"
        );
        ensure!(rest.contains("/dev/tty"), "no terminal expected: {seen}");
    }
    // What a manifest says of the image's name is not passed on blindly.
    let mut job = manifest("17");
    job["image"]["reference"] = json!("x; $(touch /run/x) `id`");
    site.set_up(&job)?.success()?;
    let seen = fs::read_to_string("/run/report.pre_mount")?;
    ensure!(!seen.contains("IMAGEREQUEST"), "{seen}");
    site.tear_down("17")?.success()?;
    ensure_clean(&site)
}

#[test]
fn privileged_hooks_run_in_order_and_mount_where_the_host_does_not_see_it() -> Result<()> {
    let site = Site::prepare()?;
    fs::create_dir_all(format!("{DIR}/late.d"))?;
    let say = "echo $SHIFTER_HOOK $SHIFTER_MODULE $(ls -d etc bin scratch/alice 2>/dev/null) >>/run/order";
    // The site's mount is of what the first hook mounts.
    let pre = program(
        "pre",
        &format!("{say}; mount -t tmpfs none {DIR}/late.d && echo late >{DIR}/late.d/file"),
    )?;
    let post = program(
        "post",
        &format!("{say}; mount -t tmpfs none \"$SHIFTER_ROOT/mnt\" && echo post >mnt/file"),
    )?;
    let root = program("root", say)?;
    site.product.configure(&format!(
        "[hooks]\npre_mount = ['{pre}']\npost_mount = ['{post}']\n\
         [module.a]\nroot_hook = ['{root}']\nsite_mounts = ['{DIR}/late.d:/late']\n\
         [module.b]\nroot_hook = ['{root}']\nuser_hook = ['/bin/sh', '-c', 'id -u; echo $A >/tmp/user-hook; pwd >>/tmp/user-hook']\n\
         env.set = {{ A = 'module' }}\n"
    ))?;
    let mounts = || -> Result<Vec<String>> {
        let text = fs::read_to_string("/proc/self/mountinfo")?;
        let lines = text.lines().filter(|line| !line.contains(" /run/shifter "));
        Ok(lines.map(str::to_owned).collect())
    };
    let before = mounts()?;
    let seen = site.script(
        &["--module=b,a"],
        "cat /late/file /mnt/file /tmp/user-hook; stat -c %U /tmp/user-hook",
    )?;
    ensure!(
        seen == "late\npost\nmodule\n/scratch/alice\nalice\n",
        "{seen}"
    );
    ensure!(mounts()? == before, "a mount reached the host");
    ensure!(fs::read_dir(format!("{DIR}/late.d"))?.next().is_none());
    let order = fs::read_to_string("/run/order")?;
    let expected = "pre_mount\npost_mount bin etc scratch/alice\nroot_hook b bin etc scratch/alice\n\
                    root_hook a bin etc scratch/alice\n";
    ensure!(order == expected, "{order}");
    // In a job: root's once when it is set up, the user's for each command.
    let mut job = manifest("17");
    job["modules"] = json!(["a"]);
    site.set_up(&job)?.success()?;
    ensure!(fs::read_to_string("/run/order")?.lines().count() == 7);
    site.tear_down("17")?.success()?;
    job["modules"] = json!(["b"]);
    site.set_up(&job)?.success()?;
    let step = Step::of(Alice, "17")?;
    for _ in 0..2 {
        fs::remove_file("/tmp/user-hook")?;
        let output = step.run(Alice, "shifter cat /tmp/user-hook")?.success()?;
        ensure!(output.stdout == "module\n/tmp\n", "{output}");
    }
    ensure!(fs::read_to_string("/run/order")?.lines().count() == 10);
    drop(step);
    site.tear_down("17")?.success()?;
    ensure_clean(&site)
}

#[test]
fn privileged_a_hook_that_fails_or_takes_too_long_stops_the_set_up() -> Result<()> {
    let site = Site::prepare()?;
    let fail = program(
        "fail",
        "echo working; printf 'no \\033[1mlicence\\n' >&2; exit 3",
    )?;
    let late = program("late", "echo waiting; sleep 300 & setsid sleep 300; wait")?;
    let crash = program("crash", "kill -SEGV $$; sh -c 'kill -KILL $$'; exit 1")?;
    let pre = format!(
        "hook '{fail}' (pre_mount) failed: it ended with exit code 3: no \\u{{1b}}[1mlicence"
    );
    let table = [
        (format!("[hooks]\npre_mount = ['{fail}']"), pre.as_str(), 5),
        (
            format!("[hooks]\npost_mount = ['{late}']\ntimeout_secs = 1"),
            "it did not end within 1 s: waiting",
            5,
        ),
        (
            format!("[module.m]\nroot_hook = ['{crash}']"),
            "of module 'm' failed: ",
            5,
        ),
        (
            format!("[module.m]\nroot_hook = ['{DIR}/missing']"),
            "'/opt/site/missing'",
            1,
        ),
        (
            "[module.m]\nuser_hook = ['/bin/sh', '-c', 'echo no; exit 9']".into(),
            "hook '/bin/sh' of module 'm' failed: it ended with exit code 9: no",
            3,
        ),
        (
            "[module.m]\nuser_hook = ['/nowhere']".into(),
            "hook '/nowhere' of module 'm' failed: No such file",
            3,
        ),
        (
            "[module.m]\nuser_hook = ['/bin/sleep', '300']\n[hooks]\ntimeout_secs = 1".into(),
            "did not end within 1 s",
            3,
        ),
    ];
    for (config, words, code) in table {
        site.product.configure(&format!(
            "{config}\n{}",
            if config.contains("module.m") {
                ""
            } else {
                "[module.m]\n"
            }
        ))?;
        let output = site.shifter(&["--image=tiny", "--module=m", "echo", "started"])?;
        ensure_refused(&output, code, words).map_err(|error| error.context(config.clone()))?;
        ensure!(output.took.as_secs() < 10, "{output}");
        if code != 3 {
            let mut job = manifest("17");
            job["modules"] = json!(["m"]);
            ensure_refused(&site.set_up(&job)?, code, words)?;
        }
        let left = Call::shell("pgrep -f '^sleep 300|^/bin/sleep 300'; true").ok()?;
        ensure!(left.is_empty(), "{config}: {left}");
        ensure_clean(&site)?;
    }
    Ok(())
}

/// Whatever a hook has started, and however: it does not outlive the set-up.
#[test]
fn privileged_hooks_die_with_the_set_up() -> Result<()> {
    let site = Site::prepare()?;
    let hook = program(
        "deep",
        "trap '' TERM HUP INT; setsid sh -c 'sleep 301 & sleep 301' & (sleep 301 &); touch /run/started; sleep 301",
    )?;
    let quick = program(
        "quick",
        "setsid sleep 301 </dev/null >/dev/null 2>&1 & exit 0",
    )?;
    site.product.configure(&format!(
        "[hooks]\npre_mount = ['{hook}']\ntimeout_secs = 100"
    ))?;
    let sleepers = || {
        Ok::<_, anyhow::Error>(
            Call::shell("pgrep -cx sleep || true")
                .ok()?
                .trim()
                .parse::<usize>()?,
        )
    };
    for round in 0..2 {
        let program = site.product.path("sbin/setupRoot");
        let args = [
            &*program,
            "--manifest=/run/manifest",
            "--expect-uid=2001",
            "--expect-job=17",
        ];
        fs::write("/run/manifest", manifest("17").to_string())?;
        let _ = fs::remove_file("/run/started");
        let mut child = Call::new(args).timeout(0).start("/run/log")?;
        wait_for("the hook", 10, || {
            Ok(fs::exists("/run/started")?.then_some(()))
        })?;
        wait_for(
            "what it starts",
            10,
            || Ok((sleepers()? >= 4).then_some(())),
        )?;
        let signal = if round == 0 { "-KILL" } else { "-TERM" };
        Call::new(["kill", signal, &child.id().to_string()]).ok()?;
        if round == 1 {
            // It cannot be ended half way but by force.
            std::thread::sleep(std::time::Duration::from_millis(200));
            ensure!(child.try_wait()?.is_none());
            child.kill()?;
        }
        child.wait()?;
        wait_for("the hook's end", 5, || Ok((sleepers()? == 0).then_some(())))?;
        site.tear_down("17")?.success()?;
        ensure_clean(&site)?;
    }
    // Nor does what one leaves running when it ends well.
    site.product
        .configure(&format!("[hooks]\npost_mount = ['{quick}']"))?;
    site.script(&[], "true")?;
    wait_for("the end of what a hook left", 2, || {
        Ok((sleepers()? == 0).then_some(()))
    })?;
    ensure_clean(&site)
}

#[test]
fn privileged_setup_with_hooks_killed_before_each_system_call_leaves_nothing() -> Result<()> {
    let site = Site::prepare()?;
    let hook = program("short", "true")?;
    site.product.configure(&format!(
        "[hooks]\npost_mount = ['{hook}']\n[module.m]\nenv.set = {{ A = 'b' }}"
    ))?;
    let program = site.product.path("sbin/setupRoot");
    let mut job = manifest("17");
    job["modules"] = json!(["m"]);
    // Only the calls that hooks and modules add.
    let mut deaths = 0;
    for (name, count) in [
        ("pipe2", 3),
        ("unshare", 3),
        ("setns", 3),
        ("clone", 2),
        ("poll", 2),
        ("pidfd_open", 2),
        ("wait4", 2),
        ("close", 12),
    ] {
        for number in 1..=count {
            let inject = format!("--inject={name}:signal=KILL:when={number}");
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", &inject, &program];
            let args = ["--manifest=-", "--expect-uid=2001", "--expect-job=17"];
            let output = Call::new(strace)
                .args(args)
                .input(job.to_string())
                .output()?;
            deaths += usize::from(output.code != 0);
            // A hook that is just dying keeps the namespace, and so the image, for a moment.
            wait_for(&format!("the image's end after {name} {number}"), 5, || {
                let output = site.tear_down("17")?;
                ensure!(output.code == 0, "{name} {number}: {output}");
                let hints = fs::read_dir("/run/shifter/images").map(Iterator::count);
                Ok((hints.unwrap_or(0) == 0).then_some(()))
            })?;
            site.clean.ensure_restored(None)?;
        }
    }
    ensure!(deaths > 12, "only {deaths} kills hit");
    Ok(())
}
