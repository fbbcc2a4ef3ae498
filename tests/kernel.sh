#!/bin/bash
# Boots another kernel than this machine's, Debian's, in an emulated machine that holds the built
# node programs and a small image, and nothing else of this one:
#
#   tests/kernel.sh fetch         gets the kernel, once per build directory; needs the network
#   tests/kernel.sh run modules   runs tests/kernel/modules.sh in there and shows the console
#   tests/kernel.sh shell         a root shell in there; Ctrl-A X ends it
#
# `fetch` never installs anything. It leaves
#   <target>/testbed/kernel/{release,vmlinuz,modules/RELEASE/}
#   <target>/testbed/kernel.failed      instead: why there is none
set -euo pipefail

here=$(dirname "$(realpath "$0")")
repo=$(dirname "$here")
target=$(realpath -m "${CARGO_TARGET_DIR:-$repo/target}")
kernel=$target/testbed/kernel
plain=$target/${PROFILE:-release}
programs=$target/node-${PROFILE:-release}
static=$target/$(uname -m)-unknown-linux-gnu/${PROFILE:-release}

die() {
    echo "kernel.sh: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Everything that goes wrong here is for the tests to report: the build does not need it.
fetch() {
    [ ! -e "$kernel/release" ] || return 0
    mkdir -p "$target/testbed"
    local log=$kernel.log status=0
    # Not as a condition, in which `set -e` would count nothing.
    set +e
    (set -e && download) >"$log" 2>&1
    status=$?
    set -e
    if [ $status = 0 ]; then
        rm -f "$kernel.failed" "$log"
    else
        mv "$log" "$kernel.failed"
        echo "no kernel for the tests: $(tail -1 "$kernel.failed")"
    fi
}

download() {
    [ "$(uname -m)" = x86_64 ] || die "there is an emulated machine for x86_64 only"
    new=$(mktemp -d "$target/testbed/new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    cd "$new"
    latest || as_root apt-get update -qq
    local package release module
    package=$(latest) || die "apt knows no linux-image-amd64"
    # apt's own user cannot write here, and apt says so.
    apt-get download -qq "$package" || die "apt cannot download $package"
    release=${package#linux-image-}
    dpkg -x linux-image-*.deb all || die "cannot unpack $package"
    depmod -b all "$release" || die "cannot list the modules of $package"
    mkdir -p "kernel/modules/$release"
    cp "all/boot/vmlinuz-$release" kernel/vmlinuz
    # The lists name every module of the kernel; the files are those that the tests load.
    cd "all/lib/modules/$release"
    cp --parents modules.{dep,alias,softdep,builtin} "$new/kernel/modules/$release"
    for module in loop squashfs overlay xfs libcrc32c crc32c_generic crc32c-intel; do
        find kernel -name "$module.ko" -exec cp --parents {} "$new/kernel/modules/$release" \;
    done
    echo "$release" >"$new/kernel/release" # last: it says that all is there
    rm -rf "$kernel"
    mv "$new/kernel" "$kernel"
}

latest() {
    apt-cache depends linux-image-amd64 2>/dev/null |
        sed -n 's/.*Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | grep -m 1 .
}

# Makes the file system of the machine below $work/root, and $work/initrd of it.
initrd() {
    [ -e "$kernel/release" ] || die "there is no kernel; 'tests/kernel.sh fetch' gets it"
    release=$(cat "$kernel/release")
    local root=$work/root program
    umask 022
    mkdir -p "$root"/{bin,dev,proc,sys,run,tmp,etc/shifter,var/lib/shifter,scratch,home,test} \
        "$root"/opt/shifter/{bin,sbin} "$root/lib/modules"
    cp /bin/busybox "$root/bin/" || die "busybox-static is missing"
    for program in setupRoot unsetupRoot; do
        install -m 0700 "$programs/$program" "$root/opt/shifter/sbin/" || die "make builds it"
    done
    install -m 4755 "$programs/shifter" "$root/opt/shifter/bin/"
    cp -r "$kernel/modules/$release" "$root/lib/modules/"
    broken_modules
    cp "$here"/kernel/*.sh "$root/test/"
    image
    cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/:/bin/sh
alice:x:2001:2001:Alice:/home/alice:/bin/sh
END
    printf '%s\n' root:x:0: alice:x:2001: proj:x:2100:alice >"$root/etc/group"
    [ "$1" != slurm ] || slurm
    ln -s /test/init.sh "$root/init"
    (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/initrd"
}

# This machine's Slurm, for one node with cgroup v2, and all of the product that it runs.
slurm() {
    local plugins=usr/lib/x86_64-linux-gnu/slurm-wlm file udi=$root/opt/shifter/lib/shifter/udiImage
    mkdir -p "$root"/{usr/bin,usr/sbin,"$plugins",etc/slurm,etc/munge} "$udi"/{bin,sbin}
    cp /usr/bin/{getent,sbatch,scancel,scontrol,sinfo,squeue,srun} "$root/usr/bin/"
    for file in munged slurmctld slurmd slurmstepd; do
        cp -L "/usr/sbin/$file" "$root/usr/sbin/" || die "slurm-wlm is missing"
    done
    cp -rL "/$plugins/." "$root/$plugins"
    cp "$plain/shifterimg" "$root/opt/shifter/bin/"
    cp "$plain/libshifter_slurm.so" "$root/opt/shifter/lib/shifter/shifter_slurm.so"
    cp "$programs/startSshd" "$root/opt/shifter/sbin/"
    cp "$static/shifter-ssh-keys" "$root/opt/shifter/lib/shifter/"
    cp "$static/sshd" "$udi/sbin/"
    cp "$static/ssh" "$udi/bin/"
    # Other plugins are loaded by nobody; a thread's end opens libgcc.
    libraries "$root"/usr/{bin,sbin}/* "$root/opt/shifter/bin/shifterimg" \
        /"$plugins"/{auth_munge,cgroup_v2,cred_munge,proctrack_cgroup,task_cgroup}.so
    head -c 128 /dev/urandom >"$root/etc/munge/munge.key"
    chmod 0600 "$root/etc/munge/munge.key"
    echo 'passwd: files' >"$root/etc/nsswitch.conf"
    echo '127.0.0.1 localhost node' >"$root/etc/hosts"
    echo 'required /opt/shifter/lib/shifter/shifter_slurm.so' >"$root/etc/slurm/plugstack.conf"
    cp "$here"/kernel/*.conf "$root/etc/slurm/"
}

# Copies what programs and libraries are linked with to where it is here.
libraries() {
    local file
    ldd "$@" | awk '$2 == "=>" && $3 ~ "^/" { print $3 } $1 ~ "^/" && $2 ~ "^[(]" { print $1 }' |
        sort -u | while read -r file; do
        mkdir -p "$root${file%/*}" && cp -L "$file" "$root$file"
    done
}

# Modules that the kernel must refuse, each in a tree of its own with the lists that fit.
broken_modules() {
    local loop="kernel/drivers/block/loop.ko" tree
    for tree in other compressed; do
        tree=$root/test/$tree/$release
        mkdir -p "$tree/${loop%/*}"
        grep "^$loop:" "$kernel/modules/$release/modules.dep" >"$tree/modules.dep"
    done
    # Of the same length, and without the mark that says it is signed. Where symbols have versions,
    # the kernel compares what follows its release.
    head -c -28 "$kernel/modules/$release/$loop" |
        sed "s/vermagic=$release SMP/vermagic=${release/#?/9} UMP/" >"$root/test/other/$release/$loop"
    xz --check=crc32 -c "$kernel/modules/$release/$loop" >"$tree/$loop.xz"
    sed -i 's/loop\.ko/&.xz/' "$tree/modules.dep"
}

# The site's store with one image, busybox.
image() {
    local tree=$work/image store=$root/var/lib/shifter/images id
    id=$(printf '5%.0s' {1..64})
    mkdir -p "$tree"/{bin,dev,etc,mnt,opt,proc,sys,tmp,usr/bin,var/tmp} "$store/index/docker"
    cp /bin/busybox "$tree/bin/"
    for program in sh id cat grep touch sleep stat readlink; do
        ln -s busybox "$tree/bin/$program"
    done
    echo tiny >"$tree/etc/marker"
    mksquashfs "$tree" "$store/$id.squashfs" -noappend -no-progress -all-root -quiet ||
        die "cannot make the image"
    printf '%s\n' 'FORMAT: squashfs' 'ENV: PATH=/bin' >"$store/$id.meta"
    printf '{"reference":"docker:tiny:latest","id":"%s","digest":null,"pulled":1,"size":1}' "$id" \
        >"$store/index/docker/tiny%3Alatest"
}

# No -enable-kvm: where these tests run there may be none, or one that hangs.
# Without mitigations: nobody spies on it, and each costs an emulator more than a processor.
boot() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    initrd "$1"
    qemu-system-x86_64 -accel tcg,thread=multi -smp 2 -m 512 -no-reboot -nodefaults \
        -display none -kernel "$kernel/vmlinuz" -initrd "$work/initrd" \
        -append "console=ttyS0 panic=-1 loglevel=3 mitigations=off test=$1" "${@:2}"
}

case ${1-} in
fetch) fetch ;;
run)
    [ -e "$here/kernel/${2-}.sh" ] || die "usage: kernel.sh run modules|roots|initramfs|slurm"
    boot "$2" -serial stdio </dev/null
    ;;
shell) boot shell -serial mon:stdio ;;
*) die "usage: kernel.sh fetch | run NAME | shell" ;;
esac
