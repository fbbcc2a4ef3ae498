# What setupRoot does about kernel modules. Nothing is loaded at the start.

release=$(uname -r)

preload() {
    configure "[kernel]
preload = [$1]
${2-}"
}

set_ups_at_once_all_succeed() {
    [ -z "$(modules)" ] || fail "loaded at boot: $(modules)"
    preload "'loop', 'squashfs', 'overlay', 'xfs'"
    local job pids= pid
    for job in 1 2 3 4; do
        set_up $job &
        pids="$pids $!"
    done
    for pid in $pids; do
        wait $pid
    done
    loaded xfs
    for job in 1 2 3 4; do
        unsetupRoot $job
    done
}

a_name_may_have_dashes() {
    unload_all
    preload "'loop', 'squashfs', 'overlay', 'crc32c-generic'"
    set_up 1
    loaded crc32c_generic
    unsetupRoot 1
}

a_module_may_be_built_in() {
    local path name found=
    while [ -z "$found" ] && read -r path; do
        name=${path##*/}
        name=${name%.ko}
        case $name in *-*) continue ;; esac
        [ -e "/sys/module/$name" ] || grep -qw "$name" /proc/filesystems || found=$name
    done <"/lib/modules/$release/modules.builtin"
    [ -n "$found" ] || fail "every module that is built in can be seen"
    preload "'loop', 'squashfs', 'overlay', '$found'"
    set_up 1
    unsetupRoot 1
    # Those that can be seen need no directory.
    preload "'printk', 'tmpfs'" "kmod_base_path = '/nowhere'"
    set_up 1
    unsetupRoot 1
}

an_unknown_module_is_named() {
    preload "'nosuch'"
    refused 5 "setupRoot: cannot load kernel module 'nosuch': it is neither built in nor listed" \
        "'/lib/modules/$release'" "hint: install the modules of kernel '$release'"
}

what_was_not_listed_is_named() {
    unload_all
    preload "'loop'"
    refused 5 "cannot open file system 'squashfs': No such device" \
        "hint: this node's kernel lacks 'squashfs': the site can list it in kernel.preload"
}

missing_lists_are_named() {
    unload_all
    preload "'loop'" "kmod_base_path = '/nowhere'"
    refused 5 "cannot load kernel module 'loop': there is no '/nowhere/$release/modules.dep'" \
        "hint: "
}

a_missing_file_is_named() {
    preload "'ext4'"
    refused 5 "cannot load kernel module 'ext4': modules.dep lists '/lib/modules/$release/kernel/" \
        "which is missing" "hint: "
}

a_module_of_another_kernel_is_named() {
    unload_all
    preload "'loop'" "kmod_base_path = '/test/other'"
    refused 5 "'/test/other/$release/kernel/drivers/block/loop.ko' was built for another kernel" \
        "another kernel, '9.1" "this one is '$release'" "hint: put the modules of kernel"
}

# This kernel was built without the means to decompress.
a_compressed_module_is_named() {
    unload_all
    preload "'loop'" "kmod_base_path = '/test/compressed'"
    refused 5 "this kernel does not decompress '/test/compressed/$release/" "hint: load it at boot, or decompress"
}

others_directories_are_refused() {
    local tree=/test/others
    unload_all
    mkdir $tree
    cp -a "/lib/modules/$release" $tree/
    preload "'loop'" "kmod_base_path = '$tree'"
    chown 2001 $tree
    refused 1 "'$tree' is not trusted: it belongs to uid 2001"
    chown 0 $tree
    chmod 0777 $tree/$release/kernel/drivers
    refused 1 "'$tree/$release/kernel/drivers' is not trusted: its mode 0777"
    chmod 0755 $tree/$release/kernel/drivers
    chown 2001 $tree/$release/modules.dep
    refused 1 "modules.dep' is not trusted"
    chown 0 $tree/$release/modules.dep
    # A link that another user made leads to what is root's.
    ln -s "/lib/modules/$release/kernel" $tree/kernel
    mv $tree/$release/kernel $tree/$release/old
    mv $tree/kernel $tree/$release/kernel
    chown -h 2001 $tree/$release/kernel
    refused 1 "$tree/$release/kernel' is not trusted"
    [ -z "$(modules)" ] || fail "loaded all the same: $(modules)"
    # And with everything root's the same directory serves.
    chown -h 0 $tree/$release/kernel
    preload "'loop', 'squashfs', 'overlay'" "kmod_base_path = '$tree'"
    set_up 1
    unsetupRoot 1
}

# loop makes its devices as it is loaded.
lists_without_end_are_refused() {
    local tree=/test/endless
    mkdir -p $tree/$release
    truncate -s 10485761 $tree/$release/modules.dep
    preload "'nosuch'" "kmod_base_path = '$tree'"
    refused 1 "$tree/$release/modules.dep' is larger than 10485760 bytes"
    rm -r $tree
}

loop_has_its_devices() {
    unload_all
    preload "'loop', 'squashfs', 'overlay', 'xfs'" 'max_loop = 128'
    set_up 1
    loaded loop
    [ "$(cat /sys/module/loop/parameters/max_loop)" = 128 ] || fail "another max_loop"
    [ "$(ls -d /sys/block/loop* | wc -l)" = 128 ] || fail "$(ls /sys/block)"
}

squashfs_and_overlay_are_loaded() {
    loaded squashfs
    loaded overlay
    grep -q overlay /proc/filesystems
}

xfs_comes_after_what_it_needs() {
    loaded xfs
    # Without the checksum that it only wishes for, libcrc32c does not load.
    [ "$(modules | grep -E 'xfs|crc32c' | tr '\n' ' ')" = "xfs libcrc32c crc32c_generic " ] ||
        fail "$(modules)"
    grep -q xfs /proc/filesystems
}

what_is_loaded_is_left_alone() {
    local before=$(cat /proc/modules | cut -d' ' -f1,2,5,6)
    preload "'loop', 'squashfs', 'overlay', 'xfs', 'crc32c-generic'" "max_loop = 7
kmod_base_path = '/nowhere'"
    set_up 2
    [ "$(cat /proc/modules | cut -d' ' -f1,2,5,6)" = "$before" ] || fail "$(cat /proc/modules)"
    [ "$(cat /sys/module/loop/parameters/max_loop)" = 128 ]
    unsetupRoot 1
    unsetupRoot 2
}

# The processor of this machine has no such instruction.
a_module_that_the_kernel_refuses_is_named() {
    preload "'crc32c-intel'"
    refused 5 "cannot load kernel module 'crc32c-intel'" "crc32c-intel.ko': No such device" \
        "hint: the kernel's log"
}

a_kernel_that_is_closed_says_so() {
    echo 1 >/proc/sys/kernel/modules_disabled
    preload "'crc32c-intel'"
    refused 5 "the kernel takes no more modules" "hint: load it at boot"
}

check set_ups_at_once_all_succeed
check a_name_may_have_dashes
check a_module_may_be_built_in
check an_unknown_module_is_named
check what_was_not_listed_is_named
check missing_lists_are_named
check a_missing_file_is_named
check a_module_of_another_kernel_is_named
check a_compressed_module_is_named
check others_directories_are_refused
check lists_without_end_are_refused
check loop_has_its_devices
check squashfs_and_overlay_are_loaded
check xfs_comes_after_what_it_needs
check what_is_loaded_is_left_alone
check a_module_that_the_kernel_refuses_is_named
# The last: there is no way back.
check a_kernel_that_is_closed_says_so
