//! The bench itself: hooks find what they find under a real mom, and nodes are machines of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use shifter_tests::mom::{self, Hook, Manner, Verdict};
use shifter_tests::torque::{Server, TorqueJob};
use shifter_tests::world::User::Alice;

use crate::bench::turn;

use super::{nodes, run};

const PROBE: &str = "/opt/torque/sbin/probe";

/// A hook that tells what it finds, in its last argument's job's file of the node.
fn probe(script: &str) -> Result<()> {
    fs::create_dir_all("/opt/torque/sbin")?;
    fs::write(PROBE, format!("#!/bin/bash\n{script}\n"))?;
    Ok(fs::set_permissions(
        PROBE,
        fs::Permissions::from_mode(0o755),
    )?)
}

#[test]
fn bench_hooks_find_what_a_mom_gives() -> Result<()> {
    let _turn = turn()?;
    probe(
        "exec >/run/found 2>/dev/null
        echo argv: \"${@@Q}\"
        env | sort | sed 's/^/env: /'
        echo umask: $(umask) cwd: $PWD groups: $(id -G) uid: $(id -u)
        grep -E '^Sig(Blk|Ign)' /proc/self/status
        echo fds: $(ls /proc/$$/fd | sort -n | tr '\\n' ' ')
        [ $$ = \"$(ps -o sid= -p $$ | tr -d ' ')\" ] && echo leads",
    )?;
    let hooks = [("prologue", PROBE), ("epilogue.parallel", PROBE)];
    let nodes = nodes(2, &hooks)?;
    let (first, second) = (nodes.node("t1")?, nodes.node("t2")?);
    let job = TorqueJob::new("3.server", Alice, &["t1", "t2"]);
    let end = run(first, Hook::Prologue, &job)?.expect(0)?;
    ensure!(end.verdict() == Verdict::Starts, "{end:?}");
    let found = fs::read_to_string(first.path("/run/found"))?;
    for line in [
        "argv: '3.server' 'alice' 'alice' 'myjob' 'nodes=2:ppn=2,gres=shifter16,walltime=00:10:00,neednodes=2:ppn=2' 'batch' 'proj1' '/var/spool/torque/mom_priv/jobs/3.server.SC'",
        "env: PATH=/bin:/usr/bin",
        "env: PBS_MSHOST=t1",
        "env: PBS_NODEFILE=/var/spool/torque/aux/3.server",
        "env: PBS_NP=4",
        "env: PBS_RESOURCE_GRES=shifter16",
        "umask: 0077 cwd: /var/spool/torque/mom_priv groups: 0 2001 2100 uid: 0",
        "leads",
    ] {
        ensure!(
            found.lines().any(|found| found == line),
            "'{line}' in\n{found}"
        );
    }
    ensure!(
        !found.contains("PBS_JOBID") && found.contains(" 64 "),
        "{found}"
    );
    // The C library keeps 32 and above for itself.
    let ignored = found
        .split("SigIgn:\t")
        .nth(1)
        .and_then(|rest| rest.get(..16));
    let ignored = u64::from_str_radix(ignored.unwrap_or_default(), 16)?;
    ensure!(
        ignored & 0x7fff_ffff == 1 << (13 - 1),
        "SIGPIPE alone: {found}"
    );
    run(second, Hook::EpilogueParallel, &job)?.expect(0)?;
    let found = fs::read_to_string(second.path("/run/found"))?;
    // HUP, INT and TERM; bash lets CHLD through to itself.
    ensure!(
        found.contains("SigBlk:\t0000000000004003") && !found.contains("PBS_NODEFILE"),
        "{found}"
    );
    Ok(())
}

#[test]
fn bench_hook_that_takes_too_long_is_killed_with_its_session_alone() -> Result<()> {
    let _turn = turn()?;
    probe("sleep 301 & setsid sleep 302 & echo words >&2; wait")?;
    let nodes = nodes(1, &[("prologue", PROBE)])?;
    let node = nodes.node("t1")?;
    let job = TorqueJob::new("4.server", Alice, &["t1"]);
    let manner = Manner {
        alarm_secs: 11,
        ..Manner::default()
    };
    let end = mom::run(node, Hook::Prologue, &job, manner)?;
    ensure!(
        end.is_late && end.signal == Some(9) && end.secs < 3.0,
        "{end:?}"
    );
    ensure!(end.verdict() == Verdict::Starts, "as in a real mom");
    ensure!(end.said == "words\n" && end.output.is_empty(), "{end:?}");
    let left = node.shell("pgrep -xa sleep; true").ok()?;
    ensure!(left.contains(" 302") && !left.contains(" 301"), "{left}");
    Ok(())
}

#[test]
fn bench_nodes_are_reached_by_the_tools_of_sites() -> Result<()> {
    let _turn = turn()?;
    let nodes = nodes(3, &[])?;
    let first = nodes.node("t1")?;
    for tool in [
        "pdsh -S -R exec -w t[1-3] ssh %h",
        "pdsh -S -R ssh -w t[1-3]",
        "clush -S -w t[1-3]",
    ] {
        let seen = first
            .shell(&format!("{tool} 'hostname; echo $$' | sort -u"))
            .ok()?;
        for name in ["t1: t1", "t2: t2", "t3: t3"] {
            ensure!(seen.lines().any(|line| line == name), "{tool}: {seen}");
        }
    }
    // A node's processes, /run and /var are its own; the store is everybody's.
    first
        .shell("touch /run/mine /var/mine /var/lib/shifter/images/ours")
        .ok()?;
    let second = nodes.node("t2")?;
    second
        .shell("[ ! -e /run/mine ] && [ ! -e /var/mine ] && [ -e /var/lib/shifter/images/ours ]")
        .ok()?;
    let count = second.shell("ps -e --no-headers | wc -l").ok()?;
    ensure!(count.trim().parse::<u32>()? < 12, "{count}");
    fs::remove_file("/var/lib/shifter/images/ours")?;
    Ok(())
}

#[test]
fn bench_server_answers_as_torque_does() -> Result<()> {
    let _turn = turn()?;
    let server = Server::install()?;
    let nodes = nodes(1, &[])?;
    let node = nodes.node("t1")?;
    let job = TorqueJob::new("1[2].server", Alice, &["t1"]).variable("UDI", "a\nb");
    server.knows(&job)?;
    let qstat = node.call(["/opt/torque/bin/qstat", "-f", "-x", &job.id]);
    ensure!(qstat.ok()? == job.xml());
    let unknown = node.call(["/opt/torque/bin/qstat", "-f", "-x", "9.server"]);
    ensure!(unknown.output()?.code == 153);
    let text = "comment=2 of 2 nodes; $(id) ready";
    node.call(["/opt/torque/bin/qalter", "-W", text, &job.id])
        .ok()?;
    ensure!(server.comment(&job.id)?.as_deref() == Some("2 of 2 nodes; $(id) ready"));
    ensure!((server.calls("qstat"), server.calls("qalter")) == (2, 1));
    server.forgets(&job.id)?;
    ensure!(qstat.output()?.code == 153);
    Ok(())
}
