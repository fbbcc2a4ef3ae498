//! What a task sees in its container.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::json;
use shifter_tests::call::{Call, wait_for};
use shifter_tests::image::Recipe;
use shifter_tests::product::CONFIG;
use shifter_tests::world::User::{Alice, Shifter};

use crate::bench::Bench;

#[test]
fn cluster_task_is_its_user_and_nothing_more() -> Result<()> {
    let bench = Bench::start()?;
    let show = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status";
    let output = bench
        .srun(Alice, &bench.a, &["shifter", "sh", "-c", show])?
        .success()?;
    let fields: Vec<(&str, Vec<&str>)> = output
        .stdout
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.split_whitespace().collect()))
        .collect();
    for (key, value) in fields {
        let expected: &[&str] = match key {
            "Uid" | "Gid" => &["2001"; 4],
            "Groups" => &["2001", "2100"],
            "NoNewPrivs" => &["1"],
            _ => &["0000000000000000"],
        };
        ensure!(value == expected, "{key}: {value:?}");
    }
    let tools = "cat /etc/shadow; ls /root /run/shifter; mount -t tmpfs x /mnt; touch /usr/new /etc/new; true";
    let output = bench
        .srun(Alice, &bench.a, &["shifter", "sh", "-c", tools])?
        .success()?;
    ensure!(output.stdout.is_empty(), "{output}");
    bench.ensure_clean()
}

