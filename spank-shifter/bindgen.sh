#!/bin/sh
# Regenerates src/spank_sys.rs from spank_abi.h; with --check, only says whether it is up to date.
#
# The result is checked in, so that building what slurmd loads needs neither libclang nor the
# tree of the bindgen crate. Needs bindgen 0.60 and rustfmt, as in Debian 12 (apt: bindgen).
set -eu
cd "$(dirname "$0")"
out=src/spank_sys.rs
[ "${1:-}" = --check ] && out=$(mktemp) && trap 'rm -f "$out"' EXIT

# bindgen of that age writes extern blocks as Rust did before edition 2024.
{
	printf '%s\n' '//! Bindings to the SPANK interface, generated from spank_abi.h by bindgen.sh; do not edit.'
	bindgen --no-layout-tests --no-doc-comments --size_t-is-usize --default-enum-style consts \
		--no-prepend-enum-name --allowlist-function '(spank|slurm)_.*' --ctypes-prefix libc \
		--allowlist-type 'spank_.*' --no-rustfmt-bindings spank_abi.h |
		sed -e 's/extern "C" {/unsafe extern "C" {/g' -e '/^\/\* automatically generated/d'
} | rustfmt --edition 2024 --config max_width=100 >"$out"

[ "${1:-}" != --check ] || diff -u src/spank_sys.rs "$out"
