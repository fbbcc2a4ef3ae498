//! Modules in jobs: what the site defines reaches every node.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use shifter_tests::call::wait_for;
use shifter_tests::product::CONFIG;
use shifter_tests::world::User::Alice;

use crate::bench::Bench;

#[test]
fn cluster_modules_reach_every_node_and_defaults_apply() -> Result<()> {
    let bench = Bench::start_with(|product, _| {
        fs::create_dir_all("/opt/site/data")?;
        fs::write("/opt/site/data/file", "data\n")?;
        // What it mounts is seen in the container alone.
        let hook = "#!/bin/sh\nmount -t tmpfs none \"$SHIFTER_ROOT/mnt\" && \
                    echo hook $SHIFTER_MODULE $SHIFTER_USER $(hostname) >mnt/hook\n";
        fs::write("/opt/site/hook", hook)?;
        fs::set_permissions("/opt/site/hook", fs::Permissions::from_mode(0o755))?;
        product.configure(
            "[module.data]\nsite_mounts = ['/opt/site/data:/sitedata:ro']\nenv.set = { A = 'data' }\n\
             root_hook = ['/opt/site/hook']\n[module.plain]\nenv.set = { B = 'plain' }\n",
        )?;
        let text = fs::read_to_string(CONFIG)?;
        product.configure_with(&format!("default_modules = ['plain']\n{text}"))
    })?;
    let show = "srun -N2 -n2 --label shifter sh -c 'echo $A,$B,$SHIFTER_MODULE $(cat /sitedata/file /mnt/hook 2>/dev/null)'
        shifter sh -c 'echo $A,$B,$SHIFTER_MODULE'";
    let image = bench.a.option();
    let table = [
        (
            vec!["--module=data"],
            "0: data,,data data hook data alice n1\n1: data,,data data hook data alice n2\n\
             data,,data\n",
        ),
        (
            vec!["--module=data", "--module=plain"],
            "0: data,plain,data,plain data hook data alice n1\n\
             1: data,plain,data,plain data hook data alice n2\ndata,plain,data,plain\n",
        ),
        (vec![], "0: ,plain,plain\n1: ,plain,plain\n,plain,plain\n"),
        (vec!["--module=none"], "0: ,,\n1: ,,\n,,\n"),
    ];
    for (modules, expected) in table {
        let options = [vec!["-N2", "--ntasks-per-node=1", &image], modules.clone()].concat();
        let (job, info) = bench.cluster.run(Alice, &options, show)?;
        let output = job.output()?;
        info.expect("COMPLETED", "0:0")?;
        // In a batch script SHIFTER_MODULE says "none", in a task nothing.
        let output = output.replace(",,none", ",,");
        let mut lines: Vec<&str> = output.lines().collect();
        lines[..2].sort_unstable();
        let output = lines.join("\n") + "\n";
        ensure!(output == expected, "{modules:?}: {output}");
    }
    let output = bench.srun(
        Alice,
        &bench.a,
        &["-N2", "shifter", "sh", "-c", "echo $A,$B"],
    )?;
    ensure!(output.success()?.stdout == ",plain\n,plain\n");
    let refused = bench.srun(
        Alice,
        &bench.a,
        &["--module=data,nosuch", "shifter", "true"],
    )?;
    ensure!(
        refused.code != 0
            && refused
                .stderr
                .contains("module 'nosuch' does not exist here"),
        "{refused}"
    );
    bench.ensure_clean()
}

/// A hook that fails is the site's failure: the node says so and takes no more jobs.
#[test]
fn cluster_a_failing_hook_drains_the_node_with_the_reason() -> Result<()> {
    let bench = Bench::start_with(|product, _| {
        fs::create_dir_all("/opt/site")?;
        fs::write(
            "/opt/site/fail",
            "#!/bin/sh\necho no licence server\nexit 4\n",
        )?;
        fs::set_permissions("/opt/site/fail", fs::Permissions::from_mode(0o755))?;
        product.configure("[module.m]\nroot_hook = ['/opt/site/fail']\n")
    })?;
    let options = [
        "--nodelist=n1",
        "--no-requeue",
        &bench.a.option(),
        "--module=m",
    ];
    bench
        .cluster
        .submit(Alice, &options, "shifter echo started")?;
    let drained = || {
        let states = bench.cluster.states()?;
        Ok(states
            .into_iter()
            .find(|state| state.starts_with("n1 drain")))
    };
    wait_for("n1 to be drained", 20, drained)?;
    let log = bench.cluster.node("n1")?.log();
    let reason =
        "hook '/opt/site/fail' of module 'm' failed: it ended with exit code 4: no licence server";
    ensure!(log.contains(reason), "{log}");
    Ok(())
}
