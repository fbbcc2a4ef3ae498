#!/bin/busybox sh
# The first process of the emulated machine. The file system that a kernel boots from cannot be
# pivoted away, so everything moves to one in memory first, unless the test is of just that; then
# the test named on the kernel's command line, and so in our environment, runs, and the machine stops.
PATH=/opt/shifter/bin:/opt/shifter/sbin:/bin
export PATH

if [ "${1-}" != second ] && [ "${test-}" != initramfs ]; then
    /bin/busybox mkdir /new
    /bin/busybox mount -t tmpfs -o mode=0755 root /new
    cd /
    # Only with Slurm is there a /usr, and with it programs that are linked.
    for dir in bin etc home lib lib64 opt scratch test tmp usr var init; do
        [ ! -e $dir ] || /bin/busybox cp -a $dir /new/
    done
    /bin/busybox mkdir /new/dev /new/proc /new/run /new/sys
    exec /bin/busybox switch_root /new /init second
fi

/bin/busybox --install -s /bin
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t devtmpfs -o nosuid dev /dev
mount -t tmpfs -o nosuid,nodev,mode=0755 run /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmp /tmp
mkdir -p /var/tmp /scratch/alice /home/alice
chmod 1777 /var/tmp
chown 2001:2001 /scratch/alice /home/alice
mount -t cgroup2 cgroup /sys/fs/cgroup
# As systemd has it.
mount --make-rshared /
# The kernel itself must load nothing when it is asked for a file system.
rm -f /bin/modprobe
echo >/proc/sys/kernel/modprobe
hostname node
cd /

name=$(sed -n 's/.*test=\([a-z]*\).*/\1/p' /proc/cmdline)
. /test/lib.sh
if [ "$name" = shell ]; then
    echo "the programs are in /opt/shifter, manifests come from 'manifest JOB', kernel $(uname -r)"
    setsid cttyhack env ENV=/test/lib.sh sh
else
    . "/test/$name.sh"
    echo "verdict end"
fi
sync
reboot -f
