//! Torque in its Cray mode: reservations, nodes by their numbers, and aprun's change of root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::sync::MutexGuard;

use anyhow::{Result, ensure};
use shifter_tests::alps::{self, Cray};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::mom::{self, Hook};
use shifter_tests::product::Product;
use shifter_tests::snapshot::Snapshot;
use shifter_tests::torque::{Server, TorqueJob};
use shifter_tests::world::User::{self, Alice, Bob};

use crate::bench::turn;

use super::{HOOKS, SHARED, STATE, prepare, run, services};

const ROOTS: &str = "/etc/opt/cray/cnrte/roots.conf";

/// Configures Blue Waters' layout, as docs/torque.md has it, with this tool, and with what nodes load
/// and run for a job.
fn configure(product: Product, tool: &str, [preload, services]: [&str; 2]) -> Result<()> {
    product.configure(&format!(
        "visibility = 'host'\nudi_mount = '/var/udiMount'\n\
         [shared_state]\npath = '{SHARED}'\n\
         [torque]\ngres = ['shifter16']\nqstat = '/opt/torque/bin/qstat'\n\
         qalter = '/opt/torque/bin/qalter'\nalps = true\nfanout = '{tool}'\n\
         node_context_prefix = '/dsl'\nservices = {services}\n\
         [kernel]\npreload = {preload}\nmax_loop = 128"
    ))
}

/// What Blue Waters' nodes loaded for jobs, and a service.
const MODULES: [&str; 2] = ["['loop', 'squashfs']", "[]"];
const MUNGE: [&str; 2] = ["['loop', 'squashfs']", "['munge']"];
const NOTHING: [&str; 2] = ["[]", "[]"];

/// A Cray with a Torque site on it, whose store holds the image `tiny:latest`.
struct Site {
    cray: Cray,
    server: Server,
    product: Product,
    clean: Snapshot,
    _turn: MutexGuard<'static, ()>,
}

impl Site {
    /// Starts one with these compute nodes.
    fn start(nids: &[u32]) -> Result<Self> {
        let turn = turn()?;
        let product = prepare()?;
        configure(product, "pcmd", MODULES)?;
        let server = Server::install()?;
        let cray = Cray::start(nids)?;
        fs::write(ROOTS, "DSL=/dsl\nSHIFTER=/dsl/var/udiMount\n")?;
        mom::install(cray.login()?, &HOOKS)?;
        for node in cray.nodes.nodes() {
            node.shell(services::MUNGE).ok()?;
        }
        let clean = Snapshot::take_at(&cray.nodes.places())?;
        Ok(Self {
            cray,
            server,
            product,
            clean,
            _turn: turn,
        })
    }

    /// A job as a mom in Cray mode lists it: the login node and bare numbers.
    fn job(&self, id: &str, user: User, nids: &[u32]) -> TorqueJob {
        let mut job = TorqueJob::new(id, user, &["login1"]);
        job.nodes
            .extend(nids.iter().map(|nid| (nid.to_string(), 2)));
        job
    }

    fn begin(&self, job: &TorqueJob) -> Result<()> {
        self.server.knows(job)?;
        run(self.cray.login()?, Hook::Prologue, job)?.expect(0)?;
        Ok(())
    }

    fn end(&self, job: &TorqueJob) -> Result<()> {
        run(self.cray.login()?, Hook::Epilogue, job)?.expect(0)?;
        Ok(())
    }

    /// Starts a container of a user's on a compute node, where the system's root is.
    fn container(&self, nid: u32, user: User, job: &str) -> Result<Child> {
        let ids = format!("--userspec={0}:{0}", user.uid());
        let node = self.cray.nodes.node(&alps::host(nid))?;
        let program = self.product.path("bin/shifter");
        let words = ["chroot", &*ids, "/dsl", &*program, "--image=tiny"];
        let call = node.call(words).args(["sleep", "1000"]);
        call.env("PBS_JOBID", job)
            .timeout(0)
            .start("/tmp/container")
    }

    fn sleepers(&self, nid: u32) -> Result<usize> {
        let node = self.cray.nodes.node(&alps::host(nid))?;
        let count = node.shell("pgrep -c -x sleep || true").ok()?;
        Ok(count.trim().parse()?)
    }

    fn ensure_clean(&self) -> Result<()> {
        self.clean.ensure_restored_at(&self.cray.nodes.places())?;
        let known = self.cray.login()?.path(&format!("{STATE}/jobs"));
        for place in [format!("{SHARED}/testbed"), known] {
            let found = Call::new(["find", &*place, "-mindepth", "1"]).output()?;
            ensure!(found.stdout.is_empty(), "left behind: {found}");
        }
        Ok(())
    }
}

/// One process on each of two nodes, in a container by the command.
const BY_COMMAND: [&str; 8] = [
    "-q",
    "-n",
    "2",
    "-N",
    "1",
    "-b",
    "--",
    "/opt/shifter/bin/shifter",
];

