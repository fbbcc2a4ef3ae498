#!/bin/bash
# docs/man/build.sh DIR: makes the man pages DIR/manSECTION/NAME.SECTION from NAME.SECTION.md here.
# Needs awk alone.
#
# The pages are in a small part of pandoc's Markdown: a title line `% NAME(SECTION) source | manual`,
# headings, paragraphs, `literal` and *placeholder*, `- ` lists, definition lists (`:   `), and code
# indented by four spaces, by eight within a definition.
set -euo pipefail
out=$(realpath -m "${1:?usage: build.sh DIR}")
cd "$(dirname "$(realpath "$0")")"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' ../../Cargo.toml | head -1)

convert() {
    awk -v version="$version" '
    function fail(why) {
        print FILENAME ":" FNR ": " why >"/dev/stderr"
        failed = 1
        exit 1
    }
    # Characters that roff would take for commands or draw as others.
    function escape(text) {
        gsub(/\\/, "\\e", text); gsub(/-/, "\\-", text); gsub(/~/, "\\(ti", text)
        gsub(/\^/, "\\(ha", text); gsub(/`/, "\\(ga", text); gsub(/\047/, "\\(aq", text)
        return text
    }
    function inline(text,   parts, count, at, words, number, word, result) {
        count = split(text, parts, "`")
        if (count % 2 == 0) fail("a ` is not closed")
        for (at = 1; at <= count; at++) {
            if (at % 2 == 0) {
                result = result "\\fB" escape(parts[at]) "\\fR"
                continue
            }
            number = split(parts[at], words, "*")
            if (number && number % 2 == 0) fail("a * is not closed")
            for (word = 1; word <= number; word++)
                result = result (word % 2 ? escape(words[word]) : "\\fI" escape(words[word]) "\\fR")
        }
        return guard(result)
    }
    function guard(line) { return (line ~ /^\./ ? "\\&" : "") line }
    # A paragraph is gathered first: only the line after a term says that it is one.
    function flush() {
        if (text != "") print (lead == "" ? "" : lead "\n") inline(text)
        text = ""
    }
    function end_code() {
        if (in_code) print ".EE" (nested ? "" : "\n.RE")
        in_code = blank_lines = 0
    }
    FNR == 1 {
        if ($0 !~ /^% [A-Z.-]+\([1-8]\) [^|]+ \| /) fail("no title line")
        split($2, title, /[()]/)
        sub(/^.*\| /, "", $0)
        printf ".TH \"%s\" \"%s\" \"\" \"Shifter %s\" \"%s\"\n.nh\n.ad l\n", title[1], title[2], version, $0
        next
    }
    /^$/ { flush(); blank_lines++; next }
    text == "" && /^    / && (!nested || /^        /) {
        if (!in_code) print (nested ? ".IP" : ".PP\n.RS 4") "\n.EX"
        else while (blank_lines-- > 0) print ""
        in_code = 1
        blank_lines = 0
        print guard(escape(substr($0, nested ? 9 : 5)))
        next
    }
    { end_code() }
    /^##? / {
        nested = 0
        level = /^## / ? ".SS" : ".SH"
        sub(/^##? /, "")
        gsub(/"/, "\\(dq")
        print level " \"" $0 "\""
        next
    }
    /^:   / {
        if (text == "") fail("a definition without its term")
        print ".TP\n" inline(text)
        nested = 1; lead = ""; text = substr($0, 5)
        next
    }
    /^- / { flush(); nested = 1; lead = ".IP \\(bu 2"; text = substr($0, 3); next }
    text == "" { nested = nested && /^    /; lead = nested ? ".IP" : ".PP" }
    { sub(/^ +/, ""); text = text (text == "" ? "" : " ") $0 }
    END {
        if (failed) exit 1
        flush()
        end_code()
    }' "$1"
}

new=$(mktemp)
trap 'rm -f "$new"' EXIT
for page in *.[1-8].md; do
    convert "$page" >"$new"
    name=${page%.md}
    install -D -m 0644 "$new" "$out/man${name##*.}/$name"
done
