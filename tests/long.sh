#!/bin/bash
# The tests that take too long for every change: tests/long.sh [SLICE...]
#
# Without a slice, all of them; `today` is one of those that can be made small, in turns, for CI.
# FUZZ_SECS is the time for each fuzz target. The last full result is in docs/test-long.md.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

slices=(race security cache pulls soak cancel crowd private torque properties fuzz)

run_slice() {
    case $1 in
    race) # a volume's source that changes between directory and links, 5,000 starts
        SHIFTER_LONG_TESTS=1 tests/run.sh privileged_s36 ;;
    cache) # a user who tries 5,000 times to open the file under a per-node cache
        SHIFTER_LONG_TESTS=1 tests/run.sh privileged_s42_a_racing ;;
    pulls) # pulls killed at 200 random moments; nodes that fall silent
        SHIFTER_LONG_TESTS=1 cargo test --locked -q -p image-manager --test killed --test nodes ;;
    security) # signals at 300 moments, 1,000 broken images, 10,000 broken configurations
        SHIFTER_LONG_TESTS=1 tests/run.sh privileged_s09 privileged_s25 s18_ ;;
    soak) # 500 jobs of every kind, slurmd restarted and killed: nothing left, all in the books
        export SHIFTER_SOAK_SEED="${SHIFTER_SOAK_SEED:-$(date -u +%Y%m%d)}"
        echo "SHIFTER_SOAK_SEED=$SHIFTER_SOAK_SEED"
        SHIFTER_LONG_TESTS=1 tests/run.sh cluster_soak ;;
    cancel) # jobs cancelled at any moment of their lives
        tests/run.sh --long long_cluster_jobs_cancelled ;;
    crowd) # a thousand jobs of two users and two images at once
        tests/run.sh --long long_cluster_thousand ;;
    private) # private containers in parallel, outside and inside of jobs
        tests/run.sh --long long_cluster_private ;;
    torque) # prologues killed with their session, every 3 ms of their lives
        tests/run.sh --long long_torque ;;
    properties) # every property test with many more cases
        PROPTEST_CASES=${PROPERTY_CASES:-20000} cargo test --locked -q \
            -p shifter-core -p squashfs-writer -p image-manager -p site-tools --lib ;;
    fuzz) # every parser, with AddressSanitizer
        tests/fuzz.sh "${FUZZ_SECS:-600}" ;;
    *)
        echo "long.sh: no slice '$1'; there are: ${slices[*]}" >&2
        return 2
        ;;
    esac
}

if [ "${1-}" = today ]; then
    export FUZZ_SECS=15 PROPERTY_CASES=2000
    # New cases each day, but what fails for one caller that day fails for all.
    day=$(date -u +%Y%m%d)
    export FUZZ_SEED="${FUZZ_SEED:-$day}" PROPTEST_RNG_SEED="${PROPTEST_RNG_SEED:-$day}"
    # The others have a small form in the usual run.
    small=(properties fuzz)
    set -- "${small[$((10#$(date -u +%j) % ${#small[@]}))]}"
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
