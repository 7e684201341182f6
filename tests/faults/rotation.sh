#!/usr/bin/env bash
# rotation.sh - rotates wrapping keys and the root while the keeper is killed at every step, and while all keys are read.
#
#   tests/faults/rotation.sh
#
# KMS_BUILD_DIR names a finished build that was configured with --enable-faults (kms/fault.h).  Every check is a line "ok" or
# "FAIL"; the last line counts them.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
top=$(cd "$here/../.." && pwd -P)

points=(wrapping_key.made wrapping_key.added reseal.done reseal.stored root.naming root.made root.sealed root.opened root.advanced
    rewrap.done rewrap.stored check.opened check.done root.retired root.destroyed)
work=$(mktemp -d /tmp/kms-faults-rotation.XXXXXX)
chmod 755 "$work"
cd "$work" || exit 1
mkdir "$work/died"
export KMS_FAULT_DIR=$work/died
KMS_FAULT=$(printf 'rotation.%s,' "${points[@]}")
export KMS_FAULT
passed=0 failed=0
ok() {
    passed=$((passed + 1))
    echo "ok   $*"
}
bad() {
    failed=$((failed + 1))
    echo "FAIL $*"
}
is() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: \"$2\", not \"$3\""; fi; }
reader= second_kmsd= second_hsmd=
finish() {
    for p in $reader $second_kmsd $second_hsmd; do kill "$p" 2>/dev/null; done
    "$top/kms/quickstart.sh" --stop --dir "$work/kms" >/dev/null 2>&1
    if [ "$failed" = 0 ]; then rm -rf "$work"; else echo "left for a look: $work"; fi
}
trap finish EXIT

"$top/kms/quickstart.sh" --detach --dir "$work/kms" >"$work/quickstart.log" 2>&1 || {
    tail -20 "$work/quickstart.log"
    echo "0 passed, 1 failed"
    exit 1
}
set -a
# shellcheck disable=SC1091
. "$work/kms/env"
set +a
sql() { psql -XqAt -v ON_ERROR_STOP=1 "$KMS_DATABASE_URL" -c "$1"; }
client() { "$KMS_CLIENT" --json "$@"; }
wait_for() { # SECONDS SQL: until that is true
    local until=$((SECONDS + $1))
    until [ "$(sql "SELECT $2")" = t ]; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.2
    done
}
agree() {
    local id
    id=$("$KMSCTL" --json "$@" | jq -r 'select(.state == "pending") | .approval') || return 1
    [ -z "$id" ] || "$KMSCTL_OFFICER2" --json approvals approve "$id" >/dev/null
}

KMS_TOKEN=$("$KMS_CLIENT" token --subject alice) || exit 1
export KMS_TOKEN
# 300 keys of a meeting and 20 recordings.
resource=$(client resource create --kind meeting --count 100 | jq -r '.. | .resource? // empty | .uri? // empty' | head -1)
for _ in 1 2; do client resource rotate "$resource" --count 100 >/dev/null; done
for _ in $(seq 20); do client recording create "$resource" >/dev/null; done
# What a client gets, in one order: keys with their values.  A recording's message has its key and a nonce of its own each
# time, so of those it counts that they can be read.
values() { client resource keys "$resource" | jq -S '[.. | objects | select(has("jwk")) | [.uri, .jwk.k]] | sort'; }
recordings() { client recording list "$resource" | jq '[.. | objects | select(has("message"))] | length'; }
values >"$work/before"
is "keys to begin with" "$(jq length "$work/before")" 300
is "recordings to begin with" "$(recordings)" 20

# All of them are read all the time.
(
    while :; do
        values >"$work/now" 2>>"$work/reader.log"
        if cmp -s "$work/before" "$work/now"; then echo same; else echo different; fi >>"$work/reads"
        [ "$(recordings 2>>"$work/reader.log")" = 20 ] || echo recordings >>"$work/reads"
    done
) &
reader=$!

org="(SELECT org_id FROM kms.organisations WHERE name = '$KMS_ORG')"
"$KMSCTL" wrapping-key rotate "$KMS_ORG" >/dev/null || bad "wrapping-key rotate"
wait_for 600 "EXISTS (SELECT FROM kms.rotations WHERE org_id = $org AND state = 'done')" || bad "the wrapping key's rotation does not end"
is "nothing is under the first generation" "$(sql "SELECT count(*) FROM kms.content_keys WHERE org_id = $org AND generation = 1 AND blob IS NOT NULL")" 0
is "nor a recording" "$(sql "SELECT count(*) FROM kms.recordings WHERE org_id = $org AND generation = 1 AND blob IS NOT NULL")" 0
is "one generation came of it" "$(sql "SELECT generation FROM kms.organisations WHERE org_id = $org")" 2

