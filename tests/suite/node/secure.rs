//! What every security case asserts beside its own: the contract of a refusal, and that the host,
//! its secrets and the other users have not noticed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, Output, wait_for};
use shifter_tests::product::STORE;
use shifter_tests::snapshot::loop_devices;

use super::{Site, ensure_refused, store_image};

/// Files that nobody's start may change, nor show to a user.
const WATCHED: [&str; 5] = [
    "/root/canary",
    "/home/bob/private/secret",
    "/etc/passwd",
    "/etc/shadow",
    "/etc/ld.so.preload",
];

const SECRET: &str = "THE-CANARY-SINGS";

/// True where `make test-long` asks for the full numbers.
pub fn is_long() -> bool {
    std::env::var_os("SHIFTER_LONG_TESTS").is_some()
}

/// A site with canaries, and what its host looked like before.
pub struct Guard {
    pub site: Site,
    host: Host,
}

#[derive(PartialEq, Eq)]
struct Host {
    mounts: Vec<String>,
    loops: Vec<String>,
    files: Vec<Option<(Vec<u8>, u32)>>,
    cores: Vec<String>,
}

impl Host {
    fn look() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        // The state's own tmpfs comes with the first start and goes with the last teardown.
        let mounts = mounts
            .lines()
            .filter(|line| !line.contains(" /run/shifter "));
        let file = |path: &str| {
            let mode = fs::metadata(path).ok()?.permissions().mode();
            Some((fs::read(path).ok()?, mode))
        };
        let mut cores = Vec::new();
        for dir in [
            "/",
            "/tmp",
            "/scratch/alice",
            "/home/alice",
            "/var/lib/shifter",
        ] {
            for entry in fs::read_dir(dir)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name == "core" || name.starts_with("core.") {
                    cores.push(format!("{dir}/{name}"));
                }
            }
        }
        Ok(Self {
            mounts: mounts.map(str::to_owned).collect(),
            loops: loop_devices()?,
            files: WATCHED.map(file).into(),
            cores,
        })
    }
}

