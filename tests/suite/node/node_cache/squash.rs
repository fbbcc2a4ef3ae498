//! Caches on a file system whose server does not trust root, as parallel ones are.

use std::fs;
use std::path::Path;
use std::process::Child;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::User::Alice;

use super::{inside, with_volumes};
use crate::node::{Site, ensure_refused};

/// The server, which knows no files without a name; it ends when this is dropped.
struct Squash(Child);

impl Squash {
    const DIR: &str = "/scratch/squash";
    const LOW: &str = "/var/lib/shifter/squash";

    fn start(options: &[&str]) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("suite/node/node_cache/squash.py");
        Call::new(["mkdir", "-p", Self::DIR, Self::LOW]).ok()?;
        let server = Call::new(["/usr/bin/python3", &*script.to_string_lossy()])
            .args([Self::LOW, Self::DIR])
            .args(options.iter().copied())
            .timeout(0)
            .start("/tmp/squash.log")?;
        let server = Self(server);
        wait_for("the server", 10, || {
            let found = Call::new(["mountpoint", "-q", Self::DIR]).output()?;
            Ok((found.code == 0).then_some(()))
        })?;
        Call::shell(&format!(
            "cd {}; rm -rf alice; install -d -o alice alice",
            Self::LOW
        ))
        .ok()?;
        Ok(server)
    }

    /// Makes a site whose caches lie there.
    fn site(&self) -> Result<Site> {
        let dir = Self::DIR;
        let site = Site::prepare()?;
        Call::shell(&format!(
            "cd {}; rm -rf .caches; install -d -m 0700 -o 2900 .caches",
            Self::LOW
        ))
        .ok()?;
        site.product.configure(&format!(
            "[per_node_cache.'{dir}']\ndir = '{dir}/.caches'\nowner = 2900\n"
        ))?;
        Ok(Site {
            clean: Snapshot::take(None)?,
            ..site
        })
    }
}

impl Drop for Squash {
    fn drop(&mut self) {
        let _ = Call::new(["umount", Self::DIR]).output();
        let _ = self.0.wait();
    }
}

/// S42: root has no say on many a parallel file system; the owner's uid makes the file there, and
/// takes its name away before anything is in it.
#[test]
fn privileged_s42_root_squash_and_no_nameless_files() -> Result<()> {
    let server = Squash::start(&[])?;
    let site = server.site()?;
    let listing = Call::new(["ls", "-A", &format!("{}/.caches", Squash::DIR)]).output()?;
    ensure!(listing.code != 0, "root is not squashed: {listing}");
    let volume = "/scratch/squash/alice:/mnt:perNodeCache=size=300m";
    let job = with_volumes("17", &[volume]);
    let program = site.product.path("sbin/setupRoot");
    let args = ["--manifest=-", "--expect-uid=2001", "--expect-job=17"];
    let traced = Call::new(["strace", "-f", "-o", "/tmp/trace", &*program])
        .args(args)
        .input(job.to_string())
        .output()?;
    traced.success()?;
    let output = inside("17", 2001, "echo x >/mnt/a && sync && cat /mnt/a")?;
    ensure!(output.stdout == "x\n", "{output}");
    let low = format!("{}/.caches", Squash::LOW);
    ensure!(fs::read_dir(&low)?.count() == 0, "a name is left");

    // Between its making and the end of its name there is one call, and the file is empty.
    let trace = fs::read_to_string("/tmp/trace")?;
    let is_making = |line: &str| line.contains("O_EXCL") && line.contains("\".shifter-cache-");
    let maker = trace.lines().find(|line| is_making(line));
    let maker = maker.and_then(|line| line.split(' ').next());
    let maker = maker.context("no such call")?;
    let calls = trace.lines().filter_map(|line| line.strip_prefix(maker));
    let lines: Vec<&str> = calls.map(str::trim_start).collect();
    let made = lines.iter().position(|line| is_making(line));
    let made = made.context("no such call")?;
    for word in ["O_CREAT|O_EXCL", "O_NOFOLLOW", "O_CLOEXEC", "0600"] {
        ensure!(lines[made].contains(word), "{}", lines[made]);
    }
    ensure!(
        lines[made + 1].starts_with("unlinkat("),
        "{}",
        lines[made + 1]
    );
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)?;

    // Killed right between the two: the next one removes the name, which belongs to an empty file.
    let dir = format!("{}/.caches", Squash::DIR);
    let inject = ["-P", &dir, "--inject=unlinkat:signal=KILL:when=1"];
    let strace = [&["strace", "-f", "-qq", "-o", "/dev/null"], &inject[..]].concat();
    let killed = Call::new([&strace[..], &[&*program]].concat())
        .args(args)
        .input(job.to_string())
        .output()?;
    ensure!(killed.stderr.contains("got signal 9"), "{killed}");
    site.tear_down("17")?.success()?;
    let left = Call::new(["find", &low, "-type", "f", "-printf", "%f %s %m %U\n"]).ok()?;
    ensure!(
        left.starts_with(".shifter-cache-") && left.ends_with(" 0 600 2900\n"),
        "{left}"
    );
    site.set_up(&job)?.success()?;
    ensure!(fs::read_dir(&low)?.count() == 0, "a name is left");
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)?;
    drop(server);
    Ok(())
}

