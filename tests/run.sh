#!/bin/bash
# Runs the tests: tests/run.sh [--long] [NAME...]
#   --long       also those that take minutes (see tests/long.sh)
#   NAME         only tests whose name contains it
# First those that need nothing special, as the caller; then those that act as root
# (`privileged_*` of any crate, and the suite), in worlds of their own.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

long=
[ "${1-}" = --long ] && { long=yes; shift; }

runner=CARGO_TARGET_$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER
world=$PWD/tests/world.sh
root_only='test(/(^|::)privileged_/) | (package(shifter-tests) & binary(suite))'
export RUST_LIB_BACKTRACE=0
# Property tests try the same cases in every run: a change that fails is at fault itself. New
# cases are for tests/long.sh.
[ -n "$long" ] || export PROPTEST_RNG_SEED="${PROPTEST_RNG_SEED:-7}"

# The plugin with its deliberate faults, for the tests that break it.
cargo build --locked -q -p spank-shifter --features fault-injection \
    --target-dir "${CARGO_TARGET_DIR:-target}/fault-injection"

# The programs themselves hold no tests; one of them even has no main that a test could replace.
targets=(--locked --workspace --lib --test '*')
status=0
if cargo nextest --version >/dev/null 2>&1; then
    # Many wait more than they work.
    nextest=(cargo nextest run "${targets[@]}" --config-file tests/nextest.toml --no-fail-fast
        --no-tests pass --test-threads $(($(nproc) + 1)))
    [ -z "$long" ] || nextest+=(--run-ignored all)
    "${nextest[@]}" -E "not ($root_only)" "$@" || status=$?
    env "$runner=$world" "${nextest[@]}" -E "$root_only" "$@" || status=$?
else
    # Without nextest there is one world for all tests of a program, in which they take turns.
    long=${long:+--include-ignored}
    cargo test "${targets[@]}" --no-fail-fast -q -- $long "$@" \
        --skip privileged_ --skip cluster_ --skip install_ --skip kernel_ --skip bench_ || status=$?
    env "$runner=$world" cargo test --locked --workspace --exclude shifter-tests --lib --test '*' \
        --no-fail-fast -q -- $long privileged_ --test-threads 1 || status=$?
    env "$runner=$world" cargo test --locked -p shifter-tests --test suite -q -- \
        $long --test-threads 1 "$@" || status=$?
fi
exit $status
