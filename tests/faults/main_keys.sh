#!/usr/bin/env bash
# main_keys.sh - imports, activates, revokes and deletes main keys while the keeper is killed at every step of it.
#
#   tests/faults/main_keys.sh
#
# KMS_BUILD_DIR names a finished build that was configured with --enable-faults (kms/fault.h).  Every check is a line "ok" or
# "FAIL"; the last line counts them.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
top=$(cd "$here/../.." && pwd -P)

points=(job.taken pair.made import.made move.one move.made job.stored forgotten destroy.done destroy.noted)
work=$(mktemp -d /tmp/kms-faults-main-keys.XXXXXX)
chmod 755 "$work"
cd "$work" || exit 1
mkdir "$work/died"
export KMS_FAULT_DIR=$work/died
KMS_FAULT=$(printf 'cmk.%s,' "${points[@]}")
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
reader=
finish() {
    [ -z "$reader" ] || kill "$reader" 2>/dev/null
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
ctl() { # the admin socket goes with the keeper, and its parent waits longer each time before it starts another
    for _ in $(seq 60); do
        "$KMSCTL" --json "$@" 2>"$work/ctl.log" && return
        sleep 1
    done
    cat "$work/ctl.log" >&2
    return 1
}
wait_for() { # SECONDS SQL: until that is true
    local until=$((SECONDS + $1))
    until [ "$(sql "SELECT $2")" = t ]; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.2
    done
}
agree() { # COMMAND...: asked for by one officer, and approved by another, whatever dies between
    local id
    id=$(ctl "$@" | jq -r 'select(.state == "pending") | .approval') || return 1
    [ -n "$id" ] || return 0
    for _ in $(seq 60); do
        "$KMSCTL_OFFICER2" --json approvals approve "$id" >/dev/null 2>"$work/ctl.log"
        [ "$(sql "SELECT state FROM kms.approvals WHERE approval_id = '$id'")" = done ] && return
        sleep 1
    done
    cat "$work/ctl.log" >&2
    return 1
}
settled() { wait_for 120 "NOT EXISTS (SELECT FROM kms.main_key_jobs)" || bad "a job does not end: $1"; }
state() { sql "SELECT state FROM kms.main_keys WHERE main_key_id = '$1'"; }
parents() { sql "SELECT coalesce(string_agg(DISTINCT CASE WHEN root_id = kms.root_active() THEN 'root' ELSE root_id::text END, ' '), 'none') FROM kms.wrapping_keys
    WHERE org_id = (SELECT org_id FROM kms.organisations WHERE name = '$KMS_ORG')"; }

KMS_TOKEN=$("$KMS_CLIENT" token --subject alice) || exit 1
export KMS_TOKEN
resource=$(client resource create --kind meeting --count 20 | jq -r '.. | .resource? // empty | .uri? // empty' | head -1)
values() { client resource keys "$resource" | jq -S '[.. | objects | select(has("jwk")) | [.uri, .jwk.k]] | sort'; }
values >"$work/before"
is "keys to begin with" "$(jq length "$work/before")" 20

# Read all the time; while the key is revoked nothing may come.
echo open >"$work/gate"
(
    while :; do
        before=$(cat "$work/gate")
        values >"$work/now" 2>"$work/why" && got=$? || got=$?
        [ "$before" = "$(cat "$work/gate")" ] && [ "$before" != moving ] || continue
        if cmp -s "$work/before" "$work/now"; then echo "$before same"; elif grep -q 40500 "$work/why"; then echo "$before refused"; else
            echo "$before $got $(head -c 300 "$work/why")"; fi >>"$work/reads"
    done
) &
reader=$!

pem=$work/public.pem
for _ in $(seq 60); do
    ctl cmk public-key "$KMS_ORG" | jq -r .public_key >"$pem" && grep -q BEGIN "$pem" && break
    sleep 1
done
settled pair
is "one pair came of it" "$(sql "SELECT count(*) FROM kms.import_pairs WHERE public_key IS NOT NULL")" 1
import() {
    openssl rand 32 | openssl pkeyutl -encrypt -pubin -inkey "$pem" -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -out "$work/key.enc" || bad "openssl"
    agree cmk import "$KMS_ORG" "$work/key.enc" || bad "cmk import"
    settled import
    key=$(sql "SELECT main_key_id FROM kms.main_keys WHERE state = 'PENDING' ORDER BY state_at DESC LIMIT 1")
}
import
is "one main key came of it" "$(sql "SELECT count(*) FROM kms.main_keys WHERE state <> 'IMPORTING'")" 1
agree cmk activate "$KMS_ORG" "$key" || bad "cmk activate"
settled activation
is "it is active" "$(state "$key")" ACTIVE
is "everything is under it" "$(parents)" "$key"

echo moving >"$work/gate"
ctl cmk revoke "$KMS_ORG" >/dev/null || bad "cmk revoke"
echo closed >"$work/gate"
sleep 3
is "it is revoked" "$(state "$key")" REVOKED
echo moving >"$work/gate"
agree cmk activate "$KMS_ORG" "$key" || bad "cmk activate again"
echo open >"$work/gate"
agree cmk default "$KMS_ORG" || bad "cmk default"
settled "the way back"
is "everything is under the root" "$(parents)" root
first=$key
import
agree cmk activate "$KMS_ORG" "$key" || bad "cmk activate, another"
settled "the second activation"
is "everything is under another" "$(parents)" "$key"
agree cmk delete "$KMS_ORG" || bad "cmk delete"
settled deletion
is "everything is under the root" "$(parents)" root
is "both are deleted" "$(state "$first") $(state "$key")" "DELETED DELETED"
sql "UPDATE kms.main_keys SET used_until = used_until - interval '3 minutes', state_at = state_at - interval '3 minutes'" >/dev/null
wait_for 120 "NOT EXISTS (SELECT FROM kms.main_keys WHERE destroyed_at IS NULL)" || bad "they do not leave the HSM"
sleep 3

kill "$reader"
wait "$reader" 2>/dev/null
reader=
is "what was read meanwhile" "$(sort -u "$work/reads" | tr '\n' ' ')" "closed refused open same "
echo "     all keys were read $(grep -c same "$work/reads") times, and refused $(grep -c refused "$work/reads") times"
values >"$work/after"
if cmp -s "$work/before" "$work/after"; then ok "every key is what it was"; else bad "keys are not what they were"; fi
hsm=$(ctl hsm status | jq -c '.. | strings' | grep -cF -e "$(tr -d - <<<"$first")" -e "$(tr -d - <<<"$key")")
is "the HSM tells of neither" "$hsm" 0

# --- what a crash of the token leaves behind under an id that was written down: it could leave the token ---

token() {
    local conf=$work/kms/kms.conf
    pkcs11-tool --module "$(sed -n 's/^ *module *= *//p' "$conf")" --token-label "$(sed -n 's/^ *token *= *//p' "$conf")" \
        --login --pin "$(cat "$work/kms/pin")" "$@" 2>&1
}
left_behind() { # LABEL KIND OF KEY...: its id
    local id
    id=$(printf '%012x' $(($(date +%s%3N) + 5000)))$(openssl rand -hex 10)
    token "${@:2}" --label "$1" --id "$id" --extractable --private >/dev/null || bad "no key $1 in the token"
    sed 's/\(........\)\(....\)\(....\)\(....\)/\1-\2-\3-\4-/' <<<"$id"
}
has() { token --list-objects | grep -c "$(tr -d - <<<"$1")"; }
nil=00000000-0000-0000-0000-000000000000
org2="(SELECT org_id FROM kms.organisations WHERE name = '$KMS_ORG2')"

pair=$(left_behind kms-import --keypairgen --key-type rsa:2048)
sql "INSERT INTO kms.import_pairs VALUES ($org2, '$pair', NULL, now())"
if "$KMSCTL" cmk public-key "$KMS_ORG2" >/dev/null 2>"$work/err"; then bad "a pair that could leave the token is used"; else ok "a pair that could leave the token is refused: $(cat "$work/err")"; fi
if "$KMSCTL" cmk public-key "$KMS_ORG2" | grep -q 'BEGIN PUBLIC KEY'; then ok "who asks again gets another"; else bad "no other pair"; fi
is "under another id" "$(sql "SELECT count(*) FROM kms.import_pairs WHERE pair_id = '$pair'") $(has "$pair")" "0 0"

root=$(left_behind kms-root --keygen --key-type AES:32)
sql "INSERT INTO kms.rotations (org_id, rotation_id, kind, to_id, total, started_at) VALUES ('$nil', gen_random_uuid(), 'root', '$root', 0, now())"
wait_for 60 "state = 'done' FROM kms.rotations WHERE kind = 'root'" || bad "the root is not rotated"
is "a root takes another id" "$(sql "SELECT count(*) FROM kms.roots WHERE root_id = '$root'") $(has "$root")" "0 0"

period=$(left_behind kms-period --keygen --key-type AES:32)
sql "INSERT INTO kms.period_keys (org_id, month, key_id, created_at) VALUES ('$nil', date_trunc('month', now() + interval '50 days'), '$period', now())"
client resource create --count 1 --ttl $((50 * 86400)) >/dev/null || bad "no resource that ends"
wait_for 60 "kcv IS NOT NULL FROM kms.period_keys WHERE month = date_trunc('month', now() + interval '50 days')" || bad "the period key is not made"
is "a period key takes another id" "$(sql "SELECT count(*) FROM kms.period_keys WHERE key_id = '$period'") $(has "$period")" "0 0"

for p in "${points[@]}"; do
    if [ -e "$work/died/cmk.$p" ]; then ok "the keeper was killed at $p"; else bad "the keeper was never at $p"; fi
done

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
