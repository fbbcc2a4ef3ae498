//! `--autoshift`: scripts and tasks run inside the image as they are.

use std::fs;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::world::User::Alice;

use crate::bench::{Bench, stored_as};
use crate::node::roots::{STATUS, ensure_only_alice};
use crate::node::secure::compile;

#[test]
fn cluster_s14_autoshift_tasks_are_their_user_and_nothing_more() -> Result<()> {
    let bench = Bench::start()?;
    let image = bench.a.option();
    let shift = [image.as_str(), "--autoshift"];
    let look = format!("cat /etc/marker; {STATUS}; ls /run/shifter /proc/1/root 2>/dev/null; true");
    // The image has no bash, which is what a script is for elsewhere in these tests.
    let wrapped = [shift[0], shift[1], "--wrap", &look];
    let (job, info) = bench.cluster.run(Alice, &wrapped, "")?;
    info.expect("COMPLETED", "0:0")?;
    let tasks = bench.srun(Alice, &bench.a, &["--autoshift", "sh", "-c", &look])?;
    let allocated = Call::new([
        "salloc",
        "--quiet",
        "--autoshift",
        &image,
        "srun",
        "sh",
        "-c",
        &look,
    ])
    .by(Alice)
    .output()?;
    for (kind, output) in [
        ("sbatch", job.output()?),
        ("srun", tasks.success()?.stdout),
        ("salloc", allocated.success()?.stdout),
    ] {
        let parts: Vec<&str> = output.split("a\n").collect();
        ensure!(parts.len() == 2, "{kind}: {output}");
        ensure_only_alice(parts[1]).with_context(|| kind)?;
    }
    bench.ensure_clean()
}

/// A program of root's with the set-user-ID bit that tries to be more than its caller; each line of
/// its output is one attempt.
const ATTEMPTS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#define TRY(name, call) \
    printf("%s: %s\n", name, (call) == -1 ? strerror(errno) : "works")
