//! ssh between the nodes of a job, with the clients that users have: Debian's in the host's own
//! tree as image, ours in an image with nothing but busybox.

use std::fs;

use anyhow::{Context, Result, ensure};
use shifter_tests::call::{Call, Output};
use shifter_tests::cluster::Cluster;
use shifter_tests::job::Job;
use shifter_tests::world::User::{self, Alice, Bob};

use crate::bench::Bench;

/// The host's own tree, with all of Debian's programs that this machine has.
const HOST: &str = "--image=local:host";

/// A batch script that stays.
const STAY: &str = "echo up; sleep 300";

fn start(ssh: &str) -> Result<Bench> {
    start_on(2, ssh)
}

fn start_on(nodes: usize, ssh: &str) -> Result<Bench> {
    Bench::start_with(|product, options| {
        options.nodes = nodes;
        product.configure(&format!("[store.trees]\nhost = '/'\n[ssh]\n{ssh}"))?;
        options.networks = true;
        Ok(())
    })
}

/// Runs a script of alice's in a job with the host's tree and returns what it prints.
fn run(cluster: &Cluster, options: &[&str], script: &str) -> Result<String> {
    let (job, info) = cluster.run(Alice, options, script)?;
    info.expect("COMPLETED", "0:0")
        .with_context(|| job.output().unwrap_or_default())?;
    job.output()
}

/// Calls Debian's ssh on a node, as whom and in whose name one likes, with nobody to answer
/// questions.
fn knock(bench: &Bench, by: User, options: &[&str]) -> Result<Output> {
    let call = bench
        .cluster
        .node("n1")?
        .call(["ssh", "-F", "none", "-p", "1204"]);
    call.args([
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ])
    .args(options.iter().copied())
    .args(["n1", "echo in"])
    .by(by)
    .timeout(20)
    .output()
}

/// Waits until a job runs, and returns what a file in its container has in it, as root sees it.
fn read_inside(bench: &Bench, job: &Job, path: &str) -> Result<String> {
    job.wait_for_output("up")?;
    let pid = server(bench, "n1")?;
    Ok(fs::read_to_string(format!("/proc/{pid}/root{path}"))?)
}

/// Returns the pid of the ssh server on a node.
fn server(bench: &Bench, node: &str) -> Result<u32> {
    let pids = Call::shell("pgrep -f '^sshd: job '").output()?.stdout;
    let own = |file: &str| fs::read_link(format!("/proc/{file}/ns/net"));
    let net = own(&bench.cluster.node(node)?.pid().to_string())?;
    let mut found = pids.split_whitespace();
    let pid = found.find(|pid| own(pid).is_ok_and(|its| its == net));
    Ok(pid.context("no server")?.parse()?)
}