#[test]
fn cluster_container_has_what_the_site_promises() -> Result<()> {
    let bench = Bench::start()?;
    let options = ["-N2", "-n3", &bench.a.option()];
    let script = "srun -N1 -n1 shifter sh -c '
        echo passwd; cat /etc/passwd; echo group; cat /etc/group
        echo hosts; cat /var/hostsfile; echo end
        echo x >/tmp/x && cat /tmp/x; echo y >/dev/null && echo null; ls -d /proc/self /sys/class
        pwd; touch here && echo touched'; ls here";
    let (job, info) = bench.cluster.run(Alice, &options, script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    let between = |from: &str, to: &str| -> Vec<&str> {
        let lines = output.lines().skip_while(|line| *line != from).skip(1);
        lines.take_while(|line| *line != to).collect()
    };
    let passwd = between("passwd", "group");
    ensure!(
        passwd.iter().any(|line| line.starts_with("alice:")),
        "{output}"
    );
    ensure!(
        !passwd.iter().any(|line| line.starts_with("bob:")),
        "{output}"
    );
    let group = between("group", "hosts");
    ensure!(
        group.iter().any(|line| line.starts_with("proj:x:2100:")),
        "{output}"
    );
    ensure!(between("hosts", "end") == ["n1", "n1", "n2"], "{output}");
    for line in [
        "x",
        "null",
        "/proc/self",
        "/sys/class",
        "/scratch/alice",
        "touched",
        "here",
    ] {
        ensure!(
            output.lines().any(|found| found == line),
            "no '{line}': {output}"
        );
    }
    bench.ensure_clean()
}

#[test]
fn cluster_environment_entrypoint_and_workdir_of_the_image() -> Result<()> {
    let bench = Bench::start()?;
    let image = Recipe::tiny("c")
        .file(
            "srv/run.sh",
            0o755,
            "#!/bin/sh\necho \"run.sh $* in $(pwd) with $COLOUR $SITE\"\n",
        )
        .env("COLOUR", "green")
        .set("WorkingDir", json!("/srv"))
        .set("Entrypoint", json!(["/srv/run.sh", "one"]))
        .set("Cmd", json!(["two"]))
        .build()?;
    bench.product.configure("[env]\nset = { SITE = 'here' }")?;
    let reference = bench.registry.push(&image, "c:1")?;
    bench
        .product
        .shifterimg(["pull", "--quiet", &reference])
        .by(Shifter)
        .ok()?;
    let option = format!("--image={reference}");
    let table: [(&[&str], &str); 4] = [
        (
            &["--entrypoint"],
            "run.sh one two in /scratch/alice with green here",
        ),
        (
            &["--workdir", "--entrypoint", "x"],
            "run.sh one x in /srv with green here",
        ),
        (&["--workdir=/tmp", "sh", "-c", "pwd"], "/tmp"),
        (&["-e", "COLOUR=blue", "sh", "-c", "echo $COLOUR"], "blue"),
    ];
    for (args, expected) in table {
        let call = bench.cluster.srun(Alice, [option.as_str(), "shifter"]);
        let output = call.args(args.iter().copied()).output()?;
        ensure!(
            output.code == 0 && output.stdout.trim() == expected,
            "{args:?}: {output}"
        );
    }
    bench.ensure_clean()
}

/// A tree of the site's is set up for a job as an image is, and needs no look-up.
#[test]
fn cluster_a_tree_of_the_site_is_a_jobs_image() -> Result<()> {
    let bench = Bench::start()?;
    let make = "mkdir -p /opt/chos && cp -a /var/lib/shifter/layouts/a/tree /opt/chos/sl6 &&
        echo sl6 >/opt/chos/sl6/etc/marker";
    Call::shell(make).ok()?;
    let text = fs::read_to_string(CONFIG)?;
    let trees = "[store]\ntrees = { sl6 = '/opt/chos/sl6' }";
    bench
        .product
        .configure_with(&text.replace("[store]", trees))?;
    let show = "shifter sh -c 'cat /etc/marker; echo $SHIFTER_IMAGE'";
    let options = ["--nodes=2", "--image=local:sl6"];
    let call = bench.cluster.srun(Alice, options);
    let output = call.args(["sh", "-c", show]).output()?.success()?;
    // The tasks of the two nodes write when they like.
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    ensure!(
        lines == ["local:sl6", "local:sl6", "sl6", "sl6"],
        "{output}"
    );
    bench.ensure_clean()
}

/// A cache is each node's own, stays from step to step, and goes with the job, whose space the
/// shared file system then has back.
#[test]
fn cluster_per_node_cache_lives_as_long_as_the_job() -> Result<()> {
    let bench = Bench::start_with(|product, _| {
        Call::new(["install", "-d", "-m", "0700", "/scratch/.caches"]).ok()?;
        product.configure("[per_node_cache.'/scratch']\ndir = '/scratch/.caches'")
    })?;
    let used = || Call::new(["df", "--output=used", "/scratch"]).ok();
    let before = used()?;
    let options = [
        "-N2",
        "--ntasks-per-node=1",
        &bench.a.option(),
        "--volume=/scratch/alice:/mnt:perNodeCache=size=300m",
    ];
    let script = "srun shifter sh -c 'cd /mnt; hostname >$(hostname); head -c 8m /dev/zero >fill'
        srun --label shifter sh -c 'cd /mnt; rm fill; ls; cat *; touch x-more'
        srun --label shifter sh -c 'ls /mnt; grep -c \" /mnt xfs rw,nosuid,nodev\" /proc/mounts'
        srun --label shifter stat -c %U:%a /mnt";
    let (job, info) = bench.cluster.run(Alice, &options, script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")
        .map_err(|error| error.context(output.clone()))?;
    for (task, node) in [(0, "n1"), (1, "n2")] {
        let label = format!("{task}: ");
        let lines = output.lines().filter_map(|line| line.strip_prefix(&label));
        let lines: Vec<&str> = lines.collect();
        let expected = [node, node, node, "x-more", "1", "alice:700"];
        ensure!(lines == expected, "{output}");
    }
    bench.ensure_clean()?;
    fs::remove_file(format!("/scratch/alice/slurm-{}.out", job.id()))?;
    wait_for("the space of the caches", 5, || {
        Ok((used()? == before).then_some(()))
    })
}

#[test]
fn cluster_ps_lists_the_jobs_containers_from_outside_and_from_inside() -> Result<()> {
    let bench = Bench::start()?;
    let script = "shifter sleep 301 & sleeper=$!
        until shifter ps --json >outside && grep -q 'sleep 301' outside; do sleep 0.05; done
        srun -N1 -n1 --overlap --autoshift shifter ps --json >inside
        srun -N1 -n1 --overlap shifter /opt/udiImage/bin/shifter ps
        shifter /opt/udiImage/bin/shifter doctor 2>&1; kill $sleeper";
    let (job, info) = bench
        .cluster
        .run(Alice, &["-N1", &bench.a.option()], script)?;
    let output = job.output()?;
    info.expect("COMPLETED", "0:0")?;
    let listed = |file: &str| -> Result<serde_json::Value> {
        let text = fs::read_to_string(Alice.scratch().join(file))?;
        let mut all: Vec<serde_json::Value> = serde_json::from_str(&text)?;
        ensure!(all.len() == 1, "{file}: {text}");
        Ok(all.remove(0))
    };
    let (outside, inside) = (listed("outside")?, listed("inside")?);
    for container in [&outside, &inside] {
        ensure!(
            container["job"] == job.id()
                && container["image"] == bench.a.reference
                && container["user"] == "alice",
            "{container}"
        );
    }
    ensure!(
        outside["namespace"] == inside["namespace"] && inside["command"] == "sleep 301",
        "{outside} {inside}"
    );
    let lines: Vec<&str> = output.lines().collect();
    ensure!(
        lines.len() == 4
            && lines[0].starts_with("CONTAINER ")
            && lines[1].contains(&bench.a.reference)
            && lines[2].starts_with("shifter: only commands"),
        "{output}"
    );
    bench.ensure_clean()
}
