#!/bin/sh
# Runs other people's clients against a server.  See README.md.
#
#   run.sh [--env FILE] [TEST FILE...]
#
# Without --env it starts an instance of its own, throws it away afterwards, and also tests what needs kmsd restarted.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
top=$(CDPATH='' cd -- "$here/../.." && pwd)
env_file=
own=

die() {
    echo "tests/clients: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --env)
        [ $# -ge 2 ] || die "--env needs a file"
        env_file=$2
        shift 2
        ;;
    -*) die "usage: run.sh [--env FILE] [TEST FILE...]" ;;
    *) break ;;
    esac
done

command -v node >/dev/null && command -v npm >/dev/null || die "node (18.19 or later) and npm are needed"
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ] || die "node 18.19 or later is needed"

# The packages of the lock file, once for each version of it, outside of the source tree.
hash=$(cat "$here/package.json" "$here/package-lock.json" | sha256sum | cut -c1-16)
cache=${KMS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kms-tests}/$hash
if [ ! -d "$cache" ]; then
    mkdir -p "$(dirname "$cache")"
    fresh=$(mktemp -d "$cache.XXXXXX")
    cp "$here/package.json" "$here/package-lock.json" "$fresh"
    # The optional packages are for telephones (React Native): 260 MB that nothing here loads.
    (cd "$fresh" && npm ci --omit=optional --legacy-peer-deps --ignore-scripts --no-audit --no-fund --loglevel=error) >&2 ||
        die "npm ci failed; its directory is $fresh"
    mv -T "$fresh" "$cache" 2>/dev/null || rm -rf "$fresh" # another run was first
fi

stop() {
    [ -z "$own" ] || {
        "$top/kms/quickstart.sh" --stop --dir "$own" >/dev/null 2>&1 || true
        rm -rf "$own"
    }
}

if [ -z "$env_file" ]; then
    own=$(mktemp -d "${TMPDIR:-/tmp}/kms-clients.XXXXXX")
    trap stop EXIT
    trap 'exit 130' INT TERM
    "$top/kms/quickstart.sh" --detach --dir "$own" >"$own.log" 2>&1 || {
        tail -n 40 "$own.log" >&2
        die "quickstart.sh --detach failed; its output is in $own.log"
    }
    rm -f "$own.log"
    env_file=$own/env
    KMS_TEST_OWN=$own
    KMS_TEST_QUICKSTART=$top/kms/quickstart.sh
    export KMS_TEST_OWN KMS_TEST_QUICKSTART
fi
[ -r "$env_file" ] || die "cannot read $env_file"

KMS_ENV_FILE=$(realpath "$env_file")
KMS_TEST_MODULES=$cache
NODE_EXTRA_CA_CERTS=$(sh -c '. "$1"; printf %s "$KMS_CA_FILE"' sh "$KMS_ENV_FILE")
NODE_NO_WARNINGS=1
export KMS_ENV_FILE KMS_TEST_MODULES NODE_EXTRA_CA_CERTS NODE_NO_WARNINGS

[ $# -gt 0 ] || set -- "$here"/*.test.mjs
limit=--test-timeout=180000
node $limit -e 0 2>/dev/null || limit= # not in node 18
status=0
node --test --test-concurrency=1 $limit \
    --test-reporter="$here/lib/reporter.mjs" --test-reporter-destination=stdout "$@" || status=$?
exit $status
