# A job's root and a private one on this kernel, from set-up to nothing left.

modules_are_loaded() {
    configure "[kernel]
preload = ['loop', 'squashfs', 'overlay']"
    set_up 1
    unsetupRoot 1
}

# What a node holds: mounts without their numbers, loop devices in use, state, processes of users.
holdings() {
    cut -d' ' -f5- /proc/self/mountinfo | sed 's/shared:[0-9]*/shared/' | sort
    grep -H . /sys/block/loop*/loop/backing_file 2>/dev/null || true
    find /run | sort
    users_processes
    find /tmp /var/tmp /scratch | sort
}

# Without those that have ended and wait for the first process, which is busy.
users_processes() {
    ps -o user,stat,args | grep '^alice' | grep -v '^alice *Z' || true
}

# Runs a script as alice, as a task of job 7 would on a node with cgroup v2, or outside of any job.
as_alice() {
    su -s /bin/sh alice -c "cd /scratch/alice && PATH=$PATH; $1"
}
in_job() {
    local step=/sys/fs/cgroup/system.slice/slurmstepd.scope/job_${job-7}/step_0/user/task_0
    mkdir -p $step
    (
        sh -c 'echo $PPID' >$step/cgroup.procs
        as_alice "$1"
    )
}

a_root_is_set_up() {
    holdings >/test/before
    set_up 7
    grep -q 'nsfs.* rw' /proc/self/mountinfo || fail "no pin: $(cat /proc/self/mountinfo)"
    [ "$(cat /sys/block/loop*/loop/backing_file)" = "/var/lib/shifter/images/$image.squashfs" ]
}

a_task_joins_it() {
    local out
    out=$(in_job 'shifter sh -c "cat /etc/marker; id; readlink /proc/self/ns/mnt; touch /data/here"')
    case $out in "tiny
uid=2001(alice) gid=2001(alice) groups=2001(alice),2100(proj)"*) ;; *) fail "$out" ;; esac
    [ "$(stat -c %u /scratch/alice/here)" = 2001 ]
    # Another task is in the same namespace.
    [ "$(in_job 'shifter readlink /proc/self/ns/mnt')" = "$(echo "$out" | tail -1)" ] || fail "$out"
}

a_private_root_shares_the_image() {
    local out
    out=$(as_alice "shifter --image=id:$image sh -c 'cat /etc/marker; id; sleep 2' &
        sleep 1; cat /sys/block/loop*/loop/backing_file | grep -c .; wait")
    case $out in *"uid=2001(alice) gid=2001(alice) groups=2001(alice),2100(proj)"*) ;;
    *) fail "$out" ;; esac
    [ "$(echo "$out" | grep -c tiny)" = 1 ] || fail "$out"
    echo "$out" | grep -qx 1 || fail "one loop device expected: $out"
    # Outside of the job's cgroup there is no job.
    out=$(as_alice 'shifter id 2>&1') && fail "joined: $out"
    return 0
}

starts_at_once_share_it_too() {
    as_alice "for i in 1 2 3 4 5 6 7 8; do
        shifter --image=id:$image sleep 1 & pids=\"\$pids \$!\"; done
        for pid in \$pids; do wait \$pid || exit 1; done"
    [ "$(cat /sys/block/loop*/loop/backing_file | wc -l)" = 1 ]
}

nothing_in_it_is_privileged() {
    local in status
    for in in "shifter" "shifter --image=id:$image"; do
        status=$(in_job "$in cat /proc/self/status")
        for line in 'NoNewPrivs:	1' 'CapBnd:	0000000000000000' 'CapEff:	0000000000000000' \
            'CapPrm:	0000000000000000' 'CapAmb:	0000000000000000' 'Uid:	2001	2001	2001	2001'; do
            echo "$status" | grep -q "^$line" || fail "$in: '$line' expected: $status"
        done
    done
}

mounts_are_what_they_must_be() {
    local in mounts at options
    for in in "shifter" "shifter --image=id:$image"; do
        mounts=$(in_job "$in cat /proc/self/mountinfo" | cut -d' ' -f5,6,7)
        [ -n "$mounts" ]
        echo "$mounts" >/test/mounts
        while read -r at options shared; do
            case $options in *nosuid*) ;; *) fail "$in: suid: $at $options" ;; esac
            case $at in /dev*) ;; *) case $options in *nodev*) ;; *) fail "$in: dev: $at" ;; esac ;; esac
            case $at in /proc* | /sys* | /dev* | /tmp | /var/tmp | /scratch | /home | /data) continue ;; esac
            case $options in ro*) ;; *) fail "$in: writable: $at $options" ;; esac
        done </test/mounts
        grep -q '^/ ro,' /test/mounts || fail "no root: $mounts"
        ! grep -q -e ' shared:' -e ' master:' -e /run/shifter /test/mounts || fail "$mounts"
        in_job "$in sh -c 'for at in / /usr /etc /bin /var /opt; do
            touch \$at/x 2>/dev/null && echo wrote to \$at; done; true'" >/test/wrote
        [ ! -s /test/wrote ] || fail "$in: $(cat /test/wrote)"
        in_job "$in sh -c 'touch /tmp/x /scratch/alice/x && echo x >/dev/null'"
    done
    rm /tmp/x /scratch/alice/x
}

a_start_that_fails_says_so() {
    local status=0 out
    out=$(as_alice 'shifter --image=nosuch true 2>&1') || status=$?
    [ $status = 4 ] || fail "$status: $out"
    status=0
    out=$(in_job 'shifter /no/such' 2>&1) || status=$?
    [ $status = 127 ] || fail "$status: $out"
}

nothing_is_left() {
    # One that ends when it is told to, one that does not, and one in namespaces of its own.
    in_job 'shifter sleep 1000 >/dev/null 2>&1 & shifter sh -c "trap : TERM; while :; do sleep 1; done" >/dev/null 2>&1 &
        shifter sh -c "unshare -Urm sleep 2000" >/dev/null 2>&1 &'
    sleep 1
    [ "$(users_processes | grep -c -e 'sleep [12]000$' -e 'trap : TERM')" = 3 ] ||
        fail "$(users_processes)"
    unsetupRoot 7
    rm /scratch/alice/here
    # The kernel frees the loop device in its own time.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        holdings >/test/after
        cmp -s /test/before /test/after && return
        sleep 0.3
    done
    fail "$(diff /test/before /test/after)"
}

a_second_teardown_finds_nothing() {
    unsetupRoot 7
    holdings >/test/after
    cmp -s /test/before /test/after || fail "$(diff /test/before /test/after)"
}

# As where every node is a namespace on one machine.
a_daemon_may_have_a_namespace_of_its_own() {
    unshare -m sh -euc '. /test/lib.sh; . /test/roots.sh functions
        mount --make-rprivate /
        set_up 8
        grep -q /run/shifter /proc/self/mountinfo
        [ "$(job=8 in_job "shifter cat /etc/marker")" = tiny ]
        unsetupRoot 8'
    holdings >/test/after
    cmp -s /test/before /test/after || fail "$(diff /test/before /test/after)"
}

[ "${1-}" != functions ] || return 0
check modules_are_loaded
check a_root_is_set_up
check a_task_joins_it
check a_private_root_shares_the_image
check starts_at_once_share_it_too
check nothing_in_it_is_privileged
check mounts_are_what_they_must_be
check a_start_that_fails_says_so
check nothing_is_left
check a_second_teardown_finds_nothing
check a_daemon_may_have_a_namespace_of_its_own
