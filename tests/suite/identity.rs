//! Who a job's user is, on sites whose users are in LDAP: how often the directory is asked, and what
//! the nodes of a job tell each other.
//!
//! A real slapd counts. Each node has a name service of its own (nslcd behind nsswitch.conf), the
//! login host another; none caches anything. Of the users' account files the nodes know nothing.

use std::fs;
use std::process::Child;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, wait_for};
use shifter_tests::cluster::{Cluster, Node};
use shifter_tests::product::{CONFIG, Product};
use shifter_tests::shared::{self, STATE, share};
use shifter_tests::snapshot::Snapshot;
use shifter_tests::world::User::Alice;

use crate::bench::{self, Bench};

const LOG: &str = "/var/log/slurm/slapd.log";

const SLAPD_CONF: &str = "\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/nis.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile /run/slapd.pid
database mdb
suffix dc=site
rootdn cn=root,dc=site
directory /var/lib/ldap-site
maxsize 8388608
";

const NSLCD_CONF: &str = "\
uid nslcd
gid nslcd
uri ldap://127.0.0.1:3890/
base dc=site
";

/// A directory service with alice and her groups in it.
struct Directory {
    slapd: Child,
    services: Vec<Child>,
}

impl Directory {
    /// Starts the directory, and a name service on each node that knows users from nowhere else.
    fn start(cluster: &Cluster) -> Result<Self> {
        Call::shell("rm -rf /var/lib/ldap-site; mkdir /var/lib/ldap-site").ok()?;
        fs::write("/etc/ldap/site.conf", SLAPD_CONF)?;
        let entry = |dn: &str, lines: &str| format!("dn: {dn}\n{lines}\n\n");
        let mut ldif = entry(
            "dc=site",
            "objectClass: dcObject\nobjectClass: organization\no: s",
        );
        ldif += &entry(
            "uid=alice,dc=site",
            "objectClass: account\nobjectClass: posixAccount\ncn: Alice\nuidNumber: 2001\n\
             gidNumber: 2001\nhomeDirectory: /home/alice\nloginShell: /bin/bash",
        );
        for (name, gid) in [("alice", 2001), ("proj", 2100), ("dirproj", 2200)] {
            let lines = format!("objectClass: posixGroup\ngidNumber: {gid}\nmemberUid: alice");
            ldif += &entry(&format!("cn={name},dc=site"), &lines);
        }
        Call::new(["slapadd", "-f", "/etc/ldap/site.conf"])
            .input(ldif)
            .ok()?;
        let slapd = Call::new(["slapd", "-f", "/etc/ldap/site.conf", "-d", "stats"])
            .args(["-h", "ldap://127.0.0.1:3890"])
            .timeout(0)
            .start(LOG)?;
        let mut directory = Self {
            slapd,
            services: Vec::new(),
        };
        wait_for("slapd", 10, || {
            Ok(fs::read_to_string(LOG)?
                .contains("slapd starting")
                .then_some(()))
        })?;
        for node in cluster.nodes() {
            directory.services.push(serve(node)?);
        }
        for node in cluster.nodes() {
            wait_for("a name service", 10, || {
                let answer = node.call(["getent", "initgroups", "alice"]).output()?;
                Ok(answer.stdout.contains("2200").then_some(()))
            })
            .with_context(|| node.name().to_owned())?;
        }
        Ok(directory)
    }

