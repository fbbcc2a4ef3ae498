#!/bin/bash
# Fuzzes every parser for a while, starting from fuzz/seeds: tests/fuzz.sh SECONDS [TARGET...]
# An input that breaks a target stays in fuzz/artifacts; a found one becomes a seed and a test.
# FUZZ_SEED=N tries the same inputs in every run, instead of going on from where the last one ended.
# Does what cargo-fuzz would, with the stable compiler.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../fuzz"
seconds=${1:?usage: fuzz.sh SECONDS [TARGET...]}
shift
[ $# -gt 0 ] || set -- $(sed -n 's/^name = "\(.*\)"/\1/p' Cargo.toml | grep -v '^shifter-fuzz$')

host=$(rustc -vV | sed -n 's/^host: //p')
target=$(realpath -m "${CARGO_TARGET_DIR:-../target}")/fuzz-run
coverage='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares'
RUSTC_BOOTSTRAP=1 RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Zsanitizer=address
    $(tr -s '\n ' ' ' <<<"$coverage")" \
    cargo build -q --release --locked --target "$host" --target-dir "$target"

corpus=$target/corpus
if [ -n "${FUZZ_SEED-}" ]; then
    corpus+=-$FUZZ_SEED
    rm -rf "$corpus"
fi
# A reader's thread that is just ending when the process does would count as one.
export ASAN_OPTIONS=detect_leaks=0
mkdir -p artifacts
failed=() pids=()
for name; do
    mkdir -p "$corpus/$name"
    # Two at a time is what the smallest machines have.
    "$target/$host/release/$name" -max_total_time="$seconds" -max_len=65536 -timeout=10 \
        -rss_limit_mb=2048 -artifact_prefix="artifacts/$name-" -print_final_stats=1 \
        -seed="${FUZZ_SEED:-0}" "$corpus/$name" "seeds/$name" >"$target/$name.log" 2>&1 &
    pids[$!]=$name
    if [ ${#pids[@]} -ge "$(nproc)" ]; then
        wait -n -p done_pid || failed+=("${pids[$done_pid]}")
        unset "pids[$done_pid]"
    fi
done
while [ ${#pids[@]} -gt 0 ]; do
    wait -n -p done_pid || failed+=("${pids[$done_pid]}")
    unset "pids[$done_pid]"
done
for name; do
    runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$target/$name.log")
    echo "fuzz: $name: ${runs:-?} inputs"
done
for name in "${failed[@]}"; do
    echo "fuzz: $name broke; the input is in fuzz/artifacts"
    tail -n 20 "$target/$name.log"
done
[ ${#failed[@]} -eq 0 ]
