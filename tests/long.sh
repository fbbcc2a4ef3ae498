#!/bin/bash
# The tests that take too long for every change: tests/long.sh [SLICE...]
#
# Without a slice, all of them; `today` is one of them in small, another one each day, for CI.
# FUZZ_SECS is the time for each fuzz target. The last full result is in docs/test-long.md.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
parsers=(reference volmap hostlist meta manifest config)
slices=(race soak cancel crowd private properties "${parsers[@]/#/fuzz-}")

run_slice() {
    case $1 in
    race) # a volume's source that changes between directory and links, 5,000 starts
        SHIFTER_LONG_TESTS=1 tests/run.sh privileged_s36 ;;
    soak) # 500 jobs in a row: nothing left, slurmd's memory flat
        SHIFTER_LONG_TESTS=1 tests/run.sh cluster_fifty_jobs ;;
    cancel) # jobs cancelled at any moment of their lives
        tests/run.sh --long long_cluster_jobs_cancelled ;;
    crowd) # a thousand jobs of two users and two images at once
        tests/run.sh --long long_cluster_thousand ;;
    private) # private containers in parallel, outside and inside of jobs
        tests/run.sh --long long_cluster_private ;;
    properties) # every property test with many more cases
        PROPTEST_CASES=${PROPERTY_CASES:-20000} cargo test --locked -q --release \
            -p shifter-core -p image-manager --lib ;;
    fuzz-*) fuzz "${1#fuzz-}" "${FUZZ_SECS:-120}" ;;
    *)
        echo "long.sh: no slice '$1'; there are: ${slices[*]}" >&2
        return 2
        ;;
    esac
}

fuzz() {
    local cargo_fuzz=$target/tools/bin/cargo-fuzz
    [ -x "$cargo_fuzz" ] || cargo install -q --locked --root "$target/tools" cargo-fuzz
    mkdir -p "fuzz/corpus/$1"
    # cargo-fuzz asks for unstable flags, which the stable compiler takes only when told so.
    RUSTC_BOOTSTRAP=1 PATH=$target/tools/bin:$PATH cargo fuzz run "$1" "fuzz/corpus/$1" \
        "fuzz/seeds/$1" -- -max_total_time="$2" -print_final_stats=1 2>&1 | tail -n 12
}

if [ "${1-}" = today ]; then
    today=${slices[$((10#$(date +%j) % ${#slices[@]}))]}
    export FUZZ_SECS=45 PROPERTY_CASES=2000
    case $today in race | soak | cancel | crowd | private) today=properties ;; esac # too long for each change
    set -- "$today"
fi
[ $# -gt 0 ] || set -- "${slices[@]}"

failed=()
for slice in "$@"; do
    echo "long test: $slice"
    began=$SECONDS
    run_slice "$slice" || failed+=("$slice")
    echo "long test: $slice took $((SECONDS - began)) s"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
