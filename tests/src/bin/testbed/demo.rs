//! The demo: an ordinary user takes an image from a registry to a job on two nodes.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use shifter_tests::cluster::Node;
use shifter_tests::report;
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::User;

use crate::site::Site;

const SCRIPT: &str = r#"
echo "batch script on $(hostname): $(. /etc/os-release; echo "$PRETTY_NAME")"
srun shifter python3 /mnt/show.py
srun -N1 -n1 shifter --workdir --entrypoint
"#;

const SHOW: &str = r#"import os, pwd, socket
node = socket.gethostname()
release = dict(line.rstrip().replace('"', "").split("=", 1) for line in open("/etc/os-release"))["PRETTY_NAME"]
me = pwd.getpwuid(os.getuid())
open(f"/mnt/from-{node}", "w").write(open("/mnt/input").read().upper())
print(f"{node}: {release}, uid={me.pw_uid}({me.pw_name}) groups={sorted(os.getgroups())}, "
      f"GREETING={os.environ.get('GREETING')!r}, wrote /mnt/from-{node}")
"#;

/// Shows it, and fails if anything is not as it must be.
pub fn run() -> Result<()> {
    report::line("Shifter: an ordinary user, one image, two nodes\n");
    let site = Site::start()?;
    let (user, reference) = (User::Alice, site.reference.as_str());
    let data = user.scratch().join("data");
    fs::create_dir(&data)?;
    fs::write(data.join("input"), "hello from the volume")?;
    fs::write(data.join("show.py"), SHOW)?;
    std::os::unix::fs::chown(&data, Some(user.uid()), Some(user.gid()))?;

    let pulled = site
        .product
        .shifterimg(["pull", reference])
        .by(user)
        .output()?
        .success()?;
    report::step("alice: shifter pull", pulled.took, reference);
    let found = site.product.shifter(["lookup", reference]).by(user).ok()?;
    ensure!(
        found.trim() == site.image.id(),
        "lookup says '{found}', not {}",
        site.image.id()
    );

    let before = Snapshot::take(Some(&site.cluster))?;
    let volume = format!("--volume={}:/mnt", data.display());
    let options = [
        "-N2",
        "--ntasks-per-node=1",
        &format!("--image={reference}"),
        &volume,
    ];
    report::line(&format!("\n  alice: sbatch {} job.sh", options.join(" ")));
    let began = Instant::now();
    let job = site.cluster.submit(user, &options, SCRIPT)?;
    report::step(
        "submitted",
        began.elapsed(),
        &format!("job {}, image {}", job.id(), &found[..12]),
    );
    let info = job.wait()?;
    let ended = began.elapsed();
    for node in site.cluster.nodes() {
        report::line(&format!(
            "  {:<34} {:>7}   {}",
            "root set up",
            set_up(node),
            node.name()
        ));
    }
    report::step(
        "ended",
        ended,
        &format!("{} {}", info.state(), info.exit_code()),
    );
    let output = job.output()?;
    report::line("");
    report::quote(&output);
    report::line("");
    info.expect("COMPLETED", "0:0")?;
    for expected in [
        "n1: Debian",
        "n2: Debian",
        "uid=2001(alice)",
        "'hello from the image'",
        "2100",
        "ENTRYPOINT and CMD say: nothing but the default",
        "in /srv/sample",
    ] {
        ensure!(
            output.contains(expected),
            "the job did not print '{expected}'"
        );
    }
    for node in ["n1", "n2"] {
        let file = data.join(format!("from-{node}"));
        let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        ensure!(
            text == "HELLO FROM THE VOLUME",
            "{} has '{text}'",
            file.display()
        );
    }

    let restored = before.ensure_restored(Some(&site.cluster));
    let after = Snapshot::take(Some(&site.cluster))?;
    let count = |kind| before.left(&after, kind);
    report::line(&format!(
        "  left on the nodes: {} mounts, {} loop devices, {} processes, {} files in /run/shifter",
        count("mount"),
        count("loop"),
        count("process"),
        count("file"),
    ));
    restored?;
    site.cluster.ensure_in_service()?;
    report::line("  everything is as it must be");
    Ok(())
}

/// Returns how long the root took, as the plugin noted it in slurmd's log.
fn set_up(node: &Node) -> String {
    let log = node.log();
    let line = log
        .lines()
        .rev()
        .find_map(|line| line.split_once(" ready in "));
    let time = line.and_then(|(_, rest)| rest.split_once(" ms"));
    time.map_or("?".into(), |(time, _)| format!("{time} ms"))
}