#[test]
fn privileged_alps_job_lands_in_its_container_on_every_node_of_its_reservation() -> Result<()> {
    let site = Site::start(&[20, 21, 22])?;
    for tool in ["pcmd", "xtxqtcmd"] {
        configure(site.product, tool, MODULES)?;
        let image = "tiny:latest -v /scratch/alice:/data";
        let job = site.job("7.server", Alice, &[20, 21]);
        let job = job.variable("UDI", image);
        let reservation = site.cray.reserve(&job, "20-21", 2)?;
        site.begin(&job)?;
        let script = "cat /etc/marker; id -u; id -G; stat -c %U /data; hostname; \
                      echo $ALPS_APP_PE; : >/usr/x";
        let words = [
            "-q", "-n", "4", "-N", "2", "-b", "--", "/bin/sh", "-c", script,
        ];
        let ran = site.cray.aprun(&job, &words)?;
        let ran = ran.env("CRAY_ROOTFS", "SHIFTER").output()?;
        ensure!(ran.code != 0 && ran.stderr.contains("Read-only"), "{ran}");
        let mut lines: Vec<&str> = ran.stdout.lines().collect();
        lines.sort_unstable();
        let mut expected = [
            "0", "1", "2", "3", "nid00020", "nid00020", "nid00021", "nid00021",
        ]
        .to_vec();
        for line in ["2001", "2001 2100", "alice", "tiny"] {
            expected.extend([line; 4]);
        }
        expected.sort_unstable();
        ensure!(lines == expected, "{tool}: {ran}");
        // The same container, by the command, where the system's root is.
        let joined = site.cray.aprun(
            &job,
            &[&BY_COMMAND[..], &["cat", "/etc/marker", "/var/hostsfile"]].concat(),
        )?;
        let joined = joined.env("CRAY_ROOTFS", "DSL").output()?.success()?;
        let hosts = "tiny\nnid00020\nnid00020\nnid00021\nnid00021\n";
        ensure!(
            joined.stdout.matches(hosts).count() == 2,
            "{tool}: {joined}"
        );
        // Neither the login node nor a node of nobody's has one.
        for place in ["login1", "nid00022"] {
            let node = site.cray.nodes.node(place)?;
            let found = node
                .shell("ls -d /dsl/run/shifter /run/shifter /dsl/var/udiMount/etc")
                .output()?;
            ensure!(found.stdout.is_empty(), "{place}: {found}");
        }
        site.end(&job)?;
        site.cray.release(reservation)?;
        site.ensure_clean()?;
    }
    Ok(())
}

#[test]
fn privileged_alps_job_without_an_image_leaves_no_container_that_aprun_started() -> Result<()> {
    let site = Site::start(&[20, 21])?;
    // Without anything to prepare on nodes they are still cleaned.
    Call::shell(services::KEY).ok()?;
    for work in [MUNGE, NOTHING] {
        configure(site.product, "pcmd", work)?;
        let job = site.job("7.server", Alice, &[20, 21]);
        let reservation = site.cray.reserve(&job, "20-21", 2)?;
        site.begin(&job)?;
        for nid in [20, 21] {
            let node = site.cray.nodes.node(&alps::host(nid))?;
            let script = "chroot --userspec=2001 /dsl sh -c 'munge -n | unmunge'";
            let said = node.shell(script).output()?;
            ensure!(said.stdout.contains("Success") == (work == MUNGE), "{said}");
        }
        // It outlives its rank, forgets its environment, and does not heed a signal.
        let script = "setsid env -i sh -c 'trap \"\" TERM; while :; do sleep 1000; done' \
                      >/dev/null 2>&1 </dev/null & cat /etc/marker";
        let words = [&BY_COMMAND[..], &["--image=tiny", "sh", "-c", script]].concat();
        let ran = site.cray.aprun(&job, &words)?.env("CRAY_ROOTFS", "DSL");
        let ran = ran.output()?.success()?;
        ensure!(ran.stdout == "tiny\ntiny\n", "{ran}");
        // Another user's, one of another job, and one of the user's own that names none.
        let mut others = [
            site.container(20, Bob, "7.server")?,
            site.container(20, Alice, "8.server")?,
            site.container(20, Alice, "")?,
        ];
        wait_for("the containers", 10, || {
            Ok((site.sleepers(20)? == 4 && site.sleepers(21)? == 1).then_some(()))
        })?;
        site.end(&job)?;
        let mut alive = Vec::new();
        for other in &mut others {
            alive.push(other.try_wait()?.is_none());
        }
        let left = (site.sleepers(20)?, site.sleepers(21)?);
        let munged = Call::new(["pgrep", "-x", "munged"]).output()?;
        ensure!(munged.stdout.is_empty(), "{munged}");
        site.cray
            .nodes
            .node("nid00020")?
            .shell("pkill -x sleep; true")
            .ok()?;
        for other in &mut others {
            other.wait()?;
        }
        ensure!(alive == [true; 3] && left == (3, 0), "{alive:?} {left:?}");
        // Their node's hints of images.
        site.end(&job)?;
        for nid in [20, 21] {
            let unset = ["chroot", "/dsl", "/opt/shifter/sbin/unsetupRoot", "0"];
            site.cray.nodes.node(&alps::host(nid))?.call(unset).ok()?;
        }
        site.cray.release(reservation)?;
        site.ensure_clean()?;
    }
    Ok(())
}

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
