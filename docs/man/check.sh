#!/bin/bash
# docs/man/check.sh: the command lines, their help and the manual pages name the same options, the
# pages name every exit code and variable, and they are man pages without a fault. The keys of the
# configuration are compared by shifter-core/tests/sample.rs, which this runs.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/../.."

failed=0
complain() {
    echo "  $*"
    failed=1
}

# Options in text: `--name` or `-x`, at the beginning of a word.
options() {
    grep -oE -- "(^|[^A-Za-z0-9-])(-[A-Za-z]|--[a-z][a-z-]*)\b" | grep -oE -- '-.*' | sort -u
}

# The text after `HELP: &str = ` in a source file.
help() {
    sed -n '/HELP: &str = "/,/^";/p' "$1"
}

# What a parser compares words with: string literals that are options, and lexopt's patterns.
parsed() {
    sed -e '/HELP: &str = "/,/^";/d' -e '/^#\[cfg(test)\]/,$d' -e 's,//.*,,' "$1" |
        grep -oE '"--?[A-Za-z][A-Za-z-]*"|Long\("[^"]*"\)|Short\(.[A-Za-z].\)' |
        sed -e 's/^Long("\(.*\)")/--\1/' -e "s/^Short('\(.\)')/-\1/" -e 's/"//g' | sort -u
}

# The plugin's table.
plugged() {
    sed -nE 's/^ *name: c"(.*)",/--\1/p' "$1" | sort -u
}

# The terms of a page that are options.
defined() {
    grep '^`-' "docs/man/$1.md" | options
}

# compare WHAT ONE OTHER [EXCEPT...]: complains about names that stand on one side alone, and about
# a side without any, which means that the source is no longer written as this expects.
compare() {
    local what=$1 one=$2 other=$3 only
    shift 3
    [ -n "$one" ] || complain "$what: nothing found in the source"
    only=$(diff <(echo "$one") <(echo "$other") | sed -n 's/^[<>] //p' |
        grep -vxF -f <(printf '%s\n' "$@"))
    [ -z "$only" ] || complain "$what:" $only
}

# Spellings that work and are not advertised: kept for users of the C Shifter, or the usual ones.
compare "shifter: parser and help" "$(parsed node-setup/src/options.rs)" \
    "$(help node-setup/src/options.rs | options)" -n --entry
compare "setupRoot: parser and help" "$(parsed node-setup/src/bin/setupRoot.rs)" \
    "$(help node-setup/src/bin/setupRoot.rs | options)"
compare "unsetupRoot: parser and help" "$(parsed node-setup/src/bin/unsetupRoot.rs)" \
    "$(help node-setup/src/bin/unsetupRoot.rs | options)"
compare "startSshd: parser and help" "$(parsed node-setup/src/bin/startSshd.rs)" \
    "$(help node-setup/src/bin/startSshd.rs | options)"
compare "shifterimg: parser and help" "$(parsed image-manager/src/cli/args.rs)" \
    "$(help image-manager/src/cli/args.rs | options)" -h -q -V

compare "shifterimg: parser and completion" "$(parsed image-manager/src/cli/args.rs)" \
    "$(options <conf/shifterimg.bash | grep -- '^--')" -h -q -u -v -V --version

for tool in config_cli doctor/mod ps/mod; do
    compare "site-tools/$tool: parser and help" "$(parsed "site-tools/src/$tool.rs")" \
        "$(help "site-tools/src/$tool.rs" | options)"
done

# Everything that works is in the page, advertised or not. Root's programs have --help in common.
compare "shifter(1)" "$(parsed node-setup/src/options.rs)" "$(defined shifter.1)"
compare "setupRoot(8)" "$(parsed node-setup/src/bin/setupRoot.rs)" "$(defined setupRoot.8)" -h --help
compare "unsetupRoot(8)" "$(parsed node-setup/src/bin/unsetupRoot.rs)" "$(defined unsetupRoot.8)" -h --help
compare "startSshd(8)" "$(parsed node-setup/src/bin/startSshd.rs)" "$(defined startSshd.8)" -h --help
compare "shifterimg(1)" "$(parsed image-manager/src/cli/args.rs)" "$(defined shifterimg.1)"
compare "shifter-config(8)" "$(parsed site-tools/src/config_cli.rs)" "$(defined shifter-config.8)"
compare "shifter-doctor(8)" "$(parsed site-tools/src/doctor/mod.rs)" "$(defined shifter-doctor.8)"
compare "shifter-slurm(7)" "$(plugged spank-shifter/src/options.rs)" "$(defined shifter-slurm.7)"
compare "shifter-slurm(7): variables" \
    "$(sed -nE 's/^(pub )?const [A-Z_]+: &str = "(SHIFTER_.*)";/\2/p' spank-shifter/src/pins.rs | sort)" \
    "$(sed -nE 's/^`(SHIFTER_[A-Z]+)`$/\1/p' docs/man/shifter-slurm.7.md | sort)"

# Every exit code is in a page, and no page has another.
codes=$(sed -nE 's/^    [A-Z][A-Za-z]+ = ([0-9]+),/\1/p' shifter-core/src/exit.rs | sort)
compare "exit codes" "$codes" "$(sed -nE 's/^`([0-9]+)`$/\1/p' docs/man/*.md | sort -u)"
for code in $codes; do
    [ "$code" = 0 ] || help node-setup/src/options.rs | grep -qE "(^| )$code [a-z]" ||
        complain "shifter --help: no exit status $code"
done

pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT
docs/man/build.sh "$pages" || complain "a page cannot be built"
for page in "$pages"/man*/*; do
    faults=$(groff -man -Tutf8 -ww -rCHECKSTYLE=3 "$page" 2>&1 >/dev/null)
    [ -z "$faults" ] || complain "${page##*/}: $faults"
done
for other in $(grep -ohE '`[A-Za-z.-]+`\([0-9]\)' docs/man/*.md | tr -d '`)' | tr '(' . | sort -u); do
    [ -e "$pages/man${other##*.}/$other" ] || complain "there is no page $other"
done
cargo test --locked -q -p shifter-core --test sample >"$pages/test" 2>&1 || {
    complain "shifter-core/tests/sample.rs:"
    grep -E '^(thread|/)|panicked|missing' "$pages/test"
}

exit $failed