    /// Counts the searches that `work` causes.
    fn searches<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<usize> {
        let count =
            || -> Result<usize> { Ok(fs::read_to_string(LOG)?.matches(" SRCH base").count()) };
        let before = count()?;
        work()?;
        Ok(count()? - before)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for daemon in self.services.iter_mut().chain([&mut self.slapd]) {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Gives a node a name service of its own.
fn serve(node: &Node) -> Result<Child> {
    let hide = "
        mkdir -p /run/nss /run/nslcd
        cp /etc/passwd /etc/group /run/nss
        sed -i -E '/^alice:/d' /run/nss/passwd
        sed -i -E '/^(alice|proj):/d' /run/nss/group
        printf 'passwd: files ldap\\ngroup: files ldap\\nshadow: files\\nhosts: files\\n' >/run/nss/nsswitch.conf
        chown nslcd /run/nslcd
        for file in passwd group nsswitch.conf; do mount --bind /run/nss/$file /etc/$file; done";
    node.shell(hide).ok()?;
    node.call(["nslcd", "--nofork"])
        .timeout(0)
        .start(&format!("/var/log/slurm/nslcd.{}.out", node.name()))
}

fn start(nodes: usize, slurm_conf: &str) -> Result<(Bench, Directory)> {
    fs::write("/etc/nslcd.conf", NSLCD_CONF)?;
    let mut bench = Bench::start_with(|_, options| {
        options.nodes = nodes;
        options.slurm_conf = slurm_conf.into();
        Ok(())
    })?;
    let directory = Directory::start(&bench.cluster)?;
    bench.clean = Snapshot::take(Some(&bench.cluster))?;
    Ok((bench, directory))
}

/// Runs a command as alice in the job's image on `nodes` nodes, or on the hosts themselves.
fn run(bench: &Bench, nodes: usize, image: bool, command: &[&str]) -> Result<String> {
    let mut args = vec![format!("-N{nodes}"), "--ntasks-per-node=1".into()];
    if image {
        args.extend([bench.a.option(), "shifter".into()]);
    }
    args.extend(command.iter().map(|word| (*word).to_owned()));
    let output = bench.cluster.srun(Alice, args).output()?.success()?;
    bench.cluster.wait_until_idle()?;
    Ok(output.stdout)
}

/// Compares the searches of a job on sixteen nodes with those of one, with and without an image.
fn ensure_one_node_asks(slurm_conf: &str) -> Result<()> {
    const NODES: usize = 16;
    let (bench, directory) = start(NODES, slurm_conf)?;
    // Whatever Slurm asks once and then remembers.
    run(&bench, NODES, false, &["true"])?;
    let searches = |nodes, image| directory.searches(|| run(&bench, nodes, image, &["true"]));
    let one = searches(1, true)? - searches(1, false)?;
    ensure!(one > 0, "the directory is not asked at all");
    let plain = searches(NODES, false)?;
    if slurm_conf.is_empty() {
        let each = searches(NODES, true)? - plain;
        ensure!(
            each >= NODES * one,
            "without shared state: {each} searches, {one} for one node"
        );
    }
    share(&bench.product, "")?;
    let together = searches(NODES, true)? - plain;
    ensure!(
        together <= one,
        "{together} searches for {NODES} nodes, {one} for one node"
    );
    let left = shared::left()?;
    ensure!(left.is_empty(), "{left:?}");
    // And all know the same of the user: what Slurm does not.
    let groups = run(&bench, NODES, true, &["cat", "/etc/group"])?;
    ensure!(
        groups.matches("\ndirproj:x:2200:alice\n").count() == NODES,
        "{groups}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_identity_is_asked_of_the_directory_by_one_node_of_sixteen() -> Result<()> {
    ensure_one_node_asks("")
}

#[test]
fn cluster_identity_is_asked_by_one_node_beside_nss_slurm() -> Result<()> {
    ensure_one_node_asks("LaunchParameters=enable_nss_slurm")
}

/// Returns what the nodes' logs say of the shared state and a text.
fn logged(bench: &Bench, text: &str) -> Vec<String> {
    let nodes = bench.cluster.nodes().iter();
    let lines: Vec<String> = nodes
        .flat_map(|node| node.log().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let is_it = |line: &String| line.contains("shifter-identity: ") && line.contains(text);
    lines.into_iter().filter(is_it).collect()
}

/// Returns the id that the next job will have.
fn next_job(bench: &Bench) -> Result<u32> {
    let id = run(bench, 1, false, &["printenv", "SLURM_JOB_ID"])?;
    Ok(id.trim().parse::<u32>()? + 1)
}

#[test]
fn cluster_identity_needs_no_shared_state_that_works() -> Result<()> {
    let bench = Bench::start()?;
    share(&bench.product, "")?;
    let breakages = [
        ("chmod 0750", "lets others in"),
        ("chmod 0500", "Permission denied"),
        ("chown 2001", "belongs to uid 2001"),
        ("rm -r", "No such file or directory"),
    ];
    for (breakage, reason) in breakages {
        Call::shell(&format!("{breakage} {STATE}")).ok()?;
        run(&bench, 2, true, &["true"])?;
        // Once a node, and nowhere but there.
        let said = logged(&bench, reason);
        ensure!(said.len() == 2, "{breakage}: {said:?}");
        share(&bench.product, "")?;
    }
    bench.ensure_clean()
}

#[test]
fn cluster_s55_a_shared_state_that_hangs_costs_time_and_no_node() -> Result<()> {
    let bench = Bench::start()?;
    share(&bench.product, "")?;
    let config = fs::read_to_string(CONFIG)? + "wait_secs = 1\nanswer_timeout_secs = 1\n";
    bench.product.configure_with(&config)?;
    for node in bench.cluster.nodes() {
        node.shell(&format!(
            "bindfs -o nonempty {STATE} {STATE} && pkill -STOP -x bindfs"
        ))
        .ok()?;
    }
    let began = Instant::now();
    let output = bench.srun(Alice, &bench.a, &["-N2", "shifter", "cat", "/etc/marker"]);
    let took = began.elapsed().as_secs();
    let idle = bench.cluster.wait_until_idle();
    for node in bench.cluster.nodes() {
        node.shell(&format!("pkill -CONT -x bindfs; umount {STATE}"))
            .ok()?;
    }
    idle?;
    // The program's own time, and that of Slurm: the job runs, the log tells, nobody is drained.
    ensure!(output?.success()?.stdout == "a\na\n");
    ensure!(took >= 3, "{took} s");
    for node in bench.cluster.nodes() {
        let late = "shifter-identity' did not finish within 3 s";
        ensure!(node.log().contains(late), "{}", node.log());
    }
    bench.ensure_clean()
}

#[test]
fn cluster_identity_of_an_earlier_job_is_no_later_ones() -> Result<()> {
    let bench = Bench::start()?;
    share(&bench.product, "")?;
    // Bob's, under the id of the job that comes next.
    let job = next_job(&bench)?;
    let forge = "
        d=$STATE/testbed/$JOB.0; mkdir -m 0700 -p $d; chmod 0700 $STATE/testbed; now=$(date +%s)
        line='bob:x:2002:2002::/home/bob:/bin/bash'
        stamp() { echo shifter-state 1 $1 2 testbed $JOB 0 2002 2002 $now $2; }
        { stamp passwd $((${#line} + 1)); echo $line; } >$d/passwd
        stamp group 0 >$d/group
        chmod 0600 $d/*; chown -R shifter:shifter $STATE";
    Call::shell(forge)
        .env("STATE", STATE)
        .env("JOB", job.to_string())
        .ok()?;
    let passwd = run(&bench, 2, true, &["cat", "/etc/passwd"])?;
    ensure!(
        passwd.matches("alice:x:2001:2001:").count() == 2 && !passwd.contains("bob"),
        "{passwd}"
    );
    let said = logged(
        &bench,
        "it is for uid '2002' and the batch system says '2001'",
    );
    ensure!(!said.is_empty(), "{}", bench.cluster.node("n1")?.log());
    ensure!(shared::left()?.is_empty(), "{:?}", shared::left()?);
    bench.ensure_clean()
}

#[test]
fn cluster_identity_of_a_requeued_run_is_removed_with_it() -> Result<()> {
    let bench = Bench::start()?;
    share(&bench.product, "")?;
    let options = ["-N2", "--requeue", &bench.a.option()];
    let job = bench
        .cluster
        .submit(Alice, &options, "echo started; sleep 60")?;
    job.wait_for_output("started")?;
    let names = shared::left()?;
    let all = names
        .iter()
        .map(|name| name.trim_start_matches("testbed/").to_owned());
    let mut all: Vec<String> = all.filter(|name| !name.is_empty()).collect();
    all.sort_unstable();
    let own = format!("{}.0", job.id());
    let files = [own.clone(), format!("{own}/group"), format!("{own}/passwd")];
    ensure!(all == files, "{names:?}");
    Call::new(["scontrol", "requeue", job.id()]).ok()?;
    wait_for("nothing left of the first run", 20, || {
        Ok(shared::left()?.is_empty().then_some(()))
    })?;
    job.cancel()?;
    bench.ensure_clean()
}

#[test]
fn privileged_identity_is_told_whatever_killed_the_writer() -> Result<()> {
    let _turn = bench::turn()?;
    let product = Product::install()?;
    share(&product, "")?;
    let program = product.path("lib/shifter/shifter-identity");
    let ask = |job: u32, rank: u32| {
        format!("{program} --cluster=c --job={job} --restart=0 --uid=2001 --gid=2001 --rank={rank}")
    };
    // Each with a job of its own: before its first, second, … call of each that changes something.
    let calls = [
        ("mkdirat", 2),
        ("openat", 12),
        ("write", 8),
        ("fdatasync", 2),
        ("renameat", 1),
        ("unlinkat", 1),
    ];
    let mut script = String::new();
    let mut jobs = 0;
    for (call, count) in calls {
        for when in 1..=count {
            jobs += 1;
            script += &format!(
                "strace -o /dev/null -e inject={call}:signal=KILL:when={when} {} >/dev/null 2>&1; echo $?\n",
                ask(jobs, 0)
            );
        }
    }
    let codes = Call::shell(&script).ok()?;
    let killed = codes.lines().filter(|code| *code == "137").count();
    ensure!(killed > jobs as usize / 2, "{killed} of {jobs} were killed");
    // All at once: each of them waits for two seconds until the dead have been silent for long enough.
    let recover = |job| format!("{} & ", ask(job, 1));
    let script: String = (1..=jobs).map(recover).collect();
    let answers = Call::shell(&format!("{script} wait")).output()?;
    ensure!(
        answers
            .stdout
            .matches("{\"user\":{\"name\":\"alice\"")
            .count()
            == jobs as usize,
        "{answers}"
    );
    ensure!(!answers.stdout.contains("\"alone\""), "{answers}");
    ensure!(answers.stderr.is_empty(), "{answers}");
    for job in 1..=jobs {
        Call::shell(&ask(job, 0).replace("--rank=0", "--forget")).ok()?;
    }
    let left = shared::left()?;
    ensure!(left.iter().all(|name| name.contains(".new-")), "{left:?}");
    // What the dead left is old one day, and any start removes it.
    Call::shell(&format!(
        "find {STATE} -mindepth 1 -exec touch -d '2 hours ago' {{}} +"
    ))
    .ok()?;
    Call::shell(&ask(0, 0)).ok()?;
    Call::shell(&ask(0, 0).replace("--rank=0", "--forget")).ok()?;
    ensure!(shared::left()?.is_empty(), "{:?}", shared::left()?);
    Ok(())
}