#[test]
fn cluster_s57_only_the_owner_with_the_jobs_key_gets_in() -> Result<()> {
    let bench = start("enable = 'always'")?;
    let options = ["--exclusive", "-wn1", HOST];
    // Where the C Shifter kept keys of its own making there is what nobody should follow or read.
    let home = "rm -rf .udiRoot .ssh; ln -s /etc .udiRoot; mkdir .ssh; mkfifo .ssh/id_rsa.key";
    Call::shell(home).by(Alice).cwd("/home/alice").ok()?;
    let list = || Call::shell("find /home/alice -printf '%p %m %T@ %l\n' | sort").ok();
    let home = list()?;
    let job = bench.cluster.submit(Alice, &options, STAY)?;
    let first = read_inside(&bench, &job, "/etc/ssh/shifter/host_key")?;

    // Whoever has another key, or none, stays outside; and so does every other name.
    for (user, names) in [(Alice, &["alice"][..]), (Bob, &["alice", "bob", "root"])] {
        let key = user.scratch().join("key");
        let key = key.to_string_lossy();
        Call::new(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &key])
            .by(user)
            .ok()?;
        for name in names {
            let output = knock(&bench, user, &["-i", &key, "-l", name])?;
            let refused = "Permission denied (publickey).";
            ensure!(
                output.code == 255 && output.stderr.contains(refused),
                "{output}"
            );
        }
    }
    for method in ["password", "keyboard-interactive", "none"] {
        let method = format!("PreferredAuthentications={method}");
        let output = knock(&bench, Alice, &["-l", "alice", "-o", &method])?;
        let refused = "Permission denied (publickey).";
        ensure!(
            output.code == 255 && output.stderr.contains(refused),
            "{method}: {output}"
        );
    }
    // With the job's key, but another name.
    let stolen = Alice.scratch().join("stolen");
    let inside = read_inside(&bench, &job, "/etc/ssh/shifter/id_ed25519")?;
    fs::write(&stolen, &inside)?;
    Call::new(["chmod", "0600", &stolen.to_string_lossy()]).ok()?;
    Call::new(["chown", "alice", &stolen.to_string_lossy()]).ok()?;
    let stolen = stolen.to_string_lossy();
    for name in ["root", "bob", "alice"] {
        let output = knock(&bench, Alice, &["-i", &stolen, "-l", name])?;
        ensure!((output.code == 0) == (name == "alice"), "{name}: {output}");
    }

    // The files are their user's alone, and nothing is or was in the home directory.
    let pid = server(&bench, "n1")?;
    let modes = format!("cd /proc/{pid}/root/etc/ssh/shifter && stat -c '%n %a %U %h %F' . *");
    let modes = bench.cluster.node("n1")?.shell(&modes).ok()?;
    let file = |name: &str| format!("{name} 600 alice 1 regular file\n");
    let files = ["host_key", "id_ed25519", "id_ed25519.pub", "known_hosts"].map(file);
    ensure!(
        modes.starts_with(". 700 alice ") && modes.ends_with(&files.concat()),
        "{modes}"
    );
    ensure!(list()? == home, "{home}{}", list()?);

    // Nobody else on the node can read the key, and it is nowhere but where it belongs.
    let pid = server(&bench, "n1")?;
    let node = bench.cluster.node("n1")?;
    let secret = inside.lines().nth(2).context("no key")?.to_owned();
    let look = |places: &str| {
        let search = format!(
            "cat /proc/{pid}/root/etc/ssh/shifter/* /proc/{pid}/environ; scontrol show job {}; \
             squeue -o %all; grep -rlsF -f - --exclude=stolen /proc/[0-9]*/cmdline \
             /proc/[0-9]*/environ /home /scratch /tmp /var/spool /etc/ssh {places}",
            job.id()
        );
        node.call(["bash", "-c", &search]).input(secret.clone())
    };
    let output = look("/run/shifter").by(Bob).output()?;
    ensure!(output.stderr.contains("ermission denied"), "{output}");
    let has_key = |text: &str| text.contains("PRIVATE") || text.contains(&secret);
    ensure!(
        !has_key(&output.stdout) && !output.stdout.contains("/run/shifter"),
        "{output}"
    );
    // Root finds it in the manifest alone: the search is one that finds.
    let output = look("/run/shifter").output()?;
    let files = output
        .stdout
        .lines()
        .filter(|line| line.starts_with("/run/") || line.starts_with("/proc/"));
    let manifest = format!("/run/shifter/jobs/{}/manifest", job.id());
    ensure!(files.eq([manifest.as_str()]), "{output}");

    // Processes on both sides of the door are alice's and nothing more.
    let script =
        "echo in; grep -E '^(Uid|Gid|Cap|NoNewPrivs)' /proc/self/status /proc/$PPID/status";
    let status = run(
        &bench.cluster,
        &["--exclusive", "-wn2", HOST],
        &format!("shifter ssh n2 \"{script}\"").replace("$PPID", "\\$PPID"),
    )?;
    ensure!(
        status.matches("Uid:\t2001\t2001\t2001\t2001\n").count() == 2,
        "{status}"
    );
    ensure!(status.matches("NoNewPrivs:\t1\n").count() == 2, "{status}");
    ensure!(
        status.matches("\t0000000000000000\n").count() == 10,
        "{status}"
    );

    // And have nothing of the server's open but what the client talks through.
    for option in ["-T", "-tt"] {
        let fds = "readlink /proc/self/fd/* | sort -u";
        let call = format!("shifter ssh {option} n2 '{fds}'");
        let fds = run(&bench.cluster, &["--exclusive", "-wn2", HOST], &call)?;
        ensure!(
            !fds.contains("socket:") && !fds.contains("anon_inode"),
            "{fds}"
        );
    }

    // The next job has other keys.
    job.cancel()?;
    job.wait()?;
    let job = bench.cluster.submit(Alice, &options, STAY)?;
    ensure!(first.contains("PRIVATE"), "{first}");
    ensure!(read_inside(&bench, &job, "/etc/ssh/shifter/host_key")? != first);
    let output = knock(&bench, Alice, &["-i", &stolen, "-l", "alice"])?;
    ensure!(output.code == 255, "{output}");
    job.cancel()?;
    job.wait()?;
    bench.ensure_clean()
}

