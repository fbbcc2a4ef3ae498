#!/bin/bash
# Installs what this machine lacks for a purpose: tests/bootstrap.sh demo|test|bench|check
# Debian packages, for which it needs root and otherwise uses sudo, and Rust. Starts no daemon.
set -euo pipefail

# To build, and to run the product beside a registry.
packages=(
    build-essential ca-certificates curl git make
    slurm-wlm munge sudo
    docker-registry iproute2 mmdebstrap skopeo squashfs-tools util-linux
)
case ${1:-test} in
demo) ;;
test | bench | check)
    packages+=(
        autofs bindfs btrfs-progs busybox-static e2fsprogs erofs-utils file gdb groff-base libcap2-bin
        libmpich12 procps python3 python3-llfuse rpm squashfs-tools-ng squashfuse strace time umoci xfsprogs
    )
    # How the nodes of a site are reached, and a directory server that knows their users.
    packages+=(clustershell libnss-ldapd nscd nslcd openssh-server pdsh slapd)
    # Clients of the ssh between nodes.
    packages+=(openssh-client)
    # Windows of jobs on the submit host's display.
    packages+=(x11-utils xauth xvfb)
    # MPI programs under Slurm; its plugin for PMIx opens what only the -dev package has.
    packages+=(libmpich-dev libopenmpi-dev libpmix-dev mpich openmpi-bin)
    # Another kernel than this machine's, in a virtual machine.
    packages+=(cpio kmod qemu-system-x86) ;;&
bench)
    # What the figures stand beside; ids for rootless podman need uidmap.
    packages+=(bubblewrap charliecloud-builders charliecloud-runtime crun podman uidmap)
    # Images to pull.
    packages+=(openssl python3-pip) ;;
check)
    # The plugin's binding is compared with what bindgen makes of it, and with Slurm's header.
    packages+=(bindgen clang libclang-dev libslurm-dev) ;;
esac

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# This machine's users stay where they are: only worlds of the tests have them in LDAP.
answers='libnss-ldapd libnss-ldapd/nsswitch multiselect
slapd slapd/no_configuration boolean true'

install_packages() {
    local missing=() package
    for package in "${packages[@]}"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "installing: ${missing[*]}"
    # Debian starts daemons as it installs them unless this file says no; one that is there stays.
    local policy=/usr/sbin/policy-rc.d made=
    if ! [ -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 0755 $policy
        made=yes
    fi
    local status=0
    {
        as_root apt-get update -qq &&
            as_root debconf-set-selections <<<"$answers" &&
            as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    } || status=$?
    [ -z "$made" ] || as_root rm -f $policy
    return $status
}

# Debian 12's own cargo is older than this workspace allows.
install_rust() {
    local needed found
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
    found=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
    if [ "$(printf '%s\n' "$needed" "${found:-0}" | sort -V | head -1)" = "$needed" ]; then
        return 0
    fi
    echo "installing Rust with rustup (found: ${found:-none}, needed: $needed)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        sh -s -- -y -q --profile minimal --component clippy,rustfmt --no-modify-path
}

# The C library that the programs on nodes are linked with if it is there; others do without.
install_musl() {
    local musl
    musl=$(uname -m)-unknown-linux-musl
    [ ! -d "$(rustc --print target-libdir --target "$musl")" ] || return 0
    rustup -q target add "$musl" ||
        echo "no $musl for this Rust: programs are linked with glibc, and start more slowly"
}

PATH=$HOME/.cargo/bin:$PATH
install_packages
install_rust
install_musl
