//! A real Slurm cluster on this machine: munged, slurmctld and one slurmd per node.
//!
//! Each node has a mount and UTS namespace of its own, held open by a keeper process, so that
//! slurmd can be restarted in it: its own host name, `/run`, `/tmp`, spool and mount table. As on a
//! machine booted by systemd, every mount of a node is shared with later namespaces, so a mount
//! that leaks is seen to leak. All files are where Debian's packages expect them; clients need no
//! environment.
//!
//! The nodes share the network of the login node and differ by their ports, unless a test wants
//! what they have elsewhere: an address, and every port, for each.

use std::fs;
use std::path::Path;
use std::process::Child;

use anyhow::{Context, Result, bail, ensure};

use crate::call::{Call, wait_for};
use crate::world::User;

/// Nodes listen at the ports after this one.
const PORTS: usize = 17000;

const LOGS: &str = "/var/log/slurm";

const NODES: &str = "/run/testbed-nodes";

const HOSTS: &str = "/etc/hosts";

const KEEPER: &str = r#"
set -e
hostname "$1"
mount --bind /run/munge /mnt
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/munge /run/lock
mount --move /mnt /run/munge
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /var/spool/slurmd
mount -t tmpfs -o mode=0755 tmpfs /var/spool/slurmd
mount --make-rshared /
echo ready
exec sleep infinity
"#;

/// How a cluster differs from the usual one.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes, called n1, n2, ….
    pub nodes: usize,
    /// Lines of plugstack.conf.
    pub plugstack: String,
    /// More lines of slurm.conf.
    pub slurm_conf: String,
    /// More lines of cgroup.conf; of a key given twice the last counts.
    pub cgroup_conf: String,
    /// Gives each node a network of its own, with an address on one that all share.
    pub networks: bool,
}

/// A cluster that runs until it is dropped.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    daemons: Vec<Child>,
    _bridge: Option<Bridge>,
}

/// The network between nodes that have their own; taken away when it is dropped.
#[derive(Debug)]
struct Bridge {
    nodes: usize,
    /// What /etc/hosts said before.
    hosts: String,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    name: String,
    port: u16,
    keeper: Child,
    slurmd: Child,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            plugstack: String::new(),
            slurm_conf: String::new(),
            cgroup_conf: String::new(),
            networks: false,
        }
    }
}

impl Cluster {
    /// Starts a cluster and waits until every node is idle.
    pub fn start(options: &Options) -> Result<Self> {
        crate::world::require()?;
        configure(options)?;
        // From here on everything that was started is stopped by `Drop`, also after an error.
        let mut cluster = Self {
            nodes: Vec::new(),
            daemons: Vec::new(),
            _bridge: options
                .networks
                .then(|| Bridge::make(options.nodes))
                .transpose()?,
        };
        cluster.daemons.push(start_munged()?);
        let slurmctld = Call::new(["slurmctld", "-D", "-c"]).timeout(0);
        cluster
            .daemons
            .push(slurmctld.start(&format!("{LOGS}/slurmctld.out"))?);
        for number in 1..=options.nodes {
            cluster.nodes.push(Node::start(number, options.networks)?);
        }
        cluster.wait_until_idle()?;
        Ok(cluster)
    }