#[test]
fn cluster_ssh_debian_clients_do_what_they_do_elsewhere() -> Result<()> {
    let bench = start("enable = 'always'")?;
    let script = r#"
        cd /scratch/alice; head -c 3000000 /dev/urandom >big; printf 'x y' >'a b'; mkdir -p tree/sub; echo z >tree/sub/z
        inside() { shifter "$@" </dev/null; }
        echo input | shifter ssh n1 'cat; echo error >&2; exit 7' 2>error; echo $? $(cat error)
        inside ssh -F /etc/ssh/ssh_config -p 1204 n1 'kill -9 $$'; echo $?
        inside ssh -F /opt/udiImage/etc/ssh_config n1 pwd
        inside scp -q big n1:/scratch/alice/big2; cmp big big2 && echo scp
        inside scp -q n1:/scratch/alice/big big3; cmp big big3 && echo back
        inside scp -qO big n1:/scratch/alice/big4; cmp big big4 && echo old scp
        inside scp -qr tree n1:/scratch/alice/copy; cat copy/sub/z
        printf 'mkdir d\ncd d\nput "/scratch/alice/a b"\nrename "a b" c\nls -1\nget c /scratch/alice/got\nrm c\ncd ..\nrmdir d\n' |
            shifter sftp -q -b - n1:/scratch/alice | grep -v '^sftp>'; cat got; echo
        TERM=xterm inside script -qec "stty rows 33 cols 44; ssh -tt n1 'stty size; test -t 0 && echo terminal; echo \$TERM'" /dev/null | grep -aoE '33 44|terminal|xterm'
        printf 'expr 6 \\* 7; exit 4\n' | shifter ssh -tt n1 >typed 2>&1; echo $?; grep -aom1 42 typed
        LC_SENT=1 OMP_NUM_THREADS=3 SECRET=2 inside ssh -o SendEnv='LC_SENT OMP_* SECRET LD_*' n1 'echo $LC_SENT $OMP_NUM_THREADS $SECRET $HOME'
        inside ssh -o ExitOnForwardFailure=yes -R 7777:n1:22 n1 true 2>&1 | grep -o 'remote port forwarding failed'
        inside ssh -W n1:1204 n1 2>&1 | grep -o 'administratively prohibited'
        (inside ssh -A n1 'echo agent=$SSH_AUTH_SOCK')
        echo done
    "#;
    let output = run(&bench.cluster, &["--exclusive", "-wn1", HOST], script)?;
    let expected = "input\n7 error\n255\n/home/alice\nscp\nback\nold scp\nz\nc\nx y\n33 44\nterminal\n\
        xterm\n4\n42\n1 3 /home/alice\nremote port forwarding failed\nadministratively prohibited\n\
        agent=\ndone\n";
    ensure!(output == expected, "{output}\n{expected}");
    bench.ensure_clean()
}

#[test]
fn cluster_ssh_own_client_where_the_image_has_none() -> Result<()> {
    let bench = start("enable = 'always'\ntcp_forwarding = true")?;
    let script = r#"
        cd /scratch/alice; head -c 3000000 /dev/urandom >big
        inside() { shifter "$@" </dev/null; }
        inside sh -c 'type ssh; ls /opt/udiImage'
        echo input | shifter ssh n1 'cat; echo error >&2; exit 7' 2>error; echo $? $(cat error)
        shifter ssh n1 'cat >/scratch/alice/big2' <big; inside ssh n1 cat /scratch/alice/big2 | cmp - big && echo same
        script -qec "stty rows 33 cols 44; shifter ssh -t n1 'stty size; test -t 0 && echo terminal'" /dev/null </dev/null | grep -aoE '33 44|terminal'
        inside ssh -F /etc/ssh/ssh_config -p 1204 -oConnectTimeout=5 -2 -a -x -lalice n1 cat /etc/marker
        inside ssh root@n1 true 2>&1; echo $?
        inside ssh n2 true 2>&1; echo $?
        inside ssh example.org true 2>&1; echo $?
        inside ssh n1 'kill -9 $$'; echo $?
    "#;
    let options = ["--exclusive", "-wn1", &bench.a.option()];
    let output = run(&bench.cluster, &options, script)?;
    let expected = "ssh is /opt/udiImage/bin/ssh\nbin\netc\nsbin\ninput\n7 error\nsame\n33 44\n\
        terminal\na\nssh: root@n1: Permission denied (publickey).\n255\n\
        ssh: 'n2' is no node of this job, and this image has no other ssh\n255\n\
        ssh: 'example.org' is no node of this job, and this image has no other ssh\n255\n255\n";
    ensure!(output == expected, "{output}\n{expected}");
    // And where the site lets them, clients are connected further.
    let script = "shifter ssh -W n1:1204 n1 </dev/null | head -c 7";
    let output = run(&bench.cluster, &["--exclusive", "-wn1", HOST], script)?;
    ensure!(output == "SSH-2.0", "{output}");
    bench.ensure_clean()
}