old=$(sql "SELECT kms.root_active()")

agree root rotate || bad "root rotate"
wait_for 600 "EXISTS (SELECT FROM kms.rotations WHERE kind = 'root' AND state = 'done')" || bad "the root's rotation does not end"
is "one root came of it" "$(sql "SELECT string_agg(state, ' ' ORDER BY root_id) FROM kms.roots")" "retired active"
is "every wrapping key is under it" "$(sql "SELECT count(*) FROM kms.wrapping_keys WHERE root_id <> kms.root_active() AND destroyed_at IS NULL")" 0
sql "UPDATE kms.roots SET changed_at = changed_at - interval '3 minutes' WHERE root_id = '$old'" >/dev/null
agree root destroy "$old" || bad "root destroy"
wait_for 60 "(SELECT state = 'destroyed' FROM kms.roots WHERE root_id = '$old')" || bad "the old root is not destroyed"
wait_for 30 "true" && sleep 3

kill "$reader"
wait "$reader" 2>/dev/null
reader=
is "what was read meanwhile" "$(sort -u "$work/reads")" same
echo "     all keys were read $(wc -l <"$work/reads") times"
values >"$work/after"
if cmp -s "$work/before" "$work/after"; then ok "every key is what it was"; else bad "keys are not what they were"; fi
is "every recording can be read" "$(recordings)" 20
for p in "${points[@]}"; do
    if [ -e "$work/died/rotation.$p" ]; then ok "the keeper was killed at $p"; else bad "the keeper was never at $p"; fi
done
new=$(sql "SELECT kms.root_active()")

# A second node, whose token is a copy: it does not get the new root, and holds the switch up until it is gone.
mkdir "$work/second"
cp -a "$work/kms/softhsm" "$work/second/softhsm"
sed "s|$work/kms/softhsm|$work/second/softhsm|" "$work/kms/softhsm2.conf" >"$work/second/softhsm2.conf"
port() { perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport'; }
sed -e "s|^node = .*|node = second|" -e "s|^listen = .*|listen = 127.0.0.1:$(port)|" \
    -e "s|$work/kms/run/admin.sock|$work/second/admin.sock|; s|$work/kms/run/hsmd.sock|$work/second/hsmd.sock|" \
    -e "s|$work/kms/\(kmsd\|hsmd\).pid|$work/second/\1.pid|" "$work/kms/kms.conf" |
    awk -v port="$(port)" '/^\[/ { section = $0 } section == "[metrics]" && /^listen/ { $0 = "listen = 127.0.0.1:" port } { print }' >"$work/second/kms.conf"
SOFTHSM2_CONF=$work/second/softhsm2.conf "$KMS_BUILD_DIR/hsm/hsmd" --foreground --config "$work/second/kms.conf" >"$work/second/log" 2>&1 &
second_hsmd=$!
KMS_FAULT='' "$KMS_BUILD_DIR/kms/kmsd" --config "$work/second/kms.conf" >>"$work/second/log" 2>&1 &
second_kmsd=$!
wait_for 60 "EXISTS (SELECT FROM kms.nodes WHERE node = 'second')" || bad "the second node does not come"

agree root rotate || bad "root rotate"
wait_for 60 "EXISTS (SELECT FROM kms.rotations WHERE kind = 'root' AND problem LIKE '%second: its token does not hold this root%')" ||
    bad "a node without the new root is not told of"
is "a node without the new root holds the switch up" "$(sql "SELECT kms.root_active()")" "$new"
case $("$KMSCTL" rotation status) in
*"not yet: second: its token does not hold this root"*) ok "rotation status names it" ;;
*) bad "rotation status does not name it" ;;
esac
kill $second_kmsd $second_hsmd
wait $second_kmsd $second_hsmd 2>/dev/null
second_kmsd= second_hsmd=
wait_for 150 "kms.root_active() <> '$new'" || bad "a node that is gone is waited for"
wait_for 60 "NOT EXISTS (SELECT FROM kms.rotations WHERE state = 'running')" || bad "the rotation does not end"
values >"$work/after"
if cmp -s "$work/before" "$work/after"; then ok "every key is what it was, under the third root"; else bad "keys are not what they were"; fi
is "a new organisation" "$("$KMSCTL" --json org add afterwards | jq -r .state)" active
is "the server is ready" "$("$KMSCTL" --json status | jq -r .ready)" true
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
