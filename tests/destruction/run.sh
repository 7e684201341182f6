#!/usr/bin/env bash
# Destruction against a live server: what is destroyed cannot be opened from an old backup either, a clock that jumps
# destroys nothing, a matter holds what it covers, and each deed has a certificate that others can verify.
#
#   tests/destruction/run.sh         starts a server of its own, and ends it
#
# KMS_BUILD_DIR names a build tree to use.
set -u
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
. "$top/tests/lib/postgres.sh"
case "${1:-}" in
-h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
for build in "${KMS_BUILD_DIR:-.}" "$PWD" "$top"; do
    [ -f "$build/Makefile" ] && break
done
make -s -C "$build" tests/destruction/open_blobs >/dev/null 2>&1 || { echo "0 passed, 1 failed"; exit 1; }
opener=$(cd "$build" && pwd)/tests/destruction/open_blobs

work=$(mktemp -d /tmp/kms-destruction-test.XXXXXX)
chmod 711 "$work"
passed=0
failed=0
finish() {
    "$top/kms/quickstart.sh" --stop --dir "$work/server" >/dev/null 2>&1
    [ -d "$work/restored" ] && pg_remove "$work/restored"
    if [ "$failed" -eq 0 ]; then rm -rf "$work"; else echo "left for a look: $work"; fi
}
trap finish EXIT
trap 'exit 1' INT TERM
ok() { passed=$((passed + 1)); }
bad() {
    failed=$((failed + 1))
    echo "FAILED: $*"
}
is() { if [ "$2" = "$3" ]; then ok; else bad "$1: \"$2\", not \"$3\""; fi; }
has() { if grep -Eq -- "$3" <<<"$2"; then ok; else bad "$1: no \"$3\" in: $(head -c 400 <<<"$2")"; fi; }
wait_until() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.3
    done
}

"$top/kms/quickstart.sh" --detach --dir "$work/server" >"$work/quickstart.log" 2>&1 || {
    cat "$work/quickstart.log"
    echo "0 passed, 1 failed"
    exit 1
}
set -a
# shellcheck disable=SC1091
. "$work/server/env"
set +a
ctl=$KMSCTL org=$KMS_ORG
sql() { psql -XqAt -v ON_ERROR_STOP=1 "$KMS_DATABASE_URL" "$@"; }
owner() { sql -c "SET ROLE kms_owner; SET search_path = kms, pg_catalog; $1"; }
as() { "$KMS_CLIENT" "${@:2}" --token-file "$work/$1" --state "$work/state-$1"; }
for u in alice bob; do "$KMS_CLIENT" token --subject $u --org "$org" --expires-in 3600 >"$work/$u"; done
# An officer asks for it, the second agrees; the approval.
agreed() {
    local id
    id=$("$ctl" --json "$@" 2>"$work/err" | jq -r .approval)
    "$KMSCTL_OFFICER2" --json approvals approve "$id" 2>>"$work/err" || bad "$*: $(cat "$work/err")"
}
id_of() { echo "${1##*/}"; }
truth() { [ "$(sql -c "SELECT $1")" = t ]; }

# --- keys that fall due together ---

bound=$(as alice key create --quiet | head -n 1)     # bound later to what ends
control=$(as alice key create --quiet | head -n 1)   # to what does not
resource=$(as alice resource create --key-uri "$bound" --auth-id bob --ttl 1728000 --quiet | head -n 1)
lasting=$(as alice resource create --key-uri "$control" --quiet | head -n 1)
month=$(sql -c "SELECT to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM') FROM kms.resources WHERE resource_id = '$(id_of "$resource")'")
if wait_until 20 truth "generation >= 1000000000 FROM kms.content_keys WHERE key_id = '$(id_of "$bound")'"; then ok; else bad "a key that ends was not moved under its month's"; fi
is "one period key of that month" "$(sql -c "SELECT count(*) FROM kms.period_keys WHERE to_char(month, 'YYYY-MM') = '$month' AND kcv IS NOT NULL")" 1
if as bob key get "$bound" >/dev/null; then ok; else bad "a key that was moved does not open"; fi
minted=$(as alice resource create --ttl 1728000 --kind meeting --count 1 --json | jq -r '.resource.keys[0].uri')
is "a key made with what ends is under its month's at once" \
    "$(sql -c "SELECT generation >= 1000000000 FROM kms.content_keys WHERE key_id = '$(id_of "$minted")'")" t
if as alice key get "$minted" >/dev/null; then ok; else bad "it does not open"; fi
rotated=$(as alice resource rotate "$resource" --json | jq -r '.keys[0].uri')
is "so is one that rotates" "$(sql -c "SELECT generation >= 1000000000 FROM kms.content_keys WHERE key_id = '$(id_of "$rotated")'")" t