    /// Returns the nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the node of a name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("no node {name}"))
    }

    /// Returns the node of a name, to be changed.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.with_context(|| format!("no node {name}"))
    }

    /// Waits until every node is idle.
    pub fn wait_until_idle(&self) -> Result<()> {
        let all_idle = || {
            Ok(self
                .states()
                .ok()
                .filter(|states| is_all_idle(states))
                .map(drop))
        };
        wait_for("idle nodes", 30, all_idle)
            .with_context(|| format!("sinfo says {:?}\n{}", self.states(), recent_trouble()))
    }

    /// Returns each node's state and the reason given for it, as sinfo shows them.
    pub fn states(&self) -> Result<Vec<String>> {
        let text = Call::new(["sinfo", "-h", "-N", "-o", "%N %T %E"])
            .timeout(10)
            .ok()?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Fails if a node is drained or down.
    pub fn ensure_in_service(&self) -> Result<()> {
        let states = self.states()?;
        let is_out = |line: &String| {
            let state = line.split_whitespace().nth(1).unwrap_or_default();
            ["drain", "down", "fail", "unk"]
                .iter()
                .any(|bad| state.starts_with(bad))
        };
        ensure!(
            !states.iter().any(is_out),
            "nodes are out of service: {states:?}"
        );
        Ok(())
    }

    /// Prepares `srun` with arguments as a user in the user's scratch directory.
    pub fn srun<S: Into<String>>(&self, user: User, args: impl IntoIterator<Item = S>) -> Call {
        Call::new(["srun"]).args(args).by(user)
    }

    /// Returns what slurmctld wrote into its log.
    pub fn controller_log(&self) -> String {
        fs::read_to_string(format!("{LOGS}/slurmctld.log")).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Jobs first, or their slurmstepd would outlive everything; and nobody's processes stay.
        let users: Vec<&str> = User::ALL.iter().map(|user| user.name()).collect();
        let _ = Call::new(["scancel", "--quiet", "--user", &users.join(",")])
            .timeout(5)
            .output();
        for node in &mut self.nodes {
            stop(&mut node.slurmd);
            let _ = node.keeper.kill();
            let _ = node.keeper.wait();
        }
        self.daemons.iter_mut().rev().for_each(stop);
        let _ = Call::new(["pkill", "-KILL", "-u", &users.join(",")]).output();
    }
}

impl Bridge {
    const ADDRESS: &str = "10.1.0.254";

    fn make(nodes: usize) -> Result<Self> {
        Call::shell(&format!(
            "ip link add nodes type bridge && ip address add {}/24 dev nodes && \
             ip link set nodes up",
            Self::ADDRESS
        ))
        .ok()?;
        let hosts = fs::read_to_string(HOSTS)?;
        let mut text = format!("127.0.0.1 localhost\n{} login\n", Self::ADDRESS);
        for number in 1..=nodes {
            text += &format!("10.1.0.{number} n{number}\n");
        }
        fs::write(HOSTS, text)?;
        Ok(Self { nodes, hosts })
    }

    /// Puts a cable between the bridge and the network of a process.
    fn connect(number: usize, pid: u32) -> Result<()> {
        Call::shell(&format!(
            "ip link add n{number} type veth peer name eth0 netns {pid} && \
             ip link set n{number} master nodes up"
        ))
        .ok()?;
        Call::shell(&format!(
            "ip link set lo up && ip address add 10.1.0.{number}/24 dev eth0 && \
             ip link set eth0 up && ip route add default via {}",
            Self::ADDRESS
        ))
        .in_namespaces_of(pid)
        .ok()?;
        Ok(())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // The kernel takes its time over a namespace that nobody is in any more.
        let cables = (1..=self.nodes).map(|number| format!("n{number}"));
        for link in cables.chain(["nodes".to_owned()]) {
            let _ = Call::new(["ip", "link", "delete", &link]).output();
        }
        let _ = fs::write(HOSTS, &self.hosts);
    }
}

impl Node {
    fn start(number: usize, has_network: bool) -> Result<Self> {
        let name = &*format!("n{number}");
        let log = format!("{LOGS}/keeper.{name}.out");
        let keeper = Call::new(["unshare", "-m", "-u", "--propagation", "private"])
            .args(has_network.then_some("-n"))
            .args(["bash", "-c", KEEPER, "keeper", name])
            .timeout(0)
            .start(&log)?;
        let ready = || Ok(fs::read_to_string(&log)?.contains("ready").then_some(()));
        wait_for(&format!("node {name}"), 10, ready)?;
        // For people who want to look around: `tests/cluster.sh node n1` reads it.
        fs::create_dir_all(NODES)?;
        fs::write(format!("{NODES}/{name}"), keeper.id().to_string())?;
        if has_network {
            Bridge::connect(number, keeper.id())?;
        }
        let slurmd = start_slurmd(name, keeper.id(), &[])?;
        Ok(Self {
            name: name.into(),
            port: u16::try_from(PORTS + number)?,
            keeper,
            slurmd,
        })
    }

