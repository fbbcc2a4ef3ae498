//! `shifter` without any privilege: what works, what it says where something is missing, and that
//! nothing is left of it.

use std::fs;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::User::Alice;

use super::secure::Step;
use super::{COPY, FuseDevice, Site, ensure_refused, image_id, manifest, squashfs_file};

/// A site with a FUSE device for users and the copy that is not setuid.
fn prepare() -> Result<(Site, FuseDevice)> {
    let mut site = Site::prepare()?;
    let fuse = FuseDevice::with_mode(&mut site, "0666")?;
    site.copy()?;
    squashfs_file("/scratch/alice/own.sqsh", "own")?;
    Ok((site, fuse))
}

fn script(program: &[&str], script: &str) -> Result<String> {
    let words = [program, &["sh", "-c", script]].concat();
    Call::new(words).by(Alice).ok()
}

/// The two ways there: a program without the setuid bit, and one whose user wants no privilege.
const WAYS: [&[&str]; 3] = [
    &[COPY, "--image=tiny"],
    &["shifter", "--rootless", "--image=tiny"],
    &["shifter", "run", "--rootless", "/scratch/alice/own.sqsh"],
];

#[test]
fn privileged_a_program_without_setuid_makes_the_same_container() -> Result<()> {
    let (site, _fuse) = prepare()?;
    fs::write("/scratch/alice/env", "A=from file\n")?;
    Call::shell("install -d -o alice /scratch/alice/data; echo data >/scratch/alice/data/file")
        .ok()?;
    for way in WAYS {
        let run = |inside: &str| script(way, inside);
        ensure!(run("id -u; id -g; id -un")? == "2001\n2001\nalice\n");
        let status = run("grep -E '^(Uid|Gid|Cap|NoNewPrivs)' /proc/self/status")?;
        for line in status.lines() {
            let (key, values) = line.split_once(':').unwrap_or_default();
            let values: Vec<&str> = values.split_whitespace().collect();
            let expected: &[&str] = match key {
                "Uid" | "Gid" => &["2001"; 4],
                "NoNewPrivs" => &["1"],
                _ => &["0000000000000000"],
            };
            ensure!(values == expected, "{line}");
        }
        ensure!(
            run("cat /proc/self/uid_map")?
                .split_whitespace()
                .eq(["2001", "2001", "1"])
        );
        // As for the setuid program: what is given, what is read-only, what is writable.
        let given =
            run("cat /etc/hosts /var/hostsfile; readlink /etc/mtab; ls -a /var/tmp >/dev/null")?;
        ensure!(given.ends_with("login\n/proc/mounts\n"), "{given}");
        ensure!(run("cat /etc/group")?.contains("proj:x:2100:alice\n"));
        let written = run(
            "echo x >/dev/null; echo y >/tmp/y; cat /tmp/y; echo s >/scratch/alice/s; ls /home",
        )?;
        ensure!(written == "y\nalice\nbob\n", "{written}");
        ensure!(fs::read_to_string("/scratch/alice/s")? == "s\n");
        for place in ["/x", "/etc/x", "/usr/x", "/etc/passwd", "/bin/busybox"] {
            let refused = run(&format!("(echo >{place}) 2>&1; true"))?;
            ensure!(refused.contains("ead-only"), "{place}: {refused}");
        }
        for line in run("cat /proc/self/mountinfo")?.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let (at, options) = (fields[4], fields[5]);
            ensure!(options.contains("nosuid"), "{line}");
            ensure!(
                options.contains("nodev") || at.starts_with("/dev"),
                "{line}"
            );
            ensure!(
                !line.contains("shared:") && !line.contains("/run/shifter"),
                "{line}"
            );
        }
        // The command's own mounts, remounts and namespaces get nobody further.
        let refused = run("(mount -o remount,rw /) 2>&1; (umount /etc) 2>&1; true")?;
        ensure!(refused.matches("ermi").count() == 2, "{refused}");
        ensure!(run("cat /etc/shadow; stat -c %a /etc/shadow")? == "600\n");
        let hidden = run("cat /proc/1/root/etc/shadow 2>&1; ls /run/shifter 2>&1; true")?;
        ensure!(!hidden.contains("root:"), "{hidden}");
    }
    // The caller's descriptors, mask and limits, and none of ours.
    let show = "ls /proc/self/fd; umask; ulimit -n; ulimit -f";
    let bare = |what: &str| {
        let script = format!("exec 9</dev/null; umask 027; ulimit -n 77; {what} sh -c '{show}'");
        Call::shell(&script).by(Alice).ok()
    };
    for way in WAYS {
        ensure!(bare(&way.join(" "))? == bare("busybox")?, "{way:?}");
    }
    for way in WAYS {
        let with = |options: &[&str], inside: &str| {
            let (last, first) = way.split_last().context("a way")?;
            script(&[first, options, &[last]].concat(), inside)
        };
        let both = ["--env-file=/scratch/alice/env", "-e", "B=option"];
        ensure!(with(&both, "echo $A,$B")? == "from file,option\n");
        ensure!(with(&["--workdir=/tmp"], "pwd")? == "/tmp\n");
        ensure!(with(&[], "pwd")? == "/scratch/alice\n");
        let volume = ["--volume=/scratch/alice/data:/a/b:ro"];
        let inside = "cat /a/b/file; (echo >/a/b/file) 2>&1";
        let output = with(&volume, &format!("{inside}; true"))?;
        ensure!(
            output.starts_with("data\n") && output.contains("ead-only"),
            "{output}"
        );
        ensure!(
            with(
                &["--volume=/scratch/alice/data:/usr/share/x"],
                "cat /usr/share/x/file"
            )? == "data\n"
        );
    }
    for (volume, words) in [
        ("/etc:/x", "not within a site mount"),
        ("/scratch/bob/secret:/x", "Permission denied"),
        ("/scratch/alice:/data", "leads to '/etc'"),
    ] {
        Call::shell("install -d -o bob -m 0700 /scratch/bob/secret").ok()?;
        let volume = format!("--volume={volume}");
        let output = Call::new([COPY, "--image=tiny", &*volume, "true"])
            .by(Alice)
            .output()?;
        ensure_refused(&output, 3, words)?;
    }
    site.clean.ensure_restored(None)
}