impl Guard {
    pub fn prepare() -> Result<Self> {
        Call::shell(&format!(
            "echo {SECRET} >/root/canary; chmod 0600 /root/canary
            install -d -o bob -g bob -m 0700 /home/bob/private
            echo {SECRET} >/home/bob/private/secret; chown bob: /home/bob/private/secret
            rm -rf /scratch/alice/* /tmp/hostile; echo core >/dev/null"
        ))
        .ok()?;
        // What an earlier test in this world had attached is about to be freed.
        let is_free = || Ok(loop_devices()?.is_empty().then_some(()));
        wait_for("the loop devices of earlier tests", 5, is_free)?;
        let site = Site::prepare()?;
        let host = Host::look()?;
        Ok(Self { site, host })
    }

    /// Accepts the host as it is now, after a test has changed it on purpose.
    pub fn rebase(&mut self) -> Result<()> {
        // What is attached at this moment may be on its way out.
        let loops = std::mem::take(&mut self.host.loops);
        self.host = Host {
            loops,
            ..Host::look()?
        };
        Ok(())
    }

    /// Fails unless the host is as it was. Loop devices may take a moment to be freed.
    pub fn unchanged(&self) -> Result<()> {
        let same = || Ok((Host::look()?.loops == self.host.loops).then_some(()));
        wait_for("the loop devices to be freed", 5, same)?;
        let now = Host::look()?;
        let new = now
            .mounts
            .iter()
            .filter(|line| !self.host.mounts.contains(line));
        ensure!(
            now.mounts == self.host.mounts,
            "mounts of the host changed: {:?}",
            new.collect::<Vec<_>>()
        );
        for (at, path) in WATCHED.iter().enumerate() {
            ensure!(now.files[at] == self.host.files[at], "{path} changed");
        }
        ensure!(now.cores == self.host.cores, "core files: {:?}", now.cores);
        Ok(())
    }

    /// Fails if a program's words break the contract, however it ended: no panic, no control
    /// characters, no secret, nothing of its own on standard output.
    pub fn well_spoken(&self, output: &Output) -> Result<()> {
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(!said.contains("panicked at"), "{output}");
        ensure!(!said.contains(SECRET), "a secret was shown: {output}");
        let is_control = |c: char| c.is_control() && c != '\n' && c != '\t';
        ensure!(
            !output.stderr.contains(is_control),
            "control characters: {:?}",
            output.stderr
        );
        Ok(())
    }

    /// Fails unless the program was refused as documented: the code; at most two lines,
    /// `program: …` with `words` in it and `hint: …`; nothing on standard output; and the host is
    /// as it was.
    pub fn refused(&self, output: &Output, code: i32, words: &str) -> Result<()> {
        ensure!(output.code == code, "code {code} expected: {output}");
        self.refused_somehow(output)?;
        ensure!(
            output.stderr.contains(words),
            "'{words}' expected: {output}"
        );
        Ok(())
    }

    /// The same with any documented code.
    pub fn refused_somehow(&self, output: &Output) -> Result<()> {
        ensure!(
            (1..=7).contains(&output.code) || [126, 127].contains(&output.code),
            "{output}"
        );
        ensure_refused(output, output.code, "")?;
        self.well_spoken(output)?;
        self.unchanged().with_context(|| output.to_string())
    }

    /// Fails unless the program either did its work or was refused as documented.
    pub fn done_or_refused(&self, output: &Output) -> Result<()> {
        if output.code != 0 {
            return self.refused_somehow(output);
        }
        self.well_spoken(output)?;
        self.unchanged().with_context(|| output.to_string())
    }

    /// Ends the test: nothing at all may be left.
    pub fn finish(self) -> Result<()> {
        self.site.tear_down("0")?.success()?;
        self.unchanged()?;
        self.site.clean.ensure_restored(None)
    }

    /// Puts a variation of the tiny image into the store under `name`; `change` works on its tree.
    /// The id is made of the name's first letter.
    pub fn image(&self, name: &str, change: impl FnOnce(&Path) -> Result<()>) -> Result<String> {
        let tree = Path::new("/tmp/hostile");
        Call::shell("rm -rf /tmp/hostile; cp -a /var/lib/shifter/layouts/tiny/tree /tmp/hostile")
            .ok()?;
        change(tree)?;
        let id = format!(
            "{:0>64x}",
            name.bytes()
                .fold(7_u64, |n, b| n.wrapping_mul(131) + u64::from(b))
        );
        // A new inode: what is still attached from an earlier image of this name keeps its own.
        Call::new(["rm", "-f", &format!("{STORE}/{id}.squashfs")]).ok()?;
        store_image(tree, &id, name)?;
        Ok(id)
    }
}

/// Counts what the kernel has said of troubles of its own: not of programs that died, also those of
/// other worlds, of which it says "traps: ... general protection fault".
pub fn kernel_troubles() -> Result<usize> {
    let log = Call::new(["dmesg"]).output()?.stdout;
    let marks = [
        "BUG:",
        "kernel BUG",
        "Oops",
        "WARNING: CPU",
        "general protection",
        "KASAN",
    ];
    let of_kernel = log.lines().filter(|line| !line.contains("traps: "));
    Ok(of_kernel
        .filter(|line| marks.iter().any(|mark| line.contains(mark)))
        .count())
}

/// Builds a C program, static, as `/tmp/NAME`.
pub fn compile(name: &str, source: &str) -> Result<String> {
    let path = format!("/tmp/{name}");
    Call::new(["gcc", "-static", "-O1", "-x", "c", "-o", &*path, "-"])
        .input(source)
        .ok()?;
    Ok(path)
}

/// Prepares to run a Python script, as a user with `by`.
pub fn python(script: &str) -> Call {
    Call::new(["/usr/bin/python3", "-c", script])
}

/// A cgroup as Slurm makes it for a step of alice's job, removed at the end.
pub struct Step {
    group: String,
}

impl Step {
    pub fn new(job: &str) -> Result<Self> {
        let group = format!("/sys/fs/cgroup/freezer/slurm/uid_2001/job_{job}/step_0");
        fs::create_dir_all(&group)?;
        Ok(Self { group })
    }

    /// Prepares to run a program as alice in the step.
    pub fn call<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Call {
        let script = format!(
            "echo $$ >{}/cgroup.procs; exec setpriv --reuid 2001 --regid 2001 --init-groups \
             --reset-env env PATH=/opt/shifter/bin:/usr/bin:/bin \"$@\"",
            self.group
        );
        Call::new(["bash", "-c", &*script, "step"])
            .args(argv)
            .cwd("/tmp")
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        let remove = "cd /sys/fs/cgroup/freezer && rmdir -p";
        let below = self.group.trim_start_matches("/sys/fs/cgroup/freezer/");
        let _ = Call::shell(&format!("{remove} {below}")).output();
    }
}
