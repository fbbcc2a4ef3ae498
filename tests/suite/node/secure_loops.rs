//! S29–S31: what the node shares between containers, and what reaches into one that runs.

use std::fs;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::product::STORE;
use shifter_tests::world::User::Alice;

use super::secure::{Guard, Step, compile};
use super::{image_id, manifest};

/// Runs a program of the image in job 17's root, as root, to look at it from outside.
fn look(script: &str) -> Result<String> {
    let pin = "--mount=/run/shifter/jobs/17/roots/job/mnt";
    Call::new(["nsenter", pin, "/bin/busybox", "sh", "-c", script]).ok()
}

/// S29: what is mounted on the host later arrives where the site says `slave` and nowhere else, and
/// goes again. Such a mount keeps the host's flags: against its setuid files stands no_new_privs.
#[test]
fn privileged_s29_late_mounts_arrive_only_where_the_site_says_slave() -> Result<()> {
    let mut guard = Guard::prepare()?;
    Call::shell(
        "mount --make-shared /scratch; mount --make-shared /home; mkdir /home/late /scratch/late",
    )
    .ok()?;
    let text = fs::read_to_string("/etc/shifter/shifter.toml")?;
    let text = text.replace(
        "['/scratch', '/home']",
        "['/scratch:/scratch:slave:rec', '/home']",
    );
    guard.site.product.configure_with(&text)?;
    guard.rebase()?;
    guard.site.set_up(&manifest("17"))?.success()?;
    let mut task = Call::new([
        "nsenter",
        "--mount=/run/shifter/jobs/17/roots/job/mnt",
        "/bin/busybox",
        "sh",
        "-c",
        "sleep 1000",
    ])
    .timeout(0)
    .start("/dev/null")?;
    // With a file system that has a setuid file and a device on it.
    let whoami = "#include <stdio.h>\n#include <unistd.h>\n\
        int main(void) { printf(\"%d %d\\n\", getuid(), geteuid()); }";
    compile("whoami", whoami)?;
    let fill = "mount -t tmpfs -o mode=0755 late $at; cp /tmp/whoami $at; chmod 4755 $at/whoami
        mknod -m 0666 $at/null c 1 3; mknod -m 0666 $at/zero c 1 5";
    for at in ["/scratch/late", "/home/late"] {
        Call::shell(&format!("at={at}; {fill}")).ok()?;
    }
    let arrived = || -> Result<(bool, bool)> {
        let mounts = look("cat /proc/self/mountinfo")?;
        Ok((
            mounts.contains(" /scratch/late "),
            mounts.contains(" /home/late "),
        ))
    };
    let seen = arrived()?;
    // A user of the container: the setuid file gives nothing. The device opens, because nodev is not
    // handed down and the host shows it to the same user as well.
    let as_alice = |script: &str| {
        Call::shell(&format!(
            "echo $$ >/sys/fs/cgroup/freezer/slurm/uid_2001/job_17/step_0/cgroup.procs
            exec setpriv --reuid 2001 --regid 2001 --init-groups /opt/shifter/bin/shifter sh -c '{script}'"
        ))
        .cwd("/tmp")
        .output()
    };
    let step = Step::new("17")?;
    let rights = as_alice("/scratch/late/whoami; grep ^NoNewPrivs /proc/self/status");
    let inside = as_alice(
        "head -c 2 /scratch/late/zero | wc -c; mknod /scratch/alice/x c 1 3 2>&1 | grep -c .",
    );
    let outside = Call::shell("head -c 2 /scratch/late/zero | wc -c")
        .by(Alice)
        .ok();
    drop(step);
    Call::shell("umount /scratch/late /home/late").ok()?;
    let gone = arrived()?;
    task.kill()?;
    task.wait()?;
    guard.site.tear_down("17")?.success()?;
    Call::shell(
        "rmdir /home/late /scratch/late; mount --make-private /scratch; mount --make-private /home",
    )
    .ok()?;
    guard.site.product.configure("")?;
    guard.rebase()?;
    ensure!(seen == (true, false), "arrived: {seen:?}");
    ensure!(gone == (false, false), "still there: {gone:?}");
    let rights = rights?.success()?.stdout;
    ensure!(rights == "2001 2001\nNoNewPrivs:\t1\n", "{rights}");
    ensure!(outside? == "2\n", "alice has the device on the host");
    let inside = inside?;
    ensure!(inside.stdout == "2\n1\n", "{inside}");
    guard.finish()
}