/// A site mount that the user cannot reach is left out, and one with mounts inside comes whole.
#[test]
fn privileged_rootless_in_a_job_without_variables_has_the_jobs_image() -> Result<()> {
    let (site, _fuse) = prepare()?;
    Call::shell("install -d -o alice /scratch/alice/data; echo data >/scratch/alice/data/file")
        .ok()?;
    let mut job = manifest("17");
    job["volumes"] = vec!["/scratch/alice/data:/mnt"].into();
    site.set_up(&job)?.success()?;
    // As sshd starts it: in the job's cgroup, with nothing of the job's in the environment.
    let step = Step::new("17")?;
    let script = "cat /etc/marker /mnt/file; cat /proc/self/uid_map; echo $SHIFTER_IMAGE";
    let said = step
        .call(["shifter", "--rootless", "sh", "-c", script])
        .ok()?;
    let words: Vec<&str> = said.split_whitespace().collect();
    ensure!(
        words == ["tiny", "data", "2001", "2001", "1", &*image_id()],
        "{said}"
    );
    let other = step.call([
        "shifter",
        "--rootless",
        "--image=/scratch/alice/own.sqsh",
        "cat",
        "/etc/marker",
    ]);
    ensure!(other.ok()? == "own\n");
    // Not another user's job, nor no job.
    job["job"] = "18".into();
    job["user"]["uid"] = 2002.into();
    site.set_up(&job)?.success()?;
    let strange = Step::new("18")?
        .call(["shifter", "--rootless", "true"])
        .output()?;
    ensure_refused(&strange, 2, "no image")?;
    ensure_refused(&site.shifter(&["--rootless", "true"])?, 2, "no image")?;
    drop(step);
    for job in ["17", "18"] {
        site.tear_down(job)?.success()?;
    }
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_rootless_site_mounts_are_those_the_user_can_reach() -> Result<()> {
    let (site, _fuse) = prepare()?;
    site.product.configure("")?;
    Call::shell(
        "install -d -m 0700 /scratch/closed; install -d /scratch/closed/in /scratch/outer/inner
        mount -t tmpfs tmpfs /scratch/outer/inner; touch /scratch/outer/inner/seen",
    )
    .ok()?;
    let text = fs::read_to_string(shifter_tests::product::CONFIG)?.replace(
        "site_mounts = ['/scratch', '/home']",
        "site_mounts = ['/scratch/alice', '/scratch/closed/in:/closed', '/scratch/outer:/outer']",
    );
    site.product.configure_with(&text)?;
    let seen = script(
        &[COPY, "--image=tiny"],
        "ls -d /closed 2>/dev/null; ls /outer/inner /scratch",
    );
    Call::shell("umount /scratch/outer/inner; rm -r /scratch/outer /scratch/closed").ok()?;
    ensure!(seen? == "/outer/inner:\nseen\n\n/scratch:\nalice\n");
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_rootless_exit_codes_signals_and_descriptors() -> Result<()> {
    let (site, _fuse) = prepare()?;
    let table = [
        (&["sh", "-c", "exit 42"][..], 42),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["nosuch"], 127),
        (&["/etc/passwd"], 126),
    ];
    for (command, code) in table {
        let words = [&[COPY, "run", "./own.sqsh"], command].concat();
        let output = Call::new(words).by(Alice).output()?;
        ensure!(output.code == code, "{output}");
    }
    // squashfuse is nobody's child here and holds nothing of the caller's: a pipe ends with the
    // command, a wait for all children returns, and Ctrl-C reaches only the command.
    let interrupted = format!(
        "exec 9>/scratch/alice/nine; set -m
        {COPY} run ./own.sqsh sh -c 'trap \"echo caught\" INT; echo ready; sleep 1
            cat /etc/marker; wait; echo waited' >/scratch/alice/out &
        until grep -q ready /scratch/alice/out 2>/dev/null; do sleep 0.02; done
        pid=$(pgrep -u alice -x squashfuse_ll); ls -l /proc/$pid/fd; ps -o ppid= -p $pid
        kill -INT %1; wait; cat /scratch/alice/out"
    );
    let output = Call::new(["bash", "-c", &interrupted]).by(Alice).output()?;
    let seen = &output.stdout;
    ensure!(seen.contains("caught\nown\nwaited\n"), "{output}");
    ensure!(
        !seen.contains("nine") && seen.matches(" -> ").count() == 6,
        "{output}"
    );
    ensure!(seen.lines().any(|line| line.trim() == "1"), "{output}");
    let prompt = Call::shell(&format!("{COPY} run ./own.sqsh echo done | cat"))
        .by(Alice)
        .timeout(10)
        .ok()?;
    ensure!(prompt == "done\n");
    site.clean.ensure_restored(None)
}

/// A container's processes outlive the command that started them, and so does the image.
#[test]
fn privileged_rootless_what_goes_on_in_the_background_keeps_its_image() -> Result<()> {
    let (site, _fuse) = prepare()?;
    let inside = "(sleep 0.4; cat /etc/marker >/scratch/alice/late) >/dev/null 2>&1 </dev/null &";
    script(&[COPY, "run", "./own.sqsh"], inside)?;
    wait_for("the background process", 5, || {
        let text = fs::read_to_string("/scratch/alice/late").unwrap_or_default();
        Ok((text == "own\n").then_some(()))
    })?;
    fs::remove_file("/scratch/alice/late")?;
    site.clean.ensure_restored(None)
}

#[test]
fn privileged_rootless_nothing_is_left_whoever_dies() -> Result<()> {
    let (site, _fuse) = prepare()?;
    // Killed at moments spread over set-up and run; then the command alone.
    let kill = format!(
        "for i in $(seq 0 29); do
            {COPY} run ./own.sqsh sleep 5 & pid=$!
            sleep 0.$(printf %03d $((i * 2))); kill -KILL $pid; wait $pid
        done 2>/dev/null; true"
    );
    Call::shell(&kill).by(Alice).ok()?;
    site.clean.ensure_restored(None)?;
    let parallel =
        format!("for i in $(seq 16); do {COPY} run ./own.sqsh cat /etc/marker & done; wait");
    let output = Call::shell(&parallel).by(Alice).ok()?;
    ensure!(output == "own\n".repeat(16), "{output}");
    site.clean.ensure_restored(None)?;
    // squashfuse dies: the container cannot go on, and nothing hangs.
    let orphaned = format!(
        "{COPY} run ./own.sqsh sh -c 'echo ready; sleep 1; cat /etc/marker' >/scratch/alice/out 2>&1 &
        until grep -q ready /scratch/alice/out; do sleep 0.02; done
        pkill -KILL -u alice squashfuse; wait $!; echo $?; cat /scratch/alice/out"
    );
    let output = Call::shell(&orphaned).by(Alice).timeout(20).ok()?;
    ensure!(
        !output.starts_with("0\n") && !output.contains("own"),
        "{output}"
    );
    site.clean.ensure_restored(None)
}

/// One line says what is missing, with the exit code of a missing privilege.
#[test]
fn privileged_rootless_says_what_is_missing() -> Result<()> {
    let mut site = Site::prepare()?;
    site.copy()?;
    squashfs_file("/scratch/alice/own.sqsh", "own")?;
    for program in ["shifter", COPY] {
        let run = || {
            Call::new([program, "run", "./own.sqsh", "true"])
                .by(Alice)
                .output()
        };
        {
            let _fuse = FuseDevice::with_mode(&mut site, "0600")?;
            ensure_refused(&run()?, 6, "users may not open '/dev/fuse'")?;
        }
        let _fuse = FuseDevice::with_mode(&mut site, "0666")?;
        ensure!(run()?.code == 0);
        let hide = |how: &str| {
            Call::shell(&format!(
                "for i in /usr/bin/squashfuse /usr/bin/squashfuse_ll; do {how} $i; done"
            ))
            .ok()
        };
        hide("chmod 0")?;
        let output = run();
        hide("chmod 755")?;
        ensure_refused(&output?, 6, "squashfuse is not installed")?;
        // A FUSE that is none.
        Call::shell("umount /dev/fuse; mount --bind /dev/null /dev/fuse").ok()?;
        ensure_refused(&run()?, 6, "mounts no FUSE")?;
    }
    // The limit is one of the user namespace, so one of its own is limited here. In it the setuid
    // program has no privilege over the machine either.
    site.clean = Snapshot::take(None)?;
    let limited = |limit: &str, command: &str| {
        let script = format!(
            "unshare --user sleep 60 & pid=$!
            until [ $(readlink /proc/$pid/ns/user) != $(readlink /proc/self/ns/user) ]; do sleep 0.02; done
            echo 0 0 65536 >/proc/$pid/uid_map; echo 0 0 65536 >/proc/$pid/gid_map
            nsenter --user --target $pid sh -c 'echo {limit} >/proc/sys/user/max_user_namespaces &&
                exec setpriv --reuid=2001 --regid=2001 --clear-groups {command}'
            code=$?; kill $pid; exit $code"
        );
        Call::shell(&script).cwd("/scratch/alice").output()
    };
    let command = format!("{COPY} run ./own.sqsh true");
    ensure_refused(
        &limited("0", &command)?,
        6,
        "user namespaces are disabled (user.max_user_namespaces is 0)",
    )?;
    let setuid = format!("{} --image=tiny true", site.product.path("bin/shifter"));
    let output = limited("9", &setuid)?;
    ensure_refused(&output, 6, "not root of the machine")?;
    site.clean.ensure_restored(None)
}

/// The site may well have caches; it is this container that has none.
#[test]
fn privileged_rootless_containers_have_no_caches_and_say_why() -> Result<()> {
    let (site, _fuse) = prepare()?;
    let more = "[per_node_cache.'/scratch']\ndir = '/scratch/.caches'";
    Call::shell("install -d -m 0700 /scratch/.caches").ok()?;
    site.product.configure(more)?;
    for way in WAYS {
        let volume = "--volume=/scratch:/mnt:perNodeCache=size=1m,fs=ext4";
        let at = way.len() - 1;
        let words = [&way[..at], &[volume], &way[at..], &["true"]].concat();
        let output = Call::new(words).by(Alice).output()?;
        ensure_refused(
            &output,
            3,
            "a container without privilege has no perNodeCache",
        )?;
        ensure!(
            output
                .stderr
                .contains("hint: use an image of the site store"),
            "{output}"
        );
    }
    site.product.configure("")?;
    site.clean.ensure_restored(None)
}

/// S15: a program that is installed setuid and was started without that privilege says so, and
/// never goes on by itself with less; asked to, it honours only a trusted configuration.
#[test]
fn privileged_s15_a_setuid_program_without_privilege_refuses() -> Result<()> {
    let (site, _fuse) = prepare()?;
    let shifter = site.product.path("bin/shifter");
    let fake = "/scratch/alice/fake.toml";
    Call::shell(&format!(
        "sed s/user_images.*// /etc/shifter/shifter.toml >{fake}; chown alice {fake}"
    ))
    .ok()?;
    let nnp = format!("setpriv --no-new-privs {shifter}");
    let faked = format!(
        "unshare -c --keep-caps -m sh -c 'busybox mount -o bind {fake} /etc/shifter/shifter.toml && exec {shifter} \"$@\"' x"
    );
    let own_namespace = format!("unshare -c {shifter}");
    let nosuid = format!(
        "unshare -c --keep-caps -m sh -c 'busybox mount -o bind /opt/shifter /opt/shifter && \
         busybox mount -o remount,bind,nosuid /opt/shifter && exec {shifter} \"$@\"' x"
    );
    for start in [&nnp, &faked, &own_namespace, &nosuid] {
        for image in ["--image=tiny", "--image=./own.sqsh"] {
            let output = Call::shell(&format!("{start} {image} cat /etc/marker"))
                .by(Alice)
                .output()?;
            ensure_refused(&output, 6, "root's privileges").with_context(|| start.clone())?;
        }
    }
    let asked = |start: &str| {
        let script = format!("{start} --rootless --image=./own.sqsh cat /etc/marker");
        Call::shell(&script).by(Alice).output()
    };
    ensure!(asked(&nnp)?.stdout == "own\n", "no_new_privs is enough");
    ensure_refused(&asked(&faked)?, 1, "not trusted")?;
    let root = Call::new([COPY, "--image=tiny", "true"]).output()?;
    ensure_refused(&root, 3, "not for root")?;
    site.clean.ensure_restored(None)
}