#[test]
fn cluster_ssh_between_nodes_for_pdsh_and_mpirun() -> Result<()> {
    let state = "/scratch/.state";
    let shared = format!("enable = 'ask'\n[shared_state]\npath = '{state}'\n[slurm]\nccm = true");
    let bench = start_on(4, &shared)?;
    Call::new(["install", "-d", "-m", "0700", state]).ok()?;
    let program = r#"
        #include <mpi.h>
        #include <stdio.h>
        int main(int argc, char **argv) {
            int rank, size, length; char name[MPI_MAX_PROCESSOR_NAME];
            MPI_Init(&argc, &argv);
            MPI_Comm_rank(MPI_COMM_WORLD, &rank); MPI_Comm_size(MPI_COMM_WORLD, &size);
            MPI_Get_processor_name(name, &length);
            int sum; MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
            printf("%d of %d on %s: %d\n", rank, size, name, sum);
            MPI_Finalize();
        }"#;
    fs::write("/scratch/hello.c", program)?;
    for kind in ["mpich", "openmpi"] {
        let to = format!("/scratch/hello.{kind}");
        Call::new([&format!("mpicc.{kind}"), "-o", &to, "/scratch/hello.c"]).ok()?;
    }
    // Each node has its own tree of processes and its own /tmp, and nothing says how to go there.
    // Open MPI warns where a child of its own has executed ssh before it could set its group.
    let script = r#"
        inside() { timeout 20 shifter "$@" </dev/null 2>&1; }
        sorted() { inside "$@" | sort; }
        inside ssh n2 hostname
        inside ssh n2 ssh n1 hostname
        sorted pdsh -R ssh -w 'n[1-4]' 'hostname; exit 3'
        sorted mpirun.mpich /scratch/hello.mpich
        sorted mpirun.openmpi --mca btl_tcp_if_include eth0 /scratch/hello.openmpi |
            grep -v 'plm:rsh: Warning: setpgid(.*) failed in parent'
    "#;
    let options = [
        "--exclusive",
        "-N4",
        "-n4",
        "--ntasks-per-node=1",
        "--sshd",
        HOST,
    ];
    let output = run(&bench.cluster, &options, script)?;
    let of_nodes = |line: &dyn Fn(usize) -> String| (1..=4).map(line).collect::<String>();
    let ranks = of_nodes(&|node| format!("{} of 4 on n{node}: 6\n", node - 1));
    let names = of_nodes(&|node| format!("n{node}: n{node}\n"));
    let failed = of_nodes(&|node| format!("pdsh@n1: n{node}: ssh exited with exit code 3\n"));
    let expected = format!("n2\nn1\n{names}{failed}{ranks}{ranks}");
    ensure!(output == expected, "{output}\n{expected}");
    // The same for images without ssh of their own; srun's tasks, too.
    let options = ["--exclusive", "-N2", "--sshd", &bench.a.option()];
    // A step's own container reaches its job's, and has no server.
    let b = bench.b.option();
    let script = format!(
        "srun -N2 --ntasks-per-node=1 shifter sh -c 'ssh n1 hostname; ssh n2 hostname'
         srun -N1 -n1 {b} shifter sh -c 'cat /etc/marker; ssh n2 cat /etc/marker'
         srun -N1 -n1 {b} --sshd true 2>&1 | grep -o 'shifter: .*'"
    );
    let output = run(&bench.cluster, &options, &script)?;
    ensure!(
        output.matches("n1\n").count() == 2 && output.matches("n2\n").count() == 2,
        "{output}"
    );
    let own = "b\na\nshifter: cannot use --sshd for a step with a container of its own: \
               ssh leads to its job's\n";
    ensure!(output.ends_with(own), "{output}");
    // The host's own environment is a container like any other.
    let script = "ssh n2 'hostname; findmnt -n -o SOURCE / | head -n1'; ssh n2 ssh n1 hostname
        srun -N1 -n1 -w n2 ssh n1 hostname";
    let options = ["--exclusive", "-N2", "--ccm"];
    let output = run(&bench.cluster, &options, script)?;
    ensure!(output == "n2\nshifter\nn1\nn1\n", "{output}");
    let without = ["--exclusive", "-wn1", "--ccm", "--sshd=no"];
    let output = run(
        &bench.cluster,
        &without,
        "ls -d /etc/ssh/shifter 2>&1; true",
    )?;
    ensure!(output.contains("No such file"), "{output}");
    ensure!(
        Call::shell(&format!("find {state} -name ssh"))
            .ok()?
            .is_empty()
    );

    // Who does not ask has none, and who asks where nodes share nothing learns it.
    let options = ["--exclusive", "-N2", HOST];
    let output = run(
        &bench.cluster,
        &options,
        "shifter ls /etc/ssh/shifter 2>&1; true",
    )?;
    ensure!(output.contains("No such file"), "{output}");
    bench
        .product
        .configure("[store.trees]\nhost = '/'\n[ssh]\nenable = 'ask'")?;
    let options = ["--exclusive", "-N2", "--sshd", HOST];
    let (job, info) = bench.cluster.run(Alice, &options, "echo ran")?;
    info.expect("FAILED", "1:0")?;
    let line = "shifter: no ssh between several nodes: no shared state of this site brings them the keys\n";
    ensure!(job.output()?.starts_with(line), "{}", job.output()?);
    bench.product.configure("")?;
    let refused = bench
        .cluster
        .sbatch(Alice, &[&bench.a.option(), "--sshd"], "true")?;
    let line = "shifter: cannot use --sshd: this site does not allow it";
    ensure!(
        refused.code == 1 && refused.stderr.contains(line),
        "{refused}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_ssh_ends_with_the_job_and_all_it_started() -> Result<()> {
    let bench = start("enable = 'always'")?;
    let script = "shifter ssh n1 'setsid sleep 301 >/dev/null 2>&1 & \
        (setsid bash -c \"trap : TERM HUP; exec -a renamed sleep 302\" >/dev/null 2>&1 &) & \
        unshare -Urm sleep 303 >/dev/null 2>&1 & sleep 0.3'
        shifter ssh n1 'cat /proc/self/cgroup' | grep -o 'job_.*'; echo up; sleep 300";
    let job = bench
        .cluster
        .submit(Alice, &["--exclusive", "-wn1", HOST], script)?;
    job.wait_for_output("up")?;
    let of_alice = || Call::shell("pgrep -u alice -f 'renamed|sleep 30[123]' -c; true").ok();
    ensure!(of_alice()?.trim() == "3", "{}", of_alice()?);
    ensure!(job.output()?.contains("/step_extern"), "{}", job.output()?);

    // What is no client is sent away, and the server stays what it was.
    let pid = server(&bench, "n1")?;
    let junk = r#"
import os, random, socket
random.seed(7)
held = []
for number in range(300):
    try:
        s = socket.create_connection(('10.1.0.1', 1204), 2)
        s.settimeout(0.5)
        if number % 3: s.sendall(b'SSH-2.0-x\r\n')
        s.sendall(random.randbytes(random.choice([0, 1, 5, 40, 4000, 70000])))
        if number % 5 == 0: s.sendall(b'\xff' * 9)
        (held.append if number % 7 == 0 else socket.socket.close)(s)
    except OSError: pass
"#;
    Call::new(["python3", "-c", junk]).by(Bob).ok()?;
    ensure!(server(&bench, "n1")? == pid, "another server");
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib: u64 = resident
        .and_then(|l| l.split_whitespace().nth(1))
        .context("VmRSS")?
        .parse()?;
    ensure!(kib < 64 << 10, "the server has grown to {kib} KiB");
    let inside = bench
        .cluster
        .srun(Alice, ["--overlap", "--jobid", job.id(), "shifter"]);
    let inside = inside
        .args(["ssh", "n1", "echo still there"])
        .output()?
        .success()?;
    ensure!(inside.stdout == "still there\n", "{inside}");

    job.cancel()?;
    job.wait()?;
    ensure!(of_alice()?.trim() == "0", "{}", of_alice()?);
    bench.ensure_clean()
}

#[test]
fn cluster_ssh_is_for_nodes_that_the_job_has_alone() -> Result<()> {
    let bench = start("enable = 'always'")?;
    let other = bench.cluster.submit(Bob, &["-wn1", "-n1"], STAY)?;
    other.wait_for_output("up")?;
    let image = bench.a.option();
    let script = "shifter ssh -oConnectTimeout=5 n1 true 2>&1; shifter cat /etc/marker";
    let output = run(&bench.cluster, &["-wn1", "-n1", &image], script)?;
    ensure!(
        output.contains("refused") && output.ends_with("\na\n"),
        "{output}"
    );
    let line = format!(
        "no ssh on this node: job {} is on this node too",
        other.id()
    );
    let log = bench.cluster.node("n1")?.log();
    ensure!(log.contains(&line), "{log}");
    // Who asks for it is told, once, and before it is missed.
    let script = "shifter cat /etc/marker; srun true; srun shifter ssh n1 true || echo without";
    let output = run(&bench.cluster, &["-wn1", "-n1", "--sshd", &image], script)?;
    let told = format!("shifter: n1: {line}");
    ensure!(
        output.matches(&told).count() == 1
            && output
                .lines()
                .next()
                .is_some_and(|first| first.ends_with(&told))
            && output.contains("\na\n")
            && output.ends_with("without\n"),
        "{output}"
    );
    other.cancel()?;
    other.wait()?;
    // Whatever the site does for every job, one can do without.
    let script = "shifter ls -d /etc/ssh/shifter; srun --sshd true 2>&1 | grep -o 'its job.*'";
    let options = ["--exclusive", "-wn1", "--sshd=no", &image];
    let output = run(&bench.cluster, &options, script)?;
    ensure!(
        output.contains("No such file") && output.ends_with("its job was started without\n"),
        "{output}"
    );
    // Off is off, and nothing of it is in a container.
    bench.product.configure("")?;
    let script = "shifter ls -d /etc/ssh/shifter 2>/dev/null; shifter sh -c 'echo $PATH'";
    let output = run(&bench.cluster, &["--exclusive", "-wn1", &image], script)?;
    ensure!(
        !output.contains("ssh") && !output.contains("udiImage"),
        "{output}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_ssh_that_cannot_come_is_told_of_at_once() -> Result<()> {
    let bench = Bench::start_with(|product, options| {
        options.slurm_conf = "PrologFlags=Alloc".into();
        product.configure("[ssh]\nenable = 'ask'")
    })?;
    let script = "shifter cat /etc/marker; srun shifter cat /etc/marker";
    let options = ["-wn1", "-n1", "--sshd", &bench.a.option()];
    let output = run(&bench.cluster, &options, script)?;
    let told =
        "shifter: n1: no ssh on this node: Slurm makes no extern step (PrologFlags=Contain)\n";
    let first = output.split_inclusive('\n').next();
    ensure!(
        first.is_some_and(|first| first.ends_with(told))
            && output.matches("no ssh").count() == 1
            && output.ends_with("\na\na\n"),
        "{output}"
    );
    bench.ensure_clean()
}

#[test]
fn cluster_who_stops_the_making_of_keys_takes_no_node_away() -> Result<()> {
    let bench = Bench::start_with(|product, _| product.configure("[ssh]\nenable = 'always'"))?;
    // It runs as the job's user, who can do that from another job on the node.
    let program = bench.product.path("lib/shifter/shifter-ssh-keys");
    fs::rename(&program, format!("{program}.away"))?;
    fs::write(&program, "#!/bin/sh\nkill -KILL $$\n")?;
    Call::new(["chmod", "0755", &program]).ok()?;
    let output = bench.srun(Alice, &bench.a, &["-wn1", "shifter", "true"]);
    fs::rename(format!("{program}.away"), &program)?;
    let output = output?;
    let told = "shifter: no ssh on this node: cannot make keys: signal 9";
    ensure!(output.code != 0 && output.stderr.contains(told), "{output}");
    bench.ensure_clean()
}
