//! The image manager's commands as users have them: through `shifter`, and through the site's sudo
//! rule.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::image::Recipe;
use shifter_tests::product::{CONFIG, Product, STORE};
use shifter_tests::registry::Registry;
use shifter_tests::world::User::{Alice, Bob};

use crate::bench::turn;

#[test]
fn install_image_commands_are_shifters_too() -> Result<()> {
    let _turn = turn()?;
    let product = Product::install()?;
    let commands = [
        "pull", "images", "lookup", "inspect", "rmi", "import", "load", "login", "logout", "gc",
        "verify",
    ];
    for command in commands {
        let help = product.shifter([command, "--help"]).by(Alice).ok()?;
        ensure!(
            help.starts_with("Pulls container images") && help.contains(command),
            "{command}: {help}"
        );
    }
    let completion = product.path("share/bash-completion/completions/shifter");
    let script = format!(
        "source {completion}; COMP_LINE='shifter pull --pla' COMP_POINT=18 COMP_CWORD=2
         COMP_WORDS=(shifter pull --pla); _shifter; echo \"${{COMPREPLY[@]}}\""
    );
    let found = Call::shell(&script).by(Alice).ok()?;
    ensure!(found == "--platform\n", "{found}");
    Ok(())
}

#[test]
fn install_pulls_through_sudo_keep_their_options() -> Result<()> {
    let _turn = turn()?;
    let product = Product::install()?;
    let registry = Registry::start(5000)?;
    let image = Recipe::tiny("c").build()?;
    let reference = registry.push(&image, "c:1")?;
    let run = product
        .shifter(["pull", "--json", "--user", "bob,0", "--group=proj"])
        .args(["--platform", "linux/amd64", &reference])
        .by(Alice)
        .output()?
        .success()?;
    let last: serde_json::Value = serde_json::from_str(run.stdout.lines().last().context("json")?)?;
    ensure!(last["event"] == "done" && last["id"] == image.id(), "{run}");
    ensure!(fs::exists(format!("{STORE}/{}.squashfs", image.id()))?);
    let run = product
        .shifter(["pull", "--platform=linux/riscv64", &reference])
        .by(Alice)
        .output()?;
    ensure!(run.code == 4 && run.stderr.contains("riscv64"), "{run}");
    // What the rule does not permit sudo refuses, and what it permits the program judges.
    let program = product.path("bin/shifterimg");
    for args in [
        &["pull", "--user=bob --config=/x", &reference][..],
        &["pull", "--user=-x", &reference],
        &["pull", "--platform=linux/amd64;id", &reference],
        &["import", "-", "custom:x"],
        &["gc"],
    ] {
        let call = Call::new(["sudo", "-n", "-u", "shifter", &program]);
        let run = call.args(args.iter().copied()).by(Alice).output()?;
        ensure!(
            run.stderr.contains("password is required"),
            "{args:?}: {run}"
        );
    }
    // Who may take away from the store is its owner alone.
    for args in [
        &["rmi", &reference][..],
        &["gc", "--store=site"],
        &["import", "--store=site", "-", "x"],
    ] {
        let run = product.shifter(args.iter().copied()).by(Alice).output()?;
        ensure!(
            run.code == 3 && run.stderr.contains("the site store belongs to"),
            "{args:?}: {run}"
        );
    }
    let seen = product.shifter(["images", "-q"]).by(Bob).ok()?;
    ensure!(seen.trim() == image.id(), "{seen}");
    Ok(())
}

#[test]
fn install_s74_files_are_read_without_privilege() -> Result<()> {
    let _turn = turn()?;
    let product = Product::install()?;
    let config = fs::read_to_string(CONFIG)?;
    // A machine without a site's store, where users have their own.
    let own = "path = '/var/lib/shifter/none'\nuser_images = 'kernel'";
    product.configure_with(&config.replacen("path = '/var/lib/shifter/images'", own, 1))?;
    let image = Recipe::tiny("imported").build()?;
    let script = format!(
        "mkfifo fifo && tar -C {0} -cf layout.tar oci-layout index.json blobs",
        image.layout().display()
    );
    Call::shell(&script).by(Alice).ok()?;
    let import = product
        .shifter(["import", "fifo", "custom:imported:1"])
        .by(Alice)
        .start("/tmp/import.log");
    let mut import = import?;
    let find = || {
        let found = Call::new(["pgrep", "-u", "alice", "-x", "shifterimg"]).output()?;
        Ok(found.stdout.trim().parse::<u32>().ok())
    };
    let pid = wait_for("the import", 20, find)?;
    let watcher = std::thread::spawn(move || {
        let mut seen = Vec::new();
        while let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
            let is_of = |line: &&str| line.starts_with("Uid:") || line.starts_with("CapEff:");
            let lines: Vec<String> = status.lines().filter(is_of).map(String::from).collect();
            // A process that has ended has no more lines of these than one that runs.
            seen.push(lines.join(" "));
            std::thread::sleep(Duration::from_micros(500));
        }
        seen
    });
    Call::shell("cat layout.tar >fifo").by(Alice).ok()?;
    let status = import.wait()?;
    let log = fs::read_to_string("/tmp/import.log")?;
    ensure!(status.success(), "{log}");
    let seen = watcher.join().ok().context("the watcher")?;
    ensure!(seen.len() > 5, "{seen:?}");
    for state in seen {
        ensure!(
            state == "Uid:\t2001\t2001\t2001\t2001 CapEff:\t0000000000000000",
            "{state}"
        );
    }
    let found = product
        .shifterimg(["lookup", "custom:imported:1"])
        .by(Alice)
        .ok()?;
    ensure!(found.trim() == image.id(), "{found}");
    let marker = product
        .shifter(["--image=custom:imported:1", "cat", "/etc/marker"])
        .by(Alice)
        .output()?;
    ensure!(marker.stdout == "imported\n", "{marker}");
    Ok(())
}
