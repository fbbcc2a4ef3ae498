//! Torque in its Cray mode: reservations, nodes by their numbers, and aprun's change of root.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use shifter_tests::alps::{self, Cray};
use shifter_tests::torque::TorqueJob;
use shifter_tests::world::User::{Alice, Bob};

use crate::bench::turn;

const ROOTS: &str = "/etc/opt/cray/cnrte/roots.conf";

#[test]
fn bench_aprun_runs_ranks_on_reserved_nodes_in_the_root_that_is_named() -> Result<()> {
    let _turn = turn()?;
    let cray = Cray::start(&[20, 21, 22])?;
    let job = TorqueJob::new("7.server", Alice, &["login1"]);
    ensure!(
        cray.aprun(&job, &["-n", "1", "-b", "hostname"])?
            .output()?
            .code
            == 1,
        "without a reservation"
    );
    let reservation = cray.reserve(&job, "20-21", 2)?;
    let shown = cray
        .login()?
        .call([&format!("{}/apstat", alps::BIN), "-r"])
        .ok()?;
    let lines: Vec<&str> = shown
        .lines()
        .filter(|line| line.contains("batch:7 "))
        .collect();
    ensure!(lines.len() == 2 && lines[1].starts_with('A'), "{shown}");
    let first = lines[0].split_whitespace().next();
    ensure!(first == Some(reservation.id()), "{shown}");
    let pes = cray
        .login()?
        .shell(&format!(
            "{}/apstat -rvvv -R {} | awk '$1 == \"PE\" {{print $6}}'",
            alps::BIN,
            reservation.id()
        ))
        .ok()?;
    ensure!(pes == "20,\n20,\n21,\n21,\n", "{pes}");

    // A root of its own on each compute node.
    for nid in [20, 21] {
        let node = cray.nodes.node(&alps::host(nid))?;
        let script = "mkdir -p /var/udiMount/bin && cp /bin/busybox /var/udiMount/bin/sh && \
                      echo udi-$(hostname) >/var/udiMount/marker";
        node.shell(script).ok()?;
    }
    fs::write(ROOTS, "DSL=/dsl\nSHIFTER=/dsl/var/udiMount\n")?;
    let script = "read m </marker; echo $m $ALPS_APP_PE $X \"$CRAY_ROOTFS\"";
    let words = [
        "-q", "-n", "4", "-N", "2", "-b", "-e", "X=a b", "--", "/bin/sh", "-c", script,
    ];
    let ran = cray
        .aprun(&job, &words)?
        .env("CRAY_ROOTFS", "SHIFTER")
        .output()?
        .success()?;
    let mut lines: Vec<&str> = ran.stdout.lines().collect();
    lines.sort_unstable();
    let expected = [
        "udi-nid00020 0",
        "udi-nid00020 1",
        "udi-nid00021 2",
        "udi-nid00021 3",
    ];
    let expected = expected.map(|line| format!("{line} a b SHIFTER"));
    ensure!(lines == expected, "{ran}");

    // As the user, with the user's groups; two programs; the worst status.
    let two = [
        "-n",
        "1",
        "-b",
        "id",
        ":",
        "-n",
        "1",
        "-L",
        "21",
        "-b",
        "sh",
        "-c",
        "hostname; exit 7",
    ];
    let ran = cray.aprun(&job, &two)?.output()?;
    ensure!(ran.code == 7 && ran.stdout.contains("nid00021\n"), "{ran}");
    ensure!(
        ran.stdout
            .contains("uid=2001(alice) gid=2001(alice) groups=2001(alice),2100(proj)"),
        "{ran}"
    );
    // A program that is not sent along must be there.
    let sent = cray.aprun(&job, &["-n", "1", "/usr/bin/id"])?.output()?;
    ensure!(sent.code == 0 && sent.stdout.contains("uid=2001"), "{sent}");
    let missing = cray.aprun(&job, &["-n", "1", "/no/such"])?.output()?;
    ensure!(
        missing.code == 1 && missing.stderr.contains("not found"),
        "{missing}"
    );
    let other = TorqueJob::new("8.server", Bob, &["login1"]);
    ensure!(
        cray.aprun(&other, &["-n", "1", "-b", "id"])?.output()?.code == 1,
        "bob has none"
    );
    cray.release(reservation)?;
    ensure!(
        cray.aprun(&job, &["-n", "1", "-b", "id"])?.output()?.code == 1,
        "given back"
    );
    Ok(())
}

#[test]
fn bench_cray_tools_run_a_command_line_on_nodes_by_number() -> Result<()> {
    let _turn = turn()?;
    let cray = Cray::start(&[20, 21, 40])?;
    let login = cray.login()?;
    let ran = login
        .call([alps::PCMD, "-r", "-q", "-n", "20-21,40", "hostname; exit 3"])
        .output()?;
    ensure!(
        ran.code == 0 && ran.stdout == "nid00020\nnid00021\nnid00040\n",
        "{ran}"
    );
    fs::write(login.path("/tmp/list"), "nid00020\nnid00040\n")?;
    fs::set_permissions(login.path("/tmp/list"), fs::Permissions::from_mode(0o600))?;
    let line = "[ $(hostname) = nid00020 ] && echo words";
    let ran = login.call([alps::XTXQTCMD, "/tmp/list", line]).output()?;
    let expected = "nid00020 (complete)\nnid00020:   words\nnid00040 (failed: 1)\n";
    ensure!(ran.code == 0 && ran.stdout == expected, "{ran}");
    Ok(())
}