    /// Returns the node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a process that lives in the node's namespaces as long as the node.
    pub fn pid(&self) -> u32 {
        self.keeper.id()
    }

    /// Returns the port at which slurmd listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns slurmd's process.
    pub fn slurmd_pid(&self) -> u32 {
        self.slurmd.id()
    }

    /// Returns a path of the node as it is reached from outside.
    pub fn path(&self, path: &str) -> String {
        format!("/proc/{}/root{path}", self.pid())
    }

    /// Prepares to run a program on the node, as root.
    pub fn call<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Call {
        Call::new(argv).in_namespaces_of(self.pid())
    }

    /// Prepares to run a shell script on the node, as root.
    pub fn shell(&self, script: &str) -> Call {
        Call::shell(script).in_namespaces_of(self.pid())
    }

    /// Returns what the node's slurmd and its steps wrote into their log.
    pub fn log(&self) -> String {
        fs::read_to_string(format!("{LOGS}/slurmd.{}.log", self.name)).unwrap_or_default()
    }

    /// Kills slurmd, leaves the steps alone, and starts it again.
    pub fn restart_slurmd(&mut self) -> Result<()> {
        self.restart_slurmd_with(&[])
    }

    /// Kills slurmd and leaves the steps alone.
    pub fn kill_slurmd(&mut self) -> Result<()> {
        self.slurmd.kill()?;
        self.slurmd.wait()?;
        Ok(())
    }

    /// Does the same as [`Node::restart_slurmd`] and gives the new slurmd more environment.
    pub fn restart_slurmd_with(&mut self, env: &[(&str, &str)]) -> Result<()> {
        self.kill_slurmd()?;
        self.slurmd = start_slurmd(&self.name, self.keeper.id(), env)?;
        Ok(())
    }

    /// Tells slurmd to end, as systemd does, and starts it again.
    pub fn end_and_start_slurmd(&mut self) -> Result<()> {
        stop(&mut self.slurmd);
        self.slurmd = start_slurmd(&self.name, self.keeper.id(), &[])?;
        Ok(())
    }

    /// Fails if slurmd has ended.
    pub fn ensure_slurmd_lives(&mut self) -> Result<()> {
        if let Some(status) = self.slurmd.try_wait()? {
            bail!(
                "slurmd of {} has ended: {status}\n{}",
                self.name,
                last_lines(&self.log(), 20)
            );
        }
        Ok(())
    }

    /// Returns slurmd's resident memory in KiB.
    pub fn slurmd_rss_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.slurmd.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let value = line
            .and_then(|rest| rest.split_whitespace().next())
            .context("VmRSS")?;
        Ok(value.parse()?)
    }
}

/// Returns the last lines of Slurm's logs that tell of trouble.
pub fn recent_trouble() -> String {
    // What Slurm always says of a new cluster on this machine is no trouble.
    let usual = "mpi|pmix|state file|NOTE:|socket directory|hwloc|MailProg|trigger";
    let script = format!(
        "grep -iE 'shifter|error|fail' {LOGS}/slurm*.log | grep -vE '{usual}' | tail -n 30"
    );
    Call::shell(&script)
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default()
}

