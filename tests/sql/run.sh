#!/usr/bin/env bash
# run.sh - all tests of sql/: on a private, throw-away PostgreSQL cluster.  tests/sql/run.sh [--keep]
#
# Needs the built tests/sql/migrate-tool: KMS_BUILD_DIR names the build (default: where run.sh is called from, or the
# tree itself).  --keep leaves the cluster running and says how to reach it.  Ends with a line "N passed, N failed".
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
. "$top/tests/lib/postgres.sh"

keep=false
[ "${1:-}" = --keep ] && keep=true

for build in "${KMS_BUILD_DIR:-.}" "$PWD" "$top"; do
    [ -f "$build/Makefile" ] && break
done
if [ ! -f "$build/Makefile" ]; then
    echo "tests/sql/run.sh: no build found; configure and make first, then set KMS_BUILD_DIR" >&2
    echo "0 passed, 1 failed"
    exit 1
fi
make -s -C "$build" tests/sql/migrate-tool >/dev/null || { echo "0 passed, 1 failed"; exit 1; }
build=$(cd "$build" && pwd)
tool=$build/tests/sql/migrate-tool

dir=$(mktemp -d "${TMPDIR:-/tmp}/kms-sql.XXXXXX")
passed=0 failed=0
finish() {
    if $keep; then
        echo "The cluster runs on: psql '$(pg_url "$dir" kms)'; stop it with: . tests/lib/postgres.sh; pg_remove $dir"
    else
        pg_remove "$dir"
    fi
}
trap finish EXIT
trap 'exit 1' INT TERM

pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "not ok: $*"
}
# is WHAT GOT WANT
is() {
    if [ "$2" = "$3" ]; then
        pass
    else
        fail "$1"
        printf '    got:  %s\n    want: %s\n' "$2" "$3"
    fi
}
# like WHAT GOT PATTERN
like() {
    if printf '%s' "$2" | grep -qE -- "$3"; then
        pass
    else
        fail "$1"
        printf '    got:  %s\n    want: /%s/\n' "$2" "$3"
    fi
}
# Statements on one database, as its superuser; output bare.
sql() {
    sql_db=$1
    shift
    psql -qXAt -v ON_ERROR_STOP=1 -d "$(pg_url "$dir" "$sql_db" "${SQL_ROLE:-postgres}")" "$@"
}
migrate() { "$tool" migrate "$(pg_url "$dir" "$1" "${2:-postgres}")" 2>&1; }

# fsync stays off; many sessions, as the races want them.
pg_start "$dir" max_connections=60 shared_buffers=256MB max_wal_size=4GB jit=on deadlock_timeout=200ms \
    session_preload_libraries=auto_explain >/dev/null || { echo "0 passed, 1 failed"; exit 1; }

for suite in migrate pgtap races months plans; do
    before=$failed
    start=$SECONDS
    . "$here/suite_$suite.sh"
    echo "sql $suite: $([ "$failed" = "$before" ] && echo ok || echo FAILED) ($((SECONDS - start)) s)"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