# --- the backup of today ---

pg_dump -Fc "$KMS_DATABASE_URL" >"$work/dump" || bad "pg_dump"

# Restored beside the token of today: all of it opens.
pg_start "$work/restored" >/dev/null || bad "a second cluster"
back=$(pg_url "$work/restored" kms)
psql -Xq "$(pg_url "$work/restored" postgres)" -c "CREATE DATABASE kms" -c "CREATE ROLE kms_owner" -c "CREATE ROLE kms_worker" -c "CREATE ROLE kms_keeper" >/dev/null
pg_restore --no-owner -d "$back" "$work/dump" 2>"$work/restore.log" || bad "pg_restore: $(head -n 3 "$work/restore.log")"
# What the backup has of a key.
rows() {
    psql -XqAt -F ' ' "$back" -c "SELECT replace(k.org_id::text, '-', ''), replace(k.key_id::text, '-', ''), k.generation, replace(w.root_id::text, '-', ''),
        encode(w.wrapped, 'hex'), encode(k.blob, 'hex') FROM kms.content_keys k JOIN kms.wrapping_keys w USING (org_id, generation)
        WHERE k.key_id = '$(id_of "$1")'"
}
socket=$(sed -n 's/^socket *= *//p' "$work/server/kms.conf" | grep -m 1 hsm)
for k in control bound minted rotated; do is "it opens from the backup: $k" "$(rows "${!k}" | "$opener" "$socket")" opens; done

# --- a clock that jumps ---

clock() { owner "CREATE OR REPLACE FUNCTION wall() RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN RETURN clock_timestamp() + interval ''$1''; END'" >/dev/null; }
# By so much, in hours, is the database's clock ahead of what counts.
ahead() { truth "round(extract(epoch FROM kms.wall() - max(trusted_at)) / 3600) = $1 FROM kms.clocks"; }
waits() { sleep 12; is "$1" "$(sql -c "SELECT count(*) FROM kms.content_keys WHERE blob IS NULL")" 0; }
# By hours, forward and back: a resource that lives for two of them.
as alice resource create --ttl 7200 --kind meeting --count 1 >/dev/null || bad "a resource for two hours"
clock '20 hours'
if wait_until 15 ahead 20; then ok; else bad "the keeper did not notice twenty hours"; fi
waits "nothing is destroyed twenty hours early"
has "and who asks is told" "$("$ctl" retention clock)" 'was set ahead'
# What is made while the clock is hours behind does not come to its end when that is set right.
clock '-10 hours'
if wait_until 15 ahead 0; then ok; else bad "the keeper did not notice that the clock was set back"; fi
brief=$(as alice resource create --ttl 7200 --kind meeting --count 1 --json | jq -r '.resource.uri')
sql -c "SET session_replication_role = replica" -c "UPDATE kms.resources SET expires_at = expires_at - interval '10 hours' WHERE resource_id = '$(id_of "$brief")'"
clock 0
if wait_until 15 ahead 10; then ok; else bad "ten hours that did not go by"; fi
waits "what was made meanwhile is not destroyed"

clock '70 days'
if wait_until 15 truth "bool_or(held) FROM kms.clocks"; then ok; else bad "the keeper did not notice that the clock has jumped"; fi
sleep 12
is "nothing is destroyed early" "$(sql -c "SELECT count(*) FROM kms.content_keys WHERE blob IS NULL")" 0
is "nor is a period key" "$(sql -c "SELECT count(*) FROM kms.period_keys WHERE ended_at IS NOT NULL")" 0
has "the preview says so" "$("$ctl" retention preview)" 'clock is in question'
has "the log says so" "$(cat "$work"/server/log/kmsd.log)" 'nothing is destroyed by it until'
"$ctl" --json retention confirm-clock >"$work/confirm" || bad "one officer cannot ask"
is "one officer does not do" "$(jq -r .state "$work/confirm")" pending
"$KMSCTL_OFFICER2" approvals approve "$(jq -r .approval "$work/confirm")" >/dev/null || bad "confirming the clock"

# --- it is right after all: the month is over ---

if wait_until 60 truth "destroyed_at IS NOT NULL FROM kms.period_keys WHERE to_char(month, 'YYYY-MM') = '$month'"; then ok; else bad "the month's period key is still there"; fi
is "what was in it is gone" "$(sql -c "SELECT count(*) FROM kms.content_keys WHERE blob IS NULL AND key_id IN ('$(id_of "$bound")', '$(id_of "$minted")', '$(id_of "$rotated")')")" 3
if as alice key get "$control" >/dev/null; then ok; else bad "what does not end is gone"; fi
clock 0

# --- the backup beside the token of now ---

