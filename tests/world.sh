#!/bin/bash
# Runs a command in a machine of its own, on this machine, and leaves no trace:
#
#   tests/world.sh COMMAND [ARGUMENT...]
#
# The command sees this machine's files through an overlay whose changes are kept in memory, and
# has process ids, network, host name and cgroups of its own. When it ends, whatever it started,
# mounted or wrote is gone; only the checkout and the build directory are the real ones.
# In there are the users alice (with the group proj), bob, and shifter, who owns the image store;
# /scratch/USER, /home/USER and a loopback network on which every port is free.
# Root is needed; other users get it through sudo.
set -euo pipefail

here=$(realpath "$0")
repo=$(dirname "$(dirname "$here")")
target=$(realpath -m "${CARGO_TARGET_DIR:-$repo/target}")

die() {
    echo "world.sh: $*" >&2
    exit 1
}

# Stage 1, as root in a mount namespace of its own: makes the directory that holds everything and
# waits for stage 2, then removes the directory and the cgroups.
outside() {
    W=$(mktemp -d /var/lib/shifter-testbed.XXXXXX)
    mount -t tmpfs -o mode=0755 testbed "$W"
    mkdir "$W/cgroup"
    # Slurm's cgroup/v1 plugin needs the freezer alone, which can be mounted beside cgroup v2 too.
    mount -t cgroup -o freezer cgroup "$W/cgroup" || die "cannot mount the cgroup v1 freezer"
    group=$W/cgroup/${W##*/}
    mkdir "$group"
    # And the memory, where the machine does not have it in v2: for the tests of limits.
    mkdir "$W/memory"
    memory=
    if mount -t cgroup -o memory cgroup "$W/memory" 2>/dev/null; then
        memory=$W/memory/${W##*/}
        mkdir "$memory"
    fi
    trap 'remove_world' EXIT
    trap 'exit 130' INT TERM HUP
    # Stage 2 dies with us, and with it every process in its PID namespace, by the kernel's hand.
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        [ -z "$memory" ] || echo "$BASHPID" >"$memory/cgroup.procs"
        exec setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount \
            --propagation private --uts --ipc --net --cgroup \
            env WORLD_STAGE=2 "WORLD_DIR=$W" "WORLD_MEMORY=$memory" "$here" "$@"
    ) <&0 & # in the background so that traps run at once
    [ -z "${WORLD_PIDFILE-}" ] || echo $! >"$WORLD_PIDFILE"
    wait $!
}

remove_world() {
    trap '' INT TERM HUP
    kill -KILL "$!" 2>/dev/null || true
    wait || true
    # The kernel takes a moment to bury what was in the namespace.
    for _ in $(seq 100); do
        find "$group" ${memory:+"$memory"} -depth -type d -exec rmdir {} + 2>/dev/null && break
        sleep 0.05
    done
    [ -z "$memory" ] || umount "$W/memory"
    umount "$W/cgroup"
    umount "$W"
    rmdir "$W"
}

# Shows one of this machine's file systems through an overlay.
overlay() {
    local at=$1 number=$2
    mkdir -p "$W/$number/upper" "$W/$number/work"
    mount -t overlay -o "lowerdir=$at,upperdir=$W/$number/upper,workdir=$W/$number/work" \
        overlay "$root$at"
}

fresh() {
    mkdir -p "$root$2"
    mount -t tmpfs -o "mode=$1" tmpfs "$root$2"
}

# Stage 2, as process 1 of the new world.
inside() {
    W=$WORLD_DIR
    root=$W/root
    mkdir "$root"
    local number=0 at type
    overlay / 0
    while read -r at type; do
        case $at in / | /proc* | /sys* | /dev* | /run* | /tmp* | /home* | "$W"*) continue ;; esac
        case $type in ext* | xfs | btrfs | zfs | f2fs | overlay | nfs* | virtiofs | 9p)
            [ -d "$at" ] && overlay "$at" $((++number)) ;;
        esac
    done < <(findmnt -rno TARGET,FSTYPE)

    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
    mount --bind /dev "$root/dev"
    mount -t devpts -o newinstance,mode=620,gid=5,ptmxmode=666 devpts "$root/dev/pts"
    fresh 1777 /dev/shm
    fresh 0755 /run
    fresh 1777 /tmp
    fresh 1777 /var/tmp
    fresh 0755 /home
    fresh 0755 /scratch
    fresh 0755 /var/lib/shifter
    fresh 0755 /sys/fs/cgroup
    mkdir "$root/sys/fs/cgroup/freezer"
    mount -t cgroup -o freezer cgroup "$root/sys/fs/cgroup/freezer"
    if [ -n "$WORLD_MEMORY" ]; then
        mkdir "$root/sys/fs/cgroup/memory"
        mount -t cgroup -o memory cgroup "$root/sys/fs/cgroup/memory"
    fi
    mkdir -p "$target"
    for at in "$repo" "$target"; do
        mkdir -p "$root$at"
        mount --bind "$at" "$root$at"
    done

    cwd=$PWD
    cd "$root"
    pivot_root . .
    umount -l .
    cd "$cwd" 2>/dev/null || cd /

    hostname login
    ip link set lo up
    # Where no address but 127.0.0.1 is set, getaddrinfo(AI_ADDRCONFIG) finds no host at all.
    ip address add 192.0.2.1/32 dev lo
    people
    mkdir -m 0755 /run/lock /run/munge
    # Root in here is nobody's deputy.
    unset WORLD_STAGE WORLD_DIR WORLD_MEMORY ${!SUDO_@}
    export SHIFTER_WORLD=${W##*/}
    local status=0
    "$@" || status=$?
    # bash stays process 1 so that somebody reaps what daemons leave behind.
    exit $status
}

people() {
    sed -i -E '/^(alice|bob|shifter|proj):/d' /etc/passwd /etc/shadow /etc/group /etc/gshadow
    cat >>/etc/passwd <<'END'
alice:x:2001:2001:Alice:/home/alice:/bin/bash
bob:x:2002:2002:Bob:/home/bob:/bin/bash
shifter:x:2900:2900:Owner of the image store:/var/lib/shifter:/usr/sbin/nologin
END
    cat >>/etc/group <<'END'
alice:x:2001:
bob:x:2002:
shifter:x:2900:
proj:x:2100:alice
END
    printf '%s:*:19000:0:99999:7:::\n' alice bob shifter >>/etc/shadow
    printf '127.0.0.1 localhost login%s\n' "$(printf ' n%d' {1..64})" >/etc/hosts
    local user
    for user in alice bob; do
        install -d -m 0700 -o $user -g $user /home/$user
        install -d -m 0755 -o $user -g $user /scratch/$user
    done
}

[ $# -gt 0 ] || die "usage: world.sh COMMAND [ARGUMENT...]"
if [ -n "${SHIFTER_WORLD-}" ]; then
    exec "$@" # already in a world
fi
case ${WORLD_STAGE-0} in
0)
    # A test runner that only lists its tests needs no world.
    case " $* " in *" --list "*) exec "$@" ;; esac
    keep=CARGO_HOME,CARGO_TARGET_DIR,RUSTUP_HOME,WORLD_STAGE,WORLD_PIDFILE
    keep+=,SHIFTER_LONG_TESTS,SHIFTER_SOAK_SEED
    enter=(unshare --mount --propagation private "$here" "$@")
    export WORLD_STAGE=1
    [ "$(id -u)" = 0 ] && exec "${enter[@]}"
    exec sudo --preserve-env=$keep env "PATH=$PATH:/usr/sbin:/sbin" "${enter[@]}"
    ;;
1) outside "$@" ;;
2) inside "$@" ;;
esac
