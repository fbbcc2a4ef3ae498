//! The hooks as programs, in calls that touch nothing: jobs of others, the user's own hooks, mistakes.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

const PROLOGUE: &str = env!("CARGO_BIN_EXE_shifter-prologue");
const EPILOGUE: &str = env!("CARGO_BIN_EXE_shifter-epilogue");

/// As Torque 6.1.3 calls its prologue, for a job without a generic resource.
const WORDS: [&str; 8] = [
    "999999999.no-such-server",
    "root",
    "root",
    "myjob",
    "nodes=2:ppn=3,walltime=00:10:00,neednodes=2:ppn=3",
    "batch",
    "proj1",
    "/var/spool/torque/mom_priv/jobs/3.server.SC",
];

fn call(program: &str, name: &str, words: &[&str]) -> std::io::Result<Output> {
    let mut command = Command::new(program);
    command.arg0(name).args(words).stdin(Stdio::null());
    let mom = [
        ("PATH", "/bin:/usr/bin"),
        ("PBS_MSHOST", "n2"),
        ("PBS_NODENUM", "0"),
    ];
    command.env_clear().envs(mom).output()
}

#[test]
fn jobs_of_others_are_left_alone() {
    let hooks = [
        (PROLOGUE, "/x/prologue"),
        (PROLOGUE, "prologue.parallel"),
        (EPILOGUE, "epilogue"),
        (EPILOGUE, "epilogue.parallel"),
    ];
    for (program, name) in hooks {
        let output = call(program, name, &WORDS).unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
}

#[test]
fn users_hooks_do_nothing() {
    for name in [
        "epilogue.precancel",
        "epilogue.user",
        "prologue.user.parallel",
    ] {
        let output = call(EPILOGUE, name, &["$(reboot)", "; id", "\n"]).unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
    }
}

#[test]
fn a_call_that_no_mom_makes_ends_with_one_and_never_takes_a_node_out_of_service() {
    let table = [
        ("prologue", 1),
        ("epilogue", 1),
        ("prologue.parallel", 0),
        ("epilogue.parallel", 0),
    ];
    for (name, code) in table {
        let output = call(PROLOGUE, name, &["1;$(touch /tmp/evaluated)", "root"]).unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("is not a job id"), "{said}");
    }
    assert!(!std::path::Path::new("/tmp/evaluated").exists());
}

#[test]
fn closed_descriptors_are_no_obstacle() {
    let script = "exec \"$0\" \"$@\" <&- >&- 2>&-";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, PROLOGUE]).args(WORDS);
    let status = command
        .env_clear()
        .env("PBS_MSHOST", "n2")
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn scripts_of_others_pass_the_submit_filter_unchanged() {
    let script = b"#!/bin/sh\n#PBS -N x\n\xff\x00echo $(id)\n";
    let mut filter = Command::new(env!("CARGO_BIN_EXE_shifter-submit-filter"))
        .args(["-l", "nodes=1", "job.sh"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    filter.stdin.take().unwrap().write_all(script).unwrap();
    let output = filter.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &*output.stdout),
        (Some(0), &script[..])
    );
}
