//! `srun --x11`: windows of programs in containers, on the display of the host that submits.

use std::fs;
use std::process::Child;

use anyhow::{Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

const DISPLAY: &str = ":77";

/// A display of alice's that lets in only who has its cookie, as hers on the login host.
struct Display(Child);

impl Display {
    fn start() -> Result<Self> {
        let cookie = "xauth add :77 . $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n')";
        Call::new(["bash", "-c", cookie])
            .env("HOME", "/home/alice")
            .by(Alice)
            .ok()?;
        Call::shell("mkdir -p -m 1777 /tmp/.X11-unix").ok()?;
        let server = Call::new(["Xvfb", DISPLAY, "-screen", "0", "320x200x8", "-noreset"])
            .args(["-auth", "/home/alice/.Xauthority"])
            .by(Alice)
            .timeout(0)
            .start("/var/log/slurm/xvfb.out")?;
        let display = Self(server);
        wait_for("a display", 20, || {
            Ok(fs::exists("/tmp/.X11-unix/X77")?.then_some(()))
        })?;
        Ok(display)
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = fs::remove_file("/tmp/.X11-unix/X77");
    }
}

#[test]
fn cluster_x11_clients_in_containers_reach_the_users_display() -> Result<()> {
    let bench = Bench::start_with(|product, options| {
        product.configure("[store.trees]\nhost = '/'")?;
        options.slurm_conf = "PrologFlags=Alloc,Contain,X11".into();
        Ok(())
    })?;
    let display = Display::start()?;
    let srun = |args: &[&str]| {
        Call::new(["srun", "-wn1", "--x11", "--image=local:host"])
            .args(args.iter().copied())
            .env("DISPLAY", DISPLAY)
            .env("HOME", "/home/alice")
            .by(Alice)
            .timeout(60)
            .output()
    };
    // The node's own display, by way of Slurm, and nothing of the login host's.
    let look = "echo $DISPLAY; xauth list | wc -l; xdpyinfo | grep dimensions";
    for start in [&["shifter"][..], &["--autoshift"]] {
        let args = [start, &["bash", "-c", look]].concat();
        let output = srun(&args)?.success()?;
        let lines: Vec<&str> = output.stdout.lines().map(str::trim).collect();
        ensure!(
            lines.len() == 3
                && lines[0] != DISPLAY
                && lines[1] == "1"
                && lines[2].contains("320x200 pixels"),
            "{output}"
        );
    }
    // Without its cookie the display lets nobody in.
    let output = srun(&["shifter", "env", "XAUTHORITY=/dev/null", "xdpyinfo"])?;
    ensure!(output.code != 0, "{output}");
    drop(display);
    bench.ensure_clean()
}
