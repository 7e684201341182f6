#!/usr/bin/env bash
# Who may get what, and how to get in: purposes, matters, dual control.
#
#   tests/purposes/run.sh [--short] [--dir DIR] [PART...]      parts: table functions control nodes sql
#
# table      every cell of who, what, purpose, kind, organisation, matter and time, asked of the server and of a plain model (model.mjs)
# functions  the same of services' requests, asked of the database's functions directly, as the role of a worker
# control    two officers: own and outdated approvals, a matter edited after its approval, what nobody asked for
# nodes      a second node on the same database: what closes is closed there before the command returns, under load
# sql        the roles of worker and keeper: hostile arguments to all functions, no table; races of breadth
#
# --short takes fewer registrations and rounds.  --dir DIR: an instance that runs already.  KMS_BUILD_DIR names a build tree to use.  Ends with a line "N passed, N failed".
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
short=() parts=() dir=
while [ $# -gt 0 ]; do
    case $1 in
    --short) short=(--short) ;;
    --dir) dir=$2 && shift ;;
    -h | --help)
        sed -n '2,13s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) parts+=("$1") ;;
    esac
    shift
done
[ ${#parts[@]} -gt 0 ] || parts=(table functions control nodes sql)

own=
finish() {
    [ -n "$own" ] || return
    "$top/kms/quickstart.sh" --stop --dir "$own" >/dev/null 2>&1
    if [ -s "$own/places" ]; then
        # shellcheck disable=SC1091
        . "$own/places"
        # shellcheck disable=SC2154
        rm -rf "$run" "$outside"
    fi
    if [ "${failed:-1}" = 0 ]; then rm -rf "$own"; else echo "left for a look: $own"; fi
}
trap finish EXIT
trap 'exit 1' INT TERM
if [ -z "$dir" ]; then
    own=$(mktemp -d /tmp/kms-purposes.XXXXXX)
    dir=$own
    "$top/kms/quickstart.sh" --detach --dir "$own" >"$own.log" 2>&1 || {
        tail -n 40 "$own.log"
        echo "0 passed, 1 failed"
        exit 1
    }
    rm -f "$own.log"
fi
set -a
# shellcheck disable=SC1091
. "$dir/env"
set +a
export KMS_TEST_CONF=$dir/kms.conf
# The programs' folder, from the tool that runs one of them.
KMS_TEST_KMSD=$(dirname "$(sed -n 's/^exec \([^ ]*\) .*/\1/p' "$KMSCTL")")/kmsd
export KMS_TEST_KMSD

passed=0 failed=0
for part in "${parts[@]}"; do
    echo "--- $part"
    case $part in
    table) set -- table.mjs ;;
    functions) set -- table.mjs --sql ;;
    control | nodes | sql) set -- "$part.mjs" ;;
    *)
        echo "no part $part"
        exit 2
        ;;
    esac
    out=$(timeout 1200 node "$here/$1" "${@:2}" "${short[@]}" 2>&1)
    status=$?
    printf '%s\n' "$out"
    line=$(tail -n 1 <<<"$out" | grep -E '^[0-9]+ passed, [0-9]+ failed$') || line=
    if [ -z "$line" ]; then
        failed=$((failed + 1))
        echo "FAILED: $part broke off ($status)"
    else
        passed=$((passed + ${line%% passed*}))
        f=${line##*, }
        failed=$((failed + ${f%% failed}))
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
