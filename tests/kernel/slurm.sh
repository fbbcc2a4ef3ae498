# A real Slurm of one node with cgroup v2: what of the product depends on how Slurm keeps its jobs
# there.

PATH=/opt/shifter/bin:/opt/shifter/sbin:/usr/bin:/usr/sbin:/bin
modules='[kernel]
preload = ["loop", "squashfs", "overlay"]'

as_alice() {
    su -s /bin/sh alice -c "cd /scratch/alice && PATH=$PATH; $1"
}

# Waits until the machine is as Slurm has it between jobs.
slurm_is_idle() {
    local i
    for i in $(seq 300); do
        [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && [ -z "$(squeue -h)" ] && return
        sleep 0.2
    done
    fail "$(sinfo -h -N -o '%T %E'; squeue -h; tail -n 20 /var/log/slurmd.log /var/log/slurmctld.log)"
}

# Mounts without their numbers, loop devices in use, processes of users, state.
holdings() {
    cut -d' ' -f5- /proc/self/mountinfo | sed 's/shared:[0-9]*/shared/' | sort
    grep -H . /sys/block/loop*/loop/backing_file 2>/dev/null || true
    find /run/shifter -mindepth 1 2>/dev/null | sort
    ps -o user,stat,args | grep '^alice' | grep -v '^alice *Z' || true
    find /sys/fs/cgroup -name 'job_*'
}

slurm_starts() {
    # A host without an address of its own finds no other.
    ifconfig lo 127.0.0.1 up
    ifconfig lo:1 192.0.2.1 netmask 255.255.255.255 up
    # What systemd does elsewhere.
    local dir controllers='+cpu +cpuset +memory +pids'
    mkdir /sys/fs/cgroup/system.slice
    for dir in /sys/fs/cgroup /sys/fs/cgroup/system.slice; do
        echo $controllers >$dir/cgroup.subtree_control
    done
    mkdir -p /var/spool/slurmctld /var/spool/slurmd /var/log/munge /var/lib/munge /run/munge
    munged --force
    slurmctld
    slurmd
    configure "$modules
[ssh]
enable = 'always'"
    slurm_is_idle
    holdings >/test/before
    as_alice 'sbatch --parsable --exclusive --mem=150 --image=tiny --output=/dev/null /test/script' >/test/job
}

# What the job that most is asked of runs: a step costs a tenth of what a job does here. Each part leaves
# a file when it is over.
cat >/test/script <<'END'
#!/bin/sh
part() {
    name=$1
    shift
    "$@" >.part 2>&1
    echo "status $?" >>.part
    mv .part "$name"
}
take='busybox dd if=/dev/zero of=/dev/null count=1 bs=60M'
part root srun --overlap sh -c 'shifter sh -c "cat /etc/marker /proc/self/cgroup"
    # By the cgroup alone: the environment names no job.
    env -i PATH=$PATH shifter cat /etc/marker
    # And by the cgroup all the same, where the environment names another.
    SLURM_JOB_ID=1 SLURM_JOBID=1 shifter cat /etc/marker'
part enough srun --overlap --mem=90 shifter $take
part joined srun --overlap --mem=30 shifter $take
part shifted srun --overlap --mem=30 --autoshift $take
shifter busybox setsid sleep 1001 &
shifter --image=tiny busybox setsid sleep 1002 &
exec sleep 1003
END

# Prints what a part of the job left, once it is over.
part() {
    local i
    for i in $(seq 500); do
        [ ! -e "/scratch/alice/$1" ] || break
        sleep 0.2
    done
    cat "/scratch/alice/$1" || fail "$(squeue; tail -n 20 /var/log/slurmd.log)"
}

tasks_join_the_root_of_their_cgroups_job() {
    local out
    out=$(part root)
    case $out in "tiny
0::/system.slice/"*slurmstepd.scope/job_[0-9]*"/step_0/user/task_0
tiny
tiny
status 0") ;; *) fail "$out" ;; esac
    # Nobody is in a job who says so.
    out=$(as_alice 'SLURM_JOB_ID=1 shifter true 2>&1') && fail "joined: $out"
    return 0
}

memory_is_limited_inside() {
    local name out
    out=$(part enough)
    case $out in *"status 0") ;; *) fail "$out" ;; esac
    for name in joined shifted; do
        out=$(part $name)
        case $out in
        *"status 0") fail "$name: more than allowed: $out" ;;
        *oom_kill* | *oom-kill* | *"Out Of Memory"*) ;;
        *) fail "$name: $out" ;;
        esac
    done
}

sshd_is_in_its_jobs_cgroup() {
    local pid
    pid=$(ps -o pid,args | sed -n "s/^ *\([0-9]*\) .*sshd: job [0-9]* --user.*/\1/p")
    [ -n "$pid" ] || fail "no server: $(ps; tail -n 20 /var/log/slurmd.log)"
    grep -q '^0::/system.slice/.*slurmstepd.scope/job_[0-9]*/step_extern/user' "/proc/$pid/cgroup" ||
        fail "elsewhere: $(cat "/proc/$pid/cgroup")"
    grep -q '^Uid:	2001	2001	2001	2001' "/proc/$pid/status"
}

# Under the job, of which Slurm lets live what the product must end.
processes_of_a_job_are_found_by_its_cgroup() {
    local i left
    for i in $(seq 100); do
        [ "$(ps -o args | grep -c '^sleep 100[123]$')" = 3 ] && break
        sleep 0.2
    done
    left=$(ps -o args | grep '^sleep 100[123]$' | sort | tr '\n' ' ')
    [ "$left" = 'sleep 1001 sleep 1002 sleep 1003 ' ] || fail "not all run: $left $(ps)"
    unsetupRoot "$(cat /test/job)"
    left=$(ps -o args | grep '^sleep 100[123]$' | tr '\n' ' ')
    [ "$left" = 'sleep 1003 ' ] || fail "left: $left"
    scancel "$(cat /test/job)"
    slurm_is_idle
}

# A job that ends by itself.
tasks_are_inside_by_themselves() {
    local out
    out=$(as_alice 'srun --image=tiny --autoshift sh -c "cat /etc/marker; grep NoNewPrivs /proc/self/status"')
    [ "$out" = 'tiny
NoNewPrivs:	1' ] || fail "$out"
}

nothing_is_left_of_jobs() {
    local i
    slurm_is_idle
    # The kernel frees the loop device in its own time.
    for i in $(seq 20); do
        holdings >/test/after
        cmp -s /test/before /test/after && return
        sleep 0.3
    done
    fail "$(diff /test/before /test/after)"
}

check slurm_starts
check tasks_join_the_root_of_their_cgroups_job
check memory_is_limited_inside
check sshd_is_in_its_jobs_cgroup
check processes_of_a_job_are_found_by_its_cgroup
check tasks_are_inside_by_themselves
check nothing_is_left_of_jobs
