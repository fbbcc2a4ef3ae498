//! `make bench`: what a start costs, beside the floor and Debian's peers, in one run.
//!
//! Cases take turns, round by round, so that what else the machine does hits all alike; medians
//! are compared as ratios. Each case includes the fork and exec of its first program.

mod node_cache;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use shifter_tests::call::Call;
use shifter_tests::cluster::{Cluster, Options};
use shifter_tests::product::{PREFIX, Product, STORE};
use shifter_tests::report;
use shifter_tests::world::{self, User};

const UID: u32 = 2001;
const JOB: &str = "17";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // The floor: what one would write by hand around a mounted image.
        ["chroot", dir, command] => chroot(dir, command),
        ["starts", rounds] => starts(rounds.parse()?),
        ["slurm", rounds] => slurm(rounds.parse()?),
        ["caches", rounds] => node_cache::run(rounds.parse()?),
        _ => bail!("usage: bench starts|slurm|caches ROUNDS"),
    }
}

/// Changes the root, becomes the user and runs the command.
fn chroot(dir: &str, command: &str) -> Result<()> {
    rustix::process::chroot(dir)?;
    rustix::process::chdir("/")?;
    let (uid, gid) = (
        rustix::thread::Uid::from_raw(UID),
        rustix::thread::Gid::from_raw(UID),
    );
    rustix::thread::set_thread_groups(&[gid])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Err(Command::new(command).exec().into())
}

/// Something to be timed: a program, and what must be done before and after each run.
struct Case {
    name: &'static str,
    argv: Vec<String>,
    input: Option<String>,
    as_user: bool,
    before: Option<String>,
    after: Option<String>,
}

impl Case {
    fn new(name: &'static str, argv: &[&str]) -> Self {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        Self {
            name,
            argv,
            input: None,
            as_user: false,
            before: None,
            after: None,
        }
    }

    fn run(&self) -> Result<Duration> {
        let hook = |script: &Option<String>| match script {
            Some(script) => Call::shell(script).ok().map(drop),
            None => Ok(()),
        };
        hook(&self.before)?;
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .current_dir("/tmp")
            .stdout(Stdio::null());
        if let Some(path) = &self.input {
            command.stdin(fs::File::open(path)?);
        }
        if self.as_user {
            command.uid(UID).gid(UID);
        }
        let start = Instant::now();
        let status = command
            .status()
            .with_context(|| format!("cannot run {}", self.argv[0]))?;
        let took = start.elapsed();
        ensure!(status.success(), "{}: {status}", self.name);
        hook(&self.after)?;
        Ok(took)
    }
}

/// Runs all cases in turns and prints their medians beside that of the case named `floor`.
fn compare(cases: &[Case], rounds: usize) -> Result<()> {
    let mut times = vec![Vec::new(); cases.len()];
    for round in 0..rounds + 2 {
        for (case, times) in cases.iter().zip(&mut times) {
            let took = case.run()?;
            if round >= 2 {
                times.push(took);
            }
        }
    }
    report::line(&format!(
        "{:<58} {:>9} {:>9}",
        "case", "median ms", "best ms"
    ));
    for (case, times) in cases.iter().zip(&mut times) {
        times.sort();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (median, best) = (ms(times[times.len() / 2]), ms(times[0]));
        report::line(&format!("{:<58} {median:>9.2} {best:>9.2}", case.name));
    }
    Ok(())
}

/// A store with a Debian minbase image, gzip-compressed by mksquashfs.
fn store() -> Result<String> {
    let id = "5".repeat(64);
    let base = world::target().join("testbed/debian.tar.gz");
    ensure!(
        base.exists(),
        "{} is missing: run tests/sample-image.sh",
        base.display()
    );
    let script = format!(
        "set -e; mkdir -p /tmp/tree /tmp/mounted {STORE}/index/docker
        tar -C /tmp/tree -xf {base}
        mksquashfs /tmp/tree {STORE}/{id}.squashfs -noappend -no-progress -quiet -comp gzip
        printf 'FORMAT: squashfs\\nENV: PATH=/usr/bin:/bin\\n' >{STORE}/{id}.meta
        printf '{{\"reference\":\"docker:base:latest\",\"id\":\"{id}\",\"digest\":null,\"pulled\":1,\"size\":1}}' \\
            >{STORE}/index/docker/base%3Alatest
        chmod 0644 {STORE}/{id}.*; chown -R shifter {STORE}",
        base = base.display()
    );
    Call::shell(&script).timeout(600).ok()?;
    Ok(id)
}

