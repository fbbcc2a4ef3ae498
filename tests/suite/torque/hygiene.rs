//! What a hook hands on of its caller's to the programs that it runs: nothing. What it says, and to
//! whom. How it ends when its worker does not.

use std::fs;

use anyhow::{Context, Result, ensure};
use shifter_tests::mom::{Hook, Manner, Verdict};
use shifter_tests::snapshot::Snapshot;
use shifter_tests::syslog::Syslog;
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::Alice;

use super::Site;
use super::failures::{before, before_setup};

fn job(id: &str) -> TorqueJob {
    TorqueJob::new(id, Alice, &["t1", "t2"]).variable("UDI", "tiny")
}

#[test]
fn privileged_torque_programs_of_roots_find_nothing_of_the_callers() -> Result<()> {
    let site = Site::start(2)?;
    // In a shell of its own, which leaves the first one's descriptors alone; 10 is that one's script.
    let probe = |file: &str| {
        format!(
            "( exec >{file}; find /proc/$$/fd -name '[0-9]*' -printf 'fd %f\\n'
            tr '\\0' '\\n' </proc/$$/environ | sort; echo umask $(umask), in $(pwd)
            grep -E '^(Uid|Gid|Groups|SigBlk|SigIgn):' /proc/$$/status )"
        )
    };
    before_setup(&probe("/run/set-up"))?;
    before("unsetupRoot", &probe("/run/torn-down"))?;
    let job = job("3.server");
    site.begin(&job)?.expect(0)?;
    site.end(&job)?.expect(0)?;
    // Alike on the node where the mom is, and where the site's tool had a shell start it.
    for (node, file) in [
        ("t1", "set-up"),
        ("t2", "set-up"),
        ("t1", "torn-down"),
        ("t2", "torn-down"),
    ] {
        let found = fs::read_to_string(site.nodes.node(node)?.path(&format!("/run/{file}")))?;
        let lines: Vec<&str> = found.lines().collect();
        let expected = [
            "fd 0",
            "fd 1",
            "fd 2",
            "fd 10",
            "LC_ALL=C.UTF-8",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "umask 0022, in /",
            "Uid:\t0\t0\t0\t0",
            "Gid:\t0\t0\t0\t0",
            "Groups:\t ",
            "SigBlk:\t0000000000000000",
        ];
        let (ignored, rest) = lines.split_last().context("nothing")?;
        ensure!(rest == expected, "{node}: {file}: {lines:#?}");
        // The C library keeps 32 and above for itself.
        ensure!(
            ["SigIgn:\t0000000180000000", "SigIgn:\t0000000000000000"].contains(ignored),
            "{ignored}"
        );
    }
    site.ensure_clean()
}

#[test]
fn privileged_torque_worker_that_dies_puts_the_job_back() -> Result<()> {
    let site = Site::start(2)?;
    before_setup("[ $(hostname) != t1 ] || pkill -KILL -f -- --worker")?;
    let unlucky = job("3.server");
    for signalled in ["prologue", "again"] {
        let end = site.begin(&unlucky)?.expect(2)?;
        ensure!(end.verdict() == Verdict::Requeued, "{signalled}: {end:?}");
        ensure!(end.said.contains("signal 9"), "{end:?}");
        site.end(&unlucky)?.expect(0)?;
        site.ensure_clean()?;
    }
    // An epilogue that was ended by a signal did not succeed either.
    before_setup("")?;
    site.begin(&unlucky)?.expect(0)?;
    before(
        "unsetupRoot",
        "[ $(hostname) != t1 ] || pkill -KILL -f -- --worker",
    )?;
    let end = site.hook(Hook::Epilogue, &unlucky, Manner::default())?;
    ensure!(
        end.exit == Some(1) && end.said.contains("signal 9"),
        "{end:?}"
    );
    before("unsetupRoot", "")?;
    site.end(&unlucky)?.expect(0)?;
    site.ensure_clean()
}

#[test]
fn privileged_torque_hooks_write_job_user_and_decision_to_the_system_log() -> Result<()> {
    let mut site = Site::start(2)?;
    let node = site.nodes.node("t1")?;
    let log = Syslog::start(|script| node.shell(script), "/tmp/syslog.t1")?;
    site.clean = Snapshot::take_at(&site.nodes.places())?;
    let good = job("3.server");
    site.begin(&good)?.expect(0)?;
    site.end(&good)?.expect(0)?;
    for (tag, line) in [
        (
            "<30>shifter-prologue[",
            ": job 3.server of alice: 2 of 2 nodes ready",
        ),
        (
            "<30>shifter-epilogue[",
            ": job 3.server of alice: 2 of 2 nodes clean",
        ),
    ] {
        let found = log.line(line)?;
        ensure!(found.starts_with(tag) && found.ends_with(line), "{found}");
    }
    // What a user wrote makes no second line.
    let wrong = TorqueJob::new("4.server", Alice, &["t1", "t2"])
        .variable("UDI", "nowhere:1\n<30>sshd[1]: Accepted password for root");
    site.begin(&wrong)?.expect(1)?;
    let found = log.line("job 4.server of alice: cannot ")?;
    ensure!(found.starts_with("<27>shifter-prologue["), "{found}");
    let text = log.text()?;
    ensure!(!text.contains("\n<30>sshd"), "{text}");
    site.end(&wrong)?.expect(0)?;
    // The server's own words are told as they are, and a log that nobody reads holds nobody up.
    let forged = TorqueJob::new("5.server", Alice, &["t1"]);
    site.server.answers(&forged.id, "<Data></Data>")?;
    let end = site.hook(Hook::Prologue, &forged, Manner::default())?;
    ensure!(end.exit.is_some_and(|exit| exit > 0), "{end:?}");
    let first = log.line("job 5.server of alice: ").context("5.server")?;
    ensure!(first.starts_with("<27>shifter-prologue["), "{first}");
    site.end(&forged)?.expect(0)?;
    drop(log);
    site.begin(&good)?.expect(0)?;
    site.end(&good)?.expect(0)?;
    site.ensure_clean()
}