/// S30: few loop devices, some of them somebody else's; many starts at once.
#[test]
fn privileged_s30_many_starts_share_few_loop_devices() -> Result<()> {
    let guard = Guard::prepare()?;
    for name in ["one", "two", "three", "four"] {
        guard.image(name, |tree| {
            Ok(fs::write(tree.join("etc/marker"), format!("{name}\n"))?)
        })?;
    }
    // A /dev of its own with eight nodes: two of them taken, one held open as udev and blkid do.
    // The rest of the machine may be using any of them too.
    let script = "
        set -e
        mkdir -p /tmp/dev; mount -t tmpfs -o mode=0755 dev /tmp/dev
        for name in null zero full random urandom tty loop-control; do cp -a /dev/$name /tmp/dev/; done
        mkdir /tmp/dev/pts /tmp/dev/shm
        first=$(losetup -f | tr -dc 0-9)
        for n in $(seq $first $((first + 7))); do mknod -m 0600 /tmp/dev/loop$n b 7 $n; done
        mount --move /tmp/dev /dev
        truncate -s 1M /tmp/other
        taken=$(losetup -f); losetup $taken /tmp/other 2>/dev/null || true
        exec 8</dev/loop$((first + 1)) || true
        for n in $(seq 64); do
            set -- one two three four; shift $((n % 4))
            setpriv --reuid 2001 --regid 2001 --init-groups timeout 60 /opt/shifter/bin/shifter \
                --image=$1 cat /etc/marker >/tmp/out.$n 2>/tmp/err.$n && echo \"$1 ok\" || echo \"$1 $?\" &
        done
        wait
        exec 8<&-
        losetup -d $taken 2>/dev/null || true
        cat /tmp/err.* >&2; cat /tmp/out.* | sort | uniq -c";
    let run = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "bash",
        "-c",
        script,
    ];
    let output = Call::new(run)
        .cwd("/tmp")
        .timeout(100)
        .output()?
        .success()?;
    let ends = |code: &str| {
        output
            .stdout
            .lines()
            .filter(|line| line.ends_with(code))
            .count()
    };
    let (good, mount) = (ends(" ok"), ends(" 5"));
    // Where others use up the machine's devices: a clean error, and never a hang.
    ensure!(good + mount == 64, "{output}");
    ensure!(good >= 32, "{good} of 64 succeeded: {output}");
    ensure!(!output.stderr.contains("panicked"), "{output}");
    let clean = output
        .stderr
        .lines()
        .all(|line| line.starts_with("shifter: cannot "));
    ensure!(clean, "{output}");
    Call::shell("rm -f /tmp/other /tmp/out.* /tmp/err.*; rmdir /tmp/dev").ok()?;
    guard.unchanged()?;
    guard.finish()
}

/// S30: a login host, where no job's end sweeps.
#[test]
fn privileged_s30_hints_of_private_containers_do_not_pile_up() -> Result<()> {
    let guard = Guard::prepare()?;
    let file = |id: &str, kind: &str| format!("{STORE}/{id}.{kind}");
    let ids: Vec<String> = (0..80).map(|number| format!("{number:064x}")).collect();
    for id in &ids {
        for kind in ["squashfs", "meta"] {
            fs::copy(file(&image_id(), kind), file(id, kind))?;
        }
        let image = format!("--image=id:{id}");
        guard.site.shifter(&[&image, "true"])?.success()?;
    }
    let hints = fs::read_dir("/run/shifter/images")?.count();
    for id in &ids {
        for kind in ["squashfs", "meta"] {
            fs::remove_file(file(id, kind))?;
        }
    }
    ensure!((1..=65).contains(&hints), "{hints} hints");
    guard.finish()
}

#[test]
fn privileged_s31_an_image_that_is_removed_lives_on_where_it_runs() -> Result<()> {
    let guard = Guard::prepare()?;
    let script = "cat /etc/marker; touch /scratch/alice/runs
        while ! [ -e /scratch/alice/go ]; do sleep 0.02; done
        cat /bin/busybox | wc -c; cat /etc/os-release; ls /usr/share | wc -l";
    let start = guard
        .site
        .product
        .shifter(["--image=tiny", "sh", "-c", script])
        .by(Alice);
    let mut running = start.start("/tmp/running")?;
    let runs = || Ok(fs::metadata("/scratch/alice/runs").ok());
    wait_for("the container", 10, runs)?;
    let keep = format!(
        "mkdir /tmp/expired; mv {STORE}/{id}.* {STORE}/index/docker/tiny* /tmp/expired",
        id = image_id()
    );
    // As an expiry does it: the files go. A copy in memory is the only other name.
    Call::shell(&keep).ok()?;
    Call::shell("sync; echo 1 >/proc/sys/vm/drop_caches").output()?;
    let next = guard.site.shifter(&["--image=tiny", "true"])?;
    let by_id = guard
        .site
        .shifter(&[&format!("--image=id:{}", image_id()), "true"])?;
    fs::write("/scratch/alice/go", "")?;
    let ended = running.wait()?;
    let said = fs::read_to_string("/tmp/running")?;
    let back = format!(
        "mv /tmp/expired/tiny* {STORE}/index/docker/; mv /tmp/expired/* {STORE}/; rmdir /tmp/expired"
    );
    Call::shell(&back).ok()?;
    ensure!(
        ended.success() && said.starts_with("tiny\n") && said.contains("PRETTY_NAME"),
        "{said}"
    );
    guard.refused(&next, 4, "cannot find image 'docker:tiny:latest'")?;
    guard.refused(&by_id, 4, "cannot find image")?;
    guard.site.script(&[], "true")?;
    guard.finish()
}
