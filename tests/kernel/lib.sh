# What the tests in the emulated machine have in common.

image=$(printf '5%.0s' 1 2 3 4 5 6 7 8)
image=$image$image$image$image$image$image$image$image

# Runs a function and says what came of it, on a line for the suite to read.
check() {
    local output status
    output=$(set -eu && "$1" 2>&1)
    status=$?
    read -r now _ </proc/uptime
    if [ $status = 0 ]; then
        echo "verdict ok $1 (at $now s)"
    else
        echo "verdict failed $1: $(echo "$output" | tr '\n\r' '  ') (status $status)"
    fi
}

fail() {
    echo "$*"
    exit 1
}

# Writes the site's configuration with more at its end.
configure() {
    cat >"${2-/etc/shifter/shifter.toml}" <<END
system = 'kernel'
prefix = '/opt/shifter'
[root]
site_mounts = ['/scratch', '/home']
$1
END
}

manifest() {
    cat <<END
{"schema": 1, "cluster": "mini", "job": "$1", "restart": 0,
 "user": {"name": "alice", "uid": 2001, "gid": 2001, "home": "/home/alice", "shell": "/bin/sh",
          "groups": [{"gid": 2001, "name": "alice"}, {"gid": 2100, "name": "proj"}]},
 "image": {"id": "$image", "reference": "docker:tiny:latest"},
 "volumes": ["/scratch/alice:/data"], "modules": [], "created": 1,
 "hosts": [{"name": "node", "slots": 2}]}
END
}

# Sets a job of alice's up as the batch system would.
set_up() {
    manifest "$1" | setupRoot --manifest=- --expect-uid=2001 --expect-job="$1"
}

# Fails unless setupRoot ends with this code and says these words, and has made nothing.
refused() {
    local code=$1 output status=0 word before
    before=$(find /run)
    output=$(set_up 99 2>&1) || status=$?
    [ $status = "$code" ] || fail "code $code expected, not $status: $output"
    shift
    for word in "$@"; do
        case $output in *"$word"*) ;; *) fail "'$word' expected: $output" ;; esac
    done
    [ "$(find /run)" = "$before" ] || fail "something was made: $(find /run)"
}

loaded() {
    [ "$(cat "/sys/module/$1/initstate")" = live ]
}

# Modules as loaded, the latest first.
modules() {
    cut -d' ' -f1 /proc/modules
}

unload_all() {
    local name
    for name in $(modules) $(modules); do
        rmmod "$name" 2>/dev/null || true
    done
    [ -z "$(modules)" ] || fail "still loaded: $(modules)"
}
