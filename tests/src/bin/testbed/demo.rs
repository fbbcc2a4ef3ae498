//! The demo: an ordinary user takes an image from a registry to a job on two nodes.

use std::fs;
use std::path::Path;
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
lines = open("/etc/os-release").read().replace('"', "").splitlines()
release = dict(line.split("=", 1) for line in lines)["PRETTY_NAME"]
me = pwd.getpwuid(os.getuid())
open(f"/mnt/from-{node}", "w").write(open("/mnt/input").read().upper())
print(f"{node}: {release}, uid={me.pw_uid}({me.pw_name}) groups={sorted(os.getgroups())}, "
      f"GREETING={os.environ.get('GREETING')!r}, wrote /mnt/from-{node}")
"#;

/// What the job's output must say.
const EXPECTED: [&str; 7] = [
    "n1: Debian",
    "n2: Debian",
    "uid=2001(alice)",
    "groups=[2001, 2100]",
    "'hello from the image'",
    "ENTRYPOINT and CMD say: nothing but the default",
    "in /srv/sample",
];

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
    let before = Snapshot::take(Some(&site.cluster))?;

    pull(&site, user)?;
    let volume = format!("--volume={}:/mnt", data.display());
    let image = format!("--image={reference}");
    let options = ["-N2", "--ntasks-per-node=1", &image, &volume];
    report::line(&format!("\n  alice$ sbatch {} job.sh", options.join(" ")));
    let began = Instant::now();
    let job = site.cluster.submit(user, &options, SCRIPT)?;
    report::step("submitted", began.elapsed(), &format!("job {}", job.id()));
    let info = job.wait()?;
    let ended = began.elapsed();
    for node in site.cluster.nodes() {
        let what = format!("{}: container set up", node.name());
        report::timed(&what, &set_up(node), "by the job's prolog");
    }
    let result = format!("{}, exit code {}", info.state(), info.exit_code());
    report::step("job ended", ended, &result);
    let output = job.output()?;
    report::line("");
    report::quote(&output);
    report::line("");
    info.expect("COMPLETED", "0:0")?;
    for expected in EXPECTED {
        ensure!(
            output.contains(expected),
            "the job did not print '{expected}'"
        );
    }
    ensure_written(&data)?;

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
    report::line("  all as it must be");
    Ok(())
}

/// Pulls the sample image into the site's store, as the user.
fn pull(site: &Site, user: User) -> Result<()> {
    let reference = site.reference.as_str();
    report::line(&format!("\n  alice$ shifter pull {reference}"));
    let pulled = site.product.shifter(["pull", reference]).by(user);
    let pulled = pulled.output()?.success()?;
    let lookup = site
        .product
        .shifter(["lookup", "--json", reference])
        .by(user);
    let found: serde_json::Value = serde_json::from_str(&lookup.ok()?)?;
    ensure!(
        found["id"] == site.image.id() && found["store"] == "site",
        "the image is not in the site's store: {found}"
    );
    let megabytes = found["size"].as_u64().context("size")? / 1_000_000;
    let result = format!("{:.12}, {megabytes} MB", site.image.id());
    report::step("into the site's store", pulled.took, &result);
    Ok(())
}

fn ensure_written(data: &Path) -> Result<()> {
    for node in ["n1", "n2"] {
        let file = data.join(format!("from-{node}"));
        let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        ensure!(
            text == "HELLO FROM THE VOLUME",
            "{} has '{text}'",
            file.display()
        );
    }
    Ok(())
}

/// Returns how long the set-up took, as the plugin noted it in slurmd's log.
fn set_up(node: &Node) -> String {
    let log = node.log();
    let line = log
        .lines()
        .rev()
        .find_map(|line| line.split_once(" ready in "));
    let time = line.and_then(|(_, rest)| rest.split_once(" ms"));
    time.map_or("?".into(), |(time, _)| format!("{time} ms"))
}
