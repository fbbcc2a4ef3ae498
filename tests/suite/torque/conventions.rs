//! Who else calls the hooks, and how: sites' own scripts, sisters, users with qdel, a command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use shifter_tests::mom::{self, Hook, Manner};
use shifter_tests::sandbox::Sandbox;
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::Alice;

use super::failures::before;
use super::{HOOKS, PDSH, STATE, Site};

const LIB: &str = "/opt/shifter/lib/shifter/torque";

/// The further hooks that a mom can have of ours.
const MORE_HOOKS: [(&str, &str); 3] = [
    ("prologue.parallel", "/opt/shifter/sbin/shifter-prologue"),
    ("epilogue.parallel", "/opt/shifter/sbin/shifter-epilogue"),
    ("epilogue.precancel", "/opt/shifter/sbin/shifter-epilogue"),
];

fn has_root(node: &Sandbox, job: &str) -> Result<bool> {
    let pin = format!("/run/shifter/jobs/{job}/roots/job/mnt");
    Ok(fs::exists(node.path(&pin))?)
}

/// Runs a program as root and returns its exit status and what it says.
fn exit_of(node: &Sandbox, argv: &[&str]) -> Result<(i32, String)> {
    let ran = node.call(argv.iter().copied()).output()?;
    ensure!(ran.stdout.is_empty(), "{ran}");
    Ok((ran.code, ran.stderr))
}

#[test]
fn privileged_torque_script_of_a_cray_names_reservation_and_nodes() -> Result<()> {
    let lines = format!("fanout_command = {PDSH}");
    let site = Site::start_named(&["login1", "nid00020", "nid00021"], &lines)?;
    let job = TorqueJob::new("3.server", Alice, &["login1"]).variable("UDI", "tiny");
    site.server.knows(&job)?;
    let login = site.nodes.node("login1")?;
    let prologue = format!("{LIB}/cray-shifter-prologue");
    let call = [&*prologue, "3.server", "alice", "alice", "4711", "20-21"];
    // The script is part of the mom's prologue, and hands its environment on; or it does not.
    for gres in [Some("shifter16"), None] {
        let called = login.call(call);
        let called = match gres {
            Some(gres) => called.env("PBS_RESOURCE_GRES", gres),
            None => called,
        };
        let ran = called.output()?.success()?;
        ensure!(ran.stdout.is_empty() && ran.stderr.is_empty(), "{ran}");
        for node in ["nid00020", "nid00021"] {
            let seen = site.look(node, &job, "cat /etc/marker /var/hostsfile")?;
            ensure!(seen == "tiny\nnid00020\nnid00021\n", "{node}: {seen}");
        }
        ensure!(!has_root(login, "3.server")?, "where nobody computes");
        let epilogue = format!("{LIB}/cray-shifter-epilogue");
        let ended = exit_of(
            login,
            &[&epilogue, "3.server", "alice", "alice", "4711", "20-21"],
        )?;
        ensure!(ended == (0, String::new()), "{ended:?}");
        site.ensure_clean()?;
    }
    for nids in ["20-$(id)", "21-20", "20,,21", "0-4000000000"] {
        let (code, said) = exit_of(
            login,
            &[&prologue, "3.server", "alice", "alice", "4711", nids],
        )?;
        ensure!(code == 1 && !said.is_empty(), "{nids}: {said}");
    }
    site.ensure_clean()
}

#[test]
fn privileged_torque_scripts_of_the_c_shifter_name_image_volumes_and_nodes() -> Result<()> {
    let site = Site::start(2)?;
    let first = site.nodes.node("t1")?;
    let prologue = format!("{LIB}/udiRoot-prologue");
    let epilogue = format!("{LIB}/udiRoot-epilogue");
    let begin = |more: &[&str]| exit_of(first, &[&[&*prologue, "5", "alice"], more].concat());
    let began = begin(&[
        "docker",
        "tiny:latest",
        "-v",
        "/scratch/alice:/data",
        "-m",
        "local",
        "-n",
        "t1 t2",
        "-N",
        "16",
    ])?;
    ensure!(began == (0, String::new()), "{began:?}");
    let job = TorqueJob::new("5", Alice, &["t1", "t2"]);
    for node in ["t1", "t2"] {
        let seen = site.look(
            node,
            &job,
            "cat /etc/marker /var/hostsfile; stat -c %U /data",
        )?;
        ensure!(seen == "tiny\nt1\nt2\nalice\n", "{node}: {seen}");
    }
    ensure!(site.server.calls("qstat") == 0, "the call says it all");
    for _ in 0..2 {
        let ended = exit_of(first, &[&epilogue, "5", "alice", "-m", "local"])?;
        ensure!(ended == (0, String::new()), "{ended:?}");
        site.ensure_clean()?;
    }
    // The reference said the opposite of what came of it.
    for more in [
        &["docker", "nowhere:1", "-n", "t1 t2"][..],
        &["docker", "tiny", "-v", "/etc:/etc", "-n", "t1 t2"],
        &["docker", "tiny", "-n", "t1 $(id)"],
        &["docker"],
        &["docker", "tiny", "-m", "else"],
    ] {
        let (code, said) = begin(more)?;
        ensure!(
            code == 1 && said.starts_with("shifter: "),
            "{more:?}: {said}"
        );
        site.ensure_clean()?;
    }
    Ok(())
}