static const char *of(int pid, const char *file) {
    static char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    return path;
}
int main(void) {
    char line[256], *name = "/proc/self/exe";
    struct stat own;
    gid_t root = 0;
    int daemon = getppid();
    // The closest ancestor that is root's: slurmstepd.
    while (stat(of(daemon, ""), &own) == 0 && own.st_uid != 0) {
        FILE *file = fopen(of(daemon, "stat"), "r");
        if (!file || !fgets(line, sizeof line, file)) return 1;
        daemon = atoi(strrchr(line, ')') + 4);
    }
    stat(name, &own);
    printf("bit %o of %d, uids %d %d\n", own.st_mode & 07777, own.st_uid, getuid(), geteuid());
    TRY("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0));
    TRY("uid", setuid(0));
    TRY("gid", setgid(0));
    TRY("groups", setgroups(1, &root));
    TRY("chroot", chroot("/tmp"));
    TRY("mount", mount("none", "/mnt", "tmpfs", 0, NULL));
    TRY("unmount", umount2("/tmp", MNT_DETACH));
    TRY("unshare", unshare(CLONE_NEWNS));
    TRY("device", mknod("/tmp/disk", S_IFBLK | 0600, makedev(7, 0)));
    TRY("trace", ptrace(PTRACE_ATTACH, daemon, 0, 0));
    TRY("memory", open(of(daemon, "mem"), O_RDWR));
    TRY("root", open(of(daemon, "root/"), O_RDONLY));
    TRY("namespace", open(of(daemon, "ns/mnt"), O_RDONLY));
    TRY("environment", open(of(daemon, "environ"), O_RDONLY));
    TRY("kill", kill(daemon, SIGKILL));
    TRY("accounts", open("/etc/passwd", O_WRONLY));
    TRY("image", open("/bin/new", O_WRONLY | O_CREAT, 0600));
    TRY("state", open("/run/shifter/jobs", O_RDONLY));
    // A user namespace gives what is in it, and nothing of the host's.
    if (unshare(CLONE_NEWUSER) == 0) {
        TRY("inner trace", ptrace(PTRACE_ATTACH, daemon, 0, 0));
        TRY("inner namespace", open(of(daemon, "ns/mnt"), O_RDONLY));
        TRY("inner unmount", umount2("/tmp", MNT_DETACH));
    }
    return 0;
}
"#;

#[test]
fn cluster_s14_autoshift_tasks_try_to_be_more_and_are_not() -> Result<()> {
    let bench = Bench::start()?;
    let program = fs::read(compile("try", ATTEMPTS)?)?;
    let recipe = Recipe::tiny("suid").file("bin/try", 0o4755, program);
    let image = stored_as(&bench.product, &bench.registry, "suid", recipe)?;
    let options = [&*image.option(), "--autoshift", "--wrap", "try"];
    let (job, info) = bench.cluster.run(Alice, &options, "")?;
    info.expect("COMPLETED", "0:0")
        .with_context(|| job.output().unwrap_or_default())?;
    let step = bench.srun(Alice, &image, &["--autoshift", "try"])?;
    for output in [job.output()?, step.success()?.stdout] {
        let mut lines = output.lines();
        // The bit is there, and gives nothing.
        ensure!(
            lines.next() == Some("bit 4755 of 0, uids 2001 2001"),
            "{output}"
        );
        let is_refused = |line: &str| {
            let reason = line.split_once(": ").unwrap_or_default().1;
            [
                "Operation not permitted",
                "Permission denied",
                "Read-only file system",
                "No such file or directory",
            ]
            .contains(&reason)
        };
        let rest: Vec<&str> = lines.collect();
        ensure!(
            rest.len() >= 18 && rest.iter().all(|line| is_refused(line)),
            "{output}"
        );
    }
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_runs_the_whole_script_inside() -> Result<()> {
    let bench = Bench::start_with(|_, options| {
        options.nodes = 4;
        Ok(())
    })?;
    let script = "cat /etc/marker; pwd; echo $MINE ${LD_PRELOAD-unset} $SHIFTER_IMAGEREQUEST $SLURM_JOB_NUM_NODES
        echo $SHIFTER_IMAGE $SHIFTER_IMAGETYPE $SHIFTER_VOLUME $SHIFTER_AUTOSHIFT ${SHIFTER_CCM-not}
        shifter ps | grep -c \" $SLURM_JOB_ID \"
        test -r \"$0\" && which cat; ls -d /mnt
        shifter echo prefixed; shifter --image=other true; echo $?
        shifter --env=A=b sh -c 'echo $A'; shifter images; echo $?";
    let shift = [
        "-N4",
        &bench.a.option(),
        "--autoshift",
        "--volume=/scratch/alice:/mnt",
        "--export=ALL,MINE=yes,LD_PRELOAD=/nowhere",
        "--wrap",
        script,
    ];
    let (job, info) = bench.cluster.run(Alice, &shift, "")?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    let reference = &bench.a.reference;
    let expected = [
        "a",
        "/scratch/alice",
        &format!("yes unset {reference} 4"),
        &format!("{} id /scratch/alice:/mnt 1 not", bench.a.image.id()),
        "1",
        "/bin/cat",
        "/mnt",
        "prefixed",
        &format!(
            "shifter: this is the container of '{reference}', and 'docker:other:latest' is another image"
        ),
        "hint: outside of it, or with the module for Slurm: srun --image=IMAGE COMMAND",
        "3",
        "b",
        "shifter: only commands can be run inside a container",
        "hint: run this shifter command outside of it",
        "3",
    ];
    ensure!(
        output.lines().eq(expected),
        "{output}\ninstead of\n{expected:#?}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_of_single_steps_and_directories_that_are_not_inside() -> Result<()> {
    let bench = Bench::start()?;
    let script = "cat /etc/marker 2>/dev/null; srun --autoshift cat /etc/marker
        srun --autoshift shifter cat /etc/marker; srun cat /etc/marker 2>/dev/null
        cd /var/log && srun --autoshift pwd 2>/dev/null; cd / && srun --autoshift pwd
        srun --autoshift sh -c 'exit 7' 2>/dev/null; echo $?; srun --autoshift /no/such 2>&1 | grep -c 'No such file'";
    let (job, info) = bench.cluster.run(Alice, &[&bench.a.option()], script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(output == "a\na\n/tmp\n/\n7\n1\n", "{output}");
    // Nowhere to go.
    let (job, info) = bench.cluster.run(Alice, &[], "srun --autoshift true")?;
    ensure!(info.state() == "FAILED", "{info:?}");
    ensure!(
        job.output()?.contains("without --image"),
        "{}",
        job.output()?
    );
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_as_the_sites_default_and_for_listed_images() -> Result<()> {
    let bench = Bench::start_with(|product, _| {
        product.configure(
            "[slurm]\nautoshift = true\nautoshift_images = 'listed'\n\
             autoshift_list = ['docker:127.0.0.1:5000/a:*']",
        )
    })?;
    let marker = ["cat", "/etc/marker"];
    let inside = bench.srun(Alice, &bench.a, &marker)?;
    ensure!(inside.code == 0 && inside.stdout == "a\n", "{inside}");
    let opted_out = bench.srun(Alice, &bench.a, &["--autoshift=no", "cat", "/etc/marker"])?;
    ensure!(
        opted_out.code != 0 && opted_out.stdout.is_empty(),
        "{opted_out}"
    );
    let unlisted = bench.srun(Alice, &bench.b, &["shifter", "cat", "/etc/marker"])?;
    ensure!(unlisted.success()?.stdout == "b\n");
    let refused = bench.srun(Alice, &bench.b, &["--autoshift", "true"])?;
    ensure!(
        refused.code != 0
            && refused.stderr.contains("this site does not allow it")
            && refused
                .stderr
                .contains("hint: without it: srun shifter COMMAND"),
        "{refused}"
    );
    // Forged: the node says no, and stays in service.
    let forged = Call::new([
        "sbatch",
        "--parsable",
        "--wait",
        &bench.b.option(),
        "--output=forged",
    ])
    .env("SHIFTER_AUTOSHIFT", "1")
    .input("#!/bin/sh\nsrun --export=ALL true\n")
    .by(Alice)
    .output()?;
    ensure!(forged.code == 0, "{forged}");

    bench
        .product
        .configure("[slurm]\nautoshift_images = 'off'")?;
    let refused = bench.srun(Alice, &bench.a, &["--autoshift", "true"])?;
    ensure!(
        refused.code != 0 && refused.stderr.contains("this site does not allow it"),
        "{refused}"
    );
    let plain = bench.srun(Alice, &bench.a, &["shifter", "cat", "/etc/marker"])?;
    ensure!(plain.success()?.stdout == "a\n");
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_submits_from_inside_with_slurms_module() -> Result<()> {
    let mut bench = Bench::start_with(|product, _| {
        let module = fs::read_to_string(product.path("share/shifter/modules/slurm.toml"))?;
        product.configure(&module)
    })?;
    let image = stored_as(
        &bench.product,
        &bench.registry,
        "deb",
        Recipe::debian("deb"),
    )?;
    let option = format!("--image={}", image.reference);
    let shift = ["-N2", option.as_str(), "--autoshift", "--module=slurm"];
    let b = &bench.b.reference;
    let script = format!(
        "srun --ntasks-per-node=1 cat /etc/debian_version | sort -u
         srun -N1 -n1 --image={b} --module=none cat /etc/marker
         id=$(sbatch --parsable --output=child --wrap 'hostname') && echo submitted
         squeue -h -j $SLURM_JOB_ID -o %T"
    );
    let (job, info) = bench.cluster.run(Alice, &shift, &script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    let lines: Vec<&str> = output.lines().collect();
    ensure!(
        lines.len() == 4
            && lines[0].starts_with("12")
            && lines[1..] == ["b", "submitted", "RUNNING"],
        "{output}"
    );
    bench.cluster.node_mut("n1")?.ensure_slurmd_lives()?;
    bench.cluster.wait_until_idle()?;
    bench.ensure_clean()
}

#[test]
fn cluster_autoshift_sees_the_private_tmp_of_the_job() -> Result<()> {
    let start = || {
        Bench::start_with(|_, options| {
            options.slurm_conf =
                "JobContainerType=job_container/tmpfs\nPrologFlags=Alloc,Contain".into();
            fs::write(
                "/etc/slurm/job_container.conf",
                "AutoBasePath=true\nBasePath=/var/spool/private\n",
            )?;
            Ok(())
        })
    };
    let run = |bench: &Bench| {
        let script = "echo mine >/tmp/mine; srun -n1 cat /tmp/mine; srun -n1 shifter cat /tmp/mine
            srun -n2 --autoshift cat /tmp/mine; srun -n1 --autoshift touch /tmp/theirs; ls /tmp/theirs";
        let options = ["-n2", &bench.a.option()];
        bench.cluster.run(Alice, &options, script)
    };
    let mut bench = start()?;
    let mut ran = run(&bench);
    // Slurm's step sometimes keeps a namespace before its own child has made it, and the node is lost.
    let is_slurms = "_create_ns: ns base mount failed";
    for _ in 0..2 {
        if ran.is_err() && bench.cluster.node("n1")?.log().contains(is_slurms) {
            drop(bench);
            bench = start()?;
            ran = run(&bench);
        }
    }
    let (job, info) = ran?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    ensure!(
        output == "mine\nmine\nmine\nmine\n/tmp/theirs\n",
        "{output}"
    );
    let host = bench.cluster.node("n1")?.call(["ls", "/tmp"]).ok()?;
    ensure!(!host.contains("mine"), "{host}");
    bench.ensure_clean()
}