/// S42: a user who tries all the time never opens the file, where it has a name for a moment.
#[test]
fn privileged_s42_a_racing_user_never_opens_the_file() -> Result<()> {
    let (starts, tries) = match std::env::var_os("SHIFTER_LONG_TESTS") {
        Some(_) => (500, 5000),
        None => (25, 25),
    };
    let server = Squash::start(&[])?;
    let site = server.site()?;
    let racer = format!(
        "import glob, os
places = ['{dir}/.caches', '{low}/.caches']
rounds = 0
while not os.path.exists('/tmp/stop'):
    rounds += 1
    paths = glob.glob('/dev/loop[0-9]*') + glob.glob('/proc/[0-9]*/fd/*')
    for place in places:
        try:
            paths += [place + '/' + name for name in os.listdir(place)]
            print('listed', place)
        except PermissionError:
            pass
    for path in paths:
        try:
            if path.startswith('/proc') and 'cache' not in os.readlink(path):
                continue
            os.close(os.open(path, os.O_RDWR))
            print('opened', path)
        except OSError:
            pass
print('rounds', rounds)
",
        dir = Squash::DIR,
        low = Squash::LOW,
    );
    fs::write("/tmp/racer.py", racer)?;
    let volume = "/scratch/squash/alice:/mnt:perNodeCache=size=1m,fs=ext4";
    let script = format!(
        "/usr/bin/python3 /tmp/racer.py & racer=$!
        for i in $(seq {starts}); do
            shifter --image=tiny --volume={volume} touch /mnt/x || echo failed
        done; : >/tmp/stop; wait $racer; rm /tmp/stop"
    );
    let output = Call::shell(&script).by(Alice).timeout(3000).output()?;
    let rounds = output.stdout.strip_prefix("rounds ").map(str::trim);
    let rounds: u32 = rounds.context(output.to_string())?.parse()?;
    ensure!(rounds >= tries, "{output}");
    site.tear_down("0")?.success()?;
    site.clean.ensure_restored(None)?;
    drop(server);
    Ok(())
}

/// S42: where a removed file keeps a name, nobody can tell who finds it: that is no place for caches.
#[test]
fn privileged_s42_a_file_that_keeps_a_name_is_not_used() -> Result<()> {
    let server = Squash::start(&["keep"])?;
    let site = server.site()?;
    let volume = "/scratch/squash/alice:/mnt:perNodeCache=size=1m,fs=ext4";
    let output = site.set_up(&with_volumes("17", &[volume]))?;
    ensure_refused(&output, 1, "still has a name after that was removed")?;
    let low = format!("{}/.caches", Squash::LOW);
    let left = Call::new(["find", &low, "-type", "f", "-printf", "%f %s\n"]).ok()?;
    ensure!(left.starts_with(".nfs") && left.ends_with(" 0\n"), "{left}");
    site.tear_down("17")?.success()?;
    site.clean.ensure_restored(None)?;
    drop(server);
    Ok(())
}
