# Containers on a node whose root is the file system that the kernel booted from, which nothing
# pivots away; and behind a changed root on such a node, as ALPS has it.

modules_are_loaded() {
    grep -q '^\([0-9]*\) \1 .* / / .* - rootfs ' /proc/self/mountinfo ||
        fail "another root: $(cat /proc/self/mountinfo)"
    configure "[kernel]
preload = ['loop', 'squashfs', 'overlay']
[torque]
node_context_prefix = '/dsl'"
    set_up 1
    unsetupRoot 1
}

# What alice sees: the container and no mount else. Then with every capability in a namespace of
# her own: what lies over the first file system stays there, and upwards is nothing.
look='cat /etc/marker; grep -c " / ro.* - [a-z]* shifter" /proc/self/mountinfo
    grep -e " / / .* - rootfs " -e /dsl -e /run /proc/self/mountinfo
    exec unshare -Urm sh -c "
        umount -l / 2>/dev/null && echo uncovered
        mkdir -p /tmp/low/proc; cp /bin/busybox /tmp/low/; mount -o rbind /proc /tmp/low/proc
        exec 3</
        exec chroot /tmp/low /busybox sh -c \"cd -P /proc/self/fd/3; cd -P ../../..; cat etc/marker
            [ ! -e init ] || echo outside\""'

as_alice() {
    su -s /bin/sh alice -c "cd /; PATH=$PATH; $1"
}

containers_hold_nothing_of_the_node() {
    local out
    out=$($1 as_alice "PBS_JOBID= shifter --image=id:$image sh -c '$look' 2>&1") || true
    [ "$out" = "tiny
1
tiny" ] || fail "private: $out"
    $1 set_up 7.server
    out=$($1 as_alice "PBS_JOBID=7.server shifter sh -c '$look'")
    [ "$out" = "tiny
1
tiny" ] || fail "joined: $out"
    # Whoever enters the namespace is in the container.
    out=$(nsenter --mount="$2/run/shifter/jobs/7.server/roots/job/mnt" /bin/cat /etc/marker)
    [ "$out" = tiny ] || fail "entered: $out"
    $1 unsetupRoot 7.server
    rm -rf /tmp/low
}

on_the_nodes_own_root() {
    containers_hold_nothing_of_the_node "" ""
}

# A tree of its own, mounted.
behind_a_changed_root() {
    local name
    mkdir /dsl
    mount -t tmpfs -o mode=0755 dsl /dsl
    cp -a bin etc home lib opt scratch test var /dsl/
    for name in dev proc sys run tmp; do
        mkdir /dsl/$name
        mount -o rbind /$name /dsl/$name
    done
    containers_hold_nothing_of_the_node changed /dsl
}

# Runs a function behind the changed root.
changed() {
    chroot /dsl /bin/sh -euc '. /test/lib.sh; . /test/initramfs.sh functions; "$@"' changed "$@"
}

[ "${1-}" != functions ] || return 0
check modules_are_loaded
check on_the_nodes_own_root
check behind_a_changed_root
