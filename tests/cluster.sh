#!/bin/bash
# Keeps a test cluster running:
#   tests/cluster.sh start              what `make cluster` does after building
#   tests/cluster.sh shell [USER]       a shell on its login host as alice, bob or root
#   tests/cluster.sh node NODE [CMD...] a command, or a shell, on a node as root
#   tests/cluster.sh stop
set -euo pipefail

here=$(dirname "$(realpath "$0")")
target=$(realpath -m "${CARGO_TARGET_DIR:-$here/../target}")
pidfile=$target/testbed/cluster.pid
log=$target/testbed/cluster.log

die() {
    echo "cluster.sh: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Prints the process id of the world's first process.
world() {
    local outer
    outer=$(cat "$pidfile" 2>/dev/null) && cat "/proc/$outer/task/$outer/children" 2>/dev/null ||
        die "no cluster is running; 'make cluster' starts one"
}

enter() {
    local init
    init=$(world)
    as_root nsenter -t ${init% } -a -- "$@"
}

case ${1-} in
start)
    ! [ -d "/proc/$(cat "$pidfile" 2>/dev/null || echo none)" ] || die "a cluster is running already"
    mkdir -p "$target/testbed"
    rm -f "$pidfile"
    WORLD_PIDFILE=$pidfile setsid nohup "$here/world.sh" "$target/debug/testbed" cluster \
        >"$log" 2>&1 </dev/null &
    until grep -q '^ready' "$log"; do
        kill -0 $! 2>/dev/null || { cat "$log"; exit 1; }
        sleep 0.1
    done
    grep -v '^ready' "$log"
    image=$(sed -n 's/^ready //p' "$log")
    cat <<END

The cluster is up: nodes n1 and n2, users alice (group proj) and bob, image $image.

  tests/cluster.sh shell alice          a shell on the login host; in it for example
      shifter pull $image
      srun -N2 --image=$image shifter cat /etc/os-release
      sbatch -N2 --image=$image --volume=/scratch/alice:/mnt job.sh
  tests/cluster.sh node n1              a root shell on a node: findmnt, losetup, /run/shifter
  tests/cluster.sh shell root           Slurm's logs are in /var/log/slurm, the configuration in
                                        /etc/shifter and /etc/slurm: all of the cluster's own
  make cluster-stop                     removes everything
END
    ;;
shell)
    user=${2:-alice}
    PATH=/opt/shifter/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
    enter env -C / setpriv --reuid "$user" --regid "$user" --init-groups --reset-env \
        env "PATH=$PATH" "TERM=${TERM:-dumb}" bash -c \
        "cd /scratch/$user 2>/dev/null || cd; exec bash --norc"
    ;;
node)
    node=${2:?which node?}
    shift 2
    enter bash -c 'pid=$(cat "/run/testbed-nodes/$1") && shift && exec nsenter -t "$pid" -m -u -- "${@:-bash}"' \
        node "$node" "$@"
    ;;
stop)
    world >/dev/null
    outer=$(cat "$pidfile")
    # The outer process's parent is world.sh, which removes everything when it is told to end.
    as_root kill -TERM "$(ps -o ppid= -p "$outer" | tr -d ' ')"
    while [ -d "/proc/$outer" ]; do sleep 0.05; done
    rm -f "$pidfile"
    ;;
*)
    sed -n 's/^#   //p' "$0"
    exit 2
    ;;
esac