fn is_all_idle(states: &[String]) -> bool {
    !states.is_empty()
        && states
            .iter()
            .all(|line| line.split_whitespace().nth(1) == Some("idle"))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn start_munged() -> Result<Child> {
    Call::shell("install -d -o munge -g munge /run/munge; rm -f /run/munge/*").ok()?;
    // A key of this world's own, never the machine's.
    Call::shell("head -c 128 /dev/urandom >/etc/munge/munge.key").ok()?;
    let munged = Call::new([
        "setpriv",
        "--reuid",
        "munge",
        "--regid",
        "munge",
        "--clear-groups",
    ])
    .args(["munged", "--foreground"])
    .timeout(0)
    .start(&format!("{LOGS}/munged.out"))?;
    wait_for("munged", 10, || {
        Ok(Path::new("/run/munge/munge.socket.2")
            .exists()
            .then_some(()))
    })?;
    Ok(munged)
}

fn start_slurmd(name: &str, keeper: u32, env: &[(&str, &str)]) -> Result<Child> {
    let mut call = Call::new(["slurmd", "-D", "-N", name])
        .in_namespaces_of(keeper)
        .timeout(0);
    for (key, value) in env {
        call = call.env(key, *value);
    }
    call.start(&format!("{LOGS}/slurmd.{name}.out"))
}

fn stop(daemon: &mut Child) {
    let pid = daemon.id().to_string();
    let _ = Call::new(["kill", "-TERM", &pid]).output();
    let ended = wait_for("a daemon's end", 5, || Ok(daemon.try_wait()?.map(drop)));
    if ended.is_err() {
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}

fn configure(options: &Options) -> Result<()> {
    for dir in ["/etc/slurm", LOGS, "/var/spool/slurmctld"] {
        fs::create_dir_all(dir)?;
    }
    let count = options.nodes;
    let (login, nodes) = if options.networks {
        (Bridge::ADDRESS, format!("10.1.0.[1-{count}]"))
    } else {
        ("127.0.0.1", "127.0.0.1".to_owned())
    };
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let slurm_conf = format!(
        "ClusterName=testbed\n\
         SlurmctldHost={}({login})\n\
         SlurmUser=root\n\
         AuthType=auth/munge\n\
         StateSaveLocation=/var/spool/slurmctld\n\
         SlurmdSpoolDir=/var/spool/slurmd\n\
         SlurmctldPidFile=/run/slurmctld.pid\n\
         SlurmdPidFile=/run/slurmd.%n.pid\n\
         SlurmctldLogFile={LOGS}/slurmctld.log\n\
         SlurmdLogFile={LOGS}/slurmd.%n.log\n\
         PrologFlags=Alloc,Contain\n\
         ProctrackType=proctrack/cgroup\n\
         TaskPlugin=task/none\n\
         JobAcctGatherType=jobacct_gather/none\n\
         SelectType=select/cons_tres\n\
         SelectTypeParameters=CR_CPU\n\
         SwitchType=switch/none\n\
         MpiDefault=none\n\
         AccountingStorageType=accounting_storage/none\n\
         JobCompType=jobcomp/none\n\
         ReturnToService=2\n\
         SlurmctldTimeout=30\n\
         SlurmdTimeout=60\n\
         KillWait=2\n\
         MinJobAge=300\n\
         SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=1\n\
         SlurmdParameters=config_overrides\n\
         UsePAM=0\n\
         NodeName=n[1-{count}] NodeAddr={nodes} Port=[{}-{}] CPUs=16 RealMemory=4000 State=UNKNOWN\n\
         PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES:8\n\
         {}\n",
        host.trim(),
        PORTS + 1,
        PORTS + count,
        options.slurm_conf,
    );
    let cgroup_conf = format!(
        "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n\
         CgroupAutomount=no\nConstrainCores=no\nConstrainDevices=no\n{}\n",
        options.cgroup_conf
    );
    fs::write("/etc/slurm/slurm.conf", slurm_conf)?;
    fs::write("/etc/slurm/cgroup.conf", cgroup_conf)?;
    fs::write("/etc/slurm/plugstack.conf", &options.plugstack)?;
    Ok(())
}