fn starts(rounds: usize) -> Result<()> {
    world::require()?;
    Product::install()?;
    let id = store()?;
    let image = format!("{STORE}/{id}.squashfs");
    let manifest = |job: &str| -> Result<String> {
        let path = format!("/tmp/manifest.{job}");
        let text = serde_json::json!({
            "schema": 1, "cluster": "bench", "job": job, "restart": 0,
            "user": {"name": "alice", "uid": UID, "gid": UID, "home": "/home/alice",
                     "shell": "/bin/sh", "groups": []},
            "image": {"id": id, "reference": "docker:base:latest"},
            "volumes": ["/scratch/alice:/mnt"], "modules": [], "created": 1,
            "hosts": [{"name": "n1", "slots": 1}],
        });
        fs::write(&path, text.to_string())?;
        Ok(path)
    };
    let setup = |job: &str| {
        format!(
            "{PREFIX}/sbin/setupRoot --manifest=- --expect-uid={UID} --expect-job={job} </tmp/manifest.{job}"
        )
    };
    let unset = |job: &str| format!("{PREFIX}/sbin/unsetupRoot {job}");
    manifest(JOB)?;
    manifest("18")?;
    let own = std::env::current_exe()?.to_string_lossy().into_owned();
    let step = format!("/sys/fs/cgroup/freezer/slurm/uid_{UID}/job_{JOB}/step_0");
    fs::create_dir_all(&step)?;
    fs::write(format!("{step}/cgroup.procs"), "0")?;

    let set_up_argv = |job: &str| {
        let (program, job) = (
            format!("{PREFIX}/sbin/setupRoot"),
            format!("--expect-job={job}"),
        );
        [
            program,
            "--manifest=-".into(),
            format!("--expect-uid={UID}"),
            job,
        ]
    };
    let shifter = format!("{PREFIX}/bin/shifter");
    let user = |name, argv: &[&str]| Case {
        as_user: true,
        ..Case::new(name, argv)
    };
    let set_up = |name, job: &str| Case {
        argv: set_up_argv(job).into(),
        input: Some(format!("/tmp/manifest.{job}")),
        after: Some(unset(job)),
        ..Case::new(name, &[])
    };

    // First on the node: nothing is mounted, every cache of the superblock is cold.
    let mount = format!("mount -t squashfs -o loop,ro {image} /tmp/mounted");
    report::line("\nThe first container of an image on a node\n");
    let bare_mount = "mount --make-rprivate / && mount -t squashfs -o loop,ro \"$1\" /tmp/mounted && exec \"$0\" chroot /tmp/mounted /bin/true";
    let unshare = ["unshare", "-m", "sh", "-c", bare_mount, &own, &image];
    compare(
        &[
            Case::new("bare: unshare, loop mount, chroot, /bin/true", &unshare),
            user(
                "shifter --image /bin/true",
                &[&shifter, "--image=base", "/bin/true"],
            ),
            set_up("setupRoot", JOB),
        ],
        rounds,
    )?;

    report::line("\nThe image is mounted on the node already\n");
    Call::shell(&setup(JOB)).ok()?;
    Call::shell(&mount).ok()?;
    let bwrap = [
        "bwrap",
        "--ro-bind",
        "/tmp/tree",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "/bin/true",
    ];
    let mut cases = vec![
        user("native /bin/true", &["/bin/true"]),
        Case::new(
            "chroot into the mounted image, /bin/true",
            &[&own, "chroot", "/tmp/mounted", "/bin/true"],
        ),
        user(
            "shifter /bin/true, joining the job's root",
            &[&shifter, "/bin/true"],
        ),
        user(
            "shifter --image /bin/true with another volume: private",
            &[
                &shifter,
                "--image=base",
                "--volume=/scratch/alice:/srv",
                "/bin/true",
            ],
        ),
        set_up("setupRoot", "18"),
        Case {
            argv: vec![format!("{PREFIX}/sbin/unsetupRoot"), "18".into()],
            before: Some(setup("18")),
            ..Case::new("unsetupRoot", &[])
        },
    ];
    let bubblewrap = user("bwrap on a directory, /bin/true", &bwrap);
    if bubblewrap.run().is_ok() {
        cases.push(bubblewrap);
    }
    let ch_run = user(
        "ch-run on a directory, /bin/true",
        &["ch-run", "/tmp/tree", "--", "/bin/true"],
    );
    if ch_run.run().is_ok() {
        cases.push(ch_run);
    }
    compare(&cases, rounds)?;
    Call::shell(&format!("umount /tmp/mounted; {}", unset(JOB))).ok()?;
    Ok(())
}

/// The wall time of steps inside an allocation, without and with a container.
fn slurm(rounds: usize) -> Result<()> {
    world::require()?;
    let product = Product::install()?;
    let id = store()?;
    let plugstack = product.plugstack();
    let cluster = Cluster::start(&Options {
        plugstack,
        ..Options::default()
    })?;
    let script = format!(
        "t() {{ local a=$EPOCHREALTIME; \"$@\" || exit 1; local b=$EPOCHREALTIME
                echo \"$label $(( ${{b/./}} - ${{a/./}} ))\"; }}
        for i in $(seq {rounds}); do
            label=plain t srun -n1 -N1 /bin/true
            label=shifter t srun -n1 -N1 shifter /bin/true
        done"
    );
    let (job, info) = cluster.run(User::Alice, &[&format!("--image=id:{id}")], &script)?;
    let output = job.output()?;
    ensure!(info.state() == "COMPLETED", "{output}");
    for label in ["plain", "shifter"] {
        let lines = output.lines().filter_map(|line| line.strip_prefix(label));
        let mut micros: Vec<u64> = lines.filter_map(|n| n.trim().parse().ok()).collect();
        ensure!(micros.len() == rounds, "{output}");
        micros.sort_unstable();
        let median = micros[rounds / 2] as f64 / 1e3;
        report::line(&format!(
            "srun in an allocation, {label:<8} median {median:.1} ms"
        ));
    }
    Ok(())
}
