#!/bin/bash
# Makes the userland of the sample image, a small Debian with python3, once per build directory:
#   <target>/testbed/debian.tar.gz      the layer
#   <target>/testbed/debian.diffid      the digest of the layer before compression
# Needs root for chroot and gets it through sudo otherwise.
set -euo pipefail

repo=$(dirname "$(dirname "$(realpath "$0")")")
cache=${CARGO_TARGET_DIR:-$repo/target}/testbed
mkdir -p "$cache"
[ ! -s "$cache/debian.diffid" ] || exit 0

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

echo "making the sample image's userland from Debian's packages"
new=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
# A world of its own would have no network, but a mount namespace keeps what a broken run leaves
# mounted off this machine.
as_root unshare --mount mmdebstrap --quiet --mode=root --variant=minbase \
    --include=python3-minimal \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" - >"$new/debian.tar"
sha256sum "$new/debian.tar" | cut -d' ' -f1 >"$new/debian.diffid"
gzip -1n "$new/debian.tar"
mv "$new/debian.tar.gz" "$cache/"
mv "$new/debian.diffid" "$cache/" # last: it says that both are there
