//! `--entrypoint`: the image's own entry point starts a job's commands.

use anyhow::{Result, ensure};
use serde_json::json;
use shifter_tests::call::Call;
use shifter_tests::image::Recipe;
use shifter_tests::job::of_tasks;
use shifter_tests::world::User::Alice;

use crate::bench::{Bench, stored_as};

/// Says with what it was started, then becomes that.
const ENTRY: &str = "#!/bin/sh\necho \"entry:$#:$1:${2##*/}\"\nshift\nexec \"$@\"\n";

#[test]
fn cluster_entrypoint_starts_tasks_scripts_and_commands() -> Result<()> {
    let bench = Bench::start()?;
    let recipe = Recipe::tiny("entry")
        .set("Entrypoint", json!(["/bin/entry", "a b"]))
        .file("bin/entry", 0o755, ENTRY);
    let image = stored_as(&bench.product, &bench.registry, "entry", recipe)?;
    let option = image.option();
    let entered = [option.as_str(), "--entrypoint"];

    // Where the script is on the host, what it starts in the container; single steps without.
    let script = "echo one; shifter echo two; srun shifter echo three
        srun --autoshift printf '%s|' 'x y' '' z; echo; srun --entrypoint=no shifter echo four
        srun --autoshift --entrypoint=no echo five; shifter --entrypoint=/bin/busybox echo six
        shifter --entrypoint= echo seven
        srun --autoshift sh -c 'echo $SHIFTER_ENTRYPOINT${SHIFTER_TASK+told}; exit 7' 2>/dev/null; echo $?
        srun --autoshift nowhere 2>/dev/null; echo $?";
    let (job, info) = bench.cluster.run(Alice, &entered, script)?;
    let output = of_tasks(&job.output()?);
    info.expect("COMPLETED", "0:0")?;
    let expected = "one\nentry:3:a b:echo\ntwo\nentry:3:a b:echo\nthree\n\
        entry:6:a b:printf\nx y||z|\nfour\nfive\nsix\nseven\nentry:4:a b:sh\n1\n7\n\
        entry:2:a b:nowhere\n127\n";
    ensure!(output == expected, "{output}\ninstead of\n{expected}");

    // Where it is inside, it is started by it, with its arguments; what it starts is not.
    let inside = [
        &entered[..],
        &["--autoshift", "--wrap", "echo own; shifter echo two"],
    ]
    .concat();
    let (job, info) = bench.cluster.run(Alice, &inside, "")?;
    info.expect("COMPLETED", "0:0")?;
    let expected = "entry:2:a b:slurm_script\nown\ntwo\n";
    ensure!(job.output()? == expected, "{}", job.output()?);

    // Of an allocation, whose shell is on the login host; that of a batch script's step above is 1.
    let shell = [
        "salloc",
        "--quiet",
        &option,
        "--entrypoint",
        "shifter",
        "echo",
        "two",
    ];
    let output = Call::new(shell).by(Alice).output()?.success()?;
    ensure!(output.stdout == "entry:3:a b:echo\ntwo\n", "{output}");
    // It has left the image's hint to the next teardown.
    Call::new([&*bench.product.path("sbin/unsetupRoot"), "0"]).ok()?;

    // What cannot be, and an image that has none.
    std::fs::write("/scratch/programs", "0 echo zero\n1 /bin/echo one\n")?;
    let programs = ["--entrypoint", "-n2", "--multi-prog", "/scratch/programs"];
    let words = [&["--autoshift"], &programs[..]].concat();
    let output = bench.srun(Alice, &image, &words)?;
    let line = "shifter: cannot start the task by the image's entry point: \
                with --multi-prog each has a program of its own";
    ensure!(
        output.code != 0 && output.stdout.is_empty() && output.stderr.contains(line),
        "{output}"
    );
    for way in [&["--autoshift"][..], &["shifter"]] {
        let words = [&["--entrypoint"], way, &["cat", "/etc/marker"]].concat();
        let output = bench.srun(Alice, &bench.a, &words)?.success()?;
        ensure!(output.stdout == "a\n", "{output}");
    }
    let refused = bench.srun(Alice, &image, &["--entrypoint=/bin/sh", "true"])?;
    let line = "shifter: --entrypoint is given alone, or with =yes or =no";
    ensure!(
        refused.code != 0 && refused.stderr.contains(line),
        "{refused}"
    );
    bench.ensure_clean()
}
