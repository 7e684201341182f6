#!/usr/bin/env bash
# Rows of the database that were changed never open: bits flipped, cut or grown, swapped between keys, organisations, generations, months
# and kinds, moved, put back as they were before.  Of hsmd in great number, then of the whole server, beneath which its rows are changed.
#
#   tests/rows/run.sh [--short] [--seed N] [--count N]
#
# --count N: rows changed for hsmd, 100000; a fifth as many more for an hsmd that keeps wrapping keys in its memory.  --short: as many as
# half a minute takes.  The same seed makes the same changes, of whatever rows there are.  KMS_BUILD_DIR names a build tree to use.  Each changed row is a check; the last line counts them.
set -u
here=$(cd "$(dirname "$0")" && pwd -P)
top=$(cd "$here/../.." && pwd -P)
short=0 count=100000 seed=$((RANDOM << 15 | RANDOM))
while [ $# -gt 0 ]; do
    case $1 in
    --short) short=1 ;;
    --seed) seed=$2 && shift ;;
    --count) count=$2 && shift ;;
    -h | --help)
        sed -n '2,9s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        echo "no option $1; see --help"
        exit 2
        ;;
    esac
    shift
done
for build in "${KMS_BUILD_DIR:-.}" "$PWD" "$top"; do
    [ -f "$build/Makefile" ] && break
done
make -s -C "$build" tests/rows/open_changed >/dev/null 2>&1 || {
    echo "FAIL open_changed is not built"
    echo "0 passed, 1 failed"
    exit 1
}
build=$(cd "$build" && pwd -P)

work=$(mktemp -d /tmp/kms-rows-test.XXXXXX)
chmod 711 "$work"
second=
status=1
finish() {
    [ -z "$second" ] || kill "$second" 2>/dev/null
    "$top/kms/quickstart.sh" --stop --dir "$work/server" >/dev/null 2>&1
    if [ "$status" = 0 ]; then rm -rf "$work"; else echo "left for a look: $work" >&2; fi
}
trap finish EXIT
trap 'exit 1' INT TERM
export KMS_BUILD_DIR=$build
"$top/kms/quickstart.sh" --detach --dir "$work/server" >"$work/quickstart.log" 2>&1 || {
    tail -n 20 "$work/quickstart.log"
    echo "0 passed, 1 failed"
    exit 1
}
set -a
# shellcheck disable=SC1091
. "$work/server/env"
set +a

# A second one beside the same token, with custody = process: the other code that opens blobs.
sed -n '/^\[hsmd\]/,$p' "$work/server/kms.conf" |
    sed "s,^socket = .*,socket = $work/process.sock,; s,^pid_file = .*,pid_file = $work/process.pid,; /^\[hsmd\]/a custody = process" >"$work/process.conf"
"$build/hsm/hsmd" --config "$work/process.conf" --foreground >"$work/process.log" 2>&1 &
second=$!
for _ in $(seq 100); do
    [ ! -S "$work/process.sock" ] || break
    sleep 0.1
done

ROWS_WORK=$work ROWS_OPENER=$build/tests/rows/open_changed ROWS_SOCKET=$(sed -n '/^\[hsm\]/,/^\[/s/^socket = //p' "$work/server/kms.conf") \
    ROWS_PROCESS_SOCKET=$work/process.sock ROWS_QUICKSTART=$top/kms/quickstart.sh ROWS_SEED=$seed ROWS_SHORT=$short ROWS_COUNT=$count \
    node "$here/rows.mjs" 2>&1
status=$?
exit $status
