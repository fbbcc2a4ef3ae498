#!/bin/bash
# What CI asks of the source beside tests: style, documentation, dependencies, exported symbols.
# Every check runs even if an earlier one failed; the last line says which did.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/.."

target=${CARGO_TARGET_DIR:-target}
failed=()

check() {
    local name=$1
    shift
    echo "check: $name"
    "$@" || failed+=("$name")
}

# The crates that each crate may use: the arrows of the architecture, one way only.
arrows() {
    local crate allowed used status=0
    while read -r crate allowed; do
        used=$(cargo tree --locked -q -p "$crate" --depth 1 -e normal,build --prefix none \
            --format '{p}' | sed -n 's/^\([^ ]*\) [^ ]* (\/.*/\1/p' | grep -vx "$crate" | sort -u)
        for found in $used; do
            case " $allowed " in *" $found "*) ;; *)
                echo "  $crate must not depend on $found"
                status=1
                ;;
            esac
        done
    done <<'END'
shifter-core
shared-state shifter-core
node-setup shifter-core shared-state
spank-shifter shifter-core node-setup
squashfs-writer
image-manager shifter-core squashfs-writer
site-tools shifter-core
torque-hooks shifter-core shared-state node-setup
udi-image shifter-core site-tools
shifter-tests shifter-core
shifter-benches shifter-tests
END
    return $status
}

# Everything linked into privileged code and into Slurm's processes is listed and reviewed.
deps_allow() {
    local crate list status=0
    for crate in node-setup spank-shifter torque-hooks; do
        list=$crate/deps.allow
        diff -u --label "$list" --label "cargo tree" \
            <(sed -e 's/#.*//' -e '/^ *$/d' -e 's/ *$//' "$list" | sort -u) \
            <(cargo tree --locked -q -p "$crate" -e normal,build --prefix none --format '{p}' |
                cut -d' ' -f1 | grep -vx "$crate" | sort -u) || status=1
    done
    return $status
}

# Slurm looks for these symbols by name; anything else would be in the way of its own.
symbols() {
    cargo build --locked -q -p spank-shifter || return
    local wrong
    wrong=$(nm -D --defined-only "$target/debug/libshifter_slurm.so" | cut -d' ' -f3 |
        grep -vxE 'plugin_(name|type|version)|spank_plugin_version|slurm_spank_[a-z_]+|_init|_fini')
    [ -z "$wrong" ] || { echo "  the plugin also exports:" $wrong; return 1; }
    # Whatever else libslurm has talks to Slurm's daemons, or changes with each release.
    wrong=$(nm -D --undefined-only "$target/debug/libshifter_slurm.so" | sed 's/.* //' |
        grep -E '^(slurm|spank)_' | grep -vxE 'slurm_(info|error|spank_log)|spank_(context|option_register|get_item|(get|set|unset|job_control_set)env)')
    [ -z "$wrong" ] || { echo "  the plugin also calls:" $wrong; return 1; }
}

supply_chain() {
    local deny
    deny=$(command -v cargo-deny) || {
        deny=$target/tools/bin/cargo-deny
        [ -x "$deny" ] || cargo install -q --locked --root "$target/tools" cargo-deny || return
    }
    "$deny" --locked check bans licenses sources || return
    # Expected: the advisory database is a repository on the network, which not every CI reaches.
    echo "  not checked here: advisories (cargo deny check advisories)"
}

# The binding is what bindgen makes of the header excerpt, and the excerpt is what Slurm says.
bindings() {
    spank-shifter/bindgen.sh --check && spank-shifter/check-abi.sh
}

# The fuzz targets are a workspace of their own and need unstable flags of the compiler to run.
fuzz_targets() {
    RUSTC_BOOTSTRAP=1 RUSTFLAGS='--cfg fuzzing' cargo check -q --locked --manifest-path fuzz/Cargo.toml \
        --target-dir "$target/fuzz"
}

# Unsafe code, file by file: more of it in a change is seen in tests/unsafe.list.
unsafe_inventory() {
    diff -u --label tests/unsafe.list --label "the source" tests/unsafe.list <(
        git ls-files -co --exclude-standard '*.rs' | LC_ALL=C sort |
            xargs grep -cE '^[^/"]*\bunsafe( \{|\(no_mangle| fn| impl| extern)' | grep -v ':0$'
    )
}

files_are_short() {
    local long
    long=$(git ls-files -co --exclude-standard '*.rs' | xargs wc -l | awk '$1 > 600 && $2 != "total"')
    [ -z "$long" ] || { echo "  longer than 600 lines: $long"; return 1; }
}

# bash reads one script a call.
shell_scripts() {
    local script status=0
    for script in tests/*.sh tests/kernel/*.sh tests/torque/*.sh .ci/run; do
        bash -n "$script" || status=1
    done
    return $status
}

check fmt cargo fmt --all --check
check clippy cargo clippy --workspace --all-targets --locked -q -- -D warnings
check doc env RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked -q
check arrows arrows
check deps.allow deps_allow
check symbols symbols
check bindings bindings
check fuzz-targets fuzz_targets
check supply-chain supply_chain
check unsafe unsafe_inventory
check file-length files_are_short
check manual docs/man/check.sh
check shell shell_scripts

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all checks passed"
