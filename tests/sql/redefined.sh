#!/usr/bin/env bash
# redefined.sh - which functions several migrations define, one line for each time: FUNCTION FROM TO HASH.
#
# HASH is of the text in FROM, the last definition before TO's.  redefined.list has the lines that were looked at: where they differ,
# a migration was changed after a later one had copied a function of it.  Carry the change over to TO (or see that there is nothing
# to carry), then: tests/sql/redefined.sh >tests/sql/redefined.list
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/kms-redefined.XXXXXX")
trap 'rm -rf "$dir"' EXIT
declare -A last=()

for file in "$top"/sql/[0-9][0-9][0-9][0-9]_*.sql; do
    number=$(basename "$file")
    number=${number%%_*}
    # A function's text each, and what happens to which in which order.
    awk -v dir="$dir/$number" '
        !name && /^CREATE( OR REPLACE)? FUNCTION / {
            match($0, /FUNCTION [a-z_.]+/)
            name = substr($0, RSTART + 9, RLENGTH - 9)
            sub(/^kms\./, "", name)
            marks = 0
            print "define", name
        }
        /^ALTER FUNCTION .* RENAME TO / {
            sub(/\(.*/, "", $3)
            sub(/;$/, "", $NF)
            print "rename", $3, $NF
        }
        name {
            print >(dir "." name)
            code = $0
            sub(/[ \t]+--.*/, "", code)
            marks += gsub(/\$\$/, "&", code)
            if (marks != 1 && code ~ /;$/)
                name = ""
        }' "$file" >"$dir/order"
    while read -r what name to; do
        if [ "$what" = rename ]; then
            last[$to]=${last[$name]-}
            unset "last[$name]"
            continue
        fi
        from=${last[$name]-}
        if [ -n "$from" ] && [ "${from%% *}" != "$number" ]; then
            # What was renamed since has the text of its first name.
            echo "$name ${from%% *} $number $(sha256sum <"$dir/${from% *}.${from#* }" | cut -c1-16)"
        fi
        last[$name]="$number $name"
    done <"$dir/order"
done | LC_ALL=C sort
