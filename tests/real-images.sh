#!/bin/bash
# Makes the real images whose pulls are compared with what umoci unpacks, once per build directory:
#   <target>/testbed/real/oci      one OCI layout with the images minbase and python
# minbase has one layer, Debian's smallest system. python has two more: numpy, scipy and pandas with
# all they need, and changes as people make them. umoci writes the layers.
# Needs root for chroot and gets it through sudo otherwise.
set -euo pipefail

repo=$(dirname "$(dirname "$(realpath "$0")")")
cache=$(realpath -m "${CARGO_TARGET_DIR:-$repo/target}")/testbed/real
[ ! -e "$cache/oci/index.json" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=CARGO_TARGET_DIR "$0"
fi
if [ -z "${PRIVATE_MOUNTS-}" ]; then
    # What a broken run leaves mounted is nobody's concern.
    PRIVATE_MOUNTS=yes exec unshare --mount --propagation private "$0"
fi
echo "making real images from Debian's packages"
mkdir -p "$cache"
# In memory, until it is done: dpkg asks for each file to be on the disk.
new=$cache/new
mkdir -p "$new"
mount -t tmpfs -o mode=0755,size=4g real "$new"
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
root=$new/bundle/rootfs

# Puts a Debian with these packages in the place of what is in the bundle.
debian() {
    mmdebstrap --quiet --mode=root --variant=minbase "$@" "$suite" - >"$new/tree.tar"
    find "$root" -mindepth 1 -delete
    tar -C "$root" -xp --numeric-owner --xattrs --xattrs-include='*' -f "$new/tree.tar"
    rm "$new/tree.tar"
}

image() {
    umoci repack --refresh-bundle --image "$new/oci:$1" "$new/bundle"
}

umoci init --layout "$new/oci"
umoci new --image "$new/oci:empty"
umoci unpack --image "$new/oci:empty" "$new/bundle"
debian
image minbase
debian --include=python3-numpy,python3-scipy,python3-pandas
image python

cd "$root"
rm -r usr/share/doc/python3* usr/share/man/man1        # whiteouts of directories and files
mv usr/share/locale usr/share/translations             # a large directory by another name
ln -s translations usr/share/locale
rm -r usr/share/common-licenses
echo gone >usr/share/common-licenses                   # a file in the place of a directory
rm etc/debian_version
mkdir -m 2750 etc/debian_version                       # and the reverse
touch etc/debian_version/file
ln usr/bin/python3.11 usr/bin/python-too               # a second name of a file below
ln etc/debian_version/file etc/debian_version/.second
chmod 4711 usr/bin/md5sum
chown 12345:54321 var/lib/dpkg/status
find usr/lib/python3/dist-packages/scipy -name tests -prune -exec rm -r {} +
mkfifo var/tmp/fifo
mknod dev/sample c 1 7
setcap cap_net_raw+ep usr/bin/sha1sum
/usr/bin/python3 -c 'import os; os.setxattr("etc/hostname", "trusted.note", b"text")'
printf '\xff\xfe' >"$(printf 'srv/\xff not utf-8')"
truncate -s 3M srv/hole
cd /
image python
umoci gc --layout "$new/oci"
rm -rf "$cache/oci" "$cache/oci.new"
cp -r "$new/oci" "$cache/oci.new"
mv "$cache/oci.new" "$cache/oci"
