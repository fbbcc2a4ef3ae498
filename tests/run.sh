#!/bin/bash
# Runs every test: tests/run.sh [--long] [-- FILTER...]
# First those that need nothing special, as the caller; then those that act as root
# (`privileged_*` of any crate, and the suite), in worlds of their own.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

long=
[ "${1-}" = --long ] && { long=yes; shift; }
[ "${1-}" = -- ] && shift

runner=CARGO_TARGET_$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER
world=$PWD/tests/world.sh
root_only='test(/(^|::)privileged_/) | (package(shifter-tests) & binary(suite))'
export RUST_LIB_BACKTRACE=0
[ -z "$long" ] || export SHIFTER_LONG_TESTS=1

# The plugin with its deliberate faults, for the tests that break it.
cargo build --locked -q -p spank-shifter --features fault-injection \
    --target-dir "${CARGO_TARGET_DIR:-target}/fault-injection"

# The programs themselves hold no tests; one of them even has no main that a test could replace.
targets=(--locked --workspace --lib --test '*')
status=0
if cargo nextest --version >/dev/null 2>&1; then
    nextest=(cargo nextest run "${targets[@]}" --config-file tests/nextest.toml --no-fail-fast)
    "${nextest[@]}" -E "not ($root_only)" "$@" || status=$?
    env "$runner=$world" "${nextest[@]}" -E "$root_only" "$@" || status=$?
else
    cargo test "${targets[@]}" --no-fail-fast -q -- \
        --skip privileged_ --skip cluster_ --skip install_ --skip bench_ "$@" || status=$?
    env "$runner=$world" cargo test --locked --workspace --exclude shifter-tests --lib --test '*' \
        --no-fail-fast -q -- privileged_ --test-threads 1 "$@" || status=$?
    env "$runner=$world" cargo test --locked -p shifter-tests --test suite -q -- \
        --test-threads 1 "$@" || status=$?
fi
exit $status
