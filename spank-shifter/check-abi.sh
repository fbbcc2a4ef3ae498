#!/bin/sh
# Proves spank_abi.h against an installed <slurm/spank.h>: check-abi.sh [INCLUDE_DIR]
#
# Slurm's header provides the types; a function that spank_abi.h declares otherwise, a number or
# a field that differs does not compile. Needs a C compiler and Slurm's headers (apt: libslurm-dev).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
{
	cat <<-C
		#include <stddef.h>
		#include <slurm/spank.h>
		#define SHIFTER_CHECK_ABI
		#include "$here/spank_abi.h"
		#define AT(field, bytes) offsetof(struct spank_option, field) == (bytes)
		#define P sizeof(void *)
		_Static_assert(AT(name, 0) && AT(arginfo, P) && AT(usage, 2 * P) && AT(has_arg, 3 * P)
			&& AT(val, 3 * P + 4) && AT(cb, 3 * P + 8), "struct spank_option");
		_Static_assert(sizeof(struct spank_option) == 4 * P + 8, "struct spank_option");
		_Static_assert(sizeof(spank_err_t) == sizeof(int), "spank_err_t");
		int (*callback)(int, const char *, int) = (spank_opt_cb_f)0;
	C
	sed -n 's/^\t\(S_[A-Z_]* = [0-9]*\),$/_Static_assert(\1, "\1");/p' "$here/spank_abi.h" |
		sed 's/ = / == /'
} | cc ${1:+-I"$1"} -x c -std=c11 -Wall -Werror -fsyntax-only -