is "what was not destroyed opens from it" "$(rows "$control" | "$opener" "$socket")" opens
for k in bound minted rotated; do
    got=$(rows "${!k}" | "$opener" "$socket")
    if [ "$got" != opens ] && [ -n "$got" ]; then ok; else bad "what was destroyed opens from an old backup: $k: $got"; fi
done

# --- certificates ---

signed() { [ "$(sql -c "SELECT count(*) FROM kms.certificates WHERE note IS NULL")" = 0 ]; }
if wait_until 20 signed; then ok; else bad "certificates are not signed"; fi
"$ctl" audit key "$org" >"$work/vkey"
n=0
for c in $("$ctl" --json certificate list "$org" | jq -r '.[].certificate'); do
    n=$((n + 1))
    "$ctl" certificate show "$c" --out "$work/certificate.$n" || bad "certificate show"
    if "$ctl" certificate verify "$work/certificate.$n" --key "$work/vkey" >"$work/out"; then ok; else bad "a certificate does not verify"; fi
done
all=$(cat "$work"/certificate.*)
has "one names the keys" "$all" "^key $(id_of "$bound")"
has "and under which wrapping key" "$all" "^under [0-9]+ [0-9a-f]{16} $month"
has "another that the month's keys are destroyed" "$all" "^period-key [0-9a-f-]+ [0-9a-f]{16} destroyed"
if sed 's/^why ttl/why command/' "$work/certificate.$n" | sed 's/^why month/why ttl/' | "$ctl" certificate verify - --key "$work/vkey" >/dev/null 2>&1; then bad "a certificate that was changed verifies"; else ok; fi
is "the log has their hashes" "$(sql -c "SELECT count(*) FROM kms.certificates c JOIN kms.entries e ON e.action = 'certificate.add' AND e.detail ->> 'sha256' = encode(sha256(convert_to(c.text, 'UTF8')), 'hex')")" \
    "$(sql -c "SELECT count(*) FROM kms.certificates")"

# The key that signs them signs the log's checkpoints: who owns the database gets none from it by writing one down.
forged=$(sql -c "INSERT INTO kms.certificates (org_id, certificate_id, text, created_at)
    SELECT org_id, gen_random_uuid(), 'domain/log/' || org_id || E'\\n1\\nAAAA\\n', clock_timestamp() FROM kms.organisations WHERE name = '$org' RETURNING certificate_id")
told() { grep -q 'destruction is put off.*a certificate' "$work"/server/log/kmsd.log; }
if wait_until 15 told; then ok; else bad "the keeper did not say that it signs no such thing"; fi
is "a text that is no certificate is not signed" "$(sql -c "SELECT note IS NULL FROM kms.certificates WHERE certificate_id = '$forged'")" t

# --- a matter holds ---

agreed matter open "$org" held --custodian alice --from 2020-01-01 --to 2100-01-01 --expires 30d >/dev/null
if "$ctl" resource destroy "$lasting" >/dev/null 2>"$work/err"; then bad "what a matter holds is destroyed"; else has "it says so" "$(cat "$work/err")" 'matter [0-9a-f-]{36} holds it.*409002'; fi
matter=$("$ctl" --json matter list "$org" --state open | jq -r '.[0].matter')
short=$(as alice resource create --count 1 --ttl 3 --json | jq -r '.resource.uri')
sleep 16
is "past its time it is held" "$(sql -c "SELECT held_by FROM kms.resources WHERE resource_id = '$(id_of "$short")'")" "$matter"
has "the preview tells by which matter" "$("$ctl" retention preview "$org")" "$matter"
"$ctl" matter close "$matter" >/dev/null
if wait_until 30 truth "destroyed_at IS NOT NULL FROM kms.resources WHERE resource_id = '$(id_of "$short")'"; then ok; else bad "when the matter is closed it is destroyed"; fi

# --- an organisation ---

"$KMS_CLIENT" token --subject eve --org "$KMS_ORG2" >"$work/eve"
theirs=$(as eve resource create --count 1 --json | jq -r '.resource.keys[0].uri')
agreed org destroy "$KMS_ORG2" >"$work/out"
has "an organisation is destroyed after a while" "$("$ctl" destruction list)" organisation
if as eve key get "$theirs" >/dev/null; then ok; else bad "not before"; fi
if wait_until 40 truth "state = 'done' FROM kms.destructions WHERE kind = 'organisation'"; then ok; else bad "an organisation is still there"; fi
if as eve key get "$theirs" >/dev/null 2>&1; then bad "a key of a destroyed organisation"; else ok; fi
is "nothing of it opens" "$(sql -c "SELECT count(*) FROM kms.wrapping_keys w JOIN kms.organisations o USING (org_id) WHERE o.name = '$KMS_ORG2' AND w.wrapped IS NOT NULL")" 0
if as alice key get "$control" >/dev/null; then ok; else bad "another organisation is not touched"; fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