#[test]
fn privileged_torque_parallel_hooks_clean_their_own_node_and_never_fail() -> Result<()> {
    let site = Site::start(2)?;
    for node in site.nodes.nodes() {
        mom::install(node, &[&HOOKS[..], &MORE_HOOKS].concat())?;
    }
    let (first, second) = (site.nodes.node("t1")?, site.nodes.node("t2")?);
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    let on = |node, hook| mom::run(node, hook, &job, Manner::default());
    // Before any job there is nothing to do.
    on(second, Hook::PrologueParallel)?.expect(0)?;
    site.begin(&job)?.expect(0)?;
    // qdel: it runs as the user, and everything else comes anyway.
    on(first, Hook::EpiloguePrecancel)?.expect(0)?;
    site.ensure_ready(&job, true)?;
    // What is there of an earlier run, and of this one.
    for hook in [Hook::PrologueParallel, Hook::EpilogueParallel] {
        on(second, hook)?.expect(0)?;
        ensure!(
            has_root(first, &job.id)? && !has_root(second, &job.id)?,
            "{hook:?}"
        );
        site.end(&job)?.expect(0)?;
        site.ensure_clean()?;
        site.begin(&job)?.expect(0)?;
    }
    // One that fails is noted where an administrator looks, and the node stays in service.
    before("unsetupRoot", "echo words >&2; exit 1")?;
    for hook in [Hook::PrologueParallel, Hook::EpilogueParallel] {
        let noted = second.path(&format!("{STATE}/failed"));
        let _ = fs::remove_file(&noted);
        on(second, hook)?.expect(0)?;
        let noted = fs::read_to_string(&noted)?;
        ensure!(noted.contains("job 3.server of alice: "), "{noted}");
    }
    before("unsetupRoot", "")?;
    ensure!(has_root(second, &job.id)?);
    site.end(&job)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_hooks_are_told_apart_by_a_flag_too() -> Result<()> {
    let site = Site::start(2)?;
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]).variable("UDI", "tiny");
    let second = site.nodes.node("t2")?;
    let epilogue = "/opt/shifter/sbin/shifter-epilogue";
    site.begin(&job)?.expect(0)?;
    for (role, words, code, is_left) in [
        (
            "--as=epilogue.precancel",
            &["3.server", "alice"][..],
            0,
            true,
        ),
        ("--as=epilogue.user", &["3.server", "alice"], 0, true),
        // How they are called puts no node out of service either.
        ("--as=epilogue.parallel", &["$(id)", "alice"], 0, true),
        ("--as=prologue.parallel", &[], 0, true),
        ("--as=epilogue", &["$(id)", "alice"], 1, true),
        ("--as=other", &["3.server", "alice"], 1, true),
        ("--else", &["3.server", "alice"], 1, true),
        ("--as=prologue.parallel", &["3.server", "alice"], 0, false),
    ] {
        let ended = exit_of(second, &[&[epilogue, role], words].concat())?;
        ensure!(ended.0 == code, "{role} {words:?}: {ended:?}");
        ensure!(has_root(second, &job.id)? == is_left, "{role} {words:?}");
    }
    site.end(&job)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_shiftrun_starts_programs_with_the_launcher_that_is_there() -> Result<()> {
    let site = Site::start(1)?;
    // No Cray, whatever ran in this world before.
    let _ = fs::remove_dir_all("/opt/cray");
    let job = TorqueJob::new("3.server", Alice, &["t1"]).variable("UDI", "tiny");
    site.begin(&job)?.expect(0)?;
    let launchers = "/scratch/alice/launchers";
    fs::create_dir_all(launchers)?;
    for name in ["aprun", "srun"] {
        let path = format!("{launchers}/{name}");
        fs::write(&path, "#!/bin/sh\necho \"${0##*/}:$CRAY_ROOTFS:$*\"\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let plain = "/opt/shifter/bin:/usr/bin:/bin".to_owned();
    let with = format!("{launchers}:{plain}");
    let node = site.nodes.node("t1")?;
    let run = |path: &str, env: &[(&str, &str)], words: &[&str]| {
        let call = node.call(["/opt/shifter/bin/shiftrun"]);
        let call = call.args(words.iter().copied()).by(Alice).env("PATH", path);
        let add =
            |call: shifter_tests::call::Call, (name, value): &(&str, &str)| call.env(name, *value);
        env.iter().fold(call, add).output()
    };
    let pbs = ("PBS_JOBID", "3.server");
    let inside = run(&plain, &[pbs], &["cat", "/etc/marker"])?;
    ensure!(inside.code == 0 && inside.stdout == "tiny\n", "{inside}");
    let words = ["-n", "4", "-N", "2", "cat", "a b"];
    for (env, expected) in [
        (&[pbs][..], "aprun:SHIFTER:-b -n 4 -N 2 cat a b\n"),
        (
            &[("BASIL_RESERVATION_ID", "7")],
            "aprun:SHIFTER:-b -n 4 -N 2 cat a b\n",
        ),
        (
            &[("SLURM_JOB_ID", "3")],
            "srun::-n 4 -N 2 shifter cat a b\n",
        ),
    ] {
        let ran = run(&with, env, &words)?;
        ensure!(ran.code == 0 && ran.stdout == expected, "{env:?}: {ran}");
    }
    let nothing = run(&plain, &[pbs], &[])?;
    ensure!(
        nothing.code == 2 && nothing.stderr.contains("a command is needed"),
        "{nothing}"
    );
    let missing = run("/bin", &[("BASIL_RESERVATION_ID", "7")], &["true"])?;
    ensure!(
        missing.code == 127 && missing.stderr.contains("aprun"),
        "{missing}"
    );
    fs::remove_dir_all(launchers)?;
    site.end(&job)?.expect(0)?;
    site.ensure_clean()
}
